//! How much an artifact's archives may hold.
//!
//! Owns: the bounds, shared by all archives of one artifact. Does not own: free space, which is asked for before each
//! file is written.

use std::{
    io::{self, Read},
    sync::atomic::{AtomicU64, Ordering},
};

use super::ArchiveError;

/// Most times that a compressed archive may expand. Weights hardly shrink, text shrinks tenfold; gzip itself reaches
/// 1032, Zstandard anything.
const EXPANSION_MAX: u64 = 100;

/// Bytes that a compressed archive may have in any case, such as made-up weights that are all zeros.
const EXPANSION_FLOOR_BYTES: u64 = 1 << 30;

/// Most files in all archives of an artifact: more than data sets in a model's artifact have, and few enough for one
/// record of them all.
pub(super) const FILES_MAX: u64 = 1 << 17;

/// Most bytes of their paths together.
const NAME_BYTES_MAX: u64 = 16 << 20;

/// What is left of the bounds of one artifact.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    bytes: AtomicU64,
    files: AtomicU64,
    name_bytes: AtomicU64,
}

impl Budget {
    /// For archives that have `packed_bytes` bytes together, as they are packed.
    pub fn new(packed_bytes: u64) -> Self {
        let bytes_max = packed_bytes.saturating_mul(EXPANSION_MAX).saturating_add(EXPANSION_FLOOR_BYTES);
        Self::of(bytes_max)
    }

    fn of(bytes_max: u64) -> Self {
        Self { bytes_max, bytes: AtomicU64::new(0), files: AtomicU64::new(0), name_bytes: AtomicU64::new(0) }
    }

    /// One more file or link.
    pub(super) fn take_name(&self, path: &str) -> Result<(), ArchiveError> {
        let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
        let name_bytes = self.name_bytes.fetch_add(path.len() as u64, Ordering::Relaxed) + path.len() as u64;
        if files > FILES_MAX || name_bytes > NAME_BYTES_MAX { Err(ArchiveError::TooMany) } else { Ok(()) }
    }
}

/// The bytes of an archive after they were expanded, counted.
pub(super) struct Counted<'a, R> {
    source: R,
    budget: &'a Budget,
}

impl<'a, R> Counted<'a, R> {
    pub(super) fn new(source: R, budget: &'a Budget) -> Self {
        Self { source, budget }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        let before = self.budget.bytes.fetch_add(count as u64, Ordering::Relaxed);
        if before + count as u64 > self.budget.bytes_max {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, Exceeded(self.budget.bytes_max)));
        }
        Ok(count)
    }
}

/// Travels through readers of others as an error of reading.
#[derive(Debug, thiserror::Error)]
#[error("it expands to more than {0} bytes")]
struct Exceeded(u64);

/// What an error of reading means.
pub(super) fn read_error(error: io::Error) -> ArchiveError {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Exceeded>()) {
        Some(Exceeded(bytes_max)) => ArchiveError::TooLarge(*bytes_max),
        None => ArchiveError::Damaged(error),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Packed, Taker, read_archive},
        *,
    };

    #[test]
    fn what_expands_too_much_is_told_from_what_is_damaged() {
        let budget = Budget::of(10);
        let mut counted = Counted::new(&[0; 11][..], &budget);
        let error = counted.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(matches!(read_error(error), ArchiveError::TooLarge(10)));
        assert!(matches!(read_error(io::ErrorKind::UnexpectedEof.into()), ArchiveError::Damaged(_)));
    }

    #[test]
    fn all_archives_of_an_artifact_share_one_bound() {
        let budget = Budget::of(10);
        let read = |count| Counted::new(&[0; 8][..count], &budget).read_to_end(&mut Vec::new());
        assert_eq!(read(8).unwrap(), 8);
        assert!(read(3).is_err());
    }

    #[test]
    fn bombs_of_every_packing_end_at_the_bound() {
        use std::io::Write as _;

        use modelpack::manifest::Packing;

        struct Nothing;
        impl Taker for Nothing {
            fn file(&mut self, _: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
                io::copy(bytes, &mut io::sink()).map_err(ArchiveError::reading).map(drop)
            }

            fn link(&mut self, _: &str, _: &str) -> Result<(), ArchiveError> {
                Ok(())
            }
        }

        let mut header = tar::Header::new_gnu();
        header.set_path("zeros").unwrap();
        header.set_size(8 << 20);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        let tar = [header.as_bytes(), &vec![0; (8 << 20) + 1024][..]].concat();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(&tar[..], 1).unwrap();
        for (packing, bomb) in [(Packing::Tar, &tar), (Packing::TarGzip, &gzip), (Packing::TarZstd, &zstd)] {
            let error = read_archive(&bomb[..], packing, &Budget::of(1 << 20), &mut Nothing).unwrap_err();
            assert!(matches!(error, ArchiveError::TooLarge(_)), "{packing}: {error:?}");
            read_archive(&bomb[..], packing, &Budget::of(16 << 20), &mut Nothing).unwrap();
        }
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let budget = Budget::new(0);
        for _ in 0..FILES_MAX {
            budget.take_name("a").unwrap();
        }
        assert!(matches!(budget.take_name("a"), Err(ArchiveError::TooMany)));
    }

    #[test]
    fn names_are_bounded() {
        let budget = Budget::new(0);
        let name = "a".repeat(1 << 20);
        for _ in 0..16 {
            budget.take_name(&name).unwrap();
        }
        assert!(matches!(budget.take_name("a"), Err(ArchiveError::TooMany)));
    }
}
