//! A peer that is told to end while others read from it: what they asked for arrives, and it waits no longer than that.
//! The child is made by hand, so that the test says when its read ends.

use std::{net::SocketAddr, path::Path, sync::mpsc as std_mpsc, time::Duration};

use identity::Security;
use memory::Pool;
use modelpack::{digest::Sha256Digest, layout::PIECE_BYTES};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use transport::{
    Completion, Link, ReadRequest,
    tcp::{self, Target},
};
use wire::{
    FEATURES, PROTOCOL_VERSION,
    connection::dial,
    control::{
        ChildToParent, Grant, GrantRenewal, LinkHello, LinkWelcome, ParentToChild,
        child_to_parent::Kind as Said, parent_to_child::Kind as Heard, peer_client::PeerClient,
    },
    convert,
};

use crate::{
    running::{Running, Signal},
    support::{PATIENCE, Scratch, said, until},
};

/// What of an answer comes through to a child whose read is slow: the head of its body.
const SLOW_BYTES: usize = 100_000;

/// How long an end may take that has nothing to wait for: less than a grant lasts.
const SOON: Duration = Duration::from_secs(5);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("in time")
}

/// A peer that announces a model of some pieces.
struct Parent {
    running: Running,
    address: String,
    artifact: Sha256Digest,
    scratch: Scratch,
}

impl Parent {
    fn start(more: &[&str]) -> Self {
        let scratch = Scratch::new();
        scratch.write_large_model("model", 3 << 20);
        let built: serde_json::Value = scratch.json(&["build", "model", "-t", "oci:layout:v1"]);
        let artifact = built["digest"].as_str().unwrap().parse().unwrap();
        let args = ["peer", "--store", "store", "--socket", "a.sock", "--seed", "oci:layout:v1", "--json"];
        let mut running = Running::start(scratch.modelctl(&[&args, more].concat()));
        let address = running.line()["listening"].as_str().unwrap().to_owned();
        Self { running, address, artifact, scratch }
    }

    fn tell_to_end(&self) {
        self.running.signal(Signal::TERM);
    }

    fn has_said(&self, text: &str) -> bool {
        self.running.logged(text) == 1
    }

    /// Waits for its end; says what it wrote to stderr.
    fn end_within(self, limit: Duration) -> String {
        let output = self.running.end_within(limit);
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stderr).unwrap()
    }
}

/// A way to the parent's data plane through which only so many bytes of its answers come, until it is opened.
struct Narrow {
    address: SocketAddr,
    is_open: watch::Sender<bool>,
}

impl Narrow {
    async fn to(parent: String, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (is_open, mut opened) = watch::channel(false);
        tokio::spawn(async move {
            let (child, _) = listener.accept().await.unwrap();
            let (mut from_child, mut to_child) = child.into_split();
            let (mut from_parent, mut to_parent) = TcpStream::connect(parent).await.unwrap().into_split();
            let asking = tokio::io::copy(&mut from_child, &mut to_parent);
            let answering = async {
                let mut chunk = vec![0; 4096];
                let mut left = bytes;
                loop {
                    let count = from_parent.read(&mut chunk).await?;
                    if count == 0 {
                        return to_child.shutdown().await;
                    }
                    if left < count {
                        drop(opened.wait_for(|is_open| *is_open).await);
                    }
                    left = left.saturating_sub(count);
                    to_child.write_all(&chunk[..count]).await?;
                }
            };
            let _ = tokio::join!(asking, answering);
        });
        Self { address, is_open }
    }
}

/// The child's end of a link, and its data link by the narrow way.
struct Child {
    outgoing: mpsc::Sender<ChildToParent>,
    inbound: Streaming<ParentToChild>,
}

struct Reading {
    link: std::sync::Arc<dyn Link>,
    completions: std_mpsc::Receiver<Completion>,
    way: Narrow,
}

impl Child {
    async fn open(parent: &Parent) -> Self {
        let channel = in_time(dial(format!("http://{}", parent.address), &Security::Plain)).await.unwrap();
        let (outgoing, messages) = mpsc::channel(4);
        let hello = LinkHello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: vec![7; 16],
            artifact: parent.artifact.bytes().to_vec(),
            transports: vec!["tcp".to_owned()],
            rdma: Vec::new(),
        };
        outgoing.send(ChildToParent { kind: Some(Said::Hello(hello)) }).await.unwrap();
        let mut client = PeerClient::new(channel);
        let inbound = in_time(client.link(ReceiverStream::new(messages))).await.unwrap().into_inner();
        Self { outgoing, inbound }
    }

    async fn hear(&mut self) -> Option<Heard> {
        in_time(self.inbound.message()).await.ok().flatten()?.kind
    }

    async fn granted(&mut self) -> (LinkWelcome, Grant) {
        let Some(Heard::Welcome(welcome)) = self.hear().await else { panic!("no welcome") };
        let Some(Heard::Grant(grant)) = self.hear().await else { panic!("no grant") };
        (welcome, grant)
    }

    /// Reads the first piece of the largest blob, of which only the head arrives for now.
    async fn read_slowly(&mut self) -> Reading {
        let (welcome, grant) = self.granted().await;
        let endpoint = welcome.tcp.unwrap();
        let way = Narrow::to(endpoint.address, SLOW_BYTES).await;
        let (address, secret) = (way.address.to_string(), convert::secret(&endpoint.secret).unwrap());
        let target =
            Target { address: &address, link: endpoint.link, secret: &secret, security: &Security::Plain };
        let (sender, completions) = std_mpsc::channel();
        let sink = std::sync::Arc::new(move |completion| drop(sender.send(completion)));
        let link = in_time(tcp::connect(target, 1, sink)).await.unwrap();
        let window = grant.windows.iter().max_by_key(|window| window.bytes).unwrap().handle;
        let len = usize::try_from(PIECE_BYTES).unwrap();
        let lease = Pool::new(1, len).unwrap().try_lease(len).unwrap();
        let deadline = std::time::Instant::now() + PATIENCE;
        assert!(link.post(ReadRequest { id: 1, window, offset: 0, lease, deadline }).is_ok());
        Reading { link, completions, way }
    }

    async fn farewell(&mut self) {
        loop {
            match self.hear().await {
                Some(Heard::Have(_)) => {}
                Some(Heard::Farewell(farewell)) => return assert_eq!(farewell.reason, "the peer stops"),
                other => panic!("{other:?} is no farewell"),
            }
        }
    }
}

impl Reading {
    /// Lets the rest through; the bytes have to be the model's.
    fn finish(self, model: &Path) {
        assert!(self.completions.try_recv().is_err(), "only its head has come");
        self.way.is_open.send_replace(true);
        let completion = self.completions.recv_timeout(PATIENCE).unwrap();
        let read = completion.result.expect("the read goes on to its end");
        assert!(*read == std::fs::read(model).unwrap()[..read.len()], "other bytes");
        self.link.close();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_under_way_is_served_to_its_end_and_waited_for_no_longer() {
    let parent = Parent::start(&[]);
    let mut child = Child::open(&parent).await;
    let reading = child.read_slowly().await;
    parent.tell_to_end();
    child.farewell().await;
    // Children hear it before people do.
    until("it has said so", || parent.has_said("leaving: 1 child, at most 30 s\n"));

    // Nobody new is let in meanwhile, neither here nor from elsewhere.
    let mut late = Child::open(&parent).await;
    match late.hear().await {
        Some(Heard::Refusal(refusal)) => assert_eq!(refusal.reason, "this peer leaves"),
        other => panic!("{other:?} is no refusal"),
    }
    let pull = parent.scratch.run(&["pull", "oci:layout:v1", "-o", "out", "--peer", "unix:a.sock"]);
    assert!(pull.contains("No such file or directory"), "{pull}");

    reading.finish(&parent.scratch.path("model/model.bin"));
    drop(child);
    let stderr = parent.end_within(SOON);
    assert!(stderr.contains(" s: nobody reads here any more\n"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_never_closes_is_cut_off_at_the_deadline() {
    let parent = Parent::start(&["--drain", "1s"]);
    let mut child = Child::open(&parent).await;
    let reading = child.read_slowly().await;
    let start = Instant::now();
    parent.tell_to_end();
    child.farewell().await;
    // To ask for more time is of no use.
    let renewal = ChildToParent { kind: Some(Said::Renewal(GrantRenewal {})) };
    child.outgoing.send(renewal).await.unwrap();
    assert_eq!(child.hear().await, None, "nothing more is granted");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    let stderr = parent.end_within(SOON);
    assert!(stderr.contains("the time is over, 1 child cut off\n"), "{stderr}");
    assert!(reading.completions.try_recv().is_err(), "only its head has come");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_a_second_signal_and_with_no_time_at_all_it_ends_at_once() {
    let parent = Parent::start(&["--drain", "1h"]);
    let mut child = Child::open(&parent).await;
    child.granted().await;
    parent.tell_to_end();
    child.farewell().await;
    parent.running.signal(Signal::INT);
    let stderr = parent.end_within(SOON);
    assert!(stderr.contains("told again, 1 child cut off\n"), "{stderr}");

    let parent = Parent::start(&["--drain", "0"]);
    let mut child = Child::open(&parent).await;
    child.granted().await;
    parent.tell_to_end();
    let stderr = parent.end_within(SOON);
    assert!(stderr.contains("the time is over, 1 child cut off\n"), "{stderr}");
    while child.hear().await.is_some() {}
}

#[test]
fn a_peer_that_nobody_reads_from_ends_at_once() {
    let parent = Parent::start(&["--drain", "1h"]);
    parent.tell_to_end();
    until("it has said so", || parent.has_said("leaving: 0 children, at most 3600 s\n"));
    parent.end_within(SOON);
}
