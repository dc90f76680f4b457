//! Numbers of several runs as one: medians, and percentiles of latencies.
//!
//! Owns: how they are summed up. Does not own: what was measured, or how it is printed.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Significant digits of a recorded latency: a value is off by a thousandth at most.
const DIGITS: u8 = 3;

/// The longest latency that is told from longer ones, in microseconds: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;

/// The middle of `values`, and the mean of both in the middle of an even number; `None` of none.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    let lower = sorted[sorted.len() / 2 - 1];
    Some(lower.midpoint(upper))
}

/// The least of `values` that at least `percent` of them do not exceed; `None` of none.
pub(crate) fn percentile(values: &[f64], percent: u8) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * usize::from(percent)).div_ceil(100);
    sorted.get(rank.max(1) - 1).copied()
}

/// `value` to `other`; `None` where there is none.
pub(crate) fn ratio(value: f64, other: f64) -> Option<f64> {
    (other > 0.0).then_some(value / other)
}

/// Latencies as they are recorded.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS).expect("three digits are allowed"))
    }

    /// Records one, in whole microseconds.
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros);
    }

    /// What they are in short.
    pub(crate) fn summary(&self) -> Percentiles {
        let at = |quantile| self.0.value_at_quantile(quantile);
        Percentiles {
            count: self.0.len(),
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: self.0.max(),
        }
    }
}

/// Latencies in short, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    /// How many were recorded.
    pub(crate) count: u64,
    pub(crate) p50_us: u64,
    pub(crate) p90_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) p999_us: u64,
    pub(crate) max_us: u64,
}

impl fmt::Display for Percentiles {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { p50_us, p90_us, p99_us, p999_us, max_us, .. } = self;
        write!(out, "p50 {p50_us} p90 {p90_us} p99 {p99_us} p99.9 {p999_us} max {max_us} µs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        for (values, expect) in [
            (&[][..], None),
            (&[3.0], Some(3.0)),
            (&[9.0, 1.0, 2.0], Some(2.0)),
            (&[4.0, 1.0, 2.0, 100.0], Some(3.0)),
        ] {
            assert_eq!(median(values), expect, "{values:?}");
        }
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        for (percent, expect) in [(0, 1.0), (1, 1.0), (50, 50.0), (99, 99.0), (100, 100.0)] {
            assert_eq!(percentile(&values, percent), Some(expect), "{percent} %");
        }
        assert_eq!(percentile(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 99), Some(8.0));
        assert_eq!(percentile(&[1.0, 2.0, 3.0], 50), Some(2.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn nothing_is_no_ratio() {
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
        assert_eq!(ratio(3.0, 0.0), None);
    }

    #[test]
    fn latencies_are_within_a_thousandth() {
        let mut latencies = Latencies::new();
        assert_eq!(latencies.summary(), Percentiles::default());
        for millis in 1..=1000 {
            latencies.record(Duration::from_millis(millis));
        }
        let Percentiles { count, p50_us, p90_us, p99_us, p999_us, max_us } = latencies.summary();
        assert_eq!(count, 1000);
        for (is, should) in
            [(p50_us, 500_000), (p90_us, 900_000), (p99_us, 990_000), (p999_us, 999_000), (max_us, 1_000_000)]
        {
            assert!(should <= is && is <= should + should / 1000 + 1, "{is} for {should}");
        }
    }

    #[test]
    fn the_longest_latency_is_recorded() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::MAX);
        latencies.record(Duration::ZERO);
        let Percentiles { count, p50_us, max_us, .. } = latencies.summary();
        assert_eq!((count, p50_us), (2, 0));
        assert!(max_us >= LATENCY_MAX_US, "{max_us}");
    }
}
