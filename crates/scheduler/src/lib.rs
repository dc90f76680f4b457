//! The scheduler process: peers' streams in, plans out.
//!
//! Owns: the streams, one event loop with one planner in it, and who counts as alive. Does not own: any decision about
//! a plan (crate `planner`), or anything that outlives the process and that it needs: peers tell a new scheduler
//! everything again, and a record of what happened is for people.

mod claims;
mod driver;
mod inquiry;
mod metrics;
mod outbox;
mod peering;
mod record_file;
mod recorder;
mod server;
mod session;
mod takeover;

pub use inquiry::{Inquiry, InquiryError, Seen, current_plan, inquire};
pub use metrics::Metrics;
pub use peering::Peering;
pub use record_file::RecordFile;
pub use server::{Options, SchedulerError, serve};
