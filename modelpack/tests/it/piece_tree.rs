//! Piece trees: their roots are plain BLAKE3, and they admit nothing else than the blob's pieces.

use modelpack::{
    digest::Blake3Root,
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{Landed, PieceTree},
};
use proptest::prelude::*;

use crate::support::{bytes, tree};

fn check_root(len: u64) {
    let bytes = bytes(len, len);
    let provisional = tree(&bytes);
    let root = Blake3Root::new(*blake3::hash(&bytes).as_bytes());
    assert_eq!((provisional.root(), provisional.blob_bytes()), (root, len), "{len} bytes");
    let serialised = provisional.serialise();
    assert_eq!(serialised.len() as u64, modelpack::piece_trees::tree_bytes(len));
    let anchored = PieceTree::anchor(len, root, &serialised).unwrap();
    for (piece, bytes) in (0..).zip(bytes.chunks(usize::try_from(PIECE_BYTES).unwrap())) {
        assert!(anchored.verify(Landed::new(BlobPiece(piece), bytes)).is_ok());
        let landed = || Landed::new(BlobPiece(piece), bytes);
        let value = landed().value();
        assert_eq!(landed().as_read().value(), &value);
        assert!(landed().compare(&value).is_ok());
        assert!(landed().compare(&[0; 32]).is_err(), "not what was vouched for");
        assert!(anchored.verify(Landed::new(BlobPiece(piece + 1), bytes)).is_err(), "in another place");
        assert!(anchored.verify(Landed::new(BlobPiece(piece), &bytes[1..])).is_err(), "too short");
    }
    assert_eq!(provisional.anchored(root).unwrap(), anchored);
}

#[test]
fn roots_are_plain_blake3_at_every_edge() {
    let piece = PIECE_BYTES;
    for len in [
        0,
        1,
        1024,
        piece - 1,
        piece,
        piece + 1,
        2 * piece,
        2 * piece + 1,
        3 * piece - 1,
        3 * piece + 1,
        4 * piece,
        7 * piece + 5,
    ] {
        check_root(len);
    }
}

#[test]
fn a_single_piece_needs_no_values() {
    let root = Blake3Root::new(*blake3::hash(b"a").as_bytes());
    let single = PieceTree::single(1, root).unwrap();
    assert_eq!(single, PieceTree::anchor(1, root, &[]).unwrap());
    assert!(single.verify(Landed::new(BlobPiece(0), b"a")).is_ok());
    assert!(single.verify(Landed::new(BlobPiece(0), b"b")).is_err());
    assert!(PieceTree::single(PIECE_BYTES + 1, root).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn roots_are_plain_blake3(len in 0..9 * PIECE_BYTES) {
        check_root(len);
    }

    #[test]
    fn any_flipped_bit_is_refused(pieces in 2_u64..9, bit in any::<prop::sample::Index>(), in_piece in any::<prop::sample::Index>()) {
        let len = (pieces - 1) * PIECE_BYTES + 1;
        let mut bytes = bytes(pieces, len);
        let provisional = tree(&bytes);
        let root = provisional.root();
        let good = provisional.serialise();
        let anchored = PieceTree::anchor(len, root, &good).unwrap();

        let mut bad = good.clone();
        let at = bit.index(bad.len() * 8);
        bad[at / 8] ^= 1 << (at % 8);
        prop_assert!(PieceTree::anchor(len, root, &bad).is_err(), "in a value");

        let mut bad_root = *root.bytes();
        bad_root[at % 32] ^= 1;
        prop_assert!(PieceTree::anchor(len, Blake3Root::new(bad_root), &good).is_err(), "in the root");
        prop_assert!(PieceTree::anchor(len, root, &good[32..]).is_err(), "a value less");
        prop_assert!(PieceTree::anchor(len, root, &good[1..]).is_err(), "a byte less");
        prop_assert!(PieceTree::anchor(len + PIECE_BYTES, root, &good).is_err(), "a piece more");

        let at = in_piece.index(bytes.len());
        bytes[at] ^= 1;
        let chunk = usize::try_from(PIECE_BYTES).unwrap();
        let piece = BlobPiece(u32::try_from(at / chunk).unwrap());
        let landed = Landed::new(piece, bytes.chunks(chunk).nth(at / chunk).unwrap());
        prop_assert!(anchored.verify(landed).is_err(), "in a piece");
    }

    #[test]
    fn any_values_are_refused(values in prop::collection::vec(any::<u8>(), 0..200), pieces in 2_u64..6) {
        let root = Blake3Root::new([7; 32]);
        prop_assert!(PieceTree::anchor(pieces * PIECE_BYTES, root, &values).is_err());
    }
}
