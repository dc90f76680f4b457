//! The virtual fleet: nodes, their cards, and the events between them. Does not own the scenarios (tests).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::{ArtifactId, HostAddr, PeerId, Planner, Standing};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

/// Time of a control message, one way.
const LATENCY: Duration = Duration::from_micros(200);

/// Until when a read that is never answered ends: as the grants of the product do.
const GRANT_EXPIRY: Duration = Duration::from_secs(10);

/// How often a link that carries bytes of an unfinished piece says so.
const PROGRESS: Duration = Duration::from_millis(100);

/// Virtual time after which a run is called stuck.
const TIME_MAX: Duration = Duration::from_mins(10);

/// Events after which a run is called stuck: far beyond any scenario, so that a loop ends.
const EVENTS_MAX: u64 = 20_000_000;

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Node `node` dies at `at`.
    Kill {
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
    /// Node `node` has a card that is `factor` times slower.
    Slow {
        /// Its number.
        node: usize,
        /// How many times.
        factor: u32,
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
}

/// A scenario.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes.
    pub nodes: usize,
    /// Pieces of the artifact, one blob.
    pub pieces: u32,
    /// Bytes per second of each card, in each direction, and of the origin.
    pub rate: u64,
    /// What makes the run its own.
    pub seed: u64,
    /// What goes wrong.
    pub faults: Vec<Fault>,
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
    /// Pieces each node received, duplicates included.
    pub received: Vec<u64>,
    /// Nodes that were blamed.
    pub blamed: BTreeSet<usize>,
    /// What the scheduler trusts nodes with, where that has changed.
    pub standings: BTreeMap<usize, Standing>,
    /// A fold over every event, to compare two runs.
    pub event_hash: u64,
    /// Events handled.
    pub events: u64,
}

enum Event {
    Begin(usize),
    Kill(usize),
    SchedulerGone,
    SchedulerBack,
    Rejoin(usize),
    TickPlanner,
    Input(usize, Input),
    ToPlanner(planner::Input),
    Tick(usize),
    Sent(usize),
    Delivered(usize, usize, ReadId, PieceIndex, bool),
    Asked(usize, Job),
}

struct Job {
    to: usize,
    read: ReadId,
    run: Run,
    is_last_due: bool,
}

#[expect(clippy::struct_excessive_bools, reason = "five facts of a node, none of which follows from another")]
struct Node {
    swarm: Option<Swarm>,
    is_alive: bool,
    is_seed: bool,
    is_corrupt: bool,
    is_silent: bool,
    rate: u64,
    rx_free: Duration,
    jobs: VecDeque<Job>,
    is_sending: bool,
    children: BTreeSet<usize>,
    coming: (u64, Vec<Run>),
    wake: Option<Duration>,
}

struct World {
    options: Options,
    now: Duration,
    seq: u64,
    events: BTreeMap<(Duration, u64), Event>,
    /// The fleet; the last one is the origin.
    nodes: Vec<Node>,
    planner: Option<Planner>,
    layout: PieceLayout,
    origin_ok: bool,
    has_rates: bool,
    report: Report,
}

/// Runs a scenario to its end.
pub fn run(options: &Options) -> Report {
    let mut world = World::new(options.clone());
    while let Some(((at, _), event)) = world.events.pop_first() {
        world.now = at;
        world.report.events += 1;
        if at > TIME_MAX || world.report.events > EVENTS_MAX || world.is_over() {
            break;
        }
        world.handle(event);
    }
    world.report
}

fn id_of(node: usize, seed: u64) -> PeerId {
    let word =
        (node as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[8..].copy_from_slice(&(node as u64).to_be_bytes());
    PeerId::new(bytes)
}

fn node_of(peer: PeerId) -> usize {
    usize::from(peer.bytes()[15])
}

impl World {
    fn new(options: Options) -> Self {
        let layout =
            PieceLayout::new(vec![u64::from(options.pieces) * PIECE_BYTES]).expect("a small artifact");
        let node = |rate| Node {
            swarm: None,
            is_alive: true,
            is_seed: false,
            is_corrupt: false,
            is_silent: false,
            rate,
            rx_free: Duration::ZERO,
            jobs: VecDeque::new(),
            is_sending: false,
            children: BTreeSet::new(),
            coming: (0, Vec::new()),
            wake: None,
        };
        let count = options.nodes;
        let mut world = Self {
            now: Duration::ZERO,
            seq: 0,
            events: BTreeMap::new(),
            nodes: (0..=count).map(|_| node(options.rate)).collect(),
            planner: Some(Planner::new()),
            layout,
            origin_ok: true,
            has_rates: true,
            report: Report {
                done: vec![None; count],
                failed: Vec::new(),
                origin_bytes: 0,
                seed_bytes: 0,
                received: vec![0; count],
                blamed: BTreeSet::new(),
                standings: BTreeMap::new(),
                event_hash: options.seed,
                events: 0,
            },
            options,
        };
        let mut begin = vec![Duration::ZERO; count];
        for fault in world.options.faults.clone() {
            match fault {
                Fault::Kill { node, at } => world.push(at, Event::Kill(node)),
                Fault::SchedulerGone { at } => world.push(at, Event::SchedulerGone),
                Fault::TakeOver { at, after } => {
                    world.push(at, Event::SchedulerGone);
                    world.push(at + after, Event::SchedulerBack);
                }
                Fault::Corrupt { node } => world.nodes[node].is_corrupt = true,
                Fault::Silent { node } => world.nodes[node].is_silent = true,
                Fault::Slow { node, factor } => world.nodes[node].rate /= u64::from(factor),
                Fault::Late { node, at } => begin[node] = at,
                Fault::Seed { node } => world.nodes[node].is_seed = true,
                Fault::NoOrigin => world.origin_ok = false,
                Fault::NoRates => world.has_rates = false,
            }
        }
        for (node, at) in begin.into_iter().enumerate() {
            world.push(at, Event::Begin(node));
        }
        world
    }

    fn push(&mut self, at: Duration, event: Event) {
        self.seq += 1;
        self.events.insert((at.max(self.now), self.seq), event);
    }

    fn later(&mut self, event: Event) {
        self.push(self.now + LATENCY, event);
    }

    fn is_over(&self) -> bool {
        self.report.done.iter().enumerate().all(|(node, done)| {
            done.is_some() || !self.nodes[node].is_alive || self.report.failed.contains(&node)
        })
    }

    fn fold(&mut self, words: [u64; 3]) {
        for word in words {
            let hash = (self.report.event_hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.report.event_hash = hash ^ (hash >> 29);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Begin(node) => self.begin(node),
            Event::Kill(node) => self.kill(node),
            Event::SchedulerGone => {
                self.planner = None;
                for node in 0..self.options.nodes {
                    self.later(Event::Input(node, Input::NoScheduler));
                }
            }
            Event::SchedulerBack => {
                self.planner = Some(Planner::new());
                for node in 0..self.options.nodes {
                    // Each notices at another moment.
                    let late = LATENCY * u32::try_from(7 * node).unwrap_or(u32::MAX);
                    self.push(self.now + late, Event::Rejoin(node));
                }
            }
            Event::Rejoin(node) => self.join(node),
            Event::TickPlanner => self.tell_planner(planner::Input::Tick),
            Event::Input(node, input) => self.input(node, input),
            Event::ToPlanner(input) => self.tell_planner(input),
            Event::Tick(node) => {
                self.nodes[node].wake = None;
                self.input(node, Input::Tick);
            }
            Event::Sent(node) => {
                self.nodes[node].is_sending = false;
                self.send(node);
            }
            Event::Delivered(from, to, read, piece, is_last) => {
                self.delivered(from, to, (read, piece, is_last));
            }
            Event::Asked(from, job) => {
                let is_link = from == self.options.nodes || self.nodes[from].children.contains(&job.to);
                if self.nodes[from].is_silent {
                    let ended = Input::ReadEnded { read: job.read, outcome: ReadOutcome::SourceGone };
                    self.push(self.now + GRANT_EXPIRY, Event::Input(job.to, ended));
                } else if self.nodes[from].is_alive && is_link {
                    self.nodes[from].jobs.push_back(job);
                    self.send(from);
                } else {
                    let outcome = ReadOutcome::SourceGone;
                    self.later(Event::Input(job.to, Input::ReadEnded { read: job.read, outcome }));
                }
            }
        }
    }

    fn begin(&mut self, node: usize) {
        let me = id_of(node, self.options.seed);
        let pieces = self.options.pieces;
        let is_seed = self.nodes[node].is_seed;
        let have = if is_seed || self.nodes[node].is_silent {
            PieceMap::full(pieces)
        } else {
            PieceMap::empty(pieces)
        };
        let config = Config::new(me, self.options.seed ^ node as u64);
        self.nodes[node].swarm = Some(Swarm::new(config, self.layout.clone(), have, self.now));
        if self.planner.is_none() {
            self.later(Event::Input(node, Input::NoScheduler));
        }
        self.join(node);
        let origin = if self.origin_ok { Input::OriginUp { ranges: true } } else { Input::OriginDown };
        self.input(node, origin);
    }

    /// Tells the scheduler everything.
    fn join(&mut self, node: usize) {
        let me = id_of(node, self.options.seed);
        let Some(swarm) = self.nodes[node].swarm.as_ref() else { return };
        let (pieces, is_seed, have) = (self.options.pieces, self.nodes[node].is_seed, swarm.have().runs());
        let (epoch, origin_in_flight) = self.nodes[node].coming.clone();
        let nic_rate = self.has_rates.then_some(self.nodes[node].rate);
        let (address, name) = (format!("node-{node}:1"), format!("node-{node}"));
        let [_, b, c, d] = u32::try_from(node).unwrap_or(u32::MAX).to_be_bytes();
        let host = HostAddr::new(Ipv4Addr::new(10, b, c, d).into());
        self.later(Event::ToPlanner(planner::Input::Register { peer: me, address, name, nic_rate, host }));
        self.later(Event::ToPlanner(planner::Input::Join {
            peer: me,
            artifact: ARTIFACT,
            bytes: self.layout.total_bytes(),
            piece_count: pieces,
            origin_ok: self.origin_ok,
            is_seed,
            have,
            progress: planner::Progress { epoch, origin_in_flight, round: 0 },
        }));
    }

    fn kill(&mut self, node: usize) {
        self.nodes[node].is_alive = false;
        self.nodes[node].swarm = None;
        let peer = id_of(node, self.options.seed);
        for child in std::mem::take(&mut self.nodes[node].children) {
            self.later(Event::Input(child, Input::LinkDown { peer }));
        }
        for job in std::mem::take(&mut self.nodes[node].jobs) {
            let outcome = ReadOutcome::SourceGone;
            self.later(Event::Input(job.to, Input::ReadEnded { read: job.read, outcome }));
        }
        for other in &mut self.nodes {
            other.children.remove(&node);
            other.jobs.retain(|job| job.to != node);
        }
        self.later(Event::ToPlanner(planner::Input::Gone { peer }));
    }

    fn tell_planner(&mut self, input: planner::Input) {
        let Some(planner) = &mut self.planner else { return };
        planner.handle(self.now, input);
        if let Some(at) = planner.next_wake().filter(|at| *at > self.now) {
            self.seq += 1;
            self.events.insert((at, self.seq), Event::TickPlanner);
        }
        let mut plans = Vec::new();
        while let Some(output) = planner.poll() {
            match output {
                planner::Output::Plan { to, plan, .. } => plans.push((node_of(to), plan)),
                planner::Output::Standing(alarm) => {
                    self.report.standings.insert(node_of(alarm.peer), alarm.standing);
                }
            }
        }
        for (node, plan) in plans {
            self.later(Event::Input(node, Input::Plan(plan)));
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let Some(swarm) = &mut self.nodes[node].swarm else { return };
        swarm.handle(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = swarm.poll() {
            outputs.push(output);
        }
        let wake = swarm.next_wake();
        for output in &outputs {
            self.output(node, output);
        }
        if let Some(at) = wake
            && self.nodes[node].wake.is_none_or(|set| at < set || set <= self.now)
        {
            self.nodes[node].wake = Some(at);
            self.push(at, Event::Tick(node));
        }
    }

    fn output(&mut self, node: usize, output: &Output) {
        let me = id_of(node, self.options.seed);
        match *output {
            Output::Connect { peer, .. } => self.connect(node, peer),
            Output::Disconnect { peer } => self.disconnect(node, node_of(peer)),
            Output::Read { read, source, run, .. } => {
                self.fold([node as u64, read.0, u64::from(run.start.0) << 32 | u64::from(run.end.0)]);
                let from = match source {
                    Source::Origin => self.options.nodes,
                    Source::Peer(peer) => node_of(peer),
                };
                self.later(Event::Asked(from, Job { to: node, read, run, is_last_due: true }));
            }
            Output::Cancel { read } => {
                for from in 0..self.nodes.len() {
                    let jobs = &mut self.nodes[from].jobs;
                    let before = jobs.len();
                    jobs.retain(|job| job.to != node || job.read != read);
                    if jobs.len() < before {
                        self.later(Event::Input(node, Input::ReadEnded { read, outcome: ReadOutcome::Ok }));
                    }
                }
            }
            Output::Announce { run } => {
                for child in self.nodes[node].children.clone() {
                    self.later(Event::Input(child, Input::Have { peer: me, runs: vec![run] }));
                }
                self.later(Event::ToPlanner(planner::Input::Have {
                    peer: me,
                    artifact: ARTIFACT,
                    runs: vec![run],
                }));
            }
            Output::Coming { epoch, ref runs } => {
                for child in self.nodes[node].children.clone() {
                    self.later(Event::Input(child, Input::Coming { peer: me, epoch, runs: runs.clone() }));
                }
                self.nodes[node].coming = (epoch, runs.clone());
            }
            Output::OriginLost => {}
            Output::Blame { peer, piece } => {
                self.report.blamed.insert(node_of(peer));
                let (about, piece) = (peer, piece.0);
                let complaint = planner::Input::Complaint { peer: me, artifact: ARTIFACT, about, piece };
                self.later(Event::ToPlanner(complaint));
            }
            Output::Silent { peer } => {
                let silence = planner::Input::Silence { peer: me, artifact: ARTIFACT, about: peer };
                self.later(Event::ToPlanner(silence));
            }
            Output::Complete => self.report.done[node] = Some(self.now),
            Output::Failed { .. } => self.report.failed.push(node),
        }
    }

    fn connect(&mut self, node: usize, peer: PeerId) {
        let parent = node_of(peer);
        let Some(swarm) = self.nodes[parent].swarm.as_ref().filter(|_| self.nodes[parent].is_alive) else {
            return self.later(Event::Input(node, Input::LinkDown { peer }));
        };
        let (runs, (epoch, coming)) = (swarm.have().runs(), self.nodes[parent].coming.clone());
        self.nodes[parent].children.insert(node);
        self.later(Event::Input(node, Input::LinkUp { peer, in_flight_max: 16 }));
        self.later(Event::Input(node, Input::Have { peer, runs }));
        self.later(Event::Input(node, Input::Coming { peer, epoch, runs: coming }));
    }

    fn disconnect(&mut self, node: usize, parent: usize) {
        self.nodes[parent].children.remove(&node);
        let (ended, kept) =
            std::mem::take(&mut self.nodes[parent].jobs).into_iter().partition(|job| job.to == node);
        self.nodes[parent].jobs = kept;
        let ended: VecDeque<Job> = ended;
        for job in ended {
            let outcome = ReadOutcome::SourceGone;
            self.later(Event::Input(node, Input::ReadEnded { read: job.read, outcome }));
        }
    }

    fn time(bytes: u64, rate: u64) -> Duration {
        Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate.max(1))
    }

    /// Puts the next piece of the next read on a sender's card.
    fn send(&mut self, from: usize) {
        if self.nodes[from].is_sending {
            return;
        }
        let Some(mut job) = self.nodes[from].jobs.pop_front() else { return };
        let piece = job.run.start;
        job.run.start.0 += 1;
        let bytes = self.layout.piece_bytes(piece);
        if from == self.options.nodes {
            self.report.origin_bytes += bytes;
        } else if self.nodes[from].is_seed {
            self.report.seed_bytes += bytes;
        }
        let sent = self.now + Self::time(bytes, self.nodes[from].rate);
        let to = &mut self.nodes[job.to];
        let arrived = sent.max(to.rx_free + Self::time(bytes, to.rate));
        to.rx_free = arrived;
        let is_last = job.run.is_empty() && job.is_last_due;
        self.say_progress(from, job.to, arrived);
        self.nodes[from].is_sending = true;
        self.push(arrived + LATENCY, Event::Delivered(from, job.to, job.read, piece, is_last));
        self.push(sent, Event::Sent(from));
        if !job.run.is_empty() {
            self.nodes[from].jobs.push_back(job);
        }
    }

    fn say_progress(&mut self, from: usize, to: usize, until: Duration) {
        if from == self.options.nodes {
            return;
        }
        let peer = id_of(from, self.options.seed);
        let mut at = self.now + PROGRESS;
        while at < until {
            self.push(at, Event::Input(to, Input::Progress { peer }));
            at += PROGRESS;
        }
    }

    fn delivered(&mut self, from: usize, to: usize, (read, piece, is_last): (ReadId, PieceIndex, bool)) {
        if self.nodes[to].swarm.is_none() {
            return;
        }
        self.report.received[to] += 1;
        self.fold([from as u64, to as u64, u64::from(piece.0)]);
        let outcome = if self.nodes[from].is_corrupt { PieceOutcome::Bad } else { PieceOutcome::Good };
        self.input(to, Input::Piece { read, piece, outcome });
        if is_last {
            self.input(to, Input::ReadEnded { read, outcome: ReadOutcome::Ok });
        }
    }
}
