//! Unpacking archives while they land.
//!
//! Owns: the threads that follow each archive's bytes, and whether what they made of them counts. Does not own:
//! unpacking itself (`unpack`), or proving blobs: nothing here proves anything.
//!
//! Pieces that no tree proves are on disk before anybody knows whether they are right, and they may be replaced. So the
//! decoder hashes what it reads, whatever lies in the file later: only if that is the archive that the manifest names do
//! its files count. Until then, and afterwards, they have no names of their own.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use modelpack::{
    digest::Sha256Hasher,
    layout::{BlobIndex, PIECE_BYTES, PieceIndex},
    manifest::Archive,
};

use crate::{
    archive::Budget,
    contents::Contents,
    error::{Context as _, StoreError},
    files::Dir,
    landing::Landing,
    unpack::{self, Part, UNPACKED_NAME, unpack_one, unpacking_threads},
};

/// Archives that are unpacked while they land. Dropped, it stops, and has stopped.
#[derive(Debug)]
pub(crate) struct Ahead {
    work: Arc<Work>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Work {
    contents: Arc<Contents>,
    landing: Arc<Landing>,
    dir: Dir,
    budget: Budget,
    /// The archive to be begun next.
    next: AtomicUsize,
    /// By number.
    done: Mutex<BTreeMap<usize, Part>>,
    /// No piece is to be waited for: all are here.
    is_over: AtomicBool,
    /// Nobody wants it any more.
    is_given_up: AtomicBool,
}

impl Ahead {
    /// Begins; `None` if the artifact has no archives.
    pub(crate) fn begin(
        contents: &Arc<Contents>,
        landing: &Arc<Landing>,
    ) -> Result<Option<Self>, StoreError> {
        unpack::clear(landing.dir())?;
        if contents.archives.is_empty() {
            return Ok(None);
        }
        let work = Arc::new(Work {
            contents: Arc::clone(contents),
            landing: Arc::clone(landing),
            dir: landing.dir().make(UNPACKED_NAME)?,
            budget: Budget::new(contents.packed_bytes()),
            next: AtomicUsize::new(0),
            done: Mutex::default(),
            is_over: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
        });
        let mut ahead = Self { work, threads: Vec::new() };
        for _ in 0..unpacking_threads(contents.archives.len()) {
            let work = Arc::clone(&ahead.work);
            let thread = thread::Builder::new().name("unpack".into()).spawn(move || work.run());
            ahead.threads.push(thread.context("start a thread for", landing.dir().path())?);
        }
        Ok(Some(ahead))
    }

    /// When every byte is here: what was unpacked of the archives that the manifest names, by number.
    pub(crate) fn finish(mut self) -> BTreeMap<usize, Part> {
        self.end();
        std::mem::take(&mut *self.work.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn end(&mut self) {
        self.work.is_over.store(true, Ordering::SeqCst);
        self.work.landing.wake();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::warn!("unpacking has panicked; what it was about is unpacked again");
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.work.is_given_up.store(true, Ordering::SeqCst);
        self.end();
    }
}

impl Work {
    fn run(&self) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(archive) = self.contents.archives.get(number) else { break };
            match self.unpack(archive) {
                Ok(Some(part)) => {
                    self.done.lock().unwrap_or_else(PoisonError::into_inner).insert(number, part);
                }
                Ok(None) => tracing::debug!(%archive, "other bytes were unpacked than the manifest names"),
                // What is wrong is said when the archive is proved.
                Err(error) => tracing::debug!(%archive, %error, "not unpacked while it lands"),
            }
        }
    }

    /// `None` if it was not the archive that the manifest names.
    fn unpack(&self, archive: &Archive) -> Result<Option<Part>, StoreError> {
        let mut source =
            Following { work: self, blob: archive.blob, offset: 0, hasher: Sha256Hasher::default() };
        let part =
            unpack_one((&self.contents, &self.landing), (archive, &mut source), &self.dir, &self.budget)?;
        let read = io::copy(&mut source, &mut io::sink());
        let is_named = source.hasher.finish() == self.contents.blobs[archive.blob.0 as usize].digest;
        if read.is_ok() && is_named {
            return Ok(Some(part));
        }
        unpack::remove(&self.dir, archive, part.0.len());
        Ok(None)
    }
}

/// Reads a blob from its start, as far as it is here, and waits for more.
struct Following<'a> {
    work: &'a Work,
    blob: BlobIndex,
    offset: u64,
    /// Of what was read.
    hasher: Sha256Hasher,
}

impl Read for Following<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let landing = &self.work.landing;
        if self.work.is_given_up.load(Ordering::SeqCst) {
            return Err(io::Error::other("nobody wants it any more"));
        }
        if self.offset >= landing.layout().blob_bytes(self.blob) {
            return Ok(0);
        }
        let number = u32::try_from(self.offset / PIECE_BYTES).expect("pieces are numbered by u32");
        let piece = PieceIndex(landing.layout().pieces_of(self.blob).start.0 + number);
        if !landing.wait_for(piece, &self.work.is_over) {
            return Err(io::Error::other("it is not here"));
        }
        let left = landing.layout().span(piece).len
            - u32::try_from(self.offset % PIECE_BYTES).expect("within a piece");
        let len = buffer.len().min(left as usize);
        let count = landing.file(self.blob).read_at(&mut buffer[..len], self.offset)?;
        self.hasher.update(&buffer[..count]);
        self.offset += count as u64;
        Ok(count)
    }
}
