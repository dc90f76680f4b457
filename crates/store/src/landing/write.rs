//! How a piece gets to its final offset: written there out of a buffer, or by having arrived there.
//!
//! Owns: that a range has one writer, and that bytes are there before their journal record. Does not own: whether the
//! bytes are right.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use memory::{Filled, Lease, NotLeased};
use modelpack::{
    layout::{BlobPiece, PieceIndex, PieceSpan},
    piece_tree::{Consistent, Landed, Verified},
};

use super::{Landing, Slot, SlotState, Stage, direct::range_of, unpoison};
use crate::{
    error::{Context as _, StoreError},
    files::FsKind,
    journal::Record,
};

/// Bytes of one blob written before their writeback is forced: enough for long sequential writes, and little enough
/// that the sync before publishing finds most of the work done.
const WRITEBACK_BYTES: u64 = 64 << 20;

/// How long a write waits for a range that is out. Whoever reads into it is told to end before, which takes milliseconds;
/// this bounds the wait for a transport that does not.
const RANGE_WAIT: Duration = Duration::from_secs(10);

/// Out of buffers.
impl Landing {
    /// Writes a proved piece to its final offset and journals it.
    ///
    /// # Panics
    /// If `index` is not that piece of its blob, or its length differs.
    pub fn commit<B: AsRef<[u8]>>(&self, index: PieceIndex, piece: &Verified<B>) -> Result<(), StoreError> {
        self.write(index, piece.piece(), piece.bytes(), Record::Verified(index))
    }

    /// Writes a piece of which nothing is known to its final offset, and journals its value as a hint. Every proof of
    /// the blob made before is void.
    ///
    /// # Panics
    /// If `index` is not that piece of its blob, or its length differs.
    pub fn land<B: AsRef<[u8]>>(&self, index: PieceIndex, piece: &Landed<B>) -> Result<(), StoreError> {
        self.write(index, piece.piece(), piece.bytes(), Record::Landed(index, piece.value()))
    }

    pub(super) fn write(
        &self,
        index: PieceIndex,
        claimed: BlobPiece,
        bytes: &[u8],
        record: Record,
    ) -> Result<(), StoreError> {
        let span = self.checked_span(index, claimed, bytes.len());
        let slot = self.slot(span.blob);
        let held = unpoison(slot.state.read());
        // A duplicate of a proved piece: a read that was hedged, or one that came after the blob was sealed.
        if self.state().verified.contains(index) {
            return Ok(());
        }
        if held.stage != Stage::Open {
            return Err(self.sealed(span));
        }
        let lease = self.lease_to_write(&held, index, span)?;
        // Whoever had the range before may have landed the piece.
        if held.region.is_some() && self.state().verified.contains(index) {
            return Ok(());
        }
        if !matches!(record, Record::Verified(_)) {
            // Before the bytes change: a digest that is being computed over the old ones must not count.
            slot.generation.fetch_add(1, Ordering::SeqCst);
        }
        held.file.write_all_at(bytes, span.offset).context("write", self.blob_path(span.blob))?;
        self.note(record)?;
        if let Some(lease) = lease {
            lease.seal();
        }
        self.start_writeback(slot, &held.file, span)
    }

    /// Where the blob is mapped: the right to write the piece's range, which is waited for. `None` if nobody else can
    /// write it, because it is not mapped, or because the range is sealed: a piece landed there that nothing has proved,
    /// and it may be replaced.
    fn lease_to_write(
        &self,
        held: &SlotState,
        index: PieceIndex,
        span: PieceSpan,
    ) -> Result<Option<Lease>, StoreError> {
        let Some(region) = &held.region else { return Ok(None) };
        match region.lease_by(range_of(span), Instant::now() + RANGE_WAIT) {
            Ok(lease) => Ok(Some(lease)),
            Err(NotLeased::Never) => Ok(None),
            Err(NotLeased::Out) => {
                Err(StoreError::Leased { dir: self.dir.path().to_path_buf(), piece: index })
            }
        }
    }

    /// Forces writeback now and then from the calling thread, so that the final sync is short.
    pub(super) fn start_writeback(
        &self,
        slot: &Slot,
        file: &File,
        span: PieceSpan,
    ) -> Result<(), StoreError> {
        let unsynced = slot.unsynced.fetch_add(u64::from(span.len), Ordering::Relaxed) + u64::from(span.len);
        if self.kind == FsKind::Tmpfs || unsynced < WRITEBACK_BYTES {
            return Ok(());
        }
        slot.unsynced.store(0, Ordering::Relaxed);
        rustix::fs::fdatasync(file).context("sync", self.blob_path(span.blob))
    }
}

/// Where they arrived, in a lease of [`Landing::region`].
impl Landing {
    /// As [`Self::commit`] of a piece that arrived at its final offset: nothing is written, and its range is sealed.
    ///
    /// # Panics
    /// As [`Self::commit`], and if it lies elsewhere.
    pub fn commit_in_place(&self, index: PieceIndex, piece: Verified<Filled>) -> Result<(), StoreError> {
        self.keep(index, piece.piece(), piece.into_inner(), Record::Verified(index))
    }

    /// As [`Self::land`] of a piece that arrived at its final offset: nothing is written, and its range is sealed.
    ///
    /// # Panics
    /// As [`Self::land`], and if it lies elsewhere.
    pub fn land_in_place(&self, index: PieceIndex, piece: Landed<Filled>) -> Result<(), StoreError> {
        let record = Record::Landed(index, piece.value());
        self.keep(index, piece.piece(), piece.into_inner(), record)
    }

    /// As [`Self::land_relayed`] of a piece that arrived at its final offset: nothing is written, and its range is
    /// sealed.
    ///
    /// # Panics
    /// As [`Self::land_relayed`], and if it lies elsewhere.
    pub fn land_relayed_in_place(
        &self,
        index: PieceIndex,
        piece: Consistent<Filled>,
    ) -> Result<(), StoreError> {
        let record = Record::Landed(index, *piece.value());
        self.keep(index, piece.piece(), piece.into_inner(), record)
    }

    /// As [`Self::land_read`] of a piece that arrived at its final offset: nothing is written, and its range is sealed.
    ///
    /// # Panics
    /// As [`Self::land_read`], and if it lies elsewhere.
    pub fn land_read_in_place(&self, index: PieceIndex, piece: Consistent<Filled>) -> Result<(), StoreError> {
        let record = Record::Read(index, *piece.value());
        self.keep(index, piece.piece(), piece.into_inner(), record)
    }

    fn keep(
        &self,
        index: PieceIndex,
        claimed: BlobPiece,
        bytes: Filled,
        record: Record,
    ) -> Result<(), StoreError> {
        let span = self.checked_span(index, claimed, bytes.len());
        let slot = self.slot(span.blob);
        let held = unpoison(slot.state.read());
        if held.stage != Stage::Open {
            return Err(self.sealed(span));
        }
        let is_there =
            held.region.as_ref().is_some_and(|region| std::sync::Arc::ptr_eq(region, bytes.region()))
                && bytes.range() == range_of(span);
        assert!(is_there, "piece {index} did not arrive where it belongs");
        if !matches!(record, Record::Verified(_)) {
            slot.generation.fetch_add(1, Ordering::SeqCst);
        }
        self.note(record)?;
        bytes.into_lease().seal();
        Ok(())
    }
}

impl Landing {
    fn checked_span(&self, index: PieceIndex, claimed: BlobPiece, len: usize) -> PieceSpan {
        let span = self.layout.span(index);
        assert!(claimed == span.in_blob, "piece {index} is {} of its blob, not {claimed}", span.in_blob);
        assert!(len == span.len as usize, "piece {index} has {} bytes, not {len}", span.len);
        span
    }

    /// The bytes are there: from now on the journal says so.
    pub(super) fn note(&self, record: Record) -> Result<(), StoreError> {
        let mut state = self.state();
        state.journal.append(record)?;
        state.claims.apply(record, &self.layout);
        match record {
            Record::Verified(index) => {
                state.verified.insert(index);
                state.here.insert(index);
            }
            Record::Landed(index, _) | Record::Read(index, _) => {
                state.here.insert(index);
            }
            Record::Forget(_) => {}
        }
        drop(state);
        self.moved.notify_all();
        Ok(())
    }

    fn sealed(&self, span: PieceSpan) -> StoreError {
        StoreError::Sealed { dir: self.dir.path().to_path_buf(), blob: span.blob }
    }
}
