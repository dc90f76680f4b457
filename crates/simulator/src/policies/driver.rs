//! Carries out what a policy decides, on the network that the product's fleet has in `world`. Does not own decisions.

use std::collections::BTreeMap;
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, Run};
use swarm::ReadId;

use super::Policy;
use super::fleet::Fleet;
use crate::network::{Arrival, Crossed, Network, Served};
use crate::options::{Fault, Options, Report};
use crate::queue::Queue;
use crate::world::LATENCY;

/// How long a node is dead before anybody knows. Until then it is sent to, in vain.
const NOTICED_AFTER: Duration = Duration::from_millis(100);

#[derive(Debug)]
enum Event {
    Served(Served),
    Crossed(Crossed),
    Begin(u32),
    Kill(u32),
    Notice(u32),
}

impl From<Served> for Event {
    fn from(served: Served) -> Self {
        Self::Served(served)
    }
}

struct Driver<'policy> {
    policy: &'policy mut dyn Policy,
    queue: Queue<Event>,
    network: Network,
    fleet: Fleet,
    /// Stations to send and to receive, of each node.
    cards: Vec<(u32, u32)>,
    /// Whose card a station to send is.
    senders: BTreeMap<u32, u32>,
    is_alive: Vec<bool>,
    /// Pieces that each has when it comes.
    has: Vec<u32>,
    report: Report,
}

/// Runs a scenario until nothing more happens.
pub(super) fn run(options: &Options, policy: &mut dyn Policy) -> Report {
    let mut driver = Driver::new(options, policy);
    driver.ask_all();
    while let Some(event) = driver.queue.pop() {
        driver.report.events += 1;
        match event {
            Event::Served(served) => driver.served(served),
            Event::Crossed(crossed) => driver.crossed(crossed),
            Event::Begin(node) => driver.begin(node),
            Event::Kill(node) => driver.kill(node),
            Event::Notice(node) => driver.notice(node),
        }
    }
    driver.report
}

impl<'policy> Driver<'policy> {
    fn new(options: &Options, policy: &'policy mut dyn Policy) -> Self {
        let count = options.nodes;
        let mut rates = vec![options.rate; count];
        rates.push(options.origin_rate);
        let mut queue = Queue::new(LATENCY);
        let (mut fleet, mut is_alive) = (Fleet::new(count, options.pieces), vec![true; count + 1]);
        let mut has = vec![0; count];
        for fault in &options.faults {
            match *fault {
                Fault::Slow { node, factor } | Fault::Lame { node, factor } => {
                    rates[node] = options.rate / u64::from(factor);
                }
                Fault::Card { node, rate } => rates[node] = rate,
                Fault::Has { node, pieces } => has[node] = pieces,
                Fault::Late { node, at } => {
                    is_alive[node] = false;
                    fleet.lost(number(node));
                    queue.push(at, Event::Begin(number(node)));
                }
                Fault::Kill { node, at } => {
                    let node = number(node);
                    queue.push(at, Event::Kill(node));
                    queue.push(at + NOTICED_AFTER, Event::Notice(node));
                }
                _ => {}
            }
        }
        let mut network = Network::new(options.quanta);
        let cards: Vec<(u32, u32)> =
            rates.iter().map(|rate| (network.add_station(*rate), network.add_station(*rate))).collect();
        let senders = (0..).zip(&cards).map(|(node, (up, _))| (*up, node)).collect();
        for (node, pieces) in has.iter().enumerate().filter(|(node, _)| is_alive[*node]) {
            fleet.came(number(node), *pieces);
        }
        policy.changed(&fleet);
        let report = Report::begun(count, options.seed);
        Self { policy, queue, network, fleet, cards, senders, is_alive, has, report }
    }

    /// Lets a node send for as long as its card has nothing to do and the policy something to send. Says whether it had.
    fn ask(&mut self, from: u32) -> bool {
        let mut has_sent = false;
        let (up, _) = self.cards[from as usize];
        while self.is_alive[from as usize] && self.network.is_idle(up) {
            let Some((to, piece)) = self.policy.next(from, &self.fleet) else { break };
            has_sent = true;
            self.fleet.sent(from, to, piece);
            let path = [up, self.cards[to as usize].1];
            let run = Run { start: piece, end: PieceIndex(piece.0 + 1) };
            self.network.send(&mut self.queue, (from, to), &path, (ReadId(self.report.events), run));
        }
        has_sent
    }

    /// Asks until nobody has anything to send: what one sends may be what another waits for.
    fn ask_all(&mut self) {
        let mut has_sent = true;
        while has_sent {
            has_sent = false;
            for node in 0..=self.fleet.origin() {
                has_sent |= self.ask(node);
            }
        }
    }

    fn served(&mut self, served: Served) {
        if let Arrival::Piece(crossed) = self.network.served(&mut self.queue, served) {
            self.queue.later(Event::Crossed(crossed));
        }
        if let Some(node) = self.senders.get(&served.station()).copied()
            && self.network.is_idle(served.station())
        {
            self.fleet.idle(node, |to| self.network.is_leaving(node, to));
            self.ask_all();
        }
    }

    fn crossed(&mut self, Crossed { from, to, piece, .. }: Crossed) {
        if from == self.fleet.origin() {
            self.report.origin_bytes += PIECE_BYTES;
        }
        if !self.is_alive[to as usize] || !self.fleet.arrived(to, piece) {
            return;
        }
        self.report.received[to as usize] += 1;
        for word in [from, to, piece.0] {
            let hash = (self.report.event_hash ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.report.event_hash = hash ^ (hash >> 29);
        }
        if self.fleet.is_complete(to) {
            self.report.done[to as usize] = Some(self.queue.now());
        }
        self.ask_all();
    }

    fn begin(&mut self, node: u32) {
        self.is_alive[node as usize] = true;
        self.fleet.came(node, self.has[node as usize]);
        self.policy.changed(&self.fleet);
        self.ask_all();
    }

    /// Nothing that it has sent arrives any more.
    fn kill(&mut self, node: u32) {
        self.is_alive[node as usize] = false;
        for (from, to) in self.network.pairs_of(node) {
            if from == node {
                self.network.cut(from, to);
            }
        }
    }

    fn notice(&mut self, node: u32) {
        for (from, to) in self.network.pairs_of(node) {
            self.network.cut(from, to);
        }
        self.fleet.lost(node);
        self.policy.changed(&self.fleet);
        self.ask_all();
    }
}

fn number(node: usize) -> u32 {
    u32::try_from(node).expect("few nodes")
}
