//! The body of one upload: a local file or a blob of another registry, read as fast as the connection takes it.
//!
//! Owns: reading the bytes and saying how many have been handed on. Does not own: the upload's protocol (`push`).

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use futures_util::stream;
use modelpack::digest::Sha256Digest;
use reqwest::Body;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{blob::BlobStream, error::RegistryError, patience::Attempts, repository::Repository};

/// A read of the page cache takes some 50 µs for this much, well above the cost of handing it to another thread, and
/// one such buffer is in flight for each upload.
const READ_BYTES: u64 = 256 << 10;

/// A blob to be sent. Cheap to make bodies from, which may start anywhere.
#[derive(Debug)]
pub(crate) struct Upload {
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    from: From,
    size: u64,
    digest: Sha256Digest,
    sent: watch::Sender<u64>,
    failure: Mutex<Option<RegistryError>>,
}

/// Where the bytes are.
#[derive(Debug)]
enum From {
    File(File),
    Repository(Repository),
}

/// How far a body is.
struct Reading {
    source: Arc<Source>,
    offset: u64,
    /// The answer of another registry under way.
    remote: Option<BlobStream>,
    /// Its failures since something last came.
    broken: Option<Attempts>,
}

impl Upload {
    pub(crate) fn new(file: File, size: u64, digest: Sha256Digest) -> Self {
        Self::of(From::File(file), size, digest)
    }

    pub(crate) fn between(from: Repository, size: u64, digest: Sha256Digest) -> Self {
        Self::of(From::Repository(from), size, digest)
    }

    fn of(from: From, size: u64, digest: Sha256Digest) -> Self {
        let (sent, failure) = (watch::Sender::new(0), Mutex::default());
        Self { source: Arc::new(Source { from, size, digest, sent, failure }) }
    }

    pub(crate) fn size(&self) -> u64 {
        self.source.size
    }

    pub(crate) fn digest(&self) -> &Sha256Digest {
        &self.source.digest
    }

    /// Up to which byte of the blob the current body has handed bytes to the connection.
    pub(crate) fn sent(&self) -> watch::Receiver<u64> {
        self.source.sent.subscribe()
    }

    /// A failure to read the bytes shows as a broken body to the HTTP client; here is what really happened.
    pub(crate) fn check(&self) -> Result<(), RegistryError> {
        let failure = self.source.failure.lock().expect("nobody panics while holding the failure").take();
        failure.map_or(Ok(()), Err)
    }

    /// The body from a byte of the blob on.
    pub(crate) fn body(&self, offset: u64) -> Body {
        self.source.sent.send_replace(offset);
        let reading = Reading { source: Arc::clone(&self.source), offset, remote: None, broken: None };
        Body::wrap_stream(stream::try_unfold(reading, |mut reading| async move {
            if reading.offset == reading.source.size {
                return Ok::<_, io::Error>(None);
            }
            match reading.next().await {
                Ok(bytes) => {
                    reading.offset += bytes.len() as u64;
                    reading.source.sent.send_replace(reading.offset);
                    Ok(Some((bytes, reading)))
                }
                Err(error) => {
                    let failure = &reading.source.failure;
                    *failure.lock().expect("nobody panics while holding the failure") = Some(error);
                    Err(io::ErrorKind::Other.into())
                }
            }
        }))
    }
}

impl Reading {
    async fn next(&mut self) -> Result<Bytes, RegistryError> {
        match &self.source.from {
            From::File(_) => {
                let (source, offset) = (Arc::clone(&self.source), self.offset);
                let read = spawn_blocking(move || source.read(offset)).await.unwrap_or_else(|_| {
                    // The runtime ends: nobody waits for the bytes.
                    Err(io::ErrorKind::Interrupted.into())
                });
                read.map_err(|source| RegistryError::File { digest: self.source.digest, source })
            }
            From::Repository(from) => {
                let from = from.clone();
                self.next_of(&from).await
            }
        }
    }

    /// The next bytes of another registry's blob; where its answer breaks, it is asked for the rest.
    async fn next_of(&mut self, from: &Repository) -> Result<Bytes, RegistryError> {
        let (digest, size) = (self.source.digest, self.source.size);
        loop {
            let mut stream = match self.remote.take() {
                Some(stream) => stream,
                None => from.read(&digest, size, self.offset..size).await?,
            };
            match next_from(&mut stream, self.offset).await {
                Ok(bytes) => {
                    (self.remote, self.broken) = (Some(stream), None);
                    return Ok(bytes);
                }
                Err(error) => {
                    let attempts = self.broken.get_or_insert_with(|| from.channel.patience().attempts());
                    attempts.pause_or_fail(error).await?;
                }
            }
        }
    }
}

/// The next bytes from `offset` of the blob on. A registry without ranges sends what lies before that once more.
async fn next_from(stream: &mut BlobStream, offset: u64) -> Result<Bytes, RegistryError> {
    loop {
        let at = stream.position();
        let bytes = stream.next().await?.expect("a stream yields every byte up to the end of the blob");
        let skip = offset.saturating_sub(at);
        if skip < bytes.len() as u64 {
            return Ok(bytes.slice(usize::try_from(skip).expect("less than a buffer")..));
        }
    }
}

impl Source {
    fn read(&self, offset: u64) -> io::Result<Bytes> {
        let length = READ_BYTES.min(self.size - offset);
        let mut buffer = vec![0; usize::try_from(length).expect("at most READ_BYTES")];
        let From::File(file) = &self.from else { return Err(io::ErrorKind::Unsupported.into()) };
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }
}
