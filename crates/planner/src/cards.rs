//! The network cards of all peers as plans count with them: what each does, and what of that is left for one swarm.
//!
//! Owns: given before learned, which cards are alike, what others and other swarms leave. Does not own: how a peer learns
//! (`capacity`), or when a running plan follows (`swarm_state`).
//!
//! Plans like few kinds of cards: each makes trees deeper, and whoever changes its kind moves with all its children. So
//! a learned card counts as one that is known already, if they are alike, and stays that until it is clearly another; and
//! what is left of a card is counted in eighths.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use crate::capacity::{FOREIGN_LASTS, Foreign, Learned};
use crate::id::{ArtifactId, PeerId};
use crate::priority::Priority;

/// Learned cards that differ by less count as one kind: a fifth is what equal ones differ by when they are measured.
const ALIKE: (u64, u64) = (6, 5);

/// A card counts as another one when it differs by more from what it counts as.
const OTHER: (u64, u64) = (5, 4);

/// What is left of a card is counted in parts of so many. Less than half of one is nothing.
const PARTS: u64 = 8;

/// What a peer has measured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// What its card does, as far as it has found out.
    pub learned: Option<Learned>,
    /// What others move there, if that can be read.
    pub foreign: Option<Foreign>,
    /// What of its own traffic belongs to which swarm, for those of which there is any.
    pub swarms: Vec<SwarmLoad>,
}

/// What a peer moves for one swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmLoad {
    /// The swarm.
    pub artifact: ArtifactId,
    /// Bytes per second, of the direction in which there is more.
    pub rate: u64,
}

/// One peer's card.
#[derive(Debug, Default)]
struct Card {
    /// What it was said to do.
    given: Option<u64>,
    /// What it counts as; 0 if that is not known.
    counts: u64,
    measured: Measured,
    /// When that was heard.
    at: Duration,
}

/// The cards of all peers.
#[derive(Debug, Default)]
pub(crate) struct Cards {
    by_peer: BTreeMap<PeerId, Card>,
    /// How many cards count as so much.
    kinds: BTreeMap<u64, u64>,
    /// Of the swarms that are not normal.
    priorities: BTreeMap<ArtifactId, Priority>,
}

impl Cards {
    /// A peer has come, and perhaps said what its card does.
    pub(crate) fn register(&mut self, peer: PeerId, given: Option<u64>) {
        self.gone(peer);
        let counts = given.unwrap_or(0);
        self.count(counts);
        self.by_peer.insert(peer, Card { given, counts, ..Card::default() });
    }

    pub(crate) fn gone(&mut self, peer: PeerId) {
        if let Some(card) = self.by_peer.remove(&peer) {
            self.uncount(card.counts);
        }
    }

    /// How urgent a swarm is from now on. Says whether that is news.
    pub(crate) fn set_priority(&mut self, swarm: ArtifactId, priority: Priority) -> bool {
        let before = match priority {
            Priority::Normal => self.priorities.remove(&swarm),
            priority => self.priorities.insert(swarm, priority),
        };
        before.unwrap_or_default() != priority
    }

    fn priority(&self, swarm: &ArtifactId) -> Priority {
        self.priorities.get(swarm).copied().unwrap_or_default()
    }

    /// A peer has measured something. Says whether plans may have to follow.
    pub(crate) fn report(&mut self, now: Duration, peer: PeerId, measured: Measured) -> bool {
        let Some(card) = self.by_peer.get(&peer) else { return false };
        let (given, before) = (card.given, card.counts);
        let counts = given.unwrap_or_else(|| self.counts_as(measured.learned, before));
        self.uncount(before);
        self.count(counts);
        let Some(card) = self.by_peer.get_mut(&peer) else { return false };
        let shape = |card: &Card| (card.counts, card.others(now));
        let was = shape(card);
        (card.counts, card.measured, card.at) = (counts, measured, now);
        was != shape(card)
    }

    /// What a card counts as of which so much was learned, and that counted as something before.
    fn counts_as(&self, learned: Option<Learned>, before: u64) -> u64 {
        let Some(Learned { rate, is_full, .. }) = learned.filter(|learned| learned.rate > 0) else {
            return 0;
        };
        // Whoever has done less than it could is as good as the others, unless it did more than they can.
        if !is_full && rate <= self.mean_without(before) {
            return 0;
        }
        if before > 0 && is_within(rate, before, OTHER) {
            return before;
        }
        let mut alike: Vec<u64> = self.kinds.keys().copied().collect();
        alike.retain(|kind| is_within(rate, *kind, ALIKE));
        alike.into_iter().min_by_key(|kind| kind.abs_diff(rate)).unwrap_or(rate)
    }

    /// Of all whose cards are known, but for one of these.
    fn mean_without(&self, one: u64) -> u64 {
        let own = u64::from(one > 0);
        let count: u64 = self.kinds.values().sum::<u64>() - own;
        let sum: u128 = self.kinds.iter().map(|(kind, cards)| u128::from(*kind) * u128::from(*cards)).sum();
        let sum = sum - u128::from(one * own);
        if count == 0 { u64::MAX } else { u64::try_from(sum / u128::from(count)).unwrap_or(u64::MAX) }
    }

    fn count(&mut self, kind: u64) {
        if kind > 0 {
            *self.kinds.entry(kind).or_default() += 1;
        }
    }

    fn uncount(&mut self, kind: u64) {
        if let Some(cards) = self.kinds.get_mut(&kind) {
            *cards -= 1;
            if *cards == 0 {
                self.kinds.remove(&kind);
            }
        }
    }

    /// What is left of a peer's card for one swarm; `None` if nobody knows what it does.
    pub(crate) fn residue(&self, now: Duration, peer: PeerId, swarm: &ArtifactId) -> Option<u64> {
        let card = self.by_peer.get(&peer).filter(|card| card.counts > 0)?;
        let mine = self.priority(swarm);
        let parts = card.parts_for(now, swarm, |other| self.priority(other).cmp(&mine));
        Some(if parts == PARTS { card.counts } else { (card.counts / PARTS * parts).max(1) })
    }

    /// What was learned of a peer's card by now, and what others move there, by what it has measured.
    pub(crate) fn measured(&self, now: Duration, peer: PeerId) -> (Option<Learned>, Option<Foreign>) {
        let Some(card) = self.by_peer.get(&peer) else { return (None, None) };
        let since = now.saturating_sub(card.at);
        let learned = card.measured.learned.map(|at| Learned { age: at.age + since, ..at });
        (learned, card.measured.foreign.map(|at| Foreign { age: at.age + since, ..at }))
    }
}

impl Card {
    /// What others than this process take of what the card counts as, while that is known. A peer that may do less than
    /// its card does leaves the rest of it to them: what was learned is what all of them moved.
    fn foreign(&self, now: Duration) -> u64 {
        let foreign = self.measured.foreign.filter(|at| {
            let since = now.saturating_sub(self.at);
            at.age + since < FOREIGN_LASTS
        });
        let beyond = self.measured.learned.map_or(0, |at| at.rate.saturating_sub(self.counts));
        foreign.map_or(0, |at| at.most()).saturating_sub(beyond)
    }

    /// By which plans have to follow: how many parts others take, and how many each swarm.
    fn others(&self, now: Duration) -> (u64, Vec<(ArtifactId, u64)>) {
        let parts = |rate: u64| self.parts(rate);
        let swarms = self.measured.swarms.iter().map(|load| (load.artifact, parts(load.rate)));
        (parts(self.foreign(now)), swarms.filter(|(_, parts)| *parts > 0).collect())
    }

    /// A rate in parts of the card.
    fn parts(&self, rate: u64) -> u64 {
        let (all, rate) = (u128::from(self.counts.max(1)), u128::from(rate));
        u64::try_from((rate * u128::from(2 * PARTS) / all).div_ceil(2)).unwrap_or(PARTS).min(PARTS)
    }

    /// What this process has of it is shared by swarms. What more urgent ones take is theirs, and what less urgent ones
    /// take is free; of the rest each of those that are as urgent has an equal share, and what the others leave of theirs.
    fn parts_for(&self, now: Duration, swarm: &ArtifactId, urgency: impl Fn(&ArtifactId) -> Ordering) -> u64 {
        let (foreign, swarms) = self.others(now);
        let others = |urgent: Ordering| {
            let others = swarms.iter().filter(move |(at, _)| at != swarm);
            others.filter(|(at, _)| urgency(at) == urgent).map(|(_, parts)| *parts).collect::<Vec<u64>>()
        };
        let (above, beside) = (others(Ordering::Greater), others(Ordering::Equal));
        let own = PARTS.saturating_sub(foreign + above.iter().sum::<u64>()).max(1);
        let equal = own / (beside.len() as u64 + 1);
        let left = own.saturating_sub(beside.iter().sum());
        equal.max(left).max(1)
    }
}

/// Whether one is at most so many times the other.
fn is_within(a: u64, b: u64, (more, than): (u64, u64)) -> bool {
    let (low, high) = (u128::from(a.min(b)), u128::from(a.max(b)));
    high * u128::from(than) <= low * u128::from(more)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const ZERO: Duration = Duration::ZERO;

    const fn id(number: u8) -> PeerId {
        PeerId::new([number; 16])
    }

    const fn swarm(number: u8) -> ArtifactId {
        ArtifactId([number; 32])
    }

    fn learned(mb: u64, is_full: bool) -> Measured {
        let learned = Some(Learned { rate: mb * MB, is_full, age: ZERO });
        Measured { learned, ..Measured::default() }
    }

    fn foreign(mb: u64) -> Measured {
        let foreign = Some(Foreign { sent: mb * MB, received: 0, age: ZERO });
        Measured { foreign, ..Measured::default() }
    }

    fn busy(loads: &[(u8, u64)]) -> Measured {
        let load = |(number, mb): &(u8, u64)| SwarmLoad { artifact: swarm(*number), rate: mb * MB };
        Measured { swarms: loads.iter().map(load).collect(), ..Measured::default() }
    }

    /// Cards of so many MB per second, or of which nothing is said.
    fn cards(given: &[u64]) -> Cards {
        let mut cards = Cards::default();
        for (number, mb) in (0..).zip(given) {
            cards.register(id(number), (*mb > 0).then_some(mb * MB));
        }
        cards
    }

    fn left(cards: &Cards, peer: u8) -> Option<u64> {
        cards.residue(ZERO, id(peer), &swarm(0)).map(|rate| rate / MB)
    }

    #[test]
    fn what_was_given_goes_before_what_was_learned() {
        let mut cards = cards(&[100, 0]);
        assert!(!cards.report(ZERO, id(0), learned(30, true)));
        assert!(cards.report(ZERO, id(1), learned(30, true)));
        assert_eq!((left(&cards, 0), left(&cards, 1)), (Some(100), Some(30)));
        cards.gone(id(1));
        assert_eq!((left(&cards, 1), cards.kinds.len()), (None, 1));
    }

    #[test]
    fn whoever_did_less_than_it_could_counts_as_if_it_had_said_nothing() {
        let mut cards = cards(&[100, 50, 0]);
        for idle in [1, 40, 75] {
            cards.report(ZERO, id(2), learned(idle, false));
            assert_eq!(left(&cards, 2), None, "{idle}");
        }
        cards.report(ZERO, id(2), learned(400, false));
        assert_eq!(left(&cards, 2), Some(400), "it does so much at least, and others do not");
        cards.report(ZERO, id(2), learned(500, false));
        assert_eq!(left(&cards, 2), Some(400), "what it counted as does not lift the others");
    }

    #[test]
    fn where_nobody_knows_more_than_a_lower_bound_nobody_is_known() {
        let mut cards = cards(&[0, 0]);
        cards.report(ZERO, id(0), learned(10, false));
        cards.report(ZERO, id(1), learned(100, false));
        assert_eq!((left(&cards, 0), left(&cards, 1)), (None, None));
    }

    #[test]
    fn cards_that_are_measured_alike_are_one_kind_and_stay_it() {
        let mut cards = cards(&[0, 0, 0, 0]);
        for (peer, mb) in [(0, 95), (1, 100), (2, 88), (3, 50)] {
            cards.report(ZERO, id(peer), learned(mb, true));
        }
        assert_eq!([0, 1, 2, 3].map(|peer| left(&cards, peer)), [95, 95, 95, 50].map(Some));
        assert!(!cards.report(ZERO, id(2), learned(77, true)), "it is not clearly another");
        assert!(cards.report(ZERO, id(2), learned(70, true)));
        assert_eq!(left(&cards, 2), Some(70));
        assert_eq!(cards.kinds, BTreeMap::from([(95 * MB, 2), (70 * MB, 1), (50 * MB, 1)]));
    }

    #[test]
    fn what_others_move_is_not_left_and_a_little_is_nobody() {
        let mut cards = cards(&[80]);
        assert!(!cards.report(ZERO, id(0), foreign(4)));
        assert_eq!(left(&cards, 0), Some(80));
        assert!(cards.report(ZERO, id(0), foreign(41)));
        assert_eq!(left(&cards, 0), Some(40));
        assert!(!cards.report(ZERO, id(0), foreign(38)), "as much by eighths");
        cards.report(ZERO, id(0), foreign(500));
        assert_eq!(left(&cards, 0), Some(10), "something always is");
        assert_eq!(cards.residue(FOREIGN_LASTS, id(0), &swarm(0)), Some(80 * MB), "nobody has looked since");
    }

    #[test]
    fn others_may_have_what_a_limited_peer_cannot_use() {
        let mut cards = cards(&[10]);
        cards.report(ZERO, id(0), Measured { learned: learned(80, false).learned, ..foreign(70) });
        assert_eq!(left(&cards, 0), Some(10));
        cards.report(ZERO, id(0), Measured { learned: learned(80, false).learned, ..foreign(75) });
        assert_eq!(left(&cards, 0), Some(5), "half of its limit is free");
    }

    #[test]
    fn swarms_share_a_card_alike_and_take_what_others_leave() {
        let mut cards = cards(&[80]);
        let mut left_of = |loads: &[(u8, u64)]| {
            cards.report(ZERO, id(0), busy(loads));
            left(&cards, 0).expect("it is known")
        };
        assert_eq!(left_of(&[(0, 80)]), 80, "its own traffic takes nothing from it");
        assert_eq!(left_of(&[(1, 80)]), 40, "a swarm that has everything gives half to one that comes");
        assert_eq!(left_of(&[(1, 20)]), 60, "one that does not need its share leaves it");
        assert_eq!(left_of(&[(0, 40), (1, 40)]), 40);
        assert_eq!(left_of(&[(1, 40), (2, 40)]), 20, "a third, by whole eighths");
        assert_eq!(left_of(&[(1, 4)]), 80);
    }

    #[test]
    fn what_is_more_urgent_takes_first_and_what_is_less_urgent_takes_nothing() {
        let mut cards = cards(&[80]);
        assert!(
            cards.set_priority(swarm(1), Priority::High) && !cards.set_priority(swarm(1), Priority::High)
        );
        assert!(
            cards.set_priority(swarm(2), Priority::Low) && !cards.set_priority(swarm(3), Priority::Normal)
        );
        let left_for = |cards: &mut Cards, number: u8, loads: &[(u8, u64)]| {
            cards.report(ZERO, id(0), busy(loads));
            cards.residue(ZERO, id(0), &swarm(number)).expect("it is known") / MB
        };
        // The first is high, the second low, others are normal.
        assert_eq!([0, 1, 2].map(|number| left_for(&mut cards, number, &[(1, 60)])), [20, 80, 20]);
        assert_eq!([0, 1, 2].map(|number| left_for(&mut cards, number, &[(2, 80)])), [80, 80, 80]);
        assert_eq!(
            left_for(&mut cards, 0, &[(1, 20), (2, 20), (3, 40)]),
            30,
            "half of what is not the first's"
        );
        assert_eq!(
            [0, 2].map(|number| left_for(&mut cards, number, &[(1, 80)])),
            [10, 10],
            "something always is"
        );
        // It is done, and its priority with it.
        assert!(cards.set_priority(swarm(1), Priority::Normal));
        assert_eq!([0, 1].map(|number| left_for(&mut cards, number, &[(1, 40), (0, 40)])), [40, 40]);
    }

    #[test]
    fn what_swarms_share_is_what_others_leave() {
        let mut cards = cards(&[80]);
        cards.report(ZERO, id(0), Measured { foreign: foreign(40).foreign, ..busy(&[(1, 40)]) });
        assert_eq!(left(&cards, 0), Some(20));
    }
}
