//! Tests of the way to a peer, with cards of a fabric within this process.

use std::{future::pending, net::SocketAddr, sync::Arc};

use identity::Security;
use memory::Region;
use tokio::{net::TcpListener, time::timeout};
use transport::{Exports, tcp};
use transport_rdma::{Rdma, fake::Fabric};

use super::*;
use crate::{
    children::Children,
    lanes::Lanes,
    service::{self, GRANT_EXPIRY, ServiceOptions, Share, Shares},
};

/// How long anything may take: far more than it does.
const LONG: Duration = Duration::from_mins(1);

/// A peer that shares nothing.
struct Nothing {
    tests: LinkTests,
    exports: Exports,
    transports: Transports,
    lanes: Arc<Lanes>,
}

impl Shares for Nothing {
    fn share(&self, artifact: &ArtifactId) -> Option<Share> {
        self.tests.share(artifact, (&self.exports, self.transports.rdma(), &self.lanes))
    }
}

async fn start(transports: Transports) -> (LinkTestOptions, Arc<Nothing>) {
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let exports = Exports::new();
    let tcp = tcp::Server::bind(any_port, exports.clone(), Security::Plain).await.unwrap();
    let running = tcp.clone();
    tokio::spawn(async move { running.run(pending()).await });
    let options = ServiceOptions {
        me: PeerId::new([7; 16]),
        data_address: tcp.local_addr().to_string(),
        tcp,
        transports: transports.clone(),
        security: PeerSecurity::default(),
        grant_expiry: GRANT_EXPIRY,
        children: Children::none(),
    };
    let listener = TcpListener::bind(any_port).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let peer = Arc::new(Nothing { tests: LinkTests::default(), exports, transports, lanes: Arc::default() });
    let shares = Arc::clone(&peer);
    tokio::spawn(async move { service::serve(listener, shares, options, pending()).await });
    (LinkTestOptions { address, security: PeerSecurity::default(), devices: Vec::new() }, peer)
}

fn with_card(rdma: &Rdma) -> Transports {
    let transports = Transports::over(rdma.clone(), TransportMode::Auto);
    transports.register(&Region::anonymous(4096).unwrap()).unwrap();
    transports
}

fn strict(rdma: &Rdma) -> Transports {
    Transports::over(rdma.clone(), TransportMode::Rdma)
}

fn assert_plausible(figures: &LinkFigures) {
    assert!(figures.bytes_per_second > 0.0, "{figures:?}");
    assert!(Duration::ZERO < figures.median && figures.median <= figures.p99, "{figures:?}");
}

/// Engines and the other end hear of a link's end a moment later.
async fn until(what: impl Fn() -> bool) {
    let waiting = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(LONG, waiting).await.expect("it is so at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn both_transports_are_measured_and_nothing_is_left() {
    let fabric = Fabric::new();
    let (options, peer) = start(with_card(&fabric.adapter(1))).await;
    let tcp = measure(&options, Transports::tcp()).await;
    let report = over_rdma(&options, tcp, Ok(strict(&fabric.adapter(1)))).await;
    assert_plausible(report.tcp.as_ref().unwrap());
    assert_plausible(report.rdma.as_ref().unwrap());
    assert_eq!(report.rails.len(), 1);
    until(|| !peer.tests.is_read() && fabric.queue_pairs() == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_without_a_card_is_reached_over_tcp_and_the_reason_is_told() {
    let (options, peer) = start(Transports::tcp()).await;
    let report =
        over_rdma(&options, Err("not tried".to_owned()), Ok(strict(&Fabric::new().adapter(1)))).await;
    let reason = report.rdma.unwrap_err();
    assert!(reason.contains("serves over `tcp` only"), "{reason}");
    assert_plausible(&measure(&options, Transports::tcp()).await.unwrap());
    until(|| !peer.tests.is_read()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_answers_there_is_a_reason() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let options = LinkTestOptions { address, security: PeerSecurity::default(), devices: Vec::new() };
    let reason = timeout(LONG, measure(&options, Transports::tcp())).await.unwrap().unwrap_err();
    assert!(reason.contains("refused"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_so_many_test_at_a_time_and_nobody_reads_anything_else() {
    let (_, peer) = start(Transports::tcp()).await;
    assert!(peer.share(&ArtifactId([1; 32])).is_none() && !peer.tests.is_read());
    let first = peer.share(&artifact()).unwrap();
    let readers = [first.children.enter(PeerId::new([1; 16])), first.children.enter(PeerId::new([2; 16]))];
    assert!(readers.iter().all(Option::is_some) && peer.share(&artifact()).is_none());
    drop(readers);
    assert!(peer.share(&artifact()).is_some());
    drop(first);
    assert!(!peer.tests.is_read());
}
