//! Which sequence numbers of each start of a device were taken: duplicates, equivocations and gaps, in bounded space.

mod clocks;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use record::{
    bundle::SubjectKey,
    canonical::Digest,
    gaps::{Missing, REPORT_RANGES_MAX, Range, Start},
    ids::{BootId, DeviceId, ReadingId},
};
use serde::{Deserialize, Serialize};

use super::clock::{Clock, Stated};

/// Digests kept for each start of a device. A repetition older than these counts as a duplicate without comparison.
pub const DIGESTS_MAX: usize = 256;
/// Gaps kept for each start of a device. Beyond them the two oldest become one: what lies between would be taken again,
/// which the fog's index tells apart, rather than lost.
pub const GAPS_MAX: usize = 256;
/// Numbers that one message may leave out, at most: at fifty a second it takes sixteen months to use them up in one start of a device. What
/// is above (an erased counter of 32 bits is) is no number that was counted up to, and what it leaves out is not missing.
pub const LEAP_MAX: u64 = 1 << 31;
/// Subjects who are told of one device's gaps, at most: a device that is shared by more leaves out who was told first.
const TOLD_MAX: usize = 16;
/// Starts kept for each device; the one unused for longest is dropped first.
pub const BOOTS_MAX: usize = 1_024;
/// Starts kept of all devices together; the one unused for longest is dropped first. More than there may be devices: the
/// start of a device that is heard is not dropped, or its next number would look like a gap. With all their digests and gaps
/// they are less than 400 MB of memory, and far less if most starts are short.
pub const STREAMS_MAX: usize = 16_384;

/// How far one start of a device has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Progress {
    /// The start.
    pub boot: BootId,
    /// Every sequence number up to here is durable.
    pub upto_seq: u64,
    /// And so is every one up to here, except
    pub high_seq: u64,
    /// these ranges, both ends included, at most [`GAPS_MAX`]. A device that skips a number would wait for ever without them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<(u64, u64)>,
}

/// The sequence numbers that are missing from one start of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The device.
    pub device: DeviceId,
    /// Its start.
    pub boot: BootId,
    /// Ranges, both ends included.
    pub missing: Vec<(u64, u64)>,
}

/// Where a reading stands among those taken before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Not taken before.
    New,
    /// Taken before, with the same content as far as it is still known.
    Known,
    /// Its sequence number was used for something else.
    Equivocation,
    /// So far above all others that nobody has counted up to it.
    Leap,
}

/// One start of a device, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stream {
    device: DeviceId,
    boot: BootId,
    high: u64,
    missing: Vec<(u64, u64)>,
    /// What is known of its tick counter, if the device has no wall clock. Absent, as what follows, in files from before it
    /// was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<Clock>,
    /// The subjects who were told that something is missing: each is told when it is not any more, whomever the device
    /// measures by then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    told: Vec<SubjectKey>,
    /// Rises with every use of any stream: the smallest was unused for longest.
    used: u64,
}

/// Digests of the messages of one start, by sequence number.
type Digests = BTreeMap<u64, Digest>;

/// What a commit has to write so that the state survives.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) streams: Vec<(u64, Stream)>,
    pub(super) streams_cut: Vec<u64>,
    pub(super) digests: Vec<((u64, u64), Digest)>,
    pub(super) digests_cut: Vec<(u64, u64)>,
}

/// The state of every start of every device.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    numbers: HashMap<(DeviceId, BootId), u64>,
    streams: HashMap<u64, (Stream, Digests)>,
    /// When each was last used and its number: the first was unused for longest.
    by_use: BTreeSet<(u64, u64)>,
    /// The same for the starts of each device.
    of_device: HashMap<DeviceId, BTreeSet<(u64, u64)>>,
    /// What devices said of their counters when they connected, of their present start; in memory alone.
    stated: HashMap<DeviceId, (BootId, Stated)>,
    next: u64,
    clock: u64,
    touched: BTreeSet<u64>,
    changes: Changes,
}

impl Sequences {
    /// The state as it was kept.
    pub(super) fn of(streams: Vec<(u64, Stream)>, digests: Vec<((u64, u64), Digest)>) -> Self {
        let mut all = Self::default();
        for (number, stream) in streams {
            all.next = all.next.max(number + 1);
            all.clock = all.clock.max(stream.used);
            all.insert(number, stream);
        }
        for ((number, seq), digest) in digests {
            if let Some((_, known)) = all.streams.get_mut(&number) {
                known.insert(seq, digest);
            }
        }
        while all.streams.len() > STREAMS_MAX {
            all.cut(all.by_use.first().copied());
        }
        all
    }

    /// Where a reading stands.
    pub(super) fn judge(&self, id: &ReadingId, digest: &Digest) -> Place {
        let stream = self.stream(id);
        let high = stream.map_or(0, |(stream, _)| stream.high);
        match stream.and_then(|(_, digests)| digests.get(&id.seq)) {
            Some(known) if known == digest => Place::Known,
            Some(_) => Place::Equivocation,
            None if id.seq.saturating_sub(high) > LEAP_MAX + 1 => Place::Leap,
            None if id.seq > high || stream.is_some_and(|(stream, _)| stream.is_missing(id.seq)) => Place::New,
            None => Place::Known,
        }
    }

    /// Whether taking a new reading opens, narrows or closes a gap.
    pub(super) fn moves_a_gap(&self, id: &ReadingId) -> bool {
        let high = self.stream(id).map_or(0, |(stream, _)| stream.high);
        id.seq.checked_sub(1) != Some(high)
    }

    /// What is missing of a device, of the starts used last first, as far as a report goes.
    pub(super) fn missing(&self, device: &DeviceId) -> Missing {
        let mut missing = Missing::default();
        let numbers = self.of_device.get(device).into_iter().flatten().rev();
        for (stream, _) in numbers.filter_map(|(_, number)| self.streams.get(number)) {
            let room = REPORT_RANGES_MAX - missing.ranges();
            let named: Vec<_> = stream
                .missing
                .iter()
                .take(room)
                .map(|(from, to)| Range(*from, *to))
                .collect();
            missing.more_ranges += (stream.missing.len() - named.len()) as u64;
            if !named.is_empty() {
                missing.starts.push(Start {
                    boot: stream.boot,
                    high_seq: stream.high,
                    missing: named,
                });
            }
        }
        missing.starts.sort_by_key(|start| start.boot);
        missing
    }

    /// Whom a report of what is missing of a device is for: the subject of the readings that moved the gap, and whoever was
    /// told of a gap of the same starts before.
    pub(super) fn report_to(&mut self, device: &DeviceId, subject: SubjectKey) -> Vec<SubjectKey> {
        let mut subjects = vec![subject];
        let numbers = self
            .of_device
            .get(device)
            .into_iter()
            .flatten()
            .map(|(_, number)| *number);
        let numbers: Vec<_> = numbers.collect();
        for number in &numbers {
            let told = self.streams.get(number).map(|(stream, _)| stream.told.clone());
            for key in told.unwrap_or_default() {
                if !subjects.contains(&key) {
                    subjects.push(key);
                }
            }
        }
        subjects.truncate(TOLD_MAX);
        for number in numbers {
            let Some((stream, _)) = self.streams.get_mut(&number) else {
                continue;
            };
            let told = if stream.missing.is_empty() {
                &[][..]
            } else {
                &subjects[..]
            };
            if stream.told != told {
                stream.told = told.to_vec();
                self.touched.insert(number);
            }
        }
        subjects
    }

    /// Remembers a reading that is being taken.
    pub(super) fn record(&mut self, id: &ReadingId, digest: Digest) {
        let number = self.number(id);
        self.clock += 1;
        let (stream, digests) = self.streams.get_mut(&number).expect("a numbered stream exists");
        let (before, now) = ((stream.used, number), (self.clock, number));
        stream.used = self.clock;
        stream.take(id.seq);
        for order in [Some(&mut self.by_use), self.of_device.get_mut(&id.device)]
            .into_iter()
            .flatten()
        {
            order.remove(&before);
            order.insert(now);
        }
        digests.insert(id.seq, digest);
        self.changes.digests.push(((number, id.seq), digest));
        while digests.len() > DIGESTS_MAX {
            let (seq, _) = digests.pop_first().expect("longer than the limit");
            self.changes.digests_cut.push((number, seq));
        }
        self.touched.insert(number);
    }

    /// How far the reading's start has come.
    pub(super) fn progress(&self, id: &ReadingId) -> Option<Progress> {
        let (stream, _) = self.stream(id)?;
        let upto_seq = stream.missing.first().map_or(stream.high, |(from, _)| from - 1);
        Some(Progress {
            boot: id.boot,
            upto_seq,
            high_seq: stream.high,
            missing: stream.missing.clone(),
        })
    }

    /// What is missing, at most `limit` starts of devices, in the order of their names.
    pub(super) fn gaps(&self, limit: usize) -> Vec<Gap> {
        let mut gaps: Vec<_> = self
            .streams
            .values()
            .filter(|(stream, _)| !stream.missing.is_empty())
            .map(|(stream, _)| stream.gap())
            .collect();
        gaps.sort_by(|a, b| (&a.device, a.boot).cmp(&(&b.device, b.boot)));
        gaps.truncate(limit);
        gaps
    }

    /// What is missing of the `limit` starts with gaps that were used last, those first.
    pub(super) fn recent_gaps(&self, limit: usize) -> Vec<Gap> {
        let streams = self.by_use.iter().rev().filter_map(|(_, n)| self.streams.get(n));
        let open = streams.map(|(stream, _)| stream).filter(|s| !s.missing.is_empty());
        open.take(limit).map(Stream::gap).collect()
    }

    /// What changed since the last call.
    pub(super) fn take_changes(&mut self) -> Changes {
        let mut changes = mem::take(&mut self.changes);
        for number in mem::take(&mut self.touched) {
            // A stream that was dropped again in the same batch has nothing left to write.
            if let Some((stream, _)) = self.streams.get(&number) {
                changes.streams.push((number, stream.clone()));
            }
        }
        changes
    }

    fn stream(&self, id: &ReadingId) -> Option<&(Stream, Digests)> {
        self.streams.get(self.numbers.get(&(id.device.clone(), id.boot))?)
    }

    fn number(&mut self, id: &ReadingId) -> u64 {
        if let Some(number) = self.numbers.get(&(id.device.clone(), id.boot)) {
            return *number;
        }
        self.make_room(&id.device);
        let number = self.next;
        self.next += 1;
        let stream = Stream {
            device: id.device.clone(),
            boot: id.boot,
            high: 0,
            missing: Vec::new(),
            clock: None,
            told: Vec::new(),
            used: self.clock,
        };
        self.insert(number, stream);
        number
    }

    fn insert(&mut self, number: u64, stream: Stream) {
        let use_of = (stream.used, number);
        self.by_use.insert(use_of);
        self.of_device.entry(stream.device.clone()).or_default().insert(use_of);
        self.numbers.insert((stream.device.clone(), stream.boot), number);
        self.streams.insert(number, (stream, Digests::new()));
    }

    fn make_room(&mut self, device: &DeviceId) {
        let of_device = self.of_device.get(device);
        if let Some(all) = of_device.filter(|all| all.len() >= BOOTS_MAX) {
            self.cut(all.first().copied());
        }
        if self.streams.len() >= STREAMS_MAX {
            self.cut(self.by_use.first().copied());
        }
    }

    /// Drops a start, given when it was last used and its number.
    fn cut(&mut self, oldest: Option<(u64, u64)>) {
        let Some((use_of, (stream, digests))) = oldest.and_then(|o| Some((o, self.streams.remove(&o.1)?))) else {
            return;
        };
        self.by_use.remove(&use_of);
        if let Some(all) = self.of_device.get_mut(&stream.device) {
            all.remove(&use_of);
            if all.is_empty() {
                self.of_device.remove(&stream.device);
            }
        }
        self.numbers.remove(&(stream.device, stream.boot));
        let (_, number) = use_of;
        self.changes.streams_cut.push(number);
        self.changes
            .digests_cut
            .extend(digests.into_keys().map(|seq| (number, seq)));
    }
}

impl Stream {
    fn gap(&self) -> Gap {
        Gap {
            device: self.device.clone(),
            boot: self.boot,
            missing: self.missing.clone(),
        }
    }

    fn is_missing(&self, seq: u64) -> bool {
        self.missing.iter().any(|(from, to)| (*from..=*to).contains(&seq))
    }

    fn take(&mut self, seq: u64) {
        if seq > self.high {
            if seq > self.high + 1 {
                self.missing.push((self.high + 1, seq - 1));
            }
            self.high = seq;
        } else if let Some(at) = self.missing.iter().position(|(from, to)| (*from..=*to).contains(&seq)) {
            let (from, to) = self.missing.remove(at);
            let rest = [(from, seq.saturating_sub(1)), (seq.saturating_add(1), to)];
            for (offset, range) in rest.into_iter().filter(|(from, to)| from <= to).enumerate() {
                self.missing.insert(at + offset, range);
            }
        }
        if self.missing.len() > GAPS_MAX {
            let (_, end) = self.missing.remove(1);
            self.missing[0].1 = end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::{
        bundle::{Category, SubjectSecret},
        canonical::Domain,
    };

    fn id(boot: u32, seq: u64) -> ReadingId {
        let boot = BootId {
            counter: boot,
            random: 9,
        };
        ReadingId {
            device: "scale-1".parse().expect("good"),
            boot,
            seq,
        }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Domain::READING, &[text.as_bytes()])
    }

    /// What a disk would hold.
    type Disk = (BTreeMap<u64, Stream>, BTreeMap<(u64, u64), Digest>);

    fn reopened(all: &mut Sequences, kept: &mut Disk) -> Sequences {
        let changes = all.take_changes();
        kept.0.extend(changes.streams);
        kept.0.retain(|n, _| !changes.streams_cut.contains(n));
        kept.1.extend(changes.digests);
        kept.1.retain(|n, _| !changes.digests_cut.contains(n));
        Sequences::of(
            kept.0.clone().into_iter().collect(),
            kept.1.clone().into_iter().collect(),
        )
    }

    #[test]
    fn a_repetition_is_known_and_another_content_is_an_equivocation_also_after_a_restart() {
        let mut all = Sequences::default();
        assert_eq!(all.judge(&id(1, 1), &digest("a")), Place::New);
        all.record(&id(1, 1), digest("a"));
        let all = reopened(&mut all, &mut Default::default());
        assert_eq!(all.judge(&id(1, 1), &digest("a")), Place::Known);
        assert_eq!(all.judge(&id(1, 1), &digest("b")), Place::Equivocation);
        assert_eq!(all.judge(&id(2, 1), &digest("b")), Place::New);
    }

    #[test]
    fn gaps_open_shrink_and_close() {
        let mut all = Sequences::default();
        for seq in [3, 9, 6] {
            all.record(&id(1, seq), digest("x"));
        }
        assert_eq!(all.gaps(9)[0].missing, [(1, 2), (4, 5), (7, 8)]);
        assert_eq!(all.progress(&id(1, 1)).expect("known").upto_seq, 0);
        for seq in [1, 2, 5, 4, 7, 8] {
            assert_eq!(all.judge(&id(1, seq), &digest("x")), Place::New);
            all.record(&id(1, seq), digest("x"));
        }
        assert_eq!(all.gaps(9), []);
        assert_eq!(all.progress(&id(1, 1)).expect("known").upto_seq, 9);
    }

    #[test]
    fn what_a_report_says_is_what_is_missing_the_newest_starts_first() {
        let device: DeviceId = "scale-1".parse().expect("good");
        let mut all = Sequences::default();
        assert!(!all.moves_a_gap(&id(1, 1)) && all.moves_a_gap(&id(1, 2)));
        for seq in [3, 9, 6] {
            assert!(all.moves_a_gap(&id(1, seq)));
            all.record(&id(1, seq), digest("x"));
        }
        assert!(!all.moves_a_gap(&id(1, 10)));
        let ranges = |missing: &Missing| missing.starts[0].missing.clone();
        let missing = all.missing(&device);
        assert_eq!(ranges(&missing), [Range(1, 2), Range(4, 5), Range(7, 8)]);
        assert_eq!(missing.starts[0].high_seq, 9);
        for seq in [1, 2, 4, 5, 7, 8] {
            assert!(all.moves_a_gap(&id(1, seq)));
            all.record(&id(1, seq), digest("x"));
        }
        assert!(all.missing(&device).is_nothing());
        for boot in [3, 2] {
            for seq in 1..=200 {
                all.record(&id(boot, seq * 2), digest("x"));
            }
        }
        let missing = all.missing(&device);
        assert_eq!(
            (missing.ranges(), missing.more_ranges),
            (REPORT_RANGES_MAX, 400 - REPORT_RANGES_MAX as u64)
        );
        let of_start = |at: usize| (missing.starts[at].boot.counter, missing.starts[at].missing.len());
        assert_eq!((of_start(0), of_start(1)), ((2, 200), (3, 56)));
    }

    #[test]
    fn whoever_was_told_of_a_gap_is_told_of_its_end_also_after_a_restart() {
        let subjects: Vec<_> = (0..3)
            .map(|epoch| {
                let made = SubjectSecret::generate(Category::Vitals, epoch);
                made.expect("random numbers").1
            })
            .collect();
        let device: DeviceId = "scale-1".parse().expect("good");
        let (mut all, mut kept) = (Sequences::default(), Default::default());
        all.record(&id(1, 4), digest("x"));
        assert_eq!(all.report_to(&device, subjects[0].clone()), subjects[..1]);
        all.record(&id(2, 2), digest("x"));
        assert_eq!(
            all.report_to(&device, subjects[1].clone()),
            [1, 0].map(|at| subjects[at].clone())
        );
        let mut all = reopened(&mut all, &mut kept);
        for seq in 1..4 {
            all.record(&id(1, seq), digest("x"));
        }
        assert_eq!(
            all.report_to(&device, subjects[2].clone()),
            [2, 1, 0].map(|at| subjects[at].clone())
        );
        all.record(&id(2, 1), digest("x"));
        assert_eq!(all.report_to(&device, subjects[2].clone()).len(), 3, "its end is told");
        assert_eq!(
            all.report_to(&device, subjects[2].clone()),
            subjects[2..],
            "and then it is over"
        );
    }

    #[test]
    fn what_is_kept_is_bounded_and_nothing_unseen_is_called_known() {
        let (mut all, mut kept) = (Sequences::default(), Default::default());
        for seq in (2..4_000).step_by(2) {
            all.record(&id(1, seq), digest("x"));
            if seq % 100 == 0 {
                all = reopened(&mut all, &mut kept);
            }
        }
        let all = reopened(&mut all, &mut kept);
        assert_eq!(kept.1.len(), DIGESTS_MAX);
        assert_eq!(all.gaps(9)[0].missing.len(), GAPS_MAX);
        for seq in (1..4_000).step_by(2) {
            assert_eq!(all.judge(&id(1, seq), &digest("x")), Place::New, "{seq}");
        }
    }

    #[test]
    fn the_start_unused_for_longest_goes_first() {
        let (mut all, mut kept) = (Sequences::default(), Default::default());
        for boot in 1..=u32::try_from(BOOTS_MAX).expect("small") {
            all.record(&id(boot, 1), digest("x"));
        }
        all.record(&id(1, 2), digest("y"));
        all.record(&id(9_999, 1), digest("z"));
        let all = reopened(&mut all, &mut kept);
        assert_eq!(kept.0.len(), BOOTS_MAX);
        assert_eq!(all.judge(&id(1, 1), &digest("x")), Place::Known);
        assert_eq!(all.judge(&id(2, 1), &digest("x")), Place::New);
    }

    #[test]
    fn the_starts_of_all_devices_are_bounded_together() {
        let (mut all, mut kept) = (Sequences::default(), Default::default());
        let of = |device: usize, boot| ReadingId {
            device: format!("scale-{device}").parse().expect("good"),
            ..id(boot, 1)
        };
        let devices = STREAMS_MAX / 100 + 10;
        for device in 0..devices {
            for boot in 1..=100 {
                all.record(&of(device, boot), digest("x"));
            }
        }
        let all = reopened(&mut all, &mut kept);
        assert_eq!(
            (all.streams.len(), kept.0.len(), kept.1.len()),
            (STREAMS_MAX, STREAMS_MAX, STREAMS_MAX)
        );
        assert_eq!((all.by_use.len(), all.numbers.len()), (STREAMS_MAX, STREAMS_MAX));
        assert_eq!(all.judge(&of(0, 1), &digest("x")), Place::New, "the oldest is gone");
        assert_eq!(all.judge(&of(devices - 1, 100), &digest("x")), Place::Known);
    }

    #[test]
    fn a_number_that_nobody_has_counted_up_to_opens_no_gap() {
        let mut all = Sequences::default();
        let judged = |all: &Sequences, seq| all.judge(&id(1, seq), &digest("x"));
        assert_eq!(judged(&all, LEAP_MAX + 1), Place::New, "all before it were left out");
        assert_eq!(judged(&all, LEAP_MAX + 2), Place::Leap);
        assert_eq!(judged(&all, u64::from(u32::MAX)), Place::Leap, "an erased counter");
        all.record(&id(1, 10), digest("x"));
        assert_eq!(judged(&all, 10 + LEAP_MAX + 1), Place::New);
        for far in [10 + LEAP_MAX + 2, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(judged(&all, far), Place::Leap);
        }
        assert_eq!(judged(&all, 9), Place::New);
        assert_eq!(judged(&all, 10), Place::Known);
        let told = include_str!("../../../docs/DEVICES.md").replace(',', "");
        assert!(told.contains(&LEAP_MAX.to_string()), "device makers are told");
    }

    #[test]
    fn the_largest_number_does_not_overflow() {
        let mut all = Sequences::default();
        all.record(&id(1, u64::MAX), digest("x"));
        all.record(&id(1, u64::MAX - 1), digest("x"));
        assert_eq!(all.gaps(9)[0].missing, [(1, u64::MAX - 2)]);
    }
}
