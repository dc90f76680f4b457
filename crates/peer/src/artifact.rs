//! One artifact as it is pulled: its manifest and config, and how each of its blobs is checked.
//!
//! Owns: the choice of the check. Does not own: where the bytes come from.

use std::time::{Duration, Instant};

use memory::Filled;
use modelpack::{
    digest::Blake3Root,
    layout::{BlobIndex, PieceIndex, PieceLayout},
    manifest::{Blob, Manifest},
    piece_tree::{Anchored, Landed, PieceTree},
    selection::Selection,
};
use planner::ArtifactId;
use store::{BlobProof, Landing, StoreError};
use swarm::PieceOutcome;

/// How a blob's bytes are checked (DESIGN §4).
#[derive(Debug)]
pub(crate) enum Check {
    /// Each piece against the tree that the manifest anchors.
    Tree(PieceTree<Anchored>),
    /// The whole blob against the root that the manifest states; its tree was not found.
    Root(Blake3Root),
    /// The whole blob against its SHA-256; the manifest states no root.
    Sha256,
}

/// Where the bytes of a piece are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a buffer: they are written when they are good.
    Buffer,
    /// Where they belong, in the file.
    File,
}

/// What the check of a piece said, and what it took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    pub(crate) outcome: PieceOutcome,
    pub(crate) hashing: Duration,
    pub(crate) writing: Duration,
}

/// A checked manifest, its config, and a check for each blob.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) reference: String,
    pub(crate) manifest: Manifest,
    /// The index that lists the manifest, where the reference names one.
    pub(crate) index: Option<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    pub(crate) checks: Vec<Check>,
}

impl Artifact {
    pub(crate) fn id(&self) -> ArtifactId {
        ArtifactId(*self.manifest.digest().bytes())
    }

    pub(crate) fn layout(&self) -> &PieceLayout {
        self.manifest.layout()
    }

    pub(crate) fn blob(&self, blob: BlobIndex) -> &Blob {
        &self.manifest.blobs()[blob.0 as usize]
    }

    pub(crate) fn check(&self, blob: BlobIndex) -> &Check {
        &self.checks[blob.0 as usize]
    }

    /// Whether every piece can be proved by itself, so that peers may exchange them.
    pub(crate) fn is_anchored(&self) -> bool {
        self.checks.iter().all(|check| matches!(check, Check::Tree(_)))
    }

    /// A path of a file that holds the blob, for messages.
    pub(crate) fn path_of(&self, blob: BlobIndex) -> String {
        let file = self.manifest.files().iter().find(|file| file.blob == blob);
        let archive = self.manifest.archives().iter().find(|archive| archive.blob == blob);
        let path = file.map(|file| file.path.clone()).or_else(|| archive.map(ToString::to_string));
        path.unwrap_or_else(|| self.blob(blob).digest.to_string())
    }

    /// The part of it that is wanted, its blobs and pieces numbered anew.
    pub(crate) fn select(self, selection: &Selection) -> Result<Self, StoreError> {
        if selection.is_everything() {
            return Ok(self);
        }
        let (part, _) = self.manifest.select(selection)?;
        // Both have their blobs in the order of the whole.
        let mut needed = part.blobs().iter().peekable();
        let mut checks = Vec::new();
        for (blob, check) in self.manifest.blobs().iter().zip(self.checks) {
            if needed.next_if_eq(&blob).is_some() {
                checks.push(check);
            }
        }
        let Self { reference, index, config, .. } = self;
        Ok(Self { reference, manifest: part, index, config, checks })
    }

    /// Checks a piece and sees to it that it is at its final offset. Of a blob without a tree any piece is as good as another
    /// until the whole blob is checked.
    pub(crate) fn land(
        &self,
        landing: &Landing,
        piece: PieceIndex,
        (bytes, place): (Filled, Place),
    ) -> Result<Checked, StoreError> {
        let start = Instant::now();
        let span = self.layout().span(piece);
        let landed = Landed::new(span.in_blob, bytes);
        let (outcome, hashed) = match self.check(span.blob) {
            Check::Tree(tree) => match tree.verify(landed) {
                Ok(verified) => {
                    let hashed = Instant::now();
                    match place {
                        Place::Buffer => landing.commit(piece, &verified)?,
                        Place::File => landing.commit_in_place(piece, verified)?,
                    }
                    (PieceOutcome::Good, hashed)
                }
                Err(_) => (PieceOutcome::Bad, Instant::now()),
            },
            Check::Root(_) | Check::Sha256 => {
                match place {
                    Place::Buffer => landing.land(piece, &landed)?,
                    Place::File => landing.land_in_place(piece, landed)?,
                }
                (PieceOutcome::Good, start)
            }
        };
        Ok(Checked { outcome, hashing: hashed - start, writing: hashed.elapsed() })
    }

    /// Looks again at a piece that the journal claims; says whether it counts.
    pub(crate) fn recheck(&self, landing: &Landing, claim: &store::Claim) -> Result<bool, StoreError> {
        let span = self.layout().span(claim.piece);
        let mut buffer = vec![0; span.len as usize];
        match (self.check(span.blob), claim.kind) {
            (Check::Tree(tree), _) => landing.recheck(claim.piece, tree, &mut buffer),
            (
                Check::Root(_) | Check::Sha256,
                store::ClaimKind::Landed { value } | store::ClaimKind::Read { value },
            ) => landing.recheck_landed(claim.piece, &value, &mut buffer),
            // It was proved by a tree that is gone, so that nothing is left to check it with.
            (Check::Root(_) | Check::Sha256, store::ClaimKind::Verified) => Ok(false),
        }
    }

    /// The proof of a blob whose pieces all are there, unless it is to be had from a streamed SHA-256.
    pub(crate) fn prove(&self, landing: &Landing, blob: BlobIndex) -> Result<BlobProof, StoreError> {
        // All pieces of a blob without bytes are there, which proves nothing unless a root says so too.
        let is_telling = self.blob(blob).size > 0 || matches!(self.check(blob), Check::Tree(_));
        if let Some(proof) = landing.prove_verified(blob).filter(|_| is_telling) {
            return Ok(proof);
        }
        match self.check(blob) {
            Check::Root(root) => landing.prove_root(blob, root),
            Check::Tree(_) | Check::Sha256 => landing.prove_sha256(blob, &self.blob(blob).digest),
        }
    }
}
