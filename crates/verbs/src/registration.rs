//! Memory that a device knows: pinned for as long as it is registered. Does not own: the mapping, nor who writes it when.

use std::{fmt, io, ops::Range, sync::Arc};

use memory::{Access, Lease, Region};
use sideway::ibverbs::{
    AccessFlags,
    memory_region::{self, RegisterMemoryRegionErrorKind},
};

use crate::{ProtectionDomain, VerbsError};

/// What a registration lets be done. No peer can ever write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rights {
    /// Our own reads may land in it.
    LocalWrite,
    /// The same without pinning it (ODP), where [`crate::Limits::has_odp_read`].
    LocalWriteOnDemand,
    /// Peers may read it. Needs no more than a read-only mapping since Linux 6.2.
    RemoteRead,
}

impl Rights {
    fn flags(self) -> AccessFlags {
        match self {
            // Writes of one read may arrive in any order, which large cards need to be fast; its completion still comes
            // after all of them. Kernels that do not know the flag never see it.
            Self::LocalWrite => AccessFlags::LocalWrite | AccessFlags::RelaxedOrdering,
            Self::LocalWriteOnDemand => AccessFlags::LocalWrite | AccessFlags::OnDemand,
            Self::RemoteRead => AccessFlags::RemoteRead,
        }
    }

    fn lets_land(self) -> bool {
        self != Self::RemoteRead
    }
}

impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LocalWrite => "reads to land in",
            Self::LocalWriteOnDemand => "reads to land in on demand",
            Self::RemoteRead => "peers to read",
        })
    }
}

/// A registered range of a region. Dropping the last holder deregisters it, before the mapping can go.
pub struct MemoryRegion {
    // First, since fields are dropped in order: deregistered before the mapping may go.
    inner: Arc<memory_region::MemoryRegion>,
    region: Arc<Region>,
    range: Range<usize>,
    rights: Rights,
    domain: Arc<ProtectionDomain>,
}

impl MemoryRegion {
    /// Registers a range of a region, which pins its pages but for [`Rights::LocalWriteOnDemand`].
    ///
    /// # Errors
    /// ENOMEM beyond the limit of locked memory; EFAULT where the pages cannot be pinned for that, by file system and
    /// kernel; EOPNOTSUPP of DAX memory, or on demand where the device cannot. [`VerbsError::hint`] says more.
    /// [`VerbsError::Refused`] of an empty range, one beyond the region, and landing in a read-only mapping.
    pub fn register(
        domain: &Arc<ProtectionDomain>,
        region: &Arc<Region>,
        range: Range<usize>,
        rights: Rights,
    ) -> Result<Arc<Self>, VerbsError> {
        if range.is_empty() || range.end > region.len() {
            return Err(VerbsError::Refused("a registration is a range of its region"));
        }
        if rights.lets_land() && region.access() == Access::Read {
            return Err(VerbsError::Refused("reads cannot land in a read-only mapping"));
        }
        let base = usize::try_from(region.address()).expect("an address of this process");
        // SAFETY: mapped for as long as the region, which is held here and dropped after it; the device writes only by
        // reads that were posted with the lease of where they land, since no peer is ever given the right to.
        let registered = unsafe { domain.inner().reg_mr(base + range.start, range.len(), rights.flags()) };
        let inner = registered.map_err(|error| {
            let source = match error.0 {
                RegisterMemoryRegionErrorKind::Ibverbs(source) => source,
                other => io::Error::other(other),
            };
            let device = domain.context().name().to_owned();
            VerbsError::Register { device, bytes: range.len(), rights, source }
        })?;
        Ok(Arc::new(Self { inner, region: Arc::clone(region), range, rights, domain: Arc::clone(domain) }))
    }

    /// What a peer names it by, if it may read it.
    pub fn rkey(&self) -> u32 {
        self.inner.rkey()
    }

    /// Where it begins, for a peer that may read it.
    pub fn address(&self) -> u64 {
        self.region.address() + self.range.start as u64
    }

    /// Which range of its region.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The region that it is a range of.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// Whether reads may land all over a lease's range.
    pub fn covers(&self, lease: &Lease) -> bool {
        let range = lease.range();
        self.rights.lets_land()
            && Arc::ptr_eq(&self.region, lease.region())
            && self.range.start <= range.start
            && range.end <= self.range.end
    }

    /// The domain that it is of.
    pub(crate) fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// What our own work requests name it by.
    pub(crate) fn lkey(&self) -> u32 {
        self.inner.lkey()
    }
}

impl fmt::Debug for MemoryRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryRegion({:?} of {:?} for {})", self.range, self.region, self.rights)
    }
}
