//! Whole pulls and peers through the public API: real sockets, real files, origins that misbehave.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy lets tests unwrap and print, but not the helpers that they share"
)]

mod clients;
mod delta;
#[allow(dead_code, reason = "shared with the registry's tests, which use more of it")]
#[path = "../../../registry/tests/it/fault_server.rs"]
mod fault_server;
mod fleet;
mod foreign;
mod learning;
mod limits;
mod origin;
mod priority;
mod rdma;
mod standalone;
mod support;
