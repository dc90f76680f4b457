//! `modelctl pull` without a local peer: straight to the files' final offsets.
//!
//! Owns: the order of a pull from the origin alone, and what any pull reports. Does not own: pulls that take part in a
//! fleet (`embedded`), or the daemon's (`transfer`).

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use modelpack::{digest::Sha256Digest, manifest::Manifest, reference::Reference, selection::Selection};
use planner::Priority;
use registry::{Access, MirrorBytes};
use store::{
    CompleteRecord, Contents, Landing, OpenedOutput, Output, OutputDir, Published, StoreError, free_bytes,
};

use crate::{
    artifact::Artifact,
    blame::Blamed,
    buffers::Buffers,
    delta, descriptors,
    error::PeerError,
    fetch::Ground,
    fill::{Filled, blocking, fill_alone, resume},
    origin,
    progress::{Counters, Progress, Stage, transport_of},
    sinks::{LandingMode, LandingRule},
    transports::{Means, Transports},
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
    /// How bytes of other peers land.
    pub landing: LandingMode,
    /// Which of its files are wanted.
    pub selection: Arc<Selection>,
    /// Directories and layouts on this machine, such as of an older version, whose bytes are taken where they are the
    /// same.
    pub bases: Vec<Reference>,
    /// How urgent it is, where its peer fetches or serves something else as well.
    pub priority: Priority,
}

/// What a pull came to.
#[derive(Clone, Debug)]
pub struct PullReport {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// Files in the directory.
    pub files: usize,
    /// Which part of the artifact they are, as on the command line; none for all of it.
    pub selection: Option<String>,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Bytes of blobs read from the origin, what was discarded included.
    pub origin_bytes: u64,
    /// Of these: what came from mirrors of the origin.
    pub mirrors: Vec<MirrorBytes>,
    /// Bytes of blobs read from other peers.
    pub peer_bytes: u64,
    /// Bytes of blobs that were on this machine.
    pub local_bytes: u64,
    /// Bytes that came over TCP links between peers.
    pub tcp_bytes: u64,
    /// Bytes that came over RDMA links between peers.
    pub rdma_bytes: u64,
    /// Bytes of good pieces that the network card wrote to their place in the file.
    pub direct_bytes: u64,
    /// Bytes of good pieces that went through a buffer. A piece that was read twice counts twice.
    pub staged_bytes: u64,
    /// How bytes landed: `direct`, `staged`, `mixed`, or `none` if none had to.
    pub landing: String,
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
    /// Why it was not pulled in the way that was asked for, or not all of it over RDMA where that was tried; the first
    /// reason, if there is one.
    pub fallback_reason: Option<String>,
    /// Peers that gave wrong bytes, which were refused.
    pub blamed: Vec<Blamed>,
    /// The output directory; none where it went into the local peer's store only.
    pub output: Option<PathBuf>,
}

/// What a pull would do.
#[derive(Clone, Debug)]
pub struct PullPlan {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// How many files are blobs of their own.
    pub files: usize,
    /// How many blobs are archives of further files.
    pub archives: usize,
    /// Bytes of all blobs.
    pub bytes: u64,
    /// Whether each blob can be proved piece by piece.
    pub is_anchored: bool,
    /// The output directory.
    pub output: PathBuf,
    /// Whether the output directory holds the artifact already, unchanged.
    pub is_complete: bool,
    /// Bytes free where the output would lie.
    pub free: u64,
}

impl PullReport {
    /// What came over links between peers came over this: `tcp`, `rdma`, `mixed` or `none`.
    pub fn transport(&self) -> &'static str {
        transport_of(self.tcp_bytes, self.rdma_bytes)
    }
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

/// Pulls from the origin alone, of `transports` only by their limit. Cancelled at any point, it resumes when it is called
/// again.
pub async fn pull(
    request: PullRequest,
    transports: Transports,
    watch: &PullWatch,
) -> Result<PullReport, PeerError> {
    descriptors::allow_many();
    let start = Instant::now();
    request.landing.check(&request.output)?;
    let (origin, artifact) = origin::open(&request.reference, request.access.clone()).await?;
    let contents = Contents::selected(&artifact.manifest, &request.selection).map_err(StoreError::from)?;
    let artifact = Arc::new(artifact.select(&request.selection)?);
    let bases = delta::open_bases(&request.bases).await?;
    let counters = Counters::new(artifact.layout().total_bytes(), Arc::default());
    watch.count(&counters);
    let asked = origin.clone();
    let done = match open_output(&request, contents).await? {
        OpenedOutput::Complete(record) => {
            counters.was_here(artifact.layout().total_bytes());
            Done::found(request.output, record)
        }
        OpenedOutput::Fresh(output) => {
            let ground_of = |landing| {
                let threads = (Workers::start(), Buffers::new());
                // The origin alone has no link that lands directly.
                let landing = (landing, LandingRule::default());
                let means = (Means { transports, ..Means::default() }, None);
                Ground::new(Arc::clone(&artifact), landing, threads, Arc::clone(&counters), means)
            };
            let fill = async |ground: &Arc<Ground>| {
                let have = resume(ground).await?;
                let have = delta::bring(ground, bases, Some(&origin), have).await?;
                fill_alone(ground, Some(origin), have).await
            };
            fill_and_publish(output, ground_of, fill).await?
        }
    };
    let report = report(&artifact, &counters, start, done);
    Ok(PullReport { mirrors: asked.mirror_bytes(), ..report })
}

/// What filled and published a directory.
pub(crate) struct Done {
    published: Published,
    bounded_by: Option<Stage>,
    bound: Option<Duration>,
}

impl Done {
    /// It was complete before.
    pub(crate) fn found(dir: PathBuf, record: CompleteRecord) -> Self {
        Self { published: Published { dir, record, copied: 0 }, bounded_by: None, bound: None }
    }
}

pub(crate) async fn open_output(
    request: &PullRequest,
    contents: Contents,
) -> Result<OpenedOutput, PeerError> {
    let dir = request.output.clone();
    Ok(blocking(move || OutputDir::open(&dir, contents)).await?)
}

/// Brings every blob into a directory and gives each file its name, whoever fills it.
pub(crate) async fn fill_and_publish(
    output: Output,
    ground_of: impl FnOnce(Arc<Landing>) -> Arc<Ground>,
    fill: impl AsyncFnOnce(&Arc<Ground>) -> Result<Filled, PeerError>,
) -> Result<Done, PeerError> {
    let landing = output.landing();
    let allocating = Arc::clone(&landing);
    let output = blocking(move || {
        allocating.preallocate()?;
        output.unpack_ahead();
        Ok::<_, StoreError>(output)
    })
    .await?;
    let ground = ground_of(landing);
    let Filled { proofs, bounded_by, bound } = fill(&ground).await?;
    let published = blocking(move || output.publish(proofs)).await?;
    Ok(Done { published, bounded_by, bound })
}

pub(crate) fn report(artifact: &Artifact, counters: &Counters, start: Instant, done: Done) -> PullReport {
    let Progress { total, origin, peer, local, .. } = counters.progress();
    PullReport {
        digest: artifact.manifest.digest(),
        files: done.published.record.files.len(),
        selection: done.published.record.selection.clone(),
        bytes: total,
        origin_bytes: origin,
        mirrors: Vec::new(),
        peer_bytes: peer,
        local_bytes: local,
        tcp_bytes: counters.tcp_bytes(),
        rdma_bytes: counters.rdma_bytes(),
        direct_bytes: counters.direct_bytes(),
        staged_bytes: counters.staged_bytes(),
        landing: counters.landing().to_owned(),
        elapsed: start.elapsed(),
        first_piece: counters.first_piece(),
        bound: done.bound,
        bounded_by: done.bounded_by.map(|stage| stage.name().to_owned()),
        copied: done.published.copied,
        fallback_reason: counters.fallback().map(str::to_owned),
        blamed: counters.blames.all(),
        output: Some(done.published.dir),
    }
}

/// Says what a pull would do, and touches nothing.
pub async fn plan_pull(request: PullRequest) -> Result<PullPlan, PeerError> {
    request.landing.check(&request.output)?;
    let (_, artifact) = origin::open(&request.reference, request.access).await?;
    let artifact = artifact.select(&request.selection)?;
    let manifest = artifact.manifest.clone();
    let selection = Some(&request.selection).filter(|selection| !selection.is_everything());
    let selection = selection.map(ToString::to_string);
    let is_anchored = artifact.is_anchored();
    blocking(move || {
        let is_complete = is_complete(&request.output, &manifest, selection.as_deref())?;
        Ok(PullPlan {
            output: request.output.clone(),
            digest: manifest.digest(),
            files: manifest.files().len(),
            archives: manifest.archives().len(),
            bytes: manifest.layout().total_bytes(),
            is_anchored,
            is_complete,
            free: free_bytes(nearest_existing(&request.output))?,
        })
    })
    .await
}

fn is_complete(dir: &Path, manifest: &Manifest, selection: Option<&str>) -> Result<bool, PeerError> {
    if !dir.is_dir() {
        return Ok(false);
    }
    let Some(record) = CompleteRecord::load(dir)? else { return Ok(false) };
    let is_same = record.digest == manifest.digest() && record.selection.as_deref() == selection;
    Ok(is_same && store::verify_record(dir, &record).is_ok())
}

fn nearest_existing(path: &Path) -> &Path {
    let there = path.ancestors().find(|at| !at.as_os_str().is_empty() && at.exists());
    there.unwrap_or(Path::new("."))
}
