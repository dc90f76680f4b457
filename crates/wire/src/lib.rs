//! The messages of both protocols, their versions, and the one place where they become core types.
//!
//! Owns: generated prost and tonic code, the local socket's frames, how a control connection behaves, and every check of
//! a message's lengths, counts and ranges. Does not own: who connects, policy, or what a checked message is used for.

pub mod connection;
pub mod convert;
mod error;
pub mod local;
pub mod measured;
pub mod plan_status;
pub mod priority;
pub mod rdma;
mod redact;
pub mod schedulers;
pub mod status;
mod version;

pub use error::WireError;
pub use version::{FEATURE_RATES, FEATURE_SCHEDULERS, FEATURES, PROTOCOL_VERSION, check_version};

/// The control plane: peers ↔ scheduler, and child ↔ parent. As generated from `proto/modelcast/v1/control.proto`.
#[rustfmt::skip]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    reason = "generated: tests/it compares it byte for byte with what the protos say"
)]
pub mod control {
    include!("gen/modelcast.v1.rs");
}
