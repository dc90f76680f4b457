//! What a swarm's plan makes of entrants that are much slower than the others: they read nothing for others for a while.
//! Does not own the comparison (`pace`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::SwarmState;
use crate::id::PeerId;
use crate::pace::{COMPARED_MIN, STRAGGLES, Stretch};

impl SwarmState {
    /// When entrants are to be compared again, or a straggler is let back.
    pub(crate) fn pace_due(&self) -> Option<Duration> {
        let ends = self.members.values().filter_map(|member| member.straggles_until);
        self.comparison_due().into_iter().chain(ends).min()
    }

    /// If enough have something left to read.
    fn comparison_due(&self) -> Option<Duration> {
        let is_reading = |(stripe, entrant): (usize, &Option<PeerId>)| {
            let entrant = entrant.and_then(|entrant| self.members.get(&entrant));
            entrant.is_some_and(|member| member.held[stripe] < self.stripe_size(stripe))
        };
        let entrants: BTreeSet<PeerId> = self.entrants.iter().flatten().copied().collect();
        let is_due = entrants.len() >= COMPARED_MIN && self.entrants.iter().enumerate().any(is_reading);
        is_due.then(|| self.pace.next())
    }

    /// Compares entrants if that is due; says whether the plan should change.
    pub(crate) fn compare_pace(&mut self, now: Duration) -> bool {
        let is_due = self.comparison_due().is_some_and(|at| at <= now);
        let straggling = if is_due { self.straggling(now) } else { BTreeSet::new() };
        let mut is_changed = false;
        for (peer, member) in &mut self.members {
            if straggling.contains(peer) {
                is_changed |= member.straggles_until.is_none();
                member.straggles_until = Some(now + STRAGGLES);
            } else if member.straggles_until.is_some_and(|until| until <= now) {
                member.straggles_until = None;
                is_changed = true;
            }
        }
        is_changed
    }

    fn straggling(&mut self, now: Duration) -> BTreeSet<PeerId> {
        let mut entrants: BTreeMap<PeerId, Stretch> = BTreeMap::new();
        for (stripe, entrant) in self.entrants.iter().enumerate() {
            let Some((entrant, member)) = entrant.and_then(|at| Some((at, self.members.get(&at)?))) else {
                continue;
            };
            let stretch = entrants.entry(entrant).or_insert(Stretch { has: 0, lacks: 0 });
            stretch.has += member.held[stripe];
            stretch.lacks += self.stripe_size(stripe) - member.held[stripe];
        }
        self.pace.compare(now, &entrants)
    }

    fn stripe_size(&self, stripe: usize) -> u32 {
        let stripes = u32::try_from(self.entrants.len()).expect("at most STRIPES");
        let stripe = u32::try_from(stripe).expect("at most STRIPES");
        let round = stripes * self.stripe_pieces;
        let rest = (self.piece_count % round).saturating_sub(stripe * self.stripe_pieces);
        self.piece_count / round * self.stripe_pieces + rest.min(self.stripe_pieces)
    }

    pub(super) fn straggles(&self, peer: PeerId) -> bool {
        self.members.get(&peer).is_some_and(|member| member.straggles_until.is_some())
    }

    /// Those that nobody has to wait for long, if there are any.
    pub(super) fn not_straggling(&self, peers: Vec<PeerId>) -> Vec<PeerId> {
        let quick: Vec<PeerId> = peers.iter().copied().filter(|peer| !self.straggles(*peer)).collect();
        if quick.is_empty() { peers } else { quick }
    }
}
