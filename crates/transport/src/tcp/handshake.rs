//! How both ends prove that they hold a link's secret, which itself never travels here.
//!
//! ```text
//! sender → receiver   magic · version u32 · nonce 32                            40 bytes
//! receiver → sender   magic · version u32 · link u64 · nonce 32 · proof 32      80 bytes
//! sender → receiver   proof 32
//! ```
//! A proof is the BLAKE3 hash, keyed with the secret, of the prover's role, the link and both nonces: neither side can
//! replay the other's proof or one of an earlier connection. A sender that does not accept the proof hangs up.

use blake3::Hash;

use super::frame::{array_at, u32_at, u64_at};

pub(super) const HELLO_BYTES: usize = 40;
pub(super) const ANSWER_BYTES: usize = 80;
pub(super) const PROOF_BYTES: usize = 32;

/// The version of handshake and frames. Both ends run the same or do not talk.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 4] = *b"MCDL";

/// Who proves. The labels keep one side's proof from serving as the other's.
#[derive(Clone, Copy)]
pub(super) enum Role {
    Sender,
    Receiver,
}

/// What both proofs are about.
#[derive(Clone, Copy)]
pub(super) struct Session {
    pub(super) link: u64,
    pub(super) sender_nonce: [u8; 32],
    pub(super) receiver_nonce: [u8; 32],
}

impl Session {
    pub(super) fn proof(&self, role: Role, secret: &[u8; 32]) -> Hash {
        let label: &[u8] = match role {
            Role::Sender => b"modelcast data link v1 sender--",
            Role::Receiver => b"modelcast data link v1 receiver",
        };
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(label);
        hasher.update(&self.link.to_le_bytes());
        hasher.update(&self.sender_nonce);
        hasher.update(&self.receiver_nonce);
        hasher.finalize()
    }
}

/// The other end is no peer of ours, or of another version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHello {
    Magic,
    Version(u32),
}

fn check_prefix(bytes: &[u8]) -> Result<(), BadHello> {
    if bytes[..4] != MAGIC {
        return Err(BadHello::Magic);
    }
    match u32_at(bytes, 4) {
        VERSION => Ok(()),
        theirs => Err(BadHello::Version(theirs)),
    }
}

fn put_prefix(bytes: &mut [u8]) {
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
}

pub(super) fn encode_hello(nonce: &[u8; 32]) -> [u8; HELLO_BYTES] {
    let mut bytes = [0; HELLO_BYTES];
    put_prefix(&mut bytes);
    bytes[8..40].copy_from_slice(nonce);
    bytes
}

/// The sender's nonce.
pub(super) fn decode_hello(bytes: &[u8; HELLO_BYTES]) -> Result<[u8; 32], BadHello> {
    check_prefix(bytes)?;
    Ok(array_at(bytes, 8))
}

pub(super) fn encode_answer(session: &Session, proof: Hash) -> [u8; ANSWER_BYTES] {
    let mut bytes = [0; ANSWER_BYTES];
    put_prefix(&mut bytes);
    bytes[8..16].copy_from_slice(&session.link.to_le_bytes());
    bytes[16..48].copy_from_slice(&session.receiver_nonce);
    bytes[48..80].copy_from_slice(proof.as_bytes());
    bytes
}

/// The session that the receiver speaks of, and its proof. `Hash` compares in constant time.
pub(super) fn decode_answer(
    bytes: &[u8; ANSWER_BYTES],
    sender_nonce: [u8; 32],
) -> Result<(Session, Hash), BadHello> {
    check_prefix(bytes)?;
    let session = Session { link: u64_at(bytes, 8), sender_nonce, receiver_nonce: array_at(bytes, 16) };
    Ok((session, Hash::from_bytes(array_at(bytes, 48))))
}
