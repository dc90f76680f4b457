//! Bringing the bytes of one file into another place for as little as the file system allows.
//!
//! Owns: the order reflink, hard link, copy and what each needs. Does not own: proving what is brought.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

use rustix::io::Errno;

use crate::{
    error::{Context as _, StoreError},
    files::free_bytes,
};

/// How a blob may be brought into an output directory (`--link`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LinkMode {
    /// Reflink, else hard link, else copy.
    #[default]
    Auto,
    /// Share the blocks until one side is written, or fail.
    Reflink,
    /// A second name of the store's own file, or fail. Its mode stays the store's, 0444.
    Hard,
    /// Bytes of its own, for consumers that cannot be trusted not to write.
    Copy,
}

/// How a blob was brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkUsed {
    /// The blocks are shared.
    Reflink,
    /// It is a second name of the same file.
    Hard,
    /// The bytes were copied: they take their space twice.
    Copy,
}

/// Most bytes asked of one `copy_file_range(2)`: the kernel's own limit lies just below 2 GiB.
const COPY_BYTES_MAX: usize = 1 << 30;
/// Bytes copied at a time where the kernel cannot copy by itself.
const BUFFER_BYTES: usize = 1 << 20;

/// Makes `target` share all blocks of `source`. Errors are those of `ioctl_ficlone(2)`.
pub(crate) fn reflink(target: &File, source: &File) -> rustix::io::Result<()> {
    rustix::fs::ioctl_ficlone(target, source)
}

/// Gives `target` the content of `source`: by reflink where `mode` and the file system allow it, else by copying.
pub(crate) fn fill(
    target: &File,
    source: &File,
    mode: LinkMode,
    path: &Path,
) -> Result<LinkUsed, StoreError> {
    if mode != LinkMode::Copy {
        match reflink(target, source) {
            Ok(()) => return Ok(LinkUsed::Reflink),
            Err(errno) if mode == LinkMode::Reflink => return Err(errno).context("reflink to", path),
            Err(_) => {}
        }
    }
    let need = source.metadata().context("look at", path)?.len();
    let no_space =
        |free| StoreError::NoSpace { need, free, path: path.parent().unwrap_or(path).to_path_buf() };
    // Before the first byte is written, where that can be known.
    let free = free_bytes(path)?;
    if need > free {
        return Err(no_space(free));
    }
    match copy(target, source) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(no_space(free_bytes(path)?)),
        copied => copied.context("copy to", path).map(|()| LinkUsed::Copy),
    }
}

fn copy(target: &File, source: &File) -> io::Result<()> {
    let bytes = source.metadata()?.len();
    target.set_len(bytes)?;
    let mut done = 0;
    while done < bytes {
        let (mut from, mut to) = (done, done);
        let len = usize::try_from(bytes - done).unwrap_or(COPY_BYTES_MAX).min(COPY_BYTES_MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), len) {
            // Zero before the end: some file systems answer so instead of refusing.
            Ok(0) => return copy_by_hand(target, source, done, bytes),
            Ok(count) => done += count as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(target, source, done, bytes);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(target: &File, source: &File, mut done: u64, bytes: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    while done < bytes {
        let len = usize::try_from(bytes - done).unwrap_or(BUFFER_BYTES).min(BUFFER_BYTES);
        source.read_exact_at(&mut buffer[..len], done)?;
        target.write_all_at(&buffer[..len], done)?;
        done += len as u64;
    }
    Ok(())
}
