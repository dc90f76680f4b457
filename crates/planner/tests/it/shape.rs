//! The shape of a plan for many equals, who come at once or one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use planner::{Input, Output, PeerId, PeerPlan, Planner, StripeSource};

use super::cost::{join, peer, register};

/// When all have come.
const LATER: Duration = Duration::from_secs(1);

/// What everybody is told at the end. Those who come with a plan get the first one together.
fn planned(peers: u32, epoch: u64) -> BTreeMap<PeerId, PeerPlan> {
    let mut planner = Planner::new();
    for number in 0..peers {
        planner.handle(Duration::ZERO, register(number));
        planner.handle(Duration::ZERO, join(number, epoch));
    }
    planner.handle(LATER, Input::Tick);
    let mut plans = BTreeMap::new();
    while let Some(output) = planner.poll() {
        if let Output::Plan { to, plan, .. } = output {
            plans.insert(to, plan);
        }
    }
    plans
}

#[test]
fn nobody_serves_more_than_it_gets_nor_hangs_on_another_by_many_stripes() {
    for (peers, epoch) in [128, 256].into_iter().flat_map(|peers| [(peers, 9), (peers, 0)]) {
        let mut serves: BTreeMap<PeerId, u32> = BTreeMap::new();
        let mut pairs: BTreeMap<(PeerId, PeerId), u32> = BTreeMap::new();
        for (to, plan) in planned(peers, epoch) {
            for part in plan.stripes {
                if let StripeSource::Parent(parent) = part.source {
                    *serves.entry(parent).or_default() += 1;
                    *pairs.entry((parent, to)).or_default() += 1;
                }
            }
        }
        let (most, fattest) = (serves.values().max(), pairs.values().max());
        assert!(most <= Some(&16), "one of {peers} that came with {epoch} serves {most:?}");
        assert!(fattest <= Some(&8), "one of {peers} that came with {epoch} has {fattest:?} stripes of one");
    }
}

#[test]
fn a_leave_among_many_is_told_to_few() {
    let mut planner = Planner::new();
    let mut told = |now, input| {
        planner.handle(now, input);
        std::iter::from_fn(|| planner.poll()).filter(|at| matches!(at, Output::Plan { .. })).count()
    };
    for number in 0..10_000 {
        told(Duration::ZERO, register(number));
        told(Duration::ZERO, join(number, 9));
    }
    assert_eq!(told(LATER, Input::Tick), 10_000);
    // Newcomers hang on one another, and deep. Trees that are grown anew for it have another parent for everybody.
    for number in 10_000..10_200 {
        told(LATER, register(number));
        told(LATER, join(number, 0));
    }
    let most = (0..40).map(|at| told(LATER, Input::Gone { peer: peer(37 * at) })).max();
    assert!(most <= Some(512), "{most:?} are told of one that leaves");
}
