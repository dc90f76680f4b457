//! This process as others see it: its data server, what it lets them read, its stream to the scheduler.
//!
//! Owns: which artifacts are shared, and that the scheduler and running downloads hear of one another. Does not own:
//! downloads (`download`), the store, or local clients (`daemon`).

use std::{
    collections::BTreeMap,
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use identity::ReaderKey;
use modelpack::{
    digest::Sha256Digest,
    layout::{PIECE_BYTES, PieceIndex, Run},
    piece_map::PieceMap,
};
use planner::{ArtifactId, Charge, PeerId, Priority, Wishes};
use store::{Readers, StoreError};
use swarm::Config;
use tokio::sync::{mpsc, watch};
use tonic::transport::Channel;
use transport::Exports;
use wire::control::{DescribeReply, HubModel};

use crate::{
    artifact::Artifact,
    buffers::Buffers,
    download::{Event, Herald},
    error::PeerError,
    have_feed::{Coming, HaveFeed},
    lanes::{Direction, Lanes, Traffic},
    link_test::LinkTests,
    meter::Meter,
    metrics::Metrics,
    names::Names,
    security::PeerSecurity,
    seed::{Prepared, SeedBlob},
    service::{Share, Shares},
    session::{Session, SessionCommand, SessionEvent},
    shared::{OnChange, Planes, Shared},
    sources::Sources,
    transports::Means,
    vouching::Vouching,
    workers::Workers,
};

/// News for the scheduler wait this long for more: it plans by them, it does not relay them.
const HAVE_INTERVAL: Duration = Duration::from_millis(100);

/// As many new pieces do not wait.
const HAVE_PIECES: u32 = 64;

/// One process of a fleet.
pub(crate) struct Node {
    me: PeerId,
    /// What this process signs with when it vouches for pieces.
    key: Arc<ReaderKey>,
    threads: (Workers, Buffers),
    means: Means,
    exports: Exports,
    metrics: Arc<Metrics>,
    lanes: Arc<Lanes>,
    link_tests: LinkTests,
    names: Names,
    state: Mutex<State>,
    /// Whether the first attempt to reach a scheduler has ended.
    has_tried: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    is_leaving: bool,
    reach: Reach,
    /// Of the last loss.
    lost: Option<(String, Option<&'static str>)>,
    shared: BTreeMap<ArtifactId, Shared>,
    /// Of those who wait for something.
    wishes: BTreeMap<ArtifactId, Wishes>,
}

/// Whether the scheduler is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reach {
    /// The first attempt to connect is under way. Whoever begins now waits for a plan as if it were there.
    #[default]
    Unknown,
    Connected,
    Lost,
}

/// What a download gets when its artifact is shared.
pub(crate) struct Admission {
    pub(crate) herald: NodeHerald,
    pub(crate) config: Config,
}

impl Node {
    /// # Errors
    /// If it may use nothing but RDMA, and its buffers cannot be registered for it.
    pub(crate) fn new(key: ReaderKey, means: Means, exports: Exports) -> Result<Arc<Self>, PeerError> {
        let buffers = Buffers::new();
        means.transports.register(buffers.region())?;
        Ok(Arc::new(Self {
            me: PeerId::new(key.id()),
            key: Arc::new(key),
            threads: (Workers::start(), buffers),
            means,
            exports,
            metrics: Arc::default(),
            lanes: Arc::default(),
            link_tests: LinkTests::default(),
            names: Names::default(),
            state: Mutex::default(),
            has_tried: watch::Sender::new(false),
        }))
    }

    /// Where others read what is shared.
    fn planes(&self) -> Planes<'_> {
        (&self.exports, self.means.transports.rdma(), &self.lanes)
    }

    /// What the vouchers of a shared artifact are kept in, if its manifest does not prove every piece.
    pub(crate) fn vouching(&self, artifact: &Artifact) -> Option<Arc<Vouching>> {
        (!artifact.is_anchored()).then(|| Vouching::new(Arc::clone(&self.key), artifact.id()))
    }

    /// Whether a scheduler plans for this node now.
    pub(crate) fn is_planned(&self) -> bool {
        self.state().reach == Reach::Connected
    }

    /// Tells the scheduler who was wrong about a piece.
    pub(crate) fn complain(&self, artifact: ArtifactId, about: PeerId, piece: PieceIndex) {
        self.metrics.accused(Charge::WrongBytes);
        self.state().say(SessionCommand::Complaint { artifact, about, piece });
    }

    pub(crate) fn threads(&self) -> (Workers, Buffers) {
        self.threads.clone()
    }

    /// How connections to other processes are secured.
    pub(crate) fn security(&self) -> &PeerSecurity {
        &self.means.security
    }

    /// How links to other peers are made.
    pub(crate) fn means(&self) -> &Means {
        &self.means
    }

    /// The counters of this process.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What artifacts leave to more urgent ones.
    pub(crate) fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }

    /// Somebody waits for an artifact, until the value is dropped.
    pub(crate) fn wish(self: &Arc<Self>, artifact: ArtifactId, priority: Priority) -> Wish {
        self.state().wish(artifact, |wishes| wishes.add(priority));
        Wish { node: Arc::clone(self), artifact, priority }
    }

    /// What it has sent and received of each artifact that is shared.
    pub(crate) fn traffic(&self) -> BTreeMap<ArtifactId, [u64; 2]> {
        self.state().shared.iter().map(|(id, shared)| (*id, shared.traffic.totals())).collect()
    }

    /// How many artifacts others may read here.
    pub(crate) fn shared_count(&self) -> usize {
        self.state().shared.len()
    }

    /// Whether there is a scheduler to plan with.
    pub(crate) fn is_in_fleet(&self) -> bool {
        self.state().session.is_some()
    }

    pub(crate) fn me(&self) -> PeerId {
        self.me
    }

    /// What this peer tells others of an artifact that it shares.
    pub(crate) fn description(&self, digest: &Sha256Digest) -> Option<DescribeReply> {
        let state = self.state();
        let shared = state.shared.get(&ArtifactId(*digest.bytes()))?;
        Some(DescribeReply::from(shared.share.description.as_ref()))
    }

    /// What this peer tells others of names of hubs.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Why there is no scheduler, as far as is known, and what may be done about it.
    pub(crate) fn lost_reason(&self) -> (String, Option<&'static str>) {
        self.state().lost.clone().unwrap_or_else(|| ("none has answered yet".to_owned(), None))
    }

    /// The connection to the scheduler that it is at, and where that is.
    pub(crate) fn scheduler(&self) -> Option<(Channel, String)> {
        self.state().session.as_ref().and_then(Session::scheduler)
    }

    /// From now on this node belongs to the fleet of that session's scheduler.
    pub(crate) fn set_session(&self, session: Session) {
        self.state().session = Some(session);
    }

    /// From now on it belongs to no fleet, as the scheduler hears from the end of the stream. What children read is
    /// there for as long as this process is, whatever becomes of the download.
    pub(crate) fn leave(&self) {
        let mut state = self.state();
        (state.session, state.is_leaving) = (None, true);
    }

    /// Whether it belongs to a fleet whose scheduler is not there.
    pub(crate) fn is_without_scheduler(&self) -> bool {
        let state = self.state();
        state.session.is_some() && state.reach == Reach::Lost
    }

    /// Ready once the scheduler was reached, or could not be.
    pub(crate) async fn has_tried_scheduler(&self) {
        // Its sender is this very value.
        let _ = self.has_tried.subscribe().wait_for(|has_tried| *has_tried).await;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shares an artifact that is being downloaded. It stays shared when the download is complete, and is withdrawn
    /// when it ends before.
    pub(crate) fn admit(
        self: &Arc<Self>,
        artifact: &Artifact,
        (files, have): (Vec<Arc<File>>, PieceMap),
        (origin_ok, vouching): (bool, Option<Arc<Vouching>>),
        events: mpsc::UnboundedSender<Event>,
    ) -> Admission {
        let id = artifact.id();
        let feed = HaveFeed::new(have);
        let mut shared = Shared::new(self.planes(), artifact, files, feed.clone());
        shared.share.vouching = vouching;
        let (sources, traffic) = (shared.share.sources.clone(), Arc::clone(&shared.traffic));
        let wished = self.state().wished(&id);
        traffic.set_priority(wished);
        let shared = Shared { events: Some(events), origin_ok, wished, ..shared };
        self.enter(id, shared);
        let herald = NodeHerald {
            node: Arc::clone(self),
            artifact: id,
            feed,
            sources,
            traffic,
            unsent: Mutex::new(Unsent { runs: Vec::new(), pieces: 0, since: Instant::now() }),
        };
        let seed = self.me.bytes().iter().fold(0, |seed: u64, byte| seed.rotate_left(8) ^ u64::from(*byte));
        Admission { herald, config: Config::new(self.me, seed) }
    }

    /// Shares an artifact that the store holds whole.
    pub(crate) fn hold(&self, artifact: &Artifact, files: Vec<Arc<File>>) {
        let feed = HaveFeed::new(PieceMap::full(artifact.layout().piece_count()));
        self.enter(artifact.id(), Shared::new(self.planes(), artifact, files, feed));
    }

    /// The same for one that somebody may have begun to share meanwhile, which then goes before.
    pub(crate) fn hold_unless_shared(&self, artifact: &Artifact, files: Vec<Arc<File>>) {
        let feed = HaveFeed::new(PieceMap::full(artifact.layout().piece_count()));
        let (id, shared) = (artifact.id(), Shared::new(self.planes(), artifact, files, feed));
        let mut state = self.state();
        if state.shared.contains_key(&id) {
            drop(state);
            return self.withdraw(Some(shared), "it is served already");
        }
        state.say(shared.join(id));
        state.shared.insert(id, shared);
    }

    /// Announces an artifact of this machine: its bytes count as the origin's.
    pub(crate) fn seed(self: &Arc<Self>, seed: Prepared) {
        let (id, node) = (seed.artifact.id(), Arc::downgrade(self));
        let on_change: OnChange = Arc::new(move |changed| {
            if let Some(node) = node.upgrade() {
                node.seed_changed(&id, changed);
            }
        });
        self.enter(id, Shared::seed(self.planes(), seed, &on_change));
    }

    fn seed_changed(&self, id: &ArtifactId, changed: &PeerError) {
        let state = self.state();
        // Several reads may find it at once.
        if state.shared.get(id).is_some_and(Shared::is_seed) {
            tracing::error!(hint = changed.hint(), "{changed}: the artifact is no longer announced");
            self.remove(state, id, "a file of the seed has changed");
        }
    }

    /// The blobs of an artifact that this node announces itself.
    pub(crate) fn seeded(&self, id: &ArtifactId) -> Result<Option<Vec<File>>, PeerError> {
        let blobs = match self.state().shared.get(id).and_then(|shared| shared.seeded.as_ref()) {
            Some(seeded) => seeded.blobs.clone(),
            None => return Ok(None),
        };
        let again = |blob: &Arc<SeedBlob>| {
            blob.check().inspect_err(|changed| self.seed_changed(id, changed))?;
            let failed =
                |source| StoreError::Io { operation: "open again", path: "a seeded blob".into(), source };
            Ok(blob.file.try_clone().map_err(failed)?)
        };
        blobs.iter().map(again).collect::<Result<_, _>>().map(Some)
    }

    fn enter(&self, id: ArtifactId, shared: Shared) {
        let mut state = self.state();
        if state.reach == Reach::Lost {
            shared.tell(|| Event::NoScheduler);
        }
        state.say(shared.join(id));
        let before = state.shared.insert(id, shared);
        drop(state);
        self.withdraw(before, "the artifact is served anew");
    }

    fn withdraw(&self, shared: Option<Shared>, reason: &str) {
        if let Some(shared) = shared {
            shared.withdraw(&self.exports, reason);
        }
    }

    /// The download of an artifact has ended: it stays shared if it is complete.
    fn download_ended(&self, id: &ArtifactId, feed: &HaveFeed) {
        let mut state = self.state();
        let Some(shared) = state.shared.get_mut(id).filter(|shared| shared.share.have.is_same(feed)) else {
            return;
        };
        shared.events = None;
        if feed.snapshot().is_full() || state.is_leaving {
            return;
        }
        self.remove(state, id, "the download was given up");
    }

    /// From now on nobody reads an artifact here.
    pub(crate) fn unshare(&self, id: &ArtifactId, reason: &str) {
        self.remove(self.state(), id, reason);
    }

    fn remove(&self, mut state: MutexGuard<'_, State>, id: &ArtifactId, reason: &str) {
        let gone = state.shared.remove(id);
        if gone.is_some() {
            state.say(SessionCommand::Leave { artifact: *id });
        }
        drop(state);
        self.withdraw(gone, reason);
    }

    /// Whether others may read an artifact here.
    pub(crate) fn is_shared(&self, id: &ArtifactId) -> bool {
        self.state().shared.contains_key(id)
    }

    /// Carries what the scheduler says to the downloads it is about, and this node's load to it, until the session
    /// ends.
    pub(crate) async fn follow_session(
        self: Arc<Self>,
        mut events: mpsc::UnboundedReceiver<SessionEvent>,
        mut meter: Meter,
    ) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                load = meter.next(&self) => {
                    self.state().say(load);
                    continue;
                }
            };
            match event {
                None => return,
                Some(SessionEvent::Connected { load_interval, scheduler }) => {
                    meter.set_interval(load_interval);
                    self.connected(&scheduler);
                }
                Some(SessionEvent::Plan(artifact, plan)) => {
                    if let Some(shared) = self.state().shared.get(&artifact) {
                        shared.planned(plan);
                    }
                }
                Some(SessionEvent::Lost { reason, hint }) => self.lost(&reason, hint),
            }
        }
    }

    fn connected(&self, scheduler: &str) {
        let mut state = self.state();
        state.reach = Reach::Connected;
        self.has_tried.send_replace(true);
        for (id, shared) in &state.shared {
            state.say(shared.join(*id));
        }
        tracing::info!(scheduler, "connected to the scheduler");
    }

    fn lost(&self, reason: &str, hint: Option<&'static str>) {
        let mut state = self.state();
        state.reach = Reach::Lost;
        self.has_tried.send_replace(true);
        state.lost = Some((reason.to_owned(), hint));
        for shared in state.shared.values() {
            shared.tell(|| Event::NoScheduler);
        }
        tracing::warn!(reason, hint, "the scheduler is not reachable; pulls go on without it");
    }
}

impl State {
    /// Tells the scheduler, if it is there; a new connection says everything again.
    fn say(&self, command: SessionCommand) {
        if let Some(session) = self.session.as_ref().filter(|_| self.reach == Reach::Connected) {
            session.send(command);
        }
    }

    fn wished(&self, artifact: &ArtifactId) -> Priority {
        self.wishes.get(artifact).and_then(Wishes::most_urgent).unwrap_or_default()
    }

    /// Somebody begins or ceases to wait for an artifact.
    fn wish(&mut self, artifact: ArtifactId, change: impl FnOnce(&mut Wishes)) {
        let wishes = self.wishes.entry(artifact).or_default();
        change(wishes);
        if wishes.most_urgent().is_none() {
            self.wishes.remove(&artifact);
        }
        let urgency = self.wished(&artifact);
        let running = self.shared.get_mut(&artifact).filter(|shared| shared.events.is_some());
        let Some(running) = running.filter(|shared| shared.wished != urgency) else { return };
        running.wished = urgency;
        if self.reach == Reach::Connected {
            // The next plan says how urgent it is to all.
            let join = running.join(artifact);
            self.say(join);
        } else {
            running.traffic.set_priority(urgency);
        }
    }
}

/// That somebody waits for an artifact.
pub(crate) struct Wish {
    node: Arc<Node>,
    artifact: ArtifactId,
    priority: Priority,
}

impl Drop for Wish {
    fn drop(&mut self) {
        self.node.state().wish(self.artifact, |wishes| wishes.remove(self.priority));
    }
}

impl Readers for Node {
    fn are_there(&self, artifact: &Sha256Digest) -> bool {
        self.state().shared.get(&ArtifactId(*artifact.bytes())).is_some_and(Shared::is_read)
    }

    fn let_go(&self, artifact: &Sha256Digest) -> bool {
        let (state, id) = (self.state(), ArtifactId(*artifact.bytes()));
        match state.shared.get(&id) {
            Some(shared) if shared.is_read() => return false,
            Some(shared) if !shared.is_seed() => self.remove(state, &id, "the artifact is being removed"),
            Some(_) | None => {}
        }
        true
    }
}

impl Shares for Node {
    fn share(&self, artifact: &ArtifactId) -> Option<Share> {
        let shared = self.state().shared.get(artifact).map(|shared| shared.share.clone());
        shared.or_else(|| self.link_tests.share(artifact, self.planes()))
    }

    fn name(&self, name: &ArtifactId) -> Option<HubModel> {
        self.names.get(name)
    }
}

/// Carries the news of one download to children and to the scheduler. Dropping it ends the download.
pub(crate) struct NodeHerald {
    node: Arc<Node>,
    artifact: ArtifactId,
    feed: HaveFeed,
    sources: Option<Sources>,
    traffic: Arc<Traffic>,
    unsent: Mutex<Unsent>,
}

#[derive(Debug)]
struct Unsent {
    runs: Vec<Run>,
    pieces: u32,
    since: Instant,
}

impl NodeHerald {
    fn send(&self, unsent: &mut Unsent) {
        if unsent.runs.is_empty() {
            return;
        }
        let mut runs = std::mem::take(&mut unsent.runs);
        runs.sort_unstable();
        (unsent.pieces, unsent.since) = (0, Instant::now());
        self.node.state().say(SessionCommand::Have { artifact: self.artifact, runs });
    }
}

impl Herald for NodeHerald {
    fn announce(&self, run: Run) {
        if let Some(sources) = &self.sources {
            sources.readable(run);
        }
        self.feed.publish(run);
        self.traffic.count(Direction::Received, u64::from(run.len()) * PIECE_BYTES);
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        unsent.runs.push(run);
        unsent.pieces += run.len();
        if unsent.pieces >= HAVE_PIECES || unsent.since.elapsed() >= HAVE_INTERVAL {
            self.send(&mut unsent);
        }
    }

    fn coming(&self, coming: Coming) {
        self.feed.coming(coming);
    }

    fn origin_lost(&self) {
        let mut state = self.node.state();
        if let Some(shared) = state.shared.get_mut(&self.artifact) {
            shared.origin_ok = false;
            let join = shared.join(self.artifact);
            state.say(join);
        }
    }

    fn complain(&self, about: PeerId, piece: PieceIndex) {
        self.node.complain(self.artifact, about, piece);
    }

    fn stalled(&self, about: PeerId) {
        self.node.state().say(SessionCommand::Stall { artifact: self.artifact, about });
    }

    fn silent(&self, about: PeerId) {
        self.node.metrics.accused(Charge::Silence);
        self.node.state().say(SessionCommand::Silence { artifact: self.artifact, about });
    }

    fn traffic(&self) -> Option<&Arc<Traffic>> {
        Some(&self.traffic)
    }
}

impl Drop for NodeHerald {
    fn drop(&mut self) {
        let mut unsent = self.unsent.lock().unwrap_or_else(PoisonError::into_inner);
        self.send(&mut unsent);
        self.node.download_ended(&self.artifact, &self.feed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn only_a_scheduler_that_is_known_to_be_lost_is_gone_on_without() {
        let node = Node::new(ReaderKey::generate().unwrap(), Means::default(), Exports::new()).unwrap();
        let artifact = testing::artifact(&[b"one".to_vec()]);
        let admitted = || {
            let (events, mut inbox) = mpsc::unbounded_channel();
            let shared = (vec![Arc::new(tempfile::tempfile().unwrap())], PieceMap::empty(1));
            let admission = node.admit(&artifact, shared, (true, None), events);
            (inbox.try_recv().is_ok_and(|event| matches!(event, Event::NoScheduler)), admission, inbox)
        };
        let (is_told, _admission, mut inbox) = admitted();
        assert!(!is_told, "the first attempt to connect may succeed");
        node.lost("it is not there", None);
        assert!(matches!(inbox.try_recv(), Ok(Event::NoScheduler)));
        assert!(admitted().0, "also who begins later is told");
        node.connected("10.0.0.1:7100");
        assert!(!admitted().0);
    }

    #[test]
    fn only_what_nobody_reads_is_let_go() {
        let node = Node::new(ReaderKey::generate().unwrap(), Means::default(), Exports::new()).unwrap();
        let artifact = testing::artifact(&[b"one".to_vec()]);
        let (id, digest) = (artifact.id(), artifact.manifest.digest());
        let files = || vec![Arc::new(tempfile::tempfile().unwrap())];
        assert!(node.let_go(&digest), "it is not shared");
        node.hold(&artifact, files());
        let share = Shares::share(&*node, &id).unwrap();
        let child = share.children.enter(PeerId::new([1; 16]));
        assert!(node.are_there(&digest) && !node.let_go(&digest) && node.is_shared(&id));
        drop(child);
        assert!(!node.are_there(&digest) && node.let_go(&digest) && !node.is_shared(&id));
        assert!(node.exports.get(share.windows[0].1).is_none(), "nobody reads it any more");

        let shared = (files(), PieceMap::empty(1));
        let download = node.admit(&artifact, shared, (true, None), mpsc::unbounded_channel().0).herald;
        assert!(!node.let_go(&digest), "it is being downloaded");
        drop(download);
        node.seed(testing::seed(&[b"one".to_vec()]));
        assert!(node.let_go(&digest) && node.is_shared(&id), "a seed's blobs are not the store's");
    }

    #[test]
    fn a_seed_is_read_only_as_long_as_its_files_are_what_was_proved() {
        let node = Node::new(ReaderKey::generate().unwrap(), Means::default(), Exports::new()).unwrap();
        let seed = testing::seed(&[b"one".to_vec(), b"two".to_vec()]);
        let (id, second) = (seed.artifact.id(), Arc::clone(&seed.blobs[1].file));
        node.seed(seed);
        let windows = Shares::share(&*node, &id).unwrap().windows;
        let [first_export, second_export] =
            [0, 1].map(|blob: usize| node.exports.get(windows[blob].1).unwrap());
        assert!(first_export.is_readable(0..3) && second_export.is_readable(0..3));
        assert_eq!(node.seeded(&id).unwrap().unwrap().len(), 2);

        // As writing does, but a clock may not have ticked since.
        second.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        assert!(node.is_shared(&id), "nobody has looked yet");
        assert!(!second_export.is_readable(0..3));
        assert!(!node.is_shared(&id) && node.exports.get(windows[0].1).is_none());
        assert!(node.seeded(&id).unwrap().is_none());

        let seed = testing::seed(&[b"one".to_vec()]);
        let first = Arc::clone(&seed.blobs[0].file);
        let id = seed.artifact.id();
        node.seed(seed);
        first.set_len(2).unwrap();
        assert!(matches!(node.seeded(&id), Err(PeerError::Changed { .. })));
        assert!(!node.is_shared(&id));
    }

    #[test]
    fn a_download_that_is_given_up_leaves_nothing_and_one_that_is_complete_stays() {
        let node = Node::new(ReaderKey::generate().unwrap(), Means::default(), Exports::new()).unwrap();
        let artifact = testing::artifact(&[b"one".to_vec()]);
        let admit = || {
            let shared = (vec![Arc::new(tempfile::tempfile().unwrap())], PieceMap::empty(1));
            node.admit(&artifact, shared, (true, None), mpsc::unbounded_channel().0).herald
        };
        let handle = |node: &Node| Shares::share(node, &artifact.id()).expect("shared").windows[0].1;
        let older = admit();
        let first = handle(&node);
        assert!(!node.exports.get(first).unwrap().is_readable(0..3), "nothing is proved yet");
        let newer = admit();
        assert!(node.exports.get(first).is_none(), "the older share is withdrawn");
        drop(older);
        let second = handle(&node);
        newer.announce(Run::new(0, 1));
        assert!(node.exports.get(second).unwrap().is_readable(0..3));
        drop(newer);
        assert!(node.is_shared(&artifact.id()) && node.exports.get(second).is_some());
        drop(admit());
        assert!(!node.is_shared(&artifact.id()) && node.exports.get(second).is_none());
        let last = admit();
        let third = handle(&node);
        node.leave();
        drop(last);
        assert!(node.exports.get(third).is_some(), "children read on while this process leaves");
    }
}
