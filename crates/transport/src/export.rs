//! What a sender lets be read. Does not own the files, nor who may connect.

use std::{
    collections::BTreeMap,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use crate::Pacer;

/// One file that links may read from.
pub trait Export: Send + Sync {
    /// The open file.
    fn file(&self) -> &File;

    /// Whether every byte of the range was checked, so that a reader may have it. It must not block.
    fn is_readable(&self, range: Range<u64>) -> bool;

    /// The file's length in bytes once it is whole.
    fn bytes(&self) -> u64;

    /// So many bytes of it were sent, for whoever counts them.
    fn sent(&self, _bytes: u64) {}

    /// What it waits for before it is sent now, beside what all of a server's exports wait for.
    fn pacer(&self) -> Option<Arc<Pacer>> {
        None
    }
}

/// The files that links may read from, by handle. Clones share one table.
#[derive(Clone, Default)]
pub struct Exports(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    last: u64,
    by_handle: BTreeMap<u64, Arc<dyn Export>>,
}

impl Exports {
    /// An empty table.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets `export` be read; returns its handle, which is never used again.
    pub fn register(&self, export: Arc<dyn Export>) -> u64 {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.last += 1;
        let handle = table.last;
        table.by_handle.insert(handle, export);
        handle
    }

    /// Lets no new read of `handle` begin. One that has begun holds its file until it ends.
    pub fn withdraw(&self, handle: u64) {
        let withdrawn = self.0.lock().unwrap_or_else(PoisonError::into_inner).by_handle.remove(&handle);
        // Outside the lock: dropping an export may close a file, or do whatever its owner made it do.
        drop(withdrawn);
    }

    /// The file behind a handle.
    pub fn get(&self, handle: u64) -> Option<Arc<dyn Export>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).by_handle.get(&handle).cloned()
    }

    /// The file behind a handle if that range of it may be read now.
    pub(crate) fn open(&self, handle: u64, offset: u64, len: u32) -> Result<Arc<dyn Export>, Denial> {
        let export = self.get(handle).ok_or(Denial::Refused)?;
        let end = offset.checked_add(u64::from(len)).ok_or(Denial::Refused)?;
        if len == 0 || len > crate::READ_BYTES_MAX || end > export.bytes() {
            return Err(Denial::Refused);
        }
        if export.is_readable(offset..end) { Ok(export) } else { Err(Denial::NotHere) }
    }
}

/// Why a sender does not send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    NotHere,
    Refused,
}

impl From<Denial> for crate::ReadFault {
    fn from(denial: Denial) -> Self {
        match denial {
            Denial::NotHere => Self::NotHere,
            Denial::Refused => Self::Refused,
        }
    }
}
