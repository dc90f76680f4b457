//! What several runs of one system come to.
//!
//! Owns: medians over runs, percentiles over peers, how that is shown. Does not own: measuring.

use std::fmt;

use serde::Serialize;

use super::{
    faults::{Cast, Role, Terms},
    meter::to_f64,
    race::Run,
};
use crate::statistics::{median, percentile};

/// Above so many hundredths the processors, not the network, may be what is measured.
pub(crate) const CPU_PCT_MAX: f64 = 70.0;

/// What is the same in all runs of one call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conditions<'a> {
    pub(crate) n: usize,
    pub(crate) rate_mbit: u32,
    /// Bytes per second that a link carries, both ways loaded.
    pub(crate) goodput: f64,
    pub(crate) size: u64,
    pub(crate) cast: &'a Cast,
}

impl Conditions<'_> {
    fn terms(&self) -> Terms {
        let rate = f64::from(self.rate_mbit) * 125_000.0;
        Terms { bytes: self.size, rate, goodput: self.goodput }
    }

    /// The least time in which everybody can have it who is to have it.
    pub(crate) fn bound_s(&self) -> f64 {
        self.cast.bound_s(&self.terms(), |peer| self.cast.finishes(peer))
    }

    /// The least time in which those can have it that no fault hits.
    pub(crate) fn healthy_bound_s(&self) -> f64 {
        self.cast.bound_s(&self.terms(), |peer| self.cast.is_well(peer))
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
    /// What was wrong, as it was asked for.
    pub(crate) faults: Vec<String>,
    /// The peers that no fault hit; none where there was no fault.
    pub(crate) healthy: Option<Healthy>,
    pub(crate) affected: Vec<Affected>,
    /// What came over the uplinks of all racks, of which each needs one copy.
    pub(crate) uplink_bytes: Option<u64>,
}

/// Peers that no fault hit, against the least time in which they alone can be done.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Healthy {
    pub(crate) n: usize,
    pub(crate) p50_s: f64,
    pub(crate) last_s: f64,
    pub(crate) bound_s: f64,
    pub(crate) ratio_last: f64,
}

/// A peer that a fault hit.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Affected {
    pub(crate) peer: String,
    pub(crate) what: String,
    /// None where it is not to be done.
    pub(crate) done_s: Option<f64>,
    /// What its card sent: to nobody, and it harmed nobody.
    pub(crate) sent_bytes: u64,
}

impl Measured {
    /// Sums up the runs of a system, of which there is at least one.
    pub(crate) fn of(system: &str, encrypted: bool, conditions: &Conditions<'_>, runs: &[Run]) -> Self {
        let Conditions { n, rate_mbit, goodput, size, cast } = *conditions;
        // There is at least one run.
        let over =
            |of: &dyn Fn(&Run) -> f64| median(&runs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN);
        let bytes = |of: &dyn Fn(&Run) -> u64| middle(runs.iter().map(of));
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
            faults: cast.faults.clone(),
            healthy: (!cast.faults.is_empty()).then(|| Healthy::of(conditions, runs)),
            affected: affected(cast, runs),
            uplink_bytes: cast.racks.map(|_| bytes(&|run| run.uplink_bytes.unwrap_or_default())),
        }
    }
}

impl Healthy {
    fn of(conditions: &Conditions<'_>, runs: &[Run]) -> Self {
        let cast = conditions.cast;
        let done: Vec<Vec<f64>> = runs
            .iter()
            .map(|run| {
                let peers = (0..).zip(&run.done_s).filter(|(peer, _)| cast.is_well(*peer));
                peers.filter_map(|(_, done)| *done).collect()
            })
            .collect();
        let over = |percent| {
            let by: Vec<f64> = done.iter().filter_map(|done| percentile(done, percent)).collect();
            median(&by).unwrap_or(f64::NAN)
        };
        let (last_s, bound_s) = (over(100), conditions.healthy_bound_s());
        Self {
            n: (0..conditions.n).filter(|peer| cast.is_well(*peer)).count(),
            p50_s: over(50),
            last_s,
            bound_s,
            ratio_last: last_s / bound_s,
        }
    }
}

/// Every peer that a fault hits, with the median of when it was done.
fn affected(cast: &Cast, runs: &[Run]) -> Vec<Affected> {
    let of = |(peer, role): (&usize, &Role)| {
        let done: Vec<f64> = runs.iter().filter_map(|run| run.done_s.get(*peer).copied().flatten()).collect();
        Affected {
            peer: format!("p{}", peer + 1),
            what: role.to_string(),
            done_s: median(&done),
            sent_bytes: middle(runs.iter().map(|run| run.sent_by(*peer))),
        }
    };
    cast.roles.iter().map(of).collect()
}

/// The upper median.
fn middle(bytes: impl Iterator<Item = u64>) -> u64 {
    let mut all: Vec<u64> = bytes.collect();
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
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
        if let Some(Healthy { n, p50_s, last_s, bound_s, ratio_last }) = &self.healthy {
            write!(
                out,
                "\n  with {}: {n} healthy peers, p50 {p50_s:.2} s, last {last_s:.2} s, bound {bound_s:.2} s, ratio {ratio_last:.2}",
                self.faults.join(", "),
            )?;
        }
        if let Some(bytes) = self.uplink_bytes {
            write!(out, "\n  over the racks' uplinks: {:.2} ×", to_f64(bytes) / to_f64(self.size))?;
        }
        for Affected { peer, what, done_s, sent_bytes } in &self.affected {
            let done = done_s.map_or("not to be done".to_owned(), |done_s| format!("{done_s:.2} s"));
            write!(out, "\n  {peer} ({what}): {done}, its card sent {} MiB", sent_bytes >> 20)?;
        }
        Ok(())
    }
}

/// Seconds by which so many hundredths of the peers that can be were done, the first at least.
pub(crate) fn done_by(run: &Run, percent: u8) -> f64 {
    let done: Vec<f64> = run.done_s.iter().copied().flatten().collect();
    percentile(&done, percent).unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use modelpack::quantity::Rate;

    use super::*;
    use crate::broadcast::{
        faults::tests::parse,
        meter::{Busy, Sample},
        system::Moved,
    };

    fn cast(flags: &str, peers: usize) -> Cast {
        Cast::choose(&parse(flags).unwrap(), peers, Rate(2_000_000)).unwrap()
    }

    fn run(last_s: f64, moved: Option<Moved>) -> Run {
        let sample = Sample { at_s: last_s, received: vec![0, 110], sent: vec![105, 5] };
        let busy = Busy { seconds: 1.0, percent: 80.0 };
        Run {
            done_s: vec![Some(1.0), Some(last_s)],
            busy,
            rss_anon_max: 7,
            moved,
            samples: vec![sample],
            uplink_bytes: None,
        }
    }

    #[test]
    fn the_result_is_the_median_run_against_the_bound() {
        let cast = cast("", 2);
        let conditions = Conditions { n: 2, rate_mbit: 8, goodput: 1e6, size: 4_000_000, cast: &cast };
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

    #[test]
    fn peers_that_are_well_are_reported_apart() {
        let cast = cast("--slow p2@0.1 --kill p3@50%", 3);
        let conditions = Conditions { n: 3, rate_mbit: 8, goodput: 1e6, size: 4_000_000, cast: &cast };
        let run = |well_s, slow_s| Run { done_s: vec![Some(well_s), Some(slow_s), None], ..run(0.0, None) };
        let measured =
            Measured::of("modelctl", true, &conditions, &[run(6.0, 44.0), run(5.0, 50.0), run(7.0, 60.0)]);
        assert!(
            (measured.bound_s - 40.0).abs() < 1e-9 && (measured.ratio_last - 1.25).abs() < 1e-9,
            "{measured:?}"
        );
        let healthy = measured.healthy.unwrap();
        assert_eq!(healthy.n, 1);
        assert!(
            (healthy.bound_s - 4.0).abs() < 1e-9 && (healthy.ratio_last - 1.5).abs() < 1e-9,
            "{healthy:?}"
        );
        let affected: Vec<_> =
            measured.affected.iter().map(|it| (it.peer.as_str(), it.what.as_str(), it.done_s)).collect();
        assert_eq!(affected, [("p2", "slow 0.1", Some(50.0)), ("p3", "kill 50%", None)]);
    }
}
