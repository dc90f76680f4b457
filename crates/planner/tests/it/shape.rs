//! The shape of a plan for many equals, who come at once or one by one.

use std::collections::BTreeMap;
use std::time::Duration;

use planner::{Input, Output, PeerId, PeerPlan, Planner, StripeSource};

use super::cost::{join, register};

/// What everybody is told at the end. Those who come with a plan get the first one together.
fn planned(peers: u32, epoch: u64) -> BTreeMap<PeerId, PeerPlan> {
    let mut planner = Planner::new();
    for number in 0..peers {
        planner.handle(Duration::ZERO, register(number));
        planner.handle(Duration::ZERO, join(number, epoch));
    }
    planner.handle(Duration::from_secs(1), Input::Tick);
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
