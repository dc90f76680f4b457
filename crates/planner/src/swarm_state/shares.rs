//! How many children a member's card is worth. Does not own who serves whom (`forest`).

use super::SwarmState;
use super::roster::Rated;

/// Up to so many members, shares are exact. Beyond, they stay as they are while they suffice: each would change a little
/// at each join, and move children for it.
const EXACT_MAX: u64 = 64;

/// How many stripes each may send to cards like its own: all that is taken, but for one copy, shared by what cards do, so
/// that every upload is used alike.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Shares {
    edges: u128,
    weight: u128,
}

/// What is to be shared out among whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work<'a> {
    pub(crate) stripes: usize,
    pub(crate) wanting: &'a Rated,
    pub(crate) sending: &'a Rated,
    /// What those count as who do not know their rate.
    pub(crate) mean: u64,
    /// What others take.
    pub(crate) outside: u64,
}

impl Shares {
    pub(crate) fn budget(&self, weight: u64) -> u64 {
        let times = self.edges.div_ceil(self.weight.max(1)).max(1);
        u64::try_from(u128::from(weight) * times).unwrap_or(u64::MAX)
    }

    /// Says whether everybody has another share now.
    pub(crate) fn adapt(&mut self, work: &Work<'_>) -> bool {
        let Work { stripes, wanting, sending, mean, outside } = *work;
        let (children, weight) = (wanting.count, sending.weight(mean));
        let fastest = u128::from(wanting.fastest.max(if wanting.known < children { mean } else { 0 }));
        let edges = stripes as u128 * wanting.weight(mean).saturating_sub(fastest) + u128::from(outside);
        // Of what was shared out for a weight, less than three quarters suffice now.
        let is_ample = edges * self.weight < (self.edges * weight) / 4 * 3;
        let is_anew = children <= EXACT_MAX || self.edges == 0 || is_ample;
        if is_anew {
            *self = Self { edges, weight };
        }
        is_anew
    }
}

impl SwarmState {
    /// Says whether everybody in a rack has another share now.
    pub(super) fn adapt_shares(&mut self, rack: usize) -> bool {
        let (wanting, sending) = self.roster.rated_in(rack);
        let (stripes, mean) = (self.entrants.len(), self.mean);
        let (shares, outside) = self.trees.shares_mut(rack);
        shares.adapt(&Work { stripes, wanting: &wanting, sending: &sending, mean, outside })
    }

    /// Gives everybody in a rack its share of what it takes now. Where shares did not suffice, they only grow: those who
    /// have children keep them.
    pub(super) fn share_anew(&mut self, rack: usize) {
        let children = self.roster.rated_in(rack).0.count;
        let is_short = self.trees.is_short(rack);
        if is_short {
            *self.trees.shares_mut(rack).0 = Shares::default();
            self.adapt_shares(rack);
        }
        for node in self.trees.peers_of(rack) {
            let Some((_, share)) = self.seat(node) else { continue };
            let is_free = children <= EXACT_MAX || !is_short || share == 0;
            let least = if is_free { 0 } else { self.trees.given(node) };
            self.trees.give(node, share.max(least));
        }
    }
}
