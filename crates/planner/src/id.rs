//! Names of peers and artifacts: fixed-size byte strings. Does not own where they come from.

use std::cmp::Ordering;
use std::fmt;

/// A peer process: 16 bytes of a hash of its key, so new at each start. In the order of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PeerId([u8; 16]);

// As a number, in two instructions: what is kept by peer is searched at every piece.
impl Ord for PeerId {
    fn cmp(&self, other: &Self) -> Ordering {
        u128::from_be_bytes(self.0).cmp(&u128::from_be_bytes(other.0))
    }
}

impl PartialOrd for PeerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_in_the_order_of_their_bytes() {
        let of = |first: u8, eighth: u8, last: u8| {
            let mut bytes = [7; 16];
            (bytes[0], bytes[8], bytes[15]) = (first, eighth, last);
            bytes
        };
        let all = [of(1, 9, 9), of(1, 9, 10), of(1, 10, 0), of(2, 0, 0), of(255, 0, 0)];
        for (one, other) in all.iter().flat_map(|one| all.iter().map(move |other| (one, other))) {
            assert_eq!(PeerId::new(*one).cmp(&PeerId::new(*other)), one.cmp(other));
        }
    }
}
