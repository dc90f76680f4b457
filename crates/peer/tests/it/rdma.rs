//! Fleets whose peers reach one another through cards of a fabric within this process, and some that do not.

use modelpack::reference::Reference;
use peer::{PullReport, PullWatch, TransportMode, Transports};
use transport_rdma::{Rdma, fake::Fabric};

use crate::{
    fleet::Fleet,
    support::{Model, until},
};

/// A seed with the model, and peers that read from it, each with its transports.
pub(crate) async fn fleet(model: &Model, seed: Transports, peers: Vec<Transports>) -> (Fleet, Reference) {
    let mut fleet = Fleet::start(0).await;
    let Reference::Layout(layout) = model.write_layout(&fleet.top.path().join("layout")) else {
        unreachable!("it is a layout")
    };
    for (number, transports) in peers.into_iter().enumerate() {
        fleet.transports = transports;
        let running = fleet.start_peer(number, None).await;
        fleet.peers.push(running);
    }
    fleet.transports = seed;
    let seed = fleet.start_peer(99, Some(layout)).await;
    fleet.peers.push(seed);
    (fleet, Reference::Fleet(model.digest()))
}

fn auto(rdma: &Rdma) -> Transports {
    Transports::over(rdma.clone(), TransportMode::Auto)
}

/// Pulls through a peer, once the scheduler knows the seed.
pub(crate) async fn pull(fleet: &Fleet, number: usize, reference: &Reference) -> PullReport {
    loop {
        match fleet.pull(number, reference.clone()).await {
            Ok(report) => return report,
            Err(error) => assert!(error.to_string().contains("cannot learn from the fleet"), "{error:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_with_cards_moves_everything_over_rdma() {
    let (model, fabric) = (Model::of(40), Fabric::new());
    let cards: Vec<_> = (0..4).map(|_| fabric.adapter(1)).collect();
    let (fleet, reference) = fleet(&model, auto(&cards[3]), cards[..3].iter().map(auto).collect()).await;
    pull(&fleet, 0, &reference).await;
    std::fs::remove_dir_all(fleet.output(0)).unwrap();
    let pulls = (1..3).map(|number| fleet.pull(number, reference.clone()));
    for (number, report) in futures_util::future::join_all(pulls).await.into_iter().enumerate() {
        let report = report.unwrap();
        model.assert_in(&fleet.output(number + 1));
        assert_eq!((report.transport(), report.tcp_bytes), ("rdma", 0), "{report:?}");
        assert!(report.rdma_bytes >= model.bytes() && report.fallback_reason.is_none(), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_with_and_without_cards_make_one_fleet() {
    let (model, fabric) = (Model::of(20), Fabric::new());
    let (with, seed) = (fabric.adapter(1), fabric.adapter(1));
    let (fleet, reference) = fleet(&model, auto(&seed), vec![Transports::tcp(), auto(&with)]).await;
    let without_card = pull(&fleet, 0, &reference).await;
    assert_eq!((without_card.transport(), without_card.rdma_bytes), ("tcp", 0));
    assert_eq!(without_card.fallback_reason, None, "it never had a choice");
    let with_card = pull(&fleet, 1, &reference).await;
    model.assert_in(&fleet.output(1));
    // From whom it reads is the plan's to say: what comes from the peer without a card comes over TCP, with its reason.
    assert_eq!(with_card.tcp_bytes + with_card.rdma_bytes, with_card.origin_bytes + with_card.peer_bytes);
    if with_card.tcp_bytes > 0 {
        let reason = with_card.fallback_reason.expect("a reason");
        assert_eq!(reason, "the peer does not serve over RDMA: this peer has no RDMA device");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_card_fails_in_the_middle_goes_on_over_tcp() {
    let (model, fabric) = (Model::of(60), Fabric::new());
    let (child, seed) = (fabric.adapter(1), fabric.adapter(1));
    let (fleet, reference) = fleet(&model, auto(&seed), vec![auto(&child)]).await;
    let rail = child.rails()[0].name.clone();
    // The first reads are let through, the next ones stay out.
    let watch = PullWatch::new();
    let breaking = async {
        until(|| fabric.bytes_fetched(&rail) > 1 << 20).await;
        fabric.script().hold();
        fabric.port_down(&rail);
        fabric.script().release();
    };
    let pulling = async {
        loop {
            match fleet.pull_watched(0, reference.clone(), watch.clone()).await {
                Ok(report) => return report,
                Err(error) => assert!(error.to_string().contains("cannot learn"), "{error:?}"),
            }
        }
    };
    let (report, ()) = tokio::join!(pulling, breaking);
    model.assert_in(&fleet.output(0));
    assert!(report.rdma_bytes > 0, "{report:?}");
    assert_eq!(report.transport(), "mixed", "{report:?}");
    assert!(report.fallback_reason.is_some(), "{report:?}");
    assert_eq!(report.blamed, [], "nobody gave anything wrong");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_use_rdma_only_gets_nothing_over_tcp() {
    let (model, fabric) = (Model::of(3), Fabric::new());
    let strict = Transports::over(fabric.adapter(1), TransportMode::Rdma);
    let seed = fabric.adapter(1);
    let (fleet, reference) = fleet(&model, auto(&seed), vec![strict]).await;
    let report = pull(&fleet, 0, &reference).await;
    model.assert_in(&fleet.output(0));
    assert_eq!((report.transport(), report.tcp_bytes, report.rdma_bytes), ("rdma", 0, model.bytes()));
}
