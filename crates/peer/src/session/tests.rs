//! A session against a scheduler that does what the test says.

use std::{net::SocketAddr, pin::Pin, time::SystemTime};

use identity::{FleetKey, Identity};

use planner::{FleetName, Priority, StripePart, StripeSource};
use tokio::{net::TcpListener, sync::oneshot, time::timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::{
    FEATURES, PROTOCOL_VERSION, connection,
    control::{
        AliveReply, AliveRequest, CurrentPlanReply, CurrentPlanRequest, HoldersReply, HoldersRequest,
        Redirect, Refusal, SchedulerToPeer, SchedulerWelcome, StatusReply, StatusRequest,
        scheduler_server::{Scheduler, SchedulerServer},
        scheduler_to_peer::Kind as Heard,
    },
    priority,
};

use super::{
    keeper::{BACKOFF_MAX, backoff},
    *,
};

const LONG: Duration = Duration::from_secs(30);
const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    timeout(LONG, what).await.expect("in time")
}

/// One stream as the scheduler has it.
struct Accepted {
    inbound: Streaming<PeerToScheduler>,
    outgoing: UnboundedSender<Result<SchedulerToPeer, Status>>,
}

impl Accepted {
    fn say(&self, kind: Heard) {
        self.outgoing.send(Ok(SchedulerToPeer { kind: Some(kind) })).expect("an open stream");
    }

    fn welcome(&self) {
        let features = FEATURES;
        self.say(Heard::Welcome(SchedulerWelcome {
            protocol_version: PROTOCOL_VERSION,
            features,
            load_interval_ms: 250,
        }));
    }

    async fn hear(&mut self) -> Said {
        let message = in_time(self.inbound.message()).await.expect("no error").expect("a message");
        message.kind.expect("a known kind")
    }
}

/// Hands every stream to the test.
struct ByHand(UnboundedSender<Accepted>);

#[tonic::async_trait]
impl Scheduler for ByHand {
    type SessionStream = Pin<Box<UnboundedReceiverStream<Result<SchedulerToPeer, Status>>>>;

    async fn session(
        &self,
        request: Request<Streaming<PeerToScheduler>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (outgoing, messages) = mpsc::unbounded_channel();
        self.0.send(Accepted { inbound: request.into_inner(), outgoing }).expect("the test listens");
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(messages))))
    }

    async fn holders(&self, _: Request<HoldersRequest>) -> Result<Response<HoldersReply>, Status> {
        Err(Status::unimplemented("no session asks"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Err(Status::unimplemented("no session asks"))
    }

    async fn current_plan(
        &self,
        _: Request<CurrentPlanRequest>,
    ) -> Result<Response<CurrentPlanReply>, Status> {
        Err(Status::unimplemented("no session asks"))
    }

    async fn alive(&self, _: Request<AliveRequest>) -> Result<Response<AliveReply>, Status> {
        Err(Status::unimplemented("no session asks"))
    }
}

struct Server {
    address: SocketAddr,
    streams: mpsc::UnboundedReceiver<Accepted>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start(address: SocketAddr) -> Self {
        Self::start_on(TcpListener::bind(address).await.expect("a free port"), Security::Plain)
    }

    fn start_on(listener: TcpListener, security: Security) -> Self {
        let address = listener.local_addr().expect("bound");
        let (accepted, streams) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let service = SchedulerServer::new(ByHand(accepted));
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            connection::serve(listener, &security, service, stopped).await.expect("served");
        });
        Self { address, streams, stop, task }
    }

    async fn accept(&mut self) -> Accepted {
        in_time(self.streams.recv()).await.expect("the server runs")
    }

    /// Ends all streams that the test has dropped, and frees the port.
    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        in_time(self.task).await.expect("no panic");
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn options(address: SocketAddr) -> SessionOptions {
    SessionOptions {
        schedulers: Schedulers::new(&Security::Plain, vec![address.to_string()]),
        me: PeerId::new([1; 16]),
        control_address: "127.0.0.1:1001".to_owned(),
        name: "one".to_owned(),
        nic_rate: Some(125_000_000),
        place: Place { zone: "a".to_owned(), rack: "r1".to_owned() },
        security: Security::Plain,
    }
}

fn spawn(address: SocketAddr) -> (Session, mpsc::UnboundedReceiver<SessionEvent>) {
    let (events, received) = mpsc::unbounded_channel();
    (Session::spawn(options(address), events), received)
}

async fn next(events: &mut mpsc::UnboundedReceiver<SessionEvent>) -> SessionEvent {
    in_time(events.recv()).await.expect("the session lives")
}

async fn lost(events: &mut mpsc::UnboundedReceiver<SessionEvent>) -> String {
    match next(events).await {
        SessionEvent::Lost { reason, .. } => reason,
        other => panic!("{other:?} is no loss"),
    }
}

fn connected(address: SocketAddr) -> SessionEvent {
    SessionEvent::Connected { load_interval: Duration::from_millis(250), scheduler: address.to_string() }
}

fn plan(epoch: u64) -> PeerPlan {
    let stripe = StripePart { source: StripeSource::Origin, backups: Vec::new(), before: Vec::new() };
    PeerPlan {
        epoch,
        stripe_pieces: 1,
        stripes: vec![stripe],
        members: Vec::new(),
        quarantined: Vec::new(),
        finish: None,
        bound: Some(Duration::from_secs(2)),
        priority: Priority::default(),
    }
}

fn load(sent: u64, received: u64) -> SessionCommand {
    SessionCommand::Load { sent, received, measured: Measured::default() }
}

#[tokio::test]
async fn hello_joins_and_plans_travel() {
    let mut server = Server::start(any_port()).await;
    let (session, mut events) = spawn(server.address);
    let mut stream = server.accept().await;
    let Said::Hello(hello) = stream.hear().await else { panic!("the first message is no hello") };
    assert_eq!(hello.peer_id, [1; 16]);
    assert_eq!((hello.control_address.as_str(), hello.name.as_str()), ("127.0.0.1:1001", "one"));
    assert_eq!((hello.protocol_version, hello.nic_bytes_per_second), (PROTOCOL_VERSION, 125_000_000));
    assert_eq!(convert::place(hello.labels).unwrap(), options(server.address).place);
    // Before the welcome nothing is sent, so this is dropped.
    session.send(SessionCommand::Leave { artifact: ARTIFACT });
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
    // More runs than one message may hold follow in a second.
    let runs_max = u32::try_from(RUNS_PER_MESSAGE_MAX).expect("small");
    let have: Vec<Run> = (0..=runs_max).map(|at| Run::new(2 * at, 2 * at + 1)).collect();
    session.send(SessionCommand::Join {
        artifact: ARTIFACT,
        bytes: 9,
        piece_count: 1 << 20,
        origin_ok: true,
        priority: Priority::High,
        is_seed: false,
        round: 0,
        have: have.clone(),
        coming: Coming { epoch: 8, runs: vec![Run::new(1, 2)] },
    });
    let Said::Join(join) = stream.hear().await else { panic!("no join") };
    assert_eq!((join.artifact_bytes, join.piece_count, join.origin_ok, join.seed), (9, 1 << 20, true, false));
    assert_eq!(priority::of_number(join.priority), Priority::High);
    assert_eq!((join.epoch, convert::runs_message(&[Run::new(1, 2)])), (8, join.origin_in_flight));
    let Said::Have(rest) = stream.hear().await else { panic!("no rest") };
    assert_eq!(convert::runs_message(&have), [join.have, rest.added].concat());
    stream.say(Heard::Plan(convert::plan_message(ARTIFACT, &plan(3))));
    assert_eq!(next(&mut events).await, SessionEvent::Plan(ARTIFACT, plan(3)));
    drop(session);
    let end = in_time(stream.inbound.message()).await;
    assert!(!matches!(end, Ok(Some(_))), "{end:?} after the session was dropped");
}

#[tokio::test]
async fn a_scheduler_that_comes_back_is_found() {
    let mut server = Server::start(any_port()).await;
    let address = server.address;
    let (session, mut events) = spawn(address);
    let stream = server.accept().await;
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
    drop(stream);
    server.stop().await;
    lost(&mut events).await;
    session.send(load(1, 2));

    let mut server = Server::start(address).await;
    let mut stream = server.accept().await;
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
    assert!(matches!(stream.hear().await, Said::Hello(_)));
    session.send(load(3, 4));
    let Said::Load(load) = stream.hear().await else { panic!("no load") };
    assert_eq!((load.sent_bytes_per_second, load.received_bytes_per_second), (3, 4), "nothing old is sent");
}

#[tokio::test]
async fn an_absent_scheduler_is_said_at_once() {
    let server = Server::start(any_port()).await;
    let address = server.address;
    server.stop().await;
    let (_session, mut events) = spawn(address);
    let reason = lost(&mut events).await;
    assert!(reason.starts_with("cannot reach the scheduler: ") && reason.contains("refused"), "{reason}");
}

#[tokio::test]
async fn a_loss_is_said_once_however_many_attempts_fail() {
    let listener = TcpListener::bind(any_port()).await.expect("a free port");
    let (_session, mut events) = spawn(listener.local_addr().expect("bound"));
    // The channel connects a second time by itself, so that several connections may be one attempt.
    for _ in 0..8 {
        drop(in_time(listener.accept()).await.expect("an attempt"));
    }
    let mut server = Server::start_on(listener, Security::Plain);
    server.accept().await.welcome();
    lost(&mut events).await;
    assert_eq!(next(&mut events).await, connected(server.address));
}

#[tokio::test]
async fn a_refusal_is_passed_on() {
    let mut server = Server::start(any_port()).await;
    let (_session, mut events) = spawn(server.address);
    let stream = server.accept().await;
    let refusal = Refusal { reason: "version 1 is\u{7} too old".to_owned() };
    stream.say(Heard::Refusal(refusal));
    let expected = format!("the scheduler refused this peer: version 1 is too old (at `{}`)", server.address);
    assert_eq!(lost(&mut events).await, expected);
}

#[tokio::test]
async fn a_wrong_plan_ends_the_stream() {
    let mut server = Server::start(any_port()).await;
    let (_session, mut events) = spawn(server.address);
    let stream = server.accept().await;
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
    let mut wrong = convert::plan_message(ARTIFACT, &plan(1));
    wrong.stripe_pieces = 0;
    stream.say(Heard::Plan(wrong));
    let reason = lost(&mut events).await;
    assert!(reason.contains("`stripe_pieces`"), "{reason}");
    drop(stream);
    server.accept().await.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_begun_again() {
    let mut server = Server::start(any_port()).await;
    let (session, mut events) = spawn(server.address);
    let stream = server.accept().await;
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
    // The current-thread runtime sends nothing before this test waits, so the channel fills up.
    for piece in 0..=u32::try_from(OUTGOING_MAX).expect("small") {
        session.send(SessionCommand::Have { artifact: ARTIFACT, runs: vec![Run::new(piece, piece + 1)] });
    }
    let mut heard = stream;
    while in_time(heard.inbound.message()).await.expect("no error").is_some() {}
    drop(heard);
    lost(&mut events).await;
    server.accept().await.welcome();
    assert_eq!(next(&mut events).await, connected(server.address));
}

#[test]
fn waits_double_up_to_the_longest_and_differ_between_peers() {
    let waits = |byte| (0..8).map(move |attempt| backoff(PeerId::new([byte; 16]), attempt));
    assert!(waits(0).eq([50, 100, 200, 400, 800, 1500, 1500, 1500].map(Duration::from_millis)));
    assert!(waits(255).eq([100, 200, 400, 800, 1600, 3000, 3000, 3000].map(Duration::from_millis)));
    assert_eq!(backoff(PeerId::new([255; 16]), u32::MAX), BACKOFF_MAX);
}

/// Two schedulers, in rank.
async fn two() -> [Server; 2] {
    let [one, other] = [Server::start(any_port()).await, Server::start(any_port()).await];
    let (a, b) = (one.address.to_string(), other.address.to_string());
    if FleetName::LOCAL.prefers(&a, &b) { [one, other] } else { [other, one] }
}

fn spawn_with(servers: &[&Server]) -> (Session, mpsc::UnboundedReceiver<SessionEvent>) {
    let (events, received) = mpsc::unbounded_channel();
    let addresses = servers.iter().map(|server| server.address.to_string()).collect();
    let schedulers = Schedulers::new(&Security::Plain, addresses);
    (Session::spawn(SessionOptions { schedulers, ..options(any_port()) }, events), received)
}

async fn hello_of(stream: &mut Accepted) -> control::PeerHello {
    match stream.hear().await {
        Said::Hello(hello) => hello,
        other => panic!("{other:?} is no hello"),
    }
}

fn redirect(to: &Server) -> Heard {
    Heard::Redirect(Redirect { address: to.address.to_string() })
}

#[tokio::test]
async fn the_next_in_rank_is_used_where_the_first_is_gone_and_is_told_so() {
    let [first, mut second] = two().await;
    let gone = first.address;
    first.stop().await;
    let (_session, mut events) = {
        let (events, received) = mpsc::unbounded_channel();
        let addresses = vec![second.address.to_string(), gone.to_string()];
        let schedulers = Schedulers::new(&Security::Plain, addresses);
        (Session::spawn(SessionOptions { schedulers, ..options(gone) }, events), received)
    };
    let mut stream = second.accept().await;
    assert_eq!(hello_of(&mut stream).await.unreachable, [gone.to_string()]);
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(second.address), "nobody hears of a loss");
}

#[tokio::test]
async fn a_peer_goes_where_it_is_sent_and_leaves_nothing_before_it_is_welcome_there() {
    let [mut first, mut second] = two().await;
    // It is told of the lower one only.
    let (session, mut events) = spawn_with(&[&second]);
    let mut low = second.accept().await;
    hello_of(&mut low).await;
    low.welcome();
    assert_eq!(next(&mut events).await, connected(second.address));
    low.say(redirect(&first));
    let mut high = first.accept().await;
    assert_eq!(hello_of(&mut high).await.unreachable, [""; 0]);
    // Not welcome there yet, it still talks to the lower one.
    session.send(load(1, 2));
    assert!(matches!(low.hear().await, Said::Load(_)));
    high.welcome();
    assert_eq!(next(&mut events).await, connected(first.address));
    session.send(load(3, 4));
    assert!(matches!(high.hear().await, Said::Load(_)));
    assert!(!matches!(in_time(low.inbound.message()).await, Ok(Some(_))), "it has left the lower one");
}

#[tokio::test]
async fn a_peer_that_cannot_go_where_it_is_sent_says_so_and_is_served() {
    let [first, mut second] = two().await;
    let gone = first.address;
    first.stop().await;
    let (_session, mut events) = spawn_with(&[&second]);
    let mut stream = second.accept().await;
    assert_eq!(hello_of(&mut stream).await.unreachable, [""; 0]);
    stream.say(Heard::Redirect(Redirect { address: gone.to_string() }));
    drop(stream);
    let mut stream = second.accept().await;
    assert_eq!(hello_of(&mut stream).await.unreachable, [gone.to_string()]);
    stream.welcome();
    assert_eq!(next(&mut events).await, connected(second.address));
    // Later, it stays.
    stream.say(Heard::Redirect(Redirect { address: gone.to_string() }));
    stream.say(Heard::Plan(convert::plan_message(ARTIFACT, &plan(3))));
    assert_eq!(next(&mut events).await, SessionEvent::Plan(ARTIFACT, plan(3)));
}

#[tokio::test]
async fn schedulers_that_send_a_peer_to_one_another_are_left_alone_for_a_while() {
    let [mut first, mut second] = two().await;
    let (_session, mut events) = spawn_with(&[&first, &second]);
    let (a, b) = (first.address, second.address);
    let to_second = tokio::spawn(async move {
        loop {
            let stream = first.accept().await;
            stream.say(Heard::Redirect(Redirect { address: b.to_string() }));
        }
    });
    let to_first = tokio::spawn(async move {
        let mut count = 0;
        loop {
            let stream = second.accept().await;
            count += 1;
            assert!(count < 100, "it goes to and fro");
            stream.say(Heard::Redirect(Redirect { address: a.to_string() }));
        }
    });
    assert_eq!(lost(&mut events).await, "the schedulers only send this peer to one another");
    assert!(!to_first.is_finished());
    to_second.abort();
    to_first.abort();
}

#[tokio::test]
async fn a_scheduler_of_an_older_version_begins_to_count_plans_anew() {
    let [first, mut second] = two().await;
    let (_session, mut events) = spawn_with(&[&first, &second]);
    let mut first = first;
    let high = first.accept().await;
    high.welcome();
    assert_eq!(next(&mut events).await, connected(first.address));
    drop(high);
    first.stop().await;
    let stream = second.accept().await;
    stream.say(Heard::Welcome(SchedulerWelcome {
        protocol_version: PROTOCOL_VERSION,
        features: 0,
        load_interval_ms: 250,
    }));
    lost(&mut events).await;
    assert_eq!(next(&mut events).await, connected(second.address));
    stream.say(redirect(&second));
    stream.say(Heard::Plan(convert::plan_message(ARTIFACT, &plan(1))));
    assert_eq!(next(&mut events).await, SessionEvent::Plan(ARTIFACT, plan(1)), "sent to itself it stays");
}

fn member(key: u8, at: SystemTime) -> Security {
    Security::Fleet(Identity::issued_at(&FleetKey::new([key; 32]), at).expect("an identity"))
}

/// What a peer says of a scheduler when the two are secured like that.
async fn lost_between(peer: Security, scheduler: Security) -> String {
    let listener = TcpListener::bind(any_port()).await.expect("a free port");
    let server = Server::start_on(listener, scheduler);
    let (events, mut received) = mpsc::unbounded_channel();
    let options = SessionOptions { security: peer, ..options(server.address) };
    let _session = Session::spawn(options, events);
    match next(&mut received).await {
        SessionEvent::Lost { reason, hint } => format!("{reason}; {}", hint.unwrap_or("no hint")),
        other => panic!("{other:?} is no loss"),
    }
}

#[tokio::test]
async fn a_peer_is_told_what_is_wrong_with_keys_and_clocks() {
    let (now, day) = (SystemTime::now(), Duration::from_hours(24));
    let (mine, early, late) = (member(1, now), member(1, now - day * 500), member(1, now + day * 3));
    let clocks = "compare `date -u`";
    for (what, peer, scheduler, words, hint) in [
        ("another key", mine.clone(), member(2, now), "another fleet key", "sha256sum"),
        ("no key here", Security::Plain, mine.clone(), "hung up", "--fleet-key FILE"),
        ("no key there", mine.clone(), Security::Plain, "it has no fleet key", "--fleet-key FILE"),
        ("expired there", mine.clone(), early.clone(), "has expired", clocks),
        // The scheduler's word may be lost with the connection; its log has it.
        ("expired here", early, mine.clone(), "hung up", ""),
        ("not valid yet there", mine.clone(), late.clone(), "not valid yet", clocks),
        ("not valid yet here", late, mine, "hung up", ""),
    ] {
        let said = lost_between(peer, scheduler).await;
        println!("{what}: {said}");
        assert!(said.contains(words) && said.contains(hint) && !said.contains("no hint"), "{what}: {said}");
    }
}
