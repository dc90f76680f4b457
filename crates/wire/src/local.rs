//! The local API's messages. As generated from `proto/modelcast/v1/local.proto`, and the frames they travel in.
//!
//! Owns: framing, the descriptors beside a frame, and their bounds. Does not own: who listens, or what a client may ask.

mod stream;

pub use generated::*;
pub use stream::{FDS_MAX, FRAME_BYTES_MAX, LocalStream};

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
mod generated {
    include!("gen/modelcast.local.v1.rs");
}
