//! The scheduler process: peers' streams in, plans out.
//!
//! Owns: the streams, one event loop with one planner in it, and who counts as alive. Does not own: any decision about
//! a plan (crate `planner`), or anything that outlives the process: peers tell a new scheduler everything again.

mod claims;
mod driver;
mod inquiry;
mod metrics;
mod outbox;
mod peering;
mod server;
mod session;
mod takeover;

pub use inquiry::{Inquiry, InquiryError, Seen, current_plan, inquire};
pub use metrics::Metrics;
pub use peering::Peering;
pub use server::{Options, SchedulerError, serve};
