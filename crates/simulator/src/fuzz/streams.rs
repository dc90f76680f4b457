//! Control streams: what is said arrives in order, late where it is delayed, and not at all across a broken one. Does not
//! own what is said (`links`, `schedulers`) or which streams break when (`faults`).

use std::collections::BTreeMap;
use std::time::Duration;

use super::dice::Dice;
use super::scenario::{Fault, Scenario};
use super::world::{Event, LATENCY, World};

/// Schedulers are numbered from here as ends of streams.
const SCHEDULERS: u32 = 1 << 20;

/// How long making a connection may take.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The end of a stream that a scheduler is.
pub(super) fn scheduler_end(scheduler: u32) -> u32 {
    SCHEDULERS + scheduler
}

/// How the streams are.
#[derive(Debug, Default)]
pub(super) struct Streams {
    /// From the first fault of the network on, so that a clean one costs nothing.
    is_disturbed: bool,
    /// Faults that part the fleet, as their numbers in the scenario.
    partitions: Vec<usize>,
    /// Nodes whose messages take longer.
    delays: Vec<(u32, Duration)>,
    /// When the last message between two ends arrives.
    last: BTreeMap<(u32, u32), Duration>,
    /// What waits for a partition to heal.
    held: Vec<((u32, u32), Event)>,
}

fn side_of(end: u32, (far, far_schedulers): (u64, u64)) -> bool {
    match end.checked_sub(SCHEDULERS) {
        Some(scheduler) => far_schedulers >> scheduler & 1 == 1,
        None => end < 64 && far >> end & 1 == 1,
    }
}

impl Streams {
    /// Whether one end is out of the other's reach. The origin is in everybody's.
    pub(super) fn is_cut(&self, scenario: &Scenario, one: u32, other: u32) -> bool {
        self.partitions.iter().any(|at| is_between(&scenario.faults[*at].1, one, other))
    }

    pub(super) fn part(&mut self, at: usize) {
        self.is_disturbed = true;
        self.partitions.push(at);
    }

    pub(super) fn delay(&mut self, node: u32, by: Duration) {
        self.is_disturbed = true;
        self.delays.push((node, by));
    }

    pub(super) fn hurry(&mut self, node: u32, by: Duration) {
        if let Some(at) = self.delays.iter().position(|delay| *delay == (node, by)) {
            self.delays.remove(at);
        }
    }

    pub(super) fn is_late(&self, node: u32) -> bool {
        self.delays.iter().any(|(of, _)| *of == node)
    }

    /// When what is said now arrives: in the order in which it was said.
    fn arrives(&mut self, now: Duration, ends: (u32, u32), dice: &mut Dice) -> Duration {
        let late = self.delays.iter().filter(|(node, _)| *node == ends.0 || *node == ends.1);
        let late: Duration = late.map(|(_, by)| *by / 2 + dice.moment(*by / 2)).sum();
        let last = self.last.entry(ends).or_default();
        *last = (*last).max(now + LATENCY + late);
        *last
    }
}

/// Whether a fault is between two ends.
pub(super) fn is_between(fault: &Fault, one: u32, other: u32) -> bool {
    match *fault {
        Fault::Partition { far, far_schedulers, .. } => {
            side_of(one, (far, far_schedulers)) != side_of(other, (far, far_schedulers))
        }
        Fault::Stop { node, .. } => (one as usize == node) != (other as usize == node),
        _ => false,
    }
}

impl World<'_> {
    pub(super) fn is_cut(&self, one: u32, other: u32) -> bool {
        let origin = self.origin();
        let is_origin = |end| (origin..SCHEDULERS).contains(&end);
        !is_origin(one) && !is_origin(other) && self.streams.is_cut(self.scenario, one, other)
    }

    /// Says something from one end to the other.
    pub(super) fn post(&mut self, ends: (u32, u32), event: Event) {
        if !self.streams.is_disturbed {
            self.queue.later(event);
        } else if self.is_cut(ends.0, ends.1) {
            self.streams.held.push((ends, event));
        } else {
            let at = self.streams.arrives(self.queue.now(), ends, &mut self.dice);
            self.queue.push(at, event);
        }
    }

    /// A partition has healed: what waited goes on.
    pub(super) fn join_sides(&mut self, at: usize) {
        self.streams.partitions.retain(|other| *other != at);
        for (ends, event) in std::mem::take(&mut self.streams.held) {
            self.post(ends, event);
        }
    }
}
