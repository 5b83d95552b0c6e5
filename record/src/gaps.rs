//! Which numbers of a device never came, as its gateway reports it: signed, and carried sealed beside the readings.
//!
//! A gap is known only when a later number comes, so a report travels in the bundle of the readings that made it known, or
//! that closed it. Of one device the newest report holds: it names every start of the device with something missing, and
//! no start once everything has come.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{
    canonical::{self, Domain},
    ids::{BootId, DeviceId, GatewayId, NetworkId},
    reading::{Reason, Refusal},
    signature::{PublicKey, Signature, SigningKey},
};

/// Version of the report.
pub const VERSION: u8 = 1;
/// Ranges of missing numbers in one report, at most, over all starts; what is beyond is counted.
pub const REPORT_RANGES_MAX: usize = 256;
/// Bytes of one report, at most: far above what [`REPORT_RANGES_MAX`] ranges take.
pub const REPORT_BYTES_MAX: usize = 65_536;
/// Ranges that a report counts and does not name, at most: far above what a gateway keeps of one device.
pub const MORE_RANGES_MAX: u64 = 1 << 32;

/// Sequence numbers that are missing, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Range(pub u64, pub u64);

impl Range {
    /// What is left of it without these numbers, which are in ascending order.
    fn without(self, held: &[u64]) -> Vec<Self> {
        let mut rest = Vec::new();
        let mut from = Some(self.0);
        for seq in held.iter().filter(|seq| (self.0..=self.1).contains(seq)) {
            if let Some(from) = from.filter(|from| from < seq) {
                rest.push(Self(from, seq - 1));
            }
            from = seq.checked_add(1);
        }
        rest.extend(from.filter(|from| *from <= self.1).map(|from| Self(from, self.1)));
        rest
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == self.1 {
            self.0.fmt(f)
        } else {
            write!(f, "{}-{}", self.0, self.1)
        }
    }
}

/// One start of a device with something missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The start.
    pub boot: BootId,
    /// The highest number that has come.
    pub high_seq: u64,
    /// What is missing below it, in ascending order.
    pub missing: Vec<Range>,
}

/// What is missing of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// The starts with something missing, in order; none if everything has come.
    pub starts: Vec<Start>,
    /// Ranges that are missing, too, and not named: of starts that were used before those that are.
    pub more_ranges: u64,
}

impl Missing {
    /// Whether everything has come.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.starts.is_empty() && self.more_ranges == 0
    }

    /// How many ranges are named.
    #[must_use]
    pub fn ranges(&self) -> usize {
        self.starts.iter().map(|start| start.missing.len()).sum()
    }

    /// Without numbers of a start that are there after all, given in ascending order: from another gateway, or from before this
    /// one lost what it knew. A start of which the rest would be more than [`REPORT_RANGES_MAX`] ranges stays as it is.
    pub fn found(&mut self, boot: BootId, held: &[u64]) {
        for start in self.starts.iter_mut().filter(|start| start.boot == boot) {
            let rest: Vec<_> = start.missing.iter().flat_map(|range| range.without(held)).collect();
            if rest.len() <= REPORT_RANGES_MAX {
                start.missing = rest;
            }
        }
        self.starts.retain(|start| !start.missing.is_empty());
    }

    /// Whether it names things that can be: numbers from 1, below the highest, each once and in order.
    fn is_sound(&self) -> bool {
        let is_sound = |start: &Start| {
            let mut next = 1;
            start.missing.iter().all(|Range(from, to)| {
                let fits = *from >= next && from <= to && *to < start.high_seq;
                next = to.saturating_add(2);
                fits
            }) && !start.missing.is_empty()
        };
        self.ranges() <= REPORT_RANGES_MAX
            && self.more_ranges <= MORE_RANGES_MAX
            && self.starts.iter().all(is_sound)
            && self.starts.is_sorted_by(|a, b| a.boot < b.boot)
    }
}

/// What a gateway says is missing of one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GapReport {
    /// Version: [`VERSION`].
    pub v: u8,
    /// The network it is meant for.
    pub network: NetworkId,
    /// Who reports.
    pub gateway: GatewayId,
    /// Of which device.
    pub device: DeviceId,
    /// When, in milliseconds since 1970 by the gateway's clock; where that has gone back or stands still, one more than its
    /// last report's: the newest report is the one with the highest.
    pub at_ms: i64,
    /// What is missing.
    pub missing: Missing,
}

impl GapReport {
    /// Signs it, as its gateway.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> SignedGapReport {
        let report = canonical::encode(self);
        SignedGapReport {
            signature: key.sign(Domain::GAPS, &report),
            report: ByteBuf::from(report),
        }
    }
}

/// A report exactly as its gateway signed it; what is inside is not yet believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedGapReport {
    /// Canonical bytes of a [`GapReport`].
    report: ByteBuf,
    /// Over [`Domain::GAPS`] and these bytes.
    signature: Signature,
}

impl SignedGapReport {
    /// What it takes in a bundle.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.report.len()
    }

    /// Decodes it and checks the gateway's signature; only a checked report comes out.
    ///
    /// # Errors
    /// [`Reason::Malformed`], [`Reason::UnknownDevice`] for a gateway without a key, or [`Reason::WrongSignature`].
    pub fn decode(&self, key_of: impl Fn(&GatewayId) -> Option<PublicKey>) -> Result<GapReport, Refusal> {
        let malformed = |why: &str| Refusal::new(Reason::Malformed, format!("a gap report {why}"));
        let report: GapReport = canonical::decode(&self.report, REPORT_BYTES_MAX)
            .map_err(|_| malformed("is not DAG-CBOR of a form we know"))?;
        if report.v != VERSION {
            return Err(malformed("is of another version"));
        }
        let key = key_of(&report.gateway).ok_or_else(|| {
            Refusal::new(
                Reason::UnknownDevice,
                "a gap report is by a gateway that is not enrolled",
            )
        })?;
        key.verify(Domain::GAPS, &self.report, &self.signature)
            .map_err(|_| Refusal::new(Reason::WrongSignature, "a gap report is not signed by its gateway"))?;
        if report.missing.is_sound() {
            Ok(report)
        } else {
            Err(malformed("names numbers that cannot be missing"))
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::canonical::Digest;
    use proptest::prelude::*;

    fn start(counter: u32, high_seq: u64, missing: &[(u64, u64)]) -> Start {
        Start {
            boot: BootId { counter, random: 2 },
            high_seq,
            missing: missing.iter().map(|(from, to)| Range(*from, *to)).collect(),
        }
    }

    pub(crate) fn report() -> GapReport {
        GapReport {
            v: VERSION,
            network: NetworkId(Digest::ZERO),
            gateway: "home-1".parse().expect("good"),
            device: "oximeter-1".parse().expect("good"),
            at_ms: 1_790_000_000_000,
            missing: Missing {
                starts: vec![start(1, 9, &[(1, 2), (5, 5)]), start(2, 3, &[(2, 2)])],
                more_ranges: 0,
            },
        }
    }

    #[test]
    fn a_report_is_its_gateways_and_nobody_elses() {
        let (key, other) = (SigningKey::random(), SigningKey::random());
        let signed = report().sign(&key);
        assert_eq!(signed.decode(|_| Some(key.public())), Ok(report()));
        let reason = |of: Option<PublicKey>| signed.decode(|_| of).expect_err("not believed").reason;
        assert_eq!(reason(Some(other.public())), Reason::WrongSignature);
        assert_eq!(reason(None), Reason::UnknownDevice);
        // The same bytes signed as something else are no report.
        let as_head = SignedGapReport {
            signature: key.sign(Domain::HEAD, &signed.report),
            ..signed
        };
        assert!(as_head.decode(|_| Some(key.public())).is_err());
    }

    #[test]
    fn numbers_that_cannot_be_missing_are_refused_even_if_signed() {
        let key = SigningKey::random();
        let many: Vec<_> = (0..=REPORT_RANGES_MAX as u64).map(|n| (n * 2 + 1, n * 2 + 1)).collect();
        for starts in [
            vec![start(1, 9, &[(0, 2)])],
            vec![start(1, 9, &[(3, 2)])],
            vec![start(1, 9, &[(5, 9)])],
            vec![start(1, 9, &[(5, 6), (1, 2)])],
            vec![start(1, 9, &[(1, 2), (3, 4)])],
            vec![start(1, 9, &[])],
            vec![start(2, 9, &[(1, 1)]), start(1, 9, &[(1, 1)])],
            vec![start(1, 9, &[(1, 1)]), start(1, 9, &[(1, 1)])],
            vec![start(1, u64::MAX, &many)],
        ] {
            let missing = Missing { starts, more_ranges: 0 };
            let refusal = GapReport { missing, ..report() }
                .sign(&key)
                .decode(|_| Some(key.public()));
            assert_eq!(refusal.expect_err("unsound").reason, Reason::Malformed);
        }
        let largest = vec![start(1, u64::MAX, &[(u64::MAX - 1, u64::MAX - 1)])];
        let missing = Missing {
            starts: largest,
            more_ranges: 7,
        };
        let extreme = GapReport { missing, ..report() };
        assert_eq!(extreme.sign(&key).decode(|_| Some(key.public())), Ok(extreme));
    }

    #[test]
    fn what_is_there_after_all_is_not_missing() {
        let rest = |range: Range, held: &[u64]| range.without(held);
        assert_eq!(rest(Range(3, 7), &[1, 2, 8]), [Range(3, 7)]);
        assert_eq!(rest(Range(3, 7), &[3, 5, 7]), [Range(4, 4), Range(6, 6)]);
        assert_eq!(rest(Range(3, 4), &[3, 4]), []);
        assert_eq!(
            rest(Range(u64::MAX - 2, u64::MAX), &[u64::MAX]),
            [Range(u64::MAX - 2, u64::MAX - 1)]
        );
        let (mut missing, boots) = (report().missing, [1, 2].map(|counter| BootId { counter, random: 2 }));
        missing.found(boots[1], &[2]);
        assert_eq!(missing.starts, [start(1, 9, &[(1, 2), (5, 5)])]);
        missing.found(boots[0], &[1, 2, 5]);
        assert!(missing.is_nothing());
        let mut long = Missing {
            starts: vec![start(1, 10_000, &[(1, 9_999)])],
            more_ranges: 0,
        };
        long.found(boots[0], &(0..5_000).map(|n| n * 2).collect::<Vec<_>>());
        assert_eq!(long.ranges(), 1, "too many pieces to name");
    }

    #[test]
    fn the_longest_report_is_small() {
        let starts: Vec<_> = (0..REPORT_RANGES_MAX as u32)
            .map(|n| start(u32::MAX - n, u64::MAX, &[(u64::MAX - 2, u64::MAX - 1)]))
            .rev()
            .collect();
        let missing = Missing {
            starts,
            more_ranges: MORE_RANGES_MAX,
        };
        let key = SigningKey::random();
        let longest = GapReport { missing, ..report() }.sign(&key);
        assert!(longest.decode(|_| Some(key.public())).is_ok());
        assert!(longest.bytes() < 32_768, "{}", longest.bytes());
        let more = Missing {
            starts: vec![],
            more_ranges: MORE_RANGES_MAX + 1,
        };
        let absurd = GapReport {
            missing: more,
            ..report()
        }
        .sign(&key);
        assert!(absurd.decode(|_| Some(key.public())).is_err());
    }

    proptest! {
        #[test]
        fn a_flipped_byte_is_never_believed(at: usize, with in 1u8..=255) {
            let key = SigningKey::random();
            let mut signed = report().sign(&key);
            let at = at % signed.report.len();
            signed.report[at] ^= with;
            prop_assert!(signed.decode(|_| Some(key.public())).is_err());
        }
    }
}
