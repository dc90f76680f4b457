//! Proofs: the only keys that publish a blob.
//!
//! Owns: the ways in which a landed blob is proved as a whole. Does not own: checking single pieces, which a piece
//! tree does.

use modelpack::{
    digest::{Blake3Root, Sha256Digest, Sha256Hasher},
    layout::BlobIndex,
};

use crate::{contents::BlobIdentity, error::StoreError, files::read_through, landing::Landing};

/// Says that the bytes of one blob of one landing were proved. It cannot be made by hand, and it is void for any
/// other landing, and after [`Landing::land`] or [`Landing::forget_blob`] of that blob.
#[derive(Debug)]
pub struct BlobProof {
    pub(crate) landing: u64,
    pub(crate) blob: BlobIndex,
    pub(crate) generation: u64,
    kind: ProofKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProofKind {
    /// Every piece was verified against the anchored tree.
    Pieces,
    /// This node computed the blob's BLAKE3 hash.
    Root(Blake3Root),
    /// This node computed the blob's SHA-256, and its BLAKE3 hash too if it read the file for that.
    Sha256(Sha256Digest, Option<Blake3Root>),
    /// A store proved the blob earlier, or the local peer, which owns a store, handed it over.
    Store,
}

impl BlobProof {
    /// The blob it is about.
    pub fn blob(&self) -> BlobIndex {
        self.blob
    }

    /// Whether this node itself computed the SHA-256.
    pub(crate) fn is_sha256(&self) -> bool {
        matches!(self.kind, ProofKind::Sha256(..))
    }

    /// The BLAKE3 hash, if this node computed it beside the SHA-256.
    pub(crate) fn root_beside_sha256(&self) -> Option<Blake3Root> {
        match self.kind {
            ProofKind::Sha256(_, root) => root,
            _ => None,
        }
    }

    /// Whether what was proved is what the manifest states.
    pub(crate) fn fits(&self, identity: &BlobIdentity) -> bool {
        match self.kind {
            // A blob without bytes has no pieces, so that all of them prove nothing.
            ProofKind::Pieces => identity
                .root
                .is_some_and(|root| identity.size > 0 || blake3::hash(b"").as_bytes() == root.bytes()),
            ProofKind::Root(root) => identity.root == Some(root),
            ProofKind::Sha256(digest, root) => {
                let is_contradicted = root.is_some() && identity.root.is_some() && root != identity.root;
                identity.digest == digest && !is_contradicted
            }
            ProofKind::Store => true,
        }
    }
}

/// Both hashes of one file.
pub(crate) struct Hashes {
    pub(crate) sha256: Sha256Digest,
    pub(crate) root: Blake3Root,
    pub(crate) bytes: u64,
}

/// Reads `file` once and computes both its names.
pub(crate) fn hash_file(file: &std::fs::File, path: &std::path::Path) -> Result<Hashes, StoreError> {
    let mut sha256 = Sha256Hasher::default();
    let mut root = blake3::Hasher::new();
    let bytes = read_through(file, path, |bytes| {
        sha256.update(bytes);
        root.update(bytes);
    })?;
    Ok(Hashes { sha256: sha256.finish(), root: Blake3Root::new(*root.finalize().as_bytes()), bytes })
}

impl Landing {
    /// The proof of a blob whose pieces all were committed or rechecked as verified since this landing was opened.
    /// `None` while one is missing.
    pub fn prove_verified(&self, blob: BlobIndex) -> Option<BlobProof> {
        let generation = self.generation(blob);
        let kind = if self.came_from_store(blob) { ProofKind::Store } else { ProofKind::Pieces };
        let is_proved = kind == ProofKind::Store || self.is_verified(blob);
        is_proved.then(|| self.proof(blob, generation, kind))
    }

    /// Reads the whole blob and compares its SHA-256.
    pub fn prove_sha256(&self, blob: BlobIndex, expected: &Sha256Digest) -> Result<BlobProof, StoreError> {
        let generation = self.generation(blob);
        self.check_settled(blob)?;
        let path = self.blob_path(blob);
        let found = hash_file(&self.file(blob), &path)?;
        if found.sha256 != *expected || found.bytes != self.layout().blob_bytes(blob) {
            return Err(mismatch(path, expected, &found.sha256));
        }
        Ok(self.proof(blob, generation, ProofKind::Sha256(found.sha256, Some(found.root))))
    }

    /// Compares the SHA-256 that the caller streamed while the blob's bytes landed, in order. The caller vouches that
    /// it hashed what was written: each piece landed once, or was hashed as it landed last.
    pub fn prove_streamed(
        &self,
        blob: BlobIndex,
        streamed: Sha256Hasher,
        expected: &Sha256Digest,
    ) -> Result<BlobProof, StoreError> {
        let generation = self.generation(blob);
        self.check_settled(blob)?;
        let found = streamed.finish();
        if found != *expected {
            return Err(mismatch(self.blob_path(blob), expected, &found));
        }
        Ok(self.proof(blob, generation, ProofKind::Sha256(found, None)))
    }

    /// Reads the whole blob and compares its BLAKE3 hash: for a stated root whose tree cannot be found.
    pub fn prove_root(&self, blob: BlobIndex, expected: &Blake3Root) -> Result<BlobProof, StoreError> {
        let generation = self.generation(blob);
        self.check_settled(blob)?;
        let mut hasher = blake3::Hasher::new();
        let path = self.blob_path(blob);
        read_through(&self.file(blob), &path, |bytes| {
            hasher.update(bytes);
        })?;
        let found = Blake3Root::new(*hasher.finalize().as_bytes());
        if found != *expected {
            let (expected, found) = (format!("blake3:{expected}"), format!("blake3:{found}"));
            return Err(StoreError::Digest { path, expected, found });
        }
        Ok(self.proof(blob, generation, ProofKind::Root(found)))
    }

    fn proof(&self, blob: BlobIndex, generation: u64, kind: ProofKind) -> BlobProof {
        BlobProof { landing: self.id(), blob, generation, kind }
    }
}

pub(crate) fn mismatch(
    path: std::path::PathBuf,
    expected: &Sha256Digest,
    found: &Sha256Digest,
) -> StoreError {
    StoreError::Digest { path, expected: expected.to_string(), found: found.to_string() }
}
