//! Reads: asked, on their way, stuck, ended; what comes of them is proved by a disk of some speed. Does not own links.

use std::collections::BTreeMap;
use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use swarm::{Input, PieceOutcome, ReadId, ReadOutcome, Source};

use super::dice::is_struck;
use super::scenario::Nature;
use super::world::{Event, Life, World, node_of};
use crate::network::{Arrival, Crossed, ORIGIN_LANES, Served, lane_of};

/// Until when a read that is never answered ends: as the grants of the product do.
const GRANT_EXPIRY: Duration = Duration::from_secs(10);

/// How long a client tries before it says that the origin failed.
const ORIGIN_TRIES: Duration = Duration::from_secs(3);

/// What one read still wants.
type Rest = (ReadId, Run);

/// Reads that a source does not answer for now: across a partition, or because it is silent.
#[derive(Debug, Default)]
pub(super) struct Stuck(BTreeMap<(u32, u32), Vec<Rest>>);

impl Stuck {
    fn add(&mut self, from: u32, to: u32, rest: Rest) {
        self.0.entry((from, to)).or_default().push(rest);
    }

    /// Drops what one node waits for from another.
    pub(super) fn cut(&mut self, from: u32, to: u32) -> Vec<ReadId> {
        self.0.remove(&(from, to)).unwrap_or_default().into_iter().map(|(read, _)| read).collect()
    }

    fn drop_read(&mut self, from: u32, to: u32, read: ReadId) -> bool {
        let Some(rests) = self.0.get_mut(&(from, to)) else { return false };
        let before = rests.len();
        rests.retain(|(of, _)| *of != read);
        rests.len() < before
    }
}

impl World<'_> {
    pub(super) fn read(&mut self, node: u32, source: Source, (read, run): (ReadId, Run)) {
        self.fold([u64::from(node), read.0, u64::from(run.start.0) << 32 | u64::from(run.end.0)]);
        let from = match source {
            Source::Origin => self.origin(),
            Source::Peer(peer) => node_of(peer),
        };
        self.asked.insert((node, read), from);
        self.queue.later(Event::Asked(from, node, read, run));
    }

    fn is_silent(&self, node: u32) -> bool {
        let is_member = node < self.origin();
        is_member && matches!(self.member(node).nature, Nature::Silent { from } if from <= self.queue.now())
    }

    pub(super) fn asked(&mut self, from: u32, to: u32, (read, run): Rest) {
        if from == self.origin() {
            return self.asked_of_origin(to, (read, run));
        }
        let source = &self.nodes[from as usize];
        let serves = matches!(source.life, Life::Alive | Life::Leaving);
        if !serves || !source.children.contains_key(&to) {
            return self.end_read(to, read, ReadOutcome::SourceGone);
        }
        if self.is_cut(from, to) {
            return self.stuck.add(from, to, (read, run));
        }
        if self.is_silent(from) {
            self.stuck.add(from, to, (read, run));
            return self.queue.push(self.queue.now() + GRANT_EXPIRY, Event::Expired(to, read));
        }
        let has_all = |swarm: &swarm::Swarm| swarm.have().contains_run(run);
        let is_lie = matches!(self.member(from).nature, Nature::Lying { .. });
        if is_lie && !(source.swarm.as_ref().is_some_and(has_all) && self.can_vouch((from, to), run)) {
            return self.end_read(to, read, ReadOutcome::NotHere);
        }
        let path = self.path(from, to);
        self.network.send(&mut self.queue, (from, to), &path, (read, run));
    }

    fn asked_of_origin(&mut self, to: u32, (read, run): Rest) {
        if self.origin_outages > 0 {
            let at = self.queue.now() + ORIGIN_TRIES;
            self.asked.remove(&(to, read));
            return self.queue.push(at, Event::Ended(to, read, ReadOutcome::Retry));
        }
        if !self.nodes[to as usize].origin_ok {
            return self.end_read(to, read, ReadOutcome::SourceGone);
        }
        let path = [self.nodes[self.origin() as usize].card.0, self.nodes[to as usize].card.1];
        let lane = lane_of(self.origin(), self.origin(), read);
        self.network.send(&mut self.queue, (lane, to), &path, (read, run));
    }

    pub(super) fn cancel(&mut self, node: u32, read: ReadId) {
        let Some(from) = self.asked.get(&(node, read)).copied() else { return };
        let lane = lane_of(self.origin(), from, read);
        if self.network.cancel(lane, node, read) || self.stuck.drop_read(from, node, read) {
            self.end_read(node, read, ReadOutcome::Ok);
        }
    }

    /// A source owes nothing more of a read.
    pub(super) fn end_read(&mut self, node: u32, read: ReadId, outcome: ReadOutcome) {
        if self.asked.remove(&(node, read)).is_some() {
            self.queue.later(Event::Ended(node, read, outcome));
        }
    }

    pub(super) fn expired(&mut self, node: u32, read: ReadId) {
        if let Some(from) = self.asked.get(&(node, read)).copied()
            && self.stuck.drop_read(from, node, read)
        {
            self.end_read(node, read, ReadOutcome::SourceGone);
        }
    }

    /// A read is reported after all its pieces.
    pub(super) fn ended(&mut self, node: u32, read: ReadId, outcome: ReadOutcome) {
        let at = self.nodes[node as usize].proved_at;
        self.queue.push(at, Event::Local(node, Box::new(Input::ReadEnded { read, outcome })));
    }

    pub(super) fn served(&mut self, served: Served) {
        match self.network.served(&mut self.queue, served) {
            Arrival::None => {}
            Arrival::Bytes(from, to) if from >= self.origin() => self.fold([from.into(), to.into(), 0]),
            Arrival::Bytes(from, to) => {
                let peer = self.id_of(from);
                self.queue.push(self.queue.now(), Event::Local(to, Box::new(Input::Progress { peer })));
            }
            Arrival::Piece(crossed) => self.queue.later(Event::Crossed(crossed)),
        }
    }

    pub(super) fn crossed(&mut self, crossed: Crossed) {
        let Crossed { to, read, piece, is_last, .. } = crossed;
        let from = crossed.from.min(self.origin());
        self.oracle.crossed(from, to, piece);
        self.fold([from.into(), to.into(), piece.0.into()]);
        let is_bad = self.is_bad(from, piece) || !self.takes((from, to), piece);
        let outcome = if is_bad { PieceOutcome::Bad } else { PieceOutcome::Good };
        let now = self.queue.now();
        if is_bad {
            self.oracle.wronged(to, from);
        }
        let proof = self.member(to).proof;
        let state = self.at(to);
        state.proved_at = state.proved_at.max(now) + proof;
        let at = state.proved_at;
        if at > now && from < self.origin() {
            let peer = self.id_of(from);
            self.queue.push(now, Event::Local(to, Box::new(Input::Arrived { peer })));
        }
        self.queue.push(at, Event::Local(to, Box::new(Input::Piece { read, piece, outcome })));
        if is_last && self.asked.remove(&(to, read)).is_some() {
            self.ended(to, read, ReadOutcome::Ok);
        }
    }

    fn is_bad(&self, from: u32, piece: PieceIndex) -> bool {
        if from == self.origin() {
            return false;
        }
        let Nature::Corrupt { from: since, percent } = self.member(from).nature else { return false };
        since <= self.queue.now() && is_struck(self.scenario.seed, from, piece, percent)
    }

    /// As the product does: of whom nothing is asked, nobody is silent. What is missing waits for this node's disk.
    pub(super) fn excuse_unasked(&mut self, node: u32) {
        if self.nodes[node as usize].proved_at <= self.queue.now() {
            return;
        }
        let of_it = self.asked.range((node, ReadId(0))..(node + 1, ReadId(0)));
        let asked: Vec<u32> = of_it.map(|(_, from)| *from).collect();
        let links = self.nodes[node as usize].links.iter().filter(|(_, link)| link.is_open);
        let unasked: Vec<u32> = links.map(|(from, _)| *from).filter(|from| !asked.contains(from)).collect();
        for from in unasked {
            let peer = self.id_of(from);
            self.queue.push(self.queue.now(), Event::Local(node, Box::new(Input::Progress { peer })));
        }
    }

    /// What is on its way between nodes that are parted from now on stays there.
    pub(super) fn hold_bytes(&mut self) {
        for from in 0..self.origin() {
            for (_, to) in self.network.pairs_of(from).into_iter().filter(|(of, _)| *of == from) {
                if self.is_cut(from, to) {
                    for rest in self.network.take(from, to) {
                        self.stuck.add(from, to, rest);
                    }
                }
            }
        }
    }

    /// What was stuck goes on, where nothing is in its way any more.
    pub(super) fn free_bytes(&mut self) {
        for ((from, to), rests) in std::mem::take(&mut self.stuck.0) {
            for (read, run) in rests {
                self.asked(from, to, (read, run));
            }
        }
    }

    /// From now on a silent node answers nothing, also of what it was asked before.
    pub(super) fn fall_silent(&mut self, node: u32) {
        for (from, to) in self.network.pairs_of(node).into_iter().filter(|(from, _)| *from == node) {
            for (read, run) in self.network.take(from, to) {
                self.asked(from, to, (read, run));
            }
        }
    }

    /// The origin serves nobody from now on.
    pub(super) fn origin_out(&mut self) {
        self.origin_outages += 1;
        for lane in 0..ORIGIN_LANES {
            let lane = self.origin() + lane;
            for (from, to) in self.network.pairs_of(lane).into_iter().filter(|(from, _)| *from == lane) {
                for rest in self.network.take(from, to) {
                    self.asked_of_origin(to, rest);
                }
            }
        }
    }
}
