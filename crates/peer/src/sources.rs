//! One artifact's files as the cards of others read them.
//!
//! Owns: which bytes of them count, that a file which others may write is looked at, and that nobody reads them through
//! any queue pair once they are withdrawn. Does not own: windows (crate `transport-rdma`), or who may read (`service`).

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use modelpack::layout::{BlobIndex, PIECE_BYTES, Run};
use transport_rdma::{Rdma, Serving, Source};

use crate::shared::Guard;

/// The files of one artifact. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Sources(Arc<Inner>);

struct Inner {
    /// In the order of their pieces.
    blobs: Vec<BlobSource>,
    served: Mutex<Served>,
}

/// One blob to be served from memory.
pub(crate) struct BlobSource {
    source: Arc<Source>,
    blob: BlobIndex,
    pieces: Run,
    guard: Option<Arc<Guard>>,
}

impl BlobSource {
    pub(crate) fn new(
        rdma: &Rdma,
        (blob, pieces): (BlobIndex, Run),
        (file, bytes, handle): (&Arc<File>, u64, u64),
        guard: Option<Arc<Guard>>,
    ) -> Self {
        let source = Source::new(rdma, Arc::clone(file), bytes, handle);
        Self { source, blob, pieces, guard }
    }
}

#[derive(Default)]
struct Served {
    is_over: bool,
    last: u64,
    servings: BTreeMap<u64, Arc<Serving>>,
}

/// A reader's queue pairs. Dropping it destroys them.
pub(crate) struct Reader {
    sources: Sources,
    number: u64,
    pub(crate) serving: Arc<Serving>,
}

impl Sources {
    /// The blobs that have bytes, of which `have` may be read.
    pub(crate) fn new(blobs: Vec<BlobSource>, have: &[Run]) -> Self {
        let sources = Self(Arc::new(Inner { blobs, served: Mutex::default() }));
        for run in have {
            sources.readable(*run);
        }
        sources
    }

    /// Pieces that may be read from now on: before anybody is told of them. May copy them where the kernel serves no
    /// file as it is.
    pub(crate) fn readable(&self, run: Run) {
        let first = self.0.blobs.partition_point(|blob| blob.pieces.end <= run.start);
        for BlobSource { source, pieces, .. } in &self.0.blobs[first..] {
            if pieces.start >= run.end {
                break;
            }
            let (start, end) = (run.start.max(pieces.start), run.end.min(pieces.end));
            let offset = |piece: u32| u64::from(piece - pieces.start.0) * PIECE_BYTES;
            // Beyond the file's end where its last piece is short, which the source knows.
            if let Err(error) = source.readable(offset(start.0)..offset(end.0)) {
                tracing::warn!(%error, "a copy in memory cannot be kept: the artifact is served over TCP only");
                return self.end();
            }
        }
    }

    /// The file of a blob, if it is still what was proved.
    pub(crate) fn source(&self, blob: u32) -> Option<Arc<Source>> {
        let found = self.0.blobs.iter().find(|at| at.blob.0 == blob)?;
        let is_whole = found.guard.as_ref().is_none_or(|guard| guard.check());
        is_whole.then(|| Arc::clone(&found.source))
    }

    /// The name of a blob's file.
    pub(crate) fn handle(&self, blob: u32) -> Option<u64> {
        self.0.blobs.iter().find(|at| at.blob.0 == blob).map(|found| found.source.handle())
    }

    /// Looks whether the files are still what was proved; whoever is to know is told if one is not.
    pub(crate) fn check(&self) {
        for guard in self.0.blobs.iter().filter_map(|blob| blob.guard.as_ref()) {
            if !guard.check() {
                return;
            }
        }
    }

    /// A reader; none once they are withdrawn.
    pub(crate) fn enter(&self, serving: Serving) -> Option<Reader> {
        let serving = Arc::new(serving);
        let mut served = self.served();
        if served.is_over {
            return None;
        }
        served.last += 1;
        let number = served.last;
        served.servings.insert(number, Arc::clone(&serving));
        Some(Reader { sources: self.clone(), number, serving })
    }

    /// From now on nobody reads them: every queue pair is destroyed when this returns.
    pub(crate) fn end(&self) {
        let servings = {
            let mut served = self.served();
            served.is_over = true;
            std::mem::take(&mut served.servings)
        };
        for serving in servings.values() {
            serving.cut();
        }
    }

    /// How many windows all readers hold.
    #[cfg(test)]
    pub(crate) fn windows_held(&self) -> usize {
        self.served().servings.values().map(|serving| serving.windows_held()).sum()
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        // Each change is one step.
        self.0.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.sources.served().servings.remove(&self.number);
        // Also while somebody is about to pin a window for it.
        self.serving.cut();
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files", self.blobs.len())
    }
}
