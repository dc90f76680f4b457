//! Protection domains: only queue pairs and registrations of one go together. Does not own: who is trusted with one.

use std::{fmt, io, sync::Arc};

use rdma_sys::ibv_pd;
use sideway::ibverbs::{device_context::AllocateProtectionDomainErrorKind, protection_domain};

use crate::{Context, VerbsError};

/// A wall between registrations: a peer reaches those of its queue pair's domain, and no others.
pub struct ProtectionDomain {
    inner: Arc<protection_domain::ProtectionDomain>,
    context: Arc<Context>,
}

impl ProtectionDomain {
    /// Allocates one.
    ///
    /// # Errors
    /// ENOMEM if the device has no more, EIO or ENODEV if it has gone.
    pub fn new(context: &Arc<Context>) -> Result<Arc<Self>, VerbsError> {
        let inner = context.inner().alloc_pd().map_err(|error| {
            let source = match error.0 {
                AllocateProtectionDomainErrorKind::Ibverbs(source) => source,
                other => io::Error::other(other),
            };
            VerbsError::verb("ibv_alloc_pd", context.name(), source)
        })?;
        Ok(Arc::new(Self { inner, context: Arc::clone(context) }))
    }

    /// The device that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// What sideway knows it as.
    pub(crate) fn inner(&self) -> &Arc<protection_domain::ProtectionDomain> {
        &self.inner
    }

    /// What libibverbs knows it as: allocated for as long as `self` is.
    pub(crate) fn raw(&self) -> *mut ibv_pd {
        // SAFETY: those who use the pointer see to it that the domain outlives that, by the `Arc` they hold.
        unsafe { self.inner.pd() }.as_ptr()
    }
}

impl fmt::Debug for ProtectionDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProtectionDomain({})", self.context.name())
    }
}
