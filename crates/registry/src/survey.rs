//! All hashes of a blob whose bytes pass by in order.
//!
//! Owns: SHA-256 and piece tree in one pass. Does not own: where the bytes come from and go to (`upload`).

use std::fmt;

use modelpack::{
    digest::{Sha256Digest, Sha256Hasher},
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{PieceTree, Provisional, TreeBuilder},
};

/// The hashes of what has passed.
pub(crate) struct Survey {
    size: u64,
    /// Bytes that have passed.
    at: u64,
    sha256: Sha256Hasher,
    digest: Option<Sha256Digest>,
    tree: Option<TreeBuilder>,
    /// The piece that is not complete yet.
    piece: Vec<u8>,
}

impl fmt::Debug for Survey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Survey").field("size", &self.size).field("at", &self.at).finish_non_exhaustive()
    }
}

impl Survey {
    pub(crate) fn new(size: u64) -> Self {
        let (sha256, tree) = (Sha256Hasher::default(), Some(TreeBuilder::new(size)));
        let digest = (size == 0).then(|| Sha256Digest::of(b""));
        Self { size, at: 0, sha256, digest, tree, piece: Vec::new() }
    }

    /// Takes bytes from `offset` of the blob on. What has passed before is not taken twice: an upload that goes on may
    /// send some again.
    pub(crate) fn take(&mut self, offset: u64, bytes: &[u8]) {
        let seen = usize::try_from(self.at.saturating_sub(offset)).unwrap_or(usize::MAX);
        let left = usize::try_from(self.size - self.at).unwrap_or(usize::MAX);
        let Some(new) = bytes.get(seen..).filter(|_| offset <= self.at) else { return };
        let mut new = &new[..new.len().min(left)];
        self.sha256.update(new);
        while !new.is_empty() {
            let start = self.at - self.piece.len() as u64;
            let whole = usize::try_from(PIECE_BYTES.min(self.size - start)).expect("at most a piece");
            let (next, rest) = new.split_at(new.len().min(whole - self.piece.len()));
            self.piece.extend_from_slice(next);
            self.at += next.len() as u64;
            new = rest;
            if self.piece.len() == whole {
                let number = u32::try_from(start / PIECE_BYTES).expect("blobs have at most that many pieces");
                if let Some(tree) = &mut self.tree {
                    tree.add(BlobPiece(number), &self.piece);
                }
                self.piece.clear();
            }
        }
        if self.at == self.size && self.digest.is_none() {
            self.digest = Some(std::mem::take(&mut self.sha256).finish());
        }
    }

    /// The digest of the whole, once it has passed.
    pub(crate) fn digest(&self) -> Option<Sha256Digest> {
        self.digest
    }

    /// The tree of the whole, once: after it has passed.
    pub(crate) fn tree(&mut self) -> Option<PieceTree<Provisional>> {
        self.digest?;
        self.tree.take()?.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0_u32..).flat_map(|word| word.wrapping_mul(2_654_435_761).to_le_bytes()).take(length).collect()
    }

    #[test]
    fn hashes_are_those_of_the_whole_however_it_is_cut() {
        for length in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (3 << 20) + 7] {
            let blob = bytes(length);
            for step in [1 << 16, (1 << 20) + 13, 1 << 22] {
                let mut survey = Survey::new(length as u64);
                for (number, part) in blob.chunks(step).enumerate() {
                    assert!(survey.digest().is_none() && survey.tree().is_none());
                    survey.take((number * step) as u64, part);
                }
                assert_eq!(survey.digest(), Some(Sha256Digest::of(&blob)), "{length} by {step}");
                let root = survey.tree().unwrap().root();
                let mut builder = TreeBuilder::new(length as u64);
                for (number, piece) in (0..).zip(blob.chunks(1 << 20)) {
                    builder.add(BlobPiece(number), piece);
                }
                assert_eq!(root, builder.finish().unwrap().root(), "{length} by {step}");
            }
        }
    }

    #[test]
    fn what_is_sent_again_counts_once_and_a_gap_never_ends() {
        let blob = bytes(3000);
        let mut survey = Survey::new(3000);
        survey.take(0, &blob[..2000]);
        survey.take(0, &blob[..100]);
        survey.take(2500, &blob[2500..]);
        assert!(survey.digest().is_none());
        survey.take(1000, &[&blob[1000..], b"more than the blob has"].concat());
        assert_eq!(survey.digest(), Some(Sha256Digest::of(&blob)));
    }
}
