//! Digests: the SHA-256 that OCI names blobs by, and the BLAKE3 root that proves them piece by piece.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

use crate::text::shown;

/// A digest string could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DigestError {
    /// The part before the colon is not an algorithm that Modelcast can check.
    #[error("digest `{0}` does not use the algorithm `{1}`")]
    Algorithm(String, &'static str),
    /// The part after the colon is not 64 lower-case hexadecimal characters.
    #[error("digest `{0}` is not 64 lower-case hexadecimal characters")]
    Hex(String),
}

fn parse_hex(hex: &str) -> Result<[u8; 32], DigestError> {
    let bad = || DigestError::Hex(shown(hex));
    if hex.len() != 64 || hex.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(bad());
    }
    let mut value = [0; 32];
    hex::decode_to_slice(hex, &mut value).map_err(|_| bad())?;
    Ok(value)
}

/// The SHA-256 of a blob's bytes, written `sha256:HEX` as in the OCI image specification, "Digests".
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha256Digest([u8; 32]);

impl Sha256Digest {
    /// A digest whose 32 bytes are known.
    pub const fn new(value: [u8; 32]) -> Self {
        Self(value)
    }

    /// Hashes `bytes` in one go: for manifests and configs, not for layers.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hexadecimal characters, without the algorithm.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Sha256Digest {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        let hex = s.strip_prefix("sha256:").ok_or_else(|| DigestError::Algorithm(shown(s), "sha256"))?;
        parse_hex(hex).map(Self)
    }
}

/// The plain BLAKE3 hash of a blob (what `b3sum` prints), which is also the root of its piece tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blake3Root([u8; 32]);

impl Blake3Root {
    /// A root whose 32 bytes are known.
    pub const fn new(value: [u8; 32]) -> Self {
        Self(value)
    }

    /// The 32 bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 lower-case hexadecimal characters: the form of the `org.modelcast.blake3` annotation.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Blake3Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Blake3Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.hex())
    }
}

impl FromStr for Blake3Root {
    type Err = DigestError;

    fn from_str(s: &str) -> Result<Self, DigestError> {
        parse_hex(s).map(Self)
    }
}

/// Hashes bytes that arrive in order into a [`Sha256Digest`].
#[derive(Clone, Default)]
pub struct Sha256Hasher(Sha256);

impl Sha256Hasher {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Sha256Digest {
        Sha256Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for Sha256Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sha256Hasher")
    }
}
