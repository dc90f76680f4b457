//! Direct landing: the blob's file as memory that a transport writes, and what of it may be written.
//!
//! Owns: whether that is possible here, the mapping, and what is sealed in it from the start. Does not own: registration
//! with a network card, or who reads into which range.

use std::{ops::Range, sync::Arc};

use memory::{Access, Region};
use modelpack::layout::{BlobIndex, PieceSpan};
use rustix::fs::FallocateFlags;

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

    /// The blob's file, mapped, with space for `range` of it: what is written to a lease there has landed, and is
    /// committed in place. Mapped when it is first asked for, then the same until the blob is published, and after that
    /// for as long as somebody holds it. To write a page without space would end the process, so that a range is asked
    /// for before it is leased.
    ///
    /// `None` where the file system does not allow it, before [`Self::preallocate`], and for a blob that is not to be
    /// written.
    ///
    /// What has landed is sealed in it: proved pieces, and those that wait for the proof of the whole blob. What is
    /// landed from then on in either way is sealed too, until the blob is forgotten.
    ///
    /// # Errors
    /// If it cannot be mapped, or there is no space left.
    ///
    /// # Panics
    /// If the range is none of the blob's.
    pub fn region(&self, blob: BlobIndex, range: Range<usize>) -> Result<Option<Arc<Region>>, StoreError> {
        if !self.kind.lands_direct() {
            return Ok(None);
        }
        let Some(region) = self.mapped(blob)? else { return Ok(None) };
        assert!(range.end <= region.len(), "{range:?} of a blob of {} bytes", region.len());
        let (start, len) = (range.start as u64, range.len() as u64);
        if len > 0 {
            rustix::fs::fallocate(&*self.file(blob), FallocateFlags::empty(), start, len)
                .context("allocate", self.blob_path(blob))?;
        }
        Ok(Some(region))
    }

    fn mapped(&self, blob: BlobIndex) -> Result<Option<Arc<Region>>, StoreError> {
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
        let has_size = bytes > 0 && meta.len() >= bytes;
        let Some(len) = usize::try_from(bytes).ok().filter(|_| has_size) else { return Ok(None) };
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
