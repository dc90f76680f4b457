//! A download whose only parent is a link within this process, stepped by hand.

use std::{any::Any, fs::File, io::Write as _, ops::Range, sync::Mutex};

use identity::ReaderKey;
use memory::Region;
use modelpack::piece_tree::piece_value;
use planner::{Contact, Member, StripePart, StripeSource};
use tokio::sync::watch;
use transport::{Bucket, Export, Exports, Link, Pacer, Window, memory::MemoryLink};

use super::*;
use crate::{
    artifact::{Artifact, Check},
    sinks::Registrar,
    testing,
    vouching::Vouching,
};

const ME: PeerId = PeerId::new([1; 16]);
const PARENT: PeerId = PeerId::new([2; 16]);
const LONG: Duration = Duration::from_secs(30);
const IN_FLIGHT_MAX: u32 = 4;

struct Whole(File);

impl Export for Whole {
    fn file(&self) -> &File {
        &self.0
    }

    fn is_readable(&self, _: Range<u64>) -> bool {
        true
    }

    fn bytes(&self) -> u64 {
        self.0.metadata().expect("an open file").len()
    }
}

/// What the node would have heard.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<(Vec<Run>, Vec<PieceIndex>)>>);

impl Herald for Heard {
    fn announce(&self, run: Run) {
        self.0.lock().unwrap().0.push(run);
    }

    fn coming(&self, _: Coming) {}

    fn origin_lost(&self) {}

    fn complain(&self, about: PeerId, piece: PieceIndex) {
        assert_eq!(about, PARENT);
        self.0.lock().unwrap().1.push(piece);
    }

    fn stalled(&self, _: PeerId) {}

    fn silent(&self, _: PeerId) {}
}

struct Scene {
    download: Download<Heard>,
    heard: Heard,
    link: Arc<MemoryLink>,
    _dir: tempfile::TempDir,
}

fn files() -> Vec<Vec<u8>> {
    (1..=8_u8).map(|number| vec![number; 1000 + usize::from(number)]).collect()
}

fn plan() -> PeerPlan {
    let part = StripePart { source: StripeSource::Parent(PARENT), backups: Vec::new(), before: Vec::new() };
    // Nobody listens there: the link is made by hand.
    let contact = Contact::new("127.0.0.1:1", "parent");
    PeerPlan {
        epoch: 1,
        stripe_pieces: 1,
        stripes: vec![part],
        members: vec![Member { id: PARENT, contact, is_seed: false, is_far: false }],
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

/// The parent's files, of which `change` may make something else, as windows by number.
fn export(artifact: &Artifact, change: impl Fn(&mut Vec<u8>)) -> (Exports, BTreeMap<BlobIndex, Window>) {
    let (exports, files) = (Exports::new(), files());
    let window = |blob| {
        let size = artifact.blob(blob).size;
        let mut bytes = files.iter().find(|file| file.len() as u64 == size).expect("sizes differ").clone();
        change(&mut bytes);
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(&bytes).expect("space");
        (blob, Window { handle: exports.register(Arc::new(Whole(file))), bytes: size })
    };
    let windows = artifact.layout().blobs().map(window).collect();
    (exports, windows)
}

/// A download whose parent is linked and has everything; its reads wait in the link.
fn scene(change: impl Fn(&mut Vec<u8>), expires: Duration) -> Scene {
    scene_of((testing::artifact(&files()), None), Vec::new(), change, expires)
}

fn scene_of(
    (artifact, vouching): (Artifact, Option<Arc<Vouching>>),
    vouchers: Vec<(PieceIndex, Voucher)>,
    change: impl Fn(&mut Vec<u8>),
    expires: Duration,
) -> Scene {
    scene_on(testing::ground(artifact, vouching), Level::Tcp, vouchers, change, expires)
}

/// A download into memory whose parent is linked by a network card, which may write there.
fn direct_scene(change: impl Fn(&mut Vec<u8>)) -> Option<Scene> {
    let ground = testing::ground_in_memory(testing::artifact(&files()), Arc::new(Willing))?;
    Some(scene_on(ground, Level::Nic, Vec::new(), change, LONG))
}

/// A network card that may write everything.
struct Willing;

impl Registrar for Willing {
    fn register(&self, _: &Arc<Region>, _: Range<usize>) -> Result<Box<dyn Any + Send + Sync>, String> {
        Ok(Box::new(()))
    }
}

fn scene_on(
    (dir, ground): (tempfile::TempDir, Arc<Ground>),
    level: Level,
    vouchers: Vec<(PieceIndex, Voucher)>,
    change: impl Fn(&mut Vec<u8>),
    expires: Duration,
) -> Scene {
    let (exports, windows) = export(&ground.artifact, change);
    let pieces = ground.artifact.layout().piece_count();
    let (events, inbox) = mpsc::unbounded_channel();
    let sink = events.clone();
    let sink = Arc::new(move |completion| drop(sink.send(Event::Transferred(completion))));
    let link = MemoryLink::at_level(level, exports, IN_FLIGHT_MAX as usize, sink);
    let heard = Heard::default();
    let config = (Config::new(ME, 3), PieceMap::empty(pieces));
    let mut download = Download::new(ground, None, heard.clone(), config, (events, inbox));
    download.settle();
    download.handle(Event::Plan(plan())).unwrap();
    // Within a runtime, which the link that nobody answers needs.
    download.settle();
    let generation = download.links[&PARENT].generation;
    let (_, expires) = watch::channel(tokio::time::Instant::now() + expires);
    let grant = GrantedLink {
        pacer: None,
        link: Arc::clone(&link) as Arc<dyn Link>,
        windows,
        in_flight_max: IN_FLIGHT_MAX,
        expires,
        fallback: None,
    };
    download.link_event(LinkEvent::Up { peer: PARENT, generation, grant });
    let runs = vec![Run::new(0, pieces)];
    download.link_event(LinkEvent::Have { peer: PARENT, generation, runs, vouchers });
    download.settle();
    Scene { download, heard, link, _dir: dir }
}

impl Scene {
    /// Handles events until every read has its memory.
    async fn posted(&mut self) {
        while self.download.transfers.values().any(|transfer| transfer.right.is_none()) {
            let event = tokio::time::timeout(LONG, self.download.inbox.recv()).await;
            self.download.handle(event.expect("in time").expect("its sender is the download's own")).unwrap();
            self.download.settle();
        }
    }

    /// What is in the file of a piece.
    fn found(&self, piece: PieceIndex) -> Vec<u8> {
        let landing = &self.download.ground.landing;
        let mut found = vec![0; landing.layout().span(piece).len as usize];
        landing.read(piece, &mut found).unwrap();
        found
    }

    /// Ends the link's oldest read, and handles what comes of it until a check or a failure is through.
    async fn step(&mut self) {
        assert!(self.link.step(Instant::now()), "a read is out");
        loop {
            let event = tokio::time::timeout(LONG, self.download.inbox.recv()).await;
            let event = event.expect("in time").expect("its sender is the download's own");
            let is_last =
                !matches!(event, Event::Leased(..) | Event::Transferred(Completion { result: Ok(_), .. }));
            self.download.handle(event).unwrap();
            self.download.settle();
            if is_last {
                return;
            }
        }
    }
}

#[tokio::test]
async fn what_a_parent_has_is_read_checked_announced_and_counted() {
    let mut scene = scene(|_| {}, LONG);
    assert_eq!(scene.download.transfers.len(), IN_FLIGHT_MAX as usize, "as many as are granted");
    while scene.download.end.is_none() {
        scene.step().await;
    }
    assert!(matches!(scene.download.end, Some(Ok(()))));
    let (announced, blamed) = &*scene.heard.0.lock().unwrap();
    assert_eq!(announced.iter().map(Run::len).sum::<u32>(), 8, "{announced:?}");
    assert!(blamed.is_empty());
    let progress = scene.download.ground.counters.progress();
    assert_eq!((progress.done, progress.peer, progress.origin), (progress.total, progress.total, 0));
    assert!(scene.download.reads.is_empty() && scene.download.transfers.is_empty());
}

#[tokio::test]
async fn a_granted_rate_binds() {
    const RATE: u64 = 16 << 10;
    let mut scene = scene(|_| {}, LONG);
    scene.posted().await;
    let begin = Instant::now();
    let pacer = Arc::new(Pacer::new(RATE));
    pacer.take(Bucket::new(RATE).burst()).await;
    let granted = scene.download.links.get_mut(&PARENT).and_then(|link| link.granted.as_mut());
    granted.expect("it is up").pacer = Some(pacer);
    while scene.download.end.is_none() {
        scene.posted().await;
        scene.step().await;
    }
    // Four were posted before; none of the others was before it was due.
    assert!(matches!(scene.download.end, Some(Ok(()))));
    let least = Duration::from_millis(4 * 1000 * 1000 / RATE);
    assert!(begin.elapsed() >= least, "{:?}, and not {least:?}", begin.elapsed());
}

#[tokio::test]
async fn what_a_card_brings_lands_where_it_belongs() {
    let Some(mut scene) = direct_scene(|_| {}) else { return };
    while scene.download.end.is_none() {
        scene.posted().await;
        let is_direct = |transfer: &Transfer| transfer.right.as_ref().is_some_and(|at| at.hold.is_some());
        assert!(scene.download.transfers.values().all(is_direct));
        scene.step().await;
    }
    assert!(matches!(scene.download.end, Some(Ok(()))));
    let ground = &scene.download.ground;
    assert!(ground.landing.verified().is_full());
    assert_eq!(ground.counters.landing(), "direct");
    for piece in ground.artifact.layout().all().pieces() {
        assert!(files().contains(&scene.found(piece)));
    }
}

#[tokio::test]
async fn what_a_card_brings_from_a_liar_is_refused_and_its_place_is_free_again() {
    let Some(mut scene) = direct_scene(|bytes| bytes[0] ^= 1) else { return };
    scene.posted().await;
    scene.step().await;
    assert_eq!(scene.heard.0.lock().unwrap().1.len(), 1);
    let ground = Arc::clone(&scene.download.ground);
    assert!(ground.landing.verified().is_empty());
    let piece = scene.heard.0.lock().unwrap().1[0];
    let again = tokio::time::timeout(LONG, Arc::clone(&ground.sinks).space(piece, Level::Nic)).await;
    assert!(again.expect("in time").right.hold.is_some());
}

#[tokio::test]
async fn the_link_of_a_piece_that_came_another_way_is_closed_and_the_others_go_on() {
    let Some(mut scene) = direct_scene(|_| {}) else { return };
    scene.posted().await;
    let ground = Arc::clone(&scene.download.ground);
    let piece = scene.download.transfers.values().next().expect("a read is out").piece;
    let bytes =
        files().into_iter().find(|file| file.len() == scene.found(piece).len()).expect("sizes differ");
    let permit = ground.buffers.try_permit().expect("few are out");
    let mut space = ground.buffers.buffer(u32::try_from(bytes.len()).unwrap(), permit);
    space.lease.as_mut_slice().copy_from_slice(&bytes);
    let (arrived, events) =
        (Piece { bytes: space.lease.filled(), right: space.right }, scene.download.events.clone());
    ground.land((ReadId(999), piece), arrived, Provenance::Origin, move |checked| {
        events.send(Event::Checked(checked)).unwrap();
    });
    assert!(scene.link.is_closed());
    assert!(!ground.landing.verified().contains(piece), "its place is still out");
    assert!(scene.link.step(Instant::now()), "the link gives its leases back");
    while !ground.landing.verified().contains(piece) {
        let event = tokio::time::timeout(LONG, scene.download.inbox.recv()).await.expect("in time");
        scene.download.handle(event.expect("its sender is the download's own")).unwrap();
        scene.download.settle();
    }
    assert_eq!(scene.found(piece), bytes);
}

#[tokio::test]
async fn wrong_bytes_are_blamed_once_and_neither_kept_nor_announced() {
    let mut scene = scene(|bytes| bytes[0] ^= 1, LONG);
    scene.step().await;
    let (announced, blamed) = scene.heard.0.lock().unwrap().clone();
    assert_eq!((announced, blamed.len()), (Vec::new(), 1));
    assert!(scene.download.links.is_empty(), "its link is closed");
    let progress = scene.download.ground.counters.progress();
    assert!(progress.done == 0 && progress.peer > 1000, "what is discarded counts as read: {progress:?}");
    assert!(scene.download.ground.counters.metrics.refused_pieces() > 0);
}

#[tokio::test]
async fn who_passes_on_what_was_vouched_for_is_not_blamed_when_its_link_ends_first() {
    let mut artifact = testing::artifact(&files());
    artifact.checks.fill_with(|| Check::Sha256);
    let (id, layout) = (artifact.id(), artifact.layout().clone());
    let reader = ReaderKey::generate().unwrap();
    let voucher = |piece: PieceIndex| {
        let span = layout.span(piece);
        let bytes = files().into_iter().find(|file| file.len() == span.len as usize).expect("sizes differ");
        (piece, reader.vouch(&id.0, piece.0, 0, piece_value(span.in_blob, &bytes)))
    };
    let vouchers = layout.all().pieces().map(voucher).collect();
    let vouching = Vouching::new(Arc::new(ReaderKey::generate().unwrap()), id);
    let mut scene = scene_of((artifact, Some(vouching)), vouchers, |_| {}, LONG);
    assert!(scene.link.step(Instant::now()), "a read is out, and its bytes come");
    // Which of both is heard first is a matter of luck.
    let generation = scene.download.links[&PARENT].generation;
    scene.download.link_event(LinkEvent::Down { peer: PARENT, generation, reason: "gone".to_owned() });
    scene.download.settle();
    while scene.heard.0.lock().unwrap().0.is_empty() {
        let event = tokio::time::timeout(LONG, scene.download.inbox.recv()).await.expect("in time");
        scene.download.handle(event.expect("its sender is the download's own")).unwrap();
        scene.download.settle();
        assert_eq!(scene.heard.0.lock().unwrap().1, [], "nobody is blamed");
    }
}

#[tokio::test]
async fn a_lease_that_comes_too_late_does_not_close_the_link() {
    let scene = scene(|_| {}, Duration::ZERO);
    assert!(scene.download.transfers.is_empty(), "nothing was posted beyond the grant");
    assert!(!scene.link.step(Instant::now()) && !scene.link.is_closed());
    assert_eq!(scene.download.links.len(), 1);
}

#[tokio::test]
#[should_panic(expected = "a bug")]
async fn a_task_that_panics_takes_its_download_along() {
    let mut scene = scene(|_| {}, LONG);
    scene.download.tasks.spawn(async { panic!("a bug") });
    let _ = tokio::time::timeout(LONG, scene.download.run()).await.expect("in time");
}

/// A link that says it is one over RDMA.
struct AsCard(Arc<MemoryLink>);

impl Link for AsCard {
    fn level(&self) -> Level {
        Level::Nic
    }

    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest> {
        self.0.post(read)
    }

    fn in_flight_max(&self) -> usize {
        self.0.in_flight_max()
    }

    fn bytes_received(&self) -> u64 {
        self.0.bytes_received()
    }

    fn close(&self) {
        self.0.close();
    }

    fn is_closed(&self) -> bool {
        self.0.is_closed()
    }
}

impl Scene {
    /// The same parent over a card, from its next link on: what was out comes first.
    async fn over_card(&mut self) {
        let generation = self.download.links[&PARENT].generation;
        let granted = self.download.links.get_mut(&PARENT).unwrap().granted.as_mut().unwrap();
        granted.link = Arc::new(AsCard(Arc::clone(&self.link)));
        assert_eq!(generation, 1);
        for _ in 0..IN_FLIGHT_MAX {
            self.step().await;
        }
        assert!(
            self.download
                .transfers
                .values()
                .all(|transfer| { transfer.carrier == Some((generation, Level::Nic)) })
        );
    }

    fn fail(&mut self, fault: &transport::ReadFault) {
        let id = *self.download.transfers.keys().next().expect("a read is out");
        let completion = Completion { id, result: Err(fault.clone()) };
        self.download.handle(Event::Transferred(completion)).unwrap();
        self.download.settle();
    }
}

fn link_down(kind: std::io::ErrorKind) -> transport::ReadFault {
    transport::ReadFault::LinkDown(Arc::new(kind.into()))
}

#[tokio::test]
async fn a_read_that_fails_over_rdma_has_its_link_opened_anew_at_once() {
    for fault in [link_down(std::io::ErrorKind::Other), transport::ReadFault::Deadline] {
        let mut scene = scene(|_| {}, LONG);
        scene.over_card().await;
        scene.fail(&fault);
        let link = &scene.download.links[&PARENT];
        assert!(link.generation == 2 && link.granted.is_none(), "another one is being opened");
        let counters = &scene.download.ground.counters;
        assert!(counters.fallback().is_some_and(|reason| reason.contains("over RDMA")));
        // The other reads of the old link, and its end, say nothing of the new one.
        while !scene.download.transfers.is_empty() {
            scene.fail(&fault);
        }
        let reason = String::new();
        scene.download.link_event(LinkEvent::Down { peer: PARENT, generation: 1, reason });
        scene.download.settle();
        assert_eq!(scene.download.links[&PARENT].generation, 2);
        let transports = &scene.download.ground.means.transports;
        assert!(transports.is_demoted(PARENT));
    }
}

#[tokio::test]
async fn a_link_that_is_closed_here_or_whose_window_was_given_back_is_no_failure_of_rdma() {
    for (fault, is_there) in
        [(link_down(std::io::ErrorKind::ConnectionAborted), false), (transport::ReadFault::Refused, true)]
    {
        let mut scene = scene(|_| {}, LONG);
        scene.over_card().await;
        scene.fail(&fault);
        assert_eq!(scene.download.links.contains_key(&PARENT), is_there, "{fault}");
        let Ground { means, counters, .. } = &*scene.download.ground;
        assert!(!means.transports.is_demoted(PARENT) && counters.fallback().is_none(), "{fault}");
    }
}
