//! Power cuts and failing syncs: the outbox on a disk of our own, which loses what was not synced, in any part.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    sync::{Arc, Mutex, MutexGuard},
};

use redb::{Database, StorageBackend};

use ledger::admission::Submission;

use super::{store::Store, tests::Home, *};
use record::bundle::SealedBundle;

/// A disk writes sectors whole or not at all.
const SECTOR_BYTES: usize = 512;
/// Power cuts for each way to lose writes; `CUTS=5000` tries more, `FIRST_CUT=77` begins there.
const CUTS: u64 = 60;

/// A small generator of our own: a seed names a case for ever.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % limit.max(1)
    }
}

/// What was asked of the disk since the last sync.
#[derive(Clone, Debug)]
enum Unsynced {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug, Default)]
struct Platters {
    synced: Vec<u8>,
    now: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Writes and syncs until the power goes or the sync fails.
    left: u64,
    /// Syncs that have failed.
    failed_syncs: u64,
}

/// What happens when its time has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    PowerCut,
    SyncFails,
}

/// A disk as the store's library sees it.
// The library calls it from the thread that opens, the one that writes and those that read.
#[derive(Clone, Debug)]
struct Disk(Arc<Mutex<Platters>>, Fate);

impl Disk {
    fn of(image: Vec<u8>, left: u64, fate: Fate) -> Self {
        let platters = Platters {
            synced: image.clone(),
            now: image,
            left,
            ..Platters::default()
        };
        Self(Arc::new(Mutex::new(platters)), fate)
    }

    fn platters(&self) -> MutexGuard<'_, Platters> {
        self.0.lock().expect("no test panics inside")
    }

    /// One operation nearer to the end.
    fn step(&self) -> io::Result<MutexGuard<'_, Platters>> {
        let mut platters = self.platters();
        if platters.left == 0 && self.1 == Fate::PowerCut {
            return Err(io::Error::other("no power"));
        }
        platters.left = platters.left.saturating_sub(1);
        Ok(platters)
    }

    /// What the platters hold when the power is back: what was synced, and of the rest the beginning, or any part.
    fn image(&self, dice: &mut Dice, in_order: bool) -> Vec<u8> {
        let platters = self.platters();
        let mut image = platters.synced.clone();
        let whole = dice.below(platters.unsynced.len() as u64 + 1) as usize;
        for (number, change) in platters.unsynced.iter().enumerate() {
            let (is_kept, is_torn) = match in_order {
                true => (number <= whole, number == whole),
                false => (dice.below(2) == 0, dice.below(4) == 0),
            };
            let change = match change {
                Unsynced::Write(at, bytes) if is_torn => {
                    let sectors = dice.below((bytes.len() / SECTOR_BYTES) as u64 + 1) as usize;
                    Unsynced::Write(*at, bytes[..(sectors * SECTOR_BYTES).min(bytes.len())].to_vec())
                }
                other => other.clone(),
            };
            if is_kept {
                apply(&mut image, &change);
            }
        }
        image
    }
}

fn apply(image: &mut Vec<u8>, change: &Unsynced) {
    match change {
        Unsynced::Length(length) => image.resize(*length as usize, 0),
        Unsynced::Write(at, bytes) => {
            let (from, to) = (*at as usize, *at as usize + bytes.len());
            // A write behind the end whose change of the length was lost makes the file longer, as on any disk.
            image.resize(image.len().max(to), 0);
            image[from..to].copy_from_slice(bytes);
        }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.platters().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platters = self.platters();
        let from = offset as usize;
        let bytes = platters.now.get(from..from + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platters = self.step()?;
        platters.now.resize(len as usize, 0);
        platters.unsynced.push(Unsynced::Length(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platters = self.step()?;
        if platters.left == 0 && self.1 == Fate::SyncFails {
            platters.failed_syncs += 1;
            return Err(io::Error::other("EIO"));
        }
        for change in mem::take(&mut platters.unsynced) {
            apply(&mut platters.synced, &change);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platters = self.step()?;
        let change = Unsynced::Write(offset, data.to_vec());
        apply(&mut platters.now, &change);
        platters.unsynced.push(change);
        Ok(())
    }
}

/// A gateway on such a disk, and what its devices were told.
struct Bench<'a> {
    home: &'a Home,
    /// What was published, by number, and whether it was acknowledged.
    published: BTreeMap<u64, (Measurement, bool)>,
    /// What was forgotten, because it was final.
    forgotten: BTreeSet<u64>,
}

impl<'a> Bench<'a> {
    const fn of(home: &'a Home) -> Self {
        Self {
            home,
            published: BTreeMap::new(),
            forgotten: BTreeSet::new(),
        }
    }

    fn open(&self, disk: &Disk) -> Result<Outbox, Error> {
        let db = Database::builder()
            .set_cache_size(1 << 20)
            .create_with_backend(disk.clone())
            .map_err(|e| Error::Store(e.into()))?;
        let store = Store::of(db, &self.home.sealer)?;
        let config = Config {
            linger_ms: 0,
            ..Config::default()
        };
        let parts = (config, QuarantineConfig::default(), self.home.folder.path());
        Outbox::over(store, parts, self.home.sealer.clone())
    }

    /// Publishes and forgets until the disk has failed.
    async fn run(&mut self, outbox: &Outbox, dice: &mut Dice) {
        let mut seq = 0;
        loop {
            let batch: Vec<_> = (0..1 + dice.below(4)).map(|n| seq + n + 1).collect();
            seq += batch.len() as u64;
            let mut waiting = Vec::new();
            for seq in batch {
                let urgency = [Urgency::Alarm, Urgency::Live, Urgency::Backfill][dice.below(3) as usize];
                let measurement = self.home.oximeter.measurement(seq, 97);
                let measurement = Measurement { urgency, ..measurement };
                self.published.insert(seq, (measurement.clone(), false));
                waiting.push(async move { (seq, outbox.append(measurement).await) });
            }
            for (seq, answer) in futures::future::join_all(waiting).await {
                match answer {
                    Ok(Verdict::Spooled(_)) => self.published.get_mut(&seq).expect("published").1 = true,
                    Ok(other) => panic!("{seq}: {other:?}"),
                    Err(_) => return,
                }
            }
            if dice.below(4) == 0 && self.forget(outbox).await.is_none() {
                return;
            }
        }
    }

    /// The oldest bundle becomes final.
    async fn forget(&mut self, outbox: &Outbox) -> Option<()> {
        let ticket = outbox.tickets(0, 1).ok()?.first().copied()?;
        let Stored::Intact(bytes) = outbox.submission(&ticket).ok()? else {
            return None;
        };
        self.forgotten.extend(seqs(&bytes, self.home));
        let (transaction, _) = Submission::decode(&bytes).expect("intact").into_parts();
        let receipt = tests::verified(&self.home.sealer.network, transaction);
        let order = ticket.order;
        outbox
            .forget(vec![Final {
                order,
                receipt,
                verified_ms: 1,
                was_new: true,
            }])
            .await;
        Some(())
    }

    /// Everything that was acknowledged is there, once; nothing is half there; and what devices send again is told apart.
    async fn check(&self, image: Vec<u8>, case: &str) {
        let disk = Disk::of(image, u64::MAX, Fate::PowerCut);
        let outbox = match self.open(&disk) {
            Ok(outbox) => outbox,
            Err(error) => panic!("{case}: {error}"),
        };
        self.check_queue(&outbox, case).await;
        for (seq, (measurement, is_acknowledged)) in &self.published {
            let verdict = outbox.append(measurement.clone()).await.expect("the disk is good");
            let is_known = matches!(verdict, Verdict::Duplicate(_));
            assert!(is_known || !is_acknowledged, "{case}: {seq} was forgotten: {verdict:?}");
        }
        let there = self.check_queue(&outbox, case).await;
        for seq in self.published.keys() {
            let is_there = there.contains(seq) || self.forgotten.contains(seq);
            assert!(is_there, "{case}: {seq} is lost");
        }
        outbox.stop().await;
    }

    async fn check_queue(&self, outbox: &Outbox, case: &str) -> BTreeSet<u64> {
        let mut there = BTreeSet::new();
        let tickets = outbox.tickets(0, usize::MAX).expect("reads");
        for ticket in &tickets {
            let Stored::Intact(bytes) = outbox.submission(ticket).expect("reads") else {
                panic!("{case}: half of bundle {} is there", ticket.order);
            };
            for seq in seqs(&bytes, self.home) {
                assert!(there.insert(seq), "{case}: {seq} is there twice");
            }
        }
        let report = outbox.report().await.expect("runs");
        assert_eq!(report.spooled_bundles, tickets.len() as u64, "{case}");
        let alarms = tickets.iter().filter(|t| t.urgency == Urgency::Alarm).copied();
        assert_eq!(
            outbox.alarms(0, usize::MAX).expect("reads"),
            alarms.collect::<Vec<_>>(),
            "{case}"
        );
        for (seq, (_, is_acknowledged)) in &self.published {
            let is_there = there.contains(seq) || self.forgotten.contains(seq);
            assert!(
                is_there || !is_acknowledged,
                "{case}: {seq} was acknowledged and is lost"
            );
        }
        there
    }
}

fn seqs(submission: &[u8], home: &Home) -> Vec<u64> {
    let (_, payload) = Submission::decode(submission).expect("intact").into_parts();
    let (sealed, device) = (SealedBundle::decode(&payload).expect("sealed"), &home.oximeter);
    let bundle = sealed.open(&home.sealer.network, &device.secret).expect("opens");
    let key = |_: &DeviceId| Some(device.key.public());
    let seq = |entry: &Entry| entry.reading.decode(key).expect("signed").seq;
    bundle.entries.iter().map(seq).collect()
}

fn number_from(name: &str, or: u64) -> u64 {
    let given = std::env::vars_os().find(|(key, _)| key == name);
    given.and_then(|(_, value)| value.to_str()?.parse().ok()).unwrap_or(or)
}

async fn cut(home: &Home, seed: u64, in_order: bool) -> u64 {
    let mut dice = Dice(seed);
    let mut bench = Bench::of(home);
    let left = dice.below(500);
    let disk = Disk::of(Vec::new(), left, Fate::PowerCut);
    let opened = bench.open(&disk);
    if let Ok(outbox) = &opened {
        bench.run(outbox, &mut dice).await;
    }
    let case = format!("cut {seed}, {}", if in_order { "in order" } else { "any part" });
    // A file that was not whole yet has another name, and is made anew.
    let image = opened.map_or_else(|_| Vec::new(), |_| disk.image(&mut dice, in_order));
    bench.check(image, &case).await;
    bench
        .published
        .values()
        .filter(|(_, is_acknowledged)| *is_acknowledged)
        .count() as u64
}

async fn cuts(in_order: bool) {
    let first = number_from("FIRST_CUT", 0);
    let (home, mut acknowledged) = (Home::open(), 0);
    for seed in first..first + number_from("CUTS", CUTS) {
        acknowledged += cut(&home, seed, in_order).await;
    }
    assert!(acknowledged > 0 || first > 0, "no reading was ever acknowledged");
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged_when_writes_are_lost_from_the_end() {
    cuts(true).await;
}

#[tokio::test]
async fn a_power_cut_loses_nothing_acknowledged_when_any_writes_are_lost() {
    cuts(false).await;
}

#[tokio::test]
async fn after_a_sync_has_failed_none_is_tried_again_and_what_was_synced_is_there() {
    let home = Home::open();
    for seed in 0..20 {
        let mut dice = Dice(seed);
        let mut bench = Bench::of(&home);
        let disk = Disk::of(Vec::new(), 60 + dice.below(300), Fate::SyncFails);
        let outbox = bench.open(&disk).expect("the first syncs are good");
        bench.run(&outbox, &mut dice).await;
        outbox.stop().await;
        assert_eq!(disk.platters().failed_syncs, 1, "seed {seed}");
        // The kernel may have dropped what it could not write, and say no more about it.
        let synced = disk.platters().synced.clone();
        bench.check(synced, &format!("failed sync {seed}")).await;
    }
}
