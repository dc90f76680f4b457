//! Who can play which part in a plan, and who may be named to whom. Does not own who is chosen (`swarm_state`), or what
//! makes a standing (`quarantine`).

use std::collections::{BTreeMap, BTreeSet};

use crate::id::PeerId;
use crate::planner::Registered;
use crate::quarantine::Standing;

/// Whom a plan may name to whom.
pub(crate) struct Trust<'a>(pub(crate) &'a BTreeMap<PeerId, Registered>);

impl Trust<'_> {
    pub(crate) fn standing(&self, peer: PeerId) -> Standing {
        self.0.get(&peer).map(|registered| registered.standing).unwrap_or_default()
    }

    /// Nobody is sent to those who are quarantined, or to whom it accuses itself.
    pub(crate) fn may_serve(&self, source: PeerId, reader: PeerId) -> bool {
        self.standing(source) < Standing::Quarantined
            && self.0.get(&source).is_none_or(|registered| !registered.accusers.contains(&reader))
    }

    /// Those that may read from a holder, or can read by themselves; if there are none, all. Whoever accuses all holders
    /// and cannot read the origin gets nothing that it could give on.
    pub(crate) fn supplied(&self, serving: &[PeerId], holders: &[PeerId], reading: &[PeerId]) -> Vec<PeerId> {
        let has_source = |peer: &PeerId| {
            reading.contains(peer) || holders.iter().any(|holder| self.may_serve(*holder, *peer))
        };
        let supplied: Vec<PeerId> = serving.iter().copied().filter(has_source).collect();
        if supplied.is_empty() { serving.to_vec() } else { supplied }
    }

    /// Those in good standing; if there are none, those that are suspects.
    pub(crate) fn best(&self, candidates: &[PeerId]) -> Vec<PeerId> {
        let of =
            |standing| candidates.iter().copied().filter(|peer| self.standing(*peer) == standing).collect();
        let good: Vec<PeerId> = of(Standing::Good);
        if good.is_empty() { of(Standing::Suspect) } else { good }
    }
}

/// Who can play which part in the next plan.
pub(crate) struct Cast<'a> {
    pub(crate) trust: Trust<'a>,
    /// Those who want pieces, ascending.
    pub(crate) wanting: Vec<PeerId>,
    /// In a repair: those who want pieces and have not noticed, ascending. They are given right pieces, but what they
    /// have may be wrong, so that nobody reads from them.
    pub(crate) unaware: Vec<PeerId>,
    /// Those among them who may have children.
    pub(crate) serving: Vec<PeerId>,
    /// Those who have everything: first members, else seeds if no member can read the origin.
    pub(crate) holders: Vec<PeerId>,
    /// Those who announce a local artifact, ascending.
    pub(crate) seeds: Vec<PeerId>,
    /// Those who may be entrants, ascending.
    pub(crate) eligible: BTreeSet<PeerId>,
}

impl Cast<'_> {
    /// The holder that a member reads a stripe from, if it may read from any.
    pub(crate) fn holder_for(&self, peer: PeerId, stripe: usize) -> Option<PeerId> {
        let at = stripe % self.holders.len().max(1);
        let holders = self.holders[at..].iter().chain(&self.holders[..at]).copied();
        holders.filter(|holder| self.trust.may_serve(*holder, peer)).find(|holder| *holder != peer)
    }
}
