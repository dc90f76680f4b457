//! What can go wrong on disk.
//!
//! Owns: one error enum for the whole crate, its class and its hint. Does not own: exit codes or printing.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use modelpack::{
    digest::Sha256Digest,
    layout::{BlobIndex, PieceIndex},
    path::PathError,
    selection::SelectionError,
};

use crate::archive::ArchiveError;

/// What a caller may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// The same call may succeed later: somebody else holds the directory now.
    Retry,
    /// Nothing changes until the user acts.
    Fatal,
    /// Bytes are not what their digest says.
    Integrity,
}

/// Why an output directory cannot take an artifact.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Occupied {
    /// It is no directory.
    NotADirectory,
    /// It holds a file that is not part of a pull of this artifact.
    Foreign(String),
    /// It holds another artifact, complete or begun.
    OtherArtifact(Sha256Digest),
    /// It holds this artifact, but a file has changed since.
    Changed(String),
    /// It holds another part of this artifact, or the pull of another part has begun there; or the other way round.
    OtherSelection,
}

impl fmt::Display for Occupied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotADirectory => f.write_str("it is not a directory"),
            Self::Foreign(name) => write!(f, "it holds `{name}`"),
            Self::OtherArtifact(digest) => write!(f, "it holds another artifact, {digest}"),
            Self::Changed(name) => write!(f, "`{name}` has changed since it was proved"),
            Self::OtherSelection => f.write_str("it holds another selection of this artifact, or all of it"),
        }
    }
}

/// A failure of the store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The operating system refused.
    #[error("cannot {operation} `{}`", path.display())]
    Io {
        /// What was tried, as a verb phrase.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another process works in the directory.
    #[error("another process is using `{}`", dir.display())]
    Busy {
        /// The locked directory.
        dir: PathBuf,
    },
    /// The file system is too full for the artifact.
    #[error("`{}` has {free} bytes free, but {need} more are needed", path.display())]
    NoSpace {
        /// Bytes still to be allocated.
        need: u64,
        /// Bytes free.
        free: u64,
        /// Where.
        path: PathBuf,
    },
    /// The store's budget has no room for the artifact.
    #[error("`{}` may hold {bytes_max} bytes and has {in_use} in use, but {need} more are needed", dir.display())]
    OverBudget {
        /// The store.
        dir: PathBuf,
        /// Bytes that the artifact would add.
        need: u64,
        /// Bytes that cannot be collected.
        in_use: u64,
        /// The budget.
        bytes_max: u64,
    },
    /// The directory holds something that must not be touched.
    #[error("cannot pull into `{}`: {reason}", dir.display())]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// What is in it.
        reason: Occupied,
    },
    /// Bytes on disk are not the blob they should be.
    #[error("`{}` should be {expected}, but is {found}", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A blob was to be published without a proof that fits it.
    #[error("blob {blob} of `{}` is not proved", dir.display())]
    Unproved {
        /// The staging directory.
        dir: PathBuf,
        /// The blob.
        blob: BlobIndex,
    },
    /// The blob is published or being published: its bytes cannot change any more.
    #[error("blob {blob} of `{}` is already published", dir.display())]
    Sealed {
        /// The staging directory.
        dir: PathBuf,
        /// The blob.
        blob: BlobIndex,
    },
    /// A transport still writes where a piece has to go.
    #[error("a read into piece {piece} of `{}` does not end", dir.display())]
    Leased {
        /// The staging directory.
        dir: PathBuf,
        /// The piece.
        piece: PieceIndex,
    },
    /// A layer that is an archive cannot be unpacked, though it is what the manifest names.
    #[error("{archive} cannot be unpacked")]
    Archive {
        /// Which layer, and how it is packed.
        archive: String,
        /// Why not.
        #[source]
        source: Box<ArchiveError>,
    },
    /// Files of several layers cannot exist together.
    #[error("the artifact's layers have paths that cannot exist together")]
    Paths(#[from] PathError),
    /// The part of the artifact that is asked for is not there.
    #[error("cannot select files")]
    Selection(#[from] SelectionError),
    /// A path of the artifact would reach outside its directory, or into our own part of it.
    #[error("the artifact's path `{0}` is not a plain path below its directory")]
    UnsafePath(String),
    /// A file of ours cannot be read.
    #[error("`{}` is malformed: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody has said that an artifact is to stay.
    #[error("{digest} in `{}` is pinned", dir.display())]
    Pinned {
        /// The store.
        dir: PathBuf,
        /// The artifact.
        digest: Sha256Digest,
    },
    /// The store or layout does not hold what was asked for.
    #[error("`{}` has no {what}", dir.display())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// What was asked for.
        what: String,
    },
}

impl StoreError {
    /// What a caller may do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Busy { .. } | Self::Leased { .. } => ErrorClass::Retry,
            Self::Digest { .. } => ErrorClass::Integrity,
            _ => ErrorClass::Fatal,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Busy { .. } => {
                Some("wait until the other process has ended, or choose another directory".into())
            }
            Self::Pinned { .. } => Some("let go of it first: `modelctl tag REF --unpin`".into()),
            Self::NoSpace { .. } => {
                Some("free some space, or choose a directory on another file system".into())
            }
            Self::OverBudget { need, in_use, bytes_max, .. } => {
                let wait = if need > bytes_max { "" } else { "pull again when less is in use, or " };
                let enough = in_use.saturating_add(*need);
                Some(format!("{wait}start the peer with `--store-max {enough}` or more"))
            }
            Self::Occupied { reason: Occupied::Changed(_), .. } => {
                Some("move it away, or pull into a new directory".into())
            }
            Self::Occupied { reason: Occupied::OtherArtifact(_), dir } => Some(format!(
                "pull into a new directory; with `--base {}` only what differs is fetched",
                dir.display()
            )),
            Self::Occupied { .. } => Some("pull into a new directory".into()),
            Self::Archive { source, .. } => source.hint(),
            Self::Paths(_) => {
                Some("pack the artifact again with each file once, or leave one out with `--exclude`".into())
            }
            Self::Selection(error) => error.hint(),
            Self::Malformed { path, .. } => {
                Some(format!("remove `{}` if it is no longer needed", path.display()))
            }
            Self::Io { operation: "reflink to" | "hard-link", .. } => {
                Some("this file system cannot do that here: use `--link auto` or `--link copy`".into())
            }
            Self::Io { source, .. } => {
                match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
                    Some(rustix::io::Errno::MFILE) => {
                        Some("raise the limit of open files: `ulimit -n`".into())
                    }
                    Some(rustix::io::Errno::ACCESS | rustix::io::Errno::PERM) => {
                        Some("check who owns the directory and its mode".into())
                    }
                    Some(rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT) => {
                        Some("free some space and pull again: what has landed is kept".into())
                    }
                    Some(rustix::io::Errno::ROFS) => {
                        Some("the file system is read-only: choose another one".into())
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Adds the operation and the path to an error of the operating system.
pub(crate) trait Context<T> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io {
            operation,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}
