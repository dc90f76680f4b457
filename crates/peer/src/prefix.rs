//! SHA-256 of blobs whose pieces cannot be proved one by one, streamed while they land (DESIGN §4).
//!
//! Owns: the contiguous prefix that is hashed of each blob. Does not own: what a finished digest is compared with.

use std::{collections::BTreeMap, sync::Arc};

use modelpack::{
    digest::Sha256Hasher,
    layout::{BlobIndex, PieceIndex, Run},
    piece_map::PieceMap,
};
use store::{Landing, StoreError};

use crate::artifact::{Artifact, Check};

/// Pieces hashed in one job: long enough to cost nothing beside hashing, short enough that checks of other pieces
/// get their turn on the same threads.
const JOB_PIECES: u32 = 8;

/// The hashers of one artifact's blobs that need one.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    blobs: BTreeMap<BlobIndex, Prefix>,
}

#[derive(Debug)]
struct Prefix {
    /// What is not hashed yet.
    rest: Run,
    /// `None` while a job has it.
    hasher: Option<Sha256Hasher>,
}

/// A stretch of a blob to be hashed.
#[derive(Debug)]
pub(crate) struct PrefixJob {
    pub(crate) blob: BlobIndex,
    run: Run,
    hasher: Sha256Hasher,
}

impl PrefixJob {
    /// Reads and hashes the stretch; blocks.
    pub(crate) fn run(mut self, landing: &Landing) -> Result<Sha256Hasher, StoreError> {
        let mut buffer = Vec::new();
        for piece in self.run.pieces() {
            buffer.resize(landing.layout().span(piece).len as usize, 0);
            landing.read(piece, &mut buffer)?;
            self.hasher.update(&buffer);
        }
        Ok(self.hasher)
    }
}

impl Prefixes {
    pub(crate) fn new(artifact: &Artifact, landing: &Arc<Landing>) -> Self {
        let needs = |blob: &BlobIndex| {
            matches!(artifact.check(*blob), Check::Sha256) && landing.prove_verified(*blob).is_none()
        };
        let prefix = |blob| {
            let rest = artifact.layout().pieces_of(blob);
            (blob, Prefix { rest, hasher: Some(Sha256Hasher::default()) })
        };
        Self { blobs: artifact.layout().blobs().filter(needs).map(prefix).collect() }
    }

    /// What can be hashed next of `blob`, if anything can and nothing is being hashed.
    pub(crate) fn next(&mut self, blob: BlobIndex, have: &PieceMap) -> Option<PrefixJob> {
        let prefix = self.blobs.get_mut(&blob)?;
        let mut run = Run::new(prefix.rest.start.0, prefix.rest.start.0);
        while run.end < prefix.rest.end && run.len() < JOB_PIECES && have.contains(run.end) {
            run.end = PieceIndex(run.end.0 + 1);
        }
        if run.is_empty() {
            return None;
        }
        let hasher = prefix.hasher.take()?;
        prefix.rest.start = run.end;
        Some(PrefixJob { blob, run, hasher })
    }

    /// Takes back the hasher of a job that is done. Gives a copy of it if that was the blob's last.
    pub(crate) fn done(&mut self, blob: BlobIndex, hasher: Sha256Hasher) -> Option<Sha256Hasher> {
        let prefix = self.blobs.get_mut(&blob)?;
        let whole = prefix.rest.is_empty().then(|| hasher.clone());
        prefix.hasher = Some(hasher);
        whole
    }

    /// Every blob that needs a hasher; their number.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = BlobIndex> + use<> {
        self.blobs.keys().copied().collect::<Vec<_>>().into_iter()
    }

    /// Whether every byte is hashed.
    pub(crate) fn is_done(&self) -> bool {
        self.blobs.values().all(|prefix| prefix.rest.is_empty() && prefix.hasher.is_some())
    }

    /// The hashers, each of its whole blob.
    pub(crate) fn finish(self) -> BTreeMap<BlobIndex, Sha256Hasher> {
        let whole = |(blob, prefix): (BlobIndex, Prefix)| Some((blob, prefix.hasher?));
        self.blobs.into_iter().filter_map(whole).collect()
    }
}
