//! One artifact that others may read here.
//!
//! Owns: its windows and what they let be read, and what the scheduler is told of it. Does not own: which artifacts
//! are shared (`node`), or links to readers (`service`).

use std::{fs::File, ops::Range, sync::Arc};

use modelpack::layout::{PIECE_BYTES, Run};
use planner::ArtifactId;
use tokio::sync::mpsc;
use transport::{Export, Exports};

use crate::{
    artifact::{Artifact, Check},
    children::Children,
    describe::Description,
    download::Event,
    have_feed::HaveFeed,
    service::Share,
    session::SessionCommand,
};

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) share: Share,
    pub(crate) bytes: u64,
    pub(crate) piece_count: u32,
    pub(crate) origin_ok: bool,
    pub(crate) is_seed: bool,
    /// If it is a seed: its blobs, for pulls on this machine.
    pub(crate) seeded: Vec<Arc<File>>,
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
        range.end <= self.bytes && self.feed.holds(Run::new(self.first + start, self.first + end + 1))
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Shared {
    /// Lets others read what `feed` has of the artifact.
    pub(crate) fn new(exports: &Exports, artifact: &Artifact, files: Vec<Arc<File>>, feed: HaveFeed) -> Self {
        let layout = artifact.layout();
        let window = |(blob, file)| {
            let bytes = layout.blob_bytes(blob);
            let first = layout.pieces_of(blob).start.0;
            let export = BlobExport { file, bytes, first, feed: feed.clone() };
            (blob, exports.register(Arc::new(export)), bytes)
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
                have: feed,
                vouching: None,
                children: Children::none(),
                description: Arc::new(description),
            },
            bytes: layout.total_bytes(),
            piece_count: layout.piece_count(),
            origin_ok: false,
            is_seed: false,
            seeded: Vec::new(),
            events: None,
        }
    }

    /// From now on nobody reads it.
    pub(crate) fn withdraw(self, exports: &Exports, reason: &str) {
        self.share.have.close(reason);
        for (_, handle, _) in &self.share.windows {
            exports.withdraw(*handle);
        }
    }

    /// Whether it is being downloaded, or somebody holds a grant for it; never of a seed, whose blobs are not the
    /// store's.
    pub(crate) fn is_read(&self) -> bool {
        !self.is_seed && (self.events.is_some() || self.share.children.are_there())
    }

    /// Tells its download something, if there is one.
    pub(crate) fn tell(&self, event: impl FnOnce() -> Event) {
        if let Some(events) = &self.events {
            // A download that has just ended needs no news.
            let _ = events.send(event());
        }
    }

    /// What the scheduler is told when it is shared, or when a scheduler is new.
    pub(crate) fn join(&self, artifact: ArtifactId) -> SessionCommand {
        SessionCommand::Join {
            artifact,
            bytes: self.bytes,
            piece_count: self.piece_count,
            origin_ok: self.origin_ok,
            is_seed: self.is_seed,
            round: self.share.vouching.as_ref().map_or(0, |vouching| vouching.round()),
            have: self.share.have.snapshot().runs(),
            coming: self.share.have.coming_now(),
        }
    }
}
