//! Both ends of a link: parent and child of this crate on loopback, and each against a partner that misbehaves.

use std::{
    fs::File,
    future::pending,
    io::Write as _,
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    sync::{Condvar, Mutex, mpsc as std_mpsc},
};

use identity::Security;
use memory::Pool;
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Streaming};
use transport::{Completion, Export, Exports, ReadRequest, tcp::Target};
use wire::{
    FEATURES, PROTOCOL_VERSION,
    connection::dial,
    control::{
        self, ChildToParent, DescribeReply, DescribeRequest, Farewell, Grant, GrantRenewal, HaveRuns,
        LinkHello, LinkWelcome, ParentToChild, Refusal, TcpEndpoint,
        child_to_parent::Kind as Said,
        parent_to_child::Kind as Heard,
        peer_client::PeerClient,
        peer_server::{Peer, PeerServer},
    },
    convert,
};

use self::lies::{honest, serve_lies};
use super::*;
use crate::{
    children::Children,
    describe::Description,
    have_feed::{Coming, HaveFeed},
    security::PeerSecurity,
    service::{self, GRANT_EXPIRY, ServiceOptions, Share, Shares},
    sources::{BlobSource, Sources},
    transports::Transports,
};

mod latency;
mod lies;
mod rdma;

const LONG: Duration = Duration::from_secs(30);
const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
const PARENT: PeerId = PeerId::new([1; 16]);
const CHILD: PeerId = PeerId::new([2; 16]);

/// Two blobs: three pieces, and one.
const SIZES: [u64; 2] = [(2 << 20) + 5, 7];
const PIECES: u32 = 4;

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(LONG, what).await.expect("in time")
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// A byte that tells its place.
fn byte_at(blob: u64, offset: u64) -> u8 {
    u8::try_from((offset * 31 + offset / 251 + blob) % 256).expect("below 256")
}

struct Whole {
    file: File,
    bytes: u64,
    gate: Arc<Gate>,
}

/// Lets reads wait while it is held.
#[derive(Default)]
struct Gate(Mutex<bool>, Condvar);

impl Gate {
    fn hold(&self, is_held: bool) {
        *self.0.lock().expect("no panic") = is_held;
        self.1.notify_all();
    }

    fn pass(&self) {
        let is_held = self.0.lock().expect("no panic");
        if !*is_held {
            return;
        }
        // Other tasks of this thread go on elsewhere: one of them may be what ends the wait.
        tokio::task::block_in_place(|| {
            drop(self.1.wait_timeout_while(is_held, LONG, |is_held| *is_held).expect("no panic"));
        });
    }
}

impl Export for Whole {
    fn file(&self) -> &File {
        &self.file
    }

    fn is_readable(&self, _: Range<u64>) -> bool {
        self.gate.pass();
        true
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

struct OneShare(Mutex<Option<Share>>);

impl Shares for OneShare {
    fn share(&self, artifact: &ArtifactId) -> Option<Share> {
        self.0.lock().expect("no panic").clone().filter(|_| *artifact == ARTIFACT)
    }
}

/// A parent that shares both blobs.
struct ParentPeer {
    address: SocketAddr,
    have: HaveFeed,
    description: Arc<Description>,
    children: Children,
    /// Those of the share.
    readers: Children,
    gate: Arc<Gate>,
    tcp: tcp::Server,
    /// For cards, if it has one.
    sources: Option<Sources>,
    stop: oneshot::Sender<()>,
}

fn layout() -> PieceLayout {
    PieceLayout::new(SIZES.to_vec()).expect("small")
}

impl ParentPeer {
    async fn start(grant_expiry: Duration) -> Self {
        Self::start_over(grant_expiry, Transports::tcp()).await
    }

    /// It says that its data plane listens on every address, as a peer without `--advertise` does.
    async fn start_over(grant_expiry: Duration, transports: Transports) -> Self {
        let (exports, gate) = (Exports::new(), Arc::<Gate>::default());
        let mut sources = Vec::new();
        let windows = (0..).zip(SIZES).map(|(blob, bytes)| {
            let mut file = tempfile::tempfile().expect("a temporary file");
            let content: Vec<u8> = (0..bytes).map(|offset| byte_at(blob.into(), offset)).collect();
            file.write_all(&content).expect("space");
            let whole = Arc::new(file.try_clone().expect("open"));
            let blob = BlobIndex(blob);
            let handle = exports.register(Arc::new(Whole { file, bytes, gate: Arc::clone(&gate) }));
            if let Some(rdma) = transports.rdma() {
                let pieces = layout().pieces_of(blob);
                sources.push(BlobSource::new(rdma, (blob, pieces), (&whole, bytes, handle), None));
            }
            (blob, handle, bytes)
        });
        let windows = windows.collect();
        let sources = transports.rdma().map(|_| Sources::new(sources, &[Run::new(0, PIECES)]));
        let tcp = tcp::Server::bind(any_port(), exports, Security::Plain).await.expect("a free port");
        let (running, server) = (tcp.clone(), tcp.clone());
        tokio::spawn(async move { running.run(pending()).await });
        let mut map = PieceMap::empty(PIECES);
        map.insert_run(Run::new(0, 2));
        let have = HaveFeed::new(map);
        let description = Arc::new(Description {
            manifest: b"manifest".to_vec(),
            config: b"{}".to_vec(),
            trees: vec![(BlobIndex(0), vec![9; 96])],
        });
        let readers = Children::none();
        let share = Share {
            windows,
            sources: sources.clone(),
            have: have.clone(),
            vouching: None,
            children: readers.clone(),
            description: Arc::clone(&description),
            kept: None,
        };
        let children = Children::none();
        let data_address = format!("0.0.0.0:{}", tcp.local_addr().port());
        let options = ServiceOptions {
            me: PARENT,
            security: PeerSecurity::default(),
            tcp,
            transports,
            data_address,
            grant_expiry,
            children: children.clone(),
        };
        let listener = TcpListener::bind(any_port()).await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let shares = Arc::new(OneShare(Mutex::new(Some(share))));
        tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            service::serve(listener, shares, options, shutdown).await.expect("served");
        });
        Self { address, have, description, children, readers, gate, tcp: server, sources, stop }
    }
}

/// A child's link, its events and its completions.
struct ChildLink {
    handle: LinkHandle,
    events: UnboundedReceiver<LinkEvent>,
    completions: std_mpsc::Receiver<Completion>,
    metrics: Arc<Metrics>,
}

impl ChildLink {
    fn open(address: SocketAddr) -> Self {
        Self::open_for(address, ARTIFACT)
    }

    fn open_for(address: SocketAddr, artifact: ArtifactId) -> Self {
        Self::open_over(address, artifact, Transports::tcp())
    }

    fn open_over(address: SocketAddr, artifact: ArtifactId, transports: Transports) -> Self {
        let (sender, completions) = std_mpsc::channel();
        let sink: CompletionSink = Arc::new(move |completion| drop(sender.send(completion)));
        let (events, received) = mpsc::unbounded_channel();
        let metrics = Arc::<Metrics>::default();
        let request = LinkRequest {
            me: CHILD,
            peer: PARENT,
            address: address.to_string(),
            artifact,
            layout: layout(),
            here: PieceMap::empty(PIECES),
            generation: 5,
            means: Means { transports, ..Means::default() },
            metrics: Arc::clone(&metrics),
        };
        Self { handle: open_link(request, sink, events), events: received, completions, metrics }
    }

    async fn event(&mut self) -> LinkEvent {
        in_time(self.events.recv()).await.expect("an event")
    }

    async fn up(&mut self) -> GrantedLink {
        match self.event().await {
            LinkEvent::Up { peer: PARENT, generation: 5, grant } => grant,
            LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
            _ => panic!("not up"),
        }
    }

    async fn have(&mut self) -> Vec<Run> {
        loop {
            match self.event().await {
                LinkEvent::Have { peer: PARENT, generation: 5, runs, .. } => return runs,
                LinkEvent::Coming { .. } | LinkEvent::Progress { .. } => {}
                LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
                _ => panic!("no news"),
            }
        }
    }

    async fn coming(&mut self) -> Coming {
        loop {
            match self.event().await {
                LinkEvent::Coming { peer: PARENT, generation: 5, coming } => return coming,
                LinkEvent::Have { .. } | LinkEvent::Progress { .. } => {}
                LinkEvent::Down { reason, .. } => panic!("down: {reason}"),
                _ => panic!("no news"),
            }
        }
    }

    async fn leaving(&mut self) {
        loop {
            match self.event().await {
                LinkEvent::Leaving { peer: PARENT, generation: 5 } => return,
                LinkEvent::Have { .. } | LinkEvent::Coming { .. } | LinkEvent::Progress { .. } => {}
                _ => panic!("no farewell"),
            }
        }
    }

    /// Why the link ends, which is its last event.
    async fn down(&mut self) -> String {
        loop {
            match self.event().await {
                LinkEvent::Down { peer: PARENT, generation: 5, reason } => {
                    assert!(in_time(self.events.recv()).await.is_none(), "an event after the end");
                    return reason;
                }
                LinkEvent::Down { .. } => panic!("another link is down"),
                _ => {}
            }
        }
    }
}

/// Posts a read of the first bytes of a blob.
fn post(grant: &GrantedLink, blob: BlobIndex) {
    let lease = Pool::new(1, 7).unwrap().try_lease(7).expect("free");
    let (window, deadline) = (grant.windows[&blob].handle, std::time::Instant::now() + LONG);
    let request = ReadRequest { id: blob.0.into(), window, offset: 0, lease, deadline };
    grant.link.post(request).expect("room");
}

async fn closed(link: &Arc<dyn Link>) {
    let link = Arc::clone(link);
    in_time(async move {
        while !link.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_and_announced_can_be_read() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let mut child = ChildLink::open(parent.address);
    let grant = child.up().await;
    assert_eq!(grant.in_flight_max, service::IN_FLIGHT_MAX);
    let left = *grant.expires.borrow() - Instant::now();
    assert!(left > GRANT_EXPIRY / 2 && left <= GRANT_EXPIRY, "{left:?}");
    assert_eq!(child.have().await, [Run::new(0, 2)]);
    assert_eq!(child.coming().await, Coming::default());
    parent.have.publish(Run::new(1, 4));
    assert_eq!(child.have().await, [Run::new(2, 4)]);
    let coming = Coming { epoch: 9, runs: vec![Run::new(0, 1)] };
    parent.have.coming(coming.clone());
    assert_eq!(child.coming().await, coming);

    let pool = Pool::new(1, 4096).unwrap();
    for (blob, window) in &grant.windows {
        let len = window.bytes.min(4096);
        let offset = window.bytes - len;
        let lease = pool.try_lease(usize::try_from(len).expect("small")).expect("free");
        let deadline = std::time::Instant::now() + LONG;
        let request = ReadRequest { id: u64::from(blob.0), window: window.handle, offset, lease, deadline };
        grant.link.post(request).expect("room");
        let completion = child.completions.recv_timeout(LONG).expect("in time");
        let filled = completion.result.expect("readable");
        let expect: Vec<u8> = (offset..window.bytes).map(|at| byte_at(blob.0.into(), at)).collect();
        assert_eq!(*filled, *expect, "blob {blob}");
    }
    assert_eq!(grant.windows.len(), SIZES.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_is_counted_before_a_piece_is_whole() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    // A burst comes, and then nothing for hours.
    parent.tcp.keep_to(Arc::new(Pacer::new(1)));
    let mut child = ChildLink::open(parent.address);
    let grant = child.up().await;
    let lease = Pool::new(1, 1 << 20).unwrap().try_lease(1 << 20).expect("free");
    let (window, deadline) = (grant.windows[&BlobIndex(0)].handle, std::time::Instant::now() + LONG);
    grant.link.post(ReadRequest { id: 0, window, offset: 0, lease, deadline }).expect("room");
    in_time(async {
        while child.metrics.received() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(child.metrics.received() < 1 << 20);
    assert!(child.completions.try_recv().is_err(), "it has not ended");
}

#[tokio::test]
async fn dropping_the_handle_closes_the_data_link_without_an_event() {
    // This parent does not end the data link itself when the control stream ends.
    let (_tcp, _, says) = honest().await;
    let mut child = ChildLink::open(serve_lies(says).await);
    let grant = child.up().await;
    drop(child.handle);
    closed(&grant.link).await;
    assert!(in_time(child.events.recv()).await.is_none(), "an event after the drop");
}

#[tokio::test]
async fn grants_are_renewed_for_as_long_as_both_live() {
    let expiry = Duration::from_millis(600);
    let parent = ParentPeer::start(expiry).await;
    let mut child = ChildLink::open(parent.address);
    let mut grant = child.up().await;
    let first = *grant.expires.borrow();
    // Three renewals, one expiry later: without them both sides would have ended it.
    while *grant.expires.borrow() < first + expiry {
        in_time(grant.expires.changed()).await.expect("the link is up");
    }
    assert!(!grant.link.is_closed());
    parent.have.publish(Run::new(3, 4));
    assert_eq!(child.have().await, [Run::new(0, 2)]);
    assert_eq!(child.have().await, [Run::new(3, 4)]);
}

#[tokio::test]
async fn a_farewell_takes_the_link_down() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let mut child = ChildLink::open(parent.address);
    let grant = child.up().await;
    parent.have.close("it was removed");
    assert_eq!(child.down().await, "the peer leaves: it was removed");
    closed(&grant.link).await;
}

#[tokio::test]
async fn a_parent_that_stops_says_farewell() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let mut child = ChildLink::open(parent.address);
    child.up().await;
    parent.stop.send(()).expect("it runs");
    assert_eq!(child.down().await, "the peer leaves: the peer stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_under_way_end_well_when_the_parent_leaves() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let mut child = ChildLink::open(parent.address);
    let grant = child.up().await;
    assert_eq!(parent.children.count(), 1);
    parent.gate.hold(true);
    for blob in [BlobIndex(0), BlobIndex(1)] {
        post(&grant, blob);
    }
    parent.children.say_farewell();
    child.leaving().await;
    // Nobody else is let in, also for what only describes it.
    let reason = ChildLink::open(parent.address).down().await;
    assert_eq!(reason, "the peer refused: this peer leaves");
    let mut client = PeerClient::connect(format!("http://{}", parent.address)).await.expect("it listens");
    let request = DescribeRequest { protocol_version: PROTOCOL_VERSION, artifact: ARTIFACT.0.to_vec() };
    assert_eq!(client.describe(request).await.expect_err("leaves").message(), "this peer leaves");
    assert!(timeout(Duration::from_millis(1), parent.children.gone()).await.is_err(), "it is waited for");
    assert!(child.completions.try_recv().is_err(), "the reads are still under way");
    parent.gate.hold(false);
    for _ in 0..2 {
        let completion = child.completions.recv_timeout(LONG).expect("in time");
        completion.result.expect("read to its end");
    }
    drop(child.handle);
    in_time(parent.children.gone()).await;
}

#[tokio::test]
async fn a_child_that_stays_after_the_farewell_is_granted_nothing_more() {
    let expiry = Duration::from_millis(300);
    let parent = ParentPeer::start(expiry).await;
    let mut child = RawChild::open(parent.address, RawChild::hello()).await;
    while !matches!(child.hear().await, Some(Heard::Have(_))) {}
    parent.children.say_farewell();
    while !matches!(child.hear().await, Some(Heard::Farewell(_))) {}
    let renewal = ChildToParent { kind: Some(Said::Renewal(GrantRenewal {})) };
    child.outgoing.send(renewal).await.expect("it listens");
    assert_eq!(child.refusal().await, "the grant expired without a renewal");
    in_time(parent.children.gone()).await;
}

#[tokio::test]
async fn a_parent_that_stays_after_its_farewell_is_left_when_its_grant_ends() {
    let (_tcp, _, mut says) = honest().await;
    let Heard::Grant(grant) = &mut says[1] else { panic!("a grant") };
    grant.expires_ms = 300;
    says.push(Heard::Farewell(Farewell { reason: "bye".to_owned() }));
    let mut child = ChildLink::open(serve_lies(says).await);
    let grant = child.up().await;
    child.leaving().await;
    assert!(!grant.link.is_closed(), "reads may end");
    assert_eq!(child.down().await, "the grant expired");
    closed(&grant.link).await;
}

#[tokio::test]
async fn what_is_not_shared_is_refused() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let other = ArtifactId([8; 32]);
    let reason = ChildLink::open_for(parent.address, other).down().await;
    assert_eq!(reason, "the peer refused: this peer does not share the artifact");
}

#[tokio::test]
async fn a_peer_describes_what_it_shares() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let address = format!("http://{}", parent.address);
    let mut client = in_time(PeerClient::connect(address)).await.expect("it listens");
    let request = |artifact: ArtifactId| DescribeRequest {
        protocol_version: PROTOCOL_VERSION,
        artifact: artifact.0.to_vec(),
    };
    let reply = in_time(client.describe(request(ARTIFACT))).await.expect("described").into_inner();
    assert_eq!(reply, DescribeReply::from(&*parent.description));
    let status = in_time(client.describe(request(ArtifactId([8; 32])))).await.expect_err("unknown");
    assert_eq!(status.message(), "this peer does not share the artifact");
}

#[tokio::test]
async fn nobody_at_the_address_is_a_link_down() {
    let listener = TcpListener::bind(any_port()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    drop(listener);
    let reason = ChildLink::open(address).down().await;
    assert!(reason.starts_with("cannot reach the peer: "), "{reason}");
}

/// A child's control stream by hand.
struct RawChild {
    outgoing: mpsc::Sender<ChildToParent>,
    inbound: Streaming<ParentToChild>,
}

impl RawChild {
    async fn open(address: SocketAddr, hello: LinkHello) -> Self {
        let channel = dial(format!("http://{address}"), &Security::Plain);
        let channel = in_time(channel).await.expect("it listens");
        let (outgoing, messages) = mpsc::channel(4);
        let hello = ChildToParent { kind: Some(Said::Hello(hello)) };
        outgoing.send(hello).await.expect("room");
        let mut client = PeerClient::new(channel);
        let inbound = in_time(client.link(ReceiverStream::new(messages))).await.expect("a stream");
        Self { outgoing, inbound: inbound.into_inner() }
    }

    fn hello() -> LinkHello {
        LinkHello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: CHILD.bytes().to_vec(),
            artifact: ARTIFACT.0.to_vec(),
            transports: vec![TCP.to_owned()],
            rdma: Vec::new(),
        }
    }

    async fn hear(&mut self) -> Option<Heard> {
        let message = in_time(self.inbound.message()).await.expect("no error");
        message.map(|message| message.kind.expect("a known kind"))
    }

    /// The refusal that ends the stream, after news of what is readable and coming.
    async fn refusal(&mut self) -> String {
        loop {
            match self.hear().await {
                Some(Heard::Refusal(refusal)) => {
                    assert_eq!(self.hear().await, None, "nothing follows a refusal");
                    return refusal.reason;
                }
                Some(Heard::Have(_)) => {}
                other => panic!("{other:?} is no refusal"),
            }
        }
    }
}

#[tokio::test]
async fn a_parent_refuses_wrong_hellos() {
    let parent = ParentPeer::start(GRANT_EXPIRY).await;
    let hello = LinkHello { protocol_version: 2, ..RawChild::hello() };
    let reason = RawChild::open(parent.address, hello).await.refusal().await;
    assert_eq!(reason, "the other side speaks protocol version 2, this one speaks 1");
    let hello = LinkHello { transports: vec!["rdma".to_owned()], ..RawChild::hello() };
    let reason = RawChild::open(parent.address, hello).await.refusal().await;
    assert_eq!(reason, "this peer serves over `tcp` only");
    let hello = LinkHello { artifact: vec![1; 31], ..RawChild::hello() };
    let reason = RawChild::open(parent.address, hello).await.refusal().await;
    assert_eq!(reason, "`artifact` has 31 bytes, not 32");
}

#[tokio::test]
async fn a_child_that_does_not_renew_loses_its_data_link() {
    let parent = ParentPeer::start(Duration::from_millis(300)).await;
    let mut child = RawChild::open(parent.address, RawChild::hello()).await;
    let Some(Heard::Welcome(welcome)) = child.hear().await else { panic!("no welcome") };
    let tcp = welcome.tcp.expect("an endpoint");
    let secret = convert::secret(&tcp.secret).expect("32 bytes");
    let address = tcp.address.replace("0.0.0.0", "127.0.0.1");
    let sink: CompletionSink = Arc::new(|_| {});
    let target = Target { address: &address, link: tcp.link, secret: &secret, security: &Security::Plain };
    let connecting = tcp::connect(target, 1, Arc::clone(&sink));
    let link = in_time(connecting).await.expect("granted");
    let Some(Heard::Grant(grant)) = child.hear().await else { panic!("no grant") };
    assert_eq!(grant.expires_ms, 300);
    let Some(Heard::Have(_)) = child.hear().await else { panic!("no have-map") };
    assert_eq!(child.refusal().await, "the grant expired without a renewal");
    closed(&link).await;
    let again = in_time(tcp::connect(target, 1, sink)).await;
    assert!(again.is_err(), "the secret proves nothing any more");
    drop(child.outgoing);
}
