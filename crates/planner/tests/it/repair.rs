//! Repairs: pieces that readers vouched for did not add up to the manifest's digest.

use modelpack::layout::Run;
use planner::{Input, ROUNDS_MAX};
use proptest::prelude::*;

use crate::support::{ARTIFACT, Fleet, PIECES, id};

fn all() -> Vec<Run> {
    vec![Run::new(0, PIECES)]
}

fn fleet_of(count: u8) -> Fleet {
    let mut fleet = Fleet::default();
    (1..=count).for_each(|number| fleet.join(number, 0, true, vec![]));
    fleet
}

#[test]
fn the_first_that_notices_reads_the_origin_for_everybody() {
    let mut fleet = fleet_of(4);
    assert_eq!(fleet.readers().len(), 4, "at first everybody reads a share");
    fleet.join(3, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(3)]);
    for number in [1, 2, 4] {
        assert_eq!(fleet.sources(number), [id(3)], "who has not noticed gets right pieces too");
    }
    fleet.join(1, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(3)], "whoever notices later does not read it again");
    assert!(!fleet.sources(1).contains(&id(2)) && !fleet.sources(1).contains(&id(4)));
}

#[test]
fn a_repair_waits_for_somebody_who_can_read_the_origin() {
    let mut fleet = fleet_of(2);
    fleet.join(3, 1, false, vec![]);
    assert_eq!(fleet.readers(), [id(1), id(2)], "all others go on, until one of them finds it wrong, too");
    assert_eq!(fleet.sources(3), [], "what they have does not count for it");
    fleet.join(2, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(2)]);
    assert_eq!(fleet.sources(3), [id(2)]);
    fleet.tell(Input::Have { peer: id(2), artifact: ARTIFACT, runs: all() });
    fleet.join_where_it_stands(2, 1, false, all());
    assert_eq!(fleet.sources(3), [id(2)], "it has everything, and needs no origin");
    assert_eq!(fleet.sources(1), [id(2)]);
    fleet.tell(Input::Gone { peer: id(2) });
    fleet.plans.remove(&id(2));
    assert_eq!(fleet.readers(), [id(1)], "nobody can give anything in that repair any more");
}

#[test]
fn those_who_had_everything_before_are_not_asked_in_a_repair() {
    let mut fleet = fleet_of(2);
    fleet.join(9, 0, true, all());
    assert_eq!(fleet.sources(1).last(), Some(&id(9)), "at first a holder serves");
    fleet.join(1, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(1)]);
    fleet.join(2, 1, true, vec![]);
    assert_eq!(fleet.sources(2), [id(1)]);
    fleet.tell(Input::Have { peer: id(1), artifact: ARTIFACT, runs: all() });
    fleet.join(5, 0, true, vec![]);
    assert_eq!(fleet.sources(5), [id(1)], "the repaired one serves newcomers");
}

#[test]
fn whoever_accuses_the_one_that_repairs_is_not_sent_to_it() {
    let mut fleet = fleet_of(3);
    fleet.tell(Input::Complaint { peer: id(2), artifact: ARTIFACT, about: id(1), piece: 0 });
    fleet.join(1, 1, true, vec![]);
    assert_eq!(fleet.sources(3), [id(1)]);
    assert!(!fleet.sources(2).contains(&id(1)), "it would not believe it");
}

#[test]
fn whoever_may_read_from_none_that_repaired_reads_the_origin() {
    let mut fleet = fleet_of(3);
    fleet.tell(Input::Silence { peer: id(2), artifact: ARTIFACT, about: id(1) });
    fleet.join(1, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(1)], "it waits while others may come to have it");
    fleet.join(1, 1, true, all());
    assert_eq!(fleet.sources(3), [id(1)]);
    assert!(fleet.readers().contains(&id(2)), "nobody else is going to have it");
}

#[test]
fn another_is_elected_when_the_elected_is_gone_or_cannot_read() {
    let mut fleet = fleet_of(3);
    fleet.join(2, 1, false, vec![]);
    assert_eq!(fleet.readers(), [id(1), id(3)], "it cannot read the origin, so that nothing is repaired yet");
    fleet.join(3, 1, true, vec![]);
    assert_eq!(fleet.readers(), [id(3)]);
    fleet.join(1, 1, true, vec![]);
    fleet.tell(Input::Gone { peer: id(3) });
    fleet.plans.remove(&id(3));
    assert_eq!(fleet.readers(), [id(1)]);
    fleet.join(2, 2, true, vec![]);
    assert_eq!(fleet.readers(), [id(2)], "a second repair has its own reader");
}

#[test]
fn whom_nobody_may_read_from_repairs_alone() {
    let mut fleet = fleet_of(5);
    for by in [2, 3, 4] {
        fleet.tell(Input::Complaint { peer: id(by), artifact: ARTIFACT, about: id(1), piece: 0 });
    }
    for number in 2..=5 {
        fleet.join(number, 1, true, vec![]);
    }
    let elected = fleet.sources(5);
    fleet.join(1, 2, true, vec![]);
    assert_eq!(fleet.sources(5), elected, "the others go on with their own repair");
    assert!(fleet.readers().contains(&id(1)), "it reads for itself");
}

#[test]
fn nobody_drives_the_number_of_repairs_beyond_the_most() {
    let mut fleet = fleet_of(2);
    fleet.join(1, u32::MAX, true, vec![]);
    fleet.join(2, ROUNDS_MAX, true, vec![]);
    assert_eq!(fleet.readers(), [id(1)], "both are in the last repair");
}

proptest! {
    /// Law: in a repair at most one member reads the origin, and nobody in it reads from one who has not noticed. It begins
    /// with the first who can read the origin.
    #[test]
    fn one_reader_a_repair(rounds in proptest::collection::vec((1_u8..12, 0_u32..4, any::<bool>()), 1..40)) {
        let mut fleet = Fleet::default();
        let mut last = std::collections::BTreeMap::new();
        for (number, round, origin_ok) in rounds {
            fleet.join(number, round, origin_ok, vec![]);
            last.insert(number, (round, origin_ok));
            let begun = last.values().filter(|(_, origin_ok)| *origin_ok).map(|(round, _)| *round).max();
            if begun.unwrap_or(0) > 0 {
                prop_assert!(fleet.readers().len() <= 1, "{:?}", fleet.readers());
            }
            let repairing = last.iter().filter(|(_, (round, _))| *round > 0 && Some(*round) >= begun);
            for (number, (round, _)) in repairing {
                for source in fleet.sources(*number) {
                    prop_assert_eq!(last[&source.bytes()[0]].0, *round);
                }
            }
        }
    }
}
