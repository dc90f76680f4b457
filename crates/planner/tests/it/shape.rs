//! The shape of a first plan for many equals.

use std::collections::BTreeMap;
use std::time::Duration;

use planner::{Output, PeerId, Planner, StripeSource};

use super::cost::{join, register};

/// Who serves whom in which stripes.
fn planned(peers: u32, epoch: u64) -> BTreeMap<(PeerId, PeerId), Vec<usize>> {
    let mut planner = Planner::new();
    for number in 0..peers {
        planner.handle(Duration::ZERO, register(number));
        planner.handle(Duration::ZERO, join(number, epoch));
    }
    planner.handle(Duration::from_secs(1), planner::Input::Tick);
    let mut pairs: BTreeMap<(PeerId, PeerId), Vec<usize>> = BTreeMap::new();
    let mut plans = BTreeMap::new();
    while let Some(output) = planner.poll() {
        let Output::Plan { to, plan, .. } = output else { continue };
        plans.insert(to, plan);
    }
    for (to, plan) in plans {
        for (stripe, part) in plan.stripes.iter().enumerate() {
            if let StripeSource::Parent(parent) = part.source {
                pairs.entry((parent, to)).or_default().push(stripe);
            }
        }
    }
    pairs
}

#[test]
#[ignore = "it prints"]
fn shape_of_a_first_plan() {
    for (peers, epoch) in [8, 16, 64, 100, 128, 256, 1024].into_iter().flat_map(|n| [(n, 9), (n, 0)]) {
        let pairs = planned(peers, epoch);
        let mut load: BTreeMap<PeerId, usize> = BTreeMap::new();
        let mut inner: BTreeMap<PeerId, std::collections::BTreeSet<usize>> = BTreeMap::new();
        let mut multi: BTreeMap<usize, usize> = BTreeMap::new();
        for ((parent, _), stripes) in &pairs {
            *load.entry(*parent).or_default() += stripes.len();
            inner.entry(*parent).or_default().extend(stripes);
            *multi.entry(stripes.len()).or_default() += 1;
        }
        let mut loads: BTreeMap<usize, usize> = BTreeMap::new();
        load.values().for_each(|n| *loads.entry(*n).or_default() += 1);
        loads.insert(0, peers as usize - load.len());
        let mut homes: BTreeMap<usize, usize> = BTreeMap::new();
        inner.values().for_each(|n| *homes.entry(n.len()).or_default() += 1);
        // depth per stripe
        let mut depths = Vec::new();
        for stripe in 0..16 {
            let parent: BTreeMap<PeerId, PeerId> =
                pairs.iter().filter(|(_, s)| s.contains(&stripe)).map(|((p, c), _)| (*c, *p)).collect();
            let depth = |mut at: PeerId| { let mut d = 0; while let Some(up) = parent.get(&at) { at = *up; d += 1; } d };
            let all: Vec<usize> = parent.keys().map(|c| depth(*c)).collect();
            let max = all.iter().max().copied().unwrap_or(0);
            if stripe % 4 == 0 { depths.push((max, all.iter().filter(|d| **d == max).count())); }
        }
        println!("{peers} {epoch}: loads {loads:?} interior-in {homes:?} pair-multiplicity {multi:?} depth(count) {depths:?}");
    }
}
