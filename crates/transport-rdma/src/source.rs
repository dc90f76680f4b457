//! A file that others read from memory, window by window.
//!
//! Owns: how the file gets into memory that the system pins, and which of its bytes are whole. Does not own: how many
//! windows stay (`pinned`), or who may read them.
//!
//! From Linux 6.2 on every file is served from its own pages, mapped read-only. Before, a pin is always one for writing,
//! which no file of somebody else's may get: it counts as changed then, even on a tmpfs, and one on a disk would be
//! written there again. It is copied instead, piece by piece as its bytes are checked, into a mirror in memory.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use memory::{Access, Region};
use rustix::{
    fs::{MemfdFlags, memfd_create},
    io::Errno,
};

use crate::{
    Rdma, RdmaError, WINDOW_BYTES,
    pinned::{Charge, Window, WindowKey},
    rail::{Memory, Purpose},
    rdma::Inner,
    spans::Spans,
};

/// How much is copied into a mirror at once.
const COPY_BYTES: u64 = 1 << 20;

/// A file that is served from memory. Dropping it unpins what nobody is reading.
pub struct Source {
    number: u64,
    handle: u64,
    bytes: u64,
    file: Arc<File>,
    rdma: Weak<Inner>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    mapping: Mapping,
    readable: Spans,
    mirrors: BTreeMap<u32, Weak<Region>>,
}

/// How windows of the file are in memory; the first that the system pins.
#[derive(Clone, Default)]
enum Mapping {
    #[default]
    Untried,
    Whole(Arc<Region>),
    Mirrored,
}

impl Source {
    /// The first `bytes` of a file, which `handle` names ([`transport::Window::handle`]). The file must not be cut short
    /// or written in place while this lives, but where it is not readable yet.
    pub fn new(rdma: &Rdma, file: Arc<File>, bytes: u64, handle: u64) -> Arc<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let rdma = Arc::downgrade(rdma.inner());
        Arc::new(Self { number, handle, bytes, file, rdma, state: Mutex::default() })
    }

    /// The name of the file in reads.
    pub fn handle(&self) -> u64 {
        self.handle
    }

    /// How many windows it has.
    pub fn windows(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(WINDOW_BYTES)).unwrap_or(u32::MAX)
    }

    /// Says that these bytes are checked and will not change: before anybody is told of them, since windows that are
    /// mirrored hold only such bytes. May copy them, so that it belongs where blocking is allowed.
    ///
    /// # Errors
    /// If a mirror could not be filled; nobody must be told of the bytes then.
    pub fn readable(&self, range: Range<u64>) -> io::Result<()> {
        let range = range.start.min(self.bytes)..range.end.min(self.bytes);
        let mut state = self.lock();
        let fresh = state.readable.insert(range);
        let mirrors: Vec<(u32, Arc<Region>)> =
            state.mirrors.iter().filter_map(|(index, mirror)| Some((*index, mirror.upgrade()?))).collect();
        drop(state);
        let copied = mirrors
            .iter()
            .flat_map(|mirror| fresh.iter().map(move |range| (mirror, range)))
            .try_for_each(|((index, mirror), range)| self.copy(*index, mirror, range));
        if copied.is_err() {
            let mut state = self.lock();
            for range in &fresh {
                state.readable.remove(range);
            }
        }
        copied
    }

    pub(crate) fn key(&self, index: u32) -> WindowKey {
        (self.number, index)
    }

    /// Which bytes of the file a window holds.
    pub(crate) fn window_range(&self, index: u32) -> Result<Range<u64>, RdmaError> {
        let start = u64::from(index) * WINDOW_BYTES;
        if start >= self.bytes {
            return Err(RdmaError::NoSuchWindow { index });
        }
        Ok(start..self.bytes.min(start + WINDOW_BYTES))
    }

    /// Pins a window with every rail.
    pub(crate) fn make_window(&self, inner: &Inner, index: u32, charge: Charge) -> Result<Window, RdmaError> {
        let range = self.window_range(index)?;
        let mapping = self.lock().mapping.clone();
        let mapped = match mapping {
            Mapping::Untried => self.try_mapping(inner, index, &range)?,
            Mapping::Whole(region) => {
                let memories = register(inner, &region, &range)?;
                Some((region, memories))
            }
            Mapping::Mirrored => None,
        };
        let (region, memories, start) = if let Some((region, memories)) = mapped {
            (region, memories, range.start)
        } else {
            let (region, memories) = self.make_mirror(inner, index, &range)?;
            (region, memories, 0)
        };
        Ok(Window::new(memories, region, start, range.end - range.start, charge))
    }

    /// Finds out how the system pins the file, by pinning this window; `None` if it does not.
    fn try_mapping(
        &self,
        inner: &Inner,
        index: u32,
        range: &Range<u64>,
    ) -> Result<Option<Pinned>, RdmaError> {
        let bytes = usize::try_from(self.bytes).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory));
        let region = bytes
            .and_then(|bytes| Region::map(&self.file, bytes, Access::Read))
            .map_err(|source| RdmaError::Map { index, source })?;
        match register(inner, &region, range) {
            Ok(memories) => {
                self.lock().mapping = Mapping::Whole(Arc::clone(&region));
                Ok(Some((region, memories)))
            }
            Err(RdmaError::Register { source, .. })
                if source.errno() == Some(Errno::FAULT.raw_os_error()) =>
            {
                tracing::info!(handle = self.handle, "this kernel pins no files: a copy in memory is served");
                self.lock().mapping = Mapping::Mirrored;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn make_mirror(&self, inner: &Inner, index: u32, range: &Range<u64>) -> Result<Pinned, RdmaError> {
        let failed = |source| RdmaError::Map { index, source };
        let bytes = range.end - range.start;
        // In a file of its own: it counts as shared memory, which it is, and not as this process's heap.
        let mirror =
            memfd_create("modelcast mirror", MemfdFlags::CLOEXEC).map_err(|errno| failed(errno.into()))?;
        let mirror = File::from(mirror);
        mirror.set_len(bytes).map_err(failed)?;
        let bytes = usize::try_from(bytes).map_err(|_| failed(io::ErrorKind::OutOfMemory.into()))?;
        let region = Region::map(&mirror, bytes, Access::ReadWrite).map_err(failed)?;
        let memories = register(inner, &region, &(0..range.end - range.start))?;
        // From here on `readable` copies what is new; what is old is copied below.
        let old = {
            let mut state = self.lock();
            state.mirrors.insert(index, Arc::downgrade(&region));
            state.readable.within(range.clone())
        };
        for old in old {
            self.copy(index, &region, &old).map_err(failed)?;
        }
        Ok((region, memories))
    }

    /// Copies what of `range` is in the window to its mirror.
    fn copy(&self, index: u32, mirror: &Arc<Region>, range: &Range<u64>) -> io::Result<()> {
        let window = u64::from(index) * WINDOW_BYTES;
        let mut at = range.start.max(window);
        let end = range.end.min(window + mirror.len() as u64);
        while at < end {
            let bytes = (end - at).min(COPY_BYTES);
            let within = |at: u64| {
                usize::try_from(at - window).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))
            };
            let place = within(at)?..within(at + bytes)?;
            let mut lease = mirror.lease(place).ok_or(io::ErrorKind::ResourceBusy)?;
            self.file.read_exact_at(lease.as_mut_slice(), at)?;
            at += bytes;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Pinned = (Arc<Region>, Vec<Option<Memory>>);

fn register(
    inner: &Inner,
    region: &Arc<Region>,
    range: &Range<u64>,
) -> Result<Vec<Option<Memory>>, RdmaError> {
    // Within a region, whose length is a usize.
    let range =
        usize::try_from(range.start).unwrap_or(usize::MAX)..usize::try_from(range.end).unwrap_or(usize::MAX);
    inner.register_with_rails(region, &range, Purpose::Serve)
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some(inner) = self.rdma.upgrade() {
            inner.windows().forget_source(self.number);
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({}, {} bytes)", self.handle, self.bytes)
    }
}
