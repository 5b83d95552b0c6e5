//! What one commit of the outbox will hold, who waits for it, and how it is cut into bundles.

use std::collections::{BTreeMap, VecDeque};

use record::{
    bundle::{BUNDLE_READINGS_MAX, Entry, SubjectKey},
    ids::{KeyId, ReadingId},
    reading::{Reason, Refusal},
};
use tokio::sync::oneshot;

use super::{Answer, Final, Measurement, Rejected, Urgency, Why, seal::BUNDLE_MESSAGE_BYTES_MAX};

/// When a reading was measured, if its clock can be trusted, and received.
pub(super) type Times = (Option<i64>, i64);

/// What one commit will hold, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// By urgency first: alarms get the earlier places in the queue.
    pub(super) groups: BTreeMap<(Urgency, KeyId), Group>,
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
        let group = self.groups.entry(place).or_insert_with(|| Group {
            subject: measurement.subject,
            entries: Vec::new(),
        });
        group.entries.push((measurement.entry, times));
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

/// A reading whose sequence number was used before, as it goes to quarantine.
pub(super) fn equivocation(measurement: &Measurement) -> Rejected {
    let message = measurement.entry.reading.as_bytes().to_vec();
    let detail = format!(
        "{} was used for another message before; a new message needs a new number",
        measurement.id
    );
    Rejected {
        device: Some(measurement.id.device.clone()),
        refusal: Refusal::new(Reason::Equivocation, detail),
        size_bytes: message.len() as u64,
        message: message.into(),
        measurement: None,
        at_ms: measurement.entry.received_ms,
    }
}

/// Splits readings so that each part fits in one bundle, in their order.
pub(super) fn chunks(entries: Vec<(Entry, Times)>) -> Vec<Vec<(Entry, Times)>> {
    let mut entries = VecDeque::from(entries);
    let mut all = Vec::new();
    while !entries.is_empty() {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while let Some((entry, _)) = entries.front() {
            bytes += entry.reading.as_bytes().len();
            if chunk.len() == BUNDLE_READINGS_MAX || (bytes > BUNDLE_MESSAGE_BYTES_MAX && !chunk.is_empty()) {
                break;
            }
            chunk.extend(entries.pop_front());
        }
        all.push(chunk);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::tests::Home;
    use record::reading::{READING_BYTES_MAX, SignedReading};

    fn entries(count: usize, bytes: usize) -> Vec<(Entry, Times)> {
        let reading = SignedReading::receive(&vec![7; bytes]).expect("not too large");
        let entry = |received_ms| Entry {
            received_ms,
            reading: reading.clone(),
        };
        (0..count).map(|n| (entry(n as i64), (None, n as i64))).collect()
    }

    #[test]
    fn readings_are_cut_by_number_and_by_size_in_their_order() {
        let parts = |count, bytes| chunks(entries(count, bytes)).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(parts(2_500, 100), [1_024, 1_024, 452]);
        assert_eq!(parts(14, READING_BYTES_MAX), [13, 1]);
        let order: Vec<_> = chunks(entries(2_500, 10))
            .into_iter()
            .flatten()
            .map(|(_, (_, at))| at)
            .collect();
        assert!(order.is_sorted());
    }

    #[tokio::test]
    async fn the_fullest_chunk_fits_in_a_bundle() {
        let home = Home::open();
        for (count, bytes) in [(13, READING_BYTES_MAX), (BUNDLE_READINGS_MAX, 878)] {
            let full: Vec<_> = chunks(entries(count, bytes))
                .remove(0)
                .into_iter()
                .map(|(entry, _)| entry)
                .collect();
            assert_eq!(full.len(), count);
            assert!(home.sealer.seal(&home.scale.subject, full, 1).is_ok());
        }
    }
}
