//! `modelctl` from outside: exit codes, what it prints, and what it leaves on disk and in registries.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "clippy lets tests unwrap and print, but not the helpers that they share"
)]

mod becoming;
#[path = "../../../registry/tests/it/fault_server.rs"]
#[allow(unreachable_pub, unused, reason = "other crates include this file too, and use other parts of it")]
mod fault_server;
#[path = "../../../registry/tests/it/hub_model.rs"]
#[allow(unused, reason = "other crates include this file too, and use other parts of it")]
mod hub_model;

mod build;
mod deploy;
mod doctor;
mod door;
mod embedded;
mod fleet;
mod fleet_key;
mod guides;
mod help;
mod hub;
mod hub_mirror;
mod inspect;
mod interrupted;
mod leaving;
mod mirror;
mod mirror_clients;
mod mirror_guides;
mod mirrors;
mod plan;
mod pull;
mod reading;
mod registry;
mod running;
mod schedulers;
mod second;
mod seeds;
mod selection;
mod sidecar;
mod stored;
mod support;
mod transports;
mod triton;
mod verify;
mod watching;
