//! Entrants that have stalled: a child says that nothing comes from one, and of what only that one had nobody has got
//! anything since. Its stripes go to whoever said so at once, long before it can be called silent. Does not own when a child
//! says so (crate `swarm`), nor who is an entrant (`entrants`).
//!
//! A child alone may be at fault itself. But a piece that one member has and then another has spread: where pieces of a
//! stripe spread, its entrant serves somebody.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::PieceIndex;
use modelpack::piece_map::PieceMap;

use super::SwarmState;
use super::roster::Straggles;
use crate::forest::{Node, STRIPES};
use crate::id::PeerId;
use crate::pace::RECOVERS;
use crate::quarantine::Standing;

/// For so long nothing spreads where an entrant has stalled, at least: the stall rule of readers.
const STILL_MIN: Duration = Duration::from_millis(100);

/// And for so many times as long as it took usually.
const STILL_INTERVALS: u32 = 3;

/// How long a child is believed: members tell of what they got up to a tenth of a second later.
const BELIEVED: Duration = Duration::from_millis(500);

/// How the pieces of a stripe came to a second member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Spread {
    count: u32,
    /// When the last one did; or, while none has, when it was first looked for.
    last: Duration,
}

impl Spread {
    /// What it took for each, since the swarm began.
    fn interval(&self, begun: Duration) -> Option<Duration> {
        (self.count > 0).then(|| self.last.saturating_sub(begun) / self.count)
    }
}

/// Who is said to have stalled.
#[derive(Debug)]
struct Said {
    by: BTreeSet<Node>,
    until: Duration,
}

/// What is known of stalls in one swarm.
#[derive(Debug)]
pub(super) struct Stalls {
    /// The pieces that a member has had, and those that a second one has had.
    once: PieceMap,
    twice: PieceMap,
    /// When the last member joined before anything spread.
    begun: Duration,
    spreads: [Spread; STRIPES],
    said: BTreeMap<Node, Said>,
    /// Those that have stalled, with those who said so: the next plan gives these the stripes.
    found: BTreeMap<Node, BTreeSet<Node>>,
}

impl Stalls {
    pub(super) fn new(piece_count: u32) -> Self {
        let (once, twice) = (PieceMap::empty(piece_count), PieceMap::empty(piece_count));
        Self {
            once,
            twice,
            begun: Duration::ZERO,
            spreads: Default::default(),
            said: BTreeMap::new(),
            found: BTreeMap::new(),
        }
    }

    /// A member joins.
    pub(super) fn joined(&mut self, now: Duration) {
        if self.spreads.iter().all(|spread| spread.count == 0) {
            self.begun = now;
        }
    }

    /// A member has one more piece.
    pub(super) fn got(&mut self, now: Duration, stripe: usize, piece: PieceIndex) {
        if self.once.insert(piece) || !self.twice.insert(piece) {
            return;
        }
        let spread = &mut self.spreads[stripe];
        (spread.count, spread.last) = (spread.count + 1, now.max(spread.last));
    }

    /// From when on nothing has spread of a stripe, if that goes on. Of one of which nothing ever has, what is usual for
    /// others counts: the first pieces take the longest.
    fn is_still_at(&self, stripe: usize) -> Option<Duration> {
        let known = self.spreads.iter().filter_map(|spread| spread.interval(self.begun));
        let spread = self.spreads[stripe];
        let interval = spread.interval(self.begun).or_else(|| known.max())?;
        Some(spread.last + (interval * STILL_INTERVALS).max(STILL_MIN))
    }

    pub(super) fn left(&mut self, node: Node) {
        self.said.remove(&node);
        for said in self.said.values_mut() {
            said.by.remove(&node);
        }
    }

    /// Those that have stalled, and who said so of each, since this was asked last.
    pub(super) fn take_found(&mut self) -> BTreeMap<Node, BTreeSet<Node>> {
        std::mem::take(&mut self.found)
    }
}

impl SwarmState {
    /// A member says that a parent has stalled; says whether the plan should change.
    pub(crate) fn stalled(&mut self, now: Duration, by: PeerId, about: PeerId) -> bool {
        let (Some(by), Some(about)) = (self.roster.node(by), self.roster.node(about)) else { return false };
        let is_believed =
            self.roster.get(by).is_some_and(|member| member.facts.standing < Standing::Quarantined);
        if !is_believed || by == about || !self.entrants.contains(&Some(about)) {
            return false;
        }
        for stripe in (0..self.entrants.len()).filter(|stripe| self.entrants[*stripe] == Some(about)) {
            let spread = &mut self.stalls.spreads[stripe];
            // Nothing was seen to spread yet, so that it is looked from now on.
            if *spread == Spread::default() {
                spread.last = now;
            }
        }
        let until = now + BELIEVED;
        let said = self.stalls.said.entry(about).or_insert_with(|| Said { by: BTreeSet::new(), until });
        said.until = until;
        said.by.insert(by);
        self.judge_stalls(now)
    }

    /// When it is to be looked whether those have stalled of whom it was said.
    pub(super) fn stalls_due(&self) -> Option<Duration> {
        let due = |(node, said): (&Node, &Said)| {
            self.still_at(*node).map_or(said.until, |still_at| still_at.min(said.until))
        };
        self.stalls.said.iter().map(due).min()
    }

    /// From when on nothing has spread of what a member is the entrant of, if that goes on; `None` where nothing ever
    /// has of anything.
    fn still_at(&self, node: Node) -> Option<Duration> {
        let its = (0..self.entrants.len()).filter(|stripe| self.entrants[*stripe] == Some(node));
        its.map(|stripe| self.stalls.is_still_at(stripe)).max().flatten()
    }

    /// Finds out which of those have stalled; says whether the plan should change.
    pub(super) fn judge_stalls(&mut self, now: Duration) -> bool {
        let mut is_changed = false;
        for (node, said) in std::mem::take(&mut self.stalls.said) {
            if !self.entrants.contains(&Some(node)) {
                continue;
            }
            if self.still_at(node).is_some_and(|at| at <= now) {
                is_changed |=
                    self.note_straggler(node, Straggles { until: now + RECOVERS, is_slow_card: false });
                if let Some(member) = self.roster.get_mut(node) {
                    member.straggles = self.straggling.get(&node).copied();
                }
                self.stalls.found.insert(node, said.by);
            } else if now < said.until {
                self.stalls.said.insert(node, said);
            }
        }
        is_changed
    }
}
