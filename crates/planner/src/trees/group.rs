//! A rack, a zone or the fleet: its members, which may be groups themselves, and the forest that they are in.
//!
//! Owns: the numbers that members have in it, and what each may send. Does not own: through whom a stripe comes into it
//! (`trees`).

use std::collections::BTreeMap;

use super::LEVELS;
use crate::forest::{Forest, Node, STRIPES};
use crate::swarm_state::Shares;

/// A rack with the peers in it, a zone with its racks, or the fleet with its zones.
#[derive(Debug)]
pub(super) struct Group {
    /// 0: the fleet; 1: a zone; 2: a rack.
    pub(super) level: usize,
    /// The group around it, and its number in the forest there.
    pub(super) above: Option<(usize, Node)>,
    pub(super) name: String,
    /// The groups in it that somebody is in, and those that may be used again.
    pub(super) by_name: BTreeMap<String, usize>,
    pub(super) vacant: Vec<usize>,
    pub(super) forest: Forest,
    pub(super) shares: Shares,
    /// Who has which number in the forest: a peer, or a group.
    pub(super) members: Vec<Option<u32>>,
    pub(super) free: Vec<Node>,
    /// What each may send; 0 where it serves nobody, as who is about to go.
    pub(super) given: Vec<u64>,
    pub(super) leaving: Vec<Node>,
    pub(super) new: Vec<Node>,
    /// What is sent out of it, for each stripe.
    pub(super) outside: [u64; STRIPES],
    /// Whom each stripe comes from, as of the last plan.
    pub(super) sources: [Option<Node>; STRIPES],
    /// Stripes that had no root have one.
    pub(super) is_first: bool,
    /// What is sent out of it has changed.
    pub(super) is_moved: bool,
}

impl Group {
    pub(super) fn new(level: usize, above: Option<(usize, Node)>, stripes: usize) -> Self {
        Self {
            level,
            above,
            name: String::new(),
            by_name: BTreeMap::new(),
            vacant: Vec::new(),
            forest: Forest::new(stripes),
            shares: Shares::default(),
            members: Vec::new(),
            free: Vec::new(),
            given: Vec::new(),
            leaving: Vec::new(),
            new: Vec::new(),
            outside: [0; STRIPES],
            sources: [None; STRIPES],
            is_first: false,
            is_moved: false,
        }
    }

    pub(super) fn is_rack(&self) -> bool {
        self.level + 1 == LEVELS
    }

    pub(super) fn enter(&mut self, member: u32) -> Node {
        let local = self.free.pop().unwrap_or_else(|| {
            self.members.push(None);
            self.given.push(0);
            Node::try_from(self.members.len() - 1).expect("fewer members than a number holds")
        });
        self.members[local as usize] = Some(member);
        local
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.len() == self.free.len()
    }

    /// Gives a member its share, less what it sends out of the group.
    pub(super) fn give(&mut self, local: Node, share: u64) {
        self.given[local as usize] = share;
        let is_root = |stripe: &usize| self.forest.root(*stripe) == Some(local);
        let outside: u64 =
            (0..STRIPES.min(self.forest.stripe_count())).filter(is_root).map(|at| self.outside[at]).sum();
        self.forest.set_budget(local, share.saturating_sub(outside));
    }

    pub(super) fn serving(&self) -> impl Iterator<Item = Node> + '_ {
        (0..).zip(&self.given).filter(|(_, share)| **share > 0).map(|(local, _)| local)
    }

    /// What the fastest of those does who serve.
    pub(super) fn fastest(&self) -> Option<u64> {
        self.serving().map(|local| self.forest.weight(local)).max()
    }

    /// Of how many stripes each is the root.
    pub(super) fn roots(&self) -> Vec<u32> {
        let mut counts = vec![0; self.members.len()];
        for root in (0..self.forest.stripe_count()).filter_map(|stripe| self.forest.root(stripe)) {
            counts[root as usize] += 1;
        }
        counts
    }

    /// Through whom one more stripe comes in best: one of the fastest, who has it already or is the root of few others.
    pub(super) fn cheapest(&self, (fastest, roots): (u64, &[u32])) -> Option<Node> {
        let able = self.serving().filter(|local| self.forest.weight(*local) == fastest);
        able.min_by_key(|local| (self.forest.is_child(*local), roots[*local as usize], *local))
    }
}
