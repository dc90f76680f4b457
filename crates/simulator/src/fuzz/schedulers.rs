//! Schedulers, and the streams of nodes to them: which one, and what when it is lost. Does not own a plan (`planner`).

use std::collections::BTreeMap;
use std::time::Duration;

use planner::{PeerPlan, Planner, Progress};
use swarm::Input;

use super::streams::scheduler_end;
use super::world::{ARTIFACT, Event, LATENCY, World, host_of, node_of, number};

/// How often a node at the second scheduler looks at the first.
const LOOK: Duration = Duration::from_secs(5);

/// How long a node that found no scheduler waits before it looks again.
const RETRY: Duration = Duration::from_millis(500);

/// One stream of a node to a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) node: u32,
    /// Streams that the node has had before.
    pub(super) number: u64,
}

/// A scheduler.
pub(super) struct Scheduler {
    /// None while it is dead.
    pub(super) planner: Option<Planner>,
    wake: Option<Duration>,
    /// The present stream of each node that is here.
    streams: BTreeMap<u32, u64>,
}

impl Scheduler {
    pub(super) fn new() -> Self {
        Self { planner: Some(Planner::new()), wake: None, streams: BTreeMap::new() }
    }
}

impl World<'_> {
    /// Tells a node's scheduler something, if it has one.
    pub(super) fn tell(&mut self, node: u32, input: planner::Input) {
        if let Some((at, stream)) = self.nodes[node as usize].session {
            let input = Box::new(input);
            self.post((node, scheduler_end(at)), Event::ToScheduler { at, stream, input });
        }
    }

    fn reaches(&self, node: u32, scheduler: u32) -> bool {
        self.schedulers[scheduler as usize].planner.is_some() && !self.is_cut(node, scheduler_end(scheduler))
    }

    /// A node without a stream looks for a scheduler. With a choice it hears of no loss as long as it finds another.
    pub(super) fn attach(&mut self, node: u32) {
        if !self.is_alive(node) || self.nodes[node as usize].session.is_some() {
            return;
        }
        let is_astray = self.nodes[node as usize].is_astray;
        let mut order: Vec<u32> = (0..self.scenario.schedulers).collect();
        if is_astray {
            order.reverse();
        }
        if let Some(at) = order.into_iter().find(|at| self.reaches(node, *at)) {
            self.enter(node, at);
        } else {
            self.tell_lost(node);
            self.queue.push(self.queue.now() + RETRY, Event::Attach(node));
        }
    }

    fn tell_lost(&mut self, node: u32) {
        if !std::mem::replace(&mut self.at(node).is_lost, true) {
            self.input(node, Input::NoScheduler);
        }
    }

    fn enter(&mut self, node: u32, at: u32) {
        if at != 0 {
            self.queue.push(self.queue.now() + LOOK, Event::Prefer(node));
        }
        let state = self.at(node);
        state.sessions += 1;
        state.is_lost = false;
        state.session = Some((at, Stream { node, number: state.sessions }));
        let member = self.member(node);
        let home = member.returns.map_or(node, |returns| number(returns.of));
        let input = planner::Input::Register {
            peer: self.id_of(node),
            address: format!("node-{node}:1"),
            name: format!("node-{node}"),
            nic_rate: member.claim,
            place: self.place(node),
            host: host_of(home),
        };
        self.tell(node, input);
        self.join(node);
    }

    /// A node at the second scheduler goes to the first, if that is there.
    pub(super) fn prefer(&mut self, node: u32) {
        let state = &self.nodes[node as usize];
        if state.session.is_none_or(|(at, _)| at == 0) || !self.is_alive(node) {
            return;
        }
        if !state.is_astray && self.reaches(node, 0) {
            self.leave_scheduler(node);
            self.enter(node, 0);
        } else {
            self.queue.push(self.queue.now() + LOOK, Event::Prefer(node));
        }
    }

    /// A node goes to the second scheduler, as if the first one were gone.
    pub(super) fn stray(&mut self, node: u32) {
        self.at(node).is_astray = true;
        let is_first = self.nodes[node as usize].session.is_some_and(|(at, _)| at == 0);
        if is_first && self.is_alive(node) && self.scenario.schedulers > 1 && self.reaches(node, 1) {
            self.leave_scheduler(node);
            self.enter(node, 1);
        }
    }

    /// Says everything, again.
    pub(super) fn join(&mut self, node: u32) {
        if self.nodes[node as usize].has_failed {
            return;
        }
        let round = self.rootless.as_ref().map_or(0, |rootless| rootless.round(node));
        let peer = self.id_of(node);
        let have = self.claimed(node);
        let state = &self.nodes[node as usize];
        let (epoch, origin_in_flight) = state.coming.clone();
        let input = planner::Input::Join {
            peer,
            artifact: ARTIFACT,
            bytes: self.layout.total_bytes(),
            piece_count: self.scenario.pieces,
            origin_ok: state.origin_ok,
            is_seed: self.member(node).is_seed,
            have,
            progress: Progress { epoch, origin_in_flight, round, ..Progress::default() },
        };
        self.tell(node, input);
    }

    /// The scheduler hears that the stream has ended.
    fn leave_scheduler(&mut self, node: u32) {
        let peer = self.id_of(node);
        self.tell(node, planner::Input::Gone { peer });
        self.at(node).session = None;
    }

    /// A node's stream breaks: both ends hear of it.
    pub(super) fn lose_session(&mut self, node: u32) {
        let peer = self.id_of(node);
        if let Some((at, stream)) = self.at(node).session.take() {
            let input = Box::new(planner::Input::Gone { peer });
            self.queue.later(Event::ToScheduler { at, stream, input });
        }
    }

    /// Where there is no other, the node hears of the loss at once.
    pub(super) fn session_broken(&mut self, node: u32, away: Duration) {
        if self.nodes[node as usize].session.is_none() {
            return;
        }
        self.lose_session(node);
        if self.is_alive(node) && self.scenario.schedulers == 1 {
            self.at(node).is_lost = true;
            self.local(node, Input::NoScheduler);
        }
        self.queue.push(self.queue.now() + away, Event::Attach(node));
    }

    pub(super) fn told_scheduler(&mut self, at: u32, stream: Stream, input: planner::Input) {
        let scheduler = &mut self.schedulers[at as usize];
        if scheduler.planner.is_none() {
            return;
        }
        let peer = self.id_of(stream.node);
        let present = self.schedulers[at as usize].streams.get(&stream.node).copied();
        match &input {
            planner::Input::Register { .. } if present.is_none_or(|present| present < stream.number) => {
                if present.is_some() {
                    // The newer stream tells everything again.
                    self.plan(at, planner::Input::Gone { peer });
                }
                self.schedulers[at as usize].streams.insert(stream.node, stream.number);
            }
            _ if present != Some(stream.number) => return,
            planner::Input::Gone { .. } => {
                self.schedulers[at as usize].streams.remove(&stream.node);
            }
            _ => {}
        }
        self.plan(at, input);
    }

    fn plan(&mut self, at: u32, input: planner::Input) {
        let now = self.queue.now();
        let scheduler = &mut self.schedulers[at as usize];
        let Some(planner) = &mut scheduler.planner else { return };
        planner.handle(now, input);
        // What is overdue is due now, as for the product's loop. Lost, it would also hide what is due later.
        if let Some(wake) = planner.next_wake().map(|wake| wake.max(now))
            && scheduler.wake.is_none_or(|set| wake < set)
        {
            scheduler.wake = Some(wake);
            self.queue.push(wake, Event::TickScheduler(at));
        }
        let mut plans = Vec::new();
        while let Some(output) = planner.poll() {
            match output {
                planner::Output::Plan { to, plan, .. } => plans.push((node_of(to), plan)),
                planner::Output::Standing(alarm) => {
                    self.oracle.stands(now, node_of(alarm.peer), alarm.standing);
                }
            }
        }
        for (node, plan) in plans {
            let plan = self.misled(plan);
            if let Some(number) = self.schedulers[at as usize].streams.get(&node).copied() {
                let stream = Stream { node, number };
                self.post((scheduler_end(at), node), Event::Planned { by: at, stream, plan: Box::new(plan) });
            }
        }
    }

    pub(super) fn tick_scheduler(&mut self, at: u32) {
        self.schedulers[at as usize].wake = None;
        self.plan(at, planner::Input::Tick);
    }

    pub(super) fn planned(&mut self, by: u32, stream: Stream, plan: PeerPlan) {
        if self.nodes[stream.node as usize].session == Some((by, stream)) {
            if let Some(rootless) = &mut self.rootless {
                rootless.planned(stream.node, &plan);
            }
            self.input(stream.node, Input::Plan(plan));
        }
    }

    /// The first scheduler dies.
    pub(super) fn kill_scheduler(&mut self) {
        let scheduler = &mut self.schedulers[0];
        scheduler.planner = None;
        scheduler.streams.clear();
        for node in 0..self.origin() {
            if self.nodes[node as usize].session.is_some_and(|(at, _)| at == 0) {
                let away = LATENCY + self.dice.moment(Duration::from_millis(20));
                self.session_broken(node, away);
            }
        }
    }

    /// It is back, and knows nothing. Those at the other one come to it one after another.
    pub(super) fn revive_scheduler(&mut self) {
        if self.schedulers[0].planner.is_none() {
            self.schedulers[0] = Scheduler::new();
        }
        for node in 0..self.origin() {
            if !self.nodes[node as usize].is_astray {
                self.come_back_soon(node);
            }
        }
    }

    pub(super) fn come_back_soon(&mut self, node: u32) {
        let at = self.queue.now() + self.dice.moment(Duration::from_millis(800));
        self.queue.push(at, Event::Prefer(node));
    }
}
