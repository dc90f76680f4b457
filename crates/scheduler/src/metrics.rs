//! What a scheduler shows of itself on `/metrics` and `/healthz`.
//!
//! Owns: the names of its numbers. Does not own: where they come from, which is the event loop (`driver`).

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use planner::{Charge, Planner, Standing};
use telemetry::{Buckets, Health, Page, Sample, Watched};

/// Bounds of the times of plans, in seconds: a join is planned within one millisecond, 10,000 peers within a hundred.
const PLAN_SECONDS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];

/// The numbers of one scheduler. The event loop writes them, whoever watches reads them.
#[derive(Debug)]
pub struct Metrics {
    peers: AtomicU64,
    swarms: AtomicU64,
    members: AtomicU64,
    suspect: AtomicU64,
    quarantined: AtomicU64,
    plans: AtomicU64,
    plan_seconds: Buckets<{ PLAN_SECONDS.len() }>,
    wrong_bytes: AtomicU64,
    silences: AtomicU64,
    activations: AtomicU64,
    take_overs: AtomicU64,
    is_standby: AtomicBool,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            peers: AtomicU64::new(0),
            swarms: AtomicU64::new(0),
            members: AtomicU64::new(0),
            suspect: AtomicU64::new(0),
            quarantined: AtomicU64::new(0),
            plans: AtomicU64::new(0),
            plan_seconds: Buckets::new(PLAN_SECONDS),
            wrong_bytes: AtomicU64::new(0),
            silences: AtomicU64::new(0),
            activations: AtomicU64::new(0),
            take_overs: AtomicU64::new(0),
            is_standby: AtomicBool::new(false),
        }
    }
}

impl Metrics {
    /// How things are after a batch of events.
    pub(crate) fn observe(&self, planner: &Planner, peers: usize) {
        let set = |gauge: &AtomicU64, count: usize| gauge.store(count as u64, Ordering::Relaxed);
        let (swarms, members) = planner.swarm_counts();
        set(&self.peers, peers);
        set(&self.swarms, swarms);
        set(&self.members, members);
        set(&self.suspect, planner.count_of(Standing::Suspect));
        set(&self.quarantined, planner.count_of(Standing::Quarantined));
    }

    /// So many plans went out, so long after what caused them was heard.
    pub(crate) fn planned(&self, plans: usize, took: Duration) {
        self.plans.fetch_add(plans as u64, Ordering::Relaxed);
        self.plan_seconds.time(took);
    }

    /// A peer accuses another one.
    pub(crate) fn accused(&self, charge: Charge) {
        let counter = match charge {
            Charge::WrongBytes => &self.wrong_bytes,
            Charge::Silence => &self.silences,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether another scheduler comes before this one now.
    pub(crate) fn outranked(&self, is_standby: bool) {
        if self.is_standby.swap(is_standby, Ordering::Relaxed) && !is_standby {
            self.activations.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The members of a swarm come with the plan of another scheduler.
    pub(crate) fn took_over(&self) {
        self.take_overs.fetch_add(1, Ordering::Relaxed);
    }
}

impl Watched for Metrics {
    fn metrics(&self) -> String {
        let read = |number: &AtomicU64| as_f64(number.load(Ordering::Relaxed));
        let is_active = f64::from(u8::from(!self.is_standby.load(Ordering::Relaxed)));
        let mut page = Page::new();
        let build: Sample<'_> = (&[("role", "scheduler"), ("version", env!("CARGO_PKG_VERSION"))], 1.0);
        page.gauge("modelctl_build_info", "Always 1.", &[build]);
        let mut gauge = |name, help, value: f64| page.gauge(name, help, &[(&[], value)]);
        gauge("modelctl_scheduler_active", "1 if this scheduler plans, 0 if it stands by.", is_active);
        gauge("modelctl_scheduler_peers", "Peers whose stream is open.", read(&self.peers));
        gauge("modelctl_scheduler_swarms", "Artifacts that peers have or want.", read(&self.swarms));
        gauge("modelctl_scheduler_members", "Peers, counted once in each swarm.", read(&self.members));
        let standings = [
            (&[("standing", "suspect")] as &[_], read(&self.suspect)),
            (&[("standing", "quarantined")], read(&self.quarantined)),
        ];
        let help = "Peers that are accused, also those that have left.";
        page.gauge("modelctl_scheduler_alarms", help, &standings);
        let charges = [
            (&[("charge", "wrong_bytes")] as &[_], read(&self.wrong_bytes)),
            (&[("charge", "silence")], read(&self.silences)),
        ];
        let help = "Times that a peer accused another one, believed or not.";
        page.counter("modelctl_scheduler_accusations_total", help, &charges);
        let mut counter = |name, help, value: f64| page.counter(name, help, &[(&[], value)]);
        counter("modelctl_scheduler_plans_total", "Plans sent to peers.", read(&self.plans));
        let help = "Times that this scheduler planned again after it had stood by.";
        counter("modelctl_scheduler_activations_total", help, read(&self.activations));
        let help = "Swarms under way that it took over from another scheduler.";
        counter("modelctl_scheduler_take_overs_total", help, read(&self.take_overs));
        let help = "From hearing a batch of news to the plans that follow.";
        page.histogram("modelctl_scheduler_plan_seconds", help, &self.plan_seconds);
        page.finish()
    }

    /// One that stands by is healthy: it is there when it is needed.
    fn health(&self) -> Health {
        Health::Serving(if self.is_standby.load(Ordering::Relaxed) { "standby" } else { "active" })
    }
}

#[expect(clippy::cast_precision_loss, reason = "2^53 of anything are more than are counted here")]
fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_planning_again_is_an_activation() {
        let metrics = Metrics::default();
        for is_standby in [false, true, true, false, false] {
            metrics.outranked(is_standby);
        }
        assert!(metrics.metrics().contains("\nmodelctl_scheduler_activations_total 1\n"));
        assert!(metrics.metrics().contains("\nmodelctl_scheduler_active 1\n"));
    }
}
