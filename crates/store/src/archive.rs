//! Archives: layers that hold several files as tar, perhaps compressed.
//!
//! Owns: reading them within bounds, whatever is in them, and saying what is refused. Does not own: where the files go
//! (`unpack`), or that the archive is the one that was asked for: who reads one has proved it.

mod budget;
mod entries;

use std::{
    collections::BTreeMap,
    io::{self, BufReader, Read},
    iter,
};

use modelpack::{
    manifest::{Modified, Packing},
    path::PathError,
};

pub use self::budget::Budget;
use self::{
    budget::Counted,
    entries::{Entries, Header, What},
};
use crate::error::StoreError;

/// Bytes read at a time: large enough that system calls cost nothing beside decoding.
const BUFFER_BYTES: usize = 256 << 10;

/// Links that are followed one after another.
const LINKS_MAX: usize = 16;

/// Why an archive is not unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It is cut off, or it is not what its media type says.
    #[error("it is damaged")]
    Damaged(#[source] io::Error),
    /// It is no tar archive.
    #[error("it is not a tar archive: {0}")]
    NotTar(&'static str),
    /// An entry is something that is not unpacked.
    #[error("`{path}` {problem}")]
    Entry {
        /// The entry.
        path: String,
        /// What is wrong with it, as the end of a sentence.
        problem: String,
    },
    /// A path is dangerous, or two paths cannot exist together.
    #[error("it has a path that no file may have")]
    Path(#[from] PathError),
    /// It has more, or longer, names than any model.
    #[error("it has more than {} files, or longer names", budget::FILES_MAX)]
    TooMany,
    /// It expands to much more than models do.
    #[error("it expands to more than {0} bytes, which no model does")]
    TooLarge(u64),
    /// Where the files go, there is a failure.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    /// For a [`Taker`] to which the bytes of a file do not come.
    pub fn reading(error: io::Error) -> Self {
        budget::read_error(error)
    }

    /// What the user may do about it.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Store(error) => error.hint(),
            Self::Damaged(_) | Self::NotTar(_) => {
                Some("it is as it was published: pack and push it again".into())
            }
            Self::TooLarge(_) | Self::TooMany => {
                Some("do not use this artifact before you know who made it, and why it is like this".into())
            }
            Self::Entry { .. } | Self::Path(_) => {
                Some("pack the layer again from plain files, or leave it out with `--kind`".into())
            }
        }
    }
}

/// A file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Its path, checked.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// The permissions with which it is published.
    pub mode: u32,
    /// When it was last modified, if the archive says so.
    pub modified: Option<Modified>,
}

/// Who takes the files of an archive.
pub trait Taker {
    /// A file, and its bytes. What of them is not read is skipped.
    fn file(&mut self, file: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError>;

    /// A second path of a file of the same archive, which may come later. Both are checked.
    fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError>;
}

/// Where a link to `first` may lead, step by step: a link may lead to a link, and two may lead to each other.
pub fn followed<'a>(
    links: &'a BTreeMap<String, String>,
    first: &'a String,
) -> impl Iterator<Item = &'a String> {
    iter::successors(Some(first), |target| links.get(*target)).take(LINKS_MAX)
}

/// Shows every file of an archive to `taker`, in order. Reads it to its end, so that what is cut off is noticed.
pub fn read_archive(
    source: impl Read,
    packing: Packing,
    budget: &Budget,
    taker: &mut dyn Taker,
) -> Result<(), ArchiveError> {
    let source = BufReader::with_capacity(BUFFER_BYTES, source);
    match packing {
        Packing::Tar => read_tar(source, budget, taker),
        Packing::TarGzip => read_tar(flate2::bufread::MultiGzDecoder::new(source), budget, taker),
        Packing::TarZstd => {
            let decoder = zstd::Decoder::with_buffer(source).map_err(ArchiveError::Damaged)?;
            read_tar(decoder, budget, taker)
        }
    }
}

fn read_tar(source: impl Read, budget: &Budget, taker: &mut dyn Taker) -> Result<(), ArchiveError> {
    let mut entries = Entries::new(Counted::new(source, budget));
    while let Some(Header { path, what, mode, modified }) = entries.next()? {
        budget.take_name(&path)?;
        match what {
            What::File { size } => {
                let file = Packed { path, size, mode, modified };
                taker.file(&file, &mut entries.content())?;
            }
            What::Link { target } => taker.link(&path, &target)?,
        }
    }
    entries.drain()
}
