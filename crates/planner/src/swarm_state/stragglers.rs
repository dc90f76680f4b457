//! What a swarm's plan makes of those that are much slower than the others. An entrant that is slow at the origin reads
//! nothing for others for a while. Whoever is slow in all that it gets has a slower card than it says, and serves nobody.
//! Does not own the comparison (`pace`).
//!
//! Who has a slow parent is slow in one stripe only, and gets the others as quickly as anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::SwarmState;
use super::roster::{NOBODY, Part, Straggles};
use crate::forest::Node;
use crate::id::PeerId;
use crate::pace::{COMPARED_MIN, RECOVERS, STRAGGLES, Stretch};

/// A member among those that are compared: its number may be another one's later.
pub(super) type Who = (Node, PeerId);

impl SwarmState {
    /// When members are to be compared again, or a straggler is let back.
    pub(crate) fn pace_due(&self) -> Option<Duration> {
        let ends = self.straggling.values().map(|straggles| straggles.until);
        let stalls = self.stalls_due();
        self.comparison_due().into_iter().chain(self.gains_due()).chain(stalls).chain(ends).min()
    }

    /// If enough want anything.
    fn gains_due(&self) -> Option<Duration> {
        (self.roster.wanting().count >= COMPARED_MIN as u64).then(|| self.gains.next())
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

    /// Compares members if that is due; says whether the plan should change.
    pub(crate) fn compare_pace(&mut self, now: Duration) -> bool {
        let is_due = |at: Option<Duration>| at.is_some_and(|at| at <= now);
        let mut is_changed = is_due(self.stalls_due()) && self.judge_stalls(now);
        if is_due(self.comparison_due()) {
            for (node, _) in self.compare(now) {
                let straggles = Straggles { until: now + STRAGGLES, is_slow_card: false };
                is_changed |= self.note_straggler(node, straggles);
            }
        }
        if is_due(self.gains_due()) {
            for (node, _) in self.compare_gains(now) {
                let straggles = Straggles { until: now + RECOVERS, is_slow_card: true };
                is_changed |= self.note_straggler(node, straggles);
            }
        }
        self.straggling.retain(|node, straggles| {
            let is_over = straggles.until <= now;
            if let Some(member) = self.roster.get_mut(*node) {
                is_changed |= is_over;
                member.straggles = Some(*straggles).filter(|_| !is_over);
            }
            !is_over
        });
        is_changed
    }

    /// Says whether that is new.
    pub(super) fn note_straggler(&mut self, node: Node, straggles: Straggles) -> bool {
        let before = self.straggling.get(&node).copied();
        let until = before.map_or(straggles.until, |before| before.until.max(straggles.until));
        let is_slow_card = straggles.is_slow_card || before.is_some_and(|before| before.is_slow_card);
        self.straggling.insert(node, Straggles { until, is_slow_card });
        before.is_none_or(|before| before.is_slow_card != is_slow_card)
    }

    fn compare_gains(&mut self, now: Duration) -> BTreeSet<Who> {
        let mean = self.mean;
        let wanting = self.roster.nodes().filter_map(|node| {
            let member = self.roster.get(node)?;
            let class = member.class.filter(|class| class.part == Part::Wanting)?;
            let (has, straggles) = (member.have.len(), member.straggles.is_some());
            let weight = if class.claims > 0 { class.claims } else { mean };
            let stretch = Stretch { has, lacks: self.piece_count - has, weight, straggles };
            Some(((node, member.peer), stretch))
        });
        let wanting: Vec<(Who, Stretch)> = wanting.collect();
        self.gains.compare(now, &wanting)
    }

    fn compare(&mut self, now: Duration) -> BTreeSet<Who> {
        let mut entrants: BTreeMap<Who, Stretch> = BTreeMap::new();
        for (stripe, entrant) in self.entrants.iter().enumerate() {
            let Some((node, member)) = entrant.and_then(|at| Some((at, self.roster.get(at)?))) else {
                continue;
            };
            let nothing = Stretch { has: 0, lacks: 0, weight: 1, straggles: false };
            let stretch = entrants.entry((node, member.peer)).or_insert(nothing);
            stretch.has += member.held[stripe];
            stretch.lacks += self.stripe_size(stripe) - member.held[stripe];
        }
        let entrants: Vec<(Who, Stretch)> = entrants.into_iter().collect();
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
