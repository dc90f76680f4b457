//! The network: cards and rack uplinks as stations, pairs of nodes as flows through them, shared max-min fairly.
//!
//! Owns: when a piece has crossed. Does not own: who asks for what, and what a message costs (`world`).
//!
//! A piece crosses as a few quanta. Each station serves the flows that wait at it round robin, a quantum at a time, and
//! a flow has at most [`WINDOW`] quanta at each station after its first: who is held up further on leaves the card to
//! the others. Round robin with such windows gives max-min fair rates (Hahne 1991), is work-conserving, and costs two
//! events a quantum, however many flows there are; a test compares it with progressive filling.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, Run};
use swarm::ReadId;

use crate::queue::Queue;

/// Quanta of one flow at a station, at most, but for its first: one that is served, one that waits, and one so that
/// another station's rounding never leaves it without.
const WINDOW: u32 = 3;

/// How often a flow that carries bytes of an unfinished piece says so.
const PROGRESS: Duration = Duration::from_millis(100);

/// Stations on the longest way: card, rack, rack, card, disk.
pub(crate) const HOPS_MAX: usize = 5;

/// Requests that one peer has at the origin at once, at most.
pub(crate) const ORIGIN_LANES: u32 = 16;

/// The sender that a read comes from. Reads at the origin, the last node, are requests of their own, each of which gets its
/// share; those of a link follow one another.
pub(crate) fn lane_of(origin: u32, from: u32, read: ReadId) -> u32 {
    let lane = u32::try_from(read.0 % u64::from(ORIGIN_LANES)).expect("less than a few");
    if from == origin { from + lane } else { from }
}

/// One quantum is through a station.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served(u32);

impl Served {
    /// Which station that is.
    pub(crate) fn station(self) -> u32 {
        self.0
    }
}

/// A resource that flows share.
#[derive(Debug)]
struct Station {
    quantum: u64,
    waiting: VecDeque<(u32, u8)>,
    serving: Option<(u32, u8, u32)>,
    busy: u64,
}

/// What one read still has to send.
#[derive(Clone, Copy, Debug)]
struct Job {
    read: ReadId,
    run: Run,
}

/// Everything that one node sends another.
#[derive(Debug)]
struct Flow {
    from: u32,
    to: u32,
    path: [u32; HOPS_MAX],
    hops: u8,
    queued: [u32; HOPS_MAX],
    is_waiting: [bool; HOPS_MAX],
    /// Quanta that it is served in a row at its first station, and of those what it has left.
    share: u32,
    credit: u32,
    /// Grows when everything on the way is dropped.
    generation: u32,
    jobs: VecDeque<Job>,
    /// Quanta of the first piece that have arrived.
    arrived: u32,
    /// When it last said that bytes came.
    said: Duration,
}

/// A piece that has crossed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crossed {
    pub(crate) from: u32,
    pub(crate) to: u32,
    pub(crate) read: ReadId,
    pub(crate) piece: PieceIndex,
    /// Nothing of the read is left to send.
    pub(crate) is_last: bool,
}

/// What became of a quantum.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arrival {
    /// Nothing yet.
    None,
    /// Bytes of an unfinished piece came from one node to another.
    Bytes(u32, u32),
    /// A piece has crossed.
    Piece(Crossed),
}

/// All stations and flows.
#[derive(Debug)]
pub(crate) struct Network {
    quanta: u32,
    stations: Vec<Station>,
    flows: Vec<Flow>,
    /// Of each node, who sends to it, ascending, and as which flow.
    by_receiver: Vec<Vec<(u32, u32)>>,
    /// Of which station who gets how many times what others get.
    favours: BTreeMap<(u32, u32), u32>,
}

impl Network {
    /// A network in which each piece crosses as so many quanta.
    pub(crate) fn new(quanta: u32) -> Self {
        Self {
            quanta,
            stations: Vec::new(),
            flows: Vec::new(),
            by_receiver: Vec::new(),
            favours: BTreeMap::new(),
        }
    }

    /// Lets a node get `share` times what others get of a station at which ways to it begin, as connections share a card
    /// that are not all equally lucky.
    pub(crate) fn favour(&mut self, station: u32, to: u32, share: u32) {
        self.favours.insert((station, to), share.max(1));
    }

    /// Adds a resource of so many bytes per second; gives its number.
    pub(crate) fn add_station(&mut self, rate: u64) -> u32 {
        let quantum = self.quantum_at(rate);
        self.stations.push(Station { quantum, waiting: VecDeque::new(), serving: None, busy: 0 });
        u32::try_from(self.stations.len() - 1).expect("few stations")
    }

    /// How many nanoseconds a quantum takes at so many bytes per second.
    fn quantum_at(&self, rate: u64) -> u64 {
        (PIECE_BYTES.saturating_mul(1_000_000_000) / (rate.max(1) * u64::from(self.quanta))).max(1)
    }

    /// How long a station has been busy in all, what it is serving now included.
    pub(crate) fn busy(&self, station: u32) -> Duration {
        Duration::from_nanos(self.stations[station as usize].busy)
    }

    /// Whether a station has nothing that it could serve.
    pub(crate) fn is_idle(&self, station: u32) -> bool {
        let station = &self.stations[station as usize];
        station.serving.is_none() && station.waiting.is_empty()
    }

    /// Whether something that one node sends another has not left the first station yet.
    pub(crate) fn is_leaving(&self, from: u32, to: u32) -> bool {
        self.flow(from, to).is_some_and(|flow| self.flows[flow as usize].queued[0] > 0)
    }

    fn flow(&self, from: u32, to: u32) -> Option<u32> {
        let senders = self.by_receiver.get(to as usize)?;
        let at = senders.binary_search_by_key(&from, |(from, _)| *from).ok()?;
        Some(senders[at].1)
    }

    /// Puts a read behind what the pair has to send; `path` is the way if they never had any.
    pub(crate) fn send<T>(
        &mut self,
        queue: &mut Queue<T>,
        (from, to): (u32, u32),
        path: &[u32],
        (read, run): (ReadId, Run),
    ) where
        Served: Into<T>,
    {
        let flow = self.flow(from, to).unwrap_or_else(|| self.add_flow((from, to), path));
        let state = &mut self.flows[flow as usize];
        state.jobs.push_back(Job { read, run });
        state.queued[0] += run.len() * self.quanta;
        self.wake(queue, flow, 0);
    }

    fn add_flow(&mut self, (from, to): (u32, u32), path: &[u32]) -> u32 {
        let number = u32::try_from(self.flows.len()).expect("few flows");
        let mut hops = [0; HOPS_MAX];
        hops[..path.len()].copy_from_slice(path);
        let share = self.favours.get(&(path[0], to)).copied().unwrap_or(1);
        self.flows.push(Flow {
            from,
            to,
            path: hops,
            hops: u8::try_from(path.len()).expect("few hops"),
            queued: [0; HOPS_MAX],
            is_waiting: [false; HOPS_MAX],
            share,
            credit: share - 1,
            generation: 0,
            jobs: VecDeque::new(),
            arrived: 0,
            said: Duration::ZERO,
        });
        let receivers = self.by_receiver.len().max(to as usize + 1);
        self.by_receiver.resize(receivers, Vec::new());
        let senders = &mut self.by_receiver[to as usize];
        let at = senders.partition_point(|(other, _)| *other < from);
        senders.insert(at, (from, number));
        number
    }

    /// Drops everything that a pair has on its way; gives the reads that it was for.
    pub(crate) fn cut(&mut self, from: u32, to: u32) -> Vec<ReadId> {
        self.take(from, to).into_iter().map(|(read, _)| read).collect()
    }

    /// The same, with what of each read has not crossed.
    pub(crate) fn take(&mut self, from: u32, to: u32) -> Vec<(ReadId, Run)> {
        let Some(flow) = self.flow(from, to) else { return Vec::new() };
        let flow = &mut self.flows[flow as usize];
        flow.generation += 1;
        flow.queued = [0; HOPS_MAX];
        flow.arrived = 0;
        flow.jobs.drain(..).map(|job| (job.read, job.run)).collect()
    }

    /// Whoever sends to, or gets from, this node, ascending.
    pub(crate) fn pairs_of(&self, node: u32) -> Vec<(u32, u32)> {
        let pairs = self.flows.iter().map(|flow| (flow.from, flow.to));
        let mut pairs: Vec<(u32, u32)> = pairs.filter(|(from, to)| *from == node || *to == node).collect();
        pairs.sort_unstable();
        pairs
    }

    /// Sends of a read only what has begun; says whether nothing had.
    pub(crate) fn cancel(&mut self, from: u32, to: u32, read: ReadId) -> bool {
        let Some(number) = self.flow(from, to) else { return false };
        let flow = &mut self.flows[number as usize];
        let all: u32 = flow.jobs.iter().map(|job| job.run.len()).sum();
        // What has left the first station, or is in service there, cannot be called back.
        let serving = self.stations[flow.path[0] as usize].serving;
        let is_serving = serving == Some((number, 0, flow.generation));
        let unsent = flow.queued[0].saturating_sub(u32::from(is_serving));
        let mut begun = all - unsent / self.quanta;
        let mut is_dropped = false;
        for at in 0..flow.jobs.len() {
            let job = &mut flow.jobs[at];
            let kept = begun.min(job.run.len());
            begun -= kept;
            if job.read == read {
                flow.queued[0] -= (job.run.len() - kept) * self.quanta;
                job.run.end.0 = job.run.start.0 + kept;
                is_dropped = kept == 0;
            }
        }
        flow.jobs.retain(|job| !job.run.is_empty());
        is_dropped
    }

    /// Takes note that a station has served a quantum.
    pub(crate) fn served<T>(&mut self, queue: &mut Queue<T>, Served(station): Served) -> Arrival
    where
        Served: Into<T>,
    {
        let Some((flow, hop, generation)) = self.stations[station as usize].serving.take() else {
            return Arrival::None;
        };
        let state = &mut self.flows[flow as usize];
        let mut arrival = Arrival::None;
        if state.generation == generation {
            let at = usize::from(hop);
            state.queued[at] -= 1;
            if hop + 1 < state.hops {
                state.queued[at + 1] += 1;
                self.wake(queue, flow, hop + 1);
            } else {
                arrival = arrive(state, self.quanta, queue.now());
            }
            if hop > 0 {
                self.wake(queue, flow, hop - 1);
            }
        }
        self.wait_again(queue, flow, hop);
        self.start(queue, station);
        arrival
    }

    /// Lets a flow that was served wait behind the others, or before them while it has credit.
    fn wait_again<T>(&mut self, queue: &mut Queue<T>, flow: u32, hop: u8)
    where
        Served: Into<T>,
    {
        let may_go = hop == 0 && self.may_go(flow, 0);
        let state = &mut self.flows[flow as usize];
        if !may_go || state.credit == 0 || state.is_waiting[0] {
            if hop == 0 {
                state.credit = state.share - 1;
            }
            return self.wake(queue, flow, hop);
        }
        state.credit -= 1;
        state.is_waiting[0] = true;
        let station = state.path[0];
        self.stations[station as usize].waiting.push_front((flow, 0));
    }

    fn may_go(&self, flow: u32, hop: u8) -> bool {
        let flow = &self.flows[flow as usize];
        let at = usize::from(hop);
        flow.queued[at] > 0 && (hop + 1 == flow.hops || flow.queued[at + 1] < WINDOW)
    }

    /// Lets a flow wait for a station, if it has something that may go on.
    fn wake<T>(&mut self, queue: &mut Queue<T>, flow: u32, hop: u8)
    where
        Served: Into<T>,
    {
        let at = usize::from(hop);
        if self.flows[flow as usize].is_waiting[at] || !self.may_go(flow, hop) {
            return;
        }
        let station = self.flows[flow as usize].path[at];
        let is_served = self.stations[station as usize].serving.is_some_and(|(of, _, _)| of == flow);
        if is_served {
            // It comes back when that is done.
            return;
        }
        self.flows[flow as usize].is_waiting[at] = true;
        self.stations[station as usize].waiting.push_back((flow, hop));
        self.start(queue, station);
    }

    fn start<T>(&mut self, queue: &mut Queue<T>, station: u32)
    where
        Served: Into<T>,
    {
        while self.stations[station as usize].serving.is_none() {
            let Some((flow, hop)) = self.stations[station as usize].waiting.pop_front() else { return };
            self.flows[flow as usize].is_waiting[usize::from(hop)] = false;
            if self.may_go(flow, hop) {
                let generation = self.flows[flow as usize].generation;
                let state = &mut self.stations[station as usize];
                state.serving = Some((flow, hop, generation));
                state.busy += state.quantum;
                queue.after(state.quantum, Served(station).into());
            }
        }
    }

    /// Makes a station faster or slower from its next quantum on.
    pub(crate) fn set_rate(&mut self, station: u32, rate: u64) {
        self.stations[station as usize].quantum = self.quantum_at(rate);
    }
}

/// One quantum of the first piece has come.
fn arrive(flow: &mut Flow, quanta: u32, now: Duration) -> Arrival {
    flow.arrived += 1;
    if flow.arrived < quanta {
        if now < flow.said + PROGRESS {
            return Arrival::None;
        }
        flow.said = now;
        return Arrival::Bytes(flow.from, flow.to);
    }
    flow.said = now;
    flow.arrived = 0;
    let Some(job) = flow.jobs.front_mut() else { return Arrival::None };
    let piece = job.run.start;
    job.run.start.0 += 1;
    let crossed =
        Crossed { from: flow.from, to: flow.to, read: job.read, piece, is_last: job.run.is_empty() };
    if crossed.is_last {
        flow.jobs.pop_front();
    }
    Arrival::Piece(crossed)
}

#[cfg(test)]
mod tests;
