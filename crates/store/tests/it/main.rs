//! The store against real file systems. Tests that mount one need root; without it they say that they are skipped.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy lets tests unwrap and print, but not the helpers that they share"
)]

mod ahead;
mod archives;
mod collect;
mod corpora;
mod direct;
mod landing;
mod manage;
mod oci;
mod output;
mod store;
mod support;
