//! What the death of a parent costs its children: how long no byte of its stripes comes.
//!
//! Owns: which fleet, who dies and how, the figures of a run. Does not own: what children do about it (crate `swarm`), how
//! a run goes (`world`), how figures are shown.
//!
//! A process that dies closes its streams, which counts at once. One that hangs does not: what was asked of it is asked
//! of others when the link has stalled, by the rule of the design three times what its oldest read should take and
//! 100 ms at least. What is asked then takes as long as it is predicted to.

use std::time::Duration;

use modelpack::layout::PIECE_BYTES;

use crate::options::{Fault, Options, Orphan};

/// How a parent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its streams close.
    Closed,
    /// They stay open, and nothing comes.
    Silent,
}

impl End {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Closed, Self::Silent];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Silent => "silent",
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct Failover {
    /// How many peers.
    pub peers: u32,
    /// Pieces of the artifact, each of the product's size.
    pub pieces: u32,
    /// Bytes per second of a card, in each direction.
    pub rate: u64,
    /// How the parent ends.
    pub end: End,
}

impl Failover {
    /// The run of one seed: another peer ends in each, when half of everything should have come.
    pub fn options(&self, seed: u64) -> Options {
        let whole = u64::from(self.pieces) * PIECE_BYTES;
        let at = Duration::from_nanos(whole.saturating_mul(1_000_000_000 / 2) / self.rate.max(1));
        let node = usize::try_from(drawn(seed) % u64::from(self.peers)).expect("a peer");
        let fault = match self.end {
            End::Closed => Fault::Kill { node, at },
            End::Silent => Fault::Hang { node, at },
        };
        Options { seed, faults: vec![fault], ..Options::new(self.peers as usize, self.pieces, self.rate) }
    }

    /// The stripes that lost their parent in one run.
    pub fn orphans(&self, seed: u64) -> Vec<Orphan> {
        crate::world::run(&self.options(seed)).orphans
    }
}

impl Orphan {
    /// What the rule promises where something was out at the parent: the stall, and one predicted completion.
    pub fn promised(&self) -> Option<Duration> {
        Some(self.stalls? + self.predicted?)
    }
}

/// Entrants come first: another place in the fleet for each seed.
fn drawn(seed: u64) -> u64 {
    (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).wrapping_mul(0xbf58_476d) >> 16
}
