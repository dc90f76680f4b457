//! What nodes find out about their cards, and say of it, as `peer::meter` does it. Does not own how they find out
//! (`planner::capacity`), or what comes of it.

use std::collections::BTreeSet;
use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use planner::Measured;
use planner::capacity::{Foreign, LOOK_INTERVAL, Learner, Moved};

use super::{Event, World};

/// Looks between two reports: as often as the product tells its scheduler by default.
const LOOKS_A_REPORT: u32 = 10;

/// What a node has found out.
#[derive(Debug)]
pub(super) struct Learning {
    learner: Learner,
    /// Bytes that it has sent.
    pub(super) sent: u64,
    /// What others move on its card, in bytes per second.
    pub(super) foreign: u64,
    looks: u32,
}

impl Learning {
    pub(super) fn new() -> Self {
        Self { learner: Learner::new(None), sent: 0, foreign: 0, looks: 0 }
    }
}

impl World {
    /// Lets every node look at what it has moved.
    pub(super) fn look(&mut self) {
        let now = self.queue.now();
        for node in 0..self.origin() {
            let is_pressed = self.parents_asked(node) >= 2;
            let received = self.report.received[node as usize] * PIECE_BYTES;
            let state = &mut self.nodes[node as usize];
            if state.swarm.is_none() || state.is_hung {
                continue;
            }
            let foreign = state.learning.foreign();
            let moved = Moved { sent: state.learning.sent, received, is_pressed };
            state.learning.learner.look(now, moved, foreign);
            state.learning.looks += 1;
            self.report.learned[node as usize] = state.learning.learner.learned(now);
            if self.nodes[node as usize].learning.looks.is_multiple_of(LOOKS_A_REPORT) {
                self.say_measured(node);
            }
        }
        self.queue.push(now + LOOK_INTERVAL, Event::Look);
    }

    /// How many others than the origin have reads of a node to answer.
    fn parents_asked(&self, node: u32) -> usize {
        let asked = self.reads[node as usize].sources();
        let asked: BTreeSet<u32> = asked.filter(|from| *from < self.origin()).collect();
        asked.into_iter().filter(|from| self.nodes[*from as usize].is_alive).count()
    }

    /// Tells the scheduler what a node knows of its card: from this run, or else from before.
    pub(super) fn say_measured(&mut self, node: u32) {
        let before = self.options.learned.get(node as usize).copied().flatten();
        let learned = self.report.learned[node as usize].or(before);
        let (peer, foreign) = (self.id_of(node), self.nodes[node as usize].learning.foreign());
        let measured = Measured { learned, foreign, swarms: Vec::new() };
        self.tell_planner(planner::Input::Load { peer, sent: 0, received: 0, measured });
    }
}

impl Learning {
    fn foreign(&self) -> Option<Foreign> {
        let (sent, received, age) = (self.foreign, self.foreign, Duration::ZERO);
        (self.foreign > 0).then_some(Foreign { sent, received, age })
    }
}
