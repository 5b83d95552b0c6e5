//! What one commit of the outbox will hold, who waits for it, and how it is cut into bundles.

use std::collections::{BTreeMap, VecDeque};

use record::{
    bundle::{BUNDLE_READINGS_MAX, Entry, SubjectKey},
    gaps::{Missing, SignedGapReport},
    ids::{DeviceId, KeyId, ReadingId},
    reading::{Reason, Refusal},
};
use tokio::sync::oneshot;

use super::{
    Answer, Final, Measurement, Rejected, Urgency, Why,
    seal::BUNDLE_MESSAGE_BYTES_MAX,
    sequence::{LEAP_MAX, Place, Sequences},
};

/// What framing and signature add to a gap report, at most.
const REPORT_FRAME_BYTES: usize = 128;

/// When a reading was measured, if its clock can be trusted, and received.
pub(super) type Times = (Option<i64>, i64);

/// What one commit will hold, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// By urgency first: alarms get the earlier places in the queue.
    pub(super) groups: BTreeMap<(Urgency, KeyId), Group>,
    /// Devices whose gaps it may move: where their readings go, and what was missing before.
    watched: BTreeMap<DeviceId, (Urgency, SubjectKey, Missing)>,
    pub(super) readings: usize,
    pub(super) bytes: u64,
    pub(super) rejected: Vec<Rejected>,
    pub(super) answers: Vec<(Answer, Pending)>,
    pub(super) finals: Vec<Final>,
    pub(super) refused: Vec<(u64, Why)>,
    pub(super) duplicates: u64,
    pub(super) stop: Option<oneshot::Sender<()>>,
}

/// Readings of one subject and urgency.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) subject: SubjectKey,
    pub(super) entries: Vec<(Entry, Times)>,
    pub(super) gaps: Vec<SignedGapReport>,
}

impl Group {
    const fn of(subject: SubjectKey) -> Self {
        Self {
            subject,
            entries: Vec::new(),
            gaps: Vec::new(),
        }
    }
}

/// What goes into one bundle.
#[derive(Debug, Default)]
pub(super) struct Chunk {
    pub(super) entries: Vec<(Entry, Times)>,
    pub(super) gaps: Vec<SignedGapReport>,
    bytes: usize,
}

/// An answer that waits for the commit.
#[derive(Debug)]
pub(super) enum Pending {
    Spooled(ReadingId),
    Duplicate(ReadingId),
    Quarantined(Option<ReadingId>, Refusal),
}

impl Batch {
    /// Adds a reading to those of its subject.
    pub(super) fn add(&mut self, measurement: Measurement) {
        self.readings += 1;
        let times = (measurement.wall_ms, measurement.entry.received_ms);
        let place = (measurement.urgency, measurement.subject.id());
        let group = self.groups.entry(place);
        let group = group.or_insert_with(|| Group::of(measurement.subject));
        group.entries.push((measurement.entry, times));
    }

    /// Remembers what is missing of a device before a reading of it is taken that opens, narrows or closes a gap.
    pub(super) fn watch_gaps(&mut self, sequences: &Sequences, measurement: &Measurement) {
        let device = &measurement.id.device;
        if !sequences.moves_a_gap(&measurement.id) {
            return;
        }
        if let Some((urgency, ..)) = self.watched.get_mut(device) {
            *urgency = measurement.urgency.min(*urgency);
            return;
        }
        let before = sequences.missing(device);
        let watched = (measurement.urgency, measurement.subject.clone(), before);
        self.watched.insert(device.clone(), watched);
    }

    /// Adds a report for each device of which something else is missing now than before this commit.
    pub(super) fn report_gaps(
        &mut self,
        sequences: &mut Sequences,
        mut sign: impl FnMut(DeviceId, Missing) -> SignedGapReport,
    ) {
        for (device, (urgency, subject, before)) in std::mem::take(&mut self.watched) {
            let missing = sequences.missing(&device);
            if missing == before {
                continue;
            }
            let subjects = sequences.report_to(&device, subject);
            let report = sign(device, missing);
            for subject in subjects {
                let group = self.groups.entry((urgency, subject.id()));
                let group = group.or_insert_with(|| Group::of(subject));
                group.gaps.push(report.clone());
            }
        }
    }

    /// Whether it holds an alarm, which waits for no others.
    pub(super) fn has_alarm(&self) -> bool {
        self.groups
            .keys()
            .next()
            .is_some_and(|(urgency, _)| *urgency == Urgency::Alarm)
    }

    /// Whether somebody waits for an answer.
    pub(super) fn is_urgent(&self) -> bool {
        !self.answers.is_empty() || self.stop.is_some()
    }

    /// Whether there is nothing to write and nobody to answer.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_urgent() && self.finals.is_empty() && self.refused.is_empty()
    }

    /// Whether the disk must change before the answers may leave.
    pub(super) fn writes(&self) -> bool {
        self.readings + self.rejected.len() > 0
    }

    /// How many notes about bundles it has: nobody waits for them, and whoever wrote them would find out again.
    pub(super) fn notes(&self) -> usize {
        self.finals.len() + self.refused.len()
    }
}

/// A reading whose sequence number was used before, or can be none of its start, as it goes to quarantine: nobody knows its place.
pub(super) fn misnumbered(measurement: &Measurement, place: &Place) -> Rejected {
    let message = measurement.entry.reading.as_bytes().to_vec();
    let id = &measurement.id;
    let refusal = if *place == Place::Leap {
        let detail = format!(
            "{id} leaves out more than {LEAP_MAX} numbers; count up by one within a boot, and make a new boot at each start"
        );
        Refusal::new(Reason::Implausible, detail)
    } else {
        let detail = format!("{id} was used for another message before; a new message needs a new number");
        Refusal::new(Reason::Equivocation, detail)
    };
    Rejected {
        device: Some(id.device.clone()),
        refusal,
        size_bytes: message.len() as u64,
        message: message.into(),
        measurement: None,
        at_ms: measurement.entry.received_ms,
    }
}

/// Splits readings so that each part fits in one bundle, in their order; gap reports go with the last ones, so that no
/// report is before the readings that it is about.
pub(super) fn chunks(entries: Vec<(Entry, Times)>, gaps: Vec<SignedGapReport>) -> Vec<Chunk> {
    let mut entries = VecDeque::from(entries);
    let mut all: Vec<Chunk> = Vec::new();
    while !entries.is_empty() {
        let mut chunk = Chunk::default();
        while let Some((entry, _)) = entries.front() {
            let bytes = chunk.bytes + entry.reading.as_bytes().len();
            let is_full = chunk.entries.len() == BUNDLE_READINGS_MAX || bytes > BUNDLE_MESSAGE_BYTES_MAX;
            if is_full && !chunk.entries.is_empty() {
                break;
            }
            chunk.bytes = bytes;
            chunk.entries.extend(entries.pop_front());
        }
        all.push(chunk);
    }
    for report in gaps {
        let bytes = report.bytes() + REPORT_FRAME_BYTES;
        let fits = |chunk: &&mut Chunk| chunk.bytes + bytes <= BUNDLE_MESSAGE_BYTES_MAX;
        if all.last_mut().filter(fits).is_none() {
            all.push(Chunk::default());
        }
        if let Some(chunk) = all.last_mut() {
            chunk.bytes += bytes;
            chunk.gaps.push(report);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::{
        Config, Stored, Verdict,
        tests::{Device, Home, measured},
    };
    use ledger::admission::Submission;
    use record::{
        bundle::SealedBundle,
        decimal::Decimal,
        gaps::{GapReport, REPORT_RANGES_MAX, Range, Start},
        ids::BootId,
        reading::{READING_BYTES_MAX, SignedReading},
    };

    fn entries(count: usize, bytes: usize) -> Vec<(Entry, Times)> {
        let reading = SignedReading::receive(&vec![7; bytes]).expect("not too large");
        let entry = |received_ms| Entry::new(received_ms, reading.clone());
        (0..count).map(|n| (entry(n as i64), (None, n as i64))).collect()
    }

    #[test]
    fn readings_are_cut_by_number_and_by_size_in_their_order() {
        let parts = |count, bytes| {
            let chunks = chunks(entries(count, bytes), vec![]);
            chunks.iter().map(|chunk| chunk.entries.len()).collect::<Vec<_>>()
        };
        assert_eq!(parts(2_500, 100), [1_024, 1_024, 452]);
        assert_eq!(parts(14, READING_BYTES_MAX), [13, 1]);
        let order: Vec<_> = chunks(entries(2_500, 10), vec![])
            .into_iter()
            .flat_map(|chunk| chunk.entries)
            .map(|(_, (_, at))| at)
            .collect();
        assert!(order.is_sorted());
    }

    #[tokio::test]
    async fn the_fullest_chunk_fits_in_a_bundle() {
        let home = Home::open();
        for (count, bytes) in [(13, READING_BYTES_MAX), (BUNDLE_READINGS_MAX, 878)] {
            let full: Vec<_> = chunks(entries(count, bytes), vec![])
                .remove(0)
                .entries
                .into_iter()
                .map(|(entry, _)| entry)
                .collect();
            assert_eq!(full.len(), count);
            assert!(home.sealer.seal(&home.scale.subject, (full, vec![]), 1).is_ok());
        }
    }

    /// The reports in each queued bundle of a device's subject, and how many readings it holds.
    fn reported(home: &Home, device: &Device) -> Vec<(usize, Vec<GapReport>)> {
        let tickets = home.outbox.tickets(0, 100).expect("reads");
        let open = |ticket| {
            let Stored::Intact(bytes) = home.outbox.submission(ticket).expect("reads") else {
                panic!("not there")
            };
            let (_, payload) = Submission::decode(&bytes).expect("matched").into_parts();
            let sealed = SealedBundle::decode(&payload).expect("sealed");
            let bundle = sealed.open(&home.sealer.network, &device.secret).ok()?;
            let report = |signed: &SignedGapReport| signed.decode(|_| Some(home.sealer.key.public()));
            let reports: Result<Vec<_>, _> = bundle.gaps.iter().map(report).collect();
            Some((bundle.entries.len(), reports.expect("signed by the gateway")))
        };
        tickets.iter().filter_map(open).collect()
    }

    /// What the reports of a bundle say is missing; all of one device and start.
    fn missing(reports: &[GapReport]) -> Option<Vec<Range>> {
        let report = reports.first()?;
        assert_eq!((reports.len(), report.device.as_str()), (1, "scale-1"));
        Some(
            report
                .missing
                .starts
                .first()
                .map_or(vec![], |start| start.missing.clone()),
        )
    }

    #[tokio::test]
    async fn what_is_missing_is_reported_with_the_reading_that_shows_it_also_across_restarts() {
        let mut home = Home::open();
        for seq in [1, 2, 7, 8, 4] {
            home.spool(&home.scale, seq).await;
            home.reopen().await;
        }
        for seq in [3, 5, 6, 9] {
            home.spool(&home.scale, seq).await;
        }
        home.spool(&home.oximeter, 1).await;
        let all = reported(&home, &home.scale);
        let said: Vec<_> = all.iter().map(|(_, reports)| missing(reports)).collect();
        let of = |ranges: &[(u64, u64)]| Some(ranges.iter().map(|(a, b)| Range(*a, *b)).collect::<Vec<_>>());
        let expected = [
            None,
            None,
            of(&[(3, 6)]),
            None,
            of(&[(3, 3), (5, 6)]),
            of(&[(5, 6)]),
            of(&[(6, 6)]),
            of(&[]),
            None,
        ];
        assert_eq!(said, expected);
        assert!(all.iter().all(|(readings, _)| *readings == 1));
        let times: Vec<_> = all
            .iter()
            .flat_map(|(_, reports)| reports)
            .map(|report| report.at_ms)
            .collect();
        assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        assert!(
            reported(&home, &home.oximeter)
                .iter()
                .all(|(_, reports)| reports.is_empty())
        );
    }

    #[tokio::test]
    async fn what_is_in_quarantine_is_not_missing_but_shows_what_is() {
        let home = Home::open();
        let absurd = home
            .scale
            .unsigned(3, vec![measured("29463-7", Decimal::whole(9_000), "kg")]);
        let message = absurd.sign(&home.scale.key).as_bytes().to_vec().into();
        let verdict = home.intake.take("vitalfog/v1/home-1/scale-1/reading", &message).await;
        assert!(matches!(verdict, Ok(Verdict::Quarantined(..))), "{verdict:?}");
        let all = reported(&home, &home.scale);
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].0, missing(&all[0].1)), (0, Some(vec![Range(1, 2)])));
    }

    #[tokio::test]
    async fn what_comes_out_of_order_within_one_commit_is_no_gap() {
        let home = Home::with(Config {
            linger_ms: 300,
            ..Config::default()
        });
        futures::future::join_all([1, 4, 3, 2].map(|seq| home.spool(&home.scale, seq))).await;
        assert_eq!(reported(&home, &home.scale), [(4, vec![])]);
    }

    /// The longest report that a gateway makes.
    fn longest(home: &Home) -> SignedGapReport {
        let start = |counter| Start {
            boot: BootId {
                counter: u32::MAX - counter,
                random: u64::MAX,
            },
            high_seq: u64::MAX,
            missing: vec![Range(u64::MAX - 2, u64::MAX - 1)],
        };
        let starts = (0..u32::try_from(REPORT_RANGES_MAX).expect("small")).rev().map(start);
        let missing = Missing {
            starts: starts.collect(),
            more_ranges: u64::MAX,
        };
        home.sealer
            .report("oximeter-1".parse().expect("good"), missing, i64::MAX)
    }

    #[tokio::test]
    async fn reports_go_with_the_last_readings_or_into_bundles_of_their_own() {
        let home = Home::open();
        let reports = vec![longest(&home); 100];
        for (count, bytes) in [(13, READING_BYTES_MAX), (BUNDLE_READINGS_MAX, 878), (1, 100), (0, 0)] {
            let all = chunks(entries(count, bytes), reports.clone());
            assert_eq!(all.iter().map(|chunk| chunk.gaps.len()).sum::<usize>(), 100);
            assert_eq!(all[0].entries.len(), count);
            for chunk in all {
                let entries = chunk.entries.into_iter().map(|(entry, _)| entry).collect();
                let sealed = home.sealer.seal(&home.scale.subject, (entries, chunk.gaps), 1);
                assert!(sealed.is_ok(), "{count} readings of {bytes} bytes");
            }
        }
    }
}
