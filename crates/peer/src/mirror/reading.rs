//! The bytes of a blob for one client.
//!
//! Owns: when they may be read and in which portions. Does not own: proving them (`transfer`), sending them (`face`).

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt as _, sync::Arc};

use bytes::Bytes;
use face::Content;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use modelpack::layout::{BlobIndex, PIECE_BYTES, PieceIndex};
use tokio::sync::OwnedSemaphorePermit;

use super::slots::Slot;
use crate::{
    artifact::Artifact,
    clients::{Clients, Wanted},
    metrics::Metrics,
    origin::Origin,
    transfer::Transfer,
};

/// What is read from a file at once and waits for the client to take it.
const CHUNK_BYTES: u64 = 256 << 10;

/// Transfers that may fail while one client reads: whoever began the first may have had a proof that the origin takes no
/// more, or an origin of less use.
const FAILURES_MAX: u32 = 2;

/// What a client gets, counted.
pub(super) struct Counted {
    pub(super) content: Box<dyn Content>,
    pub(super) metrics: Arc<Metrics>,
}

impl Content for Counted {
    fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let metrics = self.metrics;
        let count = move |portion: &io::Result<Bytes>| {
            metrics.mirrored(portion.as_ref().map_or(0, |bytes| bytes.len() as u64));
        };
        self.content.read(range).inspect(count).boxed()
    }
}

/// Bytes that are in memory.
pub(super) struct Memory {
    pub(super) bytes: Bytes,
    /// For the room that they take, until the last of them is handed on.
    pub(super) permit: Option<OwnedSemaphorePermit>,
}

impl Content for Memory {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let at = |offset: u64| usize::try_from(offset).expect("an offset in memory");
        let wanted = self.bytes.slice(at(range.start)..at(range.end));
        let next = move |(mut left, permit): (Bytes, Option<OwnedSemaphorePermit>)| async move {
            let portion = left.split_to(left.len().min(at(CHUNK_BYTES)));
            (!portion.is_empty()).then_some((Ok(portion), (left, permit)))
        };
        stream::unfold((wanted, self.permit), next).boxed()
    }
}

/// A blob that the store has proved.
pub(super) struct Stored {
    file: Arc<File>,
    bytes: u64,
}

impl Stored {
    pub(super) fn new(file: File, bytes: u64) -> Self {
        Self { file: Arc::new(file), bytes }
    }
}

impl Content for Stored {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let file = self.file;
        let next = move |at: Range<u64>| {
            let file = Arc::clone(&file);
            async move {
                if at.is_empty() {
                    return Ok(None);
                }
                let end = at.end.min(at.start + CHUNK_BYTES);
                Ok(Some((read(file, at.start..end).await?, end..at.end)))
            }
        };
        stream::try_unfold(range, next).boxed()
    }
}

/// A blob of a model, of which some may have to be fetched.
pub(super) struct Part {
    clients: Arc<Clients>,
    slot: Arc<Slot>,
    artifact: Arc<Artifact>,
    origin: Origin,
    blob: BlobIndex,
}

impl Part {
    pub(super) fn new(
        clients: Arc<Clients>,
        slot: Arc<Slot>,
        (artifact, origin): (Arc<Artifact>, Origin),
        blob: BlobIndex,
    ) -> Self {
        Self { clients, slot, artifact, origin, blob }
    }

    /// The transfer that brings it, which begins now if none is under way.
    fn join(&self) -> Arc<Transfer> {
        let (artifact, origin) = (Arc::clone(&self.artifact), Some(self.origin.clone()));
        self.slot.transfer(|| {
            tracing::info!(reference = %artifact.reference, "a client of the mirror pulls");
            self.clients.join(&Wanted { artifact, origin, name: None }).0
        })
    }

    /// What was asked for by a name is found in the store by it, once it is there.
    async fn keep_name(&self, transfer: &Transfer) {
        if transfer.is_complete()
            && let Some(name) = self.slot.take_name()
        {
            self.clients.keep_name(self.artifact.manifest.digest(), name).await;
        }
    }
}

impl Content for Part {
    fn bytes(&self) -> u64 {
        self.artifact.layout().blob_bytes(self.blob)
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let reader = Reader { part: *self, transfer: None, failures: 0, range };
        let next = async |mut reader: Reader| Ok(reader.next().await?.map(|bytes| (bytes, reader)));
        stream::try_unfold(reader, next).boxed()
    }
}

/// One client that reads one range.
struct Reader {
    part: Part,
    transfer: Option<Arc<Transfer>>,
    failures: u32,
    /// What it has not got yet.
    range: Range<u64>,
}

impl Reader {
    /// The next bytes, as soon as they are proved.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        self.part.slot.touch();
        if self.range.is_empty() {
            if let Some(transfer) = &self.transfer {
                self.part.keep_name(transfer).await;
            }
            return Ok(None);
        }
        let file = self.file().await?;
        let start = self.range.start;
        let end_of_piece = (start / PIECE_BYTES + 1) * PIECE_BYTES;
        let end = self.range.end.min(end_of_piece).min(start + CHUNK_BYTES);
        let bytes = read(file, start..end).await?;
        self.range.start = end;
        Ok(Some(bytes))
    }

    /// The file that has the piece of the next byte, once that is proved.
    async fn file(&mut self) -> io::Result<Arc<File>> {
        let blob = self.part.blob;
        let first = self.part.artifact.layout().pieces_of(blob).start.0;
        let in_blob = u32::try_from(self.range.start / PIECE_BYTES).expect("a blob's pieces are counted so");
        loop {
            let transfer = self.transfer.get_or_insert_with(|| self.part.join());
            match transfer.proved(blob, PieceIndex(first + in_blob)).await {
                Ok(file) => return Ok(file),
                Err(error) => {
                    self.failures += 1;
                    self.transfer = None;
                    let error_text = &*error as &dyn std::error::Error;
                    tracing::warn!(error = error_text, "what a client of the mirror reads cannot be fetched");
                    if self.failures == FAILURES_MAX {
                        return Err(io::Error::other(error));
                    }
                }
            }
        }
    }
}

/// A portion of a file, read where it holds up nobody.
async fn read(file: Arc<File>, range: Range<u64>) -> io::Result<Bytes> {
    let bytes = usize::try_from(range.end - range.start).expect("a portion fits into memory");
    let read = move || {
        let mut buffer = vec![0; bytes];
        file.read_exact_at(&mut buffer, range.start).map(|()| Bytes::from(buffer))
    };
    tokio::task::spawn_blocking(read).await?
}
