//! What can be wrong with a message or a frame. Does not own what is done about it.

use std::io;

/// A message or frame could not be taken as it came, or could not be sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The other side speaks another version of the protocol.
    #[error("the other side speaks protocol version {theirs}, this one speaks {ours}")]
    Version {
        /// What it said.
        theirs: u32,
        /// [`crate::PROTOCOL_VERSION`].
        ours: u32,
    },
    /// A byte string that names or proves something has another length than it must have.
    #[error("`{field}` has {got} bytes, not {want}")]
    Length {
        /// The message field.
        field: &'static str,
        /// Its length.
        got: usize,
        /// The only right length.
        want: usize,
    },
    /// A repeated field or a string is longer than its bound.
    #[error("`{field}` holds {got}, more than {max}")]
    TooMany {
        /// The message field.
        field: &'static str,
        /// How many.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// A field's value is none that the protocol allows.
    #[error("`{field}` is not valid: {why}")]
    Invalid {
        /// The message field.
        field: &'static str,
        /// The rule it breaks.
        why: &'static str,
    },
    /// A frame is longer than either side may send.
    #[error("a frame of {bytes} bytes is longer than {max}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
        /// [`crate::local::FRAME_BYTES_MAX`].
        max: usize,
    },
    /// More descriptors came with a frame than may, so the kernel dropped some.
    #[error("more descriptors came with a frame than the {max} that may")]
    TooManyDescriptors {
        /// [`crate::local::FDS_MAX`].
        max: usize,
    },
    /// The bytes of a frame are not the message they should be.
    #[error("a frame does not decode")]
    Decode(#[source] prost::DecodeError),
    /// The socket failed, or ended within a frame.
    #[error("the local socket failed")]
    Io(#[source] io::Error),
}
