//! Reads over TCP: the sender answers from its page cache with `sendfile`, the receiver reads into the lease.
//!
//! Owns: frames, handshake, the receiving engine and the serving side. Does not own: who is issued a link.
//!
//! One connection a link. Back-of-envelope: 16 reads of 1 to 4 MiB in flight are 16 to 64 MiB, and 100 Gbit/s over a
//! round trip of 1 ms needs 12.5 MB, so requests never run dry. What bounds one connection is its receiver's copy out
//! of the kernel, one core's memory bandwidth: some 3 GB/s, 25 Gbit/s. A peer reads from many parents at once, one link
//! each, so cores are used side by side without a second connection, which would cost a second deadline, order and
//! failure to reason about.

mod client;
mod frame;
mod handshake;
mod server;
mod socket;

pub use client::{ConnectError, Target, connect};
pub use server::Server;
