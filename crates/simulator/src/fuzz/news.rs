//! What nodes have proved and read from the origin, told to their children and schedulers, as `peer::have_feed` does it.
//! Does not own links.

use modelpack::layout::Run;
use planner::{PeerId, StripeSet};
use swarm::Input;

use super::world::{ARTIFACT, Event, World, node_of};
use crate::world::news::{BATCH_INTERVAL, IDLE_INTERVAL};

/// So much is said without waiting, as the product does.
const FLUSH_PIECES: u32 = 64;

impl World<'_> {
    pub(super) fn unsaid(&mut self, node: u32, run: Run) {
        let unsaid = &mut self.at(node).unsaid;
        let is_first = unsaid.is_empty();
        match unsaid.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => unsaid.push(run),
        }
        if unsaid.iter().map(Run::len).sum::<u32>() >= FLUSH_PIECES {
            self.flush(node);
        } else if is_first {
            self.queue.push(self.queue.now() + BATCH_INTERVAL, Event::Flush(node));
        }
    }

    pub(super) fn flush(&mut self, node: u32) {
        let runs = std::mem::take(&mut self.at(node).unsaid);
        if runs.is_empty() || !self.is_alive(node) || !self.is_shared(node) {
            return;
        }
        for (child, generation) in self.at(node).children.clone() {
            let state = self.at(node);
            let interest =
                state.interests.get(&child).filter(|(of, _)| *of == generation).map(|(_, set)| *set);
            let waiting = state.waiting.entry(child).or_default();
            let is_first = waiting.is_empty();
            waiting.extend(&runs);
            if wants(interest, &runs) {
                self.tell_waiting(node, child);
            } else if is_first {
                self.queue.push(self.queue.now() + IDLE_INTERVAL, Event::Waited(node, child));
            }
        }
        let peer = self.id_of(node);
        self.tell(node, planner::Input::Have { peer, artifact: ARTIFACT, runs });
    }

    pub(super) fn tell_waiting(&mut self, node: u32, child: u32) {
        let peer = self.id_of(node);
        let state = self.at(node);
        let Some(generation) = state.children.get(&child).copied() else { return };
        let runs = state.waiting.remove(&child).unwrap_or_default();
        if !runs.is_empty() {
            let input = Box::new(Input::Have { peer, runs });
            self.post((node, child), Event::Linked { child, parent: node, generation, input });
        }
    }

    pub(super) fn coming(&mut self, node: u32, epoch: u64, runs: Vec<Run>) {
        // Children hear of pieces before they hear that these are no longer on their way.
        self.flush(node);
        let peer = self.id_of(node);
        for (child, generation) in self.at(node).children.clone() {
            self.tell_waiting(node, child);
            let input = Box::new(Input::Coming { peer, epoch, runs: runs.clone() });
            self.post((node, child), Event::Linked { child, parent: node, generation, input });
        }
        self.at(node).coming = (epoch, runs);
    }

    /// A child says of which stripes it wants to hear at once.
    pub(super) fn interested(&mut self, child: u32, parent: PeerId, stripes: StripeSet) {
        let parent = node_of(parent);
        let Some(link) = self.at(child).links.get(&parent).filter(|link| link.is_open) else { return };
        let generation = link.generation;
        self.at(parent).interests.insert(child, (generation, stripes));
        if self.at(parent).waiting.get(&child).is_some_and(|runs| wants(Some(stripes), runs)) {
            self.tell_waiting(parent, child);
        }
    }
}

fn wants(interest: Option<StripeSet>, runs: &[Run]) -> bool {
    interest.is_none_or(|stripes| runs.iter().flat_map(Run::pieces).any(|piece| stripes.contains(piece)))
}
