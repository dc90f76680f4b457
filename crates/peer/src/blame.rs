//! Who was found out in one transfer, for the report of whoever pulls.
//!
//! Owns: how a peer is named to people, and that each reason is told once. Does not own: who is blamed (`swarm`,
//! `repair`), or what the scheduler makes of it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use planner::{PeerId, PeerPlan};

/// A peer that gave, or vouched for, other bytes than the manifest's. They were refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blamed {
    /// Its name and address; for one that no plan has named, its number.
    pub peer: String,
    /// What it did.
    pub reason: String,
}

/// Everybody whom a plan has named, and how.
#[derive(Debug, Default)]
pub(crate) struct Members(BTreeMap<PeerId, String>);

impl Members {
    pub(crate) fn note(&mut self, plan: &PeerPlan) {
        let named = |at: &planner::Member| (at.id, format!("{} at {}", at.contact.name, at.contact.address));
        self.0.extend(plan.members.iter().map(named));
    }

    pub(crate) fn append(&mut self, mut later: Self) {
        self.0.append(&mut later.0);
    }

    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.0.contains_key(peer)
    }

    pub(crate) fn name(&self, peer: &PeerId) -> String {
        self.0.get(peer).cloned().unwrap_or_else(|| peer.to_string())
    }
}

/// Who was blamed. No more than there are members, each for at most two reasons a file.
#[derive(Debug, Default)]
pub(crate) struct Blames(Mutex<Vec<Blamed>>);

impl Blames {
    pub(crate) fn add(&self, blamed: Blamed) {
        // A panic elsewhere leaves the list whole: each change is one step.
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains(&blamed) {
            all.push(blamed);
        }
    }

    pub(crate) fn all(&self) -> Vec<Blamed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl From<Blamed> for wire::local::Blamed {
    fn from(Blamed { peer, reason }: Blamed) -> Self {
        Self { peer, reason }
    }
}

impl From<wire::local::Blamed> for Blamed {
    fn from(wire::local::Blamed { peer, reason }: wire::local::Blamed) -> Self {
        Self { peer, reason }
    }
}
