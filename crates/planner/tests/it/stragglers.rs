//! Members that are much slower than their cards should be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::Run;
use planner::{Input, Output, PeerId, PeerPlan, Planner, StripeSource};

use crate::support::{ARTIFACT, arrival, id};

const PIECES: u32 = 4096;
const STEP: Duration = Duration::from_millis(100);

/// The one that is slow.
const SLOW: u8 = 3;

/// A broadcast to some members, in which each gets so many pieces in each step.
struct Broadcast {
    planner: Planner,
    plans: BTreeMap<PeerId, PeerPlan>,
    has: BTreeMap<u8, u32>,
    now: Duration,
}

impl Broadcast {
    fn begin(count: u8) -> Self {
        let has = (1..=count).map(|number| (number, 0)).collect();
        let mut broadcast =
            Self { planner: Planner::new(), plans: BTreeMap::new(), has, now: Duration::ZERO };
        for number in 1..=count {
            for input in arrival(number, PIECES) {
                broadcast.tell(input);
            }
        }
        broadcast
    }

    fn tell(&mut self, input: Input) {
        self.planner.handle(self.now, input);
        while let Some(output) = self.planner.poll() {
            if let Output::Plan { to, plan, .. } = output {
                self.plans.insert(to, plan);
            }
        }
    }

    /// Everybody gets forty pieces in each step, and the slow one fewer.
    fn go_on(&mut self, steps: u32, slow: u32) {
        for _ in 0..steps {
            for (number, from) in self.has.clone() {
                let to = from + if number == SLOW { slow } else { 40 };
                self.has.insert(number, to);
                self.tell(Input::Have {
                    peer: id(number),
                    artifact: ARTIFACT,
                    runs: vec![Run::new(from, to)],
                });
            }
            self.now += STEP;
            self.tell(Input::Tick);
        }
    }

    /// Children by parent, but for the slow one, and who reads the origin.
    fn plan(&self) -> (BTreeMap<PeerId, u32>, BTreeSet<PeerId>) {
        let (mut children, mut entrants) = (BTreeMap::new(), BTreeSet::new());
        for (peer, plan) in &self.plans {
            for part in &plan.stripes {
                match part.source {
                    StripeSource::Parent(_) if *peer == id(SLOW) => {}
                    StripeSource::Parent(parent) => *children.entry(parent).or_default() += 1,
                    StripeSource::Origin => drop(entrants.insert(*peer)),
                    StripeSource::None => {}
                }
            }
        }
        (children, entrants)
    }

    fn is_used(&self) -> bool {
        let (children, entrants) = self.plan();
        children.contains_key(&id(SLOW)) || entrants.contains(&id(SLOW))
    }
}

#[test]
fn whoever_is_slow_in_all_that_it_gets_serves_nobody_until_it_keeps_pace() {
    for count in [8, 16, 80] {
        let mut broadcast = Broadcast::begin(count);
        broadcast.go_on(2, 4);
        assert!(broadcast.is_used(), "of {count}: once is no proof");
        broadcast.go_on(2, 4);
        assert!(!broadcast.is_used(), "of {count}");
        let (children, _) = broadcast.plan();
        let most = children.values().max().copied();
        assert!(most <= Some(18), "of {count}: its children are shared by all: {children:?}");
        broadcast.go_on(19, 40);
        assert!(!broadcast.is_used(), "of {count}: it may be slow again at once");
        broadcast.go_on(3, 40);
        // Among many the others suffice, as shares are whole children.
        assert!(broadcast.is_used() || count > 16, "of {count}: it keeps pace");
    }
}

#[test]
fn nobody_is_blamed_where_one_stripe_is_late() {
    let mut broadcast = Broadcast::begin(16);
    // Fifteen stripes of sixteen come.
    broadcast.go_on(20, 37);
    assert!(broadcast.is_used());
}
