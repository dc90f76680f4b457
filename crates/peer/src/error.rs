//! What can go wrong in a pull or a peer.
//!
//! Owns: one error enum for the crate, its class and its hint. Does not own: exit codes or printing.

use std::{io, path::PathBuf};

use modelpack::{config::ConfigError, digest::Sha256Digest, manifest::ManifestError};
use registry::RegistryError;
use store::StoreError;
use transport_rdma::{RdmaError, Unavailable};
use wire::WireError;

/// For a client and a peer that do not understand each other.
pub(crate) const HINT_VERSION: &str =
    "run the same version of modelctl as the peer, or pull with `--peer none`";

/// What kind of failure it is for whoever runs the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorClass {
    /// It failed, and the user can act.
    Failed,
    /// What was asked for makes no sense here.
    Usage,
    /// Bytes are not what their digest says.
    Integrity,
}

/// A failure of a pull or a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The reference is of a kind that cannot be pulled this way.
    #[error("cannot pull `{reference}`: {reason}")]
    Reference {
        /// What was asked for.
        reference: String,
        /// Why not.
        reason: &'static str,
    },
    /// It cannot be announced.
    #[error("cannot announce `{reference}`: {reason}")]
    Seed {
        /// What was to be announced.
        reference: String,
        /// Why not.
        reason: &'static str,
        /// What the user may do about it.
        hint: &'static str,
    },
    /// A file of a seed is not what was announced any more.
    #[error("`{}` has changed since it was hashed", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The registry failed.
    #[error("cannot read `{reference}`")]
    Registry {
        /// What was asked for.
        reference: String,
        /// Why not.
        #[source]
        source: Box<RegistryError>,
    },
    /// The origin delivers next to nothing.
    #[error("`{reference}` takes too long to deliver anything")]
    Slow {
        /// What was asked for.
        reference: String,
    },
    /// The manifest is not one that can be pulled.
    #[error("the manifest of `{reference}` is not usable")]
    Manifest {
        /// What was asked for.
        reference: String,
        /// Why not.
        #[source]
        source: ManifestError,
    },
    /// The config of the artifact is not one.
    #[error("the config of `{reference}` is not usable")]
    Config {
        /// What was asked for.
        reference: String,
        /// Why not.
        #[source]
        source: ConfigError,
    },
    /// The disk failed, or what is on it is in the way.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The origin's own bytes do not match the manifest.
    #[error("the origin delivers wrong bytes for `{path}`: {what}")]
    WrongBytes {
        /// The file.
        path: String,
        /// Which part of it.
        what: String,
    },
    /// Nobody who can be reached has what is missing.
    #[error("no source has the missing pieces of `{reference}`")]
    NoSource {
        /// What was asked for.
        reference: String,
        /// The last failure at the origin.
        #[source]
        source: Option<Box<Self>>,
    },
    /// The peer stopped working on it, for a reason that only its log tells.
    #[error("the pull of `{reference}` was cut off")]
    CutOff {
        /// What was asked for.
        reference: String,
    },
    /// The peer was told to stop.
    #[error("the local peer stops")]
    Stopping,
    /// Nobody in the fleet can say what a digest stands for.
    #[error("cannot learn from the fleet what `{reference}` is")]
    Lookup {
        /// What was asked for.
        reference: String,
        /// What the user may do about it.
        hint: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// RDMA is all that may be used, and there is none.
    #[error("RDMA cannot be used")]
    NoRdma(#[source] Unavailable),
    /// The same, because memory cannot be registered with the cards.
    #[error("RDMA cannot be used")]
    Rdma(#[source] RdmaError),
    /// What others move on the network cards cannot be seen.
    #[error("other traffic on the network card cannot be seen, so that no way can be given to it")]
    Cards(#[source] io::Error),
    /// The local peer said that it failed.
    #[error("{message}")]
    Remote {
        /// What it said.
        message: String,
        /// Why, outermost first.
        #[source]
        source: Option<Box<RemoteCause>>,
        /// What the user may do about it.
        hint: Option<String>,
        /// What kind of failure it is there.
        class: ErrorClass,
    },
    /// The local socket or what came over it is not right.
    #[error("cannot talk to the local peer at `{}`", socket.display())]
    Local {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: WireError,
    },
    /// Bytes were to land directly where they cannot.
    #[error("bytes cannot land directly in `{}`: it is on {filesystem}, whose files no network card may write", path.display())]
    NotDirect {
        /// Where they were to land.
        path: PathBuf,
        /// What that is.
        filesystem: store::FsKind,
    },
    /// A socket could not be opened for serving.
    #[error("cannot listen on `{address}`")]
    Listen {
        /// HOST:PORT or a path.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// What to do about memory that cannot be registered.
pub(crate) fn rdma_hint(error: &RdmaError) -> Option<String> {
    match error {
        RdmaError::PinnedMax { .. } => Some(
            "give it more: by `--pinned-max`, and by the limit of locked memory (`ulimit -l`, `LimitMEMLOCK=infinity`)"
                .into(),
        ),
        _ => error.hint(),
    }
}

/// One cause of a failure of the local peer, as text.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct RemoteCause {
    message: String,
    source: Option<Box<Self>>,
}

impl RemoteCause {
    /// A chain of causes, outermost first.
    pub(crate) fn chain(messages: Vec<String>) -> Option<Box<Self>> {
        messages.into_iter().rfold(None, |source, message| Some(Box::new(Self { message, source })))
    }
}

impl PeerError {
    /// What kind of failure it is.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::WrongBytes { .. } | Self::Changed { .. } => ErrorClass::Integrity,
            Self::Reference { .. } | Self::NotDirect { .. } | Self::Cards(_) => ErrorClass::Usage,
            Self::Store(error) if error.class() == store::ErrorClass::Integrity => ErrorClass::Integrity,
            Self::Registry { source, .. } if source.class() == registry::Class::Integrity => {
                ErrorClass::Integrity
            }
            Self::Remote { class, .. } => *class,
            Self::NoSource { source: Some(source), .. } => source.class(),
            _ => ErrorClass::Failed,
        }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry { source, .. } => source.hint(),
            Self::Manifest { source, .. } => source.hint(),
            Self::Store(error) => error.hint(),
            Self::WrongBytes { .. } => {
                // A registry that has a blob of that name takes no other.
                Some("its copy is damaged: remove it at the origin, then publish it again".into())
            }
            Self::NoSource { source: Some(source), .. } => source
                .hint()
                .or_else(|| Some("pull again when the origin answers: what has landed is kept".into())),
            Self::NoSource { source: None, .. } => {
                Some("start a peer that has it, or pull it from a registry that has it".into())
            }
            Self::Changed { .. } => {
                Some("wait until nobody writes the files, then start the peer with `--seed` again".into())
            }
            Self::Slow { .. } => Some("look at the network on the way; what has landed is kept".into()),
            Self::Stopping => Some("start it and pull again: what has landed is in its store".into()),
            Self::CutOff { .. } => Some("pull again: what has landed is kept".into()),
            Self::Seed { hint, .. } | Self::Lookup { hint, .. } => Some((*hint).into()),
            Self::Remote { hint, .. } => hint.clone(),
            Self::Local { source: WireError::Io(error), .. }
                if error.kind() == io::ErrorKind::UnexpectedEof =>
            {
                Some("the peer ended: start it and pull again; what has landed is in its store".into())
            }
            Self::Local { source: WireError::Io(error), .. }
                if error.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("pull as the peer's user, as root or as a member of its `--socket-group`".into())
            }
            Self::Local { source: WireError::Version { .. }, .. } => Some(HINT_VERSION.into()),
            Self::Local { .. } => Some("start it with `modelctl peer`, or pull with `--peer none`".into()),
            Self::NoRdma(unavailable) => {
                let way_out = "or let bytes come over TCP with `--transport auto`";
                let hint = unavailable.hint();
                Some(hint.map_or_else(|| way_out.to_owned(), |hint| format!("{hint}; {way_out}")))
            }
            Self::Rdma(error) => rdma_hint(error),
            Self::Cards(_) => {
                Some("state what the card does with `--nic-rate RATE`, or use `--limit RATE` instead".into())
            }
            Self::NotDirect { .. } => {
                Some("choose a directory on a tmpfs, as `/dev/shm` is, or leave `--landing` at `auto`".into())
            }
            Self::Listen { .. } => Some("choose another address or socket; port 0 takes a free one".into()),
            _ => None,
        }
    }

    pub(crate) fn registry(reference: &str, source: RegistryError) -> Self {
        Self::Registry { reference: reference.to_owned(), source: Box::new(source) }
    }

    pub(crate) fn no_source(reference: &str, last: Option<Self>) -> Self {
        Self::NoSource { reference: reference.to_owned(), source: last.map(Box::new) }
    }

    pub(crate) fn other_digest(reference: &str, asked: &Sha256Digest, got: &Sha256Digest) -> Self {
        Self::WrongBytes { path: reference.to_owned(), what: format!("the manifest is {got}, not {asked}") }
    }
}
