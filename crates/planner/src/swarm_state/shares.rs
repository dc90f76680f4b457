//! How many children a member's card is worth. Does not own who serves whom (`forest`).

use super::SwarmState;
use super::roster::{Rated, rounded};
use crate::forest::Node;

/// Up to so many members, shares are exact. Beyond, they stay as they are while they suffice: each would change a little
/// at each join, and move children for it.
const EXACT_MAX: u64 = 64;

/// What is shared out beyond what it takes, so that the next joins find it: one part of so many.
const EXTRA: u128 = 32;

/// How many stripes each may send to cards like its own: all that is taken, but for one copy, shared by what cards do, so
/// that every upload is used alike.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shares {
    edges: u128,
    weight: u128,
    mean: u64,
}

impl Shares {
    pub(super) fn budget(&self, weight: u64) -> u64 {
        let times = self.edges.div_ceil(self.weight.max(1)).max(1);
        u64::try_from(u128::from(weight) * times).unwrap_or(u64::MAX)
    }

    /// What peers that do not know their rate count as.
    pub(super) fn mean(&self) -> u64 {
        self.mean.max(1)
    }

    pub(super) fn note_mean(&mut self, sending: &Rated) {
        self.mean = rounded(sending.mean());
    }

    /// Says whether everybody has another share now.
    pub(super) fn adapt(&mut self, stripes: usize, wanting: &Rated, sending: &Rated) -> bool {
        let (children, weight) = (wanting.count, sending.weight(self.mean()));
        let fastest = u128::from(wanting.fastest.max(if wanting.known < children { self.mean() } else { 0 }));
        let edges = stripes as u128 * wanting.weight(self.mean()).saturating_sub(fastest);
        // Of what was shared out for a weight, less than three quarters suffice now.
        let is_ample = edges * self.weight < (self.edges * weight) / 4 * 3;
        let is_anew = children <= EXACT_MAX || self.edges == 0 || is_ample;
        if is_anew {
            let extra = if children <= EXACT_MAX { 0 } else { edges / EXTRA };
            *self = Self { edges: edges + extra, weight, ..*self };
        }
        is_anew
    }
}

impl SwarmState {
    /// Gives everybody its share of what it takes now. Where shares did not suffice, they only grow: those who have
    /// children keep them.
    pub(super) fn share_anew(&mut self, sending: &Rated) {
        let wanting = self.roster.wanting();
        let children = wanting.count;
        let is_short = self.forest.is_short();
        if is_short {
            self.shares = Shares { mean: self.shares.mean, ..Shares::default() };
            self.shares.adapt(self.entrants.len(), &wanting, sending);
        }
        let nodes: Vec<Node> = self.roster.nodes().collect();
        for node in nodes {
            let Some((_, budget)) = self.seat(node).filter(|_| self.forest.contains(node)) else { continue };
            let before = self.forest.budget(node);
            if children <= EXACT_MAX || !is_short || budget == 0 || budget > before {
                self.forest.set_budget(node, budget);
            }
        }
    }
}
