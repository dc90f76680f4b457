//! Who is told of which pieces, and when, as `peer::have_feed` does it. Does not own what anybody makes of it.

use std::time::Duration;

use modelpack::layout::Run;
use planner::StripeSet;
use swarm::Input;

use super::{ARTIFACT, Event, World, number};
use crate::queue::nanos;

/// Least time between two batches to one child, and as many runs as are sent without waiting: as in the product.
pub(crate) const BATCH_INTERVAL: Duration = Duration::from_micros(500);
const BATCH_RUNS: usize = 64;

/// How long news wait that the child is not interested in: as in the product.
pub(crate) const IDLE_INTERVAL: Duration = Duration::from_millis(50);

/// What a node reads from the origin, and the epoch of the plan that it acts by.
pub(super) type Coming = (u64, Vec<Run>);

/// Some of a node's news, by when it had them: what it has said it never takes back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    start: u32,
    end: u32,
}

/// Who is linked to a node to read.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) node: u32,
    /// Of what it wants to hear at once; of everything, unless it said so.
    interest: Option<StripeSet>,
    /// How much of the node's news it was told.
    told: usize,
    coming: Coming,
    last: Option<Duration>,
    /// When it is told more.
    due: Option<Duration>,
}

impl Child {
    /// One that was told everything up to now.
    pub(super) fn new(node: u32, told: usize, coming: Coming) -> Self {
        Self { node, interest: None, told, coming, last: None, due: None }
    }

    fn wants(&self, run: Run) -> bool {
        self.interest.is_none_or(|interest| run.pieces().any(|piece| interest.contains(piece)))
    }

    /// Whether it is to hear at once that this is coming now.
    fn wants_coming(&self, (epoch, runs): &Coming) -> bool {
        let gone = self.coming.1.iter().filter(|run| !runs.contains(run));
        let mut changed = runs.iter().filter(|run| !self.coming.1.contains(run)).chain(gone);
        *epoch != self.coming.0 || changed.any(|run| self.wants(*run))
    }

    /// When it is told what it wants or does not.
    fn next(&self, now: Duration, is_wanted: bool) -> Duration {
        let wait = if is_wanted { BATCH_INTERVAL } else { IDLE_INTERVAL };
        self.last.map_or(now, |last| now.max(last + wait))
    }
}

impl World {
    /// A node has proved more.
    pub(super) fn proved(&mut self, node: u32, run: Run) {
        let now = self.queue.now();
        let state = &mut self.nodes[node as usize];
        state.news.push(run);
        if state.news.len() == state.reported + 1 {
            self.queue.after(nanos(BATCH_INTERVAL), Event::Flush(node));
        }
        let (count, mut first) = (state.news.len(), None);
        for child in &mut state.children {
            let is_much = count - child.told >= BATCH_RUNS;
            let next = if is_much { now } else { child.next(now, child.wants(run)) };
            let due = child.due.map_or(next, |due| due.min(next));
            child.due = Some(due);
            first = Some(first.map_or(due, |first: Duration| first.min(due)));
        }
        self.tell_at(node, first);
    }

    /// What a node reads from the origin has changed.
    pub(super) fn coming(&mut self, node: u32, coming: Coming) {
        let now = self.queue.now();
        let state = &mut self.nodes[node as usize];
        for child in &mut state.children {
            let next = child.next(now, child.wants_coming(&coming));
            child.due = Some(child.due.map_or(next, |due| due.min(next)));
        }
        state.coming = coming;
        self.tell_when_due(node);
    }

    fn tell_when_due(&mut self, node: u32) {
        let first = self.at(node).children.iter().filter_map(|child| child.due).min();
        self.tell_at(node, first);
    }

    /// The first child is due then.
    fn tell_at(&mut self, node: u32, first: Option<Duration>) {
        let state = &mut self.nodes[node as usize];
        if let Some(at) = first.filter(|at| state.tells_at.is_none_or(|set| *at < set)) {
            state.tells_at = Some(at);
            self.queue.push(at, Event::Tell(node));
        }
    }

    pub(super) fn interested(&mut self, child: u32, parent: u32, stripes: StripeSet) {
        let now = self.queue.now();
        let state = &mut self.nodes[parent as usize];
        if let Some(child) = state.children.iter_mut().find(|at| at.node == child) {
            child.interest = Some(stripes);
            if state.news[child.told..].iter().any(|run| child.wants(*run))
                || child.wants_coming(&state.coming)
            {
                let next = child.next(now, true);
                child.due = child.due.map(|due| due.min(next));
            }
        }
        self.tell_when_due(parent);
    }

    /// Tells those children more for whom it is due.
    pub(super) fn tell(&mut self, node: u32) {
        let now = self.queue.now();
        let state = &mut self.nodes[node as usize];
        if state.tells_at.take_if(|at| *at <= now).is_none() || state.is_hung {
            return;
        }
        let mut first = None;
        for child in &mut state.children {
            if child.due.take_if(|due| *due <= now).is_none() {
                first = child.due.map(|due| first.map_or(due, |first: Duration| first.min(due))).or(first);
                continue;
            }
            let news = Span { start: number(child.told), end: number(state.news.len()) };
            (child.told, child.last) = (state.news.len(), Some(now));
            let is_other = child.coming != state.coming;
            if is_other {
                child.coming.clone_from(&state.coming);
            }
            let coming = is_other.then(|| Box::new(state.coming.clone()));
            if news.start < news.end || coming.is_some() {
                self.queue.later(Event::Told(node, child.node, news, coming));
            }
        }
        self.tell_at(node, first);
    }

    pub(super) fn told(&mut self, (from, to): (u32, u32), news: Span, coming: Option<Box<Coming>>) {
        if !self.at(from).is_alive {
            return;
        }
        let peer = self.id_of(from);
        if news.start < news.end {
            let runs = self.nodes[from as usize].news[news.start as usize..news.end as usize].to_vec();
            self.input(to, Input::Have { peer, runs });
        }
        if let Some(coming) = coming {
            let (epoch, runs) = *coming;
            self.input(to, Input::Coming { peer, epoch, runs });
        }
    }

    /// The scheduler is told what is new to it.
    pub(super) fn flush(&mut self, node: u32) {
        let peer = self.id_of(node);
        let state = &mut self.nodes[node as usize];
        let runs = state.news[state.reported..].to_vec();
        state.reported = state.news.len();
        if state.is_alive && !state.is_hung && !runs.is_empty() {
            self.tell_planner(planner::Input::Have { peer, artifact: ARTIFACT, runs });
        }
    }
}
