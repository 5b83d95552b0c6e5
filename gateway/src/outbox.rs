//! Durable store-and-forward: readings are sealed before they touch the disk, and only what is durable is acknowledged.
//!
//! One thread owns the state and the store. It collects what arrives within `linger_ms`, seals it by subject, and commits
//! bundles, sequence state and quarantine in one durable transaction; then, and only then, it answers. Invariants:
//!
//! - A [`Durable`] exists only for a message whose commit has returned.
//! - The file never holds a readable value: a reading is in a sealed bundle, or sealed in quarantine.
//! - A bundle leaves for a [`VerifiedReceipt`] only, or is set aside with its bytes and the reason.
//! - What is read back to be sent is hashed again: what the disk has changed is set aside, not sent.
//! - A store that fails ends the process: after a failed sync nothing is known about what the disk holds.

mod batch;
mod clock;
mod config;
mod damage;
mod file;
mod latency;
mod quarantine;
mod refused;
mod report;
mod request;
mod seal;
mod sequence;
mod shelf;
mod space;
mod spooled;
mod steady;
mod store;
mod stored;
mod urgency;
mod writer;

use std::{
    io,
    path::Path,
    sync::mpsc::{self, SyncSender, TrySendError},
    thread,
    time::Duration,
};

use bytes::Bytes;
use ledger::proof::VerifiedReceipt;
use record::{
    bundle::{Entry, SubjectKey},
    canonical::{Digest, Domain},
    ids::{DeviceId, ReadingId},
    reading::Refusal,
    signature::PublicKey,
};
use tokio::sync::{oneshot, watch};

pub(crate) use self::quarantine::instant;
pub use self::{
    clock::Way,
    config::Config,
    damage::is_reading_back,
    latency::Percentiles,
    quarantine::{Config as QuarantineConfig, Shown, Summary},
    refused::{Refused, Why},
    report::{Counters, Report},
    request::CounterState,
    seal::{Sealer, can_seal_to},
    sequence::{BOOTS_MAX, DIGESTS_MAX, GAPS_MAX, Gap, LEAP_MAX, Progress, STREAMS_MAX},
    shelf::{ExportError, Exported, Inspected, NotOpened, Quarantined, Shelf},
    space::Shortage,
    store::{Newest, Ticket},
    stored::Stored,
    urgency::Urgency,
};
use self::{
    damage::reading_back,
    request::{Answer, Request},
    store::{Reader, Store},
    writer::Writer,
};

/// The file in the gateway's folder.
pub(crate) const SPOOL: &str = "outbox.redb";
/// Requests that wait for the writer, at most; beyond it a caller is told [`NotTaken::Busy`].
pub const REQUESTS_MAX: usize = 4_096;
/// How long a note to the writer (forget, set aside) is tried again while the writer is busy, between two attempts.
const RETRY: Duration = Duration::from_millis(10);

/// A reading that [`crate::intake`] believes, on its way to the disk.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// What makes it unique.
    pub id: ReadingId,
    /// Whom it is sealed for.
    pub subject: SubjectKey,
    /// The signed message and when it was received.
    pub entry: Entry,
    /// When it was measured, by a clock that is set from a time service.
    pub wall_ms: Option<i64>,
    /// When it was measured, in milliseconds since boot, if the device has no other clock.
    pub ticks_ms: Option<u64>,
    /// How soon it has to reach the fog.
    pub urgency: Urgency,
    /// Whether it came as a waveform, which is refused first when room runs short.
    pub is_wave: bool,
}

impl Measurement {
    /// The digest by which a repetition is recognised. It covers the signature, which nobody can guess: the digest of a
    /// value alone could be searched for by a thief of the disk.
    fn digest(&self) -> Digest {
        Digest::of(Domain::READING, &[self.entry.reading.as_bytes()])
    }
}

/// A message that is not believed, on its way to quarantine.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// Whose it claims to be.
    pub device: Option<DeviceId>,
    /// Why it is not taken.
    pub refusal: Refusal,
    /// The message; empty if it was cut off before it was received.
    pub message: Bytes,
    /// How large it was or claimed to be.
    pub size_bytes: u64,
    /// Its place in the sequence, if its signature is the device's: a repetition is then recognised, and it is no gap.
    pub measurement: Option<Box<Measurement>>,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
}

/// Proof that a message is on the disk; only the writer makes one, after the commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Durable {
    answered: u64,
    progress: Option<Progress>,
}

impl Durable {
    /// Which verdict of the outbox it is, since its start: what has a higher one was said later.
    #[must_use]
    pub const fn order(&self) -> u64 {
        self.answered
    }

    /// How far the message's start of the device has come; absent for messages without a place in a sequence.
    #[must_use]
    pub const fn progress(&self) -> Option<&Progress> {
        self.progress.as_ref()
    }
}

/// What became of a message that was taken. Each is durable, so each may be acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Sealed and spooled.
    Spooled(Durable),
    /// Spooled, or quarantined, before.
    Duplicate(Durable),
    /// Kept in quarantine, for this reason.
    Quarantined(Durable, Refusal),
}

/// Why a message was not taken: it must not be acknowledged, and its sender tries again later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// The spool or the disk is full.
    #[error("the spool is full")]
    Full,
    /// Too many requests wait.
    #[error("too many requests wait for the spool")]
    Busy,
    /// The gateway is stopping.
    #[error("the gateway is stopping")]
    Stopping,
}

/// Why the outbox cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store fails, or is damaged.
    #[error("the spool cannot be opened, nothing was changed or deleted: {0}")]
    Store(#[from] redb::Error),
    /// Another process has it open.
    #[error("the spool is in use: another gateway runs in this data_dir; stop it first")]
    InUse,
    /// There is none.
    #[error("there is no spool at {0}")]
    Missing(String),
    /// The disk does not let it be written.
    #[error("the spool {file} cannot be written: {advice}; nothing was changed or deleted")]
    Unwritable {
        /// Where it is.
        file: String,
        /// What is wrong and what to do.
        advice: &'static str,
    },
    /// It holds bundles of another gateway or network.
    #[error("the spool belongs to {found}, not to {expected}: use another data_dir")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Who opens it.
        expected: String,
    },
    /// The thread cannot be started.
    #[error("the spool's thread cannot be started: {0}")]
    Thread(#[from] io::Error),
}

/// A bundle that is final: its receipt, and where it lies in the queue.
#[derive(Clone, Debug)]
pub struct Final {
    /// Its place in the queue.
    pub order: u64,
    /// The proof.
    pub receipt: VerifiedReceipt,
    /// When it was verified, in milliseconds since 1970.
    pub verified_ms: i64,
    /// Whether it went before the backlog.
    pub was_new: bool,
}

/// The handle to the outbox.
#[derive(Clone, Debug)]
pub struct Outbox {
    requests: SyncSender<Request>,
    reader: Reader,
    newest: watch::Receiver<Newest>,
    author: PublicKey,
}

impl Outbox {
    /// Opens the outbox in a folder and starts its thread.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(config: Config, quarantine: QuarantineConfig, folder: &Path, sealer: Sealer) -> Result<Self, Error> {
        let store = reading_back(|| Store::open(&folder.join(SPOOL), config.cache_bytes, &sealer))?;
        Self::over(store, (config, quarantine, folder), sealer)
    }

    fn over(store: Store, parts: (Config, QuarantineConfig, &Path), sealer: Sealer) -> Result<Self, Error> {
        let (author, reader) = (sealer.key.public(), store.reader());
        let (requests, inbox) = mpsc::sync_channel(REQUESTS_MAX);
        let (announce, newest) = watch::channel(Newest::default());
        let writer = reading_back(|| Writer::load(store, parts, sealer, announce))?;
        thread::Builder::new()
            .name("outbox".to_owned())
            .spawn(move || writer.run(&inbox))?;
        Ok(Self {
            requests,
            reader,
            newest,
            author,
        })
    }

    /// Takes a reading; answers when it is durable.
    ///
    /// # Errors
    /// [`NotTaken`]: it must not be acknowledged.
    pub async fn append(&self, measurement: Measurement) -> Result<Verdict, NotTaken> {
        self.ask(|answer| Request::Append(Box::new(measurement), answer)).await
    }

    /// Takes a message that is not believed; answers when it is durably in quarantine.
    ///
    /// # Errors
    /// [`NotTaken`]: it must not be acknowledged.
    pub async fn quarantine(&self, rejected: Rejected) -> Result<Verdict, NotTaken> {
        self.ask(|answer| Request::Quarantine(Box::new(rejected), answer)).await
    }

    async fn ask(&self, request: impl FnOnce(Answer) -> Request) -> Result<Verdict, NotTaken> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(request(answer)).map_err(|e| match e {
            TrySendError::Full(_) => NotTaken::Busy,
            TrySendError::Disconnected(_) => NotTaken::Stopping,
        })?;
        answered.await.unwrap_or(Err(NotTaken::Stopping))
    }

    /// Forgets bundles whose receipts were verified. A receipt that is not about the bundle at its place changes nothing.
    pub async fn forget(&self, bundles: Vec<Final>) {
        self.tell(Request::Forget(bundles)).await;
    }

    /// Sets a bundle aside that cannot be sent as it is; its bytes stay.
    pub async fn set_aside(&self, order: u64, why: Why) {
        self.tell(Request::SetAside { order, why }).await;
    }

    /// Waits for room: these requests carry news that must not be lost while the process lives.
    async fn tell(&self, mut request: Request) {
        loop {
            match self.requests.try_send(request) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => return,
                Err(TrySendError::Full(back)) => request = back,
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Up to `limit` bundles that are not final, from a place in the queue on, the oldest first.
    ///
    /// # Errors
    /// The store's failure.
    pub fn tickets(&self, from: u64, limit: usize) -> Result<Vec<Ticket>, redb::Error> {
        self.reader.tickets(from, limit)
    }

    /// The bytes to submit for a bundle, hashed again, and the signature over them verified.
    ///
    /// # Errors
    /// The store's failure.
    pub fn submission(&self, ticket: &Ticket) -> Result<Stored, redb::Error> {
        let Some(bytes) = self.reader.submission(ticket.order)? else {
            return Ok(Stored::Gone);
        };
        Ok(Stored::checked(bytes, ticket, &self.author))
    }

    /// Up to `limit` alarms that are not final, from a place in the queue on, the oldest first.
    ///
    /// # Errors
    /// The store's failure.
    pub fn alarms(&self, from: u64, limit: usize) -> Result<Vec<Ticket>, redb::Error> {
        self.reader.alarms(from, limit)
    }

    /// The place of the first bundle, from a place on, behind which all were sealed since a time.
    ///
    /// # Errors
    /// The store's failure.
    pub fn first_since(&self, from: u64, since_ms: i64) -> Result<u64, redb::Error> {
        self.reader.first_since(from, since_ms)
    }

    /// Changes whenever bundles were added.
    #[must_use]
    pub fn newest(&self) -> watch::Receiver<Newest> {
        self.newest.clone()
    }

    /// Counters, sizes, quarantine and gaps; `None` when the outbox has stopped.
    pub async fn report(&self) -> Option<Report> {
        let (answer, answered) = oneshot::channel();
        self.tell(Request::Report(answer)).await;
        answered.await.ok()
    }

    /// The sequence numbers that are missing, by device and start.
    pub async fn gaps(&self) -> Vec<Gap> {
        self.report().await.map(|report| report.gaps).unwrap_or_default()
    }

    /// Commits what was taken and ends the thread; requests after this are answered [`NotTaken::Stopping`].
    pub async fn stop(&self) {
        let (answer, answered) = oneshot::channel();
        self.tell(Request::Stop(answer)).await;
        // An error means that the thread is gone already.
        let _gone = answered.await;
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

#[cfg(test)]
mod power;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{
        directory::Directory,
        enrolment::{Enrolment, Enrolments},
        intake::Intake,
        transit::{self, Sealed, Transit},
    };
    use ledger::{
        admission::Submission,
        block::{Block, Header, Height},
        handover::{Committees, Handovers},
        proof::{Finalization, Receipt, Vote, vote_message},
        transaction::SignedTransaction,
    };
    use record::{
        bundle::{Category, SealedBundle, SubjectSecret},
        decimal::Decimal,
        ids::{BootId, NetworkId},
        merkle,
        reading::{Measured, MeasurementState, Reading, TimeQuality, VERSION},
        signature::SigningKey,
        transit::ReadingKey,
    };
    use tempfile::TempDir;

    pub(crate) fn measured(code: &str, value: Decimal, unit: &str) -> Measured {
        let state = MeasurementState::Valid;
        Measured {
            code: code.to_owned(),
            value: Some(value),
            samples: None,
            unit: unit.to_owned(),
            state,
        }
    }

    /// A device, its keys, and whom it measures.
    pub(crate) struct Device {
        pub(crate) id: DeviceId,
        pub(crate) key: SigningKey,
        pub(crate) secret: SubjectSecret,
        pub(crate) subject: SubjectKey,
    }

    impl Device {
        fn new(id: &str) -> Self {
            let (secret, subject) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
            Self {
                id: id.parse().expect("good"),
                key: SigningKey::random(),
                secret,
                subject,
            }
        }

        pub(crate) fn unsigned(&self, seq: u64, observations: Vec<Measured>) -> Reading {
            Reading {
                v: VERSION,
                device: self.id.clone(),
                boot: BootId { counter: 1, random: 2 },
                seq,
                up_ms: seq * 1_000,
                wall: Some(now_ms()),
                time_quality: TimeQuality::Synced,
                observations,
            }
        }

        pub(crate) fn reading(&self, seq: u64, percent: i64) -> record::reading::SignedReading {
            self.unsigned(seq, vec![measured("59408-5", Decimal::whole(percent), "%")])
                .sign(&self.key)
        }

        pub(crate) fn measurement(&self, seq: u64, percent: i64) -> Measurement {
            Measurement {
                id: self.unsigned(seq, vec![]).id(),
                subject: self.subject.clone(),
                entry: Entry::new(now_ms(), self.reading(seq, percent)),
                wall_ms: Some(now_ms()),
                ticks_ms: None,
                urgency: Urgency::Live,
                is_wave: false,
            }
        }
    }

    /// A subject key of the right size that is no usable point.
    pub(crate) fn unsealable() -> SubjectKey {
        let (_, good) = SubjectSecret::generate(Category::Vitals, 1).expect("random numbers");
        SubjectKey {
            public: vec![0; 32],
            ..good
        }
    }

    /// A gateway's outbox and sink in a temporary folder, with two devices.
    pub(crate) struct Home {
        pub(crate) folder: TempDir,
        pub(crate) sealer: Sealer,
        pub(crate) outbox: Outbox,
        pub(crate) intake: Intake,
        pub(crate) oximeter: Device,
        pub(crate) scale: Device,
        quarantine: SubjectSecret,
        config: Config,
    }

    impl Home {
        pub(crate) fn open() -> Self {
            Self::with(Config::default())
        }

        pub(crate) fn with(config: Config) -> Self {
            let folder = tempfile::tempdir().expect("temporary folder");
            let (quarantine, to) = SubjectSecret::generate(Category::Clinical, 1).expect("random numbers");
            let sealer = Sealer {
                network: NetworkId(Digest::of(Domain::GENESIS, &[b"test"])),
                gateway: "home-1".parse().expect("good"),
                key: SigningKey::random(),
                quarantine: to,
            };
            let (oximeter, scale) = (Device::new("oximeter-1"), Device::new("scale-1"));
            let outbox = open(&config, &folder, &sealer);
            let devices = [&oximeter, &scale];
            let intake = sink((&sealer, folder.path()), &outbox, &devices, Sealed::Allowed);
            Self {
                folder,
                sealer,
                outbox,
                intake,
                oximeter,
                scale,
                quarantine,
                config,
            }
        }

        /// From now on this is demanded of messages.
        pub(crate) fn demand(&mut self, demand: Sealed) {
            let place = (&self.sealer, self.folder.path());
            self.intake = sink(place, &self.outbox, &[&self.oximeter, &self.scale], demand);
        }

        /// The key that opens the quarantine.
        pub(super) const fn quarantine_key(&self) -> &SubjectSecret {
            &self.quarantine
        }

        /// The key that devices seal to.
        pub(crate) fn reading_key(&self) -> ReadingKey {
            let place = (self.sealer.network, &self.sealer.gateway);
            let keys = transit::open(self.folder.path(), place, 0).expect("opens");
            keys.current().clone()
        }

        /// What is in quarantine, opened with its key: the messages as they are kept.
        pub(crate) async fn in_quarantine(&mut self) -> Vec<Vec<u8>> {
            self.outbox.stop().await;
            let store = Store::open(&self.folder.path().join(SPOOL), 1 << 20, &self.sealer).expect("opens");
            let open = |kept: &quarantine::Kept| {
                let sealed = SealedBundle::decode(kept.payload.as_ref()?).expect("decodes");
                let opened = sealed.open(&self.sealer.network, &self.quarantine).expect("opens");
                Some(opened.entries[0].reading.as_bytes().to_vec())
            };
            let kept = store.load().expect("reads").quarantined;
            kept.iter().filter_map(|(_, kept)| open(kept)).collect()
        }

        /// Stops the outbox and opens it again from the disk.
        pub(crate) async fn reopen(&mut self) {
            self.outbox.stop().await;
            self.outbox = open(&self.config, &self.folder, &self.sealer);
            self.demand(Sealed::Allowed);
        }

        /// What the outbox reports that opens a copy of the file as it lies on the disk now.
        pub(crate) async fn after_power_cut(&self) -> Report {
            let folder = tempfile::tempdir().expect("temporary folder");
            std::fs::copy(self.folder.path().join(SPOOL), folder.path().join(SPOOL)).expect("copies");
            open(&self.config, &folder, &self.sealer).report().await.expect("runs")
        }

        /// A receipt for a queued bundle, signed by one validator of a network of one.
        pub(crate) fn receipt(&self, order: u64) -> VerifiedReceipt {
            let ticket = self.tickets().into_iter().find(|t| t.order == order).expect("queued");
            let submission = self.intact(&ticket);
            let (transaction, _) = Submission::decode(&submission).expect("good").into_parts();
            verified(&self.sealer.network, transaction)
        }

        /// A queued bundle that was new is final now.
        pub(crate) fn done(&self, order: u64) -> Final {
            Final {
                order,
                receipt: self.receipt(order),
                verified_ms: now_ms(),
                was_new: true,
            }
        }

        pub(crate) async fn spool(&self, device: &Device, seq: u64) -> Verdict {
            self.outbox.append(device.measurement(seq, 97)).await.expect("taken")
        }

        fn intact(&self, ticket: &Ticket) -> Vec<u8> {
            match self.outbox.submission(ticket).expect("reads") {
                Stored::Intact(bytes) => bytes,
                other => panic!("{other:?}"),
            }
        }

        /// Changes one byte of what the outbox holds for a bundle, as a bad disk would.
        pub(crate) async fn rot(&mut self, ticket: &Ticket) {
            let mut bytes = self.intact(ticket);
            self.outbox.stop().await;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            let file = self.folder.path().join(SPOOL);
            let store = Store::open(&file, 1 << 20, &self.sealer).expect("opens");
            let mut changes = store::Changes {
                counters: Counters::default(),
                next: ticket.order + 1,
                ..store::Changes::default()
            };
            changes.spooled.push((*ticket, bytes));
            store.commit(&changes).expect("writes");
            drop(store);
            self.reopen().await;
        }

        /// Puts bundles of one reading each into the queue, sealed at this time, as if the gateway had run long ago.
        pub(crate) async fn stock(&mut self, count: u64, sealed_ms: i64) {
            self.outbox.stop().await;
            let store = Store::open(&self.folder.path().join(SPOOL), 1 << 20, &self.sealer).expect("opens");
            let mut changes = store::Changes {
                next: count,
                ..store::Changes::default()
            };
            for order in 0..count {
                let Measurement { subject, entry, .. } = self.oximeter.measurement(order + 1, 97);
                let sealed = self
                    .sealer
                    .seal(&subject, (vec![entry], vec![]), sealed_ms)
                    .expect("seals");
                let ticket = Ticket {
                    order,
                    bundle: sealed.bundle,
                    readings: 1,
                    bytes: sealed.submission.len() as u64,
                    sealed_ms: Some(sealed_ms),
                    urgency: Urgency::Live,
                };
                changes.spooled.push((ticket, sealed.submission));
            }
            store.commit(&changes).expect("writes");
            drop(store);
            self.reopen().await;
        }

        fn tickets(&self) -> Vec<Ticket> {
            self.outbox.tickets(0, 100).expect("reads")
        }
    }

    fn open(config: &Config, folder: &TempDir, sealer: &Sealer) -> Outbox {
        Outbox::open(
            config.clone(),
            QuarantineConfig::default(),
            folder.path(),
            sealer.clone(),
        )
        .expect("opens")
    }

    fn sink((sealer, folder): (&Sealer, &Path), outbox: &Outbox, devices: &[&Device], demand: Sealed) -> Intake {
        let enrolments = devices
            .iter()
            .map(|d| Enrolment {
                device: d.id.clone(),
                key: d.key.public(),
                subject: d.subject.clone(),
            })
            .collect();
        let gateway = sealer.gateway.clone();
        let directory = Directory::from((gateway.clone(), Enrolments::of(enrolments).expect("good")));
        let keys = transit::open(folder, (sealer.network, &gateway), now_ms()).expect("opens");
        Intake::with(gateway, directory, outbox.clone(), Transit::new(keys, demand))
    }

    /// The receipt of a transaction in a block that all these validators vote for.
    pub(crate) fn receipt_text(
        network: &NetworkId,
        transaction: SignedTransaction,
        validators: &[SigningKey],
    ) -> String {
        let mut block = Block {
            header: header(network),
            transactions: vec![transaction],
        };
        block.header.transactions_root = merkle::root(&block.leaves());
        let message = vote_message(&block.header);
        let vote = |key: &SigningKey| Vote {
            validator: key.public(),
            signature: key.sign_raw(&message),
        };
        let mut votes: Vec<_> = validators.iter().map(vote).collect();
        votes.sort_by_key(|vote| vote.validator);
        Receipt::of(&block, 0, vec![], Finalization { votes })
            .expect("a commitment")
            .to_json()
    }

    pub(super) fn verified(network: &NetworkId, transaction: SignedTransaction) -> VerifiedReceipt {
        let validator = SigningKey::random();
        let founders = Committees::of(Handovers {
            network: *network,
            validators: vec![validator.public()],
            handovers: Vec::new(),
        });
        let text = receipt_text(network, transaction, &[validator]);
        Receipt::verify(&text, &founders.expect("one founder")).expect("genuine")
    }

    #[tokio::test]
    async fn an_acknowledged_reading_survives_a_restart_and_opens_for_its_subject_alone() {
        let mut home = Home::open();
        assert!(matches!(home.spool(&home.oximeter, 1).await, Verdict::Spooled(_)));
        home.reopen().await;
        let tickets = home.tickets();
        assert_eq!(tickets.len(), 1);
        let submission = home.intact(&tickets[0]);
        let (_, payload) = Submission::decode(&submission).expect("matched").into_parts();
        let sealed = SealedBundle::decode(&payload).expect("sealed");
        let bundle = sealed.open(&home.sealer.network, &home.oximeter.secret).expect("opens");
        assert!(
            bundle.entries[0]
                .reading
                .decode(|_| Some(home.oximeter.key.public()))
                .is_ok()
        );
        assert!(sealed.open(&home.sealer.network, &home.scale.secret).is_err());
    }

    #[tokio::test]
    async fn the_disk_never_holds_a_readable_value() {
        let home = Home::open();
        let canary = home.oximeter.unsigned(
            1,
            vec![measured("59408-5", "97.531902468".parse().expect("decimal"), "%")],
        );
        let bad = home.oximeter.unsigned(
            2,
            vec![measured("59408-5", "4097.531902468".parse().expect("decimal"), "%")],
        );
        for reading in [canary, bad] {
            let signed = reading.sign_json(&home.oximeter.key);
            assert!(
                signed.as_bytes().windows(9).any(|w| w == b"531902468"),
                "the canary is in the message"
            );
            let message = Bytes::copy_from_slice(signed.as_bytes());
            home.intake
                .take("vitalfog/v1/home-1/oximeter-1/reading", &message)
                .await
                .expect("taken");
        }
        home.outbox.stop().await;
        let file = std::fs::read(home.folder.path().join(SPOOL)).expect("reads");
        assert!(file.windows(10).any(|w| w == b"oximeter-1"), "the file was written");
        assert!(!file.windows(9).any(|w| w == b"531902468"));
    }

    #[tokio::test]
    async fn readings_of_one_moment_share_a_bundle_by_subject() {
        let home = Home::with(Config {
            linger_ms: 200,
            ..Config::default()
        });
        let all = (1..=5).map(|seq| home.spool(&home.oximeter, seq));
        let others = (1..=3).map(|seq| home.spool(&home.scale, seq));
        futures::future::join_all(all.chain(others)).await;
        let mut counts: Vec<_> = home.tickets().iter().map(|t| t.readings).collect();
        counts.sort_unstable();
        assert_eq!(counts, [3, 5]);
    }

    #[tokio::test]
    async fn an_alarm_waits_for_nobody_and_shares_no_bundle() {
        let home = Home::with(Config {
            linger_ms: 60_000,
            ..Config::default()
        });
        let mut fastest = Duration::MAX;
        for seq in 1..=20 {
            let alarm = Measurement {
                urgency: Urgency::Alarm,
                ..home.oximeter.measurement(seq, 97)
            };
            let begin = std::time::Instant::now();
            // The other one waits already when the alarm comes.
            let (other, alarm) = tokio::join!(home.spool(&home.scale, seq), home.outbox.append(alarm));
            assert!(matches!((other, alarm), (Verdict::Spooled(_), Ok(Verdict::Spooled(_)))));
            fastest = fastest.min(begin.elapsed());
        }
        assert!(
            fastest < Duration::from_millis(100),
            "what waits for others waits 100 ms: {fastest:?}"
        );
        let tickets = home.tickets();
        let alarms: Vec<_> = tickets.iter().filter(|t| t.urgency == Urgency::Alarm).collect();
        assert_eq!((alarms.len(), tickets.len()), (20, 40));
        assert!(tickets.iter().all(|t| t.readings == 1));
    }

    #[tokio::test]
    async fn a_full_spool_still_takes_a_few_alarms() {
        let home = Home::with(Config {
            bytes_max: 64_000,
            ..Config::default()
        });
        let mut seq = 1;
        while home.outbox.append(home.oximeter.measurement(seq, 97)).await.is_ok() {
            seq += 1;
        }
        let refused = home.oximeter.measurement(seq, 97);
        let mut alarms = 0;
        loop {
            let alarm = Measurement {
                urgency: Urgency::Alarm,
                ..home.scale.measurement(alarms + 1, 97)
            };
            match home.outbox.append(alarm).await {
                Ok(Verdict::Spooled(_)) => alarms += 1,
                full => break assert_eq!(full, Err(NotTaken::Full)),
            }
        }
        assert!((1..=8).contains(&alarms), "{alarms}");
        assert_eq!(home.outbox.append(refused).await, Err(NotTaken::Full));
    }

    #[tokio::test]
    async fn waveforms_are_refused_while_single_values_are_taken_and_come_again_by_themselves() {
        let home = Home::with(Config {
            bytes_max: 64_000,
            waves_percent: 50,
            ..Config::default()
        });
        let wave = |seq| Measurement {
            is_wave: true,
            ..home.oximeter.measurement(seq, 97)
        };
        let mut waves = 1;
        while home.outbox.append(wave(waves)).await.is_ok() {
            waves += 1;
        }
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.full, report.waves_refused), (None, Some(Shortage::Spool)));
        let mut values = 1;
        while home.outbox.append(home.scale.measurement(values, 97)).await.is_ok() {
            values += 1;
        }
        assert!(
            values.abs_diff(waves) <= 3,
            "half of the room is for single values: {waves}, {values}"
        );
        assert_eq!(home.outbox.append(wave(waves)).await, Err(NotTaken::Full));
        for ticket in home.tickets() {
            home.outbox.forget(vec![home.done(ticket.order)]).await;
        }
        // What is forgotten is so with the next commit.
        let again = async {
            while home.outbox.append(wave(waves)).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), again)
            .await
            .expect("by itself");
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.full, report.waves_refused), (None, None));
    }

    #[tokio::test]
    async fn an_alarm_that_was_set_aside_is_an_alarm_again() {
        let mut home = Home::open();
        let alarm = Measurement {
            urgency: Urgency::Alarm,
            ..home.oximeter.measurement(1, 97)
        };
        home.outbox.append(alarm).await.expect("taken");
        home.outbox.set_aside(0, Why::Refused("422".to_owned())).await;
        home.spool(&home.scale, 1).await;
        assert_eq!(home.outbox.alarms(0, 9).expect("reads"), []);
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        assert_eq!(shelf.requeue(None).expect("writes"), 1);
        drop(shelf);
        home.reopen().await;
        assert_eq!(home.outbox.alarms(0, 9).expect("reads").len(), 1);
        assert_eq!(home.outbox.newest().borrow().next_alarm, 1);
    }

    #[tokio::test]
    async fn on_a_full_disk_nothing_is_written_and_what_was_taken_is_there() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        let done = home.done(0);
        home.config.disk_reserve_bytes = u64::MAX;
        home.reopen().await;
        let file = home.folder.path().join(SPOOL);
        let before = std::fs::read(&file).expect("reads");
        let new = home.oximeter.measurement(2, 97);
        assert_eq!(home.outbox.append(new.clone()).await, Err(NotTaken::Full));
        let message = Bytes::from_static(b"not a reading");
        let bad = home.intake.take("vitalfog/v1/home-1/scale-1/reading", &message).await;
        assert_eq!(bad, Err(NotTaken::Full));
        home.outbox.forget(vec![done]).await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.full, report.spooled_bundles), (Some(Shortage::Disk), 1));
        assert!(before == std::fs::read(&file).expect("reads"), "nothing was written");
        home.config.disk_reserve_bytes = 0;
        home.reopen().await;
        assert_eq!(home.tickets().len(), 1);
        assert!(matches!(home.outbox.append(new).await, Ok(Verdict::Spooled(_))));
    }

    #[tokio::test]
    async fn a_duplicate_is_known_after_a_restart_and_another_content_is_an_equivocation() {
        let mut home = Home::open();
        let first = home.oximeter.measurement(1, 97);
        let other = home.oximeter.measurement(1, 55);
        assert!(matches!(
            home.outbox.append(first.clone()).await,
            Ok(Verdict::Spooled(_))
        ));
        home.reopen().await;
        assert!(matches!(home.outbox.append(first).await, Ok(Verdict::Duplicate(_))));
        let verdict = home.outbox.append(other).await.expect("taken");
        assert!(matches!(verdict, Verdict::Quarantined(_, r) if r.reason == record::reading::Reason::Equivocation));
        home.reopen().await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!(report.quarantined.by_reason["equivocation"], 1);
        assert_eq!(
            (
                report.counters.acknowledged,
                report.counters.duplicates,
                report.spooled_bundles
            ),
            (1, 1, 1)
        );
    }

    #[tokio::test]
    async fn gaps_are_reported_and_close() {
        let mut home = Home::open();
        home.spool(&home.scale, 1).await;
        let Verdict::Spooled(durable) = home.spool(&home.scale, 4).await else {
            panic!("not spooled")
        };
        assert_eq!(durable.progress().expect("in a sequence").upto_seq, 1);
        home.reopen().await;
        assert_eq!(home.outbox.gaps().await[0].missing, [(2, 3)]);
        home.spool(&home.scale, 3).await;
        home.spool(&home.scale, 2).await;
        assert_eq!(home.outbox.gaps().await, []);
    }

    #[tokio::test]
    async fn a_number_far_ahead_of_all_others_is_refused_and_makes_up_no_gap() {
        use record::reading::Reason;
        let home = Home::open();
        home.spool(&home.scale, 1).await;
        let far = [u64::MAX / 1_000, LEAP_MAX + 3];
        for seq in far {
            let verdict = home.spool(&home.scale, seq).await;
            assert!(
                matches!(&verdict, Verdict::Quarantined(durable, refusal) if refusal.reason == Reason::Implausible
                    && refusal.detail.contains("count up by one") && durable.progress().is_none()),
                "{verdict:?}"
            );
        }
        // One whose value is refused as well keeps no place either.
        let sick = Rejected {
            device: Some(home.scale.id.clone()),
            refusal: Refusal::new(Reason::Implausible, "no body weighs that"),
            message: Bytes::copy_from_slice(home.scale.reading(far[0], 970).as_bytes()),
            size_bytes: 1,
            measurement: Some(Box::new(home.scale.measurement(far[0], 97))),
            at_ms: now_ms(),
        };
        let verdict = home.outbox.quarantine(sick).await.expect("taken");
        assert!(matches!(verdict, Verdict::Quarantined(durable, _) if durable.progress().is_none()));
        assert_eq!(home.outbox.gaps().await, []);
        let Verdict::Spooled(durable) = home.spool(&home.scale, 2).await else {
            panic!("the next number is as good as before")
        };
        assert_eq!(durable.progress().expect("in a sequence").upto_seq, 2);
        home.spool(&home.scale, LEAP_MAX + 3).await;
        assert_eq!(
            home.outbox.gaps().await[0].missing,
            [(3, LEAP_MAX + 2)],
            "the longest that is believed, exactly"
        );
    }

    #[tokio::test]
    async fn only_a_receipt_about_the_bundle_makes_it_forgotten() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        home.spool(&home.oximeter, 2).await;
        let tickets = home.tickets();
        let (first, second) = (tickets[0].order, tickets[1].order);
        let receipt = home.receipt(first);
        home.outbox
            .forget(vec![Final {
                order: second,
                receipt: receipt.clone(),
                verified_ms: now_ms(),
                was_new: true,
            }])
            .await;
        let done = Final {
            order: first,
            receipt,
            verified_ms: now_ms() + 7,
            was_new: true,
        };
        home.outbox.forget(vec![done.clone(), done]).await;
        home.reopen().await;
        assert_eq!(home.tickets().iter().map(|t| t.order).collect::<Vec<_>>(), [second]);
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.final_bundles, report.counters.final_readings), (1, 1));
        assert_eq!((report.spooled_bundles, report.spooled_readings), (1, 1));
    }

    #[tokio::test]
    async fn latencies_are_measured_from_the_devices_clock() {
        let home = Home::open();
        let mut measurement = home.oximeter.measurement(1, 97);
        (measurement.wall_ms, measurement.entry.received_ms) = (Some(1_000), 1_020);
        home.outbox.append(measurement).await.expect("taken");
        let order = home.tickets()[0].order;
        let done = Final {
            order,
            receipt: home.receipt(order),
            verified_ms: 1_100,
            was_new: true,
        };
        home.outbox.forget(vec![done]).await;
        home.spool(&home.oximeter, 2).await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!(
            (report.publish_to_final.p50, report.received_to_final.p99),
            (Some(100), Some(80))
        );
    }

    #[tokio::test]
    async fn a_refused_bundle_is_set_aside_with_its_bytes() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        home.outbox
            .set_aside(home.tickets()[0].order, Why::Refused("422 not ours\n".to_owned()))
            .await;
        home.reopen().await;
        assert_eq!(home.tickets(), []);
        let report = home.outbox.report().await.expect("runs");
        assert_eq!((report.counters.refused_bundles, report.spooled_bytes), (1, 0));
        assert_eq!(report.refused_bytes, report.refused[0].bytes);
        let shown = serde_json::to_value(&report.refused).expect("encodes");
        assert_eq!(shown[0]["reason"], "422 not ours");
    }

    #[tokio::test]
    async fn refused_bundles_count_towards_the_bytes_of_the_spool() {
        let mut home = Home::with(Config {
            bytes_max: 4_000,
            ..Config::default()
        });
        let mut seq = 1;
        while home.outbox.append(home.oximeter.measurement(seq, 97)).await.is_ok() {
            seq += 1;
            assert!(seq < 10, "never full");
        }
        for ticket in home.tickets() {
            home.outbox.set_aside(ticket.order, Why::Damaged).await;
        }
        home.reopen().await;
        assert_eq!(home.tickets(), []);
        let refused = home.outbox.append(home.oximeter.measurement(seq, 97)).await;
        assert_eq!(refused, Err(NotTaken::Full));
    }

    #[tokio::test]
    async fn what_was_set_aside_goes_back_into_the_queue_by_hand_while_the_gateway_is_stopped() {
        let mut home = Home::open();
        for seq in 1..=3 {
            home.spool(&home.oximeter, seq).await;
        }
        let tickets = home.tickets();
        for ticket in &tickets {
            home.outbox
                .set_aside(ticket.order, Why::Refused("422".to_owned()))
                .await;
        }
        let running = Shelf::open(home.folder.path(), &home.sealer);
        assert!(matches!(running, Err(Error::InUse)), "{running:?}");
        home.outbox.stop().await;
        let shelf = Shelf::open(home.folder.path(), &home.sealer).expect("opens");
        let listed: Vec<_> = shelf.refused().expect("reads").iter().map(|r| r.bundle).collect();
        assert_eq!(listed, tickets.iter().map(|t| t.bundle).collect::<Vec<_>>());
        assert_eq!(shelf.requeue(Some(tickets[1].bundle)).expect("writes"), 1);
        assert_eq!(
            (
                shelf.requeue(None).expect("writes"),
                shelf.requeue(None).expect("writes")
            ),
            (2, 0)
        );
        drop(shelf);
        home.reopen().await;
        assert_eq!(home.tickets(), tickets);
        assert!(home.outbox.report().await.expect("runs").refused.is_empty());
        home.intact(&tickets[0]);
        let elsewhere = tempfile::tempdir().expect("temporary folder");
        assert!(matches!(
            Shelf::open(elsewhere.path(), &home.sealer),
            Err(Error::Missing(_))
        ));
    }

    #[tokio::test]
    async fn a_bundle_that_the_disk_has_changed_is_not_given_out() {
        let mut home = Home::open();
        home.spool(&home.oximeter, 1).await;
        let ticket = home.tickets()[0];
        home.rot(&ticket).await;
        assert_eq!(home.outbox.submission(&ticket).expect("reads"), Stored::Damaged);
    }

    #[tokio::test]
    async fn a_full_spool_refuses_new_readings_and_still_knows_the_old() {
        let home = Home::with(Config {
            bytes_max: 4_000,
            ..Config::default()
        });
        let old = home.oximeter.measurement(1, 97);
        assert!(matches!(home.outbox.append(old.clone()).await, Ok(Verdict::Spooled(_))));
        let mut seq = 2;
        while home.outbox.append(home.oximeter.measurement(seq, 97)).await.is_ok() {
            seq += 1;
            assert!(seq < 10, "never full");
        }
        let refused = home.oximeter.measurement(seq, 97);
        assert_eq!(home.outbox.append(refused.clone()).await, Err(NotTaken::Full));
        assert!(matches!(home.outbox.append(old).await, Ok(Verdict::Duplicate(_))));
        for ticket in home.tickets() {
            home.outbox.forget(vec![home.done(ticket.order)]).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(matches!(home.outbox.append(refused).await, Ok(Verdict::Spooled(_))));
    }

    #[tokio::test]
    async fn quarantine_opens_for_its_owner_and_survives() {
        let mut home = Home::open();
        let message = Bytes::from_static(b"not a reading");
        home.intake
            .take("vitalfog/v1/home-1/scale-1/reading", &message)
            .await
            .expect("taken");
        home.reopen().await;
        let report = home.outbox.report().await.expect("runs");
        assert_eq!(report.quarantined.recent.len(), 1);
        assert_eq!(home.in_quarantine().await, [message.to_vec()]);
    }

    #[tokio::test]
    async fn another_gateways_spool_is_not_opened() {
        let home = Home::open();
        home.outbox.stop().await;
        let other = Sealer {
            gateway: "home-2".parse().expect("good"),
            ..home.sealer.clone()
        };
        let refused = Outbox::open(
            home.config.clone(),
            QuarantineConfig::default(),
            home.folder.path(),
            other,
        );
        assert!(matches!(refused, Err(Error::Foreign { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn after_the_stop_nothing_is_taken() {
        let home = Home::open();
        home.outbox.stop().await;
        assert_eq!(
            home.outbox.append(home.oximeter.measurement(1, 97)).await,
            Err(NotTaken::Stopping)
        );
    }

    fn header(network: &NetworkId) -> Header {
        Header {
            version: ledger::block::VERSION,
            network: *network,
            epoch: 0,
            view: 1,
            parent_view: 0,
            leader: SigningKey::random().public(),
            height: Height(1),
            parent: Digest::ZERO,
            timestamp_ms: 1,
            transactions_root: Digest::ZERO,
            policy: Digest::ZERO,
            next_validators: Digest::ZERO,
            nonce: 0,
        }
    }
}
