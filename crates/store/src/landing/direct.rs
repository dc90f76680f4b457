//! Direct landing: the blob's file as memory that a transport writes, and what of it may be written.
//!
//! Owns: whether that is possible here, the mapping, and what is sealed in it from the start. Does not own: registration
//! with a network card, or who reads into which range.

use std::{ops::Range, os::unix::fs::MetadataExt as _, sync::Arc};

use memory::{Access, Region};
use modelpack::layout::{BlobIndex, PieceSpan};

use super::{Landing, Stage, unpoison};
use crate::{
    error::{Context as _, StoreError},
    files::FsKind,
};

/// Where a piece lies in its blob's region.
pub(super) fn range_of(span: PieceSpan) -> Range<usize> {
    let start = usize::try_from(span.offset).expect("a blob that is mapped fits the address space");
    start..start + span.len as usize
}

impl Landing {
    /// The kind of file system that it lies on.
    pub fn filesystem(&self) -> FsKind {
        self.kind
    }

    /// The blob's file, mapped: what is written to a lease of it has landed, and is committed in place. Mapped when it
    /// is first asked for, then the same until the blob is published, and after that for as long as somebody holds it.
    ///
    /// `None` where the file system does not allow it, before [`Self::preallocate`] (a page without space cannot be
    /// written), and for a blob that is not to be written.
    ///
    /// What has landed is sealed in it: proved pieces, and those that wait for the proof of the whole blob. What is
    /// landed from then on in either way is sealed too, until the blob is forgotten.
    ///
    /// # Errors
    /// If it cannot be mapped.
    pub fn region(&self, blob: BlobIndex) -> Result<Option<Arc<Region>>, StoreError> {
        if !self.kind.lands_direct() {
            return Ok(None);
        }
        let slot = self.slot(blob);
        {
            let held = unpoison(slot.state.read());
            if held.stage != Stage::Open || held.region.is_some() {
                return Ok(held.region.clone());
            }
        }
        // Writes that began without it end first.
        let mut held = unpoison(slot.state.write());
        if held.stage != Stage::Open || held.region.is_some() {
            return Ok(held.region.clone());
        }
        let path = self.blob_path(blob);
        let (bytes, meta) = (self.layout.blob_bytes(blob), held.file.metadata().context("look at", &path)?);
        // st_blocks counts 512 bytes whatever the file system's block is (stat(2)).
        let has_space = bytes > 0 && meta.len() >= bytes && meta.blocks() * 512 >= bytes;
        let Some(len) = usize::try_from(bytes).ok().filter(|_| has_space) else { return Ok(None) };
        let region = Region::map(&held.file, len, Access::ReadWrite).context("map", &path)?;
        self.seal_what_is_here(blob, &region);
        held.region = Some(Arc::clone(&region));
        Ok(Some(region))
    }

    fn seal_what_is_here(&self, blob: BlobIndex, region: &Arc<Region>) {
        let state = self.state();
        for piece in self.layout.pieces_of(blob).pieces() {
            if state.verified.contains(piece) || state.claims.is_landed(piece) {
                let lease = region.lease(range_of(self.layout.span(piece)));
                lease.expect("nobody else has the region yet").seal();
            }
        }
    }

    /// Fails while anything of a mapped blob may still be written: a digest of it would be one of bytes on the move.
    /// From then on only [`Self::forget_blob`] lets it be written, which voids the proof.
    pub(crate) fn check_settled(&self, blob: BlobIndex) -> Result<(), StoreError> {
        match &unpoison(self.slot(blob).state.read()).region {
            Some(region) if !region.is_sealed() => {
                Err(StoreError::Unproved { dir: self.dir.path().to_path_buf(), blob })
            }
            _ => Ok(()),
        }
    }
}
