//! The right to write a range, and what it becomes: `Lease → Filled`, and from there free again or sealed.

use std::{
    fmt,
    ops::{Deref, Range},
    slice,
    sync::Arc,
};

use crate::{Region, pool::Pool};

/// The exclusive right to write one range of local memory. Not `Clone`; dropping it frees the range.
///
/// A read takes it by value and the transport owns it until the read has ended, so a caller that gives up waiting
/// never frees memory that is still being written.
pub struct Lease {
    region: Arc<Region>,
    range: Range<usize>,
    /// Where the range goes when it is free, if it is one of a pool's.
    pool: Option<Arc<Pool>>,
}

impl Lease {
    /// For [`Region::lease`], which has entered the range as out.
    pub(crate) fn new(region: Arc<Region>, range: Range<usize>) -> Self {
        Self { region, range, pool: None }
    }

    /// For [`Pool::try_lease`]: the range goes back there, too.
    pub(crate) fn of_pool(mut self, pool: Arc<Pool>) -> Self {
        self.pool = Some(pool);
        self
    }

    /// How many bytes are to be written.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The region that it is a range of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Which range of [`Self::region`].
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The memory to write.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: mapped for writing and in bounds since `Region::lease`, and this lease is the only one of the range.
        unsafe { slice::from_raw_parts_mut(self.region.at(self.range.start), self.range.len()) }
    }

    /// Says that every byte was written. For transports, after the completion.
    pub fn filled(self) -> Filled {
        Filled(self)
    }

    /// The range is not leased again unless the whole region is unsealed ([`Region::unseal`]): its bytes were proved, and
    /// others may read them from now on.
    ///
    /// # Panics
    /// If it is a pool's, which lends it for ever.
    pub fn seal(mut self) {
        assert!(self.pool.is_none(), "a pool gets its buffers back");
        self.region.seal(&self.range);
        self.range = 0..0;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.region.give_back(&self.range);
        if let Some(pool) = self.pool.take() {
            pool.give_back(self.range.start);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({} bytes)", self.range.len())
    }
}

/// A lease whose transfer has completed: readable, so that it can be hashed.
#[derive(Debug)]
pub struct Filled(Lease);

impl Filled {
    /// The lease again, to be written anew or sealed.
    pub fn into_lease(self) -> Lease {
        self.0
    }

    /// The region that it is a range of.
    pub fn region(&self) -> &Arc<Region> {
        &self.0.region
    }

    /// Which range of [`Self::region`].
    pub fn range(&self) -> Range<usize> {
        self.0.range()
    }
}

impl Deref for Filled {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let Lease { region, range, .. } = &self.0;
        // SAFETY: mapped and in bounds since `Region::lease`; nobody writes while the lease, which is in here, is out.
        unsafe { slice::from_raw_parts(region.at(range.start), range.len()) }
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
