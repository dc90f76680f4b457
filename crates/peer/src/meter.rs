//! What this process moves, what its network card does and what others move there: measured, and said to the scheduler.
//!
//! Owns: when it is looked, and what belongs to whom. Does not own: what follows from it (`planner::capacity`), the counters
//! (`limit::cards`, `metrics`, `shared`).

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use planner::{
    ArtifactId, Measured, SwarmLoad,
    capacity::{Beside, FOREIGN_LASTS, Foreign, LOOK_INTERVAL, Learner, Moved},
};
use tokio::time::{Interval, MissedTickBehavior, interval};
use transport::tcp;

use crate::{
    children::Children, fill::blocking, lanes::Sharing, limit::Counters, metrics::Metrics, node::Node,
    session::SessionCommand,
};

/// Of a card that others fill, this part is counted as this process's.
const LEFT_PART_MIN: u64 = 8;

/// Swarms that are named in one report, at most: those that move most.
const SWARMS_MAX: usize = 16;

/// What somebody says that this process may move in each direction, in bytes per second.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// What the card does.
    pub(crate) card: Option<u64>,
    /// What the process may.
    pub(crate) limit: Option<u64>,
}

/// Where it is counted what this process sends.
pub(crate) struct Sending {
    pub(crate) server: tcp::Server,
    pub(crate) children: Children,
}

/// What was counted at the last report.
struct Last {
    at: Instant,
    own: [u64; 2],
    card: Option<[u64; 2]>,
    swarms: BTreeMap<ArtifactId, [u64; 2]>,
}

/// Measures, and says when and what.
pub(crate) struct Meter {
    begin: Instant,
    metrics: Arc<Metrics>,
    sending: Sending,
    counters: Option<Arc<Counters>>,
    told: Told,
    stated: Option<u64>,
    learner: Learner,
    beside: Beside,
    sharing: Sharing,
    looked: Instant,
    looks: Interval,
    reports: Option<Interval>,
    is_due: bool,
    last: Last,
}

impl Meter {
    /// Of a process whose card counts there, if one is in sight.
    pub(crate) fn new(node: &Node, sending: Sending, counters: Option<Counters>, told: Told) -> Self {
        let stated = counters.as_ref().and_then(Counters::stated);
        Self {
            begin: Instant::now(),
            metrics: Arc::clone(node.metrics()),
            sending,
            counters: counters.map(Arc::new),
            told,
            stated,
            learner: Learner::new(stated),
            beside: Beside::default(),
            sharing: Sharing::new(Arc::clone(node.lanes())),
            looked: Instant::now(),
            looks: ticks(LOOK_INTERVAL),
            reports: None,
            is_due: false,
            last: Last { at: Instant::now(), own: [0; 2], card: None, swarms: BTreeMap::new() },
        }
    }

    /// How often the scheduler wants to hear.
    pub(crate) fn set_interval(&mut self, interval: Duration) {
        self.reports = Some(ticks(interval));
    }

    /// The next report, when it is due; never before a scheduler has said how often. A call that is given up loses none.
    pub(crate) async fn next(&mut self, node: &Node) -> SessionCommand {
        while !self.is_due {
            let report = async {
                match &mut self.reports {
                    Some(ticks) => ticks.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = report => self.is_due = true,
                _ = self.looks.tick() => self.look(),
            }
        }
        let card = match self.counters.clone() {
            // A card that was taken out says nothing.
            Some(counters) => blocking(move || counters.totals().ok()).await,
            None => None,
        };
        self.is_due = false;
        self.report(node.traffic(), card.map(|totals| [totals.sent, totals.received]))
    }

    fn own(&self) -> [u64; 2] {
        [self.sending.server.sent_bytes(), self.metrics.received()]
    }

    fn look(&mut self) {
        let [sent, received] = self.own();
        // Its own card is what two parents have in common who have not answered.
        let moved = Moved { sent, received, is_pressed: self.metrics.parents_asked() >= 2 };
        let now = self.begin.elapsed();
        self.learner.look(now, moved, self.beside.foreign(now));
        let elapsed = std::mem::replace(&mut self.looked, Instant::now()).elapsed();
        self.sharing.look(elapsed, self.own_card(now));
    }

    /// What this process has of the card in each direction, as far as that is known: as it was given, learned or stated,
    /// less what others move there, and no more than it may.
    fn own_card(&self, now: Duration) -> [Option<u64>; 2] {
        let learned = || self.learner.learned(now).filter(|at| at.is_full).map(|at| at.rate);
        let card = self.told.card.or_else(learned).or(self.stated);
        let foreign = self.beside.foreign(now).filter(|at| at.age <= FOREIGN_LASTS).unwrap_or_default();
        [foreign.sent, foreign.received].map(|others| {
            let left = card.map(|card| card.saturating_sub(others).max(card / LEFT_PART_MIN));
            left.into_iter().chain(self.told.limit).min()
        })
    }

    fn report(&mut self, swarms: BTreeMap<ArtifactId, [u64; 2]>, card: Option<[u64; 2]>) -> SessionCommand {
        let last = Last { at: Instant::now(), own: self.own(), card, swarms };
        let before = std::mem::replace(&mut self.last, last);
        let (now, elapsed) = (self.begin.elapsed(), self.last.at.saturating_duration_since(before.at));
        let own = since(self.last.own, before.own);
        if let (Some(card), Some(card_before)) = (card, before.card) {
            let all = since(card, card_before);
            // Cards of others read what they want over RDMA, and nobody here counts it.
            let is_known = self.sending.children.links_by_transport().1 == 0;
            let sent = if is_known { own[0] } else { all[0] };
            self.beside.look(now, elapsed, (all, [sent, own[1]]));
        }
        let swarms = self.last.swarms.iter().filter_map(|(artifact, totals)| {
            let moved = since(*totals, before.swarms.get(artifact).copied().unwrap_or_default());
            let rate = per_second(moved[0].max(moved[1]), elapsed);
            (rate > 0).then_some(SwarmLoad { artifact: *artifact, rate })
        });
        let mut swarms: Vec<SwarmLoad> = swarms.collect();
        swarms.sort_by_key(|load| std::cmp::Reverse(load.rate));
        swarms.truncate(SWARMS_MAX);
        let foreign: Option<Foreign> = self.beside.foreign(now);
        let measured = Measured { learned: self.learner.learned(now), foreign, swarms };
        let [sent, received] = own.map(|bytes| per_second(bytes, elapsed));
        SessionCommand::Load { sent, received, measured }
    }
}

fn ticks(every: Duration) -> Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

fn since(now: [u64; 2], before: [u64; 2]) -> [u64; 2] {
    [0, 1].map(|way| now[way].saturating_sub(before[way]))
}

fn per_second(bytes: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    bytes.saturating_mul(1000) / millis
}
