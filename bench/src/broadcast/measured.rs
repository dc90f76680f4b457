//! What several runs of one system come to.
//!
//! Owns: medians over runs, percentiles over peers, how that is shown. Does not own: measuring.

use std::fmt;

use planner::bound::{Bound, Rates};
use serde::Serialize;

use super::{meter::to_f64, race::Run};
use crate::statistics::{median, percentile};

/// Above so many hundredths the processors, not the network, may be what is measured.
pub(crate) const CPU_PCT_MAX: f64 = 70.0;

/// What is the same in all runs of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions {
    pub(crate) n: usize,
    pub(crate) rate_mbit: u32,
    /// Bytes per second that a link carries, both ways loaded.
    pub(crate) goodput: f64,
    pub(crate) size: u64,
}

impl Conditions {
    /// The least time in which everybody can have it.
    pub(crate) fn bound_s(&self) -> f64 {
        let rates = Rates { up: self.goodput, down: self.goodput };
        Bound::new(self.size, Some(self.goodput), &vec![rates; self.n]).time().as_secs_f64()
    }
}

/// The result of one system: seconds are medians over the runs of what is named among the peers of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measured {
    pub(crate) bench: &'static str,
    pub(crate) system: String,
    pub(crate) n: usize,
    pub(crate) rate_mbit: u32,
    pub(crate) goodput_mbit: f64,
    pub(crate) size: u64,
    pub(crate) runs: usize,
    pub(crate) first_s: f64,
    pub(crate) p50_s: f64,
    pub(crate) p99_s: f64,
    pub(crate) last_s: f64,
    pub(crate) bound_s: f64,
    pub(crate) ratio_last: f64,
    /// The fastest and the slowest run.
    pub(crate) ratio_min: f64,
    pub(crate) ratio_max: f64,
    /// Payload where the system counts it, else what the origin's card sent.
    pub(crate) origin_bytes: u64,
    pub(crate) peer_bytes: u64,
    /// What the origin's card sent, headers and all.
    pub(crate) origin_card_bytes: u64,
    pub(crate) cpu_s_per_gb: f64,
    pub(crate) cpu_pct: f64,
    /// The processors were busy enough to be what was measured.
    pub(crate) cpu_bound: bool,
    pub(crate) rss_anon_max: u64,
    pub(crate) encrypted: bool,
    pub(crate) verified: bool,
}

impl Measured {
    /// Sums up the runs of a system, of which there is at least one.
    pub(crate) fn of(system: &str, encrypted: bool, conditions: &Conditions, runs: &[Run]) -> Self {
        let Conditions { n, rate_mbit, goodput, size } = *conditions;
        // There is at least one run.
        let over =
            |of: &dyn Fn(&Run) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN);
        let bytes = |of: &dyn Fn(&Run) -> u64| {
            let mut all: Vec<u64> = runs.iter().map(of).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let (bound_s, last_s) = (conditions.bound_s(), over(&|run| done_by(run, 100)));
        let ends = || runs.iter().map(|run| done_by(run, 100));
        let cpu_pct = over(&|run| run.busy.percent);
        Self {
            bench: "broadcast",
            system: system.to_owned(),
            n,
            rate_mbit,
            goodput_mbit: goodput * 8.0 / 1e6,
            size,
            runs: runs.len(),
            first_s: over(&|run| done_by(run, 0)),
            p50_s: over(&|run| done_by(run, 50)),
            p99_s: over(&|run| done_by(run, 99)),
            last_s,
            bound_s,
            ratio_last: last_s / bound_s,
            ratio_min: ends().fold(f64::INFINITY, f64::min) / bound_s,
            ratio_max: ends().fold(0.0, f64::max) / bound_s,
            origin_bytes: bytes(&|run| run.moved.map_or(run.origin_card_bytes(), |moved| moved.from_origin)),
            peer_bytes: bytes(&|run| run.moved.map_or(run.peer_card_bytes(), |moved| moved.from_peers)),
            origin_card_bytes: bytes(&Run::origin_card_bytes),
            cpu_s_per_gb: over(&|run| run.busy.seconds) / (to_f64(size) * to_f64(n as u64) / 1e9),
            cpu_pct,
            cpu_bound: cpu_pct > CPU_PCT_MAX,
            rss_anon_max: bytes(&|run| run.rss_anon_max),
            encrypted,
            verified: true,
        }
    }
}

/// The heading of the table whose rows are results.
pub(crate) const HEAD: &str = "system         n     first      p50      p99     last    bound  ratio  (min … max)   origin   cpu  cpu s/GB    anon";

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:<12} {:>3}  {:>6.2} s {:>6.2} s {:>6.2} s {:>6.2} s {:>6.2} s  {:>5.2} ({:.2} … {:.2}) {:>6.2} ×  {:>3.0} %  {:>8.2}  {:>4} MiB",
            self.system,
            self.n,
            self.first_s,
            self.p50_s,
            self.p99_s,
            self.last_s,
            self.bound_s,
            self.ratio_last,
            self.ratio_min,
            self.ratio_max,
            to_f64(self.origin_bytes) / to_f64(self.size),
            self.cpu_pct,
            self.cpu_s_per_gb,
            self.rss_anon_max >> 20,
        )?;
        if self.cpu_bound {
            write!(out, "  ! the processors were busy: this may not be the network")?;
        }
        Ok(())
    }
}

/// Seconds by which so many hundredths of the peers were done, the first at least.
pub(crate) fn done_by(run: &Run, percent: u8) -> f64 {
    percentile(&run.done_s, percent).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broadcast::{
        meter::{Busy, Sample},
        system::Moved,
    };

    fn run(last_s: f64, moved: Option<Moved>) -> Run {
        let sample = Sample { at_s: last_s, received: vec![0, 110], sent: vec![105, 5] };
        let busy = Busy { seconds: 1.0, percent: 80.0 };
        Run { done_s: vec![1.0, last_s], busy, rss_anon_max: 7, moved, samples: vec![sample] }
    }

    #[test]
    fn the_result_is_the_median_run_against_the_bound() {
        let conditions = Conditions { n: 2, rate_mbit: 8, goodput: 1e6, size: 4_000_000 };
        let runs = [run(9.0, None), run(5.0, None), run(6.0, None)];
        let measured = Measured::of("chain", false, &conditions, &runs);
        assert!(
            (measured.bound_s - 4.0).abs() < 1e-9 && (measured.ratio_last - 1.5).abs() < 1e-9,
            "{measured:?}"
        );
        assert!((measured.ratio_max - 2.25).abs() < 1e-9 && measured.cpu_bound, "{measured:?}");
        assert_eq!((measured.origin_bytes, measured.peer_bytes), (105, 5));
        let counted = Moved { from_origin: 100, from_peers: 3 };
        let measured = Measured::of("modelctl", true, &conditions, &[run(5.0, Some(counted))]);
        assert_eq!((measured.origin_bytes, measured.peer_bytes, measured.origin_card_bytes), (100, 3, 105));
    }
}
