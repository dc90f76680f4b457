//! The peer's side of a link test: memory that exists while somebody reads it.
//!
//! Owns: that memory, and how many may read it. Does not own: who is let in otherwise (`service`).

use std::{
    fmt,
    fs::File,
    ops::Range,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use modelpack::{
    layout::{BlobIndex, Run},
    piece_map::PieceMap,
};
use planner::ArtifactId;
use rustix::fs::{MemfdFlags, memfd_create};
use transport::{Export, Exports};

use super::{PIECES, artifact, bytes};
use crate::{
    children::Children,
    describe::Description,
    have_feed::HaveFeed,
    service::Share,
    shared::Planes,
    sources::{BlobSource, Sources},
};

/// Links of tests at a time: one, and the next of the same test, which may begin before the end of the first is heard.
const LINKS_MAX: usize = 2;

/// What a peer lets be read for tests. Nobody is told of it: who asks knows its name.
#[derive(Debug, Default)]
pub(crate) struct LinkTests(Mutex<Weak<Memory>>);

/// Memory as others may read it. It is withdrawn and goes with its last reader.
struct Memory {
    exports: Exports,
    handle: u64,
    /// As each reader gets it, but for what keeps this alive.
    share: Share,
}

/// What of it is served over TCP: nothing but zeros.
struct Zeros(Arc<File>);

impl Export for Zeros {
    fn file(&self) -> &File {
        &self.0
    }

    fn is_readable(&self, range: Range<u64>) -> bool {
        range.end <= bytes()
    }

    fn bytes(&self) -> u64 {
        bytes()
    }
}

impl LinkTests {
    /// The share for a test, if that is what is asked for and not too many are at it. It does not block: the memory is
    /// made page by page as it is read.
    pub(crate) fn share(&self, asked: &ArtifactId, planes: Planes<'_>) -> Option<Share> {
        if *asked != artifact() {
            return None;
        }
        let mut tested = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let memory = match tested.upgrade() {
            Some(memory) if memory.share.children.links() >= LINKS_MAX => return None,
            Some(memory) => memory,
            None => Arc::new(make(planes)?),
        };
        *tested = Arc::downgrade(&memory);
        let share = memory.share.clone();
        Some(Share { kept: Some(memory), ..share })
    }

    /// Whether the memory is there.
    #[cfg(test)]
    pub(super) fn is_read(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).strong_count() > 0
    }
}

fn make((exports, rdma, _): Planes<'_>) -> Option<Memory> {
    let file = memfd_create("modelcast link test", MemfdFlags::CLOEXEC).ok()?;
    let file = Arc::new(File::from(file));
    file.set_len(bytes()).ok()?;
    let handle = exports.register(Arc::new(Zeros(Arc::clone(&file))));
    let all = Run::new(0, PIECES);
    let sources = rdma.map(|rdma| {
        let blob = BlobSource::new(rdma, (BlobIndex(0), all), (&file, bytes(), handle), None);
        Sources::new(vec![blob], &[all])
    });
    let share = Share {
        windows: vec![(BlobIndex(0), handle, bytes())],
        sources,
        have: HaveFeed::new(PieceMap::full(PIECES)),
        vouching: None,
        children: Children::none(),
        description: Arc::new(Description { manifest: Vec::new(), config: Vec::new(), trees: Vec::new() }),
        kept: None,
    };
    Some(Memory { exports: exports.clone(), handle, share })
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(sources) = &self.share.sources {
            sources.end();
        }
        self.exports.withdraw(self.handle);
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory(window {})", self.handle)
    }
}
