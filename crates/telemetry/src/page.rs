//! The text that Prometheus reads (exposition format 0.0.4).
//!
//! Owns: its lines. Does not own: any number on it. Names and labels are constants of the program, so that nothing in
//! them needs escaping and their number is bounded.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// One value of a metric: its labels, as pairs of name and value, and the number.
pub type Sample<'a> = (&'a [(&'static str, &'static str)], f64);

/// A page under way.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// A number that only grows; its name ends with `_total`.
    pub fn counter(&mut self, name: &'static str, help: &'static str, samples: &[Sample<'_>]) {
        assert!(name.ends_with("_total"), "{name} is a counter");
        self.family(name, help, "counter", samples);
    }

    /// A number that goes up and down.
    pub fn gauge(&mut self, name: &'static str, help: &'static str, samples: &[Sample<'_>]) {
        self.family(name, help, "gauge", samples);
    }

    /// How often what was measured was at most each bound.
    pub fn histogram<const N: usize>(&mut self, name: &'static str, help: &'static str, values: &Buckets<N>) {
        self.head(name, help, "histogram");
        let mut so_far = 0;
        for (bound, count) in values.bounds.iter().zip(&values.counts) {
            so_far += count.load(Ordering::Relaxed);
            self.line(format_args!("{name}_bucket{{le=\"{bound}\"}} {so_far}"));
        }
        so_far += values.beyond.load(Ordering::Relaxed);
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {so_far}"));
        self.line(format_args!("{name}_sum {}", values.sum()));
        self.line(format_args!("{name}_count {so_far}"));
    }

    /// The text.
    pub fn finish(self) -> String {
        self.0
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, samples: &[Sample<'_>]) {
        self.head(name, help, kind);
        for (labels, value) in samples {
            if labels.is_empty() {
                self.line(format_args!("{name} {value}"));
                continue;
            }
            let labels: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
            self.line(format_args!("{name}{{{}}} {value}", labels.join(",")));
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a string takes everything");
    }
}

/// A histogram that many may count into.
#[derive(Debug)]
pub struct Buckets<const N: usize> {
    bounds: [f64; N],
    counts: [AtomicU64; N],
    beyond: AtomicU64,
    /// In millionths, so that adding is one step.
    sum: AtomicU64,
}

impl<const N: usize> Buckets<N> {
    /// Buckets up to each of these bounds, which ascend.
    pub fn new(bounds: [f64; N]) -> Self {
        assert!(bounds.is_sorted(), "bounds ascend");
        let counts = std::array::from_fn(|_| AtomicU64::new(0));
        Self { bounds, counts, beyond: AtomicU64::new(0), sum: AtomicU64::new(0) }
    }

    /// Counts a time, in seconds.
    pub fn time(&self, time: Duration) {
        self.value(time.as_secs_f64());
    }

    /// Counts a value that is not negative.
    pub fn value(&self, value: f64) {
        let bucket = self.bounds.iter().position(|bound| value <= *bound);
        bucket.map_or(&self.beyond, |bucket| &self.counts[bucket]).fetch_add(1, Ordering::Relaxed);
        let micros = Duration::try_from_secs_f64(value).unwrap_or_default().as_micros();
        self.sum.fetch_add(u64::try_from(micros).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn sum(&self) -> f64 {
        Duration::from_micros(self.sum.load(Ordering::Relaxed)).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_count_what_is_at_most_their_bound() {
        let times = Buckets::new([0.1, 1.0]);
        for seconds in [0.05, 0.1, 0.5, 2.5] {
            times.value(seconds);
        }
        let mut page = Page::new();
        page.histogram("plan_seconds", "Times.", &times);
        page.counter("bytes_total", "Bytes.", &[(&[("source", "origin")], 5.0), (&[], 7.0)]);
        assert_eq!(
            page.finish(),
            "# HELP plan_seconds Times.\n# TYPE plan_seconds histogram\nplan_seconds_bucket{le=\"0.1\"} 2\n\
             plan_seconds_bucket{le=\"1\"} 3\nplan_seconds_bucket{le=\"+Inf\"} 4\nplan_seconds_sum 3.15\n\
             plan_seconds_count 4\n# HELP bytes_total Bytes.\n# TYPE bytes_total counter\n\
             bytes_total{source=\"origin\"} 5\nbytes_total 7\n"
        );
    }
}
