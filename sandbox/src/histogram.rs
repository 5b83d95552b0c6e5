//! Percentiles from a histogram in the text of `/metrics`, as Prometheus' `histogram_quantile` estimates them.

use crate::report::Percentiles;

/// The middle and the slow end of a histogram of seconds, in milliseconds; absent before the first observation.
#[must_use]
pub fn percentiles_ms(metrics: &str, name: &str) -> Percentiles {
    Buckets::of(metrics, name, "").percentiles_ms()
}

/// A histogram as it stood at one moment.
#[derive(Clone, Debug, Default)]
pub struct Buckets(Vec<(f64, f64)>);

impl Buckets {
    /// Of the histogram with this name, the part that has a label (`lane="new"`); all of it with an empty one.
    #[must_use]
    pub fn of(metrics: &str, name: &str, label: &str) -> Self {
        let mut buckets = buckets(metrics, name, label);
        // Parts of one histogram have the same bounds.
        buckets.dedup_by(|next, kept| {
            let same = next.0.total_cmp(&kept.0).is_eq();
            if same {
                kept.1 += next.1;
            }
            same
        });
        Self(buckets)
    }

    /// What was observed after an earlier moment of the same process.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let before = |bound: f64| {
            let same = earlier.0.iter().find(|(other, _)| other.total_cmp(&bound).is_eq());
            same.map_or(0.0, |(_, count)| *count)
        };
        let buckets = self.0.iter().map(|(bound, count)| (*bound, count - before(*bound)));
        Self(buckets.collect())
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> f64 {
        self.0.last().map_or(0.0, |(_, count)| *count)
    }

    /// The middle and the slow end, in milliseconds; absent if there is nothing.
    #[must_use]
    pub fn percentiles_ms(&self) -> Percentiles {
        let at = |quantile| quantile_of(&self.0, quantile).map(|seconds| (seconds * 1e6).round() / 1e3);
        Percentiles {
            p50: at(0.50),
            p99: at(0.99),
        }
    }
}

/// Upper bounds and cumulative counts, in rising order, the infinite ones last.
fn buckets(metrics: &str, name: &str, label: &str) -> Vec<(f64, f64)> {
    let prefix = format!("{name}_bucket{{");
    let mut buckets: Vec<_> = metrics
        .lines()
        .filter(|line| line.contains(label))
        .filter_map(|line| {
            let (labels, count) = line.strip_prefix(&prefix)?.rsplit_once("} ")?;
            let bound = labels
                .split(',')
                .find_map(|label| label.strip_prefix("le=\""))?
                .trim_end_matches('"');
            Some((bound.parse::<f64>().ok()?, count.trim().parse::<f64>().ok()?))
        })
        .collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    buckets
}

/// Linear between the bounds of the bucket that holds the quantile; above the last finite bound, that bound.
fn quantile_of(buckets: &[(f64, f64)], quantile: f64) -> Option<f64> {
    let total = buckets.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
    let rank = quantile * total;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (lower, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (upper, count) = buckets[at];
    if upper.is_infinite() {
        return Some(lower);
    }
    Some(lower + (upper - lower) * (rank - below) / (count - below).max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE x_seconds histogram\n\
        x_seconds_bucket{le=\"0.1\"} 50\nx_seconds_bucket{le=\"1\"} 90\nx_seconds_bucket{le=\"10\"} 100\n\
        x_seconds_bucket{le=\"+Inf\"} 100\nx_seconds_sum 40\nx_seconds_count 100\n";

    #[test]
    fn a_quantile_lies_in_its_bucket() {
        let percentiles = percentiles_ms(TEXT, "x_seconds");
        assert_eq!((percentiles.p50, percentiles.p99), (Some(100.0), Some(9_100.0)));
    }

    #[test]
    fn parts_are_told_apart_and_added_up_and_compared_with_before() {
        let text = "x_seconds_bucket{lane=\"new\",le=\"0.1\"} 10\nx_seconds_bucket{lane=\"new\",le=\"+Inf\"} 10\n\
            x_seconds_bucket{lane=\"backlog\",le=\"0.1\"} 0\nx_seconds_bucket{lane=\"backlog\",le=\"+Inf\"} 30\n";
        let of = |label| Buckets::of(text, "x_seconds", label);
        assert_eq!((of("").count(), of("lane=\"new\"").count()), (40.0, 10.0));
        assert_eq!(of("lane=\"new\"").percentiles_ms().p50, Some(50.0));
        assert_eq!(of("").since(&of("lane=\"new\"")).count(), 30.0);
        assert_eq!(of("").since(&Buckets::default()).count(), 40.0);
    }

    #[test]
    fn nothing_observed_is_no_percentile() {
        assert_eq!(percentiles_ms("", "x_seconds"), Percentiles::default());
        assert_eq!(
            percentiles_ms("x_seconds_bucket{le=\"+Inf\"} 0\n", "x_seconds"),
            Percentiles::default()
        );
    }
}
