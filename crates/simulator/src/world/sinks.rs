//! Disks and hash cores that are slower than a card. Does not own what is made of a piece that is proved (crate `swarm`).

use std::time::Duration;

use swarm::{Input, ReadId};

use super::{Event, World};

/// What proves pieces: one after another, or several side by side.
#[derive(Clone, Debug, Default)]
pub(super) struct Sink {
    /// How long a piece takes.
    a_piece: Duration,
    /// When each of those that work side by side is free; none where it takes no time at all.
    free_at: Vec<Duration>,
}

impl Sink {
    pub(super) fn new(a_piece: Duration, lanes: u32) -> Self {
        Self { a_piece, free_at: vec![Duration::ZERO; lanes.max(1) as usize] }
    }

    /// When a piece that comes now is proved.
    fn takes(&mut self, now: Duration) -> Duration {
        let Some(free_at) = self.free_at.iter_mut().min() else { return now };
        *free_at = now.max(*free_at) + self.a_piece;
        *free_at
    }

    /// When all that has come is.
    fn is_done_at(&self, now: Duration) -> Duration {
        self.free_at.iter().copied().max().unwrap_or_default().max(now)
    }
}

impl World {
    /// A piece has come that is to be proved; `peer` sent it, if no origin did.
    pub(super) fn prove(&mut self, node: u32, peer: Option<planner::PeerId>, piece: Input) {
        let now = self.queue.now();
        let at = self.at(node).sink.takes(now);
        if at <= now {
            return self.input(node, piece);
        }
        if let Some(peer) = peer {
            self.input(node, Input::Arrived { peer });
        }
        self.queue.push(at, Event::Input(node, Box::new(piece)));
    }

    /// A read has brought everything, and is reported after all its pieces.
    pub(super) fn read_is_over(&mut self, node: u32, read: ReadId) {
        let now = self.queue.now();
        let at = self.nodes[node as usize].sink.is_done_at(now);
        let ended = Input::ReadEnded { read, outcome: swarm::ReadOutcome::Ok };
        if at <= now {
            return self.input(node, ended);
        }
        self.queue.push(at, Event::Input(node, Box::new(ended)));
    }
}
