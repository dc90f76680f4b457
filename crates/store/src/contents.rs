//! What the store needs to know of an artifact.
//!
//! Owns: the identity of a blob and the list of files to publish. Does not own: parsing a manifest, which has
//! judged sizes and paths before they come here.

use std::sync::Arc;

use modelpack::{
    digest::{Blake3Root, Sha256Digest},
    layout::{BlobIndex, PieceLayout},
    manifest::{Archive, Blob, Kind, Manifest, Modified},
    selection::{Matched, Selection, SelectionError},
};

/// What a blob is known by (DESIGN §4). Two blobs are the same only if all that is stated is equal, so that a
/// manifest that pairs somebody's SHA-256 with another root poisons nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobIdentity {
    /// The SHA-256 that the manifest names it by.
    pub digest: Sha256Digest,
    /// Its size in bytes.
    pub size: u64,
    /// The BLAKE3 root, if the manifest states one.
    pub root: Option<Blake3Root>,
}

/// One file of a published directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentFile {
    /// Its path below the directory, with `/` between components.
    pub path: String,
    /// The blob whose bytes it holds.
    pub blob: BlobIndex,
    /// Whether it is a weight file: those appear after the small ones.
    pub is_weight: bool,
    /// The permissions with which it is published.
    pub mode: u32,
    /// When it was last modified, if that is to be restored.
    pub modified: Option<Modified>,
}

/// One artifact as the store sees it.
#[derive(Clone, Debug)]
pub struct Contents {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// The distinct layer blobs, numbered as in `layout`.
    pub blobs: Vec<BlobIdentity>,
    /// The files to publish.
    pub files: Vec<ContentFile>,
    /// The blobs that are archives of further files to publish.
    pub archives: Vec<Archive>,
    /// The geometry of `blobs`.
    pub layout: PieceLayout,
    /// Which part of the artifact it is, if it is not all of it.
    pub selection: Option<Arc<Selection>>,
    /// What of the selection has to do with `files`.
    pub matched: Matched,
}

impl Contents {
    /// Of an artifact, or the part of it that is wanted. `manifest` is the whole.
    pub fn selected(manifest: &Manifest, selection: &Arc<Selection>) -> Result<Self, SelectionError> {
        if selection.is_everything() {
            return Ok(Self::from(manifest));
        }
        let (part, matched) = manifest.select(selection)?;
        Ok(Self { selection: Some(Arc::clone(selection)), matched, ..Self::from(&part) })
    }

    /// Bytes of all archives, as they are packed.
    pub(crate) fn packed_bytes(&self) -> u64 {
        let bytes = |archive: &Archive| self.blobs[archive.blob.0 as usize].size;
        self.archives.iter().map(bytes).fold(0, u64::saturating_add)
    }

    /// What a landing of it is known by: its pieces are numbered differently in each selection.
    pub(crate) fn identity(&self) -> Sha256Digest {
        match &self.selection {
            None => self.digest,
            Some(selection) => Sha256Digest::of(format!("{} {selection}", self.digest).as_bytes()),
        }
    }

    /// # Panics
    /// If the parts contradict one another: they are one manifest's, so that is a bug of the caller.
    pub(crate) fn assert_whole(&self) {
        assert!(self.layout.blob_count() as usize == self.blobs.len(), "the layout of these blobs");
        for (index, blob) in self.layout.blobs().zip(&self.blobs) {
            assert!(self.layout.blob_bytes(index) == blob.size, "the layout of these blobs");
        }
        let count = self.layout.blob_count();
        assert!(self.files.iter().all(|file| file.blob.0 < count), "files of these blobs");
        assert!(self.archives.iter().all(|archive| archive.blob.0 < count), "archives of these blobs");
    }
}

impl From<&Blob> for BlobIdentity {
    fn from(blob: &Blob) -> Self {
        Self { digest: blob.digest, size: blob.size, root: blob.root }
    }
}

impl From<&Manifest> for Contents {
    fn from(manifest: &Manifest) -> Self {
        let files = manifest.files().iter().map(|file| ContentFile {
            path: file.path.clone(),
            blob: file.blob,
            is_weight: file.kind == Kind::Weight,
            mode: file.mode,
            modified: file.modified,
        });
        Self {
            digest: manifest.digest(),
            blobs: manifest.blobs().iter().map(BlobIdentity::from).collect(),
            files: files.collect(),
            archives: manifest.archives().to_vec(),
            selection: None,
            matched: Matched::default(),
            layout: manifest.layout().clone(),
        }
    }
}
