//! What swarms want done, and what comes of it: links, reads, announcements. Does not own faults.

use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, Run};
use planner::PeerId;
use swarm::{Input, Output, PieceOutcome, ReadId, ReadOutcome, Source};

use super::news::Child;
use super::{ARTIFACT, Event, World, node_of};
use crate::network::{Arrival, Crossed, HOPS_MAX, Served, lane_of};

/// Until when a read that is never answered ends: as the grants of the product do.
const GRANT_EXPIRY: Duration = Duration::from_secs(10);

/// How long a process that hangs is waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads that a link grants.
const IN_FLIGHT_MAX: u32 = 16;

impl World {
    pub(super) fn input(&mut self, node: u32, input: Input) {
        let now = self.queue.now();
        let state = &mut self.nodes[node as usize];
        let Some(swarm) = state.swarm.as_mut().filter(|_| !state.is_hung) else { return };
        swarm.handle(now, input);
        let mut outputs = std::mem::take(&mut self.outputs);
        while let Some(output) = swarm.poll() {
            outputs.push(output);
        }
        let wake = swarm.next_wake();
        for output in outputs.drain(..) {
            self.output(node, output);
        }
        self.outputs = outputs;
        let set = &mut self.nodes[node as usize].wake;
        if let Some(at) = wake
            && set.is_none_or(|set| at < set || set <= now)
        {
            *set = Some(at);
            self.queue.push(at, Event::Tick(node));
        }
    }

    fn output(&mut self, node: u32, output: Output) {
        let me = self.id_of(node);
        match output {
            Output::Connect { peer, .. } => self.connect(node, peer),
            Output::Disconnect { peer } => self.disconnect(node, node_of(peer)),
            Output::Read { read, source, run, .. } => {
                self.fold([u64::from(node), read.0, u64::from(run.start.0) << 32 | u64::from(run.end.0)]);
                let from = match source {
                    Source::Origin => self.origin(),
                    Source::Peer(peer) => node_of(peer),
                };
                self.reads[node as usize].insert(read, from);
                self.orphan_asks(node, source, run);
                self.queue.later(Event::Asked(from, node, read, run));
            }
            Output::Cancel { read } => {
                if let Some(from) = self.reads[node as usize].get(read)
                    && self.network.cancel(lane_of(self.origin(), from, read), node, read)
                {
                    self.later_input(node, Input::ReadEnded { read, outcome: ReadOutcome::Ok });
                }
            }
            Output::Announce { run } => self.proved(node, run),
            Output::Interest { peer, stripes } => self.interested(node, node_of(peer), stripes),
            Output::Coming { epoch, runs } => self.coming(node, (epoch, runs)),
            Output::OriginLost => {}
            Output::Blame { peer, piece } => {
                self.report.blamed.insert(node_of(peer) as usize);
                let (about, piece) = (peer, piece.0);
                self.tell_planner(planner::Input::Complaint { peer: me, artifact: ARTIFACT, about, piece });
            }
            Output::Stalled { peer } => {
                self.tell_planner(planner::Input::Stall { peer: me, artifact: ARTIFACT, about: peer });
            }
            Output::Silent { peer } => {
                self.tell_planner(planner::Input::Silence { peer: me, artifact: ARTIFACT, about: peer });
            }
            Output::Complete => {
                self.report.done[node as usize] = Some(self.queue.now());
                self.over += 1;
            }
            Output::Failed { .. } => {
                self.report.failed.push(node as usize);
                self.over += 1;
            }
        }
    }

    fn connect(&mut self, node: u32, peer: PeerId) {
        let parent = node_of(peer);
        let state = &self.nodes[parent as usize];
        if state.is_hung {
            let at = self.queue.now() + CONNECT_TIMEOUT;
            return self.queue.push(at, Event::Input(node, Box::new(Input::LinkDown { peer })));
        }
        let Some(swarm) = state.swarm.as_ref().filter(|_| state.is_alive) else {
            return self.later_input(node, Input::LinkDown { peer });
        };
        let (runs, (epoch, coming)) = (swarm.have().runs(), state.coming.clone());
        let state = self.at(parent);
        let child = Child::new(node, state.news.len(), state.coming.clone());
        match state.children.binary_search_by_key(&node, |child| child.node) {
            Ok(at) => state.children[at] = child,
            Err(at) => state.children.insert(at, child),
        }
        self.later_input(node, Input::LinkUp { peer, in_flight_max: IN_FLIGHT_MAX });
        self.later_input(node, Input::Have { peer, runs });
        self.later_input(node, Input::Coming { peer, epoch, runs: coming });
    }

    fn disconnect(&mut self, node: u32, parent: u32) {
        self.at(parent).children.retain(|child| child.node != node);
        for read in self.network.cut(parent, node) {
            self.later_input(node, Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
        }
    }

    pub(super) fn asked(&mut self, from: u32, to: u32, (read, run): (ReadId, Run)) {
        let source = &self.nodes[from as usize];
        let is_link =
            from == self.origin() || source.children.binary_search_by_key(&to, |child| child.node).is_ok();
        if source.is_silent {
            let ended = Input::ReadEnded { read, outcome: ReadOutcome::SourceGone };
            self.queue.push(self.queue.now() + GRANT_EXPIRY, Event::Input(to, Box::new(ended)));
        } else if source.is_alive && is_link {
            let (hops, path) = self.path(from, to);
            let lane = lane_of(self.origin(), from, read);
            self.network.send(&mut self.queue, (lane, to), &path[..hops], (read, run));
        } else {
            self.later_input(to, Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
        }
    }

    /// From card to card, and where they are not in one rack, by way of uplinks: how many stations, and which.
    fn path(&self, from: u32, to: u32) -> (usize, [u32; HOPS_MAX]) {
        let (out, into) = (self.rack_of(from), self.rack_of(to));
        let is_apart = out != into;
        let out = out.filter(|_| is_apart).map(|rack| self.uplinks[rack].0);
        let into = into.filter(|_| is_apart).map(|rack| self.uplinks[rack].1);
        let cards = (self.nodes[from as usize].card.0, self.nodes[to as usize].card.1);
        let thin = self.nodes[to as usize].from_origin.filter(|_| from == self.origin());
        let (mut hops, mut path) = (0, [0; HOPS_MAX]);
        for station in [Some(cards.0), thin, out, into, Some(cards.1)].into_iter().flatten() {
            path[hops] = station;
            hops += 1;
        }
        (hops, path)
    }

    pub(super) fn served(&mut self, served: Served) {
        match self.network.served(&mut self.queue, served) {
            Arrival::None => {}
            Arrival::Bytes(from, to) if from >= self.origin() => self.fold([from.into(), to.into(), 0]),
            Arrival::Bytes(from, to) => {
                let peer = self.id_of(from);
                self.input(to, Input::Progress { peer });
            }
            Arrival::Piece(crossed) => self.queue.later(Event::Crossed(crossed)),
        }
    }

    pub(super) fn crossed(&mut self, crossed: Crossed) {
        let Crossed { to, read, piece, is_last, .. } = crossed;
        let from = crossed.from.min(self.origin());
        if from == self.origin() {
            self.report.origin_bytes += PIECE_BYTES;
        } else if self.at(from).is_seed {
            self.report.seed_bytes += PIECE_BYTES;
        }
        if from != self.origin() {
            self.at(from).learning.sent += PIECE_BYTES;
        }
        if from != self.origin() && self.rack_of(from) != self.rack_of(to) {
            self.report.core_bytes += PIECE_BYTES;
        }
        if self.at(to).swarm.is_none() {
            return;
        }
        self.report.received[to as usize] += 1;
        self.orphan_gets(to, piece);
        self.fold([from.into(), to.into(), piece.0.into()]);
        let is_corrupt = self.at(from).is_corrupt;
        let outcome = if is_corrupt { PieceOutcome::Bad } else { PieceOutcome::Good };
        let peer = (from != self.origin()).then(|| self.id_of(from));
        self.prove(to, peer, Input::Piece { read, piece, outcome });
        if is_last {
            self.reads[to as usize].remove(read);
            self.read_is_over(to, read);
        }
    }
}
