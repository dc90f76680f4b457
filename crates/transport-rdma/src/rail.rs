//! The seam below the engine: what one device and port does. Two things are behind it: verbs, and the fake fabric.
//!
//! Owns no decision. An implementation keeps one promise on which everything rests: a [`Work`]'s sink is held until the
//! completion is handed out or [`QueuePair::destroy`] has returned it, and nothing is written afterwards.

use std::{ops::Range, os::fd::BorrowedFd, sync::Arc};

use ::verbs::{MemoryRegion, Sink, VerbsError};
use memory::Region;

use crate::{Endpoint, RailInfo};

pub(crate) mod verbs;

/// What a registration is for. The two are in protection domains of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reads of this process write it.
    Fetch,
    /// Reads of others read it.
    Serve,
}

/// A registration of some memory with a rail. Dropped, with its last clone, it is no more; the region stays until then.
#[derive(Clone)]
pub(crate) enum Memory {
    /// With a device.
    Verbs(Arc<MemoryRegion>),
    /// With the fake fabric.
    Fake(Arc<crate::fake::Pin>),
}

impl Memory {
    /// The key by which others name it.
    pub(crate) fn rkey(&self) -> u32 {
        match self {
            Self::Verbs(region) => region.rkey(),
            Self::Fake(pin) => pin.rkey(),
        }
    }
}

/// One work request: read `range.len()` bytes.
pub(crate) struct Work {
    pub(crate) id: u64,
    pub(crate) sink: Sink,
    /// Where the sink's lease begins in its region.
    pub(crate) start: usize,
    /// Which part of the lease.
    pub(crate) range: Range<usize>,
    pub(crate) local: Memory,
    /// The source.
    pub(crate) address: u64,
    pub(crate) rkey: u32,
}

/// How one work ended.
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) qp: u32,
    pub(crate) sink: Sink,
    pub(crate) result: Result<(), Failure>,
}

/// Why a work brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) text: String,
}

/// What a failure says about the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureKind {
    /// The other end does not let it be read: no other path would help.
    Access,
    /// This path does not lead there any more, or this QP is broken: another may.
    Path,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }
}

/// The works that a QP did not take, and why.
pub(crate) struct Unposted {
    pub(crate) error: Failure,
    pub(crate) works: Vec<Work>,
}

/// A queue pair. Dropping it destroys it.
pub(crate) trait QueuePair: Send {
    fn number(&self) -> u32;

    /// Makes it ready to read or to be read, as it was made for.
    fn connect(&mut self, peer: &Endpoint, own: &Endpoint) -> Result<(), VerbsError>;

    /// Starts reads. On an error the others of `works` are on their way.
    fn post(&mut self, works: Vec<Work>) -> Result<(), Unposted>;

    /// Ends it: once this returns, nothing is written any more. Returns the works that had not ended.
    fn destroy(self: Box<Self>) -> Vec<Done>;
}

/// What a device says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RailEvent {
    /// The port carries nothing any more.
    Down,
    /// The device is gone, or of no use any more.
    Gone,
    /// The port carries again.
    Up,
    /// This QP is broken.
    QueuePairFailed(u32),
}

/// One device and port, with its completion queue.
pub(crate) trait Rail: Send + Sync {
    fn info(&self) -> &RailInfo;

    /// How many works may be outstanding on all of its QPs together.
    fn works_max(&self) -> usize;

    /// Pins memory. EFAULT where the system does not pin such memory for that.
    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
        purpose: Purpose,
    ) -> Result<Memory, VerbsError>;

    fn queue_pair(&self, purpose: Purpose) -> Result<Box<dyn QueuePair>, VerbsError>;

    /// Appends what has ended.
    fn poll(&self, done: &mut Vec<Done>) -> Result<(), VerbsError>;

    /// From now on the next completion makes [`Self::completions`] readable.
    fn arm(&self) -> Result<(), VerbsError>;

    /// Makes [`Self::completions`] unreadable again.
    fn clear(&self);

    fn completions(&self) -> BorrowedFd<'_>;

    /// Readable when there is an event.
    fn events(&self) -> BorrowedFd<'_>;

    fn next_event(&self) -> Option<RailEvent>;
}
