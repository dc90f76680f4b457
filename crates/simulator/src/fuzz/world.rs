//! The world that a scenario is played in: nodes, their swarms, time. Does not own the network (`network`), streams
//! (`streams`), faults (`faults`), or what must hold (`oracle`).

use std::collections::BTreeMap;
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::{ArtifactId, HostAddr, PeerId, PeerPlan, Place, StripeSet};
use swarm::{Config, Input, Output, ReadId, ReadOutcome, Swarm};

use super::dice::{Dice, is_struck, mix};
use super::oracle::Oracle;
use super::racks::Racks;
use super::reads::Stuck;
use super::scenario::{Fault, Member, Nature, Scenario};
use super::schedulers::{Scheduler, Stream};
use super::streams::Streams;
use super::trace::Trace;
use super::vouching::Rootless;
use super::words::{about, aim, shown, words};
use crate::network::{Crossed, Network, Served};
use crate::queue::Queue;

/// Time of a control message, one way.
pub(super) const LATENCY: Duration = Duration::from_micros(200);

/// How often what nobody says is looked at.
pub(super) const AUDIT: Duration = Duration::from_millis(50);

/// Events of one node after which a run is called endless: far beyond any scenario.
const EVENTS_MAX: u64 = 2_000_000;

pub(super) const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

#[derive(Debug)]
pub(super) enum Event {
    Served(Served),
    Crossed(Crossed),
    /// What a node's own driver says.
    Local(u32, Box<Input>),
    /// What a child hears of a link that it has opened for the so manyeth time.
    Linked {
        child: u32,
        parent: u32,
        generation: u64,
        input: Box<Input>,
    },
    /// A read arrives at its source: from, to, what.
    Asked(u32, u32, ReadId, Run),
    /// A read is over, but for the proofs of what came of it.
    Ended(u32, ReadId, ReadOutcome),
    /// A read that is never answered is given up.
    Expired(u32, ReadId),
    Tick(u32),
    Flush(u32),
    /// What a child was not interested in is due to be told: from, to.
    Waited(u32, u32),
    /// What a node says to a scheduler, on its stream of that number.
    ToScheduler {
        at: u32,
        stream: Stream,
        input: Box<planner::Input>,
    },
    Planned {
        by: u32,
        stream: Stream,
        plan: Box<PeerPlan>,
    },
    TickScheduler(u32),
    /// A node without a stream to a scheduler tries again.
    Attach(u32),
    /// A node that is at the second scheduler goes to the first.
    Prefer(u32),
    Begin(u32),
    /// A node answers nothing from now on.
    Silent(u32),
    /// A node that said farewell ends.
    End(u32),
    /// A node has found that what it has does not add up.
    Repair(u32),
    Fault(usize),
    Heal(usize),
    /// Streams across a partition count as broken.
    Noticed(usize),
    Audit,
}

impl From<Served> for Event {
    fn from(served: Served) -> Self {
        Self::Served(served)
    }
}

/// A link as its child has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opened {
    pub(super) generation: u64,
    pub(super) is_open: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    Unborn,
    Alive,
    Leaving,
    Dead,
}

#[expect(clippy::struct_excessive_bools, reason = "facts of a node, none of which follows from another")]
pub(super) struct Node {
    pub(super) life: Life,
    pub(super) swarm: Option<Swarm>,
    /// What was proved here when it died.
    pub(super) remains: Vec<Run>,
    /// Its card's stations, to send and to receive.
    pub(super) card: (u32, u32),
    pub(super) origin_ok: bool,
    /// The generations of the links that others have opened to it.
    pub(super) children: BTreeMap<u32, u64>,
    pub(super) links: BTreeMap<u32, Opened>,
    pub(super) coming: (u64, Vec<Run>),
    /// What is proved and not announced yet.
    pub(super) unsaid: Vec<Run>,
    /// What was not told to a child that is not interested in it.
    pub(super) waiting: BTreeMap<u32, Vec<Run>>,
    /// Of which stripes children want to hear at once, on the link of which generation.
    pub(super) interests: BTreeMap<u32, (u64, StripeSet)>,
    wake: Option<Duration>,
    /// Its clock began then.
    epoch: Duration,
    /// Its clock stands still there.
    pub(super) held: Option<Duration>,
    /// What waits for it to go on, while it is stopped.
    pub(super) stopped: Option<Vec<Event>>,
    /// When its disk has proved all that came.
    pub(super) proved_at: Duration,
    /// Its stream to a scheduler: which, and the stream.
    pub(super) session: Option<(u32, Stream)>,
    /// Streams to schedulers that it ever had.
    pub(super) sessions: u64,
    /// Whether its swarm was told that there is no scheduler.
    pub(super) is_lost: bool,
    /// It goes to the second scheduler.
    pub(super) is_astray: bool,
    /// It has given up, and is no member any more.
    pub(super) has_failed: bool,
    /// The number here of the first read of its swarm.
    pub(super) first_read: u64,
}

pub(super) struct World<'a> {
    pub(super) scenario: &'a Scenario,
    pub(super) queue: Queue<Event>,
    pub(super) network: Network,
    /// The fleet; the last one is the origin.
    pub(super) nodes: Vec<Node>,
    /// Each rack's stations, to the other racks and from them.
    uplinks: Vec<(u32, u32)>,
    pub(super) schedulers: Vec<Scheduler>,
    pub(super) streams: Streams,
    pub(super) stuck: Stuck,
    /// Whom each read was asked of, while its source owes something.
    pub(super) asked: BTreeMap<(u32, ReadId), u32>,
    pub(super) layout: PieceLayout,
    pub(super) dice: Dice,
    /// What pieces are taken on, where nothing proves them one by one.
    pub(super) rootless: Option<Rootless>,
    /// Faults that spoil plans, and how many of a hundred.
    pub(super) wrong_plans: Vec<(usize, u64)>,
    pub(super) plans_spoiled: u64,
    /// How many faults keep the origin from serving.
    pub(super) origin_outages: u32,
    pub(super) oracle: Oracle,
    pub(super) trace: Trace,
    /// Nodes that must be done at the end.
    expected: Vec<u32>,
    /// Empty; kept for its memory.
    outputs: Vec<Output>,
    pub(super) event_hash: u64,
    pub(super) events: u64,
}

pub(super) fn id_of(node: u32, seed: u64) -> PeerId {
    let word = mix((u64::from(node) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mix(seed));
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[12..].copy_from_slice(&node.to_be_bytes());
    PeerId::new(bytes)
}

pub(super) fn node_of(peer: PeerId) -> u32 {
    let [.., a, b, c, d] = *peer.bytes();
    u32::from_be_bytes([a, b, c, d])
}

pub(super) fn number(index: usize) -> u32 {
    u32::try_from(index).expect("a fleet that can be counted")
}

impl<'a> World<'a> {
    pub(super) fn new(scenario: &'a Scenario, trace: Trace) -> Self {
        let sizes = vec![u64::from(scenario.pieces) * PIECE_BYTES];
        let mut world = Self {
            scenario,
            queue: Queue::new(LATENCY),
            network: Network::new(scenario.quanta),
            nodes: Vec::new(),
            uplinks: Vec::new(),
            schedulers: (0..scenario.schedulers).map(|_| Scheduler::new()).collect(),
            streams: Streams::default(),
            stuck: Stuck::default(),
            asked: BTreeMap::new(),
            layout: PieceLayout::new(sizes).expect("a small artifact"),
            dice: Dice::new(scenario.seed ^ 0x5eed),
            rootless: scenario.is_rootless.then(Rootless::default),
            wrong_plans: Vec::new(),
            plans_spoiled: 0,
            origin_outages: 0,
            oracle: Oracle::new(scenario),
            trace,
            expected: Vec::new(),
            outputs: Vec::new(),
            event_hash: scenario.seed,
            events: 0,
        };
        for member in &scenario.members {
            world.add_node(member);
        }
        let card = (world.network.add_station(scenario.origin_rate), world.network.add_station(1));
        world.nodes.push(node(card, false));
        for uplink in scenario.racks.iter().flat_map(Racks::uplinks) {
            world.uplinks.push((world.network.add_station(*uplink), world.network.add_station(*uplink)));
        }
        world.expected = world.healthy();
        for (node, member) in (0..).zip(&scenario.members) {
            world.queue.push(member.begins, Event::Begin(node));
            if let Nature::Silent { from } = member.nature {
                world.queue.push(from, Event::Silent(node));
            }
        }
        for (at, (when, _)) in scenario.faults.iter().enumerate() {
            world.queue.push(*when, Event::Fault(at));
        }
        world.queue.push(AUDIT, Event::Audit);
        world
    }

    fn add_node(&mut self, member: &Member) {
        let card = match member.returns {
            Some(returns) => self.nodes[returns.of].card,
            None => (self.network.add_station(member.rate), self.network.add_station(member.rate)),
        };
        self.nodes.push(node(card, member.origin_ok));
    }

    /// Where a node says that it stands.
    pub(super) fn place(&self, node: u32) -> Place {
        self.scenario.racks.as_ref().map_or_else(Place::default, |racks| racks.place(node as usize))
    }

    /// From one member's card to another's, and where they are not in one rack, by way of uplinks.
    pub(super) fn path(&self, from: u32, to: u32) -> Vec<u32> {
        let cards = (self.nodes[from as usize].card.0, self.nodes[to as usize].card.1);
        let homes = self.scenario.racks.as_ref().map(|at| (at.home(from as usize), at.home(to as usize)));
        let apart = homes.filter(|(from, to)| from != to);
        let apart = apart.map(|(from, to)| [self.uplinks[from].0, self.uplinks[to].1]);
        [cards.0].into_iter().chain(apart.into_iter().flatten()).chain([cards.1]).collect()
    }

    /// Those who behave and are never lost.
    fn healthy(&self) -> Vec<u32> {
        let is_lost = |node: usize| {
            let of = |fault: &Fault| matches!(fault, Fault::Kill { node: at } | Fault::Leave { node: at } if *at == node);
            self.scenario.faults.iter().any(|(_, fault)| of(fault))
        };
        let members = self.scenario.members.iter().enumerate();
        let healthy = members.filter(|(node, member)| member.nature == Nature::Honest && !is_lost(*node));
        healthy.map(|(node, _)| number(node)).collect()
    }

    /// Plays everything, or until something is found.
    pub(super) fn play(&mut self) {
        let events_max = EVENTS_MAX * self.nodes.len() as u64;
        while let Some(event) = self.queue.pop() {
            self.events += 1;
            let now = self.queue.now();
            if self.events > events_max {
                self.oracle.endless(now);
            }
            if self.oracle.violation.is_some() {
                return;
            }
            let is_calm = now > self.scenario.calm;
            if now > self.scenario.until
                || is_calm && self.expected.iter().all(|node| self.oracle.is_over(*node))
            {
                break;
            }
            self.handle(event);
        }
        self.oracle.at_end(self.queue.now(), &self.expected, self.scenario);
    }

    pub(super) fn origin(&self) -> u32 {
        number(self.scenario.members.len())
    }

    pub(super) fn id_of(&self, node: u32) -> PeerId {
        id_of(node, self.scenario.seed)
    }

    pub(super) fn at(&mut self, node: u32) -> &mut Node {
        &mut self.nodes[node as usize]
    }

    pub(super) fn member(&self, node: u32) -> &'a Member {
        &self.scenario.members[node as usize]
    }

    pub(super) fn is_alive(&self, node: u32) -> bool {
        self.nodes[node as usize].life == Life::Alive
    }

    pub(super) fn fold(&mut self, words: [u64; 3]) {
        for word in words {
            let hash = (self.event_hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.event_hash = hash ^ (hash >> 29);
        }
    }

    pub(super) fn local(&mut self, node: u32, input: Input) {
        self.queue.later(Event::Local(node, Box::new(input)));
    }

    /// Whose driver an event is for, if it is for one: who is stopped takes it later.
    fn driver_of(event: &Event) -> Option<u32> {
        match event {
            Event::Local(node, _)
            | Event::Tick(node)
            | Event::Flush(node)
            | Event::Waited(node, _)
            | Event::Attach(node)
            | Event::Prefer(node)
            | Event::Repair(node)
            | Event::Linked { child: node, .. }
            | Event::Planned { stream: Stream { node, .. }, .. } => Some(*node),
            _ => None,
        }
    }

    pub(super) fn handle(&mut self, event: Event) {
        if let Some(node) = Self::driver_of(&event)
            && let Some(waiting) = &mut self.at(node).stopped
        {
            waiting.push(event);
            return;
        }
        match event {
            Event::Served(served) => self.served(served),
            Event::Crossed(crossed) => self.crossed(crossed),
            Event::Local(node, input) => self.input(node, *input),
            Event::Linked { child, parent, generation, input } => {
                self.linked((child, parent), generation, *input);
            }
            Event::Asked(from, to, read, run) => self.asked(from, to, (read, run)),
            Event::Ended(node, read, outcome) => self.ended(node, read, outcome),
            Event::Expired(node, read) => self.expired(node, read),
            Event::Tick(node) => self.tick(node),
            Event::Flush(node) => self.flush(node),
            Event::Waited(node, child) => self.tell_waiting(node, child),
            Event::ToScheduler { at, stream, input } => self.told_scheduler(at, stream, *input),
            Event::Planned { by, stream, plan } => self.planned(by, stream, *plan),
            Event::TickScheduler(at) => self.tick_scheduler(at),
            Event::Attach(node) => self.attach(node),
            Event::Prefer(node) => self.prefer(node),
            Event::Begin(node) => self.begin(node),
            Event::Silent(node) => self.fall_silent(node),
            Event::End(node) => self.die(node),
            Event::Repair(node) => self.repair(node),
            Event::Fault(at) => self.strike(at),
            Event::Heal(at) => self.heal(at),
            Event::Noticed(at) => self.noticed(at),
            Event::Audit => self.audit(),
        }
    }

    fn begin(&mut self, node: u32) {
        if self.nodes[node as usize].life != Life::Unborn {
            return;
        }
        let (member, pieces, now) = (self.member(node), self.scenario.pieces, self.queue.now());
        let is_full = member.is_seed || matches!(member.nature, Nature::Silent { .. });
        let mut have = if is_full { PieceMap::full(pieces) } else { PieceMap::empty(pieces) };
        if let Some(returns) = member.returns.filter(|_| !is_full) {
            let of = number(returns.of);
            for piece in self.nodes[returns.of].remains.iter().flat_map(Run::pieces) {
                if !is_struck(self.scenario.seed, of, piece, returns.lost_percent) {
                    have.insert(piece);
                }
            }
        }
        self.begins_vouched(node, &mut have);
        self.trace.note(now, [node, node], || format!("begins with {} pieces", have.len()));
        self.oracle.begun(node, &have);
        let config = Config {
            peer_run_pieces: self.scenario.run_pieces,
            ..Config::new(self.id_of(node), self.scenario.seed ^ u64::from(node))
        };
        let swarm = Swarm::new(config, self.layout.clone(), have, Duration::ZERO);
        let state = self.at(node);
        (state.life, state.epoch, state.swarm) = (Life::Alive, now, Some(swarm));
        let origin = if state.origin_ok { Input::OriginUp { ranges: true } } else { Input::OriginDown };
        self.input(node, origin);
        self.attach(node);
    }

    /// Time as a node sees it.
    pub(super) fn clock(&self, node: u32) -> Duration {
        let node = &self.nodes[node as usize];
        node.held.unwrap_or(self.queue.now()).saturating_sub(node.epoch)
    }

    /// Tells a swarm something and does what it wants.
    pub(super) fn input(&mut self, node: u32, input: Input) {
        let (global, now) = (self.queue.now(), self.clock(node));
        if self.nodes[node as usize].swarm.is_none() || self.is_of_former_swarm(node, &input) {
            return;
        }
        self.trace.note(global, [node, about(&input).unwrap_or(node)], || shown(&input));
        self.fold([u64::from(node), crate::queue::nanos(global), crate::queue::nanos(now)]);
        self.oracle.told(node, (global, now), &input);
        let input = self.of_this_swarm(node, input);
        let Some(swarm) = &mut self.nodes[node as usize].swarm else { return };
        swarm.handle(now, input);
        let mut outputs = std::mem::take(&mut self.outputs);
        while let Some(output) = swarm.poll() {
            outputs.push(output);
        }
        for output in outputs.drain(..) {
            self.output(node, output);
        }
        self.outputs = outputs;
        self.arm(node);
    }

    fn output(&mut self, node: u32, output: Output) {
        let (global, now) = (self.queue.now(), self.clock(node));
        let output = self.of_this_node(node, output);
        if self.is_wrong(node, &output) {
            return self.doubt(node);
        }
        self.trace.note(global, [node, aim(&output).unwrap_or(node)], || format!("→ {}", words(&output)));
        self.oracle.wants(node, (global, now), &output);
        match output {
            Output::Connect { peer, .. } => self.connect(node, peer),
            Output::Disconnect { peer } => self.disconnect(node, node_of(peer)),
            Output::Read { read, source, run, .. } => self.read(node, source, (read, run)),
            Output::Cancel { read } => self.cancel(node, read),
            Output::Announce { run } => self.unsaid(node, run),
            Output::Interest { peer, stripes } => self.interested(node, peer, stripes),
            Output::Coming { epoch, runs } => self.coming(node, epoch, runs),
            Output::OriginLost => {
                self.at(node).origin_ok = false;
                self.join(node);
            }
            Output::Blame { peer, piece } => {
                let (me, about, piece) = (self.id_of(node), peer, piece.0);
                self.tell(node, planner::Input::Complaint { peer: me, artifact: ARTIFACT, about, piece });
            }
            Output::Stalled { peer } => {
                let me = self.id_of(node);
                self.tell(node, planner::Input::Stall { peer: me, artifact: ARTIFACT, about: peer });
            }
            Output::Silent { peer } => {
                let me = self.id_of(node);
                self.tell(node, planner::Input::Silence { peer: me, artifact: ARTIFACT, about: peer });
            }
            Output::Complete => {
                self.flush(node);
                self.settle(node);
            }
            Output::Failed { .. } => {
                self.at(node).has_failed = true;
                let peer = self.id_of(node);
                self.tell(node, planner::Input::Leave { peer, artifact: ARTIFACT });
            }
        }
    }

    /// Sees to it that a node is woken when it wants to.
    fn arm(&mut self, node: u32) {
        let state = &self.nodes[node as usize];
        let Some(at) = state.swarm.as_ref().and_then(Swarm::next_wake).filter(|_| state.held.is_none())
        else {
            return;
        };
        let at = at + state.epoch;
        if state.wake.is_none_or(|set| at < set) {
            self.at(node).wake = Some(at);
            self.queue.push(at, Event::Tick(node));
        }
    }

    fn tick(&mut self, node: u32) {
        let now = self.queue.now();
        let state = self.at(node);
        if state.wake.is_none_or(|at| at > now) {
            return;
        }
        state.wake = None;
        let epoch = state.epoch;
        let due = state.swarm.as_ref().and_then(Swarm::next_wake).map(|at| at + epoch);
        if state.held.is_none() && due.is_some_and(|due| due <= now) {
            self.oracle.ticked(node, now);
            self.input(node, Input::Tick);
        } else {
            self.arm(node);
        }
    }

    /// How everybody is, a line each.
    pub(super) fn state(&self) -> Vec<String> {
        let line = |node: u32| {
            let state = &self.nodes[node as usize];
            let session =
                state.session.map_or("no scheduler".to_owned(), |(at, _)| format!("scheduler {at}"));
            format!("node {node}: {:?}, {session}, {}", state.life, self.oracle.shown(node))
        };
        (0..self.origin()).map(line).collect()
    }

    /// A node ends without a word.
    pub(super) fn die(&mut self, node: u32) {
        if matches!(self.nodes[node as usize].life, Life::Dead) {
            return;
        }
        self.oracle.lost(node);
        let state = self.at(node);
        state.life = Life::Dead;
        state.stopped = None;
        state.remains = state.swarm.take().map(|swarm| swarm.have().runs()).unwrap_or_default();
        self.lose_session(node);
        for (child, generation) in std::mem::take(&mut self.at(node).children) {
            self.broken((child, node), generation);
        }
        for other in 0..self.origin() {
            self.at(other).children.remove(&node);
        }
        for (from, to) in self.network.pairs_of(node) {
            self.cut(from, to);
        }
    }
}

fn node(card: (u32, u32), origin_ok: bool) -> Node {
    Node {
        life: Life::Unborn,
        swarm: None,
        remains: Vec::new(),
        card,
        origin_ok,
        children: BTreeMap::new(),
        links: BTreeMap::new(),
        coming: (0, Vec::new()),
        unsaid: Vec::new(),
        waiting: BTreeMap::new(),
        interests: BTreeMap::new(),
        wake: None,
        epoch: Duration::ZERO,
        held: None,
        stopped: None,
        proved_at: Duration::ZERO,
        session: None,
        sessions: 0,
        is_lost: false,
        is_astray: false,
        has_failed: false,
        first_read: 0,
    }
}

/// The host of a node: one that comes back has the same.
pub(super) fn host_of(node: u32) -> HostAddr {
    let [_, b, c, d] = node.to_be_bytes();
    HostAddr::new(std::net::Ipv4Addr::new(10, b, c, d).into())
}
