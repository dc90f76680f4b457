//! What a peer shows to clients that know nothing of it: a registry, and a Hugging Face hub, that can only be read.
//!
//! Owns: the server's side of the OCI distribution specification 1.1.1 as far as reading goes (workflow "pull", tags,
//! referrers), and of the hub's API as far as downloading a model goes: paths, ranges, headers, errors; how many
//! connections there may be and how long a client may do nothing.
//! Does not own: where manifests and bytes come from and who may have them ([`Upstreams`] and
//! [`Hubs`], which the peer implements).
//!
//! **Invariant:** nothing is sent as a blob's bytes but what [`Content`] yields, and nothing is read of it before the
//! client has taken what came before, up to one chunk.

mod hub;
mod oci;
mod part;
mod range;
mod reply;
mod route;
mod seam;
mod server;

pub use hub::{Hub, Rule};
pub use oci::Oci;
pub use range::{Wanted, wanted};
pub use reply::Body;
pub use route::{Named, Route, Unroutable};
pub use seam::{Caller, Content, Document, HubFile, HubModel, Hubs, List, Listed, Refused, Upstreams, Why};
pub use server::{Handler, serve};
