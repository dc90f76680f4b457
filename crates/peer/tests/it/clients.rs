//! Conversations over a peer's local socket: who may have them, and how they go wrong.

use std::{
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use modelpack::reference::Reference;
use peer::{ErrorClass, LocalPeer, Peer, PeerError, PeerOptions, PullReport, PullRequest, PullWatch};
use registry::{Access, Credentials};
use store::LinkMode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use wire::local::{
    ClientFrame, DaemonFrame, Hello, LocalStream, Pull, client_frame::Kind as Said,
    daemon_frame::Kind as Told,
};

use crate::{
    origin::{Gate, Holding, Origin, Read, Reply},
    support::{Model, PATIENCE, nobody_listens, pattern},
};

/// A peer without a fleet.
pub(crate) struct Alone {
    pub(crate) top: tempfile::TempDir,
    socket: PathBuf,
    task: JoinHandle<()>,
    end: oneshot::Sender<()>,
}

impl Alone {
    pub(crate) async fn start() -> Self {
        let top = tempfile::tempdir().unwrap();
        let socket = top.path().join("run/peer.sock");
        let options = PeerOptions {
            store: top.path().join("store"),
            store_max: None,
            socket: socket.clone(),
            listen: "127.0.0.1:0".parse().unwrap(),
            schedulers: Vec::new(),
            nic_rate: None,
            place: planner::Place::default(),
            name: "alone".into(),
            seeds: Vec::new(),
            socket_group: None,
            advertise: None,
            security: peer::PeerSecurity::default(),
            transports: peer::Transports::tcp(),
            landing: peer::LandingMode::Auto,
            delta: peer::Delta::FromStore,
        };
        let peer = Peer::start(options).await.unwrap();
        let (end, ended) = oneshot::channel::<()>();
        let task = tokio::spawn(async move { drop(peer.run(async { drop(ended.await) }).await.unwrap()) });
        Self { top, socket, task, end }
    }

    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.top.path().join(name)
    }

    async fn pull(
        &self,
        (reference, credentials): (Reference, Credentials),
        output: &str,
        (link, watch): (LinkMode, &PullWatch),
    ) -> Result<PullReport, PeerError> {
        let access = Access { plain_http: true, credentials, ..Access::default() };
        let request = PullRequest {
            reference,
            access,
            output: self.output(output),
            landing: peer::LandingMode::Auto,
            selection: std::sync::Arc::default(),
            bases: Vec::new(),
            priority: planner::Priority::default(),
        };
        let local = LocalPeer::connect(&self.socket).await?;
        timeout(PATIENCE, local.pull(request, link, watch)).await.expect("the pull ends in time")
    }

    pub(crate) async fn pull_simply(
        &self,
        reference: Reference,
        output: &str,
    ) -> Result<PullReport, PeerError> {
        let as_nobody = (reference, Credentials::Anonymous);
        self.pull(as_nobody, output, (LinkMode::Auto, &PullWatch::new())).await
    }

    /// Ends it, which no client may hold up.
    pub(crate) async fn end(self) {
        self.end.send(()).unwrap();
        timeout(PATIENCE, self.task).await.expect("it ends in time").unwrap();
        assert!(!self.socket.exists(), "the socket is removed");
    }
}

fn said(kind: Said) -> ClientFrame {
    ClientFrame { kind: Some(kind) }
}

fn hello(protocol_version: u32) -> ClientFrame {
    said(Said::Hello(Hello { protocol_version, ..Hello::default() }))
}

async fn hears(stream: &mut LocalStream) -> Option<Told> {
    let frame = timeout(PATIENCE, stream.recv::<DaemonFrame>()).await.expect("in time");
    frame.unwrap().map(|(frame, _)| frame.kind.unwrap())
}

/// Writes these bytes, and requires that the peer hangs up.
async fn hangs_up_after(peer: &Alone, bytes: &[u8]) {
    let mut socket = UnixStream::connect(&peer.socket).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = timeout(PATIENCE, socket.read_to_end(&mut rest)).await.expect("it hangs up in time");
    assert_eq!(rest, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_may_speak_to_a_peer() {
    let peer = Alone::start().await;
    let mode = std::fs::metadata(&peer.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "{mode:o}");
    let second = PeerOptions {
        store: peer.top.path().join("other-store"),
        store_max: None,
        socket: peer.socket.clone(),
        listen: "127.0.0.1:0".parse().unwrap(),
        schedulers: Vec::new(),
        nic_rate: None,
        place: planner::Place::default(),
        name: "second".into(),
        seeds: Vec::new(),
        socket_group: None,
        advertise: None,
        security: peer::PeerSecurity::default(),
        transports: peer::Transports::tcp(),
        landing: peer::LandingMode::Auto,
        delta: peer::Delta::FromStore,
    };
    let error = Peer::start(second.clone()).await.err().unwrap();
    assert!(matches!(error, PeerError::Listen { .. }), "{error:?}");
    peer.task.abort();
    nobody_listens(&peer.socket).await;
    assert!(peer.socket.exists(), "a peer that died leaves its socket");
    Peer::start(second).await.map(drop).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_break_the_rules_are_left_and_others_served() {
    let (model, peer) = (Model::of(3), Alone::start().await);
    let origin = Origin::honest(Holding::of(&model)).await;
    hangs_up_after(&peer, &[8, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]).await;
    hangs_up_after(&peer, &[255, 255, 255, 255, 1]).await;
    hangs_up_after(&peer, &[0, 0, 0, 0]).await;
    drop(UnixStream::connect(&peer.socket).await.unwrap());

    let mut twice = LocalStream::connect(&peer.socket).await.unwrap();
    twice.send(&hello(1)).await.unwrap();
    assert!(matches!(hears(&mut twice).await, Some(Told::Hello(_))));
    twice.send(&hello(1)).await.unwrap();
    assert!(hears(&mut twice).await.is_none(), "a second hello ends it");

    let mut later = LocalStream::connect(&peer.socket).await.unwrap();
    later.send(&hello(99)).await.unwrap();
    let Some(Told::Failure(failure)) = hears(&mut later).await else { panic!("a failure") };
    assert!(failure.message.contains("99") && failure.exit_code == 1, "{failure:?}");

    for nonsense in ["no reference", "/etc/passwd", "oci:/etc:v1", ""] {
        let mut stream = LocalStream::connect(&peer.socket).await.unwrap();
        stream.send(&hello(1)).await.unwrap();
        hears(&mut stream).await;
        stream.send(&said(Said::Pull(Pull { reference: nonsense.into(), ..Pull::default() }))).await.unwrap();
        let Some(Told::Failure(failure)) = hears(&mut stream).await else { panic!("a failure") };
        assert_eq!(failure.exit_code, 2, "{failure:?}");
    }
    peer.pull_simply(origin.reference(), "out").await.unwrap();
    model.assert_in(&peer.output("out"));
    peer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_says_nothing_loses_its_place() {
    let peer = Alone::start().await;
    tokio::join!(hangs_up_after(&peer, &[]), hangs_up_after(&peer, &[8, 0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_holds_nobody_up() {
    let (model, peer) = (Model::of(3), Alone::start().await);
    let origin = Origin::honest(Holding::of(&model)).await;
    let mut deaf = LocalStream::connect(&peer.socket).await.unwrap();
    deaf.send(&hello(1)).await.unwrap();
    let reference = origin.reference().to_string();
    let pull = Pull { reference, plain_http: true, ..Pull::default() };
    deaf.send(&said(Said::Pull(pull))).await.unwrap();
    peer.pull_simply(origin.reference(), "out").await.unwrap();
    model.assert_in(&peer.output("out"));
    peer.end().await;
}

fn basic(username: &str) -> Credentials {
    Credentials::Basic { username: username.into(), password: "secret".into() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn credentials_are_each_clients_own() {
    let (model, peer) = (Model::of(8), Alone::start().await);
    let gate = Gate::default();
    let (held, poor) = (gate.clone(), "Basic cG9vcjpzZWNyZXQ="); // poor:secret
    let origin =
        Origin::with_fault(Holding::of(&model), move |read, reply| match read.seen.header("authorization") {
            None => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"models\""),
            Some(who) if who == poor => {
                held.pass();
                Reply::status(403)
            }
            Some(_) => reply,
        })
        .await;
    let (first, second) = (PullWatch::new(), PullWatch::new());
    let joined = async {
        while second.progress().total == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        gate.open();
    };
    let as_poor = (origin.reference(), basic("poor"));
    let as_rich = (origin.reference(), basic("rich"));
    let second = async {
        while first.progress().total == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        peer.pull(as_rich, "rich", (LinkMode::Auto, &second)).await
    };
    let first = peer.pull(as_poor, "poor", (LinkMode::Auto, &first));
    let (first, second, ()) = tokio::join!(first, second, joined);
    let error = first.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Failed);
    assert!(std::error::Error::source(&error).is_some(), "it says why: {error:?}");
    second.unwrap();
    model.assert_in(&peer.output("rich"));
    assert!(!peer.output("poor").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 16)]
async fn of_five_clients_at_once_only_the_one_with_a_wrong_login_fails() {
    let (model, peer) = (Model::of(20), Alone::start().await);
    let gate = Gate::default();
    let (held, login) = (gate.clone(), "Basic cmljaDpzZWNyZXQ="); // rich:secret
    let pass = move |_: &Read<'_>, reply| {
        held.pass();
        reply
    };
    let origin = Origin::guarded(Holding::of(&model), login, pass).await;
    let watches = [(); 4].map(|()| PullWatch::new());
    let outputs = ["a", "b", "c", "d"];
    let pulls = outputs.iter().zip(&watches).map(|(output, watch)| {
        peer.pull((origin.reference(), basic("rich")), output, (LinkMode::Auto, watch))
    });
    let nobody = PullWatch::new();
    let others = async {
        let as_poor = (origin.reference(), basic("poor"));
        let error = peer.pull(as_poor, "poor", (LinkMode::Auto, &nobody)).await.unwrap_err();
        // The others wait for the same bytes by then.
        crate::support::until(|| watches.iter().all(|watch| watch.progress().total > 0)).await;
        gate.open();
        error
    };
    let (reports, error) = tokio::join!(futures_util::future::join_all(pulls), others);
    assert_eq!(error.class(), ErrorClass::Failed);
    assert!(error.hint().is_some_and(|hint| hint.contains("login")), "{error:?}");
    assert!(!peer.output("poor").exists());
    for (output, report) in outputs.iter().zip(reports) {
        let report = report.unwrap();
        assert_eq!(report.origin_bytes, model.bytes(), "all tell of the one transfer");
        model.assert_in(&peer.output(output));
    }
    assert!(origin.asked() <= model.bytes(), "{} of {}", origin.asked(), model.bytes());
}

/// What a client hears that connects to a peer of another version, or one that says these frames.
async fn connect_to(says: Vec<Told>) -> PeerError {
    let top = tempfile::tempdir().unwrap();
    let socket = top.path().join("peer.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let daemon = tokio::spawn(async move {
        let mut stream = LocalStream::new(listener.accept().await.unwrap().0);
        stream.recv::<ClientFrame>().await.unwrap();
        for kind in says {
            stream.send(&DaemonFrame { kind: Some(kind) }).await.unwrap();
        }
    });
    let error = timeout(PATIENCE, LocalPeer::connect(&socket)).await.expect("in time").unwrap_err();
    daemon.await.unwrap();
    error
}

fn told_in_full(error: &PeerError) -> String {
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let causes: Vec<String> = causes.map(ToString::to_string).collect();
    format!("{}; hint: {}", causes.join(": "), error.hint().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_and_clients_of_other_versions_say_so_to_one_another() {
    let hint = "run the same version of modelctl as the peer, or pull with `--peer none`";
    // A peer that tells its own version, and leaves it to the client to judge.
    for version in [0, 2] {
        let hello = Hello { protocol_version: version, ..Hello::default() };
        let said = told_in_full(&connect_to(vec![Told::Hello(hello)]).await);
        let expected = format!("the other side speaks protocol version {version}, this one speaks 1");
        assert!(said.contains(&expected) && said.ends_with(hint), "{said}");
    }
    // This one's own words to a client of another version, which that client has to understand.
    let peer = Alone::start().await;
    for version in [0, 99] {
        let mut client = LocalStream::connect(&peer.socket).await.unwrap();
        client.send(&hello(version)).await.unwrap();
        let Some(Told::Failure(failure)) = hears(&mut client).await else { panic!("a failure") };
        assert!(hears(&mut client).await.is_none(), "that is the end");
        let said = told_in_full(&connect_to(vec![Told::Failure(failure)]).await);
        let expected =
            format!("the local peer speaks protocol version 1, this client {version}; hint: {hint}");
        assert_eq!(said, expected);
    }
    peer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_come_as_the_link_mode_says() {
    let (model, peer) = (Model::of(3), Alone::start().await);
    let origin = Origin::honest(Holding::of(&model)).await;
    let weights = |output: &str| std::fs::metadata(peer.output(output).join("model.bin")).unwrap();
    let pull = |output, link| {
        let as_nobody = (origin.reference(), Credentials::Anonymous);
        peer.pull(as_nobody, output, (link, Box::leak(Box::new(PullWatch::new()))))
    };
    let copied = pull("copy", LinkMode::Copy).await.unwrap();
    assert_eq!((copied.copied, weights("copy").nlink()), (4, 1));
    model.assert_in(&peer.output("copy"));
    // What the file system of the test can do decides between a link and a clear refusal.
    match pull("hard", LinkMode::Hard).await {
        Ok(report) => {
            assert_eq!((report.copied, weights("hard").nlink()), (0, 2));
            model.assert_in(&peer.output("hard"));
        }
        Err(error) => assert!(error.to_string().starts_with("cannot hard-link "), "{error}"),
    }
    match pull("reflink", LinkMode::Reflink).await {
        Ok(report) => {
            assert_eq!(report.copied, 0);
            model.assert_in(&peer.output("reflink"));
        }
        Err(error) => assert!(error.to_string().starts_with("cannot reflink to "), "{error}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the next test, with few descriptors"]
async fn many_files() {
    let file = |number: u32| (format!("{number:04}.bin"), pattern(number, 100));
    let (model, peer) = (Model::new((0..400).map(file).collect()), Alone::start().await);
    let origin = Origin::honest(Holding::of(&model)).await;
    for output in ["out", "again"] {
        peer.pull_simply(origin.reference(), output).await.unwrap();
        model.assert_in(&peer.output(output));
    }
    crate::support::pull(origin.reference(), &peer.output("alone")).await.unwrap();
}

#[test]
fn an_artifact_may_have_more_files_than_the_usual_limit_of_descriptors() {
    let this: &Path = &std::env::current_exe().unwrap();
    let script = "ulimit -Sn 256 && exec \"$0\" --ignored --exact clients::many_files";
    let output = Command::new("sh").arg("-c").arg(script).arg(this).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
