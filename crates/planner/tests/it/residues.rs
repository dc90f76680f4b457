//! Plans count with what is left of a card: as learned, less what others and other swarms take, and follow seldom.

use std::collections::BTreeMap;
use std::time::Duration;

use planner::capacity::{Foreign, Learned};
use planner::{
    ArtifactId, Input, Measured, Output, PeerId, PeerPlan, Place, Planner, Priority, Progress, StripeSource,
    SwarmLoad,
};

use crate::support::{ARTIFACT, PIECES, arrival, id, register};

const RATE: u64 = 1 << 30;
const OTHER: ArtifactId = ArtifactId([8; 32]);

/// A planner on a clock, and all parts of plans that it has told.
struct World {
    planner: Planner,
    now: Duration,
    plans: Vec<(PeerId, ArtifactId, PeerPlan)>,
}

impl World {
    /// Of so many peers that do not know their cards, in no swarm yet.
    fn new(peers: u8) -> Self {
        let mut world = Self { planner: Planner::new(), now: Duration::from_secs(1), plans: Vec::new() };
        (0..peers).for_each(|number| world.tell(register(number, None, Place::default())));
        world
    }

    fn tell(&mut self, input: Input) {
        self.planner.handle(self.now, input);
        while let Some(output) = self.planner.poll() {
            if let Output::Plan { to, artifact, plan } = output {
                self.plans.push((to, artifact, plan));
            }
        }
    }

    fn join(&mut self, artifact: ArtifactId, peers: std::ops::Range<u8>) {
        for number in peers {
            let [_, join] = arrival(number, PIECES);
            let Input::Join { peer, bytes, piece_count, have, progress, .. } = join else { unreachable!() };
            let (origin_ok, is_seed) = (true, false);
            self.tell(Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, have, progress });
        }
    }

    fn measured(&mut self, number: u8, measured: Measured) {
        self.tell(Input::Load { peer: id(number), sent: 0, received: 0, measured });
    }

    /// Lets time pass, in which it is woken whenever it wants; gives how many parts of plans it told meanwhile.
    fn run(&mut self, seconds: u64) -> usize {
        let (until, before) = (self.now + Duration::from_secs(seconds), self.plans.len());
        while let Some(wake) = self.planner.next_wake().filter(|wake| *wake <= until) {
            self.now = self.now.max(wake) + Duration::from_millis(1);
            self.tell(Input::Tick);
        }
        self.now = until;
        self.tell(Input::Tick);
        self.plans.len() - before
    }

    /// What is counted with, of each that is in a swarm.
    fn counts(&self, artifact: &ArtifactId) -> Vec<Option<u64>> {
        let plan = self.planner.plan_of(artifact, 99).expect("somebody is in it");
        plan.members.iter().map(|member| member.counts).collect()
    }

    fn join_as(&mut self, artifact: ArtifactId, number: u8, priority: Priority) {
        let [_, join] = arrival(number, PIECES);
        let Input::Join { peer, bytes, piece_count, have, .. } = join else { unreachable!() };
        let (origin_ok, is_seed) = (true, false);
        let progress = Progress { priority, ..Progress::default() };
        self.tell(Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, have, progress });
    }

    /// A member gets everything.
    fn complete(&mut self, artifact: ArtifactId, number: u8) {
        let runs = vec![modelpack::layout::Run::new(0, PIECES)];
        self.tell(Input::Have { peer: id(number), artifact, runs });
    }

    /// How urgent that is, by what each member was told last.
    fn told(&self, artifact: ArtifactId) -> Vec<Priority> {
        let last: BTreeMap<PeerId, &PeerPlan> =
            self.plans.iter().filter(|at| at.1 == artifact).map(|(to, _, plan)| (*to, plan)).collect();
        last.values().map(|plan| plan.priority).collect()
    }

    fn priority(&self, artifact: ArtifactId) -> Option<Priority> {
        self.planner.swarms().find(|swarm| swarm.artifact == artifact).map(|swarm| swarm.priority)
    }

    /// How many children a member has in all trees of a swarm.
    fn children(&self, artifact: &ArtifactId, number: u8) -> usize {
        let plan = self.planner.plan_of(artifact, 99).expect("somebody is in it");
        let of = |peer: PeerId| StripeSource::Parent(peer);
        plan.members.iter().flat_map(|member| &member.sources).filter(|at| **at == of(id(number))).count()
    }
}

fn learned(rate: u64, is_full: bool) -> Measured {
    let learned = Some(Learned { rate, is_full, age: Duration::ZERO });
    Measured { learned, ..Measured::default() }
}

#[test]
fn a_swarm_that_begins_counts_with_what_was_learned() {
    let mut world = World::new(6);
    for number in 0..6 {
        world.measured(number, learned(if number < 3 { RATE } else { RATE / 4 }, true));
    }
    world.join(ARTIFACT, 0..6);
    let [fast, slow] = [RATE, RATE / 4].map(Some);
    assert_eq!(world.counts(&ARTIFACT), [fast, fast, fast, slow, slow, slow]);
    let plan = world.planner.plan_of(&ARTIFACT, 99).expect("there is one");
    for member in plan.members.iter().filter(|member| member.counts == fast) {
        let is_slow = |at: &StripeSource| (3..6).any(|number| *at == StripeSource::Parent(id(number)));
        assert!(!member.sources.iter().any(is_slow), "{member:?}");
    }
    assert!(world.planner.plan_of(&ARTIFACT, 0).unwrap().bound.is_some(), "all rates are known");
}

#[test]
fn a_peer_that_idled_counts_like_the_others() {
    let mut world = World::new(6);
    for number in 0..5 {
        world.measured(number, learned(RATE, true));
    }
    world.measured(5, learned(RATE / 1000, false));
    world.join(ARTIFACT, 0..6);
    assert_eq!(world.counts(&ARTIFACT)[5], None);
    let most = (0..5).map(|number| world.children(&ARTIFACT, number)).max().unwrap();
    assert!(world.children(&ARTIFACT, 5) + 3 >= most, "{} {most}", world.children(&ARTIFACT, 5));
}

#[test]
fn a_running_plan_stays_while_all_find_out_that_they_are_alike() {
    let mut world = World::new(6);
    world.join(ARTIFACT, 0..6);
    for round in 0..20_u64 {
        for number in 0..6 {
            let rate = RATE - u64::from(number) * (RATE / 60) - round * (RATE / 200);
            world.measured(number, learned(rate, true));
        }
        assert_eq!(world.run(1), 0, "round {round}");
    }
    assert_eq!(world.counts(&ARTIFACT), [None; 6], "it was not worth a plan");
}

#[test]
fn a_running_plan_follows_a_card_that_is_clearly_another_and_not_again_soon() {
    let mut world = World::new(6);
    (0..6).for_each(|number| world.measured(number, learned(RATE, true)));
    world.join(ARTIFACT, 0..6);
    let before = world.children(&ARTIFACT, 2);
    world.measured(2, learned(RATE / 4, true));
    assert_eq!(world.run(1), 0, "others may notice the same");
    assert!(world.run(5) > 0);
    assert_eq!(world.counts(&ARTIFACT)[2], Some(RATE / 4));
    assert!(world.children(&ARTIFACT, 2) < before, "{before}");
    for times in [1, 2, 4] {
        world.measured(2, learned(RATE / times, true));
        assert_eq!(world.run(1), 0, "it goes to and fro");
    }
}

#[test]
fn what_is_nearly_done_is_not_planned_anew() {
    let mut world = World::new(6);
    (0..6).for_each(|number| world.measured(number, learned(RATE, true)));
    world.join(ARTIFACT, 0..6);
    for number in 0..6 {
        let runs = vec![modelpack::layout::Run::new(0, PIECES * 4 / 5)];
        world.tell(Input::Have { peer: id(number), artifact: ARTIFACT, runs });
    }
    world.measured(2, learned(RATE / 4, true));
    assert_eq!(world.run(20), 0);
}

#[test]
fn two_swarms_share_their_cards_and_the_second_leans_on_who_is_free() {
    let mut world = World::new(8);
    (0..8).for_each(|number| world.measured(number, learned(RATE, true)));
    // The first has four of them busy.
    world.join(ARTIFACT, 0..4);
    for number in 0..4 {
        let swarms = vec![SwarmLoad { artifact: ARTIFACT, rate: RATE }];
        world.measured(number, Measured { swarms, ..learned(RATE, true) });
    }
    world.join(OTHER, 0..8);
    let [whole, half] = [RATE, RATE / 2].map(Some);
    assert_eq!(world.counts(&OTHER), [half, half, half, half, whole, whole, whole, whole]);
    let children =
        |numbers: std::ops::Range<u8>| numbers.map(|number| world.children(&OTHER, number)).sum::<usize>();
    let (busy, free) = (children(0..4), children(4..8));
    assert!(free * 4 >= busy * 5, "{busy} {free}");
    // Both are measured now: the first has half of its cards in all of its members, so that nobody moves.
    for number in 0..4 {
        let swarms = [ARTIFACT, OTHER].map(|artifact| SwarmLoad { artifact, rate: RATE / 2 }).to_vec();
        world.measured(number, Measured { swarms, ..learned(RATE, true) });
    }
    let epoch = world.planner.epoch(&ARTIFACT);
    world.run(30);
    assert_eq!(world.planner.epoch(&ARTIFACT), epoch);
}

#[test]
fn a_more_urgent_swarm_counts_with_all_of_its_cards_and_the_other_with_what_is_left() {
    let mut world = World::new(9);
    (0..9).for_each(|number| world.measured(number, learned(RATE, true)));
    world.join(ARTIFACT, 0..8);
    let busy = |world: &mut World, number: u8, rates: [u64; 2]| {
        let load = |(artifact, rate)| SwarmLoad { artifact, rate };
        let swarms = [ARTIFACT, OTHER].into_iter().zip(rates).map(load).collect();
        world.measured(number, Measured { swarms, ..learned(RATE, true) });
    };
    (0..8).for_each(|number| busy(&mut world, number, [RATE, 0]));
    // Half of them want something else, and at once. One more has that, and is in no hurry.
    world.join_as(OTHER, 8, Priority::Normal);
    world.complete(OTHER, 8);
    (0..4).for_each(|number| world.join_as(OTHER, number, Priority::High));
    assert_eq!(world.counts(&OTHER), [Some(RATE); 5], "from the first of them on");
    (0..4).for_each(|number| busy(&mut world, number, [RATE / 8, RATE / 8 * 7]));
    (4..8).for_each(|number| busy(&mut world, number, [RATE, 0]));
    world.run(15);
    let [whole, rest] = [RATE, RATE / 8].map(Some);
    assert_eq!(world.counts(&ARTIFACT), [rest, rest, rest, rest, whole, whole, whole, whole]);
    let children =
        |numbers: std::ops::Range<u8>| numbers.map(|number| world.children(&ARTIFACT, number)).sum::<usize>();
    let (busy_ones, free_ones) = (children(0..4), children(4..8));
    assert!(free_ones > busy_ones * 2, "{busy_ones} {free_ones}");
    assert_eq!(world.counts(&OTHER), [whole; 5], "what the other takes is free");
    // They have it. The cards are the other's again.
    (0..4).for_each(|number| world.complete(OTHER, number));
    (0..8).for_each(|number| busy(&mut world, number, [RATE, 0]));
    world.run(15);
    assert_eq!(world.counts(&ARTIFACT), [whole; 8]);
}

#[test]
fn a_swarm_is_as_urgent_as_to_the_most_urgent_of_those_who_lack_something() {
    let mut world = World::new(5);
    world.join_as(ARTIFACT, 0, Priority::Low);
    world.join_as(ARTIFACT, 1, Priority::Low);
    assert_eq!(world.told(ARTIFACT), [Priority::Low; 2]);
    world.join_as(ARTIFACT, 2, Priority::High);
    assert_eq!(world.told(ARTIFACT), [Priority::High; 3], "everybody is told");
    world.join_as(ARTIFACT, 3, Priority::Low);
    assert_eq!((world.told(ARTIFACT).len(), world.priority(ARTIFACT)), (4, Some(Priority::High)));
    // It has everything: who serves it need not hurry for it.
    world.complete(ARTIFACT, 2);
    assert_eq!(
        (world.told(ARTIFACT), world.priority(ARTIFACT)),
        (vec![Priority::Low; 4], Some(Priority::Low))
    );
    // One thinks otherwise, and leaves.
    world.join_as(ARTIFACT, 3, Priority::Normal);
    assert_eq!(world.priority(ARTIFACT), Some(Priority::Normal));
    world.tell(Input::Leave { peer: id(3), artifact: ARTIFACT });
    assert_eq!(world.priority(ARTIFACT), Some(Priority::Low));
    // Whoever only holds it wants nothing.
    let before = world.plans.len();
    for number in [0, 1] {
        world.complete(ARTIFACT, number);
    }
    assert_eq!(
        (world.priority(ARTIFACT), world.plans.len()),
        (Some(Priority::Low), before),
        "nobody has to hear"
    );
    world.tell(Input::Gone { peer: id(0) });
    world.join_as(OTHER, 4, Priority::Normal);
    world.join_as(ARTIFACT, 4, Priority::Normal);
    assert_eq!(world.priority(ARTIFACT), Some(Priority::Normal));
}

#[test]
fn what_others_move_on_a_card_is_not_counted_with() {
    let mut world = World::new(6);
    (0..6).for_each(|number| world.measured(number, learned(RATE, true)));
    let foreign = Some(Foreign { sent: RATE / 4 * 3, received: 0, age: Duration::ZERO });
    world.measured(1, Measured { foreign, ..learned(RATE, true) });
    world.join(ARTIFACT, 0..6);
    assert_eq!(world.counts(&ARTIFACT)[1], Some(RATE / 4));
    // They have gone.
    world.measured(1, learned(RATE, true));
    world.run(15);
    assert_eq!(world.counts(&ARTIFACT)[1], Some(RATE));
    let status = world.planner.peers().find(|at| at.peer == id(1)).expect("it is there");
    let learned = status.learned.expect("it said so");
    assert_eq!((learned.rate, learned.is_full, learned.age.as_secs()), (RATE, true, 15));
}
