//! `modelctl` from outside: exit codes, what it prints, and what it leaves on disk and in registries.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

mod build;
mod doctor;
mod help;
mod inspect;
mod pull;
mod registry;
mod support;
mod verify;
