//! Phase one, in the scheduler, pure: who gets which part of an artifact from whom.
//!
//! Owns: stripe trees, origin shares, backups, the bound that a distribution is measured against, how a card is learned.
//! Does not own: the choice of a source for each piece (crate `swarm`), streams and messages (crates `scheduler`, `wire`).

pub mod bound;
pub mod capacity;
mod cards;
mod forest;
mod id;
mod pace;
mod place;
mod plan;
mod planner;
mod priority;
mod quarantine;
mod ranking;
mod status;
mod stripe_set;
mod swarm_state;
mod trees;

pub use cards::{Measured, SwarmLoad};
pub use id::{ArtifactId, PeerId};
pub use place::Place;
pub use plan::{Before, Contact, Member, PeerPlan, StripePart, StripeSource};
pub use planner::{Input, Output, Planner, Progress, ROUNDS_MAX};
pub use priority::{Priority, Wishes};
pub use quarantine::{Alarm, Charge, HALF_LIFE, HostAddr, SILENCE_LASTS, Standing};
pub use ranking::FleetName;
pub use status::{AlarmStatus, MemberStatus, PeerStatus, PlanStatus, SwarmStatus};
pub use stripe_set::StripeSet;
