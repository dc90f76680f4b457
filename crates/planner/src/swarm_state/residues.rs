//! How a running plan follows what is left of its members' cards. Does not own what that is (`cards`).
//!
//! Whoever's rate changes moves with all its children, and they are out of work for as long as that takes. So a plan
//! follows seldom, only what is clearly another rate relative to the others', and not for what is done soon anyway. Whoever
//! joins counts with what is left then.

use std::time::Duration;

use super::SwarmState;
use super::roster::{Part, rounded};
use crate::forest::Node;
use crate::id::PeerId;

/// After the first change it waits this long: others who notice the same say so within two reports.
const SETTLES: Duration = Duration::from_secs(2);

/// Least time between two plans of one swarm that follow rates.
const INTERVAL: Duration = Duration::from_secs(10);

/// Rates have changed that are so many times more or less, relative to the others'.
const CHANGED: f64 = 1.5;

/// Of what they lack, so much must be left to those who want something, or else it is not worth it.
const LACKING_MIN: f64 = 0.25;

/// When a swarm's rates are looked through.
#[derive(Debug, Default)]
pub(super) struct Review {
    due: Option<Duration>,
    last: Option<Duration>,
}

impl SwarmState {
    /// What is left of a member's card may be something else than before.
    pub(crate) fn rate_may_have_changed(&mut self, now: Duration, peer: PeerId) {
        if self.has(peer) {
            self.rates_may_have_changed(now);
        }
    }

    /// What is left of many cards may be something else than before.
    pub(crate) fn rates_may_have_changed(&mut self, now: Duration) {
        if !self.is_empty() {
            let soonest = self.review.last.map_or(Duration::ZERO, |last| last + INTERVAL);
            self.review.due.get_or_insert(soonest.max(now + SETTLES));
        }
    }

    /// When rates are to be looked through.
    pub(crate) fn review_due(&self) -> Option<Duration> {
        self.review.due
    }

    /// Looks through what is left of everybody's card; says whether the plan has to follow.
    pub(crate) fn review(&mut self, now: Duration, residue: impl Fn(PeerId) -> Option<u64>) -> bool {
        self.review.due = None;
        if !self.is_worth_it() {
            return false;
        }
        let now_left: Vec<(Node, u64, u64)> = self
            .roster
            .nodes()
            .filter_map(|node| {
                let member = self.roster.get(node)?;
                let class =
                    member.class.filter(|class| matches!(class.part, Part::Wanting | Part::Holder))?;
                let before = if class.claims > 0 { class.claims } else { self.mean };
                Some((node, before, rounded(residue(member.peer).unwrap_or(0))))
            })
            .collect();
        let known = || now_left.iter().map(|(_, _, rate)| *rate).filter(|rate| *rate > 0);
        let mean = known().map(as_f64).sum::<f64>() / as_f64(known().count().max(1) as u64);
        if mean <= 0.0 {
            return false;
        }
        let counts = |rate: u64| if rate > 0 { as_f64(rate) } else { mean };
        let sums = now_left
            .iter()
            .fold((0.0, 0.0), |(before, after), (_, was, is)| (before + as_f64(*was), after + counts(*is)));
        // If all have half of what they had, nobody has to move.
        let scale = sums.1 / sums.0;
        let has_changed = |was: u64, is: u64| is_far(counts(is) / as_f64(was) / scale);
        let changed = now_left.iter().filter(|(_, was, is)| has_changed(*was, *is));
        let mut changed: Vec<(Node, u64)> = changed.map(|(node, _, rate)| (*node, *rate)).collect();
        if changed.is_empty() {
            return false;
        }
        if is_far(scale) {
            changed = now_left.iter().map(|(node, _, rate)| (*node, *rate)).collect();
            // Also whoever is not known counts as something else.
            self.is_reweighed = true;
        }
        for (node, rate) in changed {
            if let Some(member) = self.roster.get_mut(node) {
                member.rate = rate;
            }
        }
        self.review.last = Some(now);
        true
    }

    fn is_worth_it(&self) -> bool {
        let (mut wanting, mut lacking) = (0_u64, 0_u64);
        for member in self.roster.members().filter(|member| !member.have.is_full()) {
            wanting += u64::from(self.piece_count);
            lacking += u64::from(self.piece_count - member.have.len());
        }
        wanting > 0 && as_f64(lacking) >= LACKING_MIN * as_f64(wanting)
    }
}

fn is_far(ratio: f64) -> bool {
    !(1.0 / CHANGED..=CHANGED).contains(&ratio)
}

#[expect(clippy::cast_precision_loss, reason = "rates and counts that are exact to 53 bits")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
