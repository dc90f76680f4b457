//! Which of several schedulers a fleet's peers use: all of them the same one, without asking anybody.
//!
//! Owns: the order. Does not own: who answers, or how addresses are found.
//!
//! Rendezvous hashing: each address has a score with the fleet's name, and the highest goes first. Addresses say
//! nothing of one another, so that removing one changes the place of no other.

/// A fleet's name: 8 bytes that its key gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FleetName(pub u64);

impl FleetName {
    /// Of a fleet without a key.
    pub const LOCAL: Self = Self(u64::from_le_bytes(*b"local\0\0\0"));

    /// Whether peers of this fleet prefer the scheduler at `one` to that at `other`, both HOST:PORT.
    pub fn prefers(self, one: &str, other: &str) -> bool {
        (self.score(one), one) > (self.score(other), other)
    }

    /// The addresses, best first, each once.
    #[must_use]
    pub fn rank(self, mut addresses: Vec<String>) -> Vec<String> {
        addresses.sort_by(|a, b| (self.score(b), b).cmp(&(self.score(a), a)));
        addresses.dedup();
        addresses
    }

    /// FNV-1a, then the finaliser of `SplitMix64`. Any fixed mixing serves, as long as it is the same everywhere.
    fn score(self, address: &str) -> u64 {
        let bytes = self.0.to_le_bytes().into_iter().chain(address.bytes());
        let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^ (hash >> 31)
    }
}
