//! `modelctl pull` without a local peer: from the origin straight to the files' final offsets.
//!
//! Owns: the order of a pull, and what it reports. Does not own: the daemon's pulls (`transfer`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use modelpack::{
    digest::Sha256Digest,
    manifest::{Manifest, ModelFile},
    reference::Reference,
};
use registry::Access;
use store::{CompleteRecord, Contents, OpenedOutput, Output, OutputDir, Published, free_bytes};

use crate::{
    artifact::Artifact,
    buffers::Buffers,
    descriptors,
    error::PeerError,
    fetch::Ground,
    fill::{blocking, fill_alone, resume},
    origin::{self, Origin},
    progress::{Counters, Progress},
    security::PeerSecurity,
    workers::Workers,
};

/// What is to be pulled, and where to.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The artifact.
    pub reference: Reference,
    /// How its origin is reached.
    pub access: Access,
    /// The output directory.
    pub output: PathBuf,
}

/// What a pull came to.
#[derive(Clone, Debug)]
pub struct PullReport {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// Files in the directory.
    pub files: usize,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Bytes of blobs read from the origin, what was discarded included.
    pub origin_bytes: u64,
    /// Bytes of blobs read from other peers.
    pub peer_bytes: u64,
    /// Bytes of blobs that were on this machine.
    pub local_bytes: u64,
    /// Bytes that came over TCP links between peers.
    pub tcp_bytes: u64,
    /// From the command to the published directory.
    pub elapsed: Duration,
    /// From the first request for bytes to the first good piece.
    pub first_piece: Option<Duration>,
    /// The least time in which the swarm could have been served, if every rate is known.
    pub bound: Option<Duration>,
    /// The stage that the pipeline waited on longest.
    pub bounded_by: Option<String>,
    /// Blobs whose bytes were copied from the local peer instead of shared with it.
    pub copied: u32,
    /// The output directory.
    pub output: PathBuf,
}

/// What a pull would do.
#[derive(Clone, Debug)]
pub struct PullPlan {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// The files.
    pub files: Vec<ModelFile>,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Whether each blob can be proved piece by piece.
    pub is_anchored: bool,
    /// Whether the output directory holds the artifact already, unchanged.
    pub is_complete: bool,
    /// Bytes free where the output would lie.
    pub free: u64,
}

impl PullPlan {
    /// Whether it would fit.
    pub fn fits(&self) -> bool {
        self.is_complete || self.free >= self.bytes
    }
}

/// A pull under way. Its progress may be asked for at any time.
#[derive(Clone, Debug)]
pub struct PullWatch(Arc<std::sync::Mutex<WatchState>>);

#[derive(Debug, Default)]
struct WatchState {
    counters: Option<Arc<Counters>>,
    last: Progress,
}

impl PullWatch {
    /// A watch of a pull that has not begun.
    #[expect(clippy::new_without_default, reason = "a default watch would look like a running one")]
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// How far the pull is.
    pub fn progress(&self) -> Progress {
        let state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.counters.as_ref().map_or(state.last, |counters| counters.progress())
    }

    pub(crate) fn count(&self, counters: &Arc<Counters>) {
        let mut state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        state.counters = Some(Arc::clone(counters));
    }

    pub(crate) fn set(&self, progress: Progress) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).last = progress;
    }
}

/// Pulls from the origin alone. Cancelled at any point, it resumes when it is called again.
pub async fn pull(request: PullRequest, watch: &PullWatch) -> Result<PullReport, PeerError> {
    descriptors::allow_many();
    let start = Instant::now();
    let (origin, artifact) = origin::open(&request.reference, request.access).await?;
    let artifact = Arc::new(artifact);
    let counters = Counters::new(artifact.layout().total_bytes(), Arc::default());
    watch.count(&counters);
    let (dir, contents) = (request.output.clone(), Contents::from(&artifact.manifest));
    let published = match blocking(move || OutputDir::open(&dir, contents)).await? {
        OpenedOutput::Complete(record) => {
            counters.was_here(artifact.layout().total_bytes());
            return Ok(report(&artifact, &counters, start, found(request.output, record)));
        }
        OpenedOutput::Fresh(output) => fill_and_publish(&artifact, origin, output, &counters).await?,
    };
    Ok(report(&artifact, &counters, start, published))
}

/// What filled and published a directory.
struct Done {
    published: Published,
    bounded_by: Option<&'static str>,
}

fn found(dir: PathBuf, record: CompleteRecord) -> Done {
    Done { published: Published { dir, record, copied: 0 }, bounded_by: None }
}

async fn fill_and_publish(
    artifact: &Arc<Artifact>,
    origin: Origin,
    output: Output,
    counters: &Arc<Counters>,
) -> Result<Done, PeerError> {
    let landing = output.landing();
    let allocating = Arc::clone(&landing);
    blocking(move || allocating.preallocate()).await?;
    let threads = (Workers::start(), Buffers::new());
    let ground = Ground::new(
        Arc::clone(artifact),
        landing,
        threads,
        Arc::clone(counters),
        (PeerSecurity::default(), None),
    );
    let have = resume(&ground).await?;
    let filled = fill_alone(&ground, Some(origin), have).await?;
    let bounded_by = filled.bounded_by.map(crate::progress::Stage::name);
    let published = blocking(move || output.publish(filled.proofs)).await?;
    Ok(Done { published, bounded_by })
}

fn report(artifact: &Artifact, counters: &Counters, start: Instant, done: Done) -> PullReport {
    let Progress { total, origin, peer, local, .. } = counters.progress();
    PullReport {
        digest: artifact.manifest.digest(),
        files: done.published.record.files.len(),
        bytes: total,
        origin_bytes: origin,
        peer_bytes: peer,
        local_bytes: local,
        tcp_bytes: counters.tcp_bytes(),
        elapsed: start.elapsed(),
        first_piece: counters.first_piece(),
        bound: None,
        bounded_by: done.bounded_by.map(str::to_owned),
        copied: done.published.copied,
        output: done.published.dir,
    }
}

/// Says what a pull would do, and touches nothing.
pub async fn plan_pull(request: PullRequest) -> Result<PullPlan, PeerError> {
    let (_, artifact) = origin::open(&request.reference, request.access).await?;
    let manifest = artifact.manifest.clone();
    let is_anchored = artifact.is_anchored();
    blocking(move || {
        let is_complete = is_complete(&request.output, &manifest)?;
        Ok(PullPlan {
            digest: manifest.digest(),
            files: manifest.files().to_vec(),
            bytes: manifest.layout().total_bytes(),
            is_anchored,
            is_complete,
            free: free_bytes(nearest_existing(&request.output))?,
        })
    })
    .await
}

fn is_complete(dir: &Path, manifest: &Manifest) -> Result<bool, PeerError> {
    if !dir.is_dir() {
        return Ok(false);
    }
    let Some(record) = CompleteRecord::load(dir)? else { return Ok(false) };
    Ok(record.digest == manifest.digest() && store::verify_record(dir, &record).is_ok())
}

fn nearest_existing(path: &Path) -> &Path {
    let there = path.ancestors().find(|at| !at.as_os_str().is_empty() && at.exists());
    there.unwrap_or(Path::new("."))
}
