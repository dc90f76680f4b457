//! Names of peers and artifacts: fixed-size byte strings. Does not own where they come from.

use std::fmt;

/// A peer process: 16 bytes of a hash of its key, so new at each start.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId([u8; 16]);

impl PeerId {
    /// The peer of these bytes.
    pub const fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// An artifact: the SHA-256 of its manifest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ArtifactId(pub [u8; 32]);

fn write_prefix(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    // Eight digits tell the peers of one fleet apart in a log line; the whole name would fill it.
    bytes.iter().take(4).try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! display_prefix {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_prefix(&self.0, f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_prefix(&self.0, f)
            }
        }
    )*};
}
display_prefix!(PeerId, ArtifactId);
