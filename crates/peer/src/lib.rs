//! A peer: fetches an artifact from its origin and from other peers, proves every piece, serves what it has proved.
//!
//! Owns: the drivers that perform what the pure crate `swarm` decides, the peer's three conversations (scheduler, other
//! peers, clients on this machine) and the order of a pull. Does not own: choices of pieces and sources (`swarm`), plans
//! (`planner`), bytes on a link (`transport`), files (`store`), registries (`registry`).
//!
//! ```text
//! pull ───────────────┐                                            clients ◄─ local socket
//! (standalone)        ▼                                               ▼
//! origin ──► fetch ─► download ─► workers: check, write ─► fill ◄── transfer ─► store
//!                     ▲   ▲ the driver of crate `swarm`               │
//!  links ─────────────┘   └── node ◄── session ◄── scheduler          ▼
//!  (as a child)                 └────────────────► have_feed ─► service (as a parent)
//! ```

mod alarm;
mod artifact;
mod blame;
mod buffers;
mod children;
mod client;
mod clients;
mod daemon;
mod delta;
mod describe;
mod descriptors;
mod download;
mod embedded;
mod error;
mod fetch;
mod fill;
mod have_feed;
mod kept;
mod lanes;
mod leaving;
mod limit;
mod link_test;
mod links;
mod lookup;
mod meter;
mod metrics;
mod mirror;
mod names;
mod node;
mod origin;
mod prefix;
mod presence;
mod progress;
mod pull;
mod rdma_words;
mod repair;
mod resolve;
mod security;
mod seed;
mod service;
mod session;
mod shared;
mod sinks;
mod sources;
#[cfg(test)]
mod testing;
mod transfer;
mod transports;
mod vouching;
mod workers;

pub use blame::Blamed;
pub use client::LocalPeer;
pub use clients::default_socket;
pub use daemon::{Peer, PeerOptions};
pub use delta::Delta;
pub use embedded::{FleetOptions, Lingering, pull_in_fleet, serve_directory};
pub use error::{ErrorClass, PeerError, RemoteCause};
pub use leaving::{Leaving, Left, LeftBecause};
pub use limit::Cards;
pub use link_test::{LinkFigures, LinkReport, LinkTestOptions, link_test};
pub use mirror::{HubFace, MirrorOptions, Upstream};
pub use presence::address_towards;
pub use progress::Progress;
pub use pull::{PullPlan, PullReport, PullRequest, PullWatch, plan_pull, pull};
pub use resolve::{hub_commit, pinned, resolve};
pub use security::PeerSecurity;
pub use seed::{Seed, SeedFile, SeedFiles};
pub use sinks::LandingMode;
pub use transports::{TransportMode, TransportOptions, Transports};
