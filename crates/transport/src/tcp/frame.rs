//! The bytes of requests and responses, fixed in size, little-endian. Does not own sockets.
//!
//! ```text
//! request   id u64 · handle u64 · offset u64 · length u32                          28 bytes
//! response  id u64 · status u32 · length u32, then length bytes when status is 0   16 bytes
//! ```
//! Responses come in the order of their requests.

use crate::export::Denial;

pub(super) const REQUEST_BYTES: usize = 28;
pub(super) const RESPONSE_BYTES: usize = 16;

const STATUS_OK: u32 = 0;
const STATUS_NOT_HERE: u32 = 1;
const STATUS_REFUSED: u32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
}

impl Request {
    pub(super) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[0..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.handle.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Self {
        Self {
            id: u64_at(bytes, 0),
            handle: u64_at(bytes, 8),
            offset: u64_at(bytes, 16),
            len: u32_at(bytes, 24),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) id: u64,
    /// The bytes that follow, or why none do.
    pub(super) body: Result<u32, Denial>,
}

impl Response {
    pub(super) fn encode(&self) -> [u8; RESPONSE_BYTES] {
        let (status, len) = match self.body {
            Ok(len) => (STATUS_OK, len),
            Err(Denial::NotHere) => (STATUS_NOT_HERE, 0),
            Err(Denial::Refused) => (STATUS_REFUSED, 0),
        };
        let mut bytes = [0; RESPONSE_BYTES];
        bytes[0..8].copy_from_slice(&self.id.to_le_bytes());
        bytes[8..12].copy_from_slice(&status.to_le_bytes());
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        bytes
    }

    /// `None` if these bytes are no response.
    pub(super) fn decode(bytes: &[u8; RESPONSE_BYTES]) -> Option<Self> {
        let body = match (u32_at(bytes, 8), u32_at(bytes, 12)) {
            (STATUS_OK, len) => Ok(len),
            (STATUS_NOT_HERE, 0) => Err(Denial::NotHere),
            (STATUS_REFUSED, 0) => Err(Denial::Refused),
            _ => return None,
        };
        Some(Self { id: u64_at(bytes, 0), body })
    }
}

pub(super) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

/// `N` bytes of a fixed frame, whose fields lie within it by the table above.
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}
