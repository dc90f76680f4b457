//! A whole fleet in one thread on a virtual clock, driving the production planner and swarms.
//!
//! Owns: the network model, the queue of events, faults, the cases that are measured, what a parent's death costs
//! (`failover`), random faults and what must hold whatever they are (`fuzz`), recorded broadcasts as scenarios (`rerun`).
//! Does not own any decision about pieces or sources.
//!
//! The model: full-duplex cards and rack uplinks that flows share max-min fairly (`network`), control messages of a
//! fixed latency, announcements in batches as the product sends them. Pieces are of the product's size. A case with
//! fewer pieces than its artifact has is that artifact with bytes and rates divided by the same number: time is not.

pub mod failover;
pub mod fuzz;
mod network;
mod options;
pub mod policies;
mod queue;
pub mod rerun;
pub mod sweep;
mod world;

pub use options::{Busy, Fault, Options, Orphan, Racks, Report};
pub use world::run;
