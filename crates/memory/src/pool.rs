//! A bounded set of equal buffers: what is landed by copying goes through one.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{Lease, Region};

/// A bounded set of equal buffers in one region. Its size bounds the bytes in flight: no free buffer, no further read.
///
/// The system gives it memory as buffers are used for the first time, unless the region is registered with a network
/// card, which pins all of it.
pub struct Pool {
    region: Arc<Region>,
    slot_bytes: usize,
    slots: usize,
    /// Where free buffers begin; the last used is the first to go out again, while the caches still know it.
    free: Mutex<Vec<usize>>,
}

/// Buffers begin at multiples of this, so that each has its own pages.
const PAGE_BYTES: usize = 4096;

impl Pool {
    /// A pool of `slots` buffers of `slot_bytes` bytes each.
    ///
    /// # Errors
    /// Without address space for it.
    ///
    /// # Panics
    /// If it would lend nothing.
    pub fn new(slots: usize, slot_bytes: usize) -> io::Result<Arc<Self>> {
        assert!(slots > 0 && slot_bytes > 0, "a pool lends something");
        let stride = slot_bytes.next_multiple_of(PAGE_BYTES);
        let bytes = stride.checked_mul(slots).ok_or(io::ErrorKind::OutOfMemory)?;
        let region = Region::anonymous(bytes)?;
        let free = Mutex::new((0..slots).rev().map(|slot| slot * stride).collect());
        Ok(Arc::new(Self { region, slot_bytes, slots, free }))
    }

    /// The memory of all buffers.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The exclusive right to write `len` bytes, or `None` while every buffer is out.
    ///
    /// # Panics
    /// If `len` is more than a slot holds.
    pub fn try_lease(self: &Arc<Self>, len: usize) -> Option<Lease> {
        assert!(len <= self.slot_bytes, "a lease of {len} bytes from slots of {}", self.slot_bytes);
        let start = self.free_slots().pop()?;
        let lease = self.region.lease(start..start + len).expect("a free slot is not out");
        Some(lease.of_pool(Arc::clone(self)))
    }

    /// How many buffers could be leased now.
    pub fn free(&self) -> usize {
        self.free_slots().len()
    }

    /// The buffer that begins there may be leased again.
    pub(crate) fn give_back(&self, start: usize) {
        let mut free = self.free_slots();
        assert!(free.len() < self.slots, "more buffers came back than went out");
        free.push(start);
    }

    fn free_slots(&self) -> MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} × {} bytes free)", self.free(), self.slots, self.slot_bytes)
    }
}
