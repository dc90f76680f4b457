//! From a landing with whatever is in it to one whose every blob is proved.
//!
//! Owns: resume, the rounds of a blob that is only checked as a whole, the proofs. Does not own: where the landing
//! lies, or what its blobs become.

use std::{
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::Duration,
};

use modelpack::{layout::BlobIndex, piece_map::PieceMap};
use planner::PeerId;
use store::{BlobProof, StoreError};
use swarm::Config;
use tokio::sync::{mpsc, oneshot};

use crate::{
    download::{Download, Downloaded},
    error::PeerError,
    fetch::Ground,
    origin::Origin,
    progress::Stage,
};

/// Times a blob is fetched that turns out wrong as a whole: once more, in case a single byte was damaged on its way.
const ROUNDS_MAX: u32 = 2;

/// A landing whose every blob is proved.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) proofs: Vec<BlobProof>,
    pub(crate) bounded_by: Option<Stage>,
    pub(crate) bound: Option<Duration>,
}

/// Does a piece of blocking work off the runtime's threads. Once it has begun it goes on, also if nobody waits any
/// more.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = oneshot::channel();
    let work = AssertUnwindSafe(work);
    let started = detach(move || {
        // A caller that was cancelled needs no answer.
        let _ = done.send(panic::catch_unwind(work));
    });
    started.expect("a process that cannot start a thread is of no use");
    match result.await.expect("the thread answers, or its panic does") {
        Ok(value) => value,
        Err(panicked) => panic::resume_unwind(panicked),
    }
}

/// Runs `work` on a thread that nobody waits for. Not one of the runtime's own: a runtime does not end before those,
/// and hashing a model takes minutes.
pub(crate) fn detach(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new().name("blocking".into()).spawn(work).map(drop)
}

/// What is here already: finished blobs of a store, and what the journal claims and is still so.
pub(crate) async fn resume(ground: &Arc<Ground>) -> Result<PieceMap, PeerError> {
    let mut have = ground.landing.verified();
    let mut claims = ground.landing.claims();
    claims.retain(|claim| !have.contains(claim.piece));
    let mut claims = claims.into_iter();
    let (report, mut results) = mpsc::unbounded_channel();
    let mut waiting = 0;
    loop {
        // Few at a time: those that were begun hold the landing, also when the pull is given up.
        for claim in claims.by_ref().take(ground.workers.count() * 2 - waiting) {
            let (ground, report) = (Arc::clone(ground), report.clone());
            waiting += 1;
            ground.clone().workers.run(move || {
                let result = ground.artifact.recheck(&ground.landing, &claim);
                // The landing is free before anybody hears that the last claim was looked at.
                drop(ground);
                // A pull that was given up needs no answer.
                let _ = report.send((claim.piece, result));
            });
        }
        if waiting == 0 {
            break;
        }
        let Some((piece, is_good)) = results.recv().await else { break };
        waiting -= 1;
        if is_good? {
            have.insert(piece);
        }
    }
    let layout = ground.artifact.layout();
    ground.counters.was_here(have.iter().map(|piece| layout.piece_bytes(piece)).sum());
    Ok(have)
}

/// A pull from the origin alone.
pub(crate) async fn fill_alone(
    ground: &Arc<Ground>,
    origin: Option<Origin>,
    mut have: PieceMap,
) -> Result<Filled, PeerError> {
    let mut round = 1;
    loop {
        let config = alone(ground.artifact.manifest.archives().len());
        let download = Download::new(
            Arc::clone(ground),
            origin.clone(),
            (),
            (config, have.clone()),
            mpsc::unbounded_channel(),
        );
        let downloaded = download.run().await?;
        match prove(ground, downloaded).await? {
            Proved::All(filled) => return Ok(filled),
            Proved::Wrong(blobs, error) => {
                // Also after the last round: a later run must not resume from bytes that are known to be wrong.
                have = forget(ground, &blobs)?;
                if let Some(origin) = &origin {
                    origin.distrust(&ground.artifact, &blobs);
                }
                if round == ROUNDS_MAX {
                    return Err(wrong_bytes(ground, blobs[0], error));
                }
                tracing::warn!(%error, files = blobs.len(), "not what the digest says: fetched again");
                if let Some(origin) = &origin {
                    origin.distrust_mirrors();
                }
                round += 1;
            }
        }
    }
}

/// How a swarm of one reads. As many archives come side by side as are unpacked so: one that is not begun would be left to
/// do when the last byte is here.
fn alone(archives: usize) -> Config {
    let defaults = Config::new(PeerId::new([0; 16]), 0);
    let unpacking = u32::try_from(store::unpacking_threads(archives)).unwrap_or(u32::MAX);
    let origin_blobs_max = if archives > 0 { unpacking } else { defaults.origin_blobs_max };
    Config { standalone: true, origin_blobs_max, ..defaults }
}

/// What the bytes of a download turned out to be.
pub(crate) enum Proved {
    All(Filled),
    /// These blobs are wrong as a whole, though nobody can say where; and how the first is.
    Wrong(Vec<BlobIndex>, StoreError),
}

/// Compares every blob with the manifest.
pub(crate) async fn prove(ground: &Arc<Ground>, downloaded: Downloaded) -> Result<Proved, PeerError> {
    let ground = Arc::clone(ground);
    blocking(move || {
        let Downloaded { mut hashers, bounded_by, bound, members: _ } = downloaded;
        let (artifact, landing) = (&ground.artifact, &ground.landing);
        let (mut proofs, mut wrong, mut first_error) = (Vec::new(), Vec::new(), None);
        for blob in artifact.layout().blobs() {
            let proof = match hashers.remove(&blob) {
                Some(hasher) => landing.prove_streamed(blob, hasher, &artifact.blob(blob).digest),
                None => artifact.prove(landing, blob),
            };
            match proof {
                Ok(proof) => proofs.push(proof),
                Err(error) if error.class() == store::ErrorClass::Integrity => {
                    wrong.push(blob);
                    first_error.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(match first_error {
            Some(error) => Proved::Wrong(wrong, error),
            None => Proved::All(Filled { proofs, bounded_by, bound }),
        })
    })
    .await
}

/// In the user's words: the name of a file instead of where it was landing.
pub(crate) fn wrong_bytes(ground: &Ground, blob: BlobIndex, error: StoreError) -> PeerError {
    let StoreError::Digest { expected, found, .. } = error else { return error.into() };
    let what = format!("it is {found}, not {expected}");
    PeerError::WrongBytes { path: ground.artifact.path_of(blob), what }
}

/// Forgets blobs that are wrong; says what is left.
pub(crate) fn forget(ground: &Ground, blobs: &[BlobIndex]) -> Result<PieceMap, StoreError> {
    let layout = ground.artifact.layout();
    let mut have = PieceMap::full(layout.piece_count());
    for blob in blobs {
        ground.landing.forget_blob(*blob)?;
        ground.counters.undone(layout.blob_bytes(*blob));
        for piece in layout.pieces_of(*blob).pieces() {
            have.remove(piece);
        }
    }
    Ok(have)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as std_mpsc;

    use super::*;
    use crate::{
        buffers::Buffers, progress::Counters, sinks::LandingRule, testing::Landed, transports::Means,
        workers::Workers,
    };

    #[test]
    fn a_runtime_ends_while_blocking_work_goes_on() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (go, wait) = std_mpsc::channel::<()>();
        let (ended, end) = std_mpsc::channel();
        let work = blocking(move || {
            wait.recv_timeout(Duration::from_secs(10)).unwrap();
            ended.send(()).unwrap();
        });
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = work => panic!("it waits"),
                () = std::future::ready(()) => {}
            }
        });
        drop(runtime);
        go.send(()).unwrap();
        end.recv_timeout(Duration::from_secs(30)).expect("what was begun goes on to its end");
    }

    #[tokio::test]
    #[should_panic(expected = "a bug")]
    async fn a_panic_of_blocking_work_is_its_callers() {
        blocking(|| panic!("a bug")).await;
    }

    #[tokio::test]
    async fn a_resume_that_is_given_up_leaves_little_work_behind() {
        let landed = Landed::of(200);
        let (artifact, landing) = landed.reopened();
        let total = artifact.layout().total_bytes();
        let threads = (Workers::start(), Buffers::new());
        let counters = Counters::new(total, Arc::default());
        let landing = (landing, LandingRule::default());
        let ground = Ground::new(artifact, landing, threads, counters, (Means::default(), None));
        let begun = 2 * ground.workers.count();
        {
            let resume = resume(&ground);
            tokio::pin!(resume);
            tokio::select! {
                biased;
                _ = &mut resume => panic!("there is work to wait for"),
                () = std::future::ready(()) => {}
            }
            assert!(Arc::strong_count(&ground) <= 1 + begun);
        }
        let have = tokio::time::timeout(Duration::from_secs(30), resume(&ground)).await.unwrap().unwrap();
        assert!(have.is_full());
        assert_eq!(ground.counters.progress().local, total);
    }
}
