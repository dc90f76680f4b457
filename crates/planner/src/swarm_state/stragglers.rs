//! What a swarm's plan makes of entrants that are much slower than the others: they read nothing for others for a while.
//! Does not own the comparison (`pace`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::SwarmState;
use super::roster::NOBODY;
use crate::forest::Node;
use crate::id::PeerId;
use crate::pace::{COMPARED_MIN, STRAGGLES, Stretch};

impl SwarmState {
    /// When entrants are to be compared again, or a straggler is let back.
    pub(crate) fn pace_due(&self) -> Option<Duration> {
        let ends = self.straggling.values().copied();
        self.comparison_due().into_iter().chain(ends).min()
    }

    /// If enough have something left to read.
    fn comparison_due(&self) -> Option<Duration> {
        let is_reading = |(stripe, entrant): (usize, &Option<Node>)| {
            let entrant = entrant.and_then(|entrant| self.roster.get(entrant));
            entrant.is_some_and(|member| member.held[stripe] < self.stripe_size(stripe))
        };
        let is_due = self.has_compared_min() && self.entrants.iter().enumerate().any(is_reading);
        is_due.then(|| self.pace.next())
    }

    /// Whether so many members are entrants that one is in the middle. This is asked at each piece.
    fn has_compared_min(&self) -> bool {
        let (mut distinct, mut count) = ([NOBODY; COMPARED_MIN], 0);
        for entrant in self.entrants.iter().flatten() {
            if count < COMPARED_MIN && !distinct[..count].contains(entrant) {
                distinct[count] = *entrant;
                count += 1;
            }
        }
        count == COMPARED_MIN
    }

    /// Compares entrants if that is due; says whether the plan should change.
    pub(crate) fn compare_pace(&mut self, now: Duration) -> bool {
        let is_due = self.comparison_due().is_some_and(|at| at <= now);
        let found = if is_due { self.compare(now) } else { BTreeSet::new() };
        let mut is_changed = false;
        for node in found.iter().filter_map(|peer| self.roster.node(*peer)) {
            is_changed |= self.straggling.insert(node, now + STRAGGLES).is_none();
        }
        let over: Vec<Node> =
            self.straggling.iter().filter(|(_, until)| **until <= now).map(|(node, _)| *node).collect();
        for node in over {
            self.straggling.remove(&node);
            if let Some(member) = self.roster.get_mut(node) {
                member.straggles_until = None;
                is_changed = true;
            }
        }
        for (node, until) in &self.straggling {
            if let Some(member) = self.roster.get_mut(*node) {
                member.straggles_until = Some(*until);
            }
        }
        is_changed
    }

    fn compare(&mut self, now: Duration) -> BTreeSet<PeerId> {
        let mut entrants: BTreeMap<PeerId, Stretch> = BTreeMap::new();
        for (stripe, entrant) in self.entrants.iter().enumerate() {
            let Some(member) = entrant.and_then(|at| self.roster.get(at)) else { continue };
            let stretch = entrants.entry(member.peer).or_insert(Stretch { has: 0, lacks: 0 });
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
}
