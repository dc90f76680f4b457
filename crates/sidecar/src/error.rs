//! What goes wrong beside the bytes, which whoever drives the sidecar brings.

use std::{fmt, io, path::PathBuf};

use modelpack::selection::SelectionError;
use store::StoreError;

use crate::space::Lack;

/// A failure of the sidecar itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SidecarError {
    /// The configuration cannot be used.
    #[error("`{file}` cannot be used: {reason}")]
    Config {
        /// The file.
        file: String,
        /// What is wrong with it, in one line.
        reason: String,
    },
    /// Something that is no link of ours has the directory's name.
    #[error("`{dir}` is {what}, which a sidecar does not replace")]
    Occupied {
        /// The directory.
        dir: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// Another process keeps the directory.
    #[error("another process keeps `{0}`")]
    Busy(PathBuf),
    /// A version would not fit.
    #[error("`{dir}` has no room for it: {lack}")]
    Space {
        /// Where it would lie.
        dir: PathBuf,
        /// What is missing.
        lack: Lack,
    },
    /// A version is there and cannot be put in place; and why.
    #[error("{0}")]
    NotInPlace(String),
    /// A file cannot be read, written or renamed.
    #[error("cannot {operation} `{path}`")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// What is wanted of an artifact makes no sense.
    #[error(transparent)]
    Selection(#[from] SelectionError),
    /// The files of a version cannot be looked at.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An inference server does not do what it is asked.
    #[error("{server} at `{url}` does not {operation}: {reason}")]
    Server {
        /// Its kind.
        server: &'static str,
        /// Where it is.
        url: String,
        /// What was asked.
        operation: String,
        /// What it says, in one line.
        reason: String,
    },
}

impl SidecarError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Config { .. } => Some("docs/OPERATIONS.md, \"A sidecar\", lists what it may say".into()),
            Self::Occupied { dir, .. } => Some(format!(
                "name something within it, as in `{}`, or remove it",
                dir.join("model").display()
            )),
            Self::Busy(_) => Some("stop the other one, or give each a directory of its own".into()),
            Self::Space { lack, .. } => Some(lack.hint()),
            Self::Store(error) => error.hint(),
            Self::Selection(error) => error.hint(),
            Self::Io { .. } | Self::NotInPlace(_) | Self::Server { .. } => None,
        }
    }

    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

/// A failure, wherever it comes from.
#[derive(Debug)]
pub enum Trouble<E> {
    /// Whoever brings the bytes could not.
    Source(E),
    /// Something else.
    Sidecar(SidecarError),
}

impl<E> From<SidecarError> for Trouble<E> {
    fn from(error: SidecarError) -> Self {
        Self::Sidecar(error)
    }
}

impl<E: fmt::Display> Trouble<E> {
    /// All of it in one line.
    pub(crate) fn line(&self) -> String {
        match self {
            // With its causes, if it knows how.
            Self::Source(error) => format!("{error:#}"),
            Self::Sidecar(error) => line(error),
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
