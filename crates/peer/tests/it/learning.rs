//! What a peer has moved teaches its scheduler what its card does.

use std::time::Duration;

use identity::Security;
use modelpack::reference::Reference;
use peer::Transports;
use planner::PeerStatus;
use wire::schedulers::Schedulers;

use crate::{
    fleet::Fleet,
    support::{Model, PATIENCE},
};

/// What each of two parents may send in a second.
const RATE: u64 = 8 << 20;

/// What the scheduler knows of a peer, once it is `so`.
async fn status_of(fleet: &Fleet, name: &str, so: impl Fn(&PeerStatus) -> bool) -> PeerStatus {
    let schedulers = Schedulers::new(&Security::Plain, vec![fleet.scheduler().to_owned()]);
    let wait = async {
        loop {
            let status = scheduler::inquire(&schedulers, &Security::Plain).await.unwrap().status;
            if let Some(peer) = status.peers.into_iter().find(|peer| peer.name == name && so(peer)) {
                return peer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the scheduler hears of it in time")
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_two_parents_learns_and_whoever_only_sends_learns_a_lower_bound() {
    // Five seconds, at what both may send.
    let model = Model::of(80);
    let mut fleet = Fleet::start(0).await;
    let layout = fleet.top.path().join("layout");
    let Reference::Layout(layout) = model.write_layout(&layout) else { unreachable!() };
    fleet.transports = Transports::tcp().limited(RATE);
    for number in 0..2 {
        let seed = fleet.start_peer(number, Some(layout.clone())).await;
        fleet.peers.push(seed);
    }
    fleet.transports = Transports::tcp();
    let child = fleet.start_peer(2, None).await;
    fleet.peers.push(child);
    let before = status_of(&fleet, "peer-2", |_| true).await;
    assert_eq!((before.nic_rate, before.learned), (None, None), "it has moved nothing");
    fleet.pull(2, Reference::Fleet(model.digest())).await.unwrap();
    let child = status_of(&fleet, "peer-2", |peer| peer.learned.is_some()).await;
    let learned = child.learned.unwrap();
    assert!(learned.is_full && learned.rate <= 2 * RATE + RATE / 4, "{child:?}");
    let seed = status_of(&fleet, "peer-1", |peer| peer.learned.is_some()).await;
    let learned = seed.learned.unwrap();
    assert_eq!(seed.nic_rate, Some(RATE), "its limit is what plans count with");
    assert!(!learned.is_full, "nobody keeps it waiting: {seed:?}");
}
