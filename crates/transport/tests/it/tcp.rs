//! TCP links keep the laws, prove who they are, and survive what strangers send.

use std::{
    fs::File,
    future::pending,
    io::Write as _,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use ::memory::Pool;
use identity::{FleetKey, Identity, Security};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    runtime::{Builder, Runtime},
    sync::oneshot,
};
use transport::{
    Bucket, Completion, CompletionSink, Export, Exports, Level, Link, Pacer, ReadFault, ReadRequest,
    conformance::{Harness, laws},
    tcp::{self, ConnectError, Server, Target},
};

const LONG: Duration = Duration::from_secs(30);

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, what).await.expect("in time")
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Sender and receiver on runtimes of their own, as on two machines: laws hold the sender's threads back.
struct Tcp {
    sender: Runtime,
    receiver: Runtime,
    security: Security,
}

async fn connect(
    address: &str,
    link: u64,
    secret: [u8; 32],
    in_flight_max: usize,
    sink: CompletionSink,
) -> Result<Arc<dyn Link>, ConnectError> {
    let target = Target { address, link, secret: &secret, security: &Security::Plain };
    tcp::connect(target, in_flight_max, sink).await
}

impl Tcp {
    fn new() -> Self {
        Self::secured(Security::Plain)
    }

    fn secured(security: Security) -> Self {
        Self { sender: runtime(), receiver: runtime(), security }
    }

    fn serve(&self, exports: Exports) -> Server {
        let server = self
            .sender
            .block_on(in_time(Server::bind(loopback(), exports, self.security.clone())))
            .expect("a free port");
        let running = server.clone();
        self.sender.spawn(async move { running.run(pending()).await });
        server
    }
}

impl Harness for Tcp {
    fn connect(&self, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<dyn Link> {
        let server = self.serve(exports);
        let address = server.local_addr().to_string();
        let (link, secret) = server.issue_link();
        let target = Target { address: &address, link, secret: &secret, security: &self.security };
        let connecting = in_time(tcp::connect(target, in_flight_max, sink));
        self.receiver.block_on(connecting).expect("the right secret")
    }
}

#[test]
fn a_tcp_link_keeps_every_law() {
    for (name, law) in laws(&Tcp::new()) {
        println!("law: {name}");
        law(&Tcp::new());
    }
}

fn member(key: u8) -> Security {
    Security::Fleet(Identity::new(&FleetKey::new([key; 32])).expect("an identity"))
}

#[test]
fn an_encrypted_link_keeps_every_law() {
    for (name, law) in laws(&Tcp::new()) {
        println!("law: {name}");
        law(&Tcp::secured(member(1)));
    }
}

#[test]
fn only_members_of_the_fleet_connect() {
    let tcp = Tcp::secured(member(1));
    let server = tcp.serve(one_file(10));
    let address = server.local_addr().to_string();
    let (link, secret) = server.issue_link();
    let attempt = |security: &Security| {
        let target = Target { address: &address, link, secret: &secret, security };
        let connecting = in_time(tcp::connect(target, 1, channel().0));
        tcp.receiver.block_on(connecting).map(|_| ())
    };
    let stranger = attempt(&member(2)).expect_err("another fleet");
    assert!(matches!(stranger, ConnectError::Stranger { .. }), "{stranger:?}");
    // It waits for a hello that TLS does not begin with.
    let plain = attempt(&Security::Plain).expect_err("no TLS");
    assert!(matches!(plain, ConnectError::Refused { .. } | ConnectError::Timeout { .. }), "{plain:?}");
    attempt(&member(1)).expect("a member");
}

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

/// The exports of one file of `bytes` bytes; its handle is 1.
fn one_file(bytes: usize) -> Exports {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&vec![7; bytes]).expect("space");
    let exports = Exports::new();
    assert_eq!(exports.register(Arc::new(Whole(file))), 1);
    exports
}

fn channel() -> (CompletionSink, mpsc::Receiver<Completion>) {
    let (sender, completions) = mpsc::channel();
    let sink: CompletionSink = Arc::new(move |completion| drop(sender.send(completion)));
    (sink, completions)
}

fn read(pool: &Arc<Pool>, id: u64, len: usize) -> ReadRequest {
    let lease = pool.try_lease(len).expect("free");
    ReadRequest { id, window: 1, offset: 0, lease, deadline: Instant::now() + LONG }
}

fn expect_down(completion: &Completion) {
    assert!(matches!(completion.result, Err(ReadFault::LinkDown(_))), "{completion:?}");
}

fn refused_by(server: &Server, tcp: &Tcp, link: u64, secret: [u8; 32]) -> ConnectError {
    let address = server.local_addr().to_string();
    let connecting = in_time(connect(&address, link, secret, 1, channel().0));
    tcp.receiver.block_on(connecting).map(|_| ()).expect_err("must be refused")
}

#[test]
fn only_the_issued_secret_connects_and_only_until_it_is_revoked() {
    let tcp = Tcp::new();
    let server = tcp.serve(one_file(10));
    let (link, secret) = server.issue_link();
    let (other, other_secret) = server.issue_link();
    assert_ne!(secret, other_secret);
    for (link, secret) in [(link, [0; 32]), (link, other_secret), (other, secret), (99, secret)] {
        let error = refused_by(&server, &tcp, link, secret);
        assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");
    }

    let (sink, completions) = channel();
    let address = server.local_addr().to_string();
    let live = tcp.receiver.block_on(in_time(connect(&address, link, secret, 1, sink))).expect("issued");
    assert_eq!(live.level(), Level::Tcp);
    let pool = Pool::new(1, 10).expect("memory");
    live.post(read(&pool, 1, 10)).expect("room");
    completions.recv_timeout(LONG).expect("ends").result.expect("good");

    server.revoke(link);
    assert!(matches!(refused_by(&server, &tcp, link, secret), ConnectError::Refused { .. }));
    tcp.receiver.block_on(in_time(async {
        while !live.is_closed() {
            tokio::task::yield_now().await;
        }
    }));
    assert!(live.post(read(&pool, 2, 10)).is_err());
}

#[test]
fn all_links_together_keep_to_what_the_server_may_send() {
    const RATE: u64 = 8 << 20;
    const BYTES: usize = 2 << 20;
    for security in [Security::Plain, member(1)] {
        let tcp = Tcp::secured(security);
        let server = tcp.serve(one_file(BYTES));
        server.keep_to(Arc::new(Pacer::new(RATE)));
        let (address, (sink, completions)) = (server.local_addr().to_string(), channel());
        let begin = Instant::now();
        let links = [1, 2].map(|id| {
            let (link, secret) = server.issue_link();
            let target = Target { address: &address, link, secret: &secret, security: &tcp.security };
            let connecting = in_time(tcp::connect(target, 1, Arc::clone(&sink)));
            let link = tcp.receiver.block_on(connecting).expect("issued");
            link.post(read(&Pool::new(1, BYTES).expect("memory"), id, BYTES)).expect("room");
            link
        });
        for _ in &links {
            completions.recv_timeout(LONG).expect("ends").result.expect("good");
        }
        let least = Duration::from_millis((2 * BYTES as u64 - Bucket::new(RATE).burst()) * 1000 / RATE);
        assert!(begin.elapsed() >= least, "{:?}, and not {least:?}", begin.elapsed());
    }
}

#[test]
fn one_secret_makes_no_more_connections_than_a_reconnect_needs() {
    let tcp = Tcp::new();
    let server = tcp.serve(one_file(10));
    let (link, secret) = server.issue_link();
    let address = server.local_addr().to_string();
    let again = || tcp.receiver.block_on(in_time(connect(&address, link, secret, 1, channel().0)));
    let _held = [again().expect("the first"), again().expect("a reconnect")];
    assert!(matches!(again().map(|_| ()), Err(ConnectError::Refused { .. })));
}

#[test]
fn a_server_that_shuts_down_ends_its_links() {
    let tcp = Tcp::new();
    let server =
        tcp.sender.block_on(Server::bind(loopback(), one_file(10), Security::Plain)).expect("a free port");
    let (stop, stopped) = oneshot::channel::<()>();
    let running = {
        let server = server.clone();
        tcp.sender.spawn(async move { server.run(async { drop(stopped.await) }).await })
    };
    let (link, secret) = server.issue_link();
    let (sink, completions) = channel();
    let address = server.local_addr().to_string();
    let live = tcp.receiver.block_on(in_time(connect(&address, link, secret, 1, sink))).expect("issued");
    let pool = Pool::new(1, 10).expect("memory");
    live.post(read(&pool, 1, 10)).expect("room");
    completions.recv_timeout(LONG).expect("ends").result.expect("good");
    stop.send(()).expect("running");
    tcp.sender.block_on(in_time(running)).expect("no panic");
    // Only now is the count final: bytes arrive before they are counted.
    assert_eq!(server.sent_bytes(), 10);
    tcp.receiver.block_on(in_time(async {
        while !live.is_closed() {
            tokio::task::yield_now().await;
        }
    }));
}

#[test]
fn strangers_are_hung_up_on_and_others_still_served() {
    let tcp = Tcp::new();
    let server = tcp.serve(one_file(10));
    let address = server.local_addr();
    tcp.receiver.block_on(in_time(async {
        let mut stranger = TcpStream::connect(address).await.expect("listening");
        stranger.write_all(&[b'x'; 200]).await.expect("taken");
        let mut said = Vec::new();
        // It may answer the flood with a reset; what counts is that it says no more than its hello.
        let _ = stranger.read_to_end(&mut said).await;
        assert!(said.len() <= 40, "{} bytes to a stranger", said.len());
    }));
    let (link, secret) = server.issue_link();
    let connecting = in_time(async { connect(&address.to_string(), link, secret, 1, channel().0).await });
    tcp.receiver.block_on(connecting).expect("issued");
}

#[test]
fn a_torn_down_runtime_ends_every_read() {
    let Tcp { sender, receiver, .. } = Tcp::new();
    // A sender that never answers.
    let listener = sender.block_on(TcpListener::bind(loopback())).expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let fake = sender.spawn(async move { scripted_sender(&listener).await });
    let (sink, completions) = channel();
    let live = receiver.block_on(in_time(connect(&address, 5, SECRET, 3, sink))).expect("it proves itself");
    let _socket = sender.block_on(in_time(fake)).expect("no panic");
    let pool = Pool::new(3, 10).expect("memory");
    for id in 0..3 {
        live.post(read(&pool, id, 10)).expect("room");
    }
    drop(receiver);
    for _ in 0..3 {
        expect_down(&completions.recv_timeout(LONG).expect("ends"));
    }
    assert_eq!(pool.free(), 3);
    assert!(live.is_closed());
    assert!(live.post(read(&pool, 9, 10)).is_err());
}

const SECRET: [u8; 32] = [3; 32];

/// The sender's half of the handshake, written from the protocol's description and not from the crate's code.
async fn scripted_sender(listener: &TcpListener) -> TcpStream {
    let (mut socket, _) = listener.accept().await.expect("a receiver");
    let nonce = [9; 32];
    socket.write_all(&[b"MCDL", &1_u32.to_le_bytes()[..], &nonce].concat()).await.expect("sent");
    let mut answer = [0; 80];
    socket.read_exact(&mut answer).await.expect("an answer");
    assert_eq!(answer[..8], *b"MCDL\x01\0\0\0");
    let about = [&answer[8..16], &nonce, &answer[16..48]].concat();
    let proof = |label: &[u8]| blake3::keyed_hash(&SECRET, &[label, &about].concat());
    assert_eq!(answer[48..], proof(b"modelcast data link v1 receiver").as_bytes()[..]);
    socket.write_all(proof(b"modelcast data link v1 sender--").as_bytes()).await.expect("sent");
    socket
}

fn response(id: u64, status: u32, len: u32) -> Vec<u8> {
    [&id.to_le_bytes()[..], &status.to_le_bytes(), &len.to_le_bytes()].concat()
}

/// What a receiver makes of a sender that answers the first of two 1,000-byte reads with `bytes` and hangs up.
fn check_answer(bytes: Vec<u8>) -> Vec<Completion> {
    let tcp = Tcp::new();
    let listener = tcp.sender.block_on(TcpListener::bind(loopback())).expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let fake = tcp.sender.spawn(async move {
        let mut socket = scripted_sender(&listener).await;
        let mut requests = [0; 56];
        socket.read_exact(&mut requests).await.expect("two requests");
        let want =
            [&1_u64.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0; 8], &1000_u32.to_le_bytes()].concat();
        assert_eq!(requests[..28], want);
        socket.write_all(&bytes).await.expect("sent");
    });
    let (sink, completions) = channel();
    let live = tcp.receiver.block_on(in_time(connect(&address, 5, SECRET, 2, sink))).expect("proved");
    let pool = Pool::new(2, 1000).expect("memory");
    for id in 1..3 {
        live.post(read(&pool, id, 1000)).expect("room");
    }
    tcp.sender.block_on(in_time(fake)).expect("no panic");
    let ended = (0..2).map(|_| completions.recv_timeout(LONG).expect("ends")).collect();
    assert!(live.is_closed());
    ended
}

#[test]
fn a_sender_that_dies_within_a_body_ends_both_reads() {
    let bytes = [response(1, 0, 1000), vec![1; 999]].concat();
    check_answer(bytes).iter().for_each(expect_down);
}

#[test]
fn a_sender_that_dies_between_bodies_ends_only_the_second_read() {
    let bytes = [response(1, 0, 1000), vec![1; 1000]].concat();
    let ended = check_answer(bytes);
    assert!(ended[0].result.as_ref().is_ok_and(|filled| **filled == [1; 1000]));
    expect_down(&ended[1]);
}

#[test]
fn nonsense_from_a_sender_ends_the_link() {
    for bytes in [
        [response(2, 0, 1000), vec![1; 1000]].concat(), // not the oldest read
        [response(1, 0, 1001), vec![1; 1001]].concat(), // longer than the lease
        [response(1, 0, 999), vec![1; 999]].concat(),   // shorter than the lease
        [response(1, 7, 0), response(2, 0, 1000)].concat(), // no such status
        [response(1, 1, 5), vec![1; 5]].concat(),       // a denial with a body
    ] {
        check_answer(bytes).iter().for_each(expect_down);
    }
}

#[test]
fn who_does_not_prove_to_be_the_sender_gets_no_read() {
    let tcp = Tcp::new();
    let hello = |prefix: &[u8]| [prefix, &[9; 32]].concat();
    let check = |hello: Vec<u8>| {
        let listener = tcp.sender.block_on(TcpListener::bind(loopback())).expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let fake = tcp.sender.spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("a receiver");
            socket.write_all(&hello).await.expect("sent");
            // A proof that needs no secret; the receiver may have hung up already.
            let _ = socket.write_all(&[0; 32]).await;
            let _ = socket.read_to_end(&mut Vec::new()).await;
        });
        let connecting = in_time(connect(&address, 5, SECRET, 1, channel().0));
        let error = tcp.receiver.block_on(connecting).map(|_| ()).expect_err("no proof");
        tcp.sender.block_on(in_time(fake)).expect("no panic");
        error
    };
    let error = check(hello(b"HTTP\x01\0\0\0"));
    assert!(matches!(error, ConnectError::NotTheSender { .. }), "{error:?}");
    let error = check(hello(b"MCDL\x02\0\0\0"));
    assert!(matches!(error, ConnectError::Version { theirs: 2, .. }), "{error:?}");
    let error = check(hello(b"MCDL\x01\0\0\0"));
    assert!(matches!(error, ConnectError::NotTheSender { .. }), "{error:?}");
}
