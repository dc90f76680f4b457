//! Children whose parent has just died: when they ask somebody else, and when bytes flow again. Does not own what they do
//! about it (crate `swarm`), nor what is made of the times (`failover`).

use std::collections::BTreeMap;
use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use planner::{PeerPlan, StripeSource};
use swarm::{Source, Swarm};

use super::World;
use crate::options::Orphan;

/// When it was, and each child with a stripe that it had from the dead.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    since: Duration,
    all: BTreeMap<(u32, usize), Orphan>,
}

impl World {
    /// Notes who loses a parent now.
    pub(super) fn note_orphans(&mut self, dead: u32) {
        let (parent, now) = (self.id_of(dead), self.queue.now());
        self.orphans.since = now;
        let sources = |plan: &PeerPlan| plan.stripes.iter().map(|part| part.source).collect();
        let its: Vec<StripeSource> =
            self.nodes[dead as usize].swarm.as_ref().and_then(Swarm::plan).map(sources).unwrap_or_default();
        for node in (0..self.origin()).filter(|node| *node != dead) {
            let Some(swarm) = &self.nodes[node as usize].swarm else { continue };
            let Some(plan) = swarm.plan() else { continue };
            let lacks = |stripe| {
                let mut missing = self.layout.all().pieces().filter(|piece| !swarm.have().contains(*piece));
                missing.any(|piece| plan.stripe_of(piece) == stripe)
            };
            let from_it = plan
                .stripes
                .iter()
                .enumerate()
                .filter(|(_, part)| part.source == StripeSource::Parent(parent));
            for (stripe, _) in from_it.filter(|(stripe, _)| lacks(*stripe)) {
                let stalls = swarm.stalls_at(parent).map(|at| at.saturating_sub(now));
                let orphan = Orphan {
                    node: node as usize,
                    stripe,
                    is_of_entrant: its.get(stripe) == Some(&StripeSource::Origin),
                    stalls,
                    asks: None,
                    predicted: None,
                    gap: None,
                };
                self.orphans.all.insert((node, stripe), orphan);
            }
        }
    }

    /// The orphan that a piece concerns, if it waits for bytes.
    fn orphan(&mut self, node: u32, piece: PieceIndex) -> Option<(Duration, &mut Orphan)> {
        if self.orphans.all.is_empty() {
            return None;
        }
        let plan = self.nodes[node as usize].swarm.as_ref().and_then(Swarm::plan)?;
        let stripe = PeerPlan::stripe_of(plan, piece);
        let elapsed = self.queue.now().saturating_sub(self.orphans.since);
        let orphan = self.orphans.all.get_mut(&(node, stripe))?;
        orphan.gap.is_none().then_some((elapsed, orphan))
    }

    /// A node has asked for a run.
    pub(super) fn orphan_asks(&mut self, node: u32, source: Source, run: Run) {
        let predicted = match source {
            Source::Peer(peer) => {
                let swarm = self.nodes[node as usize].swarm.as_ref();
                swarm.and_then(|swarm| swarm.predicted(peer))
            }
            Source::Origin => None,
        };
        for piece in run.pieces() {
            if let Some((elapsed, orphan)) = self.orphan(node, piece) {
                orphan.asks.get_or_insert(elapsed);
                orphan.predicted = orphan.predicted.or(predicted);
            }
        }
    }

    /// A piece has come.
    pub(super) fn orphan_gets(&mut self, node: u32, piece: PieceIndex) {
        if let Some((elapsed, orphan)) = self.orphan(node, piece) {
            orphan.gap = Some(elapsed);
        }
    }

    /// What became of all of them.
    pub(super) fn orphans(&self) -> Vec<Orphan> {
        self.orphans.all.values().cloned().collect()
    }

    /// A process that goes on living and does nothing: its streams stay open, and nothing comes from it.
    pub(super) fn hang(&mut self, node: u32) {
        self.note_orphans(node);
        self.over += usize::from(self.report.done[node as usize].is_none());
        (self.at(node).is_silent, self.at(node).is_hung) = (true, true);
        for (from, to) in self.network.pairs_of(node) {
            let rests = self.network.take(from, to);
            for (read, run) in rests.into_iter().filter(|_| from == node) {
                self.asked(from, to, (read, run));
            }
        }
    }
}
