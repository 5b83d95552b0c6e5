//! Percentiles from a histogram in the text of `/metrics`, as Prometheus' `histogram_quantile` estimates them.

use crate::report::Percentiles;

/// The middle and the slow end of a histogram of seconds, in milliseconds; absent before the first observation.
#[must_use]
pub fn percentiles_ms(metrics: &str, name: &str) -> Percentiles {
    let buckets = buckets(metrics, name);
    let at = |quantile| quantile_of(&buckets, quantile).map(|seconds| (seconds * 1e6).round() / 1e3);
    Percentiles {
        p50: at(0.50),
        p99: at(0.99),
    }
}

/// Upper bounds and cumulative counts, in rising order, the infinite one last.
fn buckets(metrics: &str, name: &str) -> Vec<(f64, f64)> {
    let prefix = format!("{name}_bucket{{");
    let mut buckets: Vec<_> = metrics
        .lines()
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
    fn nothing_observed_is_no_percentile() {
        assert_eq!(percentiles_ms("", "x_seconds"), Percentiles::default());
        assert_eq!(
            percentiles_ms("x_seconds_bucket{le=\"+Inf\"} 0\n", "x_seconds"),
            Percentiles::default()
        );
    }
}
