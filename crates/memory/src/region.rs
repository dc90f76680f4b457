//! A span of mapped memory, and which ranges of it somebody may write.
//!
//! Owns: the mapping, and the table of ranges that are out or sealed. Does not own: what is written.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io,
    ops::Range,
    ptr::{self, NonNull},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::Lease;

/// What a mapping of a file lets be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may be read. The file may be open read-only, on any file system.
    Read,
    /// It may be leased and written, too.
    ReadWrite,
}

/// A mapping that lives for as long as anybody holds it: leases, and registrations with a network card.
pub struct Region {
    base: NonNull<u8>,
    len: usize,
    access: Access,
    taken: Mutex<Taken>,
    /// A range is no longer out.
    freed: Condvar,
}

/// Why a range is not leased.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLeased {
    /// It is not to be written: some of it is sealed, out of bounds or read-only.
    Never,
    /// Some of it is out.
    Out,
}

// SAFETY: `base` is read and written only through leases, whose ranges are disjoint by `taken`, and `read_at`, which
// copies out; neither cares which thread it is on.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Ranges that cannot be leased: each from its start to its end, no two overlapping.
#[derive(Default)]
struct Taken {
    out: BTreeMap<usize, usize>,
    sealed: BTreeMap<usize, usize>,
    /// Threads in [`Region::lease_by`]: without any, nobody has to be woken.
    waiting: usize,
}

impl Taken {
    fn take(&mut self, range: &Range<usize>) -> Result<(), NotLeased> {
        let reaches_in = |ranges: &BTreeMap<usize, usize>| {
            ranges.range(..range.end).next_back().is_some_and(|(_, end)| *end > range.start)
        };
        if reaches_in(&self.sealed) {
            return Err(NotLeased::Never);
        }
        if reaches_in(&self.out) {
            return Err(NotLeased::Out);
        }
        self.out.insert(range.start, range.end);
        Ok(())
    }
}

impl Region {
    /// `bytes` of zeroed memory of this process, rounded up to pages, in huge pages where the system has them.
    ///
    /// # Errors
    /// ENOMEM, or EINVAL for nothing.
    pub fn anonymous(bytes: usize) -> io::Result<Arc<Self>> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nothing that exists.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE) }?;
        // What a network card writes must stay these very pages: a child that shared them would make this process's
        // next write move it to copies. And fewer, larger pages spare the card translations. Both are wishes: a kernel
        // without them serves as well.
        for advice in [Advice::LinuxDontFork, Advice::LinuxHugepage] {
            // SAFETY: the mapping is new, and neither advice changes what it holds.
            let _ = unsafe { madvise(base, bytes, advice) };
        }
        Ok(Self::new(base.cast(), bytes, Access::ReadWrite))
    }

    /// The first `bytes` of a file, shared with every other mapping and descriptor of it.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file is shorter, since the pages beyond its end cannot be touched; EACCES if it is not
    /// open for that; EINVAL for nothing; ENODEV where the file system cannot be mapped.
    pub fn map(file: &File, bytes: usize, access: Access) -> io::Result<Arc<Self>> {
        if file.metadata()?.len() < bytes as u64 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let protection = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        // SAFETY: as in `anonymous`.
        let base = unsafe { mmap(ptr::null_mut(), bytes, protection, MapFlags::SHARED, file, 0) }?;
        Ok(Self::new(base.cast(), bytes, access))
    }

    fn new(base: *mut u8, len: usize, access: Access) -> Arc<Self> {
        let base = NonNull::new(base).expect("the kernel maps nothing at address zero");
        Arc::new(Self { base, len, access, taken: Mutex::default(), freed: Condvar::new() })
    }

    /// Where it is in this process, for a network card. Aligned to pages.
    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is no empty mapping.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What it lets be done.
    pub fn access(&self) -> Access {
        self.access
    }

    /// The exclusive right to write a range, or `None` if any of it is out, sealed, out of bounds or read-only.
    pub fn lease(self: &Arc<Self>, range: Range<usize>) -> Option<Lease> {
        if !self.may_lend(&range) {
            return None;
        }
        // An empty range writes nothing, so that nobody is in its way.
        if !range.is_empty() {
            self.taken().take(&range).ok()?;
        }
        Some(Lease::new(Arc::clone(self), range))
    }

    /// The same, as soon as nothing of the range is out, but not after `deadline`. Blocks.
    ///
    /// # Errors
    /// [`NotLeased::Never`] at once, or as soon as some of it is sealed; [`NotLeased::Out`] at the deadline.
    pub fn lease_by(self: &Arc<Self>, range: Range<usize>, deadline: Instant) -> Result<Lease, NotLeased> {
        if !self.may_lend(&range) {
            return Err(NotLeased::Never);
        }
        if range.is_empty() {
            return Ok(Lease::new(Arc::clone(self), range));
        }
        let mut taken = self.taken();
        loop {
            let left = match taken.take(&range) {
                Ok(()) => return Ok(Lease::new(Arc::clone(self), range)),
                Err(NotLeased::Out) => deadline.saturating_duration_since(Instant::now()),
                Err(NotLeased::Never) => return Err(NotLeased::Never),
            };
            if left.is_zero() {
                return Err(NotLeased::Out);
            }
            taken.waiting += 1;
            taken = self.freed.wait_timeout(taken, left).unwrap_or_else(PoisonError::into_inner).0;
            taken.waiting -= 1;
        }
    }

    fn may_lend(&self, range: &Range<usize>) -> bool {
        self.access == Access::ReadWrite && range.start <= range.end && range.end <= self.len
    }

    /// Whether every byte is sealed: nobody writes, and nobody can begin to.
    pub fn is_sealed(&self) -> bool {
        // Sealed neighbours are one, so that a whole region is a single one.
        self.taken().sealed.get(&0) == Some(&self.len)
    }

    /// Whatever is sealed may be leased again, for whoever finds that it is not what it should be. What is out stays
    /// out.
    ///
    /// This endangers no memory: sealing gives nobody a reference ([`Self::read_at`] copies), and every lease of this
    /// mapping, from before or after, is in the one table. A second `Region` of the same file would have a table of its
    /// own, and a range that is still out here would be free there.
    pub fn unseal(&self) {
        self.taken().sealed.clear();
    }

    /// Copies bytes out. What somebody writes meanwhile may be half there; it is for whoever checks the copy.
    ///
    /// # Panics
    /// If the range is not within the region.
    pub fn read_at(&self, offset: usize, buffer: &mut [u8]) {
        let end = offset.checked_add(buffer.len());
        assert!(end.is_some_and(|end| end <= self.len), "{} bytes at {offset} of {}", buffer.len(), self.len);
        // SAFETY: the source is mapped and in bounds as asserted, and the target is another's memory by `&mut`.
        unsafe { ptr::copy_nonoverlapping(self.at(offset), buffer.as_mut_ptr(), buffer.len()) }
    }

    /// A pointer to a byte within, or to the end.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.len, "{offset} is beyond {}", self.len);
        // SAFETY: in bounds of one mapping as asserted.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The range may be leased again.
    pub(crate) fn give_back(&self, range: &Range<usize>) {
        if !range.is_empty() {
            let mut taken = self.taken();
            let end = taken.out.remove(&range.start);
            assert!(end == Some(range.end), "a range came back that was not out");
            self.wake(&taken);
        }
    }

    fn wake(&self, taken: &Taken) {
        if taken.waiting > 0 {
            self.freed.notify_all();
        }
    }

    /// The range, which is out, never comes back. It becomes one with its sealed neighbours, so that the table of a file
    /// that is written once stays as small as its gaps are few.
    pub(crate) fn seal(&self, range: &Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut held = self.taken();
        let taken = &mut *held;
        let removed = taken.out.remove(&range.start);
        assert!(removed == Some(range.end), "a range was sealed that was not out");
        let before = taken.sealed.range(..range.start).next_back().filter(|(_, end)| **end == range.start);
        let start = before.map_or(range.start, |(start, _)| *start);
        let end = taken.sealed.remove(&range.end).unwrap_or(range.end);
        taken.sealed.insert(start, end);
        self.wake(taken);
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Each change is one step, so that a panic elsewhere leaves it whole.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: nobody holds it any more: every lease and registration has an `Arc` of it.
        if let Err(errno) = unsafe { munmap(self.base.as_ptr().cast(), self.len) } {
            // The address space stays used, which harms nobody.
            debug_assert!(false, "munmap: {errno}");
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes, {:?})", self.len, self.access)
    }
}
