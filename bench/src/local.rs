//! Benchmarks of single commands on one machine over loopback, beside what people use today.
//!
//! Owns: which there are. Does not own: what a command costs (`meter`), taking turns (`contest`), a registry and a model
//! to move (`site`).

pub(crate) mod build;
mod contest;
mod meter;
pub(crate) mod packed;
pub(crate) mod pull;
pub(crate) mod push;
mod relay;
mod site;
pub(crate) mod small;
