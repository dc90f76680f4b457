//! The driver of one artifact's swarm: performs what it wants done, and tells it what came of that.
//!
//! Owns: reads, links and checks in flight, and the order in which the swarm hears of them. Does not own: any choice
//! (crate `swarm`), or publishing.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use identity::Voucher;
use modelpack::{
    digest::Sha256Hasher,
    layout::{BlobIndex, PieceIndex, Run},
    piece_map::PieceMap,
};
use planner::{PeerId, PeerPlan};
use store::StoreError;
use swarm::{Config, Failure, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinError, JoinSet},
};
use transport::{Completion, Level, ReadRequest};

use crate::{
    blame::Members,
    buffers::{Piece, Right, Space},
    error::PeerError,
    fetch::{Fetch, FetchEnded, Ground, PieceChecked},
    have_feed::Coming,
    lanes::Traffic,
    links::{GrantedLink, LinkEvent, LinkHandle},
    metrics::LinkCount,
    origin::Origin,
    prefix::Prefixes,
    progress::{Load, Stage, Stages},
    vouching::Provenance,
};

/// What a download is told from outside.
#[derive(Debug)]
pub(crate) enum Event {
    /// The scheduler's plan for this artifact.
    Plan(PeerPlan),
    /// No scheduler is reachable.
    NoScheduler,
    Transferred(Completion),
    Leased(u64, Space),
    /// There is a limit by which a read would be too late.
    Unpaced(u64),
    Checked(PieceChecked),
    Fetched(FetchEnded),
    Hashed(BlobIndex, Result<Sha256Hasher, StoreError>),
}

/// What a download does next.
enum Next {
    Event(Event),
    Link(LinkEvent),
    /// The swarm asked to be woken now.
    Woken,
    /// A task of this download has ended, and said before what came of it.
    TaskEnded(Result<(), JoinError>),
}

impl From<PieceChecked> for Event {
    fn from(checked: PieceChecked) -> Self {
        Self::Checked(checked)
    }
}

impl From<FetchEnded> for Event {
    fn from(ended: FetchEnded) -> Self {
        Self::Fetched(ended)
    }
}

/// What a download tells the rest of its node.
pub(crate) trait Herald: Send {
    /// These pieces are proved here.
    fn announce(&self, run: Run);
    /// These are read from the origin now; replaces what was said before.
    fn coming(&self, coming: Coming);
    /// The origin cannot be read any more.
    fn origin_lost(&self);
    /// That peer sent wrong bytes.
    fn complain(&self, about: PeerId, piece: PieceIndex);
    /// Nothing comes from that parent for now.
    fn stalled(&self, about: PeerId);
    /// That peer gives nothing of what it announces.
    fn silent(&self, about: PeerId);
    /// What the artifact costs, and how urgent it is, if anybody counts that.
    fn traffic(&self) -> Option<&Arc<Traffic>> {
        None
    }
}

/// Nobody listens: a pull that has no fleet.
impl Herald for () {
    fn announce(&self, _run: Run) {}
    fn coming(&self, _coming: Coming) {}
    fn origin_lost(&self) {}
    fn complain(&self, _about: PeerId, _piece: PieceIndex) {}
    fn stalled(&self, _about: PeerId) {}
    fn silent(&self, _about: PeerId) {}
}

/// How a download ended well.
#[derive(Debug)]
pub(crate) struct Downloaded {
    /// Of each blob that has no root: the SHA-256 of all its bytes.
    pub(crate) hashers: BTreeMap<BlobIndex, Sha256Hasher>,
    /// What the pipeline waited on longest.
    pub(crate) bounded_by: Option<Stage>,
    /// The plan's bound, if the rates were known.
    pub(crate) bound: Option<Duration>,
    /// Every peer that a plan has named.
    pub(crate) members: Members,
}

/// One artifact being downloaded.
pub(crate) struct Download<H> {
    ground: Arc<Ground>,
    origin: Option<Origin>,
    herald: H,
    swarm: Swarm,
    me: PeerId,
    epoch: Instant,
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    link_events: mpsc::UnboundedSender<LinkEvent>,
    link_inbox: mpsc::UnboundedReceiver<LinkEvent>,
    /// What the swarm is to be told next: kept, so that performing an output never re-enters it.
    inputs: VecDeque<Input>,
    reads: BTreeMap<ReadId, OpenRead>,
    transfers: BTreeMap<u64, Transfer>,
    asked: asked::Asked,
    last_transfer: u64,
    links: BTreeMap<PeerId, OpenLink>,
    last_generation: u64,
    prefixes: Prefixes,
    stages: Stages,
    tasks: JoinSet<()>,
    /// Whether the origin serves ranges, as far as is known.
    has_ranges: bool,
    last_error: Option<PeerError>,
    /// Peers whose bytes count as the origin's.
    seeds: BTreeSet<PeerId>,
    /// Every peer that a plan has named.
    members: Members,
    bound: Option<Duration>,
    end: Option<Result<(), Failure>>,
    /// When it was last said of whom nothing is asked.
    excused: Instant,
}

/// A read that the swarm has asked for and that has not ended.
struct OpenRead {
    source: Source,
    /// Transfers that have not ended; of an origin read, whether the task has.
    left: u32,
    /// Pieces that went to the workers.
    sent: u32,
    checked: u32,
    outcome: ReadOutcome,
    /// Dropped to cancel an origin read.
    cancel: Option<oneshot::Sender<()>>,
}

/// One piece on its way from a peer.
struct Transfer {
    read: ReadId,
    piece: PieceIndex,
    peer: PeerId,
    deadline: Instant,
    /// Once it is posted.
    right: Option<Right>,
    /// That it was announced with: the link may be gone when the bytes are here.
    voucher: Option<Arc<Voucher>>,
    /// Over which link it was posted, and how that one carries bytes.
    carrier: Option<(u64, Level)>,
}

struct OpenLink {
    generation: u64,
    granted: Option<GrantedLink>,
    counted: LinkCount,
    /// Of the pieces that it announced and that are not here yet.
    vouchers: BTreeMap<PieceIndex, Arc<Voucher>>,
    /// Dropped to close the link.
    handle: LinkHandle,
}

impl<H: Herald> Download<H> {
    /// A download of what `have` lacks. `events` and `inbox` are the two ends of its own channel.
    pub(crate) fn new(
        ground: Arc<Ground>,
        origin: Option<Origin>,
        herald: H,
        (config, have): (Config, PieceMap),
        (events, inbox): (mpsc::UnboundedSender<Event>, mpsc::UnboundedReceiver<Event>),
    ) -> Self {
        let layout = ground.artifact.layout().clone();
        ground.sinks.begin(&have);
        let me = config.me;
        // A read from a peer is one piece, so that each can be relayed the moment it is here.
        let config = Config { peer_run_pieces: 1, ..config };
        let (link_events, link_inbox) = mpsc::unbounded_channel();
        let up = if origin.is_some() { Input::OriginUp { ranges: true } } else { Input::OriginDown };
        Self {
            prefixes: Prefixes::new(&ground.artifact, &ground.landing),
            asked: asked::Asked::new(Arc::clone(&ground.counters.metrics)),
            ground,
            origin,
            herald,
            swarm: Swarm::new(config, layout, have, Duration::ZERO),
            me,
            epoch: Instant::now(),
            excused: Instant::now(),
            events,
            inbox,
            link_events,
            link_inbox,
            inputs: VecDeque::from([up]),
            reads: BTreeMap::new(),
            transfers: BTreeMap::new(),
            last_transfer: 0,
            links: BTreeMap::new(),
            last_generation: 0,
            stages: Stages::default(),
            tasks: JoinSet::new(),
            has_ranges: true,
            last_error: None,
            seeds: BTreeSet::new(),
            members: Members::default(),
            bound: None,
            end: None,
        }
    }

    /// Downloads until everything is there or nothing can be done any more.
    pub(crate) async fn run(mut self) -> Result<Downloaded, PeerError> {
        self.drain_outputs();
        for blob in self.prefixes.blobs() {
            self.hash_on(blob);
        }
        loop {
            self.settle();
            match self.end {
                Some(Ok(())) if self.prefixes.is_done() => return Ok(self.finish()),
                Some(Err(failure)) => return Err(self.failed(failure)),
                _ => {}
            }
            match self.next_event().await {
                Next::Event(event) => self.handle(event)?,
                Next::Link(event) => self.link_event(event),
                Next::Woken => self.inputs.push_back(Input::Tick),
                Next::TaskEnded(Ok(())) => {}
                // The swarm would wait for ever for what it has not said.
                Next::TaskEnded(Err(error)) => std::panic::resume_unwind(error.into_panic()),
            }
        }
    }

    async fn next_event(&mut self) -> Next {
        let (since, load) = (Instant::now(), self.load());
        let wake = self.swarm.next_wake().map(|at| self.epoch + at);
        let woken = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        // It holds a sender of each channel itself, so that neither ends.
        let next = tokio::select! {
            Some(event) = self.inbox.recv() => Next::Event(event),
            Some(event) = self.link_inbox.recv() => Next::Link(event),
            Some(ended) = self.tasks.join_next() => Next::TaskEnded(ended),
            () = woken => Next::Woken,
        };
        self.stages.waited(load, since.elapsed());
        next
    }

    fn load(&self) -> Load {
        let origin_reads = self.reads.values().filter(|read| read.source == Source::Origin).count();
        let workers = self.ground.workers.count();
        Load {
            checks: self.ground.checks_waiting(),
            workers,
            origin_reads,
            peer_reads: self.reads.len() - origin_reads,
        }
    }

    /// Tells the swarm everything that is due, and performs what it wants.
    fn settle(&mut self) {
        self.excuse_unasked();
        while let Some(input) = self.inputs.pop_front() {
            self.swarm.handle(self.epoch.elapsed(), input);
            self.drain_outputs();
        }
        self.ground.counters.metrics.stalled(self.swarm.take_stalls());
    }

    fn drain_outputs(&mut self) {
        while let Some(output) = self.swarm.poll() {
            self.perform(output);
        }
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Connect { peer, address } => self.connect(peer, address),
            Output::Disconnect { peer } => {
                self.links.remove(&peer);
            }
            Output::Interest { peer, stripes } => {
                if let Some(link) = self.links.get(&peer) {
                    link.handle.interest(stripes);
                }
            }
            Output::Read { read, source: Source::Origin, run, deadline } => {
                self.fetch(read, run, self.epoch + deadline);
            }
            Output::Read { read, source: Source::Peer(peer), run, deadline } => {
                self.transfer(read, peer, run, self.epoch + deadline);
            }
            Output::Cancel { read } => {
                // A peer's read cannot be taken back: its bytes arrive and count if they are still of use.
                if let Some(open) = self.reads.get_mut(&read) {
                    open.cancel = None;
                }
            }
            Output::Announce { run } => {
                for link in self.links.values() {
                    link.handle.landed(run);
                }
                self.herald.announce(run);
            }
            Output::Coming { epoch, runs } => self.herald.coming(Coming { epoch, runs }),
            Output::OriginLost => self.herald.origin_lost(),
            Output::Blame { peer, piece } => self.blame(peer, piece),
            Output::Stalled { peer } => self.herald.stalled(peer),
            Output::Silent { peer } => {
                tracing::info!(%peer, "a peer gives nothing of what it announces");
                self.herald.silent(peer);
            }
            Output::Complete => self.end = Some(Ok(())),
            Output::Failed { reason } => self.end = Some(Err(reason)),
        }
    }

    fn handle(&mut self, event: Event) -> Result<(), PeerError> {
        match event {
            Event::Plan(plan) => {
                self.seeds = plan.members.iter().filter(|at| at.is_seed).map(|at| at.id).collect();
                self.members.note(&plan);
                self.bound = plan.bound.or(self.bound);
                self.inputs.push_back(Input::Plan(plan));
            }
            Event::NoScheduler => self.inputs.push_back(Input::NoScheduler),
            Event::Transferred(completion) => self.transferred(completion),
            Event::Leased(transfer, space) => self.leased(transfer, space),
            // The swarm pauses the link.
            Event::Unpaced(transfer) => self.transfer_ended(transfer, Err(ReadOutcome::Retry)),
            Event::Checked(checked) => self.checked(checked)?,
            Event::Fetched(ended) => self.fetched(ended),
            Event::Hashed(blob, result) => {
                if let Some(whole) = self.prefixes.done(blob, result?) {
                    self.proved_early(blob, whole);
                }
                self.hash_on(blob);
            }
        }
        Ok(())
    }

    /// A blob that is checked as a whole is all here: whoever waits for it need not wait for the others. That it is wrong
    /// is dealt with at the end.
    fn proved_early(&self, blob: BlobIndex, whole: Sha256Hasher) {
        let digest = &self.ground.artifact.blob(blob).digest;
        if self.ground.landing.prove_streamed(blob, whole, digest).is_ok() {
            self.ground.counters.proved(blob);
        }
    }

    fn finish(self) -> Downloaded {
        let bounded_by = self.stages.longest();
        let Self { prefixes, bound, members, .. } = self;
        Downloaded { hashers: prefixes.finish(), bounded_by, bound, members }
    }

    fn failed(self, failure: Failure) -> PeerError {
        let artifact = &self.ground.artifact;
        match failure {
            Failure::OriginWrongBytes { piece } => {
                let span = artifact.layout().span(piece);
                let what = format!("{} bytes from {}", span.len, span.offset);
                PeerError::WrongBytes { path: artifact.path_of(span.blob), what }
            }
            _ => PeerError::no_source(&artifact.reference, self.last_error),
        }
    }

    /// Hashes what has become contiguous of a blob that is checked by its SHA-256.
    fn hash_on(&mut self, blob: BlobIndex) {
        if let Some(job) = self.prefixes.next(blob, self.swarm.have()) {
            let (landing, events) = (Arc::clone(&self.ground.landing), self.events.clone());
            self.ground.workers.run(move || {
                let blob = job.blob;
                // A driver that is gone needs no answer.
                let _ = events.send(Event::Hashed(blob, job.run(&landing)));
            });
        }
    }
}

/// Reads from the origin, and what becomes of every piece.
impl<H: Herald> Download<H> {
    fn fetch(&mut self, read: ReadId, run: Run, deadline: Instant) {
        let Some(origin) = self.origin.clone() else {
            self.inputs.push_back(Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
            return;
        };
        let (cancel, cancelled) = oneshot::channel();
        self.reads.insert(read, OpenRead::new(Source::Origin, 1, Some(cancel)));
        let (ground, events) = (Arc::clone(&self.ground), self.events.clone());
        let (have, may_skip) = (self.swarm.have().clone(), !self.has_ranges);
        let traffic = self.herald.traffic().cloned();
        let fetch = Fetch { ground, origin, traffic, read, run, have, may_skip, deadline, events };
        self.tasks.spawn(fetch.run(cancelled));
    }

    fn fetched(&mut self, ended: FetchEnded) {
        let FetchEnded { read, sent, outcome, ignores_ranges, error } = ended;
        if ignores_ranges && self.has_ranges {
            tracing::info!("the origin serves no ranges: each file is read in one stream");
            self.has_ranges = false;
            self.inputs.push_back(Input::OriginUp { ranges: false });
        }
        if let Some(error) = error {
            tracing::debug!(error = &error as &dyn std::error::Error, "a read from the origin failed");
            self.last_error = Some(error);
        }
        if let Some(open) = self.reads.get_mut(&read) {
            (open.left, open.outcome) = (0, outcome);
            open.sent += sent;
        }
        self.end_read(read);
    }

    fn checked(&mut self, checked: PieceChecked) -> Result<(), PeerError> {
        let PieceChecked { read, piece, result, is_mirrored } = checked;
        let result = result?;
        self.stages.checked(result.hashing, result.writing);
        let is_news = result.outcome == PieceOutcome::Good && !self.swarm.have().contains(piece);
        if is_news {
            let counters = &self.ground.counters;
            counters.note_first_piece(self.epoch.elapsed());
            counters.done(self.ground.artifact.layout().piece_bytes(piece));
        }
        // The origin is not wrong if a mirror is, which is asked no more: when the read ends, the piece is still wanted.
        if !is_mirrored {
            self.inputs.push_back(Input::Piece { read, piece, outcome: result.outcome });
        }
        if let Some(open) = self.reads.get_mut(&read) {
            open.checked += 1;
        }
        self.end_read(read);
        if is_news {
            for link in self.links.values_mut() {
                link.vouchers.remove(&piece);
            }
            self.settle();
            self.hash_on(self.ground.artifact.layout().span(piece).blob);
        }
        Ok(())
    }

    /// Tells the swarm that a read has ended, once every piece of it has been reported.
    fn end_read(&mut self, read: ReadId) {
        if let Some(open) = self.reads.get(&read)
            && open.left == 0
            && open.checked == open.sent
        {
            let outcome = open.outcome;
            self.reads.remove(&read);
            self.inputs.push_back(Input::ReadEnded { read, outcome });
        }
    }
}

impl OpenRead {
    fn new(source: Source, left: u32, cancel: Option<oneshot::Sender<()>>) -> Self {
        Self { source, left, sent: 0, checked: 0, outcome: ReadOutcome::Ok, cancel }
    }
}

/// Reads over links to other peers.
impl<H: Herald> Download<H> {
    fn transfer(&mut self, read: ReadId, peer: PeerId, run: Run, deadline: Instant) {
        self.reads.insert(read, OpenRead::new(Source::Peer(peer), run.len(), None));
        let granted = self.links.get(&peer).and_then(|link| link.granted.as_ref());
        let level = granted.map_or(Level::Tcp, |granted| granted.link.level());
        for piece in run.pieces() {
            self.last_transfer += 1;
            let id = self.last_transfer;
            let voucher = self.links.get(&peer).and_then(|link| link.vouchers.get(&piece)).cloned();
            let transfer = Transfer { read, piece, peer, deadline, right: None, voucher, carrier: None };
            self.transfers.insert(id, transfer);
            let pace = self.pace_of(peer);
            if pace.is_free()
                && let Some(space) = self.ground.sinks.try_space(piece, level)
            {
                self.leased(id, space);
                continue;
            }
            let bytes = self.ground.artifact.layout().piece_bytes(piece);
            let (sinks, events) = (Arc::clone(&self.ground.sinks), self.events.clone());
            self.tasks.spawn(async move {
                let space = sinks.space(piece, level).await;
                let is_in_time = pace.take_by(deadline, bytes).await;
                // A driver that is gone needs no answer.
                let _ = events.send(if is_in_time { Event::Leased(id, space) } else { Event::Unpaced(id) });
            });
        }
    }

    fn leased(&mut self, id: u64, Space { lease, right }: Space) {
        let Some(transfer) = self.transfers.get_mut(&id) else { return };
        let right = transfer.right.insert(right);
        let span = self.ground.artifact.layout().span(transfer.piece);
        let link = self.links.get(&transfer.peer);
        let granted = link.and_then(|link| link.granted.as_ref());
        transfer.carrier = link.zip(granted).map(|(link, granted)| (link.generation, granted.link.level()));
        let window =
            granted.and_then(|granted| granted.windows.get(&span.blob).map(|at| (granted, at.handle)));
        let posted = window.map(|(granted, window)| {
            // Beyond the grant's end the parent may do with the window what it likes.
            let deadline = transfer.deadline.min((*granted.expires.borrow()).into_std());
            if deadline <= Instant::now() {
                // It waited too long for its buffer, which is not the link's fault: a late read would close it.
                return Err(false);
            }
            if right.hold.as_ref().is_some_and(|hold| !hold.post_on(&granted.link)) {
                return Err(false);
            }
            let request = ReadRequest { id, window, offset: span.offset, lease, deadline };
            granted.link.post(request).map_err(|_| granted.link.is_closed())
        });
        match posted {
            Some(Ok(())) => self.asked.posted(id, transfer.peer),
            // Or the grant is smaller than the reads that are being given up. The swarm pauses the link.
            Some(Err(false)) => self.transfer_ended(id, Err(ReadOutcome::Retry)),
            None | Some(Err(true)) => self.transfer_ended(id, Err(ReadOutcome::SourceGone)),
        }
    }

    fn transfer_ended(&mut self, id: u64, result: Result<memory::Filled, ReadOutcome>) {
        self.asked.ended(id);
        let Some(transfer) = self.transfers.remove(&id) else { return };
        let Transfer { read, piece, peer, right, voucher, carrier, .. } = transfer;
        let Some(open) = self.reads.get_mut(&read) else { return };
        open.left -= 1;
        match (result, right) {
            (Ok(bytes), Some(right)) => {
                let counters = &self.ground.counters;
                let level = carrier.map_or(Level::Tcp, |(_, level)| level);
                counters.came_from_peer(bytes.len() as u64, self.seeds.contains(&peer), level);
                if right.hold.is_none() {
                    counters.came_into_buffer(level, bytes.len() as u64);
                }
                self.inputs.push_back(Input::Arrived { peer });
                open.sent += 1;
                let events = self.events.clone();
                let provenance = Provenance::Peer(peer, voucher);
                self.ground.land((read, piece), Piece { bytes, right }, provenance, move |checked| {
                    // A driver that is gone needs no answer.
                    let _ = events.send(Event::Checked(checked));
                });
            }
            (Ok(_), None) => unreachable!("a transfer is posted with the right to it"),
            (Err(outcome), _) => open.outcome = outcome,
        }
        self.end_read(read);
    }
}

mod asked;
mod blamed;
mod carried;
mod linked;
mod paced;
mod vouched;

#[cfg(test)]
mod tests;
