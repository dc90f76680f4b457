//! What a scheduler that takes over plans with what members tell it.

use std::{collections::BTreeMap, time::Duration};

use modelpack::layout::Run;
use planner::{
    ArtifactId, HostAddr, Input, Output, PeerId, PeerPlan, Place, Planner, Progress, StripeSource,
};
use proptest::{collection::vec, prelude::*};

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
/// 16 stripes of 16 pieces; piece `p` is in stripe `p % 16`.
const PIECES: u32 = 256;
const STRIPES: usize = 16;

fn id(number: u8) -> PeerId {
    PeerId::new([number; 16])
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn join(planner: &mut Planner, now: Duration, peer: PeerId, progress: Progress) {
    planner.handle(
        now,
        Input::Register {
            peer,
            address: "host:1".into(),
            name: String::new(),
            nic_rate: None,
            place: Place::default(),
            host: HostAddr::new(std::net::Ipv4Addr::LOCALHOST.into()),
        },
    );
    planner.handle(
        now,
        Input::Join {
            peer,
            artifact: ARTIFACT,
            bytes: u64::from(PIECES) << 20,
            piece_count: PIECES,
            origin_ok: true,
            is_seed: false,
            have: Vec::new(),
            progress,
        },
    );
}

fn plans(planner: &mut Planner) -> BTreeMap<PeerId, PeerPlan> {
    std::iter::from_fn(|| planner.poll())
        .filter_map(|output| match output {
            Output::Plan { to, plan, .. } => Some((to, plan)),
            Output::Standing(_) => None,
        })
        .collect()
}

fn in_flight(epoch: u64, pieces: impl IntoIterator<Item = u32>) -> Progress {
    let mut pieces: Vec<u32> = pieces.into_iter().collect();
    pieces.sort_unstable();
    pieces.dedup();
    let origin_in_flight = pieces.into_iter().map(|at| Run::new(at, at + 1)).collect();
    Progress { epoch, origin_in_flight, ..Progress::default() }
}

#[test]
fn a_member_that_has_no_plan_gets_one_at_once() {
    let mut planner = Planner::new();
    join(&mut planner, at(0), id(1), Progress::default());
    assert_eq!(plans(&mut planner).len(), 1);
    assert_eq!(planner.next_wake(), None);
}

#[test]
fn members_of_another_schedulers_plan_are_gathered_before_the_first() {
    let mut planner = Planner::new();
    join(&mut planner, at(0), id(1), in_flight(57, [0]));
    assert_eq!(planner.next_wake(), Some(at(450)));
    join(&mut planner, at(400), id(2), in_flight(60, [1]));
    join(&mut planner, at(410), id(3), Progress::default());
    planner.handle(at(450), Input::Tick);
    assert!(plans(&mut planner).is_empty(), "one came a moment ago");
    planner.handle(at(860), Input::Tick);
    let plans = plans(&mut planner);
    assert!(plans.len() == 3 && plans.values().all(|plan| plan.epoch == 61), "{plans:?}");
    assert_eq!(planner.next_wake(), Some(at(860)), "nobody else is waited for: members are compared at once");
}

#[test]
fn gathering_ends_though_members_keep_coming() {
    let mut planner = Planner::new();
    for number in 0..=200 {
        let now = at(u64::from(number) * 10);
        if planner.next_wake().is_some_and(|wake| wake <= now) {
            assert!(now <= at(1510), "{now:?}");
            planner.handle(now, Input::Tick);
            assert!(!plans(&mut planner).is_empty());
            return;
        }
        join(&mut planner, now, id(number), in_flight(3, []));
    }
    panic!("it never ended");
}

#[test]
fn an_epoch_at_the_end_of_numbers_is_no_danger() {
    let mut planner = Planner::new();
    join(&mut planner, at(0), id(1), in_flight(u64::MAX, [0]));
    planner.handle(at(2000), Input::Tick);
    join(&mut planner, at(2001), id(2), Progress::default());
    assert!(!plans(&mut planner).is_empty());
}

#[test]
fn stripes_stay_with_those_who_read_them() {
    let mut planner = Planner::new();
    // Dealt out otherwise than a first plan would.
    let reads = |member: u32| (0..16).filter(move |stripe| stripe / 2 % 4 == member);
    for member in 0..4_u8 {
        join(&mut planner, at(0), id(member), in_flight(9, reads(member.into())));
    }
    planner.handle(at(450), Input::Tick);
    for (peer, plan) in plans(&mut planner) {
        let is_entrant = |stripe: &u32| plan.stripes[*stripe as usize].source == StripeSource::Origin;
        assert!((0..16).filter(is_entrant).eq(reads(peer.bytes()[0].into())), "{peer}");
        assert!(plan.stripes.iter().all(|part| part.before.is_empty()), "nobody has to be heard");
    }
}

proptest! {
    #[test]
    fn whoever_reads_a_stripe_is_its_entrant_or_is_heard_before(
        reading in vec(vec(0..PIECES, 0..12), 1..6),
    ) {
        let mut planner = Planner::new();
        for (number, pieces) in reading.iter().enumerate() {
            join(&mut planner, at(0), id(u8::try_from(number).unwrap()), in_flight(9, pieces.iter().copied()));
        }
        planner.handle(at(450), Input::Tick);
        let plans = plans(&mut planner);
        let count = |member: usize, stripe: usize| {
            let pieces: std::collections::BTreeSet<u32> = reading[member].iter().copied().collect();
            pieces.iter().filter(|piece| **piece as usize % STRIPES == stripe).count()
        };
        for stripe in 0..STRIPES {
            let entrant = |plan: &PeerPlan| plan.stripes[stripe].source == StripeSource::Origin;
            let entrants: Vec<usize> =
                (0..reading.len()).filter(|member| entrant(&plans[&id(u8::try_from(*member).unwrap())])).collect();
            prop_assert_eq!(entrants.len(), 1);
            let plan = &plans[&id(u8::try_from(entrants[0]).unwrap())];
            for other in (0..reading.len()).filter(|other| *other != entrants[0] && count(*other, stripe) > 0) {
                let other = id(u8::try_from(other).unwrap());
                let before = plan.stripes[stripe].before.iter().find(|before| before.peer == other);
                prop_assert_eq!(before.map(|before| before.epoch), Some(plan.epoch), "{} reads it too", other);
            }
        }
    }
}
