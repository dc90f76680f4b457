//! Phase two, in the peer, pure: which piece to read next, from whom.
//!
//! Owns: one artifact's wants, its reads in flight, its links' measured rates, rerouting, blame. Does not own: bytes,
//! sockets, files, proofs; the driver performs each [`Output`] and reports what came of it as [`Input`].

mod abreast;
mod bits;
mod edges;
mod io;
mod late;
mod leaving;
mod link;
mod origin;
mod pick;
mod reads;
mod stripes;
mod swarm;
mod timers;

pub use io::{Config, Failure, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source};
pub use swarm::{LinkRate, Swarm};
