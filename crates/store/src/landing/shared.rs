//! Bringing a piece from another file of this machine without writing it, where the file system lets files share
//! blocks.
//!
//! Owns: that the bytes are proved where they lie then. Does not own: where equal bytes may be.

use std::{fs::File, sync::atomic::Ordering};

use modelpack::{
    layout::PieceIndex,
    piece_tree::{Anchored, Landed, PieceTree},
};
use rustix::io::Errno;

use super::{Landing, Stage, unpoison};
use crate::{error::StoreError, files::FsKind, journal::Record};

/// Blocks are shared as a whole: the smallest that common file systems have.
const BLOCK_BYTES: u64 = 4096;

impl Landing {
    /// Whether its file system may let a piece share blocks with `from` of another file. Elsewhere a piece is read,
    /// proved, and written only if it is right.
    pub fn may_share(&self, from: u64) -> bool {
        !matches!(self.kind, FsKind::Tmpfs | FsKind::Ext) && from.is_multiple_of(BLOCK_BYTES)
    }

    /// Has the kernel copy a piece from `from` of `source`, which shares the blocks where it can, and proves it in its
    /// place, with `buf` as long as the piece; says whether it counts as verified from now on. `None` if it cannot be
    /// brought in this way. What is not right counts for nothing and is written again.
    ///
    /// The caller sees to it that nobody else writes the piece.
    pub fn share(
        &self,
        piece: PieceIndex,
        (source, from): (&File, u64),
        tree: &PieceTree<Anchored>,
        buf: &mut [u8],
    ) -> Result<Option<bool>, StoreError> {
        let span = self.layout.span(piece);
        let slot = self.slot(span.blob);
        let held = unpoison(slot.state.read());
        if held.stage != Stage::Open || held.region.is_some() || self.state().verified.contains(piece) {
            return Ok(None);
        }
        slot.generation.fetch_add(1, Ordering::SeqCst);
        if !copy(source, from, (&held.file, span.offset), u64::from(span.len)) {
            return Ok(None);
        }
        self.read_from(&held.file, piece, buf)?;
        if tree.verify(Landed::new(span.in_blob, &*buf)).is_err() {
            return Ok(Some(false));
        }
        self.note(Record::Verified(piece))?;
        self.start_writeback(slot, &held.file, span)?;
        Ok(Some(true))
    }
}

/// Says whether all of it was copied. Why not does not matter: whoever writes it instead will find out.
fn copy(source: &File, mut from: u64, (target, mut to): (&File, u64), bytes: u64) -> bool {
    let end = to + bytes;
    while to < end {
        let len = usize::try_from(end - to).expect("at most a piece");
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len) {
            Ok(0) => return false,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}
