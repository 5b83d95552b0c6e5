//! What one seed draws: a network, perhaps a liar, and a few faults one after another.

use std::time::Duration;

use commonware_p2p::simulated::Link;
use commonware_runtime::deterministic::{FaultConfig, PartialWriteMode, WriteConfig};
use commonware_utils::{Probability, probability};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use crate::{
    LOSSY, STEADY,
    liar::{LIES, Lie},
};

/// Faults between two power cuts, at most.
const FAULTS_MAX: usize = 4;
/// A fault lasts this long, in milliseconds of simulated time, at least and at most.
const LASTS_MS: std::ops::Range<u64> = 200..1_500;

/// How well the network works.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Weather {
    /// Nothing is lost.
    Steady,
    /// Some messages are.
    Lossy,
    /// A third is, and the others are late.
    Rough,
}

impl Weather {
    pub(crate) const fn link(self) -> Link {
        match self {
            Self::Steady => STEADY,
            Self::Lossy => LOSSY,
            Self::Rough => Link {
                latency: Duration::from_millis(40),
                jitter: Duration::from_millis(30),
                success_rate: probability!(0.7),
            },
        }
    }
}

/// One thing that goes wrong, for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// Nothing.
    None,
    /// A validator is killed, and comes back.
    Crash(usize),
    /// No payload reaches a validator's vault.
    NoPayloads(usize),
    /// The first validators and the others cannot reach each other.
    Part(usize),
    /// One cannot reach another, who reaches it.
    OneWay(usize, usize),
    /// The links of one come and go.
    Flap(usize),
    /// One hears and is heard late.
    Slow(usize),
    /// A validator is stopped and comes back with a chain file of some blocks ago.
    OldChain(usize),
    /// A validator is stopped and comes back without its chain file.
    NoChain(usize),
    /// Calls of the engines' storage fail, for all.
    Ailing,
}

/// All that one seed draws.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) weather: Weather,
    pub(crate) duplicates: bool,
    pub(crate) liar: Option<(usize, Lie)>,
    /// What is left of unsynced writes in a power cut: the mode, and of a hundred bytes so many.
    pub(crate) torn: Option<(PartialWriteMode, u64)>,
    /// Of a thousand calls of an ailing storage so many fail.
    pub(crate) failing: u64,
    /// Whether a fault begins before the one before is mended.
    pub(crate) overlap: bool,
    /// Faults with their length; between two lists, the power fails everywhere.
    pub(crate) acts: Vec<Vec<(Fault, Duration)>>,
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weather = match rng.random_range(0..10) {
            0..6 => Weather::Steady,
            6..9 => Weather::Lossy,
            _ => Weather::Rough,
        };
        let lie = LIES.choose(&mut rng).copied();
        let liar = lie
            .filter(|_| rng.random_bool(0.5))
            .map(|lie| (rng.random_range(0..4), lie));
        let modes = [PartialWriteMode::Prefix, PartialWriteMode::Subset];
        let mode = modes.choose(&mut rng).copied();
        let torn = mode
            .filter(|_| rng.random_bool(0.5))
            .map(|mode| (mode, rng.random_range(1..100)));
        let acts = if rng.random_bool(0.25) { 2 } else { 1 };
        Self {
            weather,
            duplicates: rng.random_bool(0.2),
            liar,
            torn,
            failing: rng.random_range(1..30),
            overlap: rng.random_bool(0.4),
            acts: (0..acts).map(|_| act(&mut rng, liar.map(|(liar, _)| liar))).collect(),
        }
    }

    /// What the storage does when it is not ailing.
    pub(crate) fn storage(&self) -> FaultConfig {
        let Some((mode, percent)) = self.torn else {
            return FaultConfig::default();
        };
        FaultConfig::default().write(WriteConfig {
            failure_rate: probability!(0.0),
            retention_rate: Probability::new(percent, 100).expect("a part of a hundred"),
            mode,
        })
    }

    /// How often a call of an ailing storage fails.
    pub(crate) fn rate(&self) -> Probability {
        Probability::new(self.failing, 1_000).expect("a part of a thousand")
    }

    /// Whether a validator may stop by itself: only what its disk did to it is a reason.
    pub(crate) fn has_failing_disks(&self) -> bool {
        self.acts
            .iter()
            .flatten()
            .any(|(fault, _)| matches!(fault, Fault::Ailing))
    }
}

fn act(rng: &mut StdRng, liar: Option<usize>) -> Vec<(Fault, Duration)> {
    let faults = rng.random_range(1..=FAULTS_MAX);
    (0..faults)
        .map(|_| (fault(rng, liar), Duration::from_millis(rng.random_range(LASTS_MS))))
        .collect()
}

/// A fault that befalls an honest validator, or the network.
fn fault(rng: &mut StdRng, liar: Option<usize>) -> Fault {
    let honest: Vec<_> = (0..4).filter(|validator| Some(*validator) != liar).collect();
    let victim = *honest.choose(rng).expect("three honest validators at least");
    let other = (victim + rng.random_range(1..4)) % 4;
    match rng.random_range(0..12) {
        0 | 1 => Fault::Crash(victim),
        2 => Fault::NoPayloads(victim),
        3 | 4 => Fault::Part(rng.random_range(1..4)),
        5 => Fault::OneWay(victim, other),
        6 => Fault::Flap(victim),
        7 => Fault::Slow(victim),
        8 => Fault::OldChain(victim),
        9 => Fault::NoChain(victim),
        10 => Fault::Ailing,
        _ => Fault::None,
    }
}
