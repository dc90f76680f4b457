//! A link over RDMA that knows what is out on it, window by window.
//!
//! Owns: that a window is given back only when no read can reach it any more. Does not own: which window is.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use transport::{CompletionSink, Level, Link, ReadRequest};
use transport_rdma::{RdmaLink, WINDOW_BYTES};

/// Reads that are out, by their ids: in which window of which file.
#[derive(Clone, Default)]
pub(super) struct Outstanding(Arc<Mutex<BTreeMap<u64, (u64, u64)>>>);

impl Outstanding {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, u64)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same sink, which takes note of ends first.
    pub(super) fn noting(&self, sink: CompletionSink) -> CompletionSink {
        let outstanding = self.clone();
        Arc::new(move |completion| {
            outstanding.lock().remove(&completion.id);
            sink(completion);
        })
    }

    /// Whether a read of that window is out.
    pub(super) fn is_reading(&self, handle: u64, index: u32) -> bool {
        self.lock().values().any(|read| *read == (handle, u64::from(index)))
    }

    /// That link, of which reads are noted here. Its sink is to be [`Self::noting`]'s.
    pub(super) fn watch(self, link: Arc<RdmaLink>) -> Watched {
        Watched { link, outstanding: self }
    }
}

/// A link whose reads are noted.
#[derive(Clone)]
pub(super) struct Watched {
    pub(super) link: Arc<RdmaLink>,
    pub(super) outstanding: Outstanding,
}

impl Link for Watched {
    fn level(&self) -> Level {
        self.link.level()
    }

    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest> {
        let id = read.id;
        // Before it is posted, since it may end at once.
        self.outstanding.lock().insert(id, (read.window, read.offset / WINDOW_BYTES));
        self.link.post(read).inspect_err(|_| {
            self.outstanding.lock().remove(&id);
        })
    }

    fn in_flight_max(&self) -> usize {
        self.link.in_flight_max()
    }

    fn close(&self) {
        self.link.close();
    }

    fn bytes_received(&self) -> u64 {
        self.link.bytes_received()
    }

    fn is_closed(&self) -> bool {
        self.link.is_closed()
    }
}
