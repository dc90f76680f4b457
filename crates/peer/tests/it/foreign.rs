//! Fleets that pull what another tool published: no BLAKE3 root, so that no single piece is proved.

use modelpack::digest::Sha256Digest;
use peer::{Blamed, ErrorClass, PullReport};

use crate::{
    fleet::Fleet,
    origin::{Holding, Origin},
    support::{Model, until},
};

/// So many peers pull it at once; together they read the origin once.
async fn check_exchanged(peers: usize, holding: fn(&Model) -> Holding) {
    let model = Model::of(60);
    let origin = Origin::honest(holding(&model)).await;
    let fleet = Fleet::start(peers).await;
    let mut from_origin = 0;
    for (number, report) in fleet.pull_all(&origin.reference()).join_all().await {
        let report = report.unwrap();
        model.assert_in(&fleet.output(number));
        from_origin += report.origin_bytes;
    }
    assert!(from_origin * 100 <= model.bytes() * 105, "{from_origin} of {}", model.bytes());
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_exchange_a_foreign_artifact_and_the_origin_gives_it_once() {
    check_exchanged(4, Holding::foreign).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_whose_trees_are_lost_is_exchanged_too() {
    check_exchanged(3, Holding::without_trees).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_a_foreign_artifact_gives_it_to_later_ones() {
    let model = Model::of(20);
    let origin = Origin::honest(Holding::foreign(&model)).await;
    let fleet = Fleet::start(2).await;
    let first = fleet.pull(0, origin.reference()).await.unwrap();
    assert_eq!(first.origin_bytes, model.bytes());
    let second = fleet.pull(1, origin.reference()).await.unwrap();
    model.assert_in(&fleet.output(1));
    assert_eq!((second.origin_bytes, second.peer_bytes), (0, model.bytes()));
}

/// How often the whole of it landed: once, and once in each repair.
fn times_landed(model: &Model, report: &PullReport) -> u64 {
    (report.staged_bytes + report.direct_bytes + model.bytes() / 2) / model.bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_whose_origin_is_wrong_spoils_nothing_and_is_found_out() {
    let model = Model::of(60);
    let holding = Holding::foreign(&model);
    let weights = Sha256Digest::of(&model.files[1].1).to_string();
    let mut damaged = model.files[1].1.clone();
    damaged.iter_mut().step_by(1 << 18).for_each(|byte| *byte ^= 1);
    let right = Origin::honest(holding.clone()).await;
    let wrong = Origin::honest(holding.with_blob(&weights, &damaged)).await;
    let fleet = Fleet::start(3).await;
    // It begins to read before the others come, and vouches for what its origin gives.
    let liar = tokio::spawn(fleet.pull(0, wrong.reference()));
    until(|| wrong.asked() > 0).await;
    let pulls = [fleet.pull(1, right.reference()), fleet.pull(2, right.reference())].map(tokio::spawn);
    let (mut asked, mut times, mut reports) = (0, 0, Vec::new());
    for (number, pull) in (1..).zip(pulls) {
        let report = pull.await.unwrap().unwrap();
        model.assert_in(&fleet.output(number));
        asked += report.origin_bytes;
        times = times.max(times_landed(&model, &report));
        reports.push(report);
    }
    // Once for everybody, and again in each repair. Where the one whose origin is wrong is elected first, it gives up, what
    // the next one adds in that repair is mixed with what it vouched for, and there is a second.
    assert!((2..=3).contains(&times), "{times} times: {reports:?}");
    let most = model.bytes() * (100 * times + 5) / 100;
    assert!(asked <= most, "{asked} of {}, {times} times: {reports:?}", model.bytes());
    // Whoever repaired it knows who was wrong; the relays are not.
    let blamed: Vec<_> = reports.iter().flat_map(|report| &report.blamed).collect();
    assert!(!blamed.is_empty(), "{reports:?}");
    for Blamed { peer, reason } in blamed {
        assert!(peer.starts_with("peer-0 at "), "{peer}");
        assert!(reason.ends_with(" wrong bytes of `model.bin`"), "{reason}");
    }
    match liar.await.unwrap() {
        // The others gave it the right bytes.
        Ok(_) => model.assert_in(&fleet.output(0)),
        Err(error) => {
            assert_eq!(error.class(), ErrorClass::Integrity, "{error:?}");
            assert!(!fleet.output(0).exists(), "nothing is published");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_wrong_for_everybody_publishes_nothing() {
    let model = Model::of(20);
    let weights = Sha256Digest::of(&model.files[1].1).to_string();
    let mut damaged = model.files[1].1.clone();
    damaged[3 << 20] ^= 1;
    let origin = Origin::honest(Holding::foreign(&model).with_blob(&weights, &damaged)).await;
    let fleet = Fleet::start(3).await;
    for (number, report) in fleet.pull_all(&origin.reference()).join_all().await {
        let error = report.unwrap_err();
        assert_eq!(error.class(), ErrorClass::Integrity, "{error:?}");
        assert!(!fleet.output(number).exists(), "nothing is published");
    }
}
