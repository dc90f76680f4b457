//! One artifact's swarm in one peer: takes inputs, keeps the books. Does not own the choice of pieces (`pick`).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use modelpack::layout::{PieceIndex, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::{PeerId, PeerPlan, StripeSource};

use crate::bits::Bits;
use crate::edges::Edges;
use crate::io::{Config, Failure, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source};
use crate::late::Pace;
use crate::link::{Link, LinkState};
use crate::origin::{Origin, OriginState};
use crate::reads::{Read, Reads};
use crate::stripes::{Stripes, mix};

/// How long to wait for a first plan before going on as if there were no scheduler.
const PLAN_WAIT: Duration = Duration::from_secs(2);

/// How long the new entrant of a stripe waits to hear from the old one which pieces are on their way: many times what
/// opening a link takes. Beyond, the origin is read, at worst for the few pieces of the reads in flight twice.
const HANDOVER: Duration = Duration::from_secs(1);

/// The first wait after a failed read on a link; it doubles up to `PAUSE_DOUBLINGS` times.
const PAUSE: Duration = Duration::from_millis(20);
const PAUSE_DOUBLINGS: u32 = 6;

/// Failed reads in a row after which a link is closed and opened again.
const LINK_FAILURES_MAX: u32 = 5;

/// Links open at once: 16 stripes with a parent and two backups each, and some to look around with.
pub(crate) const LINKS_MAX: usize = 96;

/// What one link has been able to carry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkRate {
    /// The other end.
    pub peer: PeerId,
    /// Goodput while something was outstanding, if anything came yet.
    pub bytes_per_second: Option<f64>,
}

/// Who is to be looked at after an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Concerned {
    Nobody,
    Link(PeerId),
    Origin,
    Everybody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Running,
    Complete,
    Failed,
}

/// One artifact's swarm in one peer.
///
/// Law: after each [`Self::handle`] (and after [`Self::new`]), [`Self::poll`] is called until it returns `None`.
#[derive(Debug)]
pub struct Swarm {
    pub(crate) config: Config,
    pub(crate) layout: PieceLayout,
    pub(crate) now: Duration,
    pub(crate) started: Duration,
    pub(crate) have: PieceMap,
    /// Missing, and carried by no live read.
    pub(crate) wanted: Bits,
    /// What others had when this peer came late to them.
    pub(crate) postponed: Bits,
    pub(crate) pace: Pace,
    pub(crate) plan: Option<PeerPlan>,
    /// Since when there is no scheduler.
    pub(crate) lost_at: Option<Duration>,
    /// Members that are origins: each piece is asked of them once, by the entrant of its stripe.
    pub(crate) seeds: BTreeSet<PeerId>,
    /// Members of other racks: what they send crosses uplinks that many share.
    pub(crate) far: BTreeSet<PeerId>,
    pub(crate) stripes: Stripes,
    pub(crate) origin: Origin,
    pub(crate) links: BTreeMap<PeerId, Link>,
    pub(crate) edges: Edges,
    pub(crate) reads: Reads,
    pub(crate) blamed: BTreeMap<PeerId, PieceIndex>,
    pub(crate) last_news: Duration,
    /// Stalled links since the last [`Self::take_stalls`].
    pub(crate) stalls: u64,
    pub(crate) phase: Phase,
    pub(crate) random: u64,
    /// [`Self::next_wake`] after the last input.
    pub(crate) wake_due: Option<Duration>,
    pub(crate) outputs: VecDeque<Output>,
    /// Of no meaning; kept for its memory.
    pub(crate) starts: Vec<PieceIndex>,
    /// Something happened that may concern any link: all of them are looked at.
    pub(crate) is_stirred: bool,
    /// The reads at the origin or at seeds are others than when this was last said.
    pub(crate) is_coming_stale: bool,
    /// The last [`Output::Coming`].
    said_coming: (u64, Vec<Run>),
}

impl Swarm {
    /// A swarm that has `have` and wants the rest.
    ///
    /// # Panics
    /// If `have` is about another number of pieces than `layout`.
    pub fn new(config: Config, layout: PieceLayout, have: PieceMap, now: Duration) -> Self {
        assert!(have.piece_count() == layout.piece_count(), "the piece map belongs to the layout");
        let mut wanted = Bits::empty(layout.piece_count());
        let mut from = PieceIndex(0);
        while let Some(piece) = have.next_missing(from) {
            wanted.insert(piece);
            from = PieceIndex(piece.0 + 1);
        }
        let source = if config.standalone { StripeSource::Origin } else { StripeSource::None };
        let stripes = Stripes::single(source, &wanted, now);
        let outputs = have.runs().into_iter().map(|run| Output::Announce { run }).collect();
        let mut swarm = Self {
            random: mix(config.seed),
            edges: Edges::new(layout.piece_count()),
            is_stirred: true,
            is_coming_stale: true,
            config: config.for_pieces(layout.piece_count()),
            layout,
            now,
            started: now,
            have,
            wanted,
            postponed: Bits::empty(0),
            pace: Pace::default(),
            plan: None,
            lost_at: None,
            seeds: BTreeSet::new(),
            far: BTreeSet::new(),
            stripes,
            origin: Origin::new(),
            links: BTreeMap::new(),
            reads: Reads::default(),
            blamed: BTreeMap::new(),
            last_news: now,
            stalls: 0,
            phase: Phase::Running,
            wake_due: None,
            outputs,
            starts: Vec::new(),
            said_coming: (0, Vec::new()),
        };
        swarm.pump();
        swarm
    }

    /// Takes note of one input at `now`, which never goes backwards.
    ///
    /// Most inputs concern one source: a piece came, or was announced. Only that source is looked at then, unless
    /// something is due or has changed for all.
    pub fn handle(&mut self, now: Duration, input: Input) {
        self.forgive(now);
        self.now = self.now.max(now);
        let concerned = self.take_note(input);
        if self.wake_due.is_some_and(|due| due <= self.now) {
            self.is_stirred = true;
        }
        match concerned {
            Concerned::Nobody if !self.is_stirred => {}
            Concerned::Link(peer) if !self.is_stirred => self.follow_up(Source::Peer(peer)),
            Concerned::Origin if !self.is_stirred => self.follow_up(Source::Origin),
            _ => {
                self.is_stirred = false;
                self.pump();
                self.wake_due = self.next_timer();
            }
        }
    }

    fn take_note(&mut self, input: Input) -> Concerned {
        match input {
            Input::Plan(plan) => self.planned(plan),
            Input::NoScheduler => self.no_scheduler(),
            Input::OriginUp { ranges } => self.origin.state = OriginState::Up { ranges },
            Input::OriginDown => self.origin.state = OriginState::Down,
            Input::LinkUp { peer, in_flight_max } => {
                self.edges.are_stale = true;
                match self.links.get_mut(&peer) {
                    Some(link) if self.phase == Phase::Running => link.up(self.now, in_flight_max),
                    _ => self.outputs.push_back(Output::Disconnect { peer }),
                }
            }
            Input::LinkLeaving { peer } => self.link_leaving(peer),
            Input::LinkDown { peer } => self.link_broken(peer),
            Input::LinkMoved { peer } => {
                self.abandon_link(peer);
                self.edges.are_stale = true;
                if let Some(link) = self.links.get_mut(&peer) {
                    link.moved(self.now);
                }
            }
            Input::Have { peer, runs } => {
                self.announced(peer, &runs);
                return Concerned::Link(peer);
            }
            Input::Coming { peer, epoch, runs } => return self.is_coming(peer, epoch, &runs),
            Input::Piece { read, piece, outcome } => {
                self.checked(read);
                match outcome {
                    PieceOutcome::Good => return self.good(read, piece),
                    PieceOutcome::Bad => self.bad(read, piece),
                }
            }
            Input::Arrived { peer } => {
                self.note(peer, Link::came);
                return Concerned::Nobody;
            }
            Input::Progress { peer } => {
                self.note(peer, |link, now| link.last_byte = now);
                return Concerned::Nobody;
            }
            Input::ReadEnded { read, outcome } => return self.read_ended(read, outcome),
            Input::Tick => {}
        }
        Concerned::Everybody
    }

    /// What others read first hand matters to those who do too, most of all while a stripe changes hands.
    fn is_coming(&mut self, peer: PeerId, epoch: u64, runs: &[Run]) -> Concerned {
        let waits = self.stripes.all().iter().any(|stripe| !self.is_handed_over(stripe));
        if let Some(link) = self.links.get_mut(&peer).filter(|link| link.is_up()) {
            link.is_coming(epoch, runs);
        }
        match self.reads_first_hand() {
            true if waits || !self.seeds.is_empty() => Concerned::Everybody,
            true => Concerned::Origin,
            false => Concerned::Nobody,
        }
    }

    /// What follows where only one source is concerned.
    fn follow_up(&mut self, source: Source) {
        if self.phase != Phase::Running {
            return;
        }
        match source {
            Source::Peer(peer) => self.fill(peer),
            Source::Origin => self.fill_origin(),
        }
        self.say_what_is_coming();
        self.is_stirred |= self.edges.are_stale;
        if self.have.is_full() {
            self.check_end();
            self.wake_due = None;
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The pieces that are proved here.
    pub fn have(&self) -> &PieceMap {
        &self.have
    }

    /// How many links have stalled since this was asked last: what was asked of them is asked of others.
    pub fn take_stalls(&mut self) -> u64 {
        std::mem::take(&mut self.stalls)
    }

    /// The last plan.
    pub fn plan(&self) -> Option<&PeerPlan> {
        self.plan.as_ref()
    }

    /// What each link has been able to carry.
    pub fn rates(&self) -> impl Iterator<Item = LinkRate> + '_ {
        self.links.iter().map(|(peer, link)| LinkRate { peer: *peer, bytes_per_second: link.rate() })
    }

    /// A round of work for everybody: timers, links, reads, the end.
    fn pump(&mut self) {
        if self.phase == Phase::Running {
            if self.plan.is_none() && self.lost_at.is_none() && self.now >= self.started + PLAN_WAIT {
                self.no_scheduler();
            }
            self.give_up_stalled();
            self.tell_stalled();
            self.report_silent();
            self.close_left();
            self.look_around();
            self.see_who_is_behind();
            self.open_links();
            self.post_reads();
            self.say_what_is_coming();
            self.check_end();
        }
    }

    /// When a `Tick` is due, if nothing else happens before.
    pub fn next_wake(&self) -> Option<Duration> {
        self.wake_due.filter(|_| self.phase == Phase::Running)
    }

    fn next_timer(&self) -> Option<Duration> {
        if self.phase != Phase::Running {
            return None;
        }
        let plan = (self.plan.is_none() && self.lost_at.is_none()).then_some(self.started + PLAN_WAIT);
        self.timers().chain(plan).filter(|at| *at > self.now).min()
    }

    /// Announces the reads in flight at the origin and at seeds, when they have changed. A peer that is alone has nobody to tell.
    fn say_what_is_coming(&mut self) {
        if !std::mem::take(&mut self.is_coming_stale) {
            return;
        }
        let Some(epoch) = self.plan.as_ref().map(|plan| plan.epoch) else { return };
        let is_first_hand = |read: &&Read| match read.source {
            Source::Origin => true,
            Source::Peer(peer) => self.seeds.contains(&peer),
        };
        let live = self.reads.iter().map(|(_, read)| read).filter(|read| read.is_live).filter(is_first_hand);
        let mut runs: Vec<Run> = live.map(|read| read.run).collect();
        runs.sort_unstable();
        if self.said_coming.0 != epoch || self.said_coming.1 != runs {
            self.said_coming = (epoch, runs.clone());
            self.outputs.push_back(Output::Coming { epoch, runs });
        }
    }

    fn planned(&mut self, plan: PeerPlan) {
        let is_stale = self.plan.as_ref().is_some_and(|old| self.lost_at.is_none() && plan.epoch < old.epoch);
        // Conversions from the network refuse such plans; one that came through must not divide by zero.
        if self.config.standalone || is_stale || plan.stripes.is_empty() || plan.stripe_pieces == 0 {
            return;
        }
        if self.lost_at.is_some() {
            // Said again, also under the number that the old scheduler's plan had.
            self.said_coming = (0, Vec::new());
        }
        self.accuse_again(&plan);
        let until = self.now + HANDOVER;
        self.stripes = Stripes::planned(&plan, &self.stripes, &self.wanted, self.now, until);
        self.links.values_mut().for_each(Link::forget_stripes);
        (self.edges.are_stale, self.is_coming_stale) = (true, true);
        self.lost_at = None;
        self.seeds = plan.members.iter().filter(|member| member.is_seed).map(|member| member.id).collect();
        self.far = plan.members.iter().filter(|member| member.is_far).map(|member| member.id).collect();
        self.rely_on_parents(&plan);
        for peer in &plan.quarantined {
            // No plan names it, so that nothing opens it again.
            self.part_with(*peer);
        }
        self.plan = Some(plan);
        self.hurry_for_others();
        self.leave_unplanned();
    }

    /// Reads nothing more from this peer.
    fn part_with(&mut self, peer: PeerId) {
        self.abandon_link(peer);
        if self.links.remove(&peer).is_some() {
            self.outputs.push_back(Output::Disconnect { peer });
            self.edges.are_stale = true;
        }
    }

    fn no_scheduler(&mut self) {
        self.lost_at.get_or_insert(self.now);
        self.edges.are_stale = true;
        for link in self.links.values_mut() {
            // The next scheduler counts its plans from 1 again: it was said by none of those.
            link.coming.0 = 0;
        }
        if self.plan.is_none() {
            self.stripes = Stripes::single(StripeSource::Origin, &self.wanted, self.now);
            self.links.values_mut().for_each(Link::forget_stripes);
        }
    }

    fn announced(&mut self, peer: PeerId, runs: &[Run]) {
        let Some(link) = self.links.get_mut(&peer).filter(|link| link.is_up()) else { return };
        let is_first = link.has.is_empty() && link.heard.is_empty();
        for run in runs {
            for piece in link.has.clip(*run).pieces() {
                if !link.announced(piece) {
                    continue;
                }
                link.holds_one_more(|| self.stripes.number(piece));
                if link.mine.contains(piece) {
                    link.last_mine = self.now;
                    link.announced_mine += 1;
                    link.note_use(self.now, !self.have.contains(piece));
                }
                if !link.heard.contains(piece) && !self.have.contains(piece) {
                    let stripe = self.stripes.at_mut(piece);
                    stripe.news(self.now);
                    stripe.is_last_resort = false;
                    self.last_news = self.now;
                }
            }
        }
        if is_first {
            self.postpone(peer);
        }
    }

    /// Nothing is to be done for such news, so that a piece costs one round of work and not two.
    fn note(&mut self, peer: PeerId, what: impl FnOnce(&mut Link, Duration)) {
        if let Some(link) = self.links.get_mut(&peer) {
            what(link, self.now);
        }
    }

    fn good(&mut self, id: ReadId, piece: PieceIndex) -> Concerned {
        let Some(read) = self.reads.get_mut(id).filter(|read| read.run.contains(piece)) else {
            return Concerned::Nobody;
        };
        let bytes = self.layout.piece_bytes(piece);
        read.bytes_left = read.bytes_left.saturating_sub(bytes);
        let concerned = match read.source {
            Source::Origin => {
                self.origin.good(self.now.saturating_sub(read.issued));
                Concerned::Origin
            }
            Source::Peer(peer) => {
                if let Some(link) = self.links.get_mut(&peer) {
                    self.edges.are_stale |= link.is_slow;
                    self.is_stirred |= link.is_slow;
                    link.arrived(self.now, bytes);
                }
                self.note_pace();
                Concerned::Link(peer)
            }
        };
        if !self.have.insert(piece) {
            return concerned;
        }
        self.last_news = self.now;
        self.stripes.at_mut(piece).news(self.now);
        self.unwant(piece);
        self.see_who_is_behind();
        match self.outputs.back_mut() {
            Some(Output::Announce { run }) if run.end == piece => run.end.0 += 1,
            _ => self.outputs.push_back(Output::Announce { run: Run::one(piece) }),
        }
        if self.reads.has_given_up() {
            let superseded = self.reads.cancel_superseded(piece, &self.have);
            self.outputs.extend(superseded.into_iter().map(|read| Output::Cancel { read }));
        }
        concerned
    }

    fn bad(&mut self, id: ReadId, piece: PieceIndex) {
        let Some(read) = self.reads.get(id).filter(|read| read.run.contains(piece)) else { return };
        match read.source {
            Source::Peer(peer) if !self.blamed.contains_key(&peer) => {
                self.blamed.insert(peer, piece);
                self.outputs.push_back(Output::Blame { peer, piece });
                self.part_with(peer);
            }
            Source::Peer(_) => {}
            Source::Origin => {
                if self.origin.bad(piece) >= self.config.origin_attempts_max && !self.have.contains(piece) {
                    self.fail(Failure::OriginWrongBytes { piece });
                }
            }
        }
    }

    fn read_ended(&mut self, id: ReadId, outcome: ReadOutcome) -> Concerned {
        let Some(read) = self.reads.end(id) else { return Concerned::Nobody };
        let concerned = match read.source {
            Source::Origin => {
                self.is_coming_stale = true;
                self.origin.reads.remove(&id);
                match outcome {
                    ReadOutcome::Ok => {
                        self.keep_abreast(read.run.len(), self.now.saturating_sub(read.issued));
                    }
                    ReadOutcome::Retry | ReadOutcome::NotHere => self.origin.failed(self.now),
                    ReadOutcome::SourceGone => self.origin.state = OriginState::Down,
                }
                if self.origin.state == OriginState::Down {
                    self.outputs.push_back(Output::OriginLost);
                }
                Concerned::Origin
            }
            Source::Peer(peer) => {
                self.is_coming_stale |= self.seeds.contains(&peer);
                self.peer_read_ended(peer, id, &read, outcome);
                Concerned::Link(peer)
            }
        };
        if read.is_live {
            self.want_again(read.run);
        }
        if outcome == ReadOutcome::Ok { concerned } else { Concerned::Everybody }
    }

    fn peer_read_ended(&mut self, peer: PeerId, id: ReadId, read: &Read, outcome: ReadOutcome) {
        let Some(link) = self.links.get_mut(&peer) else { return };
        link.ended(id, read.bytes_left);
        if matches!(outcome, ReadOutcome::Retry | ReadOutcome::NotHere) {
            link.pause_until = self.now + PAUSE * 2_u32.pow(link.failures.min(PAUSE_DOUBLINGS));
            link.failures = link.failures.saturating_add(1);
        }
        if outcome == ReadOutcome::NotHere {
            // It is believed again when it says so again.
            link.refused(self.now, read.run);
        }
        let is_refusing = link.is_refusing();
        let is_hopeless = outcome == ReadOutcome::SourceGone || link.failures >= LINK_FAILURES_MAX;
        if is_hopeless && outcome != ReadOutcome::Ok && link.is_up() {
            self.outputs.push_back(Output::Disconnect { peer });
            self.link_down(peer);
        }
        if is_refusing {
            self.report(peer);
        }
    }

    pub(crate) fn link_down(&mut self, peer: PeerId) {
        self.abandon_link(peer);
        self.edges.are_stale = true;
        if let Some(link) =
            self.links.get_mut(&peer).filter(|link| !matches!(link.state, LinkState::Down { .. }))
        {
            link.down(self.now);
        }
    }

    /// Gives up on every read of a link: their pieces are wanted again at once.
    pub(crate) fn abandon_link(&mut self, peer: PeerId) {
        self.is_coming_stale = true;
        let ids: Vec<ReadId> =
            self.links.get(&peer).into_iter().flat_map(|link| link.reads.iter().copied()).collect();
        for id in ids {
            if let Some(run) = self.reads.give_up(id) {
                self.want_again(run);
            }
        }
    }

    pub(crate) fn want_again(&mut self, run: Run) {
        for piece in run.pieces() {
            if !self.have.contains(piece) && !self.reads.is_carried(piece) && self.wanted.insert(piece) {
                self.stripes.inserted(piece);
                self.is_stirred = true;
            }
        }
    }

    pub(crate) fn unwant(&mut self, piece: PieceIndex) {
        if self.wanted.remove(piece) {
            self.stripes.removed(piece);
        }
    }

    pub(crate) fn fail(&mut self, reason: Failure) {
        if self.phase == Phase::Running {
            self.finish(Phase::Failed);
            self.outputs.push_back(Output::Failed { reason });
        }
    }

    fn check_end(&mut self) {
        if self.have.is_full() {
            self.finish(Phase::Complete);
            self.outputs.push_back(Output::Complete);
        } else if self.is_hopeless() {
            self.fail(Failure::NoSource);
        }
    }

    fn finish(&mut self, phase: Phase) {
        self.phase = phase;
        let (epoch, runs) = std::mem::take(&mut self.said_coming);
        if !runs.is_empty() {
            self.outputs.push_back(Output::Coming { epoch, runs: Vec::new() });
        }
        for (id, read) in self.reads.iter_mut() {
            if !read.is_cancelled {
                read.is_cancelled = true;
                self.outputs.push_back(Output::Cancel { read: id });
            }
        }
        let open = self.links.iter().filter(|(_, link)| !matches!(link.state, LinkState::Down { .. }));
        self.outputs.extend(open.map(|(peer, _)| Output::Disconnect { peer: *peer }));
        self.links.clear();
    }

    pub(crate) fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(1);
        mix(self.random)
    }
}
