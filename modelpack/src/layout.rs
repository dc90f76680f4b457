//! Where the pieces of an artifact lie: piece numbers run through its blobs in manifest order.

use std::{fmt, ops::Range};

/// Bytes in a piece. A protocol constant: the unit of proof, relay, have-map and resume.
///
/// 1 MiB hashes in well under a millisecond, so checking before relaying costs little at each hop, and its
/// 32-byte chaining value makes a piece tree 1/32768 of the blob. It is a power of two of BLAKE3 chunks, as
/// subtree chaining values require.
pub const PIECE_BYTES: u64 = 1 << 20;

/// Most pieces an artifact may have: 2^26 MiB = 64 TiB, so that a have-map stays within 8 MiB.
pub const PIECES_MAX: u64 = 1 << 26;

/// The number of a piece within its artifact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceIndex(pub u32);

/// The number of a piece within its blob.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobPiece(pub u32);

/// The number of a blob within its artifact, in order of first mention in the manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlobIndex(pub u32);

macro_rules! debug_as_number {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
debug_as_number!(PieceIndex, BlobPiece, BlobIndex);

/// A half-open range of piece numbers. Unlike `Range<u32>` it is `Copy` and cannot be mistaken for bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Run {
    /// The first piece.
    pub start: PieceIndex,
    /// One past the last piece.
    pub end: PieceIndex,
}

impl Run {
    /// The pieces `start..end`.
    ///
    /// # Panics
    /// If `start > end`.
    pub const fn new(start: u32, end: u32) -> Self {
        assert!(start <= end, "a run must not end before it starts");
        Self { start: PieceIndex(start), end: PieceIndex(end) }
    }

    /// The run of one piece.
    pub const fn one(piece: PieceIndex) -> Self {
        Self::new(piece.0, piece.0 + 1)
    }

    /// How many pieces.
    pub const fn len(&self) -> u32 {
        self.end.0 - self.start.0
    }

    /// Whether there is no piece in it.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `piece` is one of them.
    pub fn contains(&self, piece: PieceIndex) -> bool {
        self.start <= piece && piece < self.end
    }

    /// The pieces, ascending.
    pub fn pieces(&self) -> impl DoubleEndedIterator<Item = PieceIndex> + use<> {
        (self.start.0..self.end.0).map(PieceIndex)
    }
}

/// Ascending pieces as their maximal runs.
pub fn runs_of(pieces: impl IntoIterator<Item = PieceIndex>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for piece in pieces {
        match runs.last_mut() {
            Some(run) if run.end == piece => run.end.0 += 1,
            _ => runs.push(Run::one(piece)),
        }
    }
    runs
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// One piece's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceSpan {
    /// The blob it belongs to.
    pub blob: BlobIndex,
    /// Its number within that blob.
    pub in_blob: BlobPiece,
    /// Its first byte within that blob, in bytes.
    pub offset: u64,
    /// Its length in bytes: [`PIECE_BYTES`], or less for a blob's last piece.
    pub len: u32,
}

/// The sizes of an artifact are beyond what the protocol numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the artifact has more than {PIECES_MAX} pieces of {PIECE_BYTES} bytes")]
pub struct TooManyPieces;

/// The geometry of one artifact's blobs. Blobs without bytes have no piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PieceLayout {
    sizes: Vec<u64>,
    /// `first[b]..first[b + 1]` are the pieces of blob `b`.
    first: Vec<u32>,
}

impl PieceLayout {
    /// The geometry of blobs of these sizes in bytes, in manifest order.
    pub fn new(sizes: Vec<u64>) -> Result<Self, TooManyPieces> {
        let mut first = Vec::with_capacity(sizes.len() + 1);
        let mut next = 0_u64;
        for size in &sizes {
            first.push(u32::try_from(next).map_err(|_| TooManyPieces)?);
            next = next.checked_add(size.div_ceil(PIECE_BYTES)).ok_or(TooManyPieces)?;
            if next > PIECES_MAX {
                return Err(TooManyPieces);
            }
        }
        first.push(u32::try_from(next).map_err(|_| TooManyPieces)?);
        Ok(Self { sizes, first })
    }

    /// How many pieces all blobs have together.
    pub fn piece_count(&self) -> u32 {
        *self.first.last().expect("the constructor pushes at least one entry")
    }

    /// How many blobs.
    pub fn blob_count(&self) -> u32 {
        u32::try_from(self.sizes.len()).expect("the constructor numbered them with u32")
    }

    /// The blobs' numbers, ascending.
    pub fn blobs(&self) -> impl Iterator<Item = BlobIndex> + use<> {
        (0..self.blob_count()).map(BlobIndex)
    }

    /// The size of a blob in bytes.
    pub fn blob_bytes(&self, blob: BlobIndex) -> u64 {
        self.sizes[blob.0 as usize]
    }

    /// The size of all blobs in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// All pieces.
    pub fn all(&self) -> Run {
        Run::new(0, self.piece_count())
    }

    /// The pieces of a blob.
    pub fn pieces_of(&self, blob: BlobIndex) -> Run {
        Run::new(self.first[blob.0 as usize], self.first[blob.0 as usize + 1])
    }

    /// Where a piece lies.
    ///
    /// # Panics
    /// If the artifact has no such piece: check numbers from the network against [`Self::piece_count`] first.
    pub fn span(&self, piece: PieceIndex) -> PieceSpan {
        assert!(piece.0 < self.piece_count(), "piece {piece} of {}", self.piece_count());
        // Blobs without bytes share their first piece number with the next blob; the last one owns it.
        let blob = self.first.partition_point(|first| *first <= piece.0) - 1;
        let in_blob = piece.0 - self.first[blob];
        let offset = u64::from(in_blob) * PIECE_BYTES;
        let len = (self.sizes[blob] - offset).min(PIECE_BYTES);
        PieceSpan {
            blob: BlobIndex(u32::try_from(blob).expect("the constructor numbered them with u32")),
            in_blob: BlobPiece(in_blob),
            offset,
            len: u32::try_from(len).expect("at most PIECE_BYTES"),
        }
    }

    /// The bytes that a run within one blob covers.
    ///
    /// # Panics
    /// If the run is empty or reaches over two blobs.
    pub fn bytes_of(&self, run: Run) -> (BlobIndex, Range<u64>) {
        assert!(!run.is_empty(), "an empty run has no place");
        let first = self.span(run.start);
        let last = self.span(PieceIndex(run.end.0 - 1));
        assert!(first.blob == last.blob, "a run lies within one blob");
        (first.blob, first.offset..last.offset + u64::from(last.len))
    }

    /// How many bytes a piece has.
    pub fn piece_bytes(&self, piece: PieceIndex) -> u64 {
        u64::from(self.span(piece).len)
    }
}
