//! Memory for pieces on their way: what bounds the bytes in flight of the whole process.
//!
//! Owns: waiting for a buffer, and what a piece holds until it has landed. Does not own: the pool itself (crate
//! `memory`), or which pieces need no buffer (`sinks`).

use std::sync::Arc;

use memory::{Filled, Lease, Pool, Region};
use modelpack::layout::PIECE_BYTES;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{artifact::Place, sinks::Hold};

/// Pieces in flight at once. 64 MiB carry 100 Gbit/s over 5 ms of round trip, hashing and writing included.
const BUFFERS: usize = 64;

/// The process's piece buffers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    pool: Arc<Pool>,
    permits: Arc<Semaphore>,
}

/// The right to have one piece on its way.
#[derive(Debug)]
pub(crate) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// Memory for a piece: a buffer, or its place in the file. Fields drop in order: the memory is free before the right
/// to it is.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) lease: Lease,
    pub(crate) right: Right,
}

/// What is kept while the lease is somewhere else, and dropped after it.
#[derive(Debug)]
pub(crate) struct Right {
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) permit: Permit,
    /// Of a piece that goes straight to its place in the file.
    pub(crate) hold: Option<Hold>,
}

/// A piece that arrived. Fields drop in order.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Filled,
    pub(crate) right: Right,
}

impl Right {
    /// Where its bytes go.
    pub(crate) fn place(&self) -> Place {
        if self.hold.is_some() { Place::File } else { Place::Buffer }
    }
}

impl Buffers {
    pub(crate) fn new() -> Self {
        let slot = usize::try_from(PIECE_BYTES).expect("a piece fits the address space");
        let pool = Pool::new(BUFFERS, slot).expect("a process has address space for 64 MiB");
        Self { pool, permits: Arc::new(Semaphore::new(BUFFERS)) }
    }

    /// The memory of all of them.
    pub(crate) fn region(&self) -> &Arc<Region> {
        self.pool.region()
    }

    /// The right to have one more piece on its way, as soon as one of those ends.
    pub(crate) async fn permit(&self) -> Permit {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        Permit(permit.expect("nobody closes the semaphore"))
    }

    /// The same, if it is to be had now.
    pub(crate) fn try_permit(&self) -> Option<Permit> {
        Arc::clone(&self.permits).try_acquire_owned().ok().map(Permit)
    }

    /// A buffer for `len` bytes.
    pub(crate) fn buffer(&self, len: u32, permit: Permit) -> Space {
        let lease = self.pool.try_lease(len as usize).expect("there is a buffer for each permit");
        Space { lease, right: Right { permit, hold: None } }
    }
}
