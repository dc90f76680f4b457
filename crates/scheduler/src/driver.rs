//! The event loop: the only owner of the planner. Does not own a connection, and never waits for one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use planner::{Alarm, ArtifactId, Charge, Input, Output, PeerId, PlanStatus, Planner, Standing};
use tokio::{
    sync::{mpsc::Receiver, oneshot},
    time::sleep_until,
};

use wire::{control::Claim, plan_status::MEMBERS_MAX, status::FleetStatus};

use crate::{
    claims::{Claims, Found, Names, Reply},
    metrics::Metrics,
    outbox::Outbox,
    recorder::Recorder,
    session::Guest,
    takeover::TakeOvers,
};

/// Peers at a time. Ten thousand are the design's aim; more than this is not a fleet but a fault.
const PEERS_MAX: usize = 32_768;

/// Events taken at once before plans are sent: a plan made in between is replaced anyway.
const BATCH_MAX: usize = 256;

/// Members named to somebody who asks for an artifact: enough that one of them answers.
const HOLDERS_MAX: usize = 8;

/// How long a peer that has gone where it was redirected counts as here. Those that are still here go there too, within
/// moments: a plan without it would have them read again what it is reading.
const MOVING: Duration = Duration::from_secs(2);

/// The number of a stream. A peer that connects again has another one.
pub(crate) type StreamId = u64;

/// What streams tell the event loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer said hello.
    Opened { stream: StreamId, peer: PeerId, guest: Guest, outbox: Arc<Outbox> },
    /// A peer said something else.
    Said { stream: StreamId, peer: PeerId, input: Input },
    /// Somebody wants to know who can describe an artifact.
    Asked { artifact: ArtifactId, claim: (Claim, Duration), peer: Option<PeerId>, reply: Reply },
    /// Somebody wants to know how the fleet is.
    Inquired(oneshot::Sender<FleetStatus>),
    /// Somebody wants to know the plan of a swarm.
    AskedPlan { artifact: ArtifactId, reply: oneshot::Sender<Option<PlanStatus>> },
    /// A living scheduler that peers prefer to this one, or none any more.
    Outranked(Option<String>),
    /// A stream that was opened has ended.
    Ended { stream: StreamId, peer: PeerId },
}

/// The present stream of one peer.
struct Live {
    stream: StreamId,
    name: String,
    outbox: Arc<Outbox>,
    may_redirect: bool,
    /// When it said hello.
    hello: Instant,
}

/// The planner and the peers that it plans for.
pub(crate) struct Driver {
    start: Instant,
    load_interval: Duration,
    planner: Planner,
    live: BTreeMap<PeerId, Live>,
    /// Those that have gone where they were redirected, and when the planner hears of it.
    moved: BTreeMap<PeerId, Instant>,
    /// The living scheduler that peers prefer to this one.
    first: Option<String>,
    /// Since when there is a peer, and the swarms that were planned since.
    since: Option<Instant>,
    planned: BTreeSet<ArtifactId>,
    taken_over: TakeOvers,
    claims: Claims,
    names: Names,
    metrics: Arc<Metrics>,
    recorder: Option<Recorder>,
}

impl Driver {
    pub(crate) fn new(load_interval: Duration, metrics: Arc<Metrics>) -> Self {
        Self {
            start: Instant::now(),
            load_interval,
            planner: Planner::new(),
            live: BTreeMap::new(),
            moved: BTreeMap::new(),
            first: None,
            since: None,
            planned: BTreeSet::new(),
            taken_over: TakeOvers::default(),
            claims: Claims::default(),
            names: Names::default(),
            metrics,
            recorder: None,
        }
    }

    /// The same, with a record of what happens.
    pub(crate) fn recorded_by(self, recorder: Option<Recorder>) -> Self {
        Self { recorder, ..self }
    }

    /// Until nobody can send events any more.
    pub(crate) async fn run(mut self, mut events: Receiver<Event>) {
        let mut batch = Vec::new();
        loop {
            let wake = self.planner.next_wake().map(|at| self.start + at);
            let wake =
                wake.into_iter().chain(self.claims.next_wake()).chain(self.moved.values().copied()).min();
            let woken = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let count = tokio::select! {
                count = events.recv_many(&mut batch, BATCH_MAX) => Some(count),
                () = woken => None,
            };
            let begin = Instant::now();
            match count {
                Some(0) => return,
                Some(_) => batch.drain(..).for_each(|event| self.handle(event)),
                None => self.tick(),
            }
            self.deliver(begin);
            self.metrics.observe(&self.planner, self.live.len());
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened { stream, peer, guest, outbox } => self.open(stream, peer, guest, outbox),
            Event::Outranked(first) => self.outranked(first),
            Event::Said { stream, peer, input } => {
                let Some(live) = self.live.get(&peer).filter(|live| live.stream == stream) else { return };
                match &input {
                    Input::Join { artifact, bytes, origin_ok, is_seed, progress, .. } => {
                        let round = progress.round;
                        if round > 0 {
                            tracing::warn!(%peer, name = live.name, %artifact, round, "the pieces did not add up");
                        }
                        tracing::info!(%peer, name = live.name, %artifact, bytes, origin_ok, is_seed, "joined");
                        let epoch = progress.epoch;
                        let is_others = epoch > self.planner.epoch(artifact);
                        if is_others && self.taken_over.begin(*artifact, live.hello) {
                            tracing::info!(%artifact, epoch, "took over from another scheduler");
                            self.metrics.took_over();
                        }
                    }
                    Input::Leave { artifact, .. } => {
                        live.outbox.forget(artifact);
                        tracing::info!(%peer, name = live.name, %artifact, "left");
                    }
                    Input::Complaint { about, artifact, piece, .. } => {
                        tracing::warn!(%peer, %about, %artifact, piece, "wrong bytes");
                        self.metrics.accused(Charge::WrongBytes);
                    }
                    Input::Stall { about, artifact, .. } => {
                        tracing::debug!(%peer, %about, %artifact, "stalled");
                    }
                    Input::Silence { about, artifact, .. } => {
                        tracing::info!(%peer, %about, %artifact, "silent");
                        self.metrics.accused(Charge::Silence);
                    }
                    _ => {}
                }
                let joined = if let Input::Join { artifact, .. } = &input { Some(*artifact) } else { None };
                self.tell(input);
                if let Some(artifact) = joined {
                    for reply in self.claims.joined(artifact, peer) {
                        self.name_holders(artifact, None, reply);
                    }
                }
            }
            Event::Inquired(reply) => {
                // Whoever asked may have given up.
                let _ = reply.send(FleetStatus::of(&self.planner, self.first.clone(), self.start.elapsed()));
            }
            Event::AskedPlan { artifact, reply } => {
                let _ = reply.send(self.planner.plan_of(&artifact, MEMBERS_MAX));
            }
            Event::Asked { artifact, claim, peer, reply } => self.asked(artifact, (claim, peer), reply),
            Event::Ended { stream, peer } => {
                // A newer stream of the same peer is not touched by the end of an older one.
                if self.live.get(&peer).is_some_and(|live| live.stream == stream)
                    && let Some(live) = self.live.remove(&peer)
                {
                    tracing::info!(%peer, name = live.name, peers = self.live.len(), "gone");
                    if self.first.is_some() && live.may_redirect {
                        self.moved.insert(peer, Instant::now() + MOVING);
                    } else {
                        self.gone(peer);
                    }
                    if self.live.is_empty() {
                        self.arrived(|_| true);
                        self.since = None;
                        self.planned.clear();
                        self.taken_over.clear();
                    }
                }
            }
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.tell(Input::Gone { peer });
        self.claims.gone(Instant::now(), peer);
        self.names.gone(peer);
    }

    /// Those of whom this is true have gone for good.
    fn arrived(&mut self, is_due: impl Fn(Instant) -> bool) {
        let due: Vec<PeerId> = self.moved.extract_if(.., |_, at| is_due(*at)).map(|(peer, _)| peer).collect();
        for peer in due {
            self.gone(peer);
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.arrived(|at| at <= now);
        self.tell(Input::Tick);
        for (artifact, reply) in self.claims.tick(Instant::now()) {
            self.name_holders(artifact, None, reply);
        }
    }

    fn asked(
        &mut self,
        artifact: ArtifactId,
        ((claim, holds), peer): ((Claim, Duration), Option<PeerId>),
        reply: Reply,
    ) {
        let now = Instant::now();
        match (claim, peer.filter(|peer| self.live.contains_key(peer))) {
            (Claim::Offer, Some(peer)) if self.holders(&artifact, Some(peer), 1).is_empty() => {
                return self.claims.offer(now, artifact, (peer, reply));
            }
            (Claim::Failed, Some(peer)) => self.claims.failed(now, artifact, peer),
            (Claim::Known, Some(peer)) => {
                self.names.known(now, artifact, (peer, holds));
                for waiting in self.claims.joined(artifact, peer) {
                    self.name_holders(artifact, None, waiting);
                }
            }
            _ => {}
        }
        self.name_holders(artifact, peer, reply);
    }

    /// Who can describe it: members of its swarm or, if it is a name of a hub, who knows what that stands for.
    fn holders(&self, artifact: &ArtifactId, asker: Option<PeerId>, max: usize) -> Vec<String> {
        let mut holders = self.planner.holders(artifact, asker, max);
        let knowing = self.names.knowing(Instant::now(), artifact, asker);
        let knowing = knowing.filter_map(|peer| self.planner.address(peer)).map(ToString::to_string);
        holders.extend(knowing.take(max - holders.len()));
        holders
    }

    fn name_holders(&self, artifact: ArtifactId, asker: Option<PeerId>, reply: Reply) {
        // Whoever asked may have given up.
        let _ = reply.send(Found::Holders(self.holders(&artifact, asker, HOLDERS_MAX)));
    }

    /// Peers go where all others do, also those that came while that scheduler was away.
    fn outranked(&mut self, first: Option<String>) {
        if let Some(first) = &first {
            let redirected = self.live.values().filter(|live| live.may_redirect);
            redirected.for_each(|live| live.outbox.redirect(first.clone()));
        }
        self.metrics.outranked(first.is_some());
        self.first = first;
    }

    fn open(&mut self, stream: StreamId, peer: PeerId, guest: Guest, outbox: Arc<Outbox>) {
        let Guest { register, may_redirect, unreachable } = guest;
        let Input::Register { name, address, .. } = &register else { return };
        if let Some(first) = self.first.as_ref().filter(|first| may_redirect && !unreachable.contains(first))
        {
            tracing::debug!(%peer, name, to = first, "redirected");
            outbox.redirect(first.clone());
            outbox.close(None);
            return;
        }
        if self.live.len() >= PEERS_MAX && !self.live.contains_key(&peer) {
            outbox.close(Some(format!("the scheduler has {PEERS_MAX} peers already")));
            return;
        }
        outbox.welcome(self.load_interval);
        let hello = Instant::now();
        let live = Live { stream, name: name.clone(), outbox, may_redirect, hello };
        self.since.get_or_insert(hello);
        tracing::info!(%peer, name, address, ?unreachable, peers = self.live.len() + 1, "connected");
        if let Some(older) = self.live.insert(peer, live) {
            older.outbox.close(Some("a newer stream of the same peer took its place".to_owned()));
            // The newer stream tells everything again.
            self.tell(Input::Gone { peer });
        }
        if self.moved.remove(&peer).is_some() {
            self.gone(peer);
        }
        self.tell(register);
    }

    fn tell(&mut self, input: Input) {
        let now = self.start.elapsed();
        let noted = self.recorder.as_mut().and_then(|recorder| recorder.note(now, &input));
        self.planner.handle(now, input);
        if let (Some(recorder), Some(noted)) = (&mut self.recorder, noted) {
            recorder.after(now, noted, &self.planner);
        }
    }

    fn deliver(&mut self, begin: Instant) {
        let mut counts = BTreeMap::new();
        while let Some(output) = self.planner.poll() {
            let Output::Plan { to, artifact, plan } = output else {
                if let Output::Standing(alarm) = output {
                    warn_of(&alarm);
                }
                continue;
            };
            if let Some(live) = self.live.get(&to) {
                let (members, epoch) = counts.entry(artifact).or_insert((0_usize, 0));
                (*members, *epoch) = (*members + 1, plan.epoch);
                if let Some(recorder) = &mut self.recorder {
                    recorder.plan(to, artifact, &plan);
                }
                live.outbox.put(artifact, plan);
            }
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.planned(self.start.elapsed());
        }
        let took = begin.elapsed();
        if !counts.is_empty() {
            self.metrics.planned(counts.values().map(|(plans, _)| plans).sum(), took);
        }
        let ms = took.as_secs_f64() * 1e3;
        for (artifact, (plans, epoch)) in counts {
            tracing::info!(%artifact, epoch, plans, ms, "planned");
            let members = self.planner.member_count(&artifact);
            if let Some(after) = self.taken_over.planned(Instant::now(), artifact, members) {
                let ms = after.as_secs_f64() * 1e3;
                tracing::info!(%artifact, members, ms, "state rebuilt: members have said what they have");
            }
            if self.planned.insert(artifact)
                && let Some(since) = self.since
            {
                let ms = since.elapsed().as_secs_f64() * 1e3;
                tracing::info!(%artifact, epoch, ms, "first plan of this swarm, counted from the first peer's hello");
            }
        }
    }
}

/// Says who it is that an operator has to look at.
fn warn_of(alarm: &Alarm) {
    let Alarm { peer, name, address, standing, charge, accusers, .. } = alarm;
    let what = match (standing, charge) {
        (Standing::Good, _) => "a peer is trusted again",
        (Standing::Suspect, Some(Charge::Silence)) => {
            "a peer gives nothing of what it has: it is read from last"
        }
        (Standing::Suspect, _) => "a peer is suspected of sending wrong bytes: it is read from last",
        (Standing::Quarantined, _) => "a peer is quarantined for sending wrong bytes: nobody is sent to it",
    };
    tracing::warn!(%peer, name, address, accusers, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(driver: &mut Driver, stream: StreamId, peer: PeerId, outbox: Arc<Outbox>) {
        let (name, address) = (String::new(), "host:1".to_owned());
        let host = planner::HostAddr::new(std::net::Ipv4Addr::LOCALHOST.into());
        let place = planner::Place::default();
        let register = Input::Register { peer, address, name, nic_rate: None, place, host };
        let guest = Guest { register, may_redirect: true, unreachable: Vec::new() };
        driver.handle(Event::Opened { stream, peer, guest, outbox });
    }

    #[test]
    fn a_member_that_has_no_plan_and_comes_first_hides_no_take_over() {
        let (artifact, mut driver) =
            (ArtifactId([7; 32]), Driver::new(Duration::from_secs(1), Arc::default()));
        let mut join = |number: u8, epoch| {
            let (peer, stream) = (PeerId::new([number; 16]), StreamId::from(number));
            open(&mut driver, stream, peer, Outbox::new());
            let progress = planner::Progress { epoch, ..planner::Progress::default() };
            let (have, is_seed) = (Vec::new(), epoch == 0);
            let (bytes, piece_count) = (4 << 20, 4);
            let input =
                Input::Join { peer, artifact, bytes, piece_count, origin_ok: false, is_seed, have, progress };
            driver.handle(Event::Said { stream, peer, input });
            driver.deliver(Instant::now());
            driver.taken_over.planned(Instant::now(), artifact, usize::from(number)).is_some()
        };
        assert!(!join(1, 0), "a seed goes by no plan");
        assert!(join(2, 9), "another scheduler made that one");
        assert!(join(3, 9), "one more of its members");
    }

    #[test]
    fn who_goes_where_all_are_sent_is_planned_with_until_the_others_have_gone_too() {
        let mut driver = Driver::new(Duration::from_secs(1), Arc::default());
        let peers = [1, 2].map(|number| PeerId::new([number; 16]));
        for (stream, peer) in (0..).zip(peers) {
            open(&mut driver, stream, peer, Outbox::new());
        }
        let knows = |driver: &Driver| peers.map(|peer| driver.planner.load(peer).is_some());
        driver.handle(Event::Outranked(Some("first:1".to_owned())));
        driver.handle(Event::Ended { stream: 0, peer: peers[0] });
        driver.tick();
        assert_eq!(knows(&driver), [true, true]);
        driver.arrived(|at| at <= Instant::now() + MOVING);
        assert_eq!(knows(&driver), [false, true], "the other one cannot reach that scheduler");
        driver.handle(Event::Ended { stream: 1, peer: peers[1] });
        assert_eq!(knows(&driver), [false, false], "nobody is left to be told anything");
        assert!(driver.moved.is_empty());
    }

    #[test]
    fn the_end_of_an_older_stream_does_not_end_the_newer() {
        let peer = PeerId::new([1; 16]);
        let outboxes = [Outbox::new(), Outbox::new()];
        let mut driver = Driver::new(Duration::from_secs(1), Arc::default());
        for (stream, outbox) in (0..).zip(&outboxes) {
            open(&mut driver, stream, peer, Arc::clone(outbox));
        }
        driver.handle(Event::Ended { stream: 0, peer });
        assert!(driver.planner.load(peer).is_some(), "the planner knows the peer");
        let measured = planner::Measured::default;
        let load = |sent| Input::Load { peer, sent, received: 0, measured: measured() };
        driver.handle(Event::Said { stream: 1, peer, input: load(5) });
        driver.handle(Event::Said { stream: 0, peer, input: load(6) });
        assert_eq!(driver.planner.load(peer), Some((5, 0)), "the older stream says nothing any more");
        driver.handle(Event::Ended { stream: 1, peer });
        assert_eq!(driver.planner.load(peer), None);
    }
}
