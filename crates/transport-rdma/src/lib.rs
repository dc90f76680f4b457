//! The data plane through network cards: one-sided RDMA READs from another peer's registered files into leased memory.
//!
//! Owns: the rails of this process and the engine thread of each, links over them ([`Rdma::offer`]), what others may
//! read here ([`Rdma::serve`]), and how much memory is pinned for either. Does not own: the verbs themselves (crate
//! `verbs`), who may ask for what (the control plane), or whether the bytes are right (the reader hashes them).
//!
//! No QP may write here: the fetching side's memory has local rights only, the serving side's may be read only, and the
//! two are in protection domains of their own.

mod choose;
mod endpoint;
mod engine;
mod error;
pub mod fake;
mod flow;
mod link;
mod offer;
mod pinned;
mod rail;
mod rdma;
mod serving;
mod shape;
mod source;
mod spans;

pub use choose::choose_gid;
pub use endpoint::{Endpoint, Network, Probe, RailInfo, RemoteWindow};
pub use error::{RdmaError, Unavailable};
pub use link::RdmaLink;
pub use offer::Offer;
pub use rdma::{Options, Rdma, Registration};
pub use serving::Serving;
pub use shape::Shape;
pub use source::Source;

/// How much of a file one window holds; the last is shorter. It never splits a piece. Large enough that a window is
/// asked for once in many reads, small enough that its pages are pinned in the time of a few reads and that several
/// fit under [`Options::pinned_bytes_max`].
pub const WINDOW_BYTES: u64 = 256 << 20;

/// Longest work request: a read is split in these, so that it spreads over QPs and rails. At 400 Gb/s that is 48,000
/// completions a second, which one thread takes with ease.
pub(crate) const WORK_BYTES_MAX: usize = 1 << 20;

/// QPs of a link on one rail: two use both ports of a bond and hide the turn-around of each other.
pub(crate) const QPS_A_RAIL: usize = 2;

/// QPs of a link on one rail that a sender answers: more than any shape is worth.
pub(crate) const QPS_A_RAIL_MAX: usize = 8;

/// Work requests outstanding on one QP at most; a card may allow fewer. 16 MiB cover 400 Gb/s over 300 µs.
pub(crate) const WORKS_A_QP_MAX: u8 = 16;
