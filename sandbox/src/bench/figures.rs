//! The figures: each the middle over the rounds with its range, and what follows from them.

use std::thread::available_parallelism;

use serde::Serialize;

use super::{
    Order,
    fog::{Filling, HISTORY_READINGS},
    round::{IN_FLIGHT, Round},
    usage::load_average,
};

/// Everything that was measured: what `--report` writes.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) machine: Machine,
    pub(super) nodes: u16,
    pub(super) samples: usize,
    pub(super) rounds: usize,
    pub(super) in_flight: usize,
    pub(super) readings_per_bundle_of_history: u32,
    pub(super) scrub_s: u64,
    pub(super) lengths: Vec<Length>,
}

impl Figures {
    pub(super) fn of(order: &Order, machine: Machine, mut lengths: Vec<Length>) -> Self {
        for length in &mut lengths {
            length.summary = Some(Summary::of(length));
        }
        Self {
            machine,
            nodes: order.nodes,
            samples: order.samples,
            rounds: order.rounds,
            in_flight: IN_FLIGHT,
            readings_per_bundle_of_history: HISTORY_READINGS,
            scrub_s: order.scrub_s,
            lengths,
        }
    }
}

/// What it was measured on, and how busy that was.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Machine {
    pub(super) processors: usize,
    pub(super) load_average_before: Option<f64>,
    pub(super) load_average_after: Option<f64>,
}

impl Machine {
    /// As it is before anything is started.
    pub(super) fn before() -> Self {
        Self {
            processors: available_parallelism().map_or(0, std::num::NonZero::get),
            load_average_before: load_average(),
            load_average_after: None,
        }
    }

    /// As it is now that everything is over.
    pub(super) fn after(self) -> Self {
        Self {
            load_average_after: load_average(),
            ..self
        }
    }
}

/// One length of history.
#[derive(Debug, Serialize)]
pub(super) struct Length {
    /// Readings before the first round.
    pub(super) history: u64,
    /// Readings after the last one: the bundles that were measured stay in the chain.
    pub(super) readings: u64,
    pub(super) filling: Filling,
    pub(super) summary: Option<Summary>,
    pub(super) disk: Disk,
    pub(super) rounds: Vec<Round>,
}

impl Length {
    pub(super) fn filled(history: u64, filling: Filling) -> Self {
        Self {
            history,
            readings: history,
            filling,
            summary: None,
            disk: Disk::default(),
            rounds: Vec::new(),
        }
    }
}

/// What one node has on its disk.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Disk {
    pub(super) total_bytes: u64,
    pub(super) chain_bytes: u64,
    pub(super) vault_bytes: u64,
    pub(super) index_bytes: u64,
    pub(super) consensus_bytes: u64,
}

/// The rounds together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Summary {
    pub(super) start_ms: Spread,
    pub(super) p50_ms: Spread,
    pub(super) p99_ms: Spread,
    pub(super) page_p50_ms: Spread,
    pub(super) bundles_per_s: Spread,
    pub(super) blocks_per_s: Spread,
    pub(super) processor_ms_per_bundle: Spread,
    pub(super) rss_peak_bytes: Spread,
    /// Blocks of each chain when they were compared.
    pub(super) comparison_blocks: Spread,
    /// The literal Algorithm 2: the whole chain compared with every peer's.
    pub(super) comparison_ms: Spread,
    /// What each block adds to it.
    pub(super) comparison_ms_per_block: f64,
    /// A bundle that had to wait for a comparison first, as the paper has it.
    pub(super) with_comparison_ms: f64,
    /// The same if each reading of the history had a block of its own, as in the paper: computed, not measured.
    pub(super) with_comparison_computed_ms: f64,
}

impl Summary {
    fn of(length: &Length) -> Self {
        let spread = |of: fn(&Round) -> f64| Spread::of(length.rounds.iter().map(of).collect());
        let (p50_ms, comparison_ms) = (spread(|r| r.p50_ms), spread(|r| r.comparison.took_ms));
        let comparison_blocks = spread(|r| r.comparison.blocks as f64);
        let per_block = comparison_ms.median / comparison_blocks.median;
        Self {
            start_ms: spread(|r| r.start_ms),
            p50_ms,
            p99_ms: spread(|r| r.p99_ms),
            page_p50_ms: spread(|r| r.page_p50_ms),
            bundles_per_s: spread(|r| r.bundles_per_s),
            blocks_per_s: spread(|r| r.blocks_per_s),
            processor_ms_per_bundle: spread(|r| r.processor_ms_per_bundle),
            rss_peak_bytes: spread(|r| r.rss_peak_bytes as f64),
            comparison_blocks,
            comparison_ms,
            comparison_ms_per_block: per_block,
            with_comparison_ms: comparison_ms.median + p50_ms.median,
            with_comparison_computed_ms: per_block * length.history as f64 + p50_ms.median,
        }
    }
}

/// The middle of what the rounds have measured, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
}

impl Spread {
    fn of(values: Vec<f64>) -> Self {
        let at = |quantile| percentile(&values, quantile);
        Self {
            median: at(0.5),
            min: at(0.0),
            max: at(1.0),
        }
    }
}

/// The value that so many of all values do not exceed (nearest rank); 0 if there are none.
pub(super) fn percentile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (quantile * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!((percentile(&values, 0.5), percentile(&values, 0.99)), (50.0, 99.0));
        assert_eq!((percentile(&[7.0], 0.99), percentile(&[], 0.5)), (7.0, 0.0));
    }

    #[test]
    fn rounds_are_told_by_their_middle_and_their_range() {
        let spread = Spread::of(vec![9.0, 1.0, 2.0]);
        let expected = Spread {
            median: 2.0,
            min: 1.0,
            max: 9.0,
        };
        assert_eq!(spread, expected);
    }
}
