//! Piece trees and what they prove: BLAKE3 chaining values of a blob's pieces, rooted in its plain BLAKE3 hash.
//!
//! Source: the BLAKE3 paper, §2.1 "Tree structure" and §5.3; `blake3::hazmat` for subtree values. A chaining
//! value depends on the offset of its piece, so equal pieces at different offsets have different values.

use std::marker::PhantomData;

use blake3::hazmat::{self, ChainingValue, HasherExt as _, Mode};

use crate::{
    digest::Blake3Root,
    layout::{BlobPiece, PIECE_BYTES},
};

/// A tree whose root the manifest states: what it admits is [`Verified`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchored(());

/// A tree that was computed from bytes of which nobody knows whether they are the manifest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provisional(());

/// Why a list of chaining values is not the tree of a blob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// There are too few or too many values for the blob's size.
    #[error("a blob of {blob_bytes} bytes has {expected} chaining values, not {found}")]
    Count {
        /// The blob's size in bytes.
        blob_bytes: u64,
        /// How many values a blob of that size has.
        expected: u64,
        /// How many were given.
        found: u64,
    },
    /// The serialised form is not a multiple of 32 bytes.
    #[error("piece tree of {0} bytes is no multiple of 32")]
    Length(usize),
    /// The values do not add up to the stated root.
    #[error("piece tree has the root {found}, but the manifest states {stated}")]
    Root {
        /// What the manifest says.
        stated: Blake3Root,
        /// What the values give.
        found: Blake3Root,
    },
}

/// The chaining values of one blob's pieces, and their root. `A` says who vouches for the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceTree<A> {
    blob_bytes: u64,
    root: Blake3Root,
    /// One value a piece; empty for a blob of at most one piece, whose only value is the root itself.
    values: Vec<ChainingValue>,
    anchor: PhantomData<A>,
}

/// How many chaining values a tree lists: none for a blob that fits one piece.
fn value_count(blob_bytes: u64) -> u64 {
    if blob_bytes <= PIECE_BYTES { 0 } else { blob_bytes.div_ceil(PIECE_BYTES) }
}

impl PieceTree<Anchored> {
    /// The tree of a blob of at most one piece, which needs no chaining values.
    pub fn single(blob_bytes: u64, stated: Blake3Root) -> Option<Self> {
        (value_count(blob_bytes) == 0).then_some(Self {
            blob_bytes,
            root: stated,
            values: Vec::new(),
            anchor: PhantomData,
        })
    }

    /// Reads the serialised chaining values of a blob and proves them against the root its manifest states.
    /// Whoever sent them need not be trusted.
    pub fn anchor(blob_bytes: u64, stated: Blake3Root, serialised: &[u8]) -> Result<Self, TreeError> {
        let (values, rest) = serialised.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(TreeError::Length(serialised.len()));
        }
        let expected = value_count(blob_bytes);
        if values.len() as u64 != expected {
            return Err(TreeError::Count { blob_bytes, expected, found: values.len() as u64 });
        }
        if expected > 0 {
            let found = root_of(values);
            if found != stated {
                return Err(TreeError::Root { stated, found });
            }
        }
        Ok(Self { blob_bytes, root: stated, values: values.to_vec(), anchor: PhantomData })
    }

    /// Proves one piece against the tree.
    pub fn verify<B: AsRef<[u8]>>(&self, landed: Landed<B>) -> Result<Verified<B>, Mismatch<B>> {
        if self.admits(landed.piece, landed.bytes.as_ref()) {
            Ok(Verified(landed))
        } else {
            Err(Mismatch(landed))
        }
    }
}

impl PieceTree<Provisional> {
    /// Turns into an anchored tree, if its root is the one the manifest states.
    pub fn anchored(self, stated: Blake3Root) -> Result<PieceTree<Anchored>, TreeError> {
        if self.root != stated {
            return Err(TreeError::Root { stated, found: self.root });
        }
        let Self { blob_bytes, root, values, .. } = self;
        Ok(PieceTree { blob_bytes, root, values, anchor: PhantomData })
    }
}

impl<A> PieceTree<A> {
    /// The blob's size in bytes.
    pub fn blob_bytes(&self) -> u64 {
        self.blob_bytes
    }

    /// The blob's plain BLAKE3 hash.
    pub fn root(&self) -> Blake3Root {
        self.root
    }

    /// The 32-byte chaining values in piece order: the form in which trees are stored and sent.
    pub fn serialise(&self) -> Vec<u8> {
        self.values.concat()
    }

    /// Whether a piece of this blob and the piece at the same place of another one are the same bytes. Of blobs of one
    /// piece it is not said: their digests say it.
    pub fn shares<B>(&self, other: &PieceTree<B>, piece: BlobPiece) -> bool {
        let value = self.values.get(piece.0 as usize);
        value.is_some() && value == other.values.get(piece.0 as usize)
    }

    fn admits(&self, piece: BlobPiece, bytes: &[u8]) -> bool {
        let offset = u64::from(piece.0) * PIECE_BYTES;
        let expected = self.blob_bytes.saturating_sub(offset).min(PIECE_BYTES);
        if bytes.len() as u64 != expected {
            return false;
        }
        match self.values.get(piece.0 as usize) {
            Some(value) => *value == piece_value(piece, bytes),
            None => {
                piece.0 == 0 && self.values.is_empty() && blake3::hash(bytes).as_bytes() == self.root.bytes()
            }
        }
    }
}

/// The non-root chaining value of one piece at its place in its blob.
pub fn piece_value(piece: BlobPiece, bytes: &[u8]) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(u64::from(piece.0) * PIECE_BYTES);
    hasher.update(bytes);
    hasher.finalize_non_root()
}

/// The root over two or more pieces' values: left subtrees are the largest powers of two, as in the BLAKE3 paper.
fn root_of(values: &[ChainingValue]) -> Blake3Root {
    let (left, right) = values.split_at(left_count(values.len()));
    let root = hazmat::merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
    Blake3Root::new(*root.as_bytes())
}

fn subtree(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_count(values.len()));
    hazmat::merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The largest power of two below `count`.
fn left_count(count: usize) -> usize {
    assert!(count >= 2, "one value has no subtrees");
    count.next_power_of_two() / 2
}

/// Computes the piece tree of a blob from its pieces, given in any order.
#[derive(Debug)]
pub struct TreeBuilder {
    blob_bytes: u64,
    /// The root of a blob of at most one piece.
    single: Option<Blake3Root>,
    values: Vec<Option<ChainingValue>>,
}

impl TreeBuilder {
    /// For a blob of `blob_bytes` bytes.
    pub fn new(blob_bytes: u64) -> Self {
        let count = usize::try_from(value_count(blob_bytes)).expect("64-bit machines");
        let single = (blob_bytes == 0).then(|| Blake3Root::new(*blake3::hash(b"").as_bytes()));
        Self { blob_bytes, single, values: vec![None; count] }
    }

    /// Takes one piece.
    ///
    /// # Panics
    /// If the blob has no such piece of this length.
    pub fn add(&mut self, piece: BlobPiece, bytes: &[u8]) {
        let offset = u64::from(piece.0) * PIECE_BYTES;
        assert!(offset < self.blob_bytes, "the blob has no such piece");
        assert!(bytes.len() as u64 == (self.blob_bytes - offset).min(PIECE_BYTES), "a whole piece");
        match self.values.get_mut(piece.0 as usize) {
            Some(value) => *value = Some(piece_value(piece, bytes)),
            None => self.single = Some(Blake3Root::new(*blake3::hash(bytes).as_bytes())),
        }
    }

    /// The tree, or `None` while a piece is missing.
    pub fn finish(self) -> Option<PieceTree<Provisional>> {
        let values: Vec<_> = self.values.into_iter().collect::<Option<_>>()?;
        let root = if values.is_empty() { self.single? } else { root_of(&values) };
        Some(PieceTree { blob_bytes: self.blob_bytes, root, values, anchor: PhantomData })
    }
}

/// Bytes that arrived as one piece and were not checked yet.
#[derive(Debug)]
pub struct Landed<B> {
    piece: BlobPiece,
    bytes: B,
}

impl<B: AsRef<[u8]>> Landed<B> {
    /// `bytes` claim to be `piece` of some blob.
    pub fn new(piece: BlobPiece, bytes: B) -> Self {
        Self { piece, bytes }
    }

    /// Which piece they claim to be.
    pub fn piece(&self) -> BlobPiece {
        self.piece
    }

    /// The bytes, of which nothing is known.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The chaining value of what arrived: a hint for resume where no tree is known.
    pub fn value(&self) -> [u8; 32] {
        piece_value(self.piece, self.bytes.as_ref())
    }

    /// Compares the piece with the chaining value that a reader of the origin vouches for: one leaf of a provisional
    /// tree, which grows as readers read.
    pub fn compare(self, value: &[u8; 32]) -> Result<Consistent<B>, Mismatch<B>> {
        if self.value() == *value {
            Ok(Consistent { landed: self, value: *value })
        } else {
            Err(Mismatch(self))
        }
    }

    /// The piece as the caller read it from the origin itself: nobody knows better yet.
    pub fn as_read(self) -> Consistent<B> {
        let value = self.value();
        Consistent { landed: self, value }
    }

    /// Gives the buffer back.
    pub fn into_inner(self) -> B {
        self.bytes
    }
}

/// A piece that is what a reader of the origin says: it may be relayed inside its swarm, nothing more.
#[derive(Debug)]
pub struct Consistent<B> {
    landed: Landed<B>,
    value: [u8; 32],
}

impl<B: AsRef<[u8]>> Consistent<B> {
    /// Which piece of its blob.
    pub fn piece(&self) -> BlobPiece {
        self.landed.piece
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.landed.bytes.as_ref()
    }

    /// Its chaining value.
    pub fn value(&self) -> &[u8; 32] {
        &self.value
    }

    /// Gives the buffer back; what is known of the bytes is forgotten.
    pub fn into_inner(self) -> B {
        self.landed.bytes
    }
}

/// A piece that is proved against the manifest. Only [`PieceTree::verify`] makes one.
#[derive(Debug)]
pub struct Verified<B>(Landed<B>);

/// A piece that is not what the tree says: its sender lied or the bytes were damaged.
#[derive(Debug)]
pub struct Mismatch<B>(Landed<B>);

macro_rules! checked_piece {
    ($($name:ident),*) => {$(
        impl<B: AsRef<[u8]>> $name<B> {
            /// Which piece of its blob.
            pub fn piece(&self) -> BlobPiece {
                self.0.piece
            }

            /// Its bytes.
            pub fn bytes(&self) -> &[u8] {
                self.0.bytes.as_ref()
            }

            /// Gives the buffer back; what is known of the bytes is forgotten.
            pub fn into_inner(self) -> B {
                self.0.bytes
            }
        }
    )*};
}
checked_piece!(Verified, Mismatch);
