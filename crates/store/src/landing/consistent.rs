//! Landing pieces that a reader of the origin vouches for. Does not own what that is worth: the blob as a whole decides.

use modelpack::{layout::PieceIndex, piece_tree::Consistent};

use super::Landing;
use crate::{error::StoreError, journal::Record};

impl Landing {
    /// Writes a piece that this node read from the origin itself; otherwise as [`Self::land`].
    ///
    /// # Panics
    /// If `index` is not that piece of its blob, or its length differs.
    pub fn land_read<B: AsRef<[u8]>>(
        &self,
        index: PieceIndex,
        piece: &Consistent<B>,
    ) -> Result<(), StoreError> {
        self.write(index, piece.piece(), piece.bytes(), Record::Read(index, *piece.value()))
    }

    /// Writes a piece that another reader of the origin vouches for; otherwise as [`Self::land`].
    ///
    /// # Panics
    /// If `index` is not that piece of its blob, or its length differs.
    pub fn land_relayed<B: AsRef<[u8]>>(
        &self,
        index: PieceIndex,
        piece: &Consistent<B>,
    ) -> Result<(), StoreError> {
        self.write(index, piece.piece(), piece.bytes(), Record::Landed(index, *piece.value()))
    }
}
