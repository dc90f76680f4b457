//! A scheduler on loopback and peers that speak its protocol by hand. Does not own what is expected of them.

use std::{net::SocketAddr, time::Duration};

use identity::Security;
use planner::{ArtifactId, PeerId, PeerPlan};
use scheduler::{Options, Peering};
use tokio::{net::TcpListener, sync::mpsc, sync::oneshot, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use wire::{
    FEATURES, PROTOCOL_VERSION,
    connection::dial,
    control::{
        Claim, HaveUpdate, HoldersReply, HoldersRequest, Join, Load, PeerHello, PeerToScheduler, Run,
        SchedulerToPeer, SchedulerWelcome, peer_to_scheduler::Kind as Said,
        scheduler_client::SchedulerClient, scheduler_to_peer::Kind as Heard,
    },
    convert,
    schedulers::Schedulers,
};

const LONG: Duration = Duration::from_secs(30);

pub(crate) const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
pub(crate) const PIECES: u32 = 64;

pub(crate) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("in time")
}

pub(crate) fn id(number: u8) -> PeerId {
    PeerId::new([number; 16])
}

pub(crate) struct Scheduler {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Scheduler {
    pub(crate) async fn start(load_interval: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        Self::serve(listener, Options { load_interval, ..Options::default() })
    }

    /// One of several.
    pub(crate) fn among(listener: TcpListener, addresses: Vec<String>) -> Self {
        let advertised = listener.local_addr().expect("bound").to_string();
        let schedulers = Schedulers::new(&Security::Plain, addresses);
        let peering = Some(Peering { schedulers, advertised });
        Self::serve(listener, Options { load_interval: LONG, peering, ..Options::default() })
    }

    pub(crate) fn serve(listener: TcpListener, options: Options) -> Self {
        let address = listener.local_addr().expect("bound");
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let shutdown = async { drop(stopped.await) };
            scheduler::serve(listener, options, shutdown).await.expect("served");
        });
        Self { address, stop, task }
    }

    /// A scheduler whose peers may be silent for longer than any test.
    pub(crate) async fn patient() -> Self {
        Self::start(LONG).await
    }

    /// Whom it names for [`ARTIFACT`].
    pub(crate) async fn holders(&self) -> Vec<String> {
        let channel = dial(format!("http://{}", self.address), &Security::Plain);
        let mut client = SchedulerClient::new(in_time(channel).await.expect("it listens"));
        let request = HoldersRequest {
            protocol_version: PROTOCOL_VERSION,
            artifact: ARTIFACT.0.to_vec(),
            ..HoldersRequest::default()
        };
        in_time(client.holders(request)).await.expect("an answer").into_inner().control_addresses
    }

    /// What it tells that peer about [`ARTIFACT`].
    pub(crate) async fn claim(&self, claim: Claim, peer: PeerId) -> HoldersReply {
        let channel = dial(format!("http://{}", self.address), &Security::Plain);
        let mut client = SchedulerClient::new(in_time(channel).await.expect("it listens"));
        let request = HoldersRequest {
            protocol_version: PROTOCOL_VERSION,
            artifact: ARTIFACT.0.to_vec(),
            claim: claim.into(),
            peer_id: peer.bytes().to_vec(),
            holds_for_ms: 60_000,
        };
        in_time(client.holders(request)).await.expect("an answer").into_inner()
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("it runs");
        in_time(self.task).await.expect("no panic");
    }
}

pub(crate) fn hello(peer: PeerId) -> PeerHello {
    PeerHello {
        protocol_version: PROTOCOL_VERSION,
        features: FEATURES,
        peer_id: peer.bytes().to_vec(),
        control_address: format!("127.0.0.1:{}", 1000 + u16::from(peer.bytes()[0])),
        nic_bytes_per_second: 0,
        labels: std::iter::empty().collect(),
        name: format!("peer {peer}"),
        unreachable: Vec::new(),
    }
}

pub(crate) fn join(have: Vec<Run>) -> Join {
    Join {
        artifact: ARTIFACT.0.to_vec(),
        artifact_bytes: u64::from(PIECES) << 20,
        piece_count: PIECES,
        origin_ok: true,
        seed: false,
        have,
        origin_in_flight: Vec::new(),
        epoch: 0,
        repair_round: 0,
        priority: 0,
    }
}

/// One peer's stream.
pub(crate) struct Stream {
    outgoing: mpsc::Sender<PeerToScheduler>,
    inbound: Streaming<SchedulerToPeer>,
}

impl Stream {
    /// A stream that has not said anything.
    pub(crate) async fn open(scheduler: &Scheduler) -> Self {
        let channel = dial(format!("http://{}", scheduler.address), &Security::Plain);
        let channel = in_time(channel).await.expect("it listens");
        let (outgoing, messages) = mpsc::channel(16);
        let mut client = SchedulerClient::new(channel);
        let inbound = in_time(client.session(ReceiverStream::new(messages))).await.expect("a stream");
        Self { outgoing, inbound: inbound.into_inner() }
    }

    /// A stream that was welcomed.
    pub(crate) async fn welcomed(scheduler: &Scheduler, peer: PeerId) -> Self {
        let mut stream = Self::open(scheduler).await;
        stream.say(Said::Hello(hello(peer))).await;
        stream.welcome().await;
        stream
    }

    /// A stream that was welcomed, and has said that it wants the artifact.
    pub(crate) async fn joined(scheduler: &Scheduler, peer: PeerId) -> Self {
        let stream = Self::welcomed(scheduler, peer).await;
        stream.say(Said::Join(join(Vec::new()))).await;
        stream
    }

    pub(crate) async fn welcome(&mut self) -> SchedulerWelcome {
        match self.hear().await {
            Some(Heard::Welcome(welcome)) => welcome,
            other => panic!("{other:?} is no welcome"),
        }
    }

    pub(crate) async fn say(&self, kind: Said) {
        in_time(self.outgoing.send(PeerToScheduler { kind: Some(kind) })).await.expect("an open stream");
    }

    pub(crate) async fn say_have(&self, runs: Vec<Run>) {
        self.say(Said::Have(HaveUpdate { artifact: ARTIFACT.0.to_vec(), added: runs })).await;
    }

    /// Sends a heartbeat at this interval, until the task is aborted or the stream ends.
    pub(crate) fn beat_every(&self, interval: Duration) -> JoinHandle<()> {
        let outgoing = self.outgoing.clone();
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(interval);
            let load = Load { sent_bytes_per_second: 1, received_bytes_per_second: 2, ..Load::default() };
            while outgoing.send(PeerToScheduler { kind: Some(Said::Load(load.clone())) }).await.is_ok() {
                interval.tick().await;
            }
        })
    }

    /// Passes over messages up to a plan of this artifact.
    pub(crate) async fn hear_plan_of(&mut self, artifact: &[u8]) {
        loop {
            match self.hear().await {
                Some(Heard::Plan(plan)) if plan.artifact == artifact => return,
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    }

    /// The next message; `None` at the end of the stream.
    pub(crate) async fn hear(&mut self) -> Option<Heard> {
        let message = in_time(self.inbound.message()).await.expect("no error");
        message.map(|message| message.kind.expect("a known kind"))
    }

    pub(crate) async fn plan(&mut self) -> PeerPlan {
        match self.hear().await {
            Some(Heard::Plan(plan)) => {
                let (artifact, plan) = convert::plan(plan).expect("a right plan");
                assert_eq!(artifact, ARTIFACT);
                plan
            }
            other => panic!("{other:?} is no plan"),
        }
    }

    /// The first plan, from the next on, that `is_wanted`.
    pub(crate) async fn plan_where(&mut self, is_wanted: impl Fn(&PeerPlan) -> bool) -> PeerPlan {
        loop {
            let plan = self.plan().await;
            if is_wanted(&plan) {
                return plan;
            }
        }
    }

    /// Why the scheduler ends the stream, which it then does.
    pub(crate) async fn refusal(&mut self) -> String {
        loop {
            match self.hear().await {
                Some(Heard::Refusal(refusal)) => {
                    assert_eq!(self.hear().await, None, "nothing follows a refusal");
                    return refusal.reason;
                }
                Some(Heard::Plan(_)) => {}
                other => panic!("{other:?} is no refusal"),
            }
        }
    }

    /// Waits for the end, without a refusal.
    pub(crate) async fn end(&mut self) {
        while let Some(kind) = self.hear().await {
            assert!(matches!(kind, Heard::Plan(_)), "{kind:?} instead of the end");
        }
    }
}
