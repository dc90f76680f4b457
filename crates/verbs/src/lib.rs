//! RDMA verbs as safe objects: devices, registrations, queue pairs, completions. The house's second unsafe wall.
//!
//! Owns: every call into libibverbs, and the rule that memory which a device may write stays leased and registered until
//! the device has ended. Does not own: the memory (crate `memory`), threads, deadlines, who connects to whom (crate
//! `transport-rdma`).
//!
//! libibverbs is opened when the process starts, not linked: on a machine without it [`devices`] says that it is
//! missing, and everything else goes on.
//!
//! What makes it sound. A device writes only what a [`QueuePair`] was told to read into, and that takes a [`Sink`], which
//! holds the lease of the range by value. [`CompletionQueue`] keeps the sink and the [`MemoryRegion`] of every posted
//! read until its completion was polled, or until the queue pair was destroyed, after which a device writes nothing.
//! Whatever a thing stands on it holds by `Arc`, so that queue pairs go before registrations, those before mappings, and
//! the protection domain and the context last. Registrations never let a peer write. docs/adr/0015-late-dma.md
//! says more, and names the test.
//!
//! The lease is gone once its read is posted:
//!
//! ```compile_fail,E0382
//! fn post(pair: &mut verbs::QueuePair, lease: memory::Lease, local: std::sync::Arc<verbs::MemoryRegion>) {
//!     let sink = verbs::Sink::new(lease);
//!     let read = verbs::Read { id: 0, sink, range: 0..4096, local, address: 0, rkey: 0 };
//!     let _ = pair.post_reads(vec![read]);
//!     lease.filled();
//! }
//! ```
//!
//! And a completion exists once, so that no two may think the memory theirs:
//!
//! ```compile_fail,E0599
//! fn twice(done: verbs::ReadDone) -> (verbs::ReadDone, verbs::ReadDone) {
//!     (done.clone(), done)
//! }
//! ```

mod completion;
mod context;
mod device;
mod domain;
mod error;
mod events;
mod findings;
mod pair;
mod read;
mod registration;
mod state;
mod unavailable;

pub use completion::CompletionQueue;
pub use context::{Context, Gid, GidKind, Limits, LinkLayer, Port};
pub use device::{DeviceInfo, devices};
pub use domain::ProtectionDomain;
pub use error::VerbsError;
pub use events::{AsyncEvent, AsyncEvents};
pub use findings::{Findings, KernelVersion, Memlock, Note, findings};
pub use pair::{PostError, QueuePair};
pub use read::{Read, ReadDone, ReadError, Sink, Status};
pub use registration::{MemoryRegion, Rights};
pub use state::{OwnEnd, Path, QpAddress, Role, State};
pub use unavailable::Unavailable;
