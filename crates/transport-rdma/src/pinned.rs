//! How much memory may be pinned, and which windows stay pinned for whoever asks next.
//!
//! Owns: the count of pinned bytes, and the windows of served files, least recently used first to go. Does not own: how
//! a window is made (`source`), nor who uses it (`serving`): it is in use while anybody holds its `Arc`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use memory::Region;

use crate::{RdmaError, rail::Memory};

/// A count of bytes with an upper bound.
pub(crate) struct Budget {
    max: u64,
    in_use: Mutex<u64>,
}

/// Bytes that count until it is dropped.
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: u64,
}

impl Budget {
    fn in_use(&self) -> MutexGuard<'_, u64> {
        self.in_use.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_charge(self: &Arc<Self>, bytes: u64) -> Option<Charge> {
        let mut in_use = self.in_use();
        let after = in_use.checked_add(bytes).filter(|after| *after <= self.max)?;
        *in_use = after;
        Some(Charge { budget: Arc::clone(self), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        *self.budget.in_use() -= self.bytes;
    }
}

/// A registered part of a served file. Its memory is unpinned when the last holder drops it.
pub(crate) struct Window {
    /// By rail of this process; none where the device is gone.
    memories: Vec<Option<Memory>>,
    address: u64,
    bytes: u64,
    /// After the registrations, which go first.
    _region: Arc<Region>,
    _charge: Charge,
}

impl Window {
    pub(crate) fn new(
        memories: Vec<Option<Memory>>,
        region: Arc<Region>,
        start: u64,
        bytes: u64,
        charge: Charge,
    ) -> Self {
        Self { memories, address: region.address() + start, bytes, _region: region, _charge: charge }
    }

    pub(crate) fn address(&self) -> u64 {
        self.address
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn rkey(&self, rail: usize) -> Option<u32> {
        self.memories.get(rail)?.as_ref().map(Memory::rkey)
    }
}

/// A window's name: its source's number, and its place in the file.
pub(crate) type WindowKey = (u64, u32);

/// The windows of this process, in use and kept for later.
pub(crate) struct Windows {
    budget: Arc<Budget>,
    cache: Mutex<Cache>,
    /// A window was made, or could not be.
    made: Condvar,
}

#[derive(Default)]
struct Cache {
    clock: u64,
    slots: BTreeMap<WindowKey, Slot>,
}

enum Slot {
    /// Somebody registers it now.
    Making,
    Ready {
        window: Arc<Window>,
        used_at: u64,
    },
}

impl Cache {
    /// Takes out the window that nobody has used for longest.
    fn evict(&mut self) -> Option<Arc<Window>> {
        let idle = self.slots.iter().filter_map(|(key, slot)| match slot {
            // Clones are made under the lock only, so that one holder means: nobody but the cache.
            Slot::Ready { window, used_at } if Arc::strong_count(window) == 1 => Some((*used_at, *key)),
            _ => None,
        });
        let (_, key) = idle.min()?;
        self.remove(key)
    }

    fn remove(&mut self, key: WindowKey) -> Option<Arc<Window>> {
        match self.slots.remove(&key)? {
            Slot::Ready { window, .. } => Some(window),
            Slot::Making => None,
        }
    }
}

impl Windows {
    pub(crate) fn new(max: u64) -> Self {
        let budget = Arc::new(Budget { max, in_use: Mutex::new(0) });
        Self { budget, cache: Mutex::default(), made: Condvar::new() }
    }

    /// Counts `bytes`, unpinning windows that nobody uses if that is what it takes.
    pub(crate) fn charge(&self, bytes: u64) -> Result<Charge, RdmaError> {
        loop {
            if let Some(charge) = self.budget.try_charge(bytes) {
                return Ok(charge);
            }
            // Outside the lock: unpinning takes its time.
            let evicted = if bytes <= self.budget.max { self.lock().evict() } else { None };
            if evicted.is_none() {
                let (in_use, max) = (*self.budget.in_use(), self.budget.max);
                return Err(RdmaError::PinnedMax { wanted: bytes, in_use, max });
            }
        }
    }

    /// How many bytes count now.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        *self.budget.in_use()
    }

    /// A window, made by `make` unless it is there. `cost` is what it counts for.
    pub(crate) fn obtain(
        &self,
        key: WindowKey,
        cost: u64,
        make: impl FnOnce(Charge) -> Result<Window, RdmaError>,
    ) -> Result<Arc<Window>, RdmaError> {
        if let Some(window) = self.find_or_begin(key) {
            return Ok(window);
        }
        // However this ends, those who wait for the window go on.
        let making = Making { windows: self, key, window: None };
        let window = Arc::new(make(self.charge(cost)?)?);
        making.finish(&window);
        Ok(window)
    }

    /// Nobody will ask for these any more: what is not in use is unpinned.
    pub(crate) fn forget_source(&self, source: u64) {
        let mut cache = self.lock();
        let keys: Vec<WindowKey> =
            cache.slots.range((source, 0)..=(source, u32::MAX)).map(|(key, _)| *key).collect();
        let forgotten: Vec<_> = keys.into_iter().filter_map(|key| cache.remove(key)).collect();
        drop(cache);
        drop(forgotten);
    }

    fn find_or_begin(&self, key: WindowKey) -> Option<Arc<Window>> {
        let mut cache = self.lock();
        loop {
            cache.clock += 1;
            let now = cache.clock;
            match cache.slots.get_mut(&key) {
                Some(Slot::Ready { window, used_at }) => {
                    *used_at = now;
                    return Some(Arc::clone(window));
                }
                Some(Slot::Making) => cache = self.made.wait(cache).unwrap_or_else(PoisonError::into_inner),
                None => {
                    cache.slots.insert(key, Slot::Making);
                    return None;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to make one window; dropped without one, the next may try.
struct Making<'a> {
    windows: &'a Windows,
    key: WindowKey,
    window: Option<Arc<Window>>,
}

impl Making<'_> {
    fn finish(mut self, window: &Arc<Window>) {
        self.window = Some(Arc::clone(window));
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        let mut cache = self.windows.lock();
        cache.slots.remove(&self.key);
        if let Some(window) = self.window.take() {
            cache.clock += 1;
            let used_at = cache.clock;
            cache.slots.insert(self.key, Slot::Ready { window, used_at });
        }
        self.windows.made.notify_all();
    }
}
