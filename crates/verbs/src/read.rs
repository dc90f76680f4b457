//! One-sided reads: what is posted, and how it ended. Does not own: the queue that it is posted to.

use std::{fmt, ops::Range, sync::Arc};

use memory::Lease;
use rdma_sys::ibv_wc_status as raw;

use crate::MemoryRegion;

/// A lease that several reads may land in. Whoever is the last to hold it gets the lease back.
#[derive(Clone, Debug)]
pub struct Sink(Arc<Lease>);

impl Sink {
    /// The lease's range is where reads may land until [`Self::into_lease`].
    pub fn new(lease: Lease) -> Self {
        Self(Arc::new(lease))
    }

    /// The lease, if nobody else holds the sink any more: in particular no read that may still be written.
    pub fn into_lease(self) -> Option<Lease> {
        Arc::into_inner(self.0)
    }

    /// How many bytes may land.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing may.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn lease(&self) -> &Lease {
        &self.0
    }
}

/// One read to post: bytes of a peer's memory into a lease.
#[derive(Debug)]
pub struct Read {
    /// What the caller knows it by; comes back in [`ReadDone`].
    pub id: u64,
    /// Where it lands.
    pub sink: Sink,
    /// Where within the lease.
    pub range: Range<usize>,
    /// A registration that [covers](MemoryRegion::covers) the lease.
    pub local: Arc<MemoryRegion>,
    /// The peer's address of the first byte.
    pub address: u64,
    /// What the peer's registration is named by.
    pub rkey: u32,
}

impl Read {
    /// Why it cannot be posted, if it cannot.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        if self.range.is_empty() || self.range.end > self.sink.len() {
            return Some("a read lands within its lease");
        }
        if u32::try_from(self.range.len()).is_err() {
            return Some("a read is less than 4 GiB");
        }
        (!self.local.covers(self.sink.lease())).then_some("a read lands in memory that is registered for it")
    }

    /// Where it lands, as the device knows it.
    pub(crate) fn target(&self) -> u64 {
        let lease = self.sink.lease();
        lease.region().address() + (lease.range().start + self.range.start) as u64
    }
}

/// A read that has ended: the device writes no more for it.
#[derive(Debug)]
pub struct ReadDone {
    /// [`Read::id`].
    pub id: u64,
    /// The number of the queue pair that it was posted to.
    pub qp: u32,
    /// Where it landed.
    pub sink: Sink,
    /// How it ended. After an error the bytes are anything.
    pub status: Result<(), ReadError>,
}

/// Why a read failed. The queue pair has failed with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status} (vendor error {vendor_err:#x})")]
pub struct ReadError {
    /// How it completed.
    pub status: Status,
    /// What the maker of the card says to it.
    pub vendor_err: u32,
}

/// How a read that failed completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Status {
    /// Its queue pair was destroyed before it completed. Not a status of the device.
    Destroyed,
    /// A length that the local side cannot do.
    LocalLength,
    /// The local queue pair cannot do that.
    LocalOperation,
    /// The local registration does not let it.
    LocalProtection,
    /// Not begun, or given up, because the queue pair failed before: an earlier completion says why.
    Flushed,
    /// The peer answered what it must not.
    BadResponse,
    /// The peer cannot do that.
    RemoteInvalid,
    /// The peer does not let it: wrong key, beyond the registration, or deregistered.
    RemoteAccess,
    /// The peer failed.
    RemoteOperation,
    /// The peer did not answer.
    RetryExceeded,
    /// The peer was not ready for too long.
    ReceiverNotReady,
    /// The device failed.
    Fatal,
    /// Any other, as the device says it.
    Other(u32),
}

/// Statuses and what the device calls them, once each.
const NAMED: [(Status, u32, &str); 11] = [
    (Status::LocalLength, raw::IBV_WC_LOC_LEN_ERR, "local length error"),
    (Status::LocalOperation, raw::IBV_WC_LOC_QP_OP_ERR, "local operation error"),
    (Status::LocalProtection, raw::IBV_WC_LOC_PROT_ERR, "local protection error"),
    (Status::Flushed, raw::IBV_WC_WR_FLUSH_ERR, "flushed after an earlier error"),
    (Status::BadResponse, raw::IBV_WC_BAD_RESP_ERR, "bad response of the peer"),
    (Status::RemoteInvalid, raw::IBV_WC_REM_INV_REQ_ERR, "the peer calls the request invalid"),
    (Status::RemoteAccess, raw::IBV_WC_REM_ACCESS_ERR, "the peer does not let it be read"),
    (Status::RemoteOperation, raw::IBV_WC_REM_OP_ERR, "the peer failed"),
    (Status::RetryExceeded, raw::IBV_WC_RETRY_EXC_ERR, "the peer does not answer"),
    (Status::ReceiverNotReady, raw::IBV_WC_RNR_RETRY_EXC_ERR, "the peer was not ready for too long"),
    (Status::Fatal, raw::IBV_WC_FATAL_ERR, "the device failed"),
];

impl Status {
    /// From what the device says, which is not success.
    pub(crate) fn from_raw(status: u32) -> Self {
        NAMED.iter().find(|(_, raw, _)| *raw == status).map_or(Self::Other(status), |(named, ..)| *named)
    }

    /// As the device says it (`ibv_wc_status`), if it said it.
    pub fn raw(self) -> Option<u32> {
        match self {
            Self::Destroyed => None,
            Self::Other(status) => Some(status),
            named => NAMED.iter().find(|(status, ..)| *status == named).map(|(_, raw, _)| *raw),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Destroyed => f.write_str("the queue pair was destroyed"),
            Self::Other(status) => write!(f, "work completion status {status}"),
            named => {
                let text = NAMED.iter().find(|(status, ..)| status == named).map_or("", |(.., text)| text);
                f.write_str(text)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use memory::Region;

    use super::*;

    #[test]
    fn a_status_loses_nothing() {
        for status in 1..100 {
            assert_eq!(Status::from_raw(status).raw(), Some(status));
            assert!(!Status::from_raw(status).to_string().is_empty(), "{status} says nothing");
        }
        assert_eq!(Status::from_raw(10), Status::RemoteAccess);
        assert_eq!(Status::from_raw(5), Status::Flushed);
        assert_eq!(Status::from_raw(12), Status::RetryExceeded);
        assert_eq!(Status::from_raw(77), Status::Other(77));
        assert_eq!(Status::Destroyed.raw(), None);
    }

    #[test]
    fn only_the_last_holder_of_a_sink_gets_its_lease() {
        let region = Region::anonymous(4096).expect("memory");
        let sink = Sink::new(region.lease(0..4096).expect("free"));
        let other = sink.clone();
        assert!(sink.into_lease().is_none(), "another holds it");
        assert!(region.lease(0..1).is_none(), "so that it is still out");
        let lease = other.into_lease().expect("the last");
        drop(lease);
        assert!(region.lease(0..4096).is_some(), "free again");
    }
}
