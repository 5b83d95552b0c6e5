//! How many rows there have to be: counted once, kept in memory, compared with the database at every question.
//!
//! A good tag proves that a row is this node's; that none is missing, only a number can show. Rows are counted by key, code and
//! slot of ten minutes, and by block: the first is what a question can compare, the second says where to mend.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ledger::block::Height;
use record::ids::KeyId;

use super::{DateRange, Reported, Row, gaps::ranges};

/// A slot: rows that were moved within one are not missed by their number.
pub(super) const SLOT_MS: i64 = 600_000;

/// The slot of a time.
pub(super) const fn slot(effective_ms: i64) -> i64 {
    effective_ms.div_euclid(SLOT_MS)
}

/// The whole slots that a span of time touches: the first millisecond inside, the first after.
pub(super) const fn whole_slots(span: DateRange) -> DateRange {
    let to = slot(span.to_ms.saturating_sub(1)).saturating_add(1);
    DateRange {
        from_ms: slot(span.from_ms).saturating_mul(SLOT_MS),
        to_ms: to.saturating_mul(SLOT_MS),
    }
}

/// All time.
pub(super) const ALWAYS: DateRange = DateRange {
    from_ms: i64::MIN,
    to_ms: i64::MAX,
};

/// Rows of one key and code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Series {
    total: u64,
    slots: BTreeMap<i64, u32>,
}

/// What is in the index, by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    series: HashMap<KeyId, BTreeMap<String, Series>>,
    /// Of each key and device the newest gap report.
    newest: HashMap<KeyId, BTreeMap<String, Newest>>,
    /// Observations and gap reports of each block.
    heights: BTreeMap<Height, (u32, u32)>,
    pub(super) observations: u64,
    pub(super) gap_reports: u64,
}

impl Tally {
    pub(super) fn add(&mut self, row: &Row) {
        let series = self.series.entry(row.key).or_default();
        if !series.contains_key(&row.code) {
            series.insert(row.code.clone(), Series::default());
        }
        if let Some(series) = series.get_mut(&row.code) {
            series.total += 1;
            *series.slots.entry(slot(row.effective_ms)).or_default() += 1;
        }
        self.heights.entry(row.height).or_default().0 += 1;
        self.observations += 1;
    }

    pub(super) fn add_report(&mut self, one: &Reported, visible_from: Height) {
        let newest = Newest {
            order: order(one),
            has_gaps: ranges(one) > 0,
            visible_from,
        };
        let device = one.report.device.as_str().to_owned();
        let known = self.newest.entry(one.key).or_default().entry(device).or_insert(newest);
        *known = (*known).max(newest);
        self.heights.entry(one.height).or_default().1 += 1;
        self.gap_reports += 1;
    }

    pub(super) fn remove(&mut self, row: &Row) {
        let slot = slot(row.effective_ms);
        if let Some(series) = self.series.get_mut(&row.key).and_then(|of| of.get_mut(&row.code)) {
            series.total = series.total.saturating_sub(1);
            if let Some(count) = series.slots.get_mut(&slot) {
                *count = count.saturating_sub(1);
            }
            series.slots.retain(|at, count| *at != slot || *count > 0);
        }
        if let Some(of) = self.heights.get_mut(&row.height) {
            of.0 = of.0.saturating_sub(1);
        }
        self.observations = self.observations.saturating_sub(1);
    }

    /// Of a device, the newest one is removed last.
    pub(super) fn remove_report(&mut self, one: &Reported) {
        let device = one.report.device.as_str();
        if let Some(devices) = self.newest.get_mut(&one.key) {
            devices.retain(|of, newest| of != device || newest.order != order(one));
        }
        if let Some(of) = self.heights.get_mut(&one.height) {
            of.1 = of.1.saturating_sub(1);
        }
        self.gap_reports = self.gap_reports.saturating_sub(1);
    }

    /// Rows of these keys and codes (any, if none is named) in whole slots.
    pub(super) fn rows(&self, keys: &[KeyId], codes: &[String], span: DateRange) -> u64 {
        let is_asked = |code: &String| codes.is_empty() || codes.contains(code);
        let unique: BTreeSet<_> = keys.iter().collect();
        let series = unique.into_iter().filter_map(|key| self.series.get(key)).flatten();
        series
            .filter(|(code, _)| is_asked(code))
            .map(|(_, series)| {
                if span == ALWAYS {
                    return series.total;
                }
                let slots = series
                    .slots
                    .range(slot(span.from_ms)..slot(span.to_ms.saturating_sub(1)).saturating_add(1));
                slots.map(|(_, count)| u64::from(*count)).sum()
            })
            .sum()
    }

    /// Which gap reports have to be the newest for these keys, as of a height.
    pub(super) fn newest(&self, keys: &[KeyId], snapshot: Height) -> Expected<'_> {
        let mut expected: BTreeMap<&str, Newest> = BTreeMap::new();
        for (device, newest) in keys.iter().filter_map(|key| self.newest.get(key)).flatten() {
            let known = expected.entry(device).or_insert(*newest);
            *known = (*known).max(*newest);
        }
        Expected { expected, snapshot }
    }

    /// Rows of a block.
    pub(super) fn at(&self, height: Height) -> (u32, u32) {
        self.heights.get(&height).copied().unwrap_or_default()
    }

    /// The blocks of which the other has another number of rows.
    pub(super) fn differs(&self, other: &Self) -> BTreeSet<Height> {
        let heights = self.heights.keys().chain(other.heights.keys());
        heights
            .filter(|height| self.at(**height) != other.at(**height))
            .copied()
            .collect()
    }
}

/// When it was reported, and its place.
type Order = (i64, [u8; 32], u32);

fn order(one: &Reported) -> Order {
    (one.report.at_ms, *one.bundle.0.as_bytes(), one.entry)
}

/// A gap report, by what it is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Newest {
    order: Order,
    has_gaps: bool,
    visible_from: Height,
}

/// The newest report of each device.
#[derive(Debug)]
pub(super) struct Expected<'a> {
    expected: BTreeMap<&'a str, Newest>,
    snapshot: Height,
}

impl Expected<'_> {
    /// Whether these are the reports with gaps, up to the device where the answer was cut. What becomes visible later than the
    /// answer is of says nothing about it.
    pub(super) fn is_as(&self, found: &[Reported], cut_at: Option<&str>) -> bool {
        let found: BTreeMap<_, _> = found.iter().map(|one| (one.report.device.as_str(), one)).collect();
        let is_seen = |newest: &Newest| newest.visible_from <= self.snapshot;
        let all_right = found.iter().all(|(device, one)| {
            self.expected
                .get(device)
                .is_some_and(|newest| !is_seen(newest) || newest.order == order(one))
        });
        let expected = self
            .expected
            .iter()
            .filter(|(_, newest)| newest.has_gaps && is_seen(newest));
        let mut asked = expected.filter(|(device, _)| cut_at.is_none_or(|last| **device <= last));
        all_right && asked.all(|(device, _)| found.contains_key(device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_grows_to_whole_slots_and_time_has_no_end() {
        let span = |from_ms, to_ms| DateRange { from_ms, to_ms };
        assert_eq!(whole_slots(span(1, 2)), span(0, SLOT_MS));
        assert_eq!(whole_slots(span(0, SLOT_MS)), span(0, SLOT_MS));
        assert_eq!(whole_slots(span(-1, SLOT_MS + 1)), span(-SLOT_MS, 2 * SLOT_MS));
        let all = whole_slots(ALWAYS);
        assert!(
            all.from_ms <= i64::MIN + 1 && all.to_ms >= i64::MAX - SLOT_MS,
            "{all:?}"
        );
    }

    #[test]
    fn what_was_added_and_removed_leaves_nothing() {
        let mut tally = Tally::default();
        let (kept, gone) = (crate::index::tests::row(1, 2, 10), crate::index::tests::row(2, 4, 20));
        tally.add(&kept);
        let before = tally.clone();
        tally.add(&gone);
        assert_eq!(tally.differs(&before), BTreeSet::from([gone.height]));
        tally.remove(&gone);
        assert_eq!(tally.differs(&before), BTreeSet::new());
        assert_eq!(
            (
                tally.rows(&[gone.key], &[], ALWAYS),
                tally.rows(&[kept.key], &[], ALWAYS)
            ),
            (0, 1)
        );
        assert_eq!(
            tally.rows(&[gone.key], &[], whole_slots(DateRange { from_ms: 0, to_ms: 30 })),
            0
        );
        assert_eq!(tally.observations, 1);
    }
}
