//! Links between nodes: opened, heard on, broken. Does not own what is told on them (`news`), nor reads (`reads`).

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run, runs_of};
use planner::PeerId;
use swarm::{Input, ReadOutcome};

use super::dice::is_struck;
use super::scenario::Nature;
use super::streams::CONNECT_TIMEOUT;
use super::world::{Event, Life, Opened, World, node_of};

/// How long a node that has said farewell goes on serving, at most.
const FAREWELL: Duration = Duration::from_secs(10);

impl World<'_> {
    pub(super) fn connect(&mut self, child: u32, peer: PeerId) {
        let parent = node_of(peer);
        let link = self.at(child).links.entry(parent).or_insert(Opened { generation: 0, is_open: false });
        (link.generation, link.is_open) = (link.generation + 1, true);
        let generation = link.generation;
        if self.is_cut(child, parent) {
            let input = Box::new(Input::LinkDown { peer });
            let at = self.queue.now() + CONNECT_TIMEOUT;
            self.queue.push(at, Event::Linked { child, parent, generation, input });
            return;
        }
        if !self.is_alive(parent) || !self.is_shared(parent) {
            let input = Box::new(Input::LinkDown { peer });
            self.queue.later(Event::Linked { child, parent, generation, input });
            return;
        }
        self.at(parent).children.insert(child, generation);
        self.at(parent).waiting.remove(&child);
        let runs = self.claimed(parent);
        let (epoch, coming) = self.nodes[parent as usize].coming.clone();
        let in_flight_max = self.member(parent).grant;
        for input in [
            Input::LinkUp { peer, in_flight_max },
            Input::Have { peer, runs },
            Input::Coming { peer, epoch, runs: coming },
        ] {
            self.post((parent, child), Event::Linked { child, parent, generation, input: Box::new(input) });
        }
    }

    /// What a node says that it has.
    pub(super) fn claimed(&self, node: u32) -> Vec<Run> {
        let Some(swarm) = &self.nodes[node as usize].swarm else { return Vec::new() };
        let Nature::Lying { percent } = self.member(node).nature else { return swarm.have().runs() };
        let is_said = |piece: &PieceIndex| {
            swarm.have().contains(*piece) || is_struck(self.scenario.seed, node, *piece, percent)
        };
        runs_of(self.layout.all().pieces().filter(is_said))
    }

    /// The child hears something of a link, unless it has given that one up.
    pub(super) fn linked(&mut self, (child, parent): (u32, u32), generation: u64, input: Input) {
        let link = self.at(child).links.get_mut(&parent);
        let Some(link) = link.filter(|link| link.is_open && link.generation == generation) else { return };
        if matches!(input, Input::LinkDown { .. }) {
            link.is_open = false;
            if self.at(parent).children.get(&child) == Some(&generation) {
                self.at(parent).children.remove(&child);
            }
            self.cut(parent, child);
        }
        let input = self.vouched_news((child, parent), input);
        self.input(child, input);
    }

    pub(super) fn disconnect(&mut self, child: u32, parent: u32) {
        let Some(link) = self.at(child).links.get_mut(&parent) else { return };
        link.is_open = false;
        self.at(parent).children.remove(&child);
        self.cut(parent, child);
        let is_left = self.nodes[parent as usize].life == Life::Leaving;
        if is_left && self.nodes[parent as usize].children.is_empty() {
            self.queue.later(Event::End(parent));
        }
    }

    /// A link breaks: the child hears of it, and its reads end.
    pub(super) fn broken(&mut self, (child, parent): (u32, u32), generation: u64) {
        self.at(parent).children.remove(&child);
        let input = Box::new(Input::LinkDown { peer: self.id_of(parent) });
        self.queue.later(Event::Linked { child, parent, generation, input });
        self.cut(parent, child);
    }

    /// Whatever was asked of a node by another ends.
    pub(super) fn cut(&mut self, from: u32, to: u32) {
        let reads: Vec<_> = self.network.cut(from, to).into_iter().chain(self.stuck.cut(from, to)).collect();
        for read in reads {
            self.end_read(to, read, ReadOutcome::SourceGone);
        }
    }

    /// A node says farewell: what was asked of it is served, nothing more.
    pub(super) fn leave(&mut self, node: u32) {
        if !self.is_alive(node) {
            return;
        }
        self.oracle.lost(node);
        let state = self.at(node);
        state.life = Life::Leaving;
        state.remains = state.swarm.take().map(|swarm| swarm.have().runs()).unwrap_or_default();
        self.lose_session(node);
        for parent in 0..self.origin() {
            self.at(parent).children.remove(&node);
        }
        let coming: Vec<_> = self.network.pairs_of(node).into_iter().filter(|(_, to)| *to == node).collect();
        for (from, to) in coming {
            self.cut(from, to);
        }
        let peer = self.id_of(node);
        for (child, generation) in self.at(node).children.clone() {
            let input = Box::new(Input::LinkLeaving { peer });
            self.post((node, child), Event::Linked { child, parent: node, generation, input });
        }
        self.queue.push(self.queue.now() + FAREWELL, Event::End(node));
    }
}
