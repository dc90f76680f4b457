//! The seam: what every transport does, and how a read ends. Does not own any engine.

use std::{io, sync::Arc, time::Instant};

use ::memory::{Filled, Lease};

/// Longest read in bytes: far above any run that is worth one request, and small enough that a sender that stalls
/// inside one is noticed by its deadline.
pub const READ_BYTES_MAX: u32 = 64 << 20;

/// How good a transport is: of two that reach the same peer, the greater one is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Bytes pass through the kernel's socket buffers on both sides.
    Tcp,
    /// The network card reads the sender's memory and writes the receiver's.
    Nic,
}

/// A sender's file as a receiver names it, from the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The sender's name for it.
    pub handle: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// One read: fill `lease` with the bytes that start at `offset` of a window.
#[derive(Debug)]
pub struct ReadRequest {
    /// The caller's name for the read; its completion carries it.
    pub id: u64,
    /// The [`Window::handle`].
    pub window: u64,
    /// The first byte, in bytes from the window's start.
    pub offset: u64,
    /// Where the bytes go, and how many.
    pub lease: Lease,
    /// When the read has failed. The engine then gives up the whole link: what is on its way belongs to a read
    /// that nobody waits for any more.
    pub deadline: Instant,
}

/// How one read ended. Every posted read ends exactly once.
#[derive(Debug)]
pub struct Completion {
    /// The read's [`ReadRequest::id`].
    pub id: u64,
    /// The bytes, not yet checked; or why there are none. After a fault the lease is already back in its pool.
    pub result: Result<Filled, ReadFault>,
}

/// Why a read brought nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFault {
    /// The sender has not (yet) checked these bytes.
    #[error("the sender does not have these bytes")]
    NotHere,
    /// The sender knows no such window, or the range is not within it.
    #[error("the sender refused the read")]
    Refused,
    /// The read was not done in time. The link is closed.
    #[error("the read was not done by its deadline")]
    Deadline,
    /// The link ended first.
    #[error("the link went down")]
    LinkDown(#[source] Arc<io::Error>),
}

/// What to do about a [`ReadFault`]. None is fatal to a pull: another source may have the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultClass {
    /// The same sender may have the bytes later.
    Retry,
    /// Ask another source.
    Reroute,
}

impl ReadFault {
    /// What to do about it.
    pub fn class(&self) -> FaultClass {
        match self {
            Self::NotHere => FaultClass::Retry,
            Self::Refused | Self::Deadline | Self::LinkDown(_) => FaultClass::Reroute,
        }
    }
}

/// Where an engine delivers completions. It is called on the engine's own threads, so it must not block; it may post.
pub type CompletionSink = Arc<dyn Fn(Completion) + Send + Sync>;

/// A live connection to one sender.
///
/// Laws, checked by [`crate::conformance`]:
/// * A read that `post` took completes exactly once, whatever happens to the link, the sender or the runtime.
/// * A lease is the engine's until then; giving up on a read never frees memory that is still being written.
/// * The sink is never called from within `post` or `close`, so a caller may hold its own lock there.
/// * Dropping a link closes it.
pub trait Link: Send + Sync {
    /// How good the transport is.
    fn level(&self) -> Level;

    /// Starts a read.
    ///
    /// # Errors
    /// The read again, untouched, while [`Link::in_flight_max`] are outstanding, or once the link is closed.
    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest>;

    /// How many reads may be outstanding.
    fn in_flight_max(&self) -> usize;

    /// Ends the link. Outstanding reads complete with [`ReadFault::LinkDown`] soon after.
    fn close(&self);

    /// Bytes of responses that have come over it so far: it grows while the oldest read gets on, however slowly.
    fn bytes_received(&self) -> u64;

    /// Whether the link has ended; `post` hands back every read from then on.
    fn is_closed(&self) -> bool;
}

/// A read that a link has taken. Dropped without an answer it completes with [`ReadFault::LinkDown`]: that is what
/// makes "exactly once" hold even when a runtime is torn down.
pub(crate) struct Outstanding {
    pub(crate) id: u64,
    pub(crate) window: u64,
    pub(crate) offset: u64,
    pub(crate) deadline: Instant,
    lease: Option<Lease>,
    sink: CompletionSink,
}

impl Outstanding {
    pub(crate) fn new(read: ReadRequest, sink: &CompletionSink) -> Self {
        let ReadRequest { id, window, offset, lease, deadline } = read;
        Self { id, window, offset, deadline, lease: Some(lease), sink: Arc::clone(sink) }
    }

    /// The memory to fill.
    pub(crate) fn target(&mut self) -> &mut [u8] {
        self.lease.as_mut().map(Lease::as_mut_slice).unwrap_or_default()
    }

    /// How many bytes are wanted.
    pub(crate) fn len(&self) -> usize {
        self.lease.as_ref().map_or(0, Lease::len)
    }

    /// Says that every byte of the target was written.
    pub(crate) fn succeed(mut self) {
        if let Some(lease) = self.lease.take() {
            (self.sink)(Completion { id: self.id, result: Ok(lease.filled()) });
        }
    }

    /// Gives the lease back, then says why.
    pub(crate) fn fail(mut self, fault: ReadFault) {
        self.fail_once(fault);
    }

    /// Ends the read because its link does: with its own deadline where that has passed.
    pub(crate) fn fail_with_link(self, reason: &Arc<io::Error>, now: Instant) {
        let is_late = reason.kind() == io::ErrorKind::TimedOut && self.deadline <= now;
        self.fail(if is_late { ReadFault::Deadline } else { ReadFault::LinkDown(Arc::clone(reason)) });
    }

    fn fail_once(&mut self, fault: ReadFault) {
        if let Some(lease) = self.lease.take() {
            drop(lease);
            (self.sink)(Completion { id: self.id, result: Err(fault) });
        }
    }
}

impl Drop for Outstanding {
    fn drop(&mut self) {
        let reason = io::Error::new(io::ErrorKind::ConnectionAborted, "the transport was shut down");
        self.fail_once(ReadFault::LinkDown(Arc::new(reason)));
    }
}
