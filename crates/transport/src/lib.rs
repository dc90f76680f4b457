//! The data plane: one-sided reads from another peer's files into leased memory.
//!
//! Owns: the [`Link`] seam, what a sender lets be read ([`Exports`]), the TCP engine, an in-process one for tests and
//! simulations, the laws that every engine keeps ([`conformance`]), and keeping to a rate ([`Pacer`]). Does not own: which read goes where (crate
//! `swarm`), whether the bytes are right (the reader hashes them), or grants (the control plane's).

pub mod conformance;
mod export;
mod link;
pub mod memory;
mod pace;
pub mod tcp;

pub use export::{Export, Exports};
pub use link::{
    Completion, CompletionSink, FaultClass, Level, Link, READ_BYTES_MAX, ReadFault, ReadRequest, Window,
};
pub use pace::{Bucket, Pacer};
