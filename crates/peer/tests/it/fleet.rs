//! Schedulers and peers of one process each, as tasks of this one: clients pull through their own peer's socket.

use std::{
    fs::{File, Permissions},
    net::SocketAddr,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use identity::{FleetKey, Identity, Security};
use modelpack::{
    digest::Sha256Digest,
    reference::{LayoutReference, Reference},
};
use peer::{
    Blamed, ErrorClass, LocalPeer, Peer, PeerOptions, PeerSecurity, PullReport, PullRequest, PullWatch, Seed,
    Transports,
};
use planner::Priority;
use registry::Access;
use store::LinkMode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::{JoinHandle, JoinSet},
};

use crate::{
    origin::{Gate, Holding, Origin},
    support::{Model, PATIENCE, nobody_listens, until},
};

/// A running peer. Aborting its task is as sudden as a process's death: sockets close, nothing is said.
pub(crate) struct Running {
    socket: PathBuf,
    /// Where it shows its metrics, if anywhere.
    face: Option<SocketAddr>,
    pub(crate) task: JoinHandle<()>,
    _end: oneshot::Sender<()>,
}

impl Running {
    /// What it shows on `/metrics` now.
    pub(crate) async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.face.expect("it has a face")).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).await.unwrap();
        page
    }
}

pub(crate) struct Fleet {
    pub(crate) top: tempfile::TempDir,
    scheduler: Option<(String, JoinHandle<()>)>,
    pub(crate) peers: Vec<Running>,
    security: PeerSecurity,
    /// Of the next peer to start.
    pub(crate) transports: Transports,
}

impl Fleet {
    pub(crate) async fn start(count: usize) -> Self {
        Self::secured(count, PeerSecurity::default()).await
    }

    async fn secured(count: usize, security: PeerSecurity) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let options = scheduler::Options { security: security.control.clone(), ..Default::default() };
        let task = tokio::spawn(async move {
            let forever = std::future::pending();
            scheduler::serve(listener, options, forever).await.unwrap();
        });
        let (top, scheduler) = (tempfile::tempdir().unwrap(), Some((address, task)));
        let mut fleet = Self { top, scheduler, peers: Vec::new(), security, transports: Transports::tcp() };
        for number in 0..count {
            let running = fleet.start_peer(number, None).await;
            fleet.peers.push(running);
        }
        fleet
    }

    fn options(&self, number: usize, seeds: Vec<LayoutReference>) -> PeerOptions {
        PeerOptions {
            store: self.top.path().join(format!("store-{number}")),
            store_max: None,
            socket: self.top.path().join(format!("{number}.sock")),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            schedulers: self.scheduler.iter().map(|(address, _)| address.clone()).collect(),
            nic_rate: None,
            place: planner::Place::default(),
            name: format!("peer-{number}"),
            seeds: seeds.into_iter().map(Seed::Layout).collect(),
            socket_group: None,
            security: self.security.clone(),
            transports: self.transports.clone(),
            landing: peer::LandingMode::Auto,
            delta: peer::Delta::FromStore,
        }
    }

    pub(crate) async fn start_peer(&self, number: usize, seed: Option<LayoutReference>) -> Running {
        self.start_seed(number, seed.into_iter().collect()).await
    }

    /// One that announces several artifacts.
    pub(crate) async fn start_seed(&self, number: usize, seeds: Vec<LayoutReference>) -> Running {
        let options = self.options(number, seeds);
        let socket = options.socket.clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let face = Some(listener.local_addr().unwrap());
        let peer = Peer::start(options).await.unwrap().show_on(listener);
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(async move { drop(peer.run(async { drop(ended.await) }).await.unwrap()) });
        Running { socket, face, task, _end: end }
    }

    /// HOST:PORT of the scheduler.
    pub(crate) fn scheduler(&self) -> &str {
        &self.scheduler.as_ref().expect("it is there").0
    }

    pub(crate) fn output(&self, number: usize) -> PathBuf {
        self.top.path().join(format!("out-{number}"))
    }

    /// Pulls through one peer.
    pub(crate) fn pull(
        &self,
        number: usize,
        reference: Reference,
    ) -> impl Future<Output = Result<PullReport, peer::PeerError>> + use<> {
        self.pull_watched(number, reference, PullWatch::new())
    }

    pub(crate) fn pull_watched(
        &self,
        number: usize,
        reference: Reference,
        watch: PullWatch,
    ) -> impl Future<Output = Result<PullReport, peer::PeerError>> + use<> {
        self.pull_as(number, (reference, Priority::default()), self.output(number), watch)
    }

    /// The same into a directory of its own, so urgently.
    pub(crate) fn pull_as(
        &self,
        number: usize,
        (reference, priority): (Reference, Priority),
        output: PathBuf,
        watch: PullWatch,
    ) -> impl Future<Output = Result<PullReport, peer::PeerError>> + use<> {
        let access = Access { plain_http: true, ..Access::default() };
        let request = PullRequest {
            reference,
            access,
            output,
            landing: peer::LandingMode::Auto,
            selection: Arc::default(),
            bases: Vec::new(),
            priority,
        };
        let socket = self.peers[number].socket.clone();
        async move {
            let pull = async {
                let local = LocalPeer::connect(&socket).await?;
                local.pull(request, LinkMode::Auto, &watch).await
            };
            tokio::time::timeout(PATIENCE, pull).await.expect("the pull ends in time")
        }
    }

    /// Pulls through all peers at once.
    pub(crate) fn pull_all(
        &self,
        reference: &Reference,
    ) -> JoinSet<(usize, Result<PullReport, peer::PeerError>)> {
        let mut pulls = JoinSet::new();
        for number in 0..self.peers.len() {
            let pull = self.pull(number, reference.clone());
            pulls.spawn(async move { (number, pull.await) });
        }
        pulls
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_gets_the_model_and_the_origin_gives_it_once() {
    let model = Model::of(100);
    let origin = Origin::honest(Holding::of(&model)).await;
    let fleet = Fleet::start(4).await;
    let reports: Vec<_> = fleet.pull_all(&origin.reference()).join_all().await;
    let mut from_origin = 0;
    for (number, report) in reports {
        let report = report.unwrap();
        model.assert_in(&fleet.output(number));
        // A piece that was late from one peer may have been asked of another too.
        assert!(report.origin_bytes + report.peer_bytes >= model.bytes(), "{report:?}");
        from_origin += report.origin_bytes;
    }
    assert!(from_origin * 100 <= model.bytes() * 102, "{from_origin} of {}", model.bytes());
    assert!(origin.asked() <= from_origin + model.bytes() / 50);
}

/// An origin that stops after `reads` answers until the gate is opened.
async fn gated(model: &Model, reads: u64) -> (Origin, Gate) {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::with_fault(Holding::of(model), move |read, reply| {
        if read.number >= reads {
            held.pass();
        }
        reply
    })
    .await;
    (origin, gate)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 24)]
async fn a_peer_that_dies_does_not_stop_the_others() {
    let model = Model::of(100);
    let (origin, gate) = gated(&model, 12).await;
    let fleet = Fleet::start(4).await;
    let mut pulls = fleet.pull_all(&origin.reference());
    until(|| origin.asked() >= model.bytes() / 2 || origin.seen().len() > 30).await;
    fleet.peers[1].task.abort();
    gate.open();
    while let Some(ended) = pulls.join_next().await {
        let (number, report) = ended.unwrap();
        if number == 1 {
            assert!(report.is_err(), "its peer is dead");
        } else {
            report.unwrap();
            model.assert_in(&fleet.output(number));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 24)]
async fn a_scheduler_that_dies_does_not_stop_anybody() {
    let model = Model::of(100);
    let (origin, gate) = gated(&model, 12).await;
    let fleet = Fleet::start(4).await;
    let pulls = fleet.pull_all(&origin.reference());
    until(|| origin.seen().len() > 30).await;
    fleet.scheduler.as_ref().unwrap().1.abort();
    gate.open();
    for (number, report) in pulls.join_all().await {
        report.unwrap();
        model.assert_in(&fleet.output(number));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_one_peer_share_a_transfer_and_a_later_one_finds_it_here() {
    let model = Arc::new(Model::of(20));
    let origin = Origin::honest(Holding::of(&model)).await;
    let fleet = Fleet::start(1).await;
    let first = fleet.pull(0, origin.reference()).await.unwrap();
    assert_eq!(first.origin_bytes, model.bytes());
    std::fs::remove_dir_all(fleet.output(0)).unwrap();
    let again = fleet.pull(0, origin.reference()).await.unwrap();
    model.assert_in(&fleet.output(0));
    assert_eq!((again.origin_bytes, again.local_bytes), (0, model.bytes()));
    let third = fleet.pull(0, origin.reference()).await.unwrap();
    assert_eq!((third.origin_bytes, third.local_bytes), (0, model.bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_feeds_a_fleet_that_has_no_registry() {
    let model = Model::of(40);
    let mut fleet = Fleet::start(3).await;
    let Reference::Layout(layout) = model.write_layout(&fleet.top.path().join("layout")) else {
        unreachable!("it is a layout")
    };
    let reference = Reference::Fleet(model.digest());
    let unknown = fleet.pull(0, reference.clone()).await.unwrap_err();
    assert_eq!(unknown.to_string(), format!("cannot learn from the fleet what `{reference}` is"));
    let seed = fleet.start_peer(3, Some(layout)).await;
    fleet.peers.push(seed);
    // It has joined once the scheduler names it.
    let report = loop {
        match fleet.pull(0, reference.clone()).await {
            Ok(report) => break report,
            Err(error) => assert_eq!(error.class(), ErrorClass::Failed, "{error:?}"),
        }
    };
    assert_eq!((report.origin_bytes, report.peer_bytes), (model.bytes(), 0), "a seed counts as the origin");
    std::fs::remove_dir_all(fleet.output(0)).unwrap();
    let mut from_origin = 0;
    for (number, report) in fleet.pull_all(&reference).join_all().await {
        let report = report.unwrap();
        model.assert_in(&fleet.output(number));
        from_origin += report.origin_bytes;
    }
    assert!(from_origin <= model.bytes(), "those that have it serve it: {from_origin}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_is_not_announced() {
    let (model, top) = (Model::of(3), tempfile::tempdir().unwrap());
    let Reference::Layout(layout) = model.write_layout(&top.path().join("layout")) else {
        unreachable!("it is a layout")
    };
    let blob = top.path().join("layout/blobs/sha256").join(Sha256Digest::of(&model.files[1].1).hex());
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[2 << 20] ^= 1;
    std::fs::remove_file(&blob).unwrap();
    std::fs::write(&blob, bytes).unwrap();
    let options = PeerOptions {
        store: top.path().join("store"),
        store_max: None,
        socket: top.path().join("sock"),
        listen: "127.0.0.1:0".parse().unwrap(),
        advertise: None,
        schedulers: Vec::new(),
        nic_rate: None,
        place: planner::Place::default(),
        name: "seed".into(),
        seeds: vec![Seed::Layout(layout)],
        socket_group: None,
        security: PeerSecurity::default(),
        transports: Transports::tcp(),
        landing: peer::LandingMode::Auto,
        delta: peer::Delta::FromStore,
    };
    let error = Peer::start(options).await.err().unwrap();
    assert_eq!(error.class(), ErrorClass::Integrity);
    assert!(error.to_string().contains("`model.bin`: 1048576 bytes from 2097152"), "{error}");
}

fn member(key: u8) -> Security {
    Security::Fleet(Identity::new(&FleetKey::new([key; 32])).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_with_a_key_works_like_one_without() {
    let model = Model::of(40);
    for data in [member(1), Security::Plain] {
        let origin = Origin::honest(Holding::of(&model)).await;
        let fleet = Fleet::secured(3, PeerSecurity { control: member(1), data }).await;
        let mut from_origin = 0;
        for (number, report) in fleet.pull_all(&origin.reference()).join_all().await {
            let report = report.unwrap();
            model.assert_in(&fleet.output(number));
            from_origin += report.origin_bytes;
        }
        assert!(from_origin * 100 <= model.bytes() * 105, "{from_origin} of {}", model.bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_another_key_or_none_gets_nothing_from_the_fleet() {
    let model = Model::of(3);
    let mut fleet = Fleet::secured(1, PeerSecurity { control: member(1), data: member(1) }).await;
    let origin = Origin::honest(Holding::of(&model)).await;
    fleet.pull(0, origin.reference()).await.unwrap();
    for stranger in [member(2), Security::Plain] {
        fleet.security = PeerSecurity { control: stranger.clone(), data: stranger };
        let number = fleet.peers.len();
        let running = fleet.start_peer(number, None).await;
        fleet.peers.push(running);
        let error = fleet.pull(number, Reference::Fleet(model.digest())).await.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Failed, "{error:?}");
        // What it can read at the origin by itself it still gets.
        let report = fleet.pull(number, origin.reference()).await.unwrap();
        assert_eq!((report.origin_bytes, report.peer_bytes), (model.bytes(), 0));
    }
}

/// Damages every blob of a peer's store behind its back.
fn damage(store: &Path, change: impl Fn(&File)) {
    for algorithm in ["sha256", "blake3"] {
        for entry in std::fs::read_dir(store.join("blobs").join(algorithm)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
            let file = File::options().read(true).write(true).open(&path).unwrap();
            if file.metadata().unwrap().len() > 1 << 20 {
                change(&file);
            }
        }
    }
}

/// One peer has the model, which is damaged then; the other pulls.
async fn pull_beside_damage(change: impl Fn(&File)) -> Vec<Blamed> {
    let model = Model::of(20);
    let origin = Origin::honest(Holding::of(&model)).await;
    let fleet = Fleet::start(2).await;
    fleet.pull(0, origin.reference()).await.unwrap();
    damage(&fleet.top.path().join("store-0"), change);
    let report = fleet.pull(1, origin.reference()).await.unwrap();
    model.assert_in(&fleet.output(1));
    assert!(report.origin_bytes > 0, "what the parent cannot give comes from the origin: {report:?}");
    assert!(report.elapsed < Duration::from_secs(20), "without waiting for the scheduler: {report:?}");
    report.blamed
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_file_was_damaged_is_blamed_and_left() {
    let blamed = pull_beside_damage(|file| file.write_all_at(&[0; 9], 5 << 20).unwrap()).await;
    let [Blamed { peer, reason }] = blamed.as_slice() else { panic!("{blamed:?}") };
    assert!(peer.starts_with("peer-0 at 127.0.0.1:"), "{peer}");
    assert_eq!(reason, "it sent wrong bytes of `model.bin`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_whose_file_was_cut_is_left() {
    let blamed = pull_beside_damage(|file| file.set_len(0).unwrap()).await;
    assert_eq!(blamed, [], "it gave nothing wrong");
}

/// A peer with a thread of its own, which stops it like a SIGSTOP: the kernel accepts for it, and nobody answers.
struct Stoppable {
    stop: oneshot::Sender<()>,
    /// Dropped to let it end.
    _stopped: std::sync::mpsc::Sender<()>,
}

impl Stoppable {
    async fn start(options: PeerOptions) -> Self {
        let (ready, is_ready) = oneshot::channel();
        let (stop, is_stopped) = oneshot::channel::<()>();
        let (stopped, wait) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let peer = Peer::start(options).await.unwrap();
                ready.send(()).unwrap();
                let stopping = async move {
                    if is_stopped.await.is_ok() {
                        // Blocks the only thread of the runtime.
                        let _ = { wait }.recv();
                    }
                };
                peer.run(stopping).await.unwrap();
            });
        });
        is_ready.await.unwrap();
        Self { stop, _stopped: stopped }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_stops_answering_is_left() {
    let model = Model::of(100);
    let origin = Origin::honest(Holding::of(&model)).await;
    let mut fleet = Fleet::start(2).await;
    let options = fleet.options(2, Vec::new());
    let (socket, (end, _)) = (options.socket.clone(), oneshot::channel());
    let parent = Stoppable::start(options).await;
    fleet.peers.push(Running { socket, face: None, task: tokio::spawn(std::future::pending()), _end: end });
    fleet.pull(2, origin.reference()).await.unwrap();
    let watch = PullWatch::new();
    let pulling = tokio::spawn(fleet.pull_watched(0, origin.reference(), watch.clone()));
    until(|| watch.progress().peer > 10 << 20).await;
    parent.stop.send(()).unwrap();
    let late = tokio::spawn(fleet.pull(1, origin.reference()));
    for (number, pull) in [pulling, late].into_iter().enumerate() {
        let report = pull.await.unwrap().unwrap();
        model.assert_in(&fleet.output(number));
        assert!(report.elapsed < Duration::from_secs(30), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_stays_one_whose_store_has_the_artifact_too() {
    let model = Model::of(3);
    let origin = Origin::honest(Holding::of(&model)).await;
    let mut fleet = Fleet::start(2).await;
    fleet.pull(0, origin.reference()).await.unwrap();
    let Reference::Layout(layout) = model.write_layout(&fleet.top.path().join("layout")) else {
        unreachable!("it is a layout")
    };
    fleet.peers[0].task.abort();
    nobody_listens(&fleet.peers[0].socket).await;
    fleet.peers[0] = fleet.start_peer(0, Some(layout)).await;
    // Whoever has only the digest needs the piece trees, which a store does not keep.
    let report = fleet.pull(1, Reference::Fleet(model.digest())).await.unwrap();
    assert_eq!((report.origin_bytes, report.peer_bytes), (model.bytes(), 0), "a seed counts as the origin");
}
