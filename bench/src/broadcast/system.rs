//! What is measured: something that moves a model from one host to others.
//!
//! Owns: the seam between the race and the systems. Does not own: any of them.

use std::fmt::Debug;

use super::lab::Lab;

/// One way to move a model.
pub(crate) trait System: Debug {
    /// What it is called in results.
    fn name(&self) -> &str;

    /// Why it cannot be measured here, if so.
    fn missing(&self, lab: &Lab) -> Option<String>;

    /// What has to be done once before the first run, such as a push to a registry.
    fn prepare(&self, lab: &Lab) -> anyhow::Result<()>;

    /// Starts what has to be there before the clock starts; all of it is ready when this returns. The outputs' parents
    /// are there, the outputs are not.
    fn stand<'a>(&'a self, lab: &'a Lab) -> anyhow::Result<Box<dyn Standing + 'a>>;

    /// Whether what it moves between hosts is encrypted.
    fn is_encrypted(&self) -> bool;
}

/// A system that is ready to move, or moves. Dropping it ends it.
pub(crate) trait Standing: Debug {
    /// The clock starts for the origin.
    fn go(&mut self) -> anyhow::Result<()>;

    /// The clock starts for the peer of that number.
    fn start(&mut self, peer: usize) -> anyhow::Result<()>;

    /// Whether that peer has all of it, by its own word.
    ///
    /// # Errors
    /// If it has failed.
    fn is_done(&mut self, peer: usize) -> anyhow::Result<bool>;

    /// `kill -9` of everything that the peer runs.
    fn kill(&mut self, peer: usize);

    /// The process ids of what peers run, without their children.
    fn peer_pids(&self) -> Vec<u32>;

    /// The payload that came from the origin and from peers by its own count, if it counts.
    fn moved(&self) -> Option<Moved>;
}

/// Bytes of blobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) from_origin: u64,
    pub(crate) from_peers: u64,
}
