//! A whole fleet in one thread on a virtual clock, driving the production planner and swarms.
//!
//! Owns: the network model, the queue of events, faults. Does not own any decision about pieces or sources.
//!
//! The model: a sender's card carries one piece after another, round robin over the reads asked of it; a receiver's
//! card does the same with what arrives; control messages take a fixed latency. That is fair sharing at the grain of
//! a piece, and work-conserving.

mod world;

pub use world::{Fault, Options, Report, run};
