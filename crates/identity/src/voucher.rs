//! What a reader of the origin vouches for, signed: whoever passes it on cannot change it (DESIGN §4, artifacts without
//! roots). Does not own which pieces are vouched for, or what is believed.
//!
//! Names are self-certifying: a process's id is the head of the hash of its public key, so that a voucher proves by
//! itself whose it is. Who may have a name at all is for the fleet key to say.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// Separates vouchers from whatever else might be signed.
const CONTEXT: &[u8] = b"modelcast 2026-11 voucher";

/// This process's signing key: new at each start, and never written anywhere.
#[derive(Debug)]
pub struct ReaderKey {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

/// A reader's signed word that a piece, as it came from the origin, has this chaining value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Voucher {
    /// The repair of the artifact in which it was read: 0 at first, one more after each time the pieces did not add up
    /// to the manifest's digest.
    pub round: u32,
    /// The piece's BLAKE3 chaining value at its place in its blob.
    pub value: [u8; 32],
    /// The reader's public key (Ed25519).
    pub key: [u8; 32],
    /// Of the artifact, the piece, the round and the value.
    pub signature: [u8; 64],
}

/// The system gives no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a signing key")]
pub struct KeyFailed;

impl ReaderKey {
    /// A new key.
    ///
    /// # Errors
    /// If the system gives no random bytes.
    pub fn generate() -> Result<Self, KeyFailed> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyFailed)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyFailed)?;
        Ok(Self { pair, public })
    }

    /// The id of the process that has this key.
    pub fn id(&self) -> [u8; 16] {
        id_of(&self.public)
    }

    /// Vouches for a piece of an artifact, named by the SHA-256 of its manifest.
    pub fn vouch(&self, artifact: &[u8; 32], piece: u32, round: u32, value: [u8; 32]) -> Voucher {
        let signed = self.pair.sign(&message(artifact, piece, round, &value));
        let signature = signed.as_ref().try_into().expect("an Ed25519 signature has 64 bytes");
        Voucher { round, value, key: self.public, signature }
    }
}

impl Voucher {
    /// The id of the process that vouches.
    pub fn reader(&self) -> [u8; 16] {
        id_of(&self.key)
    }

    /// Whether it was signed for this piece of this artifact.
    pub fn is_about(&self, artifact: &[u8; 32], piece: u32) -> bool {
        let message = message(artifact, piece, self.round, &self.value);
        UnparsedPublicKey::new(&ED25519, &self.key).verify(&message, &self.signature).is_ok()
    }
}

fn id_of(public: &[u8; 32]) -> [u8; 16] {
    let hash = blake3::hash(public);
    std::array::from_fn(|at| hash.as_bytes()[at])
}

fn message(artifact: &[u8; 32], piece: u32, round: u32, value: &[u8; 32]) -> Vec<u8> {
    [CONTEXT, artifact.as_slice(), &piece.to_le_bytes(), &round.to_le_bytes(), value].concat()
}
