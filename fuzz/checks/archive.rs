//! What holds for any archive of files.
//!
//! Owns: the properties. Does not own: where inputs come from: a fuzzer, or the corpora that ordinary tests replay.

use std::io::{self, Read};

use modelpack::manifest::Packing;
use store::{ArchiveError, Budget, Packed, Taker, read_archive};

/// Far more than an input of a fuzzer holds, unless it expands.
const BYTES_MAX: u64 = 64 << 20;

/// Takes what it is shown, if it may be.
#[derive(Default)]
struct Checking {
    bytes: u64,
}

impl Taker for Checking {
    fn file(&mut self, file: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        plain(&file.path);
        assert_eq!(file.mode & !0o777, 0, "no special bits");
        let left = BYTES_MAX - self.bytes;
        let read = io::copy(&mut bytes.take(left), &mut io::sink()).map_err(ArchiveError::reading)?;
        assert!(read <= file.size, "no more than was said");
        self.bytes += read;
        if self.bytes == BYTES_MAX { Err(ArchiveError::TooLarge(BYTES_MAX)) } else { Ok(()) }
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        plain(path);
        plain(target);
        Ok(())
    }
}

fn plain(path: &str) {
    assert!(!path.starts_with('/') && !path.contains('\0'), "{path:?}");
    assert!(path.split('/').all(|name| !matches!(name, "" | "." | "..")), "{path:?}");
}

/// An archive, after a byte that says how it is packed.
pub(crate) fn archive(data: &[u8]) {
    let Some((packing, archive)) = data.split_first() else { return };
    let packing = [Packing::Tar, Packing::TarGzip, Packing::TarZstd][usize::from(*packing) % 3];
    let mut taker = Checking::default();
    let read = read_archive(archive, packing, &Budget::new(archive.len() as u64), &mut taker);
    if let Err(error) = read {
        assert!(!error.to_string().is_empty());
    }
}
