//! What is simulated, and what came of it, as data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use planner::Standing;
use planner::capacity::Learned;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Node `node` dies at `at`.
    Kill {
        /// Its number.
        node: usize,
        /// When.
        at: Duration,
    },
    /// Node `node` hangs from `at` on: its streams stay open, and nothing comes from it.
    Hang {
        /// Its number.
        node: usize,
        /// When.
        at: Duration,
    },
    /// The scheduler dies; peers notice.
    SchedulerGone {
        /// When.
        at: Duration,
    },
    /// The scheduler dies and another one takes over: peers come to it one after another.
    TakeOver {
        /// When the first dies.
        at: Duration,
        /// How long there is none.
        after: Duration,
    },
    /// Node `node` serves wrong bytes from the start.
    Corrupt {
        /// Its number.
        node: usize,
    },
    /// Node `node` has a card that is `factor` times slower, and says so.
    Slow {
        /// Its number.
        node: usize,
        /// How many times.
        factor: u32,
    },
    /// Node `node` has a card that is `factor` times slower than it says.
    Lame {
        /// Its number.
        node: usize,
        /// How many times.
        factor: u32,
    },
    /// Node `node` gets what it reads at the origin `factor` times slower than its card, and nothing else.
    Far {
        /// Its number.
        node: usize,
        /// How many times.
        factor: u32,
    },
    /// Node `node` gets `share` times what others get of the origin, while several read there.
    Favoured {
        /// Its number.
        node: usize,
        /// How many times.
        share: u32,
    },
    /// Node `node` has a card of its own, and says so.
    Card {
        /// Its number.
        node: usize,
        /// Bytes per second of it, in each direction.
        rate: u64,
    },
    /// Node `node` proves what it reads no quicker than this, `lanes` pieces side by side: its disk or its cores do not
    /// keep up with its card.
    Sink {
        /// Its number.
        node: usize,
        /// How long a piece takes.
        a_piece: Duration,
        /// How many at once.
        lanes: u32,
    },
    /// Node `node` has the first `pieces` pieces when it joins.
    Has {
        /// Its number.
        node: usize,
        /// How many.
        pieces: u32,
    },
    /// Node `node` joins at `at` only.
    Late {
        /// Its number.
        node: usize,
        /// When.
        at: Duration,
    },
    /// Node `node` is a seed that has everything.
    Seed {
        /// Its number.
        node: usize,
    },
    /// Node `node` has everything, and takes reads that it never answers.
    Silent {
        /// Its number.
        node: usize,
    },
    /// No node can read the origin.
    NoOrigin,
    /// No node says what its card does.
    NoRates,
    /// Others than this fleet move so much on the card of node `node`, in each direction, and it measures that.
    Foreign {
        /// Its number.
        node: usize,
        /// Bytes per second.
        rate: u64,
    },
}

/// How nodes stand in racks: as many in each, in the order of their numbers. The origin stands in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Racks {
    /// How many.
    pub count: usize,
    /// Bytes per second of what joins each to the others, in each direction.
    pub uplink: u64,
}

impl Racks {
    /// The rack of a node.
    pub fn of(&self, node: usize, nodes: usize) -> usize {
        node * self.count / nodes.max(1)
    }
}

/// A scenario.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// Pieces of the artifact, one blob.
    pub pieces: u32,
    /// Bytes per second of each card, in each direction.
    pub rate: u64,
    /// Bytes per second of the origin.
    pub origin_rate: u64,
    /// Without, all nodes stand together.
    pub racks: Option<Racks>,
    /// In how many parts a piece crosses the network: more are nearer to a fluid, and slower to simulate.
    pub quanta: u32,
    /// What makes the run its own.
    pub seed: u64,
    /// Virtual time after which a run is called stuck.
    pub time_max: Duration,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// What each node has learned of its card before; nothing, where there are fewer.
    pub learned: Vec<Option<Learned>>,
}

/// Far beyond any case that is measured.
const TIME_MAX: Duration = Duration::from_mins(10);

impl Options {
    /// A healthy fleet.
    pub fn new(nodes: usize, pieces: u32, rate: u64) -> Self {
        let (racks, quanta, seed, time_max, faults) = (None, 4, 1, TIME_MAX, Vec::new());
        let (origin_rate, learned) = (rate, Vec::new());
        Self { nodes, pieces, rate, origin_rate, racks, quanta, seed, time_max, faults, learned }
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// When each node was complete.
    pub done: Vec<Option<Duration>>,
    /// Nodes that said they failed.
    pub failed: Vec<usize>,
    /// Payload bytes that the origin sent.
    pub origin_bytes: u64,
    /// Payload bytes that seeds sent.
    pub seed_bytes: u64,
    /// Payload bytes that nodes sent to other racks.
    pub core_bytes: u64,
    /// Pieces each node received, duplicates included.
    pub received: Vec<u64>,
    /// What each node has learned of its card.
    pub learned: Vec<Option<Learned>>,
    /// Nodes that were blamed.
    pub blamed: BTreeSet<usize>,
    /// What the scheduler trusts nodes with, where that has changed.
    pub standings: BTreeMap<usize, Standing>,
    /// How busy things were, from time to time.
    pub busy: Vec<Busy>,
    /// The stripes whose parent has died or hung, of the last that did.
    pub orphans: Vec<Orphan>,
    /// A fold over every event, to compare two runs.
    pub event_hash: u64,
    /// Events handled.
    pub events: u64,
}

/// A stripe of a child whose parent has died or hung. All times are from that moment.
#[derive(Clone, Debug)]
pub struct Orphan {
    /// The child.
    pub node: usize,
    /// The stripe.
    pub stripe: usize,
    /// Whether the parent was its entrant: then nobody has what comes next, until the scheduler names another.
    pub is_of_entrant: bool,
    /// When the stall rule gives the parent up, if anything was out at it.
    pub stalls: Option<Duration>,
    /// When a piece of the stripe was next asked of anybody.
    pub asks: Option<Duration>,
    /// How long that should take from then on, as predicted.
    pub predicted: Option<Duration>,
    /// When a piece of the stripe next came.
    pub gap: Option<Duration>,
}

impl Report {
    /// Of a run of which nothing has happened yet.
    pub(crate) fn begun(nodes: usize, seed: u64) -> Self {
        Self {
            done: vec![None; nodes],
            failed: Vec::new(),
            origin_bytes: 0,
            seed_bytes: 0,
            core_bytes: 0,
            received: vec![0; nodes],
            learned: vec![None; nodes],
            blamed: BTreeSet::new(),
            standings: BTreeMap::new(),
            busy: Vec::new(),
            orphans: Vec::new(),
            event_hash: seed,
            events: 0,
        }
    }
}

/// How busy cards were since the last such line, as shares of all of them.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    /// When.
    pub at: Duration,
    /// The origin's sending.
    pub origin: f64,
    /// All nodes' sending.
    pub up: f64,
    /// All nodes' receiving.
    pub down: f64,
}
