//! Entrants from which nothing comes any more.

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use planner::{Input, PeerId, StripeSource};

use crate::support::{ARTIFACT, Fleet, PIECES, id};

const MEMBERS: u8 = 8;
const STRIPES: u32 = 16;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A fleet in which half of everything has spread, a piece of each stripe each 10 ms, 20 ms after its beginning.
fn half_way() -> Fleet {
    let mut fleet = Fleet::default();
    for number in 1..=MEMBERS {
        fleet.join(number, 0, true, Vec::new());
    }
    for round in 0..PIECES / STRIPES / 2 {
        for piece in round * STRIPES..(round + 1) * STRIPES {
            spreads(&mut fleet, ms(10 * u64::from(round + 1)), piece);
        }
    }
    fleet
}

fn spreads(fleet: &mut Fleet, now: Duration, piece: u32) {
    for number in 1..=MEMBERS {
        let runs = vec![Run::one(PieceIndex(piece))];
        fleet.tell_at(now, Input::Have { peer: id(number), artifact: ARTIFACT, runs });
    }
}

fn stalls(fleet: &mut Fleet, now: Duration, by: PeerId, about: PeerId) {
    fleet.tell_at(now, Input::Stall { peer: by, artifact: ARTIFACT, about });
}

/// The stripes that a member reads from the origin.
fn stripes_of(fleet: &Fleet, peer: PeerId) -> Vec<usize> {
    let parts = fleet.plans[&peer].stripes.iter().enumerate();
    parts.filter(|(_, part)| part.source == StripeSource::Origin).map(|(stripe, _)| stripe).collect()
}

#[test]
fn the_stripes_of_an_entrant_that_stalls_go_to_whoever_says_so() {
    let mut fleet = half_way();
    let (entrant, child) = (id(3), id(5));
    let (its, own) = (stripes_of(&fleet, entrant), stripes_of(&fleet, child));
    assert!(!its.is_empty());
    stalls(&mut fleet, ms(60), child, entrant);
    assert_eq!(stripes_of(&fleet, entrant), its, "something has just spread");
    fleet.tell_at(ms(119), Input::Tick);
    assert_eq!(stripes_of(&fleet, entrant), its);
    fleet.tell_at(ms(121), Input::Tick);
    assert!(stripes_of(&fleet, entrant).is_empty());
    let mut both = [own, its.clone()].concat();
    both.sort_unstable();
    assert_eq!(stripes_of(&fleet, child), both);
    for stripe in its {
        let before = &fleet.plans[&child].stripes[stripe].before;
        assert!(before.iter().any(|before| before.peer == entrant), "what it has is left to it: {before:?}");
    }
}

#[test]
fn an_entrant_that_serves_somebody_has_not_stalled() {
    let mut fleet = half_way();
    let (entrant, child) = (id(3), id(5));
    let its = stripes_of(&fleet, entrant);
    let stripe = u32::try_from(its[0]).unwrap();
    for round in 2..4 {
        let now = ms(80 * u64::from(round) - 60);
        stalls(&mut fleet, ms(80 * u64::from(round) - 61), child, entrant);
        spreads(&mut fleet, now, stripe + round * STRIPES);
        stalls(&mut fleet, now + ms(50), child, entrant);
        fleet.tell_at(now + ms(79), Input::Tick);
        assert_eq!(stripes_of(&fleet, entrant), its, "{now:?}");
    }
}

#[test]
fn one_that_nobody_reads_from_cannot_stall() {
    let mut fleet = half_way();
    let its: Vec<Vec<usize>> = (1..=MEMBERS).map(|number| stripes_of(&fleet, id(number))).collect();
    stalls(&mut fleet, ms(500), id(3), id(3));
    stalls(&mut fleet, ms(500), id(99), id(3));
    stalls(&mut fleet, ms(500), id(3), id(99));
    let now: Vec<Vec<usize>> = (1..=MEMBERS).map(|number| stripes_of(&fleet, id(number))).collect();
    assert_eq!(now, its);
}

#[test]
fn on_a_slow_network_the_first_pieces_may_take_their_time() {
    let mut fleet = Fleet::default();
    for number in 1..=MEMBERS {
        fleet.join(number, 0, true, Vec::new());
    }
    let (entrant, child) = (id(3), id(5));
    let its = stripes_of(&fleet, entrant);
    stalls(&mut fleet, ms(300), child, entrant);
    fleet.tell_at(ms(700), Input::Tick);
    assert_eq!(stripes_of(&fleet, entrant), its, "nobody has got anything yet");
    let other = (0..STRIPES).find(|stripe| !its.contains(&(*stripe as usize))).unwrap();
    spreads(&mut fleet, ms(1000), other);
    stalls(&mut fleet, ms(1001), child, entrant);
    for at in [1300, 1500] {
        fleet.tell_at(ms(at), Input::Tick);
        assert_eq!(stripes_of(&fleet, entrant), its, "what came first took a second");
    }
    // Its own first piece and nothing after it.
    spreads(&mut fleet, ms(1500), u32::try_from(its[0]).unwrap());
    for at in (1600..5900).step_by(300) {
        stalls(&mut fleet, ms(at), child, entrant);
        assert_eq!(stripes_of(&fleet, entrant), its, "{at}");
    }
    stalls(&mut fleet, ms(6001), child, entrant);
    fleet.tell_at(ms(6002), Input::Tick);
    assert!(stripes_of(&fleet, entrant).is_empty());
}
