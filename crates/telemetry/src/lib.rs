//! What a process shows of itself to whoever watches it: `/metrics`, `/healthz`, and what a role adds.
//!
//! Owns: the HTTP face and its bounds, the text format, and the kinds of numbers. Does not own: what is counted, which
//! each role says by [`Watched`].

mod face;
mod page;

pub use face::{Health, Reply, Watched, serve};
pub use page::{Buckets, Page, Sample};
