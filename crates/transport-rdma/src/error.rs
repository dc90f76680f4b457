//! What can go wrong before there is a link, and what to do about it. Does not own how a read ends (`transport`).

use std::io;

use verbs::VerbsError;

/// Something with RDMA did not work. TCP does in every case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// As much memory is pinned as may be.
    #[error("{wanted} more bytes cannot be pinned: {in_use} of at most {max} are in use")]
    PinnedMax {
        /// What was asked for, on all rails together.
        wanted: u64,
        /// What cannot be given back now.
        in_use: u64,
        /// [`crate::Options::pinned_bytes_max`].
        max: u64,
    },
    /// The system does not pin the memory.
    #[error("`{rail}` cannot have {bytes} bytes of memory")]
    Register {
        /// The device.
        rail: String,
        /// How much.
        bytes: usize,
        /// What the system said.
        #[source]
        source: VerbsError,
    },
    /// The file cannot be served from memory.
    #[error("window {index} cannot be mapped")]
    Map {
        /// Which window of the file.
        index: u32,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// There is no such window.
    #[error("the file has no window {index}")]
    NoSuchWindow {
        /// Which one was asked for.
        index: u32,
    },
    /// A QP cannot be made or connected.
    #[error("a queue pair on `{rail}` cannot be made or connected")]
    QueuePair {
        /// The device.
        rail: String,
        /// What the system said.
        #[source]
        source: VerbsError,
    },
    /// The rail has as many links as its completion queue holds.
    #[error("`{rail}` carries as many links as it can")]
    Busy {
        /// The device.
        rail: String,
    },
    /// No rail here has a counterpart there.
    #[error("the two ends have no network in common")]
    NoCommonRail,
    /// The device is not there any more.
    #[error("`{rail}` is gone")]
    Gone {
        /// The device.
        rail: String,
    },
    /// What the other end said makes no sense.
    #[error("the other end sent {what}")]
    BadPeer {
        /// What it was.
        what: &'static str,
    },
    /// The first read did not come back: the two ends do not reach each other.
    #[error("the first read over RDMA failed")]
    Probe(#[source] io::Error),
    /// The system gives no memory or no random bytes.
    #[error("the system gives no memory or random bytes")]
    System(#[source] io::Error),
}

impl RdmaError {
    /// What the user may do, if anything.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Register { source, .. } | Self::QueuePair { source, .. } => return source.hint(),
            Self::PinnedMax { .. } => "allow more pinned memory, or leave the rest to TCP",
            Self::NoCommonRail => "both ends need RoCE v2 addresses of one family, or one InfiniBand subnet",
            Self::Probe(_) => {
                "see whether UDP port 4791 passes between the two hosts (RoCE), and whether the path carries packets of \
                 both ports' MTU; `ibv_rc_pingpong` tries the same"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// This process cannot use RDMA at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The machine has no RDMA.
    #[error(transparent)]
    Verbs(#[from] verbs::Unavailable),
    /// There are devices, but none can be used now.
    #[error("no RDMA device can be used: {}", reasons.join("; "))]
    NoRail {
        /// Device by device.
        reasons: Vec<String>,
    },
    /// What was asked for is no device and no network interface of one, or cannot be used.
    #[error("`{name}` is no RDMA device that can be used, nor the interface of one: {}", reasons.join("; "))]
    NotUsable {
        /// What was asked for.
        name: String,
        /// What there is instead, and what is wrong with it.
        reasons: Vec<String>,
    },
    /// The engine of a rail cannot be started.
    #[error("the engine of a rail cannot be started")]
    Engine(#[source] io::Error),
}

impl Unavailable {
    /// What the user may do, if anything.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Verbs(source) => Some(source.hint()),
            Self::NoRail { .. } | Self::NotUsable { .. } => Some(
                "`rdma link` shows devices and their ports: one must be ACTIVE, and over Ethernet its interface needs an \
                 IP address (RoCE v2)"
                    .to_owned(),
            ),
            Self::Engine(_) => None,
        }
    }
}
