//! Who reads the origin slowly, and nothing else: what it loses of its part.

use std::time::Duration;

use modelpack::layout::{PieceIndex, Run};
use planner::{Input, PeerId, StripeSource};

use crate::support::{ARTIFACT, Fleet, arrival, id};

const MEMBERS: u8 = 8;
const PIECES: u32 = 3200;
const TICK: Duration = Duration::from_millis(100);

/// Pieces of each stripe that an entrant reads between two ticks.
const GAIN: u32 = 4;

/// A fleet of equal cards that gets an artifact, as the plans say.
struct Broadcast {
    fleet: Fleet,
    now: Duration,
    /// How much has been read of each stripe.
    read: Vec<u32>,
}

impl Broadcast {
    fn begin() -> Self {
        let mut fleet = Fleet::default();
        for number in 1..=MEMBERS {
            for input in arrival(number, PIECES) {
                fleet.tell(input);
            }
        }
        let stripes = fleet.plans[&id(1)].stripes.len();
        Self { fleet, now: Duration::ZERO, read: vec![0; stripes] }
    }

    /// Each stripe's entrant.
    fn entrants(&self) -> Vec<PeerId> {
        let reads = |stripe: usize| {
            let mut plans = self.fleet.plans.iter();
            plans.find(|(_, plan)| plan.stripes[stripe].source == StripeSource::Origin)
        };
        (0..self.read.len()).map(|stripe| *reads(stripe).expect("an entrant").0).collect()
    }

    fn children_of(&self, parent: PeerId) -> usize {
        let parts = self.fleet.plans.values().flat_map(|plan| &plan.stripes);
        parts.filter(|part| part.source == StripeSource::Parent(parent)).count()
    }

    /// A tick in which `slow` reads an eighth of what the others do; whatever is read is soon with everybody.
    fn tick(&mut self, slow: PeerId) {
        self.now += TICK;
        let is_slow_tick = (self.now.as_millis() / TICK.as_millis()).is_multiple_of(2);
        let (entrants, stripe_pieces) = (self.entrants(), self.fleet.plans[&id(1)].stripe_pieces);
        let mut runs = Vec::new();
        for (stripe, entrant) in entrants.into_iter().enumerate() {
            let gain = if entrant == slow { u32::from(is_slow_tick) } else { GAIN };
            for _ in 0..gain {
                let (block, at) = (self.read[stripe] / stripe_pieces, self.read[stripe] % stripe_pieces);
                let blocks =
                    block * u32::try_from(self.read.len()).expect("16") + u32::try_from(stripe).expect("16");
                runs.push(Run::one(PieceIndex(blocks * stripe_pieces + at)));
                self.read[stripe] += 1;
            }
        }
        for number in 1..=MEMBERS {
            let have = Input::Have { peer: id(number), artifact: ARTIFACT, runs: runs.clone() };
            self.fleet.tell_at(self.now, have);
        }
        self.fleet.tell_at(self.now, Input::Tick);
    }
}

#[test]
fn whoever_is_slow_at_the_origin_alone_reads_it_no_more_and_goes_on_serving() {
    let mut broadcast = Broadcast::begin();
    let slow = broadcast.entrants()[3];
    let children = broadcast.children_of(slow);
    assert!(children > 0);
    for _ in 0..30 {
        broadcast.tick(slow);
    }
    assert!(!broadcast.entrants().contains(&slow));
    assert!(broadcast.children_of(slow) >= children / 2, "its card is as good as any other");
}
