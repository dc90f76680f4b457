//! Memory that transports write: leases on pooled buffers, and what they become once filled.
//!
//! Owns: the bounded pool and the rule that a buffer has one writer at a time. Does not own: files, hashing, or
//! what the bytes mean. This is the house's first unsafe wall; pooled (staged) landing needs none, so the crate
//! still forbids it.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
};

/// A bounded set of equal buffers. Its size bounds the bytes in flight: no free buffer, no further read.
pub struct Pool {
    slot_bytes: usize,
    slots: usize,
    state: Mutex<PoolState>,
}

struct PoolState {
    /// Buffers that were used before and are idle now.
    idle: Vec<Box<[u8]>>,
    leased: usize,
}

impl Pool {
    /// A pool of at most `slots` buffers of `slot_bytes` bytes each, allocated when first leased.
    pub fn new(slots: usize, slot_bytes: usize) -> Arc<Self> {
        assert!(slots > 0 && slot_bytes > 0, "a pool lends something");
        let state = Mutex::new(PoolState { idle: Vec::new(), leased: 0 });
        Arc::new(Self { slot_bytes, slots, state })
    }

    /// The exclusive right to write `len` bytes, or `None` while every buffer is out.
    ///
    /// # Panics
    /// If `len` is more than a slot holds.
    pub fn try_lease(self: &Arc<Self>, len: usize) -> Option<Lease> {
        assert!(len <= self.slot_bytes, "a lease of {len} bytes from slots of {}", self.slot_bytes);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.leased == self.slots {
            return None;
        }
        state.leased += 1;
        let buffer = state.idle.pop().unwrap_or_else(|| vec![0; self.slot_bytes].into_boxed_slice());
        Some(Lease { pool: Arc::clone(self), buffer, len })
    }

    /// How many buffers could be leased now.
    pub fn free(&self) -> usize {
        self.slots - self.state.lock().unwrap_or_else(PoisonError::into_inner).leased
    }

    fn give_back(&self, buffer: Box<[u8]>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(state.leased > 0, "more buffers came back than went out");
        state.leased -= 1;
        state.idle.push(buffer);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} of {} × {} bytes free)", self.free(), self.slots, self.slot_bytes)
    }
}

/// The exclusive right to write one range of local memory. Not `Clone`; dropping it frees the range.
///
/// A read takes it by value and the transport owns it until the read has ended, so a caller that gives up waiting
/// never frees memory that is still being written.
pub struct Lease {
    pool: Arc<Pool>,
    buffer: Box<[u8]>,
    len: usize,
}

impl Lease {
    /// How many bytes are to be written.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.buffer[..self.len]
    }

    /// Says that every byte was written. For transports, after the completion.
    pub fn filled(self) -> Filled {
        Filled(self)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.buffer));
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.len)
    }
}

/// A lease whose transfer has completed: readable, so that it can be hashed.
#[derive(Debug)]
pub struct Filled(Lease);

impl Filled {
    /// The lease again, to be written anew.
    pub fn into_lease(self) -> Lease {
        self.0
    }
}

impl Deref for Filled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0.buffer[..self.0.len]
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_lends_no_more_than_it_has_and_takes_buffers_back() {
        let pool = Pool::new(2, 16);
        let first = pool.try_lease(16).expect("two are free");
        let _second = pool.try_lease(1).expect("one is free");
        assert!(pool.try_lease(1).is_none());
        drop(first.filled());
        assert_eq!(pool.free(), 1);
        assert!(pool.try_lease(4).is_some());
    }

    #[test]
    fn a_filled_lease_shows_only_its_length() {
        let pool = Pool::new(1, 16);
        let mut lease = pool.try_lease(3).expect("free");
        lease.as_mut_slice().copy_from_slice(b"abc");
        assert_eq!(&*lease.filled(), b"abc");
        let again = pool.try_lease(2).expect("came back");
        assert_eq!(again.len(), 2);
    }
}
