//! Memory that transports write: mapped regions, exclusive leases on parts of them, and what those become once filled.
//!
//! Owns: mappings, the bounded pool, and the rule that a range has one writer at a time. Does not own: registration with
//! a network card (crate `verbs`), hashing, or what the bytes mean.
//!
//! This is the house's first unsafe wall. What makes it sound: nobody but a [`Lease`] writes, leases never overlap, and
//! whoever lets a device write holds the lease until the device has ended (crate `verbs` keeps it until the completion
//! or until the queue pair is gone). Where a region maps a file, that file must be written by nobody else meanwhile: the
//! store's landing lock sees to it, and that it is never cut short.

mod lease;
mod pool;
mod region;

pub use lease::{Filled, Lease};
pub use pool::Pool;
pub use region::{Access, NotLeased, Region};
