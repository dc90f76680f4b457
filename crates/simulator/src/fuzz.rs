//! Random faults on whole fleets, and what must hold whatever they are.
//!
//! Owns: runs from seeds, and what came of them. A seed draws everything (`scenario`): the fleet, what is wrong with its
//! members, and faults that strike at some time and heal. Each kind of fault is on or off in a seed, with a weight of its
//! own. While faults last the world looks for what must never be (`oracle`); from when all is calm everybody who behaves
//! has a generous time to be done. Does not own a decision of the product: those are `swarm`'s and `planner`'s.
//!
//! This world is another one than that of the measured cases: there links cannot break and schedulers are never two,
//! which keeps thousands of nodes cheap. Both share the network and the queue.

use std::time::Duration;

mod dice;
mod faults;
mod links;
mod misled;
mod news;
mod oracle;
mod racks;
mod reads;
mod scenario;
mod schedulers;
mod streams;
mod trace;
mod vouching;
mod words;
mod world;

pub use oracle::Violation;
pub use racks::Racks;
pub use scenario::{Fault, Member, Nature, Return, Scenario};

pub(crate) use dice::mix;
use trace::Trace;
use world::World;

/// Lines of a trace that are shown.
const TRACE_LINES: usize = 40;

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// What was found, if anything.
    pub violation: Option<Violation>,
    /// The last that happened to the nodes that it concerns; empty unless it was asked for.
    pub trace: Vec<String>,
    /// How everybody was then, a line each; likewise.
    pub state: Vec<String>,
    /// A fold over every event, to compare two runs.
    pub event_hash: u64,
    /// Events handled.
    pub events: u64,
    /// When the last node was done.
    pub last_done: Duration,
    /// Copies of the artifact that left the origin and seeds.
    pub copies: f64,
    /// Repairs that members began, because what somebody vouched for did not add up.
    pub repairs: u64,
    /// Plans that arrived with something wrong in them.
    pub wrong_plans: u64,
    /// The longest time that a source was seen idle while somebody waited.
    pub longest_wait: Duration,
}

/// Seeds that found something once, each with what; they are played before any fresh one.
pub fn past_seeds() -> impl Iterator<Item = (u64, &'static str)> {
    let lines = include_str!("../past-seeds.txt").lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once(' ')).filter_map(|(seed, why)| Some((seed.parse().ok()?, why)))
}

/// Plays a scenario.
pub fn play(scenario: &Scenario) -> Verdict {
    let mut world = World::new(scenario, Trace::default());
    world.play();
    verdict(&world)
}

/// What of a run is shown.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Nodes that lines are about; none means those that a violation concerns.
    pub nodes: Vec<u32>,
    /// The last lines, so many.
    pub lines: usize,
}

impl Default for Shown {
    fn default() -> Self {
        Self { nodes: Vec::new(), lines: TRACE_LINES }
    }
}

/// The same, and keeps what happened lately.
pub fn replay(scenario: &Scenario, shown: &Shown) -> Verdict {
    let mut world = World::new(scenario, Trace::kept());
    world.play();
    let found = world.oracle.violation.as_ref();
    let nodes = found.filter(|_| shown.nodes.is_empty()).map_or(&shown.nodes, |found| &found.nodes);
    let (trace, state) = (world.trace.about(nodes, shown.lines), world.state());
    Verdict { trace, state, ..verdict(&world) }
}

fn verdict(world: &World<'_>) -> Verdict {
    Verdict {
        trace: Vec::new(),
        state: Vec::new(),
        violation: world.oracle.violation.clone(),
        event_hash: world.event_hash,
        events: world.events,
        last_done: world.oracle.last_done,
        copies: world.oracle.copies(world.scenario.pieces),
        repairs: world.rootless.as_ref().map_or(0, |rootless| rootless.repairs),
        wrong_plans: world.plans_spoiled,
        longest_wait: world.oracle.longest_wait,
    }
}
