//! Which numbers of each boot of each device came: repeated, reused, late, missing; in bounded space.

use std::collections::BTreeMap;

use record::{
    canonical::Digest,
    ids::{BootId, DeviceId, ReadingId},
};

/// Boots that are followed; of more, the first in the order of names is forgotten.
const BOOTS_MAX: usize = 20_000;
/// Messages of a boot whose content is remembered.
const REMEMBERED_MAX: usize = 4_096;
/// Numbers that one message may leave out, at most, as docs/DEVICES.md has it: a gateway refuses what is above.
pub(super) const LEAP_MAX: u64 = 1 << 31;
/// Gaps of a boot that are kept apart; beyond them the two oldest become one.
const GAPS_MAX: usize = 1_024;

/// Where a message stands among those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The number that was expected.
    Next,
    /// The same message once more.
    Repeated,
    /// Fills a gap.
    Late,
    /// Leaves a gap.
    Ahead,
    /// The number of another message.
    Reused,
    /// So far above all others that the gateway refuses it.
    Leap,
    /// The first of a boot whose counter did not rise.
    OldBoot,
    /// Measured before a smaller number of its boot.
    Backwards,
}

/// Device, boot, first and last number that is missing.
pub(super) type Gap = (DeviceId, BootId, u64, u64);

#[derive(Debug, Default)]
struct Boot {
    high: u64,
    missing: Vec<(u64, u64)>,
    /// Content and `up_ms` by number.
    known: BTreeMap<u64, (Digest, u64)>,
}

/// The numbers of all devices.
#[derive(Debug)]
pub(super) struct Numbers {
    from_the_start: bool,
    boots: BTreeMap<(DeviceId, BootId), Boot>,
}

impl Numbers {
    /// With `from_the_start` a boot that does not begin with 1 has a gap.
    pub(super) const fn new(from_the_start: bool) -> Self {
        Self {
            from_the_start,
            boots: BTreeMap::new(),
        }
    }

    /// Records a message and says where it stands.
    pub(super) fn record(&mut self, id: &ReadingId, digest: Digest, up_ms: u64) -> Place {
        let key = (id.device.clone(), id.boot);
        if !self.boots.contains_key(&key) {
            return self.first_of_boot(key, id.seq, (digest, up_ms));
        }
        let boot = self.boots.get_mut(&key).expect("it was just found");
        match boot.known.get(&id.seq) {
            Some((known, _)) if *known == digest => return Place::Repeated,
            Some(_) => return Place::Reused,
            None => {}
        }
        if id.seq.saturating_sub(boot.high) > LEAP_MAX + 1 {
            return Place::Leap;
        }
        let before = boot.known.range(..id.seq).next_back().map(|(_, (_, up_ms))| *up_ms);
        let place = boot.take(id.seq);
        boot.remember(id.seq, (digest, up_ms));
        if before.is_some_and(|before| before > up_ms) {
            return Place::Backwards;
        }
        place
    }

    /// What is missing.
    pub(super) fn missing(&self) -> impl Iterator<Item = Gap> {
        self.boots.iter().flat_map(|((device, id), boot)| {
            let gap = move |&(from, to): &(u64, u64)| (device.clone(), *id, from, to);
            boot.missing.iter().map(gap)
        })
    }

    fn first_of_boot(&mut self, key: (DeviceId, BootId), seq: u64, content: (Digest, u64)) -> Place {
        if self.from_the_start && seq > LEAP_MAX + 1 {
            return Place::Leap;
        }
        let others = self.boots.keys().filter(|(device, _)| *device == key.0);
        let highest = others.map(|(_, boot)| boot.counter).max();
        let is_old = highest.is_some_and(|highest| highest >= key.1.counter);
        if self.boots.len() >= BOOTS_MAX {
            self.boots.pop_first();
        }
        let boot = self.boots.entry(key).or_default();
        if !self.from_the_start {
            boot.high = seq - 1;
        }
        let place = boot.take(seq);
        boot.remember(seq, content);
        if is_old { Place::OldBoot } else { place }
    }
}

impl Boot {
    fn take(&mut self, seq: u64) -> Place {
        if seq > self.high {
            let expected = self.high + 1;
            self.high = seq;
            if seq == expected {
                return Place::Next;
            }
            self.missing.push((expected, seq - 1));
            if self.missing.len() > GAPS_MAX {
                let (_, end) = self.missing.remove(1);
                self.missing[0].1 = end;
            }
            return Place::Ahead;
        }
        if let Some(at) = self.missing.iter().position(|(from, to)| (*from..=*to).contains(&seq)) {
            let (from, to) = self.missing.remove(at);
            let rest = [(from, seq.saturating_sub(1)), (seq.saturating_add(1), to)];
            let rest = rest.into_iter().filter(|(from, to)| from <= to);
            self.missing.splice(at..at, rest);
        }
        Place::Late
    }

    fn remember(&mut self, seq: u64, content: (Digest, u64)) {
        self.known.insert(seq, content);
        if self.known.len() > REMEMBERED_MAX {
            self.known.pop_first();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use record::canonical::Domain;

    fn id(counter: u32, seq: u64) -> ReadingId {
        ReadingId {
            device: "scale-1".parse().expect("good"),
            boot: BootId { counter, random: 1 },
            seq,
        }
    }

    fn digest(text: &str) -> Digest {
        Digest::of(Domain::READING, &[text.as_bytes()])
    }

    #[test]
    fn numbers_are_told_apart() {
        let mut all = Numbers::new(true);
        let mut record = |seq, text, up_ms| all.record(&id(1, seq), digest(text), up_ms);
        assert_eq!(record(1, "a", 10), Place::Next);
        assert_eq!(record(1, "a", 10), Place::Repeated);
        assert_eq!(record(1, "b", 10), Place::Reused);
        assert_eq!(record(4, "d", 40), Place::Ahead);
        assert_eq!(record(2, "c", 20), Place::Late);
        assert_eq!(record(5, "e", 39), Place::Backwards);
        let missing: Vec<_> = all.missing().map(|(_, _, from, to)| (from, to)).collect();
        assert_eq!(missing, [(3, 3)]);
    }

    #[test]
    fn a_number_that_nobody_has_counted_up_to_is_no_gap() {
        let mut all = Numbers::new(true);
        let mut record = |seq| all.record(&id(1, seq), digest("a"), 1);
        assert_eq!(record(LEAP_MAX + 2), Place::Leap);
        assert_eq!(record(5), Place::Ahead);
        assert_eq!(record(5 + LEAP_MAX + 2), Place::Leap);
        assert_eq!(record(u64::MAX), Place::Leap);
        let missing: Vec<_> = all.missing().map(|(_, _, from, to)| (from, to)).collect();
        assert_eq!(missing, [(1, 4)]);
        // Of a capture that begins somewhere nobody knows what came before.
        let mut all = Numbers::new(false);
        assert_eq!(all.record(&id(1, u64::MAX), digest("a"), 1), Place::Next);
    }

    #[test]
    fn a_boot_begins_with_one_and_its_counter_rises() {
        let mut all = Numbers::new(true);
        assert_eq!(all.record(&id(7, 3), digest("a"), 1), Place::Ahead);
        assert_eq!(all.record(&id(8, 1), digest("b"), 1), Place::Next);
        let same = ReadingId {
            boot: BootId { counter: 8, random: 2 },
            ..id(8, 1)
        };
        assert_eq!(all.record(&same, digest("c"), 1), Place::OldBoot);
        let mut all = Numbers::new(false);
        assert_eq!(all.record(&id(7, 3), digest("a"), 1), Place::Next);
        assert_eq!(all.missing().count(), 0);
    }
}
