//! Resume: what the journal claims, looked at again. Does not own the journal.

use std::time::Instant;

use memory::{Lease, NotLeased};
use modelpack::{
    layout::{BlobPiece, PieceIndex, PieceSpan},
    piece_tree::{Anchored, Landed, PieceTree, piece_value},
};

use super::{Landing, SlotState, State, direct::range_of, unpoison};
use crate::error::StoreError;

impl Landing {
    /// Hashes a claimed piece again, with `buf` as long as the piece; says whether `tree`, that of the piece's blob,
    /// admits it. If so it counts as verified without being written again; if not its claim is withdrawn.
    pub fn recheck(
        &self,
        piece: PieceIndex,
        tree: &PieceTree<Anchored>,
        buf: &mut [u8],
    ) -> Result<bool, StoreError> {
        let is_admitted = |at, bytes: &[u8]| tree.verify(Landed::new(at, bytes)).is_ok();
        self.recheck_by(piece, buf, is_admitted, |state| {
            state.verified.insert(piece);
        })
    }

    /// Hashes a landed piece again; says whether it is still what the journal says. If so `buf` holds its bytes, to be
    /// taken as [`Landed`] again; if not its claim is withdrawn.
    pub fn recheck_landed(
        &self,
        piece: PieceIndex,
        value: &[u8; 32],
        buf: &mut [u8],
    ) -> Result<bool, StoreError> {
        self.recheck_by(piece, buf, |at, bytes| piece_value(at, bytes) == *value, |_| {})
    }

    fn recheck_by(
        &self,
        piece: PieceIndex,
        buf: &mut [u8],
        is_good: impl FnOnce(BlobPiece, &[u8]) -> bool,
        note: impl FnOnce(&mut State),
    ) -> Result<bool, StoreError> {
        let span = self.layout.span(piece);
        // Nobody maps the blob meanwhile.
        let slot = unpoison(self.slot(span.blob).state.read());
        let Some(held) = self.hold_still(&slot, piece, span) else { return Ok(false) };
        if !self.read_if_there(&slot, piece, buf)? {
            return Ok(false);
        }
        let is_good = is_good(span.in_blob, buf);
        let mut state = self.state();
        if is_good {
            note(&mut state);
            state.here.insert(piece);
            drop(state);
            self.moved.notify_all();
            held.seal();
        } else {
            state.claims.withdraw(piece);
        }
        Ok(is_good)
    }

    /// Sees to it that nobody writes the piece. `None` if somebody does: then its claim is void.
    fn hold_still(&self, slot: &SlotState, piece: PieceIndex, span: PieceSpan) -> Option<Still> {
        let Some(region) = &slot.region else { return Some(Still(None)) };
        match region.lease_by(range_of(span), Instant::now()) {
            Ok(lease) => Some(Still(Some(lease))),
            // It is sealed.
            Err(NotLeased::Never) => Some(Still(None)),
            Err(NotLeased::Out) => {
                self.state().claims.withdraw(piece);
                None
            }
        }
    }

    /// As [`Self::read`], but a file that is too short only means that the claim is void.
    fn read_if_there(&self, slot: &SlotState, piece: PieceIndex, buf: &mut [u8]) -> Result<bool, StoreError> {
        match self.read_from(&slot.file, piece, buf) {
            Ok(()) => Ok(true),
            Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                self.state().claims.withdraw(piece);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

/// A piece that nobody writes. Where its blob is not mapped, the caller sees to that.
struct Still(Option<Lease>);

impl Still {
    /// It stays so.
    fn seal(self) {
        if let Some(lease) = self.0 {
            lease.seal();
        }
    }
}
