//! One artifact that others may read here.
//!
//! Owns: its windows and what they let be read, and what the scheduler is told of it. Does not own: which artifacts
//! are shared (`node`), or links to readers (`service`).

use std::{fs::File, ops::Range, sync::Arc};

use modelpack::{
    layout::{PIECE_BYTES, Run},
    piece_map::PieceMap,
};
use planner::{ArtifactId, PeerPlan, Priority};
use store::Pin;
use tokio::sync::mpsc;
use transport::{Export, Exports, Pacer};
use transport_rdma::Rdma;

use crate::{
    artifact::{Artifact, Check},
    children::Children,
    describe::Description,
    download::Event,
    error::PeerError,
    have_feed::HaveFeed,
    lanes::{Direction, Lanes, Traffic},
    seed::{Prepared, SeedBlob},
    service::Share,
    session::SessionCommand,
    sources::{BlobSource, Sources},
};

/// Where others read what is shared: over TCP, over RDMA where there is a card, and what they leave to one another.
pub(crate) type Planes<'a> = (&'a Exports, Option<&'a Rdma>, &'a Arc<Lanes>);

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) share: Share,
    pub(crate) bytes: u64,
    pub(crate) piece_count: u32,
    pub(crate) origin_ok: bool,
    /// How urgent it is to those who wait for it here.
    pub(crate) wished: Priority,
    /// What it has cost this process.
    pub(crate) traffic: Arc<Traffic>,
    /// If it is a seed: its blobs, for pulls on this machine.
    pub(crate) seeded: Option<Seeded>,
    /// Of its running download.
    pub(crate) events: Option<mpsc::UnboundedSender<Event>>,
}

/// One blob as others may read it.
struct BlobExport {
    file: Arc<File>,
    bytes: u64,
    /// Its first piece's number in the artifact.
    first: u32,
    feed: HaveFeed,
    guard: Option<Arc<Guard>>,
    traffic: Arc<Traffic>,
}

/// The blobs of a seed.
#[derive(Debug)]
pub(crate) struct Seeded {
    pub(crate) blobs: Vec<Arc<SeedBlob>>,
    /// Of one in the store: keeps it there.
    _pin: Option<Pin>,
}

/// Told when a blob of a seed is found to have changed.
pub(crate) type OnChange = Arc<dyn Fn(&PeerError) + Send + Sync>;

/// Looks after a file that others than this process may write.
pub(crate) struct Guard {
    blob: Arc<SeedBlob>,
    on_change: OnChange,
}

impl Guard {
    /// Whether it is still what was proved. If not, it is said.
    pub(crate) fn check(&self) -> bool {
        match self.blob.check() {
            Ok(()) => true,
            Err(changed) => {
                (self.on_change)(&changed);
                false
            }
        }
    }
}

impl Export for BlobExport {
    fn file(&self) -> &File {
        &self.file
    }

    fn is_readable(&self, range: Range<u64>) -> bool {
        let piece = |offset: u64| u32::try_from(offset / PIECE_BYTES).ok();
        let (Some(start), Some(end)) = (piece(range.start), piece(range.end.saturating_sub(1))) else {
            return false;
        };
        if self.guard.as_ref().is_some_and(|guard| !guard.check()) {
            return false;
        }
        range.end <= self.bytes && self.feed.holds(Run::new(self.first + start, self.first + end + 1))
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn sent(&self, bytes: u64) {
        self.traffic.count(Direction::Sent, bytes);
    }

    fn pacer(&self) -> Option<Arc<Pacer>> {
        self.traffic.pacer(Direction::Sent)
    }
}

impl Shared {
    /// Lets others read what `feed` has of the artifact.
    pub(crate) fn new(
        planes: Planes<'_>,
        artifact: &Artifact,
        files: Vec<Arc<File>>,
        feed: HaveFeed,
    ) -> Self {
        Self::with_files(planes, artifact, files.into_iter().map(|file| (file, None)).collect(), feed)
    }

    /// Lets others read all of a seed, for as long as its files stay as they are.
    pub(crate) fn seed(planes: Planes<'_>, seed: Prepared, on_change: &OnChange) -> Self {
        let Prepared { artifact, blobs, pin } = seed;
        let guarded = |blob: &Arc<SeedBlob>| {
            let guard = Guard { blob: Arc::clone(blob), on_change: Arc::clone(on_change) };
            (Arc::clone(&blob.file), Some(Arc::new(guard)))
        };
        let files = blobs.iter().map(guarded).collect();
        let feed = HaveFeed::new(PieceMap::full(artifact.layout().piece_count()));
        let seeded = Some(Seeded { blobs, _pin: pin });
        Self { seeded, ..Self::with_files(planes, &artifact, files, feed) }
    }

    fn with_files(
        (exports, rdma, lanes): Planes<'_>,
        artifact: &Artifact,
        files: Vec<(Arc<File>, Option<Arc<Guard>>)>,
        feed: HaveFeed,
    ) -> Self {
        let layout = artifact.layout();
        let (mut sources, traffic) = (Vec::new(), Traffic::new(Arc::clone(lanes)));
        let window = |(blob, (file, guard)): (_, (Arc<File>, Option<Arc<Guard>>))| {
            let (bytes, pieces) = (layout.blob_bytes(blob), layout.pieces_of(blob));
            let export = BlobExport {
                file: Arc::clone(&file),
                bytes,
                first: pieces.start.0,
                feed: feed.clone(),
                guard: guard.clone(),
                traffic: Arc::clone(&traffic),
            };
            let handle = exports.register(Arc::new(export));
            if let Some(rdma) = rdma.filter(|_| bytes > 0) {
                sources.push(BlobSource::new(rdma, (blob, pieces), (&file, bytes, handle), guard));
            }
            (blob, handle, bytes)
        };
        let windows = layout.blobs().zip(files).map(window).collect();
        let tree = |(blob, check): (_, &Check)| match check {
            Check::Tree(tree) if tree.blob_bytes() > PIECE_BYTES => Some((blob, tree.serialise())),
            _ => None,
        };
        let trees = layout.blobs().zip(&artifact.checks).filter_map(tree).collect();
        let description = Description {
            manifest: artifact.manifest.raw().to_vec(),
            config: artifact.config.clone(),
            trees,
        };
        Self {
            share: Share {
                windows,
                sources: rdma.map(|_| Sources::new(sources, &feed.snapshot().runs())),
                have: feed,
                vouching: None,
                children: Children::none(),
                description: Arc::new(description),
                kept: None,
            },
            bytes: layout.total_bytes(),
            piece_count: layout.piece_count(),
            origin_ok: false,
            wished: Priority::default(),
            traffic,
            seeded: None,
            events: None,
        }
    }

    /// From now on nobody reads it.
    pub(crate) fn withdraw(self, exports: &Exports, reason: &str) {
        self.share.have.close(reason);
        if let Some(sources) = &self.share.sources {
            sources.end();
        }
        for (_, handle, _) in &self.share.windows {
            exports.withdraw(*handle);
        }
    }

    /// Whether it is announced from this machine.
    pub(crate) fn is_seed(&self) -> bool {
        self.seeded.is_some()
    }

    /// Whether it is being downloaded, or somebody holds a grant for it; never of a seed, whose blobs are not the
    /// store's, or pinned there.
    pub(crate) fn is_read(&self) -> bool {
        !self.is_seed() && (self.events.is_some() || self.share.children.are_there())
    }

    /// Tells its download something, if there is one.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(events) = &self.events {
            // A download that has just ended needs no news.
            let _ = events.send(event());
        }
    }

    /// What its plan says of others.
    pub(crate) fn planned(&self, plan: PeerPlan) {
        self.share.children.quarantine(&plan.quarantined);
        self.traffic.set_priority(plan.priority);
        self.tell(|| Event::Plan(plan));
    }

    /// What the scheduler is told when it is shared, or when a scheduler is new.
    pub(crate) fn join(&self, artifact: ArtifactId) -> SessionCommand {
        SessionCommand::Join {
            artifact,
            bytes: self.bytes,
            piece_count: self.piece_count,
            origin_ok: self.origin_ok,
            priority: self.wished,
            is_seed: self.is_seed(),
            round: self.share.vouching.as_ref().map_or(0, |vouching| vouching.round()),
            have: self.share.have.snapshot().runs(),
            coming: self.share.have.coming_now(),
        }
    }
}
