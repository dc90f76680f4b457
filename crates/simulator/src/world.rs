//! The virtual fleet: nodes, schedulers, and what happens between them. Does not own the network or the scenarios.

use std::net::Ipv4Addr;
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::capacity::LOOK_INTERVAL;
use planner::{ArtifactId, HostAddr, PeerId, Place, Planner};
use swarm::{Config, Input, Output, ReadId, ReadOutcome, Swarm};

use crate::network::{Crossed, Network, Served};
use crate::options::{Fault, Options, Report};
use crate::queue::Queue;

mod asked;
mod learning;
mod links;
pub(crate) mod news;
mod orphans;
mod plans;
mod sinks;
mod watch;

pub(crate) use plans::first_plans;

/// Time of a control message, one way.
pub(crate) const LATENCY: Duration = Duration::from_micros(200);

/// Events of one node after which a run is called stuck: far beyond any scenario, so that a loop ends.
const EVENTS_MAX: u64 = 5_000_000;

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

#[derive(Debug)]
enum Event {
    Served(Served),
    Crossed(Crossed),
    Input(u32, Box<Input>),
    Tick(u32),
    /// A read arrives at its source: from, to, what.
    Asked(u32, u32, ReadId, Run),
    /// What a node has proved since it last told its scheduler is due to be said.
    Flush(u32),
    /// The same of its children.
    Tell(u32),
    /// News arrive: from, to, which of the sender's, and what it reads from the origin if that is new.
    Told(u32, u32, news::Span, Option<Box<news::Coming>>),
    ToPlanner(Box<planner::Input>),
    TickPlanner,
    Begin(u32),
    Kill(u32),
    Hang(u32),
    SchedulerGone,
    SchedulerBack,
    Rejoin(u32),
    Watch,
    /// Nodes look at what they have moved.
    Look,
}

impl From<Served> for Event {
    fn from(served: Served) -> Self {
        Self::Served(served)
    }
}

#[expect(clippy::struct_excessive_bools, reason = "facts of a node, none of which follows from another")]
struct Node {
    swarm: Option<Swarm>,
    is_alive: bool,
    is_seed: bool,
    is_corrupt: bool,
    is_silent: bool,
    /// It does nothing.
    is_hung: bool,
    /// How many pieces it has when it joins.
    has: u32,
    /// What it says that its card does.
    claim: u64,
    /// Its card's stations, to send and to receive.
    card: (u32, u32),
    /// What the origin's bytes pass on their way to it, if that is thinner than its card.
    from_origin: Option<u32>,
    /// What proves what comes.
    sink: sinks::Sink,
    /// Who is linked to it to read, ascending.
    children: Vec<news::Child>,
    coming: news::Coming,
    /// Everything that it has proved, in order.
    news: Vec<Run>,
    /// When a child is told more.
    tells_at: Option<Duration>,
    /// How much of that its scheduler was told.
    reported: usize,
    wake: Option<Duration>,
    learning: learning::Learning,
}

struct World {
    options: Options,
    queue: Queue<Event>,
    network: Network,
    /// The fleet; the last one is the origin.
    nodes: Vec<Node>,
    /// Each rack's stations, to the other racks and from them.
    uplinks: Vec<(u32, u32)>,
    planner: Option<Planner>,
    planner_wake: Option<Duration>,
    layout: PieceLayout,
    origin_ok: bool,
    has_rates: bool,
    /// Nodes of which nothing more is expected.
    over: usize,
    watched: watch::Watched,
    orphans: orphans::Orphans,
    /// Of each node, whom each read was asked of.
    reads: Vec<asked::Asked>,
    /// Empty; kept for its memory.
    outputs: Vec<Output>,
    report: Report,
}

/// Runs a scenario to its end.
///
/// # Panics
/// If the scenario has more pieces than an artifact may have.
pub fn run(options: &Options) -> Report {
    let mut world = World::new(options.clone());
    let events_max = EVENTS_MAX * (options.nodes as u64 + 1);
    while let Some(event) = world.queue.pop() {
        world.report.events += 1;
        if world.queue.now() > options.time_max
            || world.report.events > events_max
            || world.over >= options.nodes
        {
            break;
        }
        world.handle(event);
    }
    world.report.orphans = world.orphans();
    world.report
}

fn id_of(node: u32, seed: u64) -> PeerId {
    let word =
        (u64::from(node) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[12..].copy_from_slice(&node.to_be_bytes());
    PeerId::new(bytes)
}

pub(crate) fn node_of(peer: PeerId) -> u32 {
    let [.., a, b, c, d] = *peer.bytes();
    u32::from_be_bytes([a, b, c, d])
}

impl World {
    fn new(options: Options) -> Self {
        let layout =
            PieceLayout::new(vec![u64::from(options.pieces) * PIECE_BYTES]).expect("a small artifact");
        let count = options.nodes;
        let mut world = Self {
            queue: Queue::new(LATENCY),
            network: Network::new(options.quanta),
            nodes: Vec::new(),
            uplinks: Vec::new(),
            planner: Some(Planner::new()),
            planner_wake: None,
            layout,
            origin_ok: true,
            has_rates: true,
            over: 0,
            watched: watch::Watched::default(),
            orphans: orphans::Orphans::default(),
            reads: (0..=count).map(|_| asked::Asked::default()).collect(),
            outputs: Vec::new(),
            report: Report::begun(count, options.seed),
            options,
        };
        for node in 0..=count {
            let rate = if node == count { world.options.origin_rate } else { world.options.rate };
            world.add_node(rate);
        }
        if let Some(racks) = world.options.racks {
            let mut station = || world.network.add_station(racks.uplink);
            world.uplinks = (0..racks.count).map(|_| (station(), station())).collect();
        }
        let mut begin = vec![Duration::ZERO; count];
        for fault in world.options.faults.clone() {
            world.set_up(fault, &mut begin);
        }
        for (node, at) in begin.into_iter().enumerate() {
            world.queue.push(at, Event::Begin(number(node)));
        }
        world.queue.push(Duration::ZERO, Event::Watch);
        world.queue.push(LOOK_INTERVAL, Event::Look);
        world
    }

    fn add_node(&mut self, rate: u64) {
        let card = (self.network.add_station(rate), self.network.add_station(rate));
        self.nodes.push(Node {
            swarm: None,
            is_alive: true,
            is_seed: false,
            is_corrupt: false,
            is_silent: false,
            is_hung: false,
            has: 0,
            claim: rate,
            card,
            from_origin: None,
            sink: sinks::Sink::default(),
            children: Vec::new(),
            coming: (0, Vec::new()),
            news: Vec::new(),
            tells_at: None,
            reported: 0,
            wake: None,
            learning: learning::Learning::new(),
        });
    }

    fn set_up(&mut self, fault: Fault, begin: &mut [Duration]) {
        match fault {
            Fault::Kill { node, at } => self.queue.push(at, Event::Kill(number(node))),
            Fault::Hang { node, at } => self.queue.push(at, Event::Hang(number(node))),
            Fault::SchedulerGone { at } => self.queue.push(at, Event::SchedulerGone),
            Fault::TakeOver { at, after } => {
                self.queue.push(at, Event::SchedulerGone);
                self.queue.push(at + after, Event::SchedulerBack);
            }
            Fault::Corrupt { node } => self.nodes[node].is_corrupt = true,
            Fault::Silent { node } => self.nodes[node].is_silent = true,
            Fault::Slow { node, factor } => {
                self.set_rate(node, self.options.rate / u64::from(factor));
                self.nodes[node].claim /= u64::from(factor);
            }
            Fault::Far { node, factor } => {
                let thin = self.network.add_station(self.options.rate / u64::from(factor));
                self.nodes[node].from_origin = Some(thin);
            }
            Fault::Favoured { node, share } => {
                let origin = self.nodes[self.origin() as usize].card.0;
                self.network.favour(origin, number(node), share);
            }
            Fault::Lame { node, factor } => self.set_rate(node, self.options.rate / u64::from(factor)),
            Fault::Card { node, rate } => {
                self.set_rate(node, rate);
                self.nodes[node].claim = rate;
            }
            Fault::Sink { node, a_piece, lanes } => self.nodes[node].sink = sinks::Sink::new(a_piece, lanes),
            Fault::Has { node, pieces } => self.nodes[node].has = pieces,
            Fault::Late { node, at } => begin[node] = at,
            Fault::Seed { node } => self.nodes[node].is_seed = true,
            Fault::NoOrigin => self.origin_ok = false,
            Fault::NoRates => self.has_rates = false,
            Fault::Foreign { node, rate } => {
                self.set_rate(node, self.options.rate.saturating_sub(rate));
                self.nodes[node].learning.foreign = rate;
            }
        }
    }

    fn set_rate(&mut self, node: usize, rate: u64) {
        let (up, down) = self.nodes[node].card;
        self.network.set_rate(up, rate);
        self.network.set_rate(down, rate);
    }

    fn origin(&self) -> u32 {
        number(self.options.nodes)
    }

    fn id_of(&self, node: u32) -> PeerId {
        id_of(node, self.options.seed)
    }

    /// The rack of a node, if there are racks; the origin is in none.
    fn rack_of(&self, node: u32) -> Option<usize> {
        let racks = self.options.racks.filter(|_| node < self.origin())?;
        Some(racks.of(node as usize, self.options.nodes))
    }

    fn at(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    fn fold(&mut self, words: [u64; 3]) {
        for word in words {
            let hash = (self.report.event_hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.report.event_hash = hash ^ (hash >> 29);
        }
    }

    fn later_input(&mut self, node: u32, input: Input) {
        self.queue.later(Event::Input(node, Box::new(input)));
    }

    fn tell_planner(&mut self, input: planner::Input) {
        self.queue.later(Event::ToPlanner(Box::new(input)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Served(served) => self.served(served),
            Event::Crossed(crossed) => self.crossed(crossed),
            Event::Input(node, input) => self.input(node, *input),
            Event::Tick(node) => {
                self.at(node).wake = None;
                self.input(node, Input::Tick);
            }
            Event::Asked(from, to, read, run) => self.asked(from, to, (read, run)),
            Event::Flush(node) => self.flush(node),
            Event::Tell(node) => self.tell(node),
            Event::Told(from, to, news, coming) => self.told((from, to), news, coming),
            Event::ToPlanner(input) => self.planner_input(*input),
            Event::TickPlanner => {
                self.planner_wake = None;
                self.planner_input(planner::Input::Tick);
            }
            Event::Begin(node) => self.begin(node),
            Event::Kill(node) => self.kill(node),
            Event::Hang(node) => self.hang(node),
            Event::SchedulerGone => {
                self.planner = None;
                for node in 0..self.origin() {
                    self.later_input(node, Input::NoScheduler);
                }
            }
            Event::SchedulerBack => {
                self.planner = Some(Planner::new());
                for node in 0..self.origin() {
                    // Each notices at another moment.
                    let at = self.queue.now() + LATENCY * (7 * node);
                    self.queue.push(at, Event::Rejoin(node));
                }
            }
            Event::Rejoin(node) => self.join(node),
            Event::Watch => self.watch(),
            Event::Look => self.look(),
        }
    }

    fn begin(&mut self, node: u32) {
        if !self.at(node).is_alive {
            return;
        }
        let me = self.id_of(node);
        let pieces = self.options.pieces;
        let is_full = self.at(node).is_seed || self.at(node).is_silent;
        let mut have = PieceMap::empty(pieces);
        have.insert_run(Run::new(0, if is_full { pieces } else { self.at(node).has }));
        let config = Config::new(me, self.options.seed ^ u64::from(node));
        self.at(node).swarm = Some(Swarm::new(config, self.layout.clone(), have, self.queue.now()));
        if self.planner.is_none() {
            self.later_input(node, Input::NoScheduler);
        }
        self.join(node);
        let origin = if self.origin_ok { Input::OriginUp { ranges: true } } else { Input::OriginDown };
        self.input(node, origin);
    }

    /// Tells the scheduler everything.
    fn join(&mut self, node: u32) {
        let peer = self.id_of(node);
        let state = &self.nodes[node as usize];
        let Some(swarm) = state.swarm.as_ref() else { return };
        let (have, is_seed) = (swarm.have().runs(), state.is_seed);
        let (epoch, origin_in_flight) = state.coming.clone();
        let nic_rate = self.has_rates.then_some(state.claim);
        let (address, name) = (format!("node-{node}:1"), format!("node-{node}"));
        let [_, b, c, d] = node.to_be_bytes();
        let host = HostAddr::new(Ipv4Addr::new(10, b, c, d).into());
        let rack = self.rack_of(node).map_or_else(String::new, |rack| format!("rack-{rack}"));
        let place = Place { zone: String::new(), rack };
        self.tell_planner(planner::Input::Register { peer, address, name, nic_rate, place, host });
        self.say_measured(node);
        self.tell_planner(planner::Input::Join {
            peer,
            artifact: ARTIFACT,
            bytes: self.layout.total_bytes(),
            piece_count: self.options.pieces,
            origin_ok: self.origin_ok,
            is_seed,
            have,
            progress: planner::Progress { epoch, origin_in_flight, ..planner::Progress::default() },
        });
    }

    fn kill(&mut self, node: u32) {
        let peer = self.id_of(node);
        self.note_orphans(node);
        let is_news = self.report.done[node as usize].is_none() && self.at(node).is_alive;
        self.over += usize::from(is_news && !self.report.failed.contains(&(node as usize)));
        self.at(node).is_alive = false;
        self.at(node).swarm = None;
        for child in std::mem::take(&mut self.at(node).children) {
            self.later_input(child.node, Input::LinkDown { peer });
        }
        for (from, to) in self.network.pairs_of(node) {
            for read in self.network.cut(from, to) {
                self.later_input(to, Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
            }
        }
        for other in &mut self.nodes {
            other.children.retain(|child| child.node != node);
        }
        self.tell_planner(planner::Input::Gone { peer });
    }

    fn planner_input(&mut self, input: planner::Input) {
        let Some(planner) = &mut self.planner else { return };
        let now = self.queue.now();
        planner.handle(now, input);
        if let Some(at) = planner.next_wake().filter(|at| *at > now)
            && self.planner_wake.is_none_or(|set| at < set)
        {
            self.planner_wake = Some(at);
            self.queue.push(at, Event::TickPlanner);
        }
        while let Some(output) = planner.poll() {
            match output {
                planner::Output::Plan { to, plan, .. } => {
                    self.queue.later(Event::Input(node_of(to), Box::new(Input::Plan(plan))));
                }
                planner::Output::Standing(alarm) => {
                    self.report.standings.insert(node_of(alarm.peer) as usize, alarm.standing);
                }
            }
        }
    }
}

fn number(node: usize) -> u32 {
    u32::try_from(node).expect("a fleet of nodes that can be counted")
}
