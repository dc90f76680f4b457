//! The piece journal: which pieces a landing claims to hold.
//!
//! Owns: the append-only file format and its replay. Does not own: whether a claim is true; resume re-hashes every
//! claimed piece, so a lost or torn record costs time, never correctness.

use std::{collections::BTreeMap, fs::File, io::Read as _, os::unix::fs::FileExt as _, path::PathBuf};

use modelpack::{
    digest::Sha256Digest,
    layout::{BlobIndex, PieceIndex, PieceLayout},
    piece_map::PieceMap,
};

use crate::{
    error::{Context as _, Occupied, StoreError},
    files::Dir,
};

/// The name of the journal in a landing's directory.
pub(crate) const JOURNAL_NAME: &str = "journal";

/// The first bytes; the digit is the format's version.
const MAGIC: [u8; 8] = *b"MCJRNL1\n";
/// Magic, manifest digest, piece count, blob count.
const HEADER_BYTES: usize = 8 + 32 + 4 + 4;
/// Tag, number, value, check.
const RECORD_BYTES: usize = 4 + 4 + 32 + 8;

/// A piece that the journal says is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The piece.
    pub piece: PieceIndex,
    /// How much was known of it.
    pub kind: ClaimKind,
}

/// How much was known of a piece when it was journalled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimKind {
    /// It was proved against an anchored tree.
    Verified,
    /// It landed, and this was its chaining value: a hint where no tree is known.
    Landed {
        /// The piece's own BLAKE3 chaining value.
        value: [u8; 32],
    },
    /// As [`Self::Landed`], and this node read it from the origin itself.
    Read {
        /// The piece's own BLAKE3 chaining value.
        value: [u8; 32],
    },
}

/// One line of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    Verified(PieceIndex),
    Landed(PieceIndex, [u8; 32]),
    Read(PieceIndex, [u8; 32]),
    /// Every earlier claim of the blob is void.
    Forget(BlobIndex),
}

impl Record {
    fn encode(self) -> [u8; RECORD_BYTES] {
        let (tag, number, value) = match self {
            Self::Verified(piece) => (1_u32, piece.0, [0; 32]),
            Self::Landed(piece, value) => (2, piece.0, value),
            Self::Read(piece, value) => (4, piece.0, value),
            Self::Forget(blob) => (3, blob.0, [0; 32]),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[..4].copy_from_slice(&tag.to_le_bytes());
        bytes[4..8].copy_from_slice(&number.to_le_bytes());
        bytes[8..40].copy_from_slice(&value);
        let check = blake3::hash(&bytes[..40]);
        bytes[40..].copy_from_slice(&check.as_bytes()[..8]);
        bytes
    }

    /// `None` for anything that is not a record of an artifact of this layout.
    fn decode(bytes: &[u8; RECORD_BYTES], layout: &PieceLayout) -> Option<Self> {
        if blake3::hash(&bytes[..40]).as_bytes()[..8] != bytes[40..] {
            return None;
        }
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let number = word(4);
        let is_piece = number < layout.piece_count();
        let value = std::array::from_fn(|i| bytes[8 + i]);
        match word(0) {
            1 if is_piece => Some(Self::Verified(PieceIndex(number))),
            2 if is_piece => Some(Self::Landed(PieceIndex(number), value)),
            3 if number < layout.blob_count() => Some(Self::Forget(BlobIndex(number))),
            4 if is_piece => Some(Self::Read(PieceIndex(number), value)),
            _ => None,
        }
    }
}

/// The claims of a journal, replayed.
#[derive(Debug)]
pub(crate) struct Claims {
    verified: PieceMap,
    /// Of the others: how they came here.
    landed: BTreeMap<PieceIndex, ClaimKind>,
}

impl Claims {
    pub(crate) fn none(layout: &PieceLayout) -> Self {
        Self { verified: PieceMap::empty(layout.piece_count()), landed: BTreeMap::new() }
    }

    pub(crate) fn apply(&mut self, record: Record, layout: &PieceLayout) {
        match record {
            Record::Verified(piece) => {
                self.verified.insert(piece);
                self.landed.remove(&piece);
            }
            Record::Landed(piece, value) => {
                self.verified.remove(piece);
                self.landed.insert(piece, ClaimKind::Landed { value });
            }
            Record::Read(piece, value) => {
                self.verified.remove(piece);
                self.landed.insert(piece, ClaimKind::Read { value });
            }
            Record::Forget(blob) => {
                for piece in layout.pieces_of(blob).pieces() {
                    self.withdraw(piece);
                }
            }
        }
    }

    /// Whether it is claimed that the piece landed, without a proof.
    pub(crate) fn is_landed(&self, piece: PieceIndex) -> bool {
        self.landed.contains_key(&piece)
    }

    pub(crate) fn withdraw(&mut self, piece: PieceIndex) {
        self.verified.remove(piece);
        self.landed.remove(&piece);
    }

    /// Ascending.
    pub(crate) fn list(&self) -> Vec<Claim> {
        let verified = self.verified.iter().map(|piece| Claim { piece, kind: ClaimKind::Verified });
        let landed = self.landed.iter().map(|(piece, kind)| Claim { piece: *piece, kind: *kind });
        let mut claims: Vec<_> = verified.chain(landed).collect();
        claims.sort_by_key(|claim| claim.piece);
        claims
    }
}

/// The open journal of one landing.
#[derive(Debug)]
pub(crate) struct Journal {
    file: File,
    path: PathBuf,
    /// Where the next record goes: over a torn tail, which would shift every later record.
    end: u64,
}

impl Journal {
    /// Opens or starts the journal in `dir` and replays it. A journal of another artifact is an error, so that two
    /// artifacts never mix in one directory.
    pub(crate) fn open(
        dir: &Dir,
        layout: &PieceLayout,
        identity: &Sha256Digest,
    ) -> Result<(Self, Claims), StoreError> {
        let path = dir.path().join(JOURNAL_NAME);
        let mut file = dir.open_or_create(JOURNAL_NAME)?;
        let header = header(layout, identity);
        let mut found = [0; HEADER_BYTES];
        let mut claims = Claims::none(layout);
        let mut end = HEADER_BYTES as u64;
        match read_whole(&mut file, &mut found).context("read", &path)? {
            true if found == header => {
                end += replay(&mut file, layout, &mut claims).context("read", &path)?;
            }
            true if found[..8] == MAGIC && found[8..40] != *identity.bytes() => {
                let other = Sha256Digest::new(std::array::from_fn(|i| found[8 + i]));
                let dir = dir.path().to_path_buf();
                return Err(StoreError::Occupied { dir, reason: Occupied::OtherArtifact(other) });
            }
            // Too short or not ours to read: nothing in it can be relied upon, and nothing is lost but time.
            _ => {
                file.set_len(0).context("truncate", &path)?;
                file.write_all_at(&header, 0).context("write", &path)?;
            }
        }
        Ok((Self { file, path, end }, claims))
    }

    /// Adds one record. Not synced: after a power loss it may be gone, and resume re-hashes anyway.
    pub(crate) fn append(&mut self, record: Record) -> Result<(), StoreError> {
        // At the end of the last whole record: one that failed half-way is overwritten by the next.
        self.file.write_all_at(&record.encode(), self.end).context("write", &self.path)?;
        self.end += RECORD_BYTES as u64;
        Ok(())
    }

    /// The artifact whose journal lies in `dir`, if one does.
    pub(crate) fn identity_in(dir: &Dir) -> Result<Option<Sha256Digest>, StoreError> {
        let Some(mut file) = dir.find(JOURNAL_NAME)? else { return Ok(None) };
        let mut found = [0; HEADER_BYTES];
        let is_whole = read_whole(&mut file, &mut found).context("read", dir.path().join(JOURNAL_NAME))?;
        let is_ours = is_whole && found[..8] == MAGIC;
        Ok(is_ours.then(|| Sha256Digest::new(std::array::from_fn(|i| found[8 + i]))))
    }
}

fn header(layout: &PieceLayout, identity: &Sha256Digest) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..40].copy_from_slice(identity.bytes());
    header[40..44].copy_from_slice(&layout.piece_count().to_le_bytes());
    header[44..].copy_from_slice(&layout.blob_count().to_le_bytes());
    header
}

/// Whether the file had as many bytes as `buffer` takes.
fn read_whole(file: &mut File, buffer: &mut [u8]) -> std::io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Applies the records that follow; says how many bytes of whole records there were. Garbage between them is skipped.
fn replay(file: &mut File, layout: &PieceLayout, claims: &mut Claims) -> std::io::Result<u64> {
    let mut reader = std::io::BufReader::new(file);
    let mut bytes = [0; RECORD_BYTES];
    let mut whole = 0;
    loop {
        match reader.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(whole),
            Err(error) => return Err(error),
        }
        whole += RECORD_BYTES as u64;
        if let Some(record) = Record::decode(&bytes, layout) {
            claims.apply(record, layout);
        }
    }
}
