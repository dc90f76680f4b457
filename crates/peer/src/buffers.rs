//! Buffers for pieces on their way: what bounds the bytes in flight of the whole process.
//!
//! Owns: waiting for a buffer. Does not own: the pool itself (crate `memory`).

use std::sync::Arc;

use memory::{Filled, Lease, Pool, Region};
use modelpack::layout::PIECE_BYTES;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Pieces in flight at once. 64 MiB carry 100 Gbit/s over 5 ms of round trip, hashing and writing included.
const BUFFERS: usize = 64;

/// The process's piece buffers. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    pool: Arc<Pool>,
    permits: Arc<Semaphore>,
}

/// The right to one buffer, kept while its lease is somewhere else.
#[derive(Debug)]
pub(crate) struct Permit(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

/// A filled buffer. Fields drop in order: the buffer is back in its pool before the right to it is.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Filled,
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) permit: Permit,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
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

    /// A buffer for `len` bytes, as soon as one is free.
    pub(crate) async fn lease(&self, len: u32) -> (Lease, Permit) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        self.lease_with(len, permit.expect("nobody closes the semaphore"))
    }

    /// A buffer for `len` bytes, if one is free now.
    pub(crate) fn try_lease(&self, len: u32) -> Option<(Lease, Permit)> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.lease_with(len, permit))
    }

    fn lease_with(&self, len: u32, permit: OwnedSemaphorePermit) -> (Lease, Permit) {
        let lease = self.pool.try_lease(len as usize).expect("there is a permit for each buffer");
        (lease, Permit(permit))
    }
}
