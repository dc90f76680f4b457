//! The plan as data: what one member is told. Does not own how it is made.

use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::PieceIndex;

use crate::id::PeerId;
use crate::priority::Priority;

/// One member's part of the plan of one swarm. A later epoch replaces an earlier one whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerPlan {
    /// Grows with every plan of the swarm.
    pub epoch: u64,
    /// Consecutive pieces that stay in one stripe; at least 1.
    pub stripe_pieces: u32,
    /// Where this member gets each stripe; at least one.
    pub stripes: Vec<StripePart>,
    /// Everybody named above, and more who may serve; never the member itself.
    pub members: Vec<Member>,
    /// Those in the swarm that are quarantined, except the member itself: nobody reads from them, and nobody's network
    /// card serves them.
    pub quarantined: Vec<PeerId>,
    /// Predicted time from the plan's start to the last member's last piece, if the rates are known.
    pub finish: Option<Duration>,
    /// The fluid bound for the same, if the rates are known.
    pub bound: Option<Duration>,
    /// How urgent the artifact is to those who want it: where it shares a card, this says which goes first.
    pub priority: Priority,
}

impl PeerPlan {
    /// The stripe that a piece belongs to.
    ///
    /// # Panics
    /// If the plan has no stripe or a stripe width of 0: conversions from the network check that.
    pub fn stripe_of(&self, piece: PieceIndex) -> usize {
        (piece.0 / self.stripe_pieces) as usize % self.stripes.len()
    }
}

/// Where a member gets one stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripePart {
    /// The first choice.
    pub source: StripeSource,
    /// Others who hold the stripe or soon will. For an entrant: those who already hold pieces of it, to be asked
    /// before the origin is read again.
    pub backups: Vec<PeerId>,
    /// For an entrant: the live members that were it before, and may have pieces of the stripe on their way. All of
    /// them are backups too.
    pub before: Vec<Before>,
}

/// A member that was the entrant of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Before {
    /// The member.
    pub peer: PeerId,
    /// The epoch that took the stripe from it. Once it acts by that plan, or a later one, it begins no read of the
    /// stripe, so that what it then says of its reads in flight is the truth.
    pub epoch: u64,
}

/// The first choice for one stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StripeSource {
    /// This member is the stripe's entrant: it reads it from the origin.
    Origin,
    /// That peer.
    Parent(PeerId),
    /// Nobody has it yet, and no member can read the origin.
    None,
}

/// Another peer of the swarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name in the plan.
    pub id: PeerId,
    /// How it is reached.
    pub contact: Arc<Contact>,
    /// Whether it announces a local artifact: its bytes count as origin bytes.
    pub is_seed: bool,
    /// Whether it stands in another rack than whoever is told: what it sends crosses uplinks that many share.
    pub is_far: bool,
}

/// How a peer is reached, and what people call it. It is in the plans of hundreds, which share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    /// HOST:PORT of its control service.
    pub address: Box<str>,
    /// Its name for people.
    pub name: Box<str>,
}

impl Contact {
    /// One that plans may share.
    pub fn new(address: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Arc<Self> {
        Arc::new(Self { address: address.into(), name: name.into() })
    }
}
