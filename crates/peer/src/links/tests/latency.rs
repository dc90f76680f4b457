//! How soon a child hears of a piece, over loopback. It measures, and so is run by name only:
//! `cargo test --release -p peer --lib -- --ignored --nocapture announce`.

use super::*;

/// Links that are opened, each of which hears of two pieces one after another.
const LINKS: u32 = 400;

/// DESIGN §6: the longest that all but one in a hundred may take.
const P99_MAX: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures; a loaded machine makes it fail"]
async fn announce_latency() {
    let mut taken = Vec::new();
    for number in 0..LINKS {
        let parent = ParentPeer::start(GRANT_EXPIRY).await;
        let mut child = ChildLink::open(parent.address);
        child.up().await;
        child.have().await;
        // The first after a pause; the second at any distance from it, most often within the time of one batch.
        tokio::time::sleep(Duration::from_millis(3)).await;
        for piece in [2, 3] {
            let published = std::time::Instant::now();
            parent.have.publish(Run::one(PieceIndex(piece)));
            let have = child.have().await;
            taken.push(published.elapsed());
            assert_eq!(have, [Run::one(PieceIndex(piece))]);
            let gap = std::time::Instant::now() + Duration::from_micros(u64::from(number % 20) * 50);
            while std::time::Instant::now() < gap {
                tokio::task::yield_now().await;
            }
        }
    }
    taken.sort_unstable();
    let at = |percent: usize| taken[taken.len() * percent / 100];
    eprintln!("announced after {:?} (p50), {:?} (p90), {:?} (p99)", at(50), at(90), at(99));
    assert!(at(99) <= P99_MAX, "{:?}", at(99));
}
