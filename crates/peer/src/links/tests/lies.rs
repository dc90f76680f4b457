//! Parents that lie, repeat themselves, or stop in the middle, and what their children make of it.

use super::*;

/// A parent that says what the test wants to every child.
struct Liar(Vec<Heard>);

#[tonic::async_trait]
impl Peer for Liar {
    type LinkStream = Pin<Box<UnboundedReceiverStream<Result<ParentToChild, Status>>>>;

    async fn link(
        &self,
        request: Request<Streaming<ChildToParent>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (outgoing, messages) = mpsc::unbounded_channel();
        for kind in &self.0 {
            outgoing.send(Ok(ParentToChild { kind: Some(kind.clone()) })).expect("open");
        }
        let mut inbound = request.into_inner();
        tokio::spawn(async move {
            // Hears everything and answers nothing, for as long as the child stays.
            while let Ok(Some(_)) = inbound.message().await {}
            drop(outgoing);
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(messages))))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Err(Status::unimplemented("no link asks"))
    }
}

/// A data plane without files, and the messages of an honest parent that uses it.
pub(super) async fn honest() -> (tcp::Server, u64, Vec<Heard>) {
    let tcp = tcp::Server::bind(any_port(), Exports::new(), Security::Plain).await.expect("a free port");
    let running = tcp.clone();
    tokio::spawn(async move { running.run(pending()).await });
    let (link, secret) = tcp.issue_link();
    let address = tcp.local_addr().to_string();
    let welcome = LinkWelcome {
        protocol_version: PROTOCOL_VERSION,
        features: FEATURES,
        peer_id: PARENT.bytes().to_vec(),
        tcp: Some(TcpEndpoint { address, link, secret: secret.to_vec(), encrypted: false }),
        rdma: None,
        rdma_refusal: String::new(),
    };
    let windows = (0..).zip(SIZES);
    let windows = windows.map(|(blob, bytes)| control::Window { blob, handle: 1, bytes }).collect();
    let grant = Grant { windows, in_flight_max: 4, bytes_per_second_max: 0, expires_ms: 10_000 };
    (tcp, link, vec![Heard::Welcome(welcome), Heard::Grant(grant)])
}

pub(super) async fn serve_lies(says: Vec<Heard>) -> SocketAddr {
    let listener = TcpListener::bind(any_port()).await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let service = PeerServer::new(Liar(says));
        wire::connection::serve(listener, &Security::Plain, service, pending()).await
    });
    address
}

/// How a link to a parent ends that is honest but for `change`.
async fn down_after(change: impl FnOnce(&mut LinkWelcome, &mut Grant)) -> String {
    let (_tcp, _, mut says) = honest().await;
    let [Heard::Welcome(welcome), Heard::Grant(grant)] = says.as_mut_slice() else {
        panic!("a welcome and a grant")
    };
    change(welcome, grant);
    ChildLink::open(serve_lies(says).await).down().await
}

#[tokio::test]
async fn grants_that_lie_are_not_taken() {
    let reason = down_after(|_, grant| grant.windows[1].bytes += 1).await;
    assert!(reason.contains("`windows`") && reason.contains("size"), "{reason}");
    let reason = down_after(|_, grant| grant.windows[1].blob = 2).await;
    assert!(reason.contains("`windows`"), "{reason}");
    let reason = down_after(|_, grant| grant.windows[1] = grant.windows[0]).await;
    assert!(reason.contains("two windows"), "{reason}");
    let reason = down_after(|_, grant| grant.in_flight_max = 0).await;
    assert!(reason.contains("`grant`"), "{reason}");
    let reason = down_after(|_, grant| grant.expires_ms = u32::MAX).await;
    assert!(reason.contains("`grant`"), "{reason}");
    let reason = down_after(|welcome, _| welcome.peer_id = vec![9; 16]).await;
    assert!(reason.contains("another peer"), "{reason}");
    let reason = down_after(|welcome, _| welcome.protocol_version = 7).await;
    assert!(reason.contains("version 7"), "{reason}");
    let wrong_secret = |welcome: &mut LinkWelcome, _: &mut Grant| {
        welcome.tcp.as_mut().expect("set").secret = vec![0; 32];
    };
    let reason = down_after(wrong_secret).await;
    assert!(reason.starts_with("the data link failed: "), "{reason}");
}

#[tokio::test]
async fn a_rate_that_is_granted_comes_with_the_link() {
    let (_tcp, _, mut says) = honest().await;
    let Some(Heard::Grant(grant)) = says.last_mut() else { panic!("a grant") };
    grant.bytes_per_second_max = 1 << 20;
    let mut child = ChildLink::open(serve_lies(says).await);
    assert_eq!(child.up().await.pacer.map(|pacer| pacer.rate()), Some(1 << 20));
}

#[tokio::test]
async fn a_parent_that_does_not_renew_is_left_when_its_grant_ends() {
    let start = Instant::now();
    let reason = down_after(|_, grant| grant.expires_ms = 300).await;
    assert_eq!(reason, "the grant expired");
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn a_data_link_that_ends_takes_the_link_down() {
    let (tcp, link, says) = honest().await;
    let mut child = ChildLink::open(serve_lies(says).await);
    child.up().await;
    tcp.revoke(link);
    assert_eq!(child.down().await, "the data link ended");
}

#[tokio::test]
async fn what_a_parent_says_later_is_checked_too() {
    let said = [
        (
            Heard::Have(HaveRuns {
                runs: vec![control::Run { start: 0, end: PIECES + 1 }],
                ..HaveRuns::default()
            }),
            "`runs`",
        ),
        (Heard::Refusal(Refusal { reason: "not\nyou".to_owned() }), "the peer refused: notyou"),
        // A grant that answers no request would move the expiry as often as the parent likes.
        (Heard::Grant(Grant::default()), "`grant`"),
    ];
    for (kind, expect) in said {
        let (_tcp, _, mut says) = honest().await;
        says.push(kind);
        let mut child = ChildLink::open(serve_lies(says).await);
        child.up().await;
        let reason = child.down().await;
        assert!(reason.contains(expect), "{reason}");
    }
    let (_tcp, _, mut says) = honest().await;
    says.push(says[1].clone());
    let reason = ChildLink::open(serve_lies(says).await).down().await;
    assert!(reason.contains("nobody asked"), "{reason}");
}

#[tokio::test]
async fn a_parent_that_repeats_itself_is_heard_once() {
    let (_tcp, _, mut says) = honest().await;
    let have =
        |start, end| Heard::Have(HaveRuns { runs: vec![control::Run { start, end }], ..HaveRuns::default() });
    says.extend([have(0, 2), have(0, 2), have(1, 2), have(0, 3)]);
    let mut child = ChildLink::open(serve_lies(says).await);
    child.up().await;
    assert_eq!(child.have().await, [Run::new(0, 2)]);
    assert_eq!(child.have().await, [Run::new(2, 3)]);
}
