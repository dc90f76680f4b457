//! Limits bind: what moves takes at least the time that it may.
//!
//! Only that is tested, and not that it takes no longer: a machine that is busy is no failure.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use modelpack::{layout::PIECE_BYTES, reference::Reference};
use peer::{Cards, TransportMode, Transports};
use transport_rdma::fake::Fabric;

use crate::{
    fleet::Fleet,
    origin::{Holding, Origin},
    rdma,
    support::{Model, pull_by},
};

const RATE: u64 = 8 << 20;
/// What may move beyond the rate: a piece, which is more than a burst.
const ALLOWANCE: u64 = 1 << 20;

fn limited() -> Transports {
    Transports::tcp().limited(RATE)
}

/// What that many bytes take at least.
fn least(bytes: u64) -> Duration {
    Duration::from_millis((bytes - ALLOWANCE) * 1000 / RATE)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_from_the_origin_keeps_to_its_limit() {
    let (model, top) = (Model::of(8), tempfile::tempdir().unwrap());
    let origin = Origin::honest(Holding::of(&model)).await;
    let begin = Instant::now();
    pull_by(limited(), origin.reference(), &top.path().join("out")).await.unwrap();
    assert!(begin.elapsed() >= least(model.bytes()), "{:?}", begin.elapsed());
    model.assert_in(&top.path().join("out"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_keeps_to_its_limit_and_so_does_a_parent() {
    let model = Model::of(8);
    let origin = Origin::honest(Holding::of(&model)).await;
    let mut fleet = Fleet::start(1).await;
    fleet.pull(0, origin.reference()).await.unwrap();
    // A child that may not receive more than so much, of a parent that may send what it can.
    fleet.transports = limited();
    let child = fleet.start_peer(1, None).await;
    fleet.peers.push(child);
    let reference = Reference::Fleet(model.digest());
    let begin = Instant::now();
    let report = fleet.pull(1, reference.clone()).await.unwrap();
    // On a starved machine a piece may be asked for twice.
    let most = model.bytes() + PIECE_BYTES;
    assert!((model.bytes()..=most).contains(&report.peer_bytes), "{report:?}");
    assert!(begin.elapsed() >= least(model.bytes()), "{:?}", begin.elapsed());

    // That one is now the only one who has it, and may not send more either.
    fleet.peers[0].task.abort();
    fleet.transports = Transports::tcp();
    for number in 2..4 {
        let child = fleet.start_peer(number, None).await;
        fleet.peers.push(child);
    }
    let begin = Instant::now();
    let reports = tokio::join!(fleet.pull(2, reference.clone()), fleet.pull(3, reference));
    let from_parent = begin.elapsed();
    for report in [reports.0, reports.1] {
        assert_eq!(report.unwrap().origin_bytes, 0);
    }
    // What one has, the other may have from it.
    assert!(from_parent >= least(model.bytes()), "{from_parent:?}");
    model.assert_in(&fleet.output(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_that_reads_by_itself_keeps_to_what_its_parent_grants_and_to_its_own_limit() {
    let (model, fabric) = (Model::of(8), Fabric::new());
    let card = || Transports::over(fabric.adapter(1), TransportMode::Auto);
    for (seed, child) in [(card().limited(RATE), card()), (card(), card().limited(RATE))] {
        let (fleet, reference) = rdma::fleet(&model, seed, vec![child]).await;
        let report = rdma::pull(&fleet, 0, &reference).await;
        model.assert_in(&fleet.output(0));
        assert_eq!((report.transport(), report.tcp_bytes), ("rdma", 0), "{report:?}");
        assert!(report.elapsed >= least(model.bytes()), "{report:?}");
    }
}

/// A machine whose only card has never moved anything, so that nobody else ever does.
fn quiet_card(root: &Path) -> Cards {
    let counters = root.join("sys/class/net/eth0/statistics");
    fs::create_dir_all(&counters).unwrap();
    for name in ["tx_bytes", "rx_bytes"] {
        fs::write(counters.join(name), "0").unwrap();
    }
    Cards::find(root, Some(RATE)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_gives_way_is_read_over_tcp_where_it_can_pace_and_a_child_that_does_is_not() {
    let (model, fabric, root) = (Model::of(4), Fabric::new(), tempfile::tempdir().unwrap());
    let card = || Transports::over(fabric.adapter(1), TransportMode::Auto);
    let gives_way = || card().giving_way(quiet_card(root.path())).unwrap();
    for (seed, child, transport) in [(gives_way(), card(), "tcp"), (card(), gives_way(), "rdma")] {
        let (fleet, reference) = rdma::fleet(&model, seed, vec![child]).await;
        let report = rdma::pull(&fleet, 0, &reference).await;
        model.assert_in(&fleet.output(0));
        assert_eq!(report.transport(), transport, "{report:?}");
        let told = report.fallback_reason.unwrap_or_default();
        assert_eq!(told.contains("gives way"), transport == "tcp", "{told}");
    }
}
