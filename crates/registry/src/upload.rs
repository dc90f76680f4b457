//! The body of one upload: a local file, a blob of another registry or a file of a hub, read as fast as the connection
//! takes it.
//!
//! Owns: reading the bytes, hashing them on their way where that is asked for, and saying how many have been handed on.
//! Does not own: the upload's protocol (`push`).

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures_util::stream;
use modelpack::{
    digest::Sha256Digest,
    piece_tree::{PieceTree, Provisional},
};
use reqwest::Body;
use tokio::{sync::watch, task::spawn_blocking};

use crate::{
    address::host_of,
    blob::BlobStream,
    error::{Exchange, RegistryError},
    hub::Snapshot,
    patience::{Attempts, Patience},
    repository::Repository,
    survey::Survey,
};

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
    /// The hashes of what has been handed on, if they are wanted.
    survey: Option<Mutex<Survey>>,
    failure: Mutex<Option<RegistryError>>,
}

/// Where the bytes are.
#[derive(Debug)]
enum From {
    File(File),
    Repository(Repository),
    Hub(Arc<Snapshot>),
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(_) => f.write_str("this machine"),
            Self::Repository(from) => f.write_str(&host_of(from.channel.base())),
            Self::Hub(from) => f.write_str(&from.host()),
        }
    }
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
        Self::of(From::File(file), size, digest, None)
    }

    pub(crate) fn between(from: Repository, size: u64, digest: Sha256Digest) -> Self {
        Self::of(From::Repository(from), size, digest, None)
    }

    /// The same, with all hashes of the bytes on their way. The last of them are handed on only if they are the blob's.
    pub(crate) fn surveyed(from: Surveyed, size: u64, digest: Sha256Digest) -> Self {
        let from = match from {
            Surveyed::File(file) => From::File(file),
            Surveyed::Repository(from) => From::Repository(from),
            Surveyed::Hub(from) => From::Hub(from),
        };
        Self::of(from, size, digest, Some(Mutex::new(Survey::new(size))))
    }

    fn of(from: From, size: u64, digest: Sha256Digest, survey: Option<Mutex<Survey>>) -> Self {
        let (sent, failure) = (watch::Sender::new(0), Mutex::default());
        Self { source: Arc::new(Source { from, size, digest, sent, survey, failure }) }
    }

    /// The tree of the bytes that were handed on, once all have been.
    pub(crate) fn tree(&self) -> Option<PieceTree<Provisional>> {
        let survey = self.source.survey.as_ref()?;
        survey.lock().unwrap_or_else(PoisonError::into_inner).tree()
    }

    /// Reads all bytes and hands them to nobody.
    pub(crate) async fn drain(&self, progress: &(dyn Fn(u64) + Send + Sync)) -> Result<(), RegistryError> {
        self.source.begin(0);
        let mut reading = self.reading(0);
        while let Some(bytes) = reading.step().await? {
            reading.offset += bytes.len() as u64;
            progress(reading.offset);
        }
        Ok(())
    }

    fn reading(&self, offset: u64) -> Reading {
        Reading { source: Arc::clone(&self.source), offset, remote: None, broken: None }
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
        self.source.begin(offset);
        self.source.sent.send_replace(offset);
        Body::wrap_stream(stream::try_unfold(self.reading(offset), |mut reading| async move {
            match reading.step().await {
                Ok(None) => Ok::<_, io::Error>(None),
                Ok(Some(bytes)) => {
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

/// Whose bytes are hashed on their way.
#[derive(Debug)]
pub(crate) enum Surveyed {
    File(File),
    Repository(Repository),
    Hub(Arc<Snapshot>),
}

impl Reading {
    /// The next bytes, hashed; `None` after the last.
    async fn step(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.offset == self.source.size {
            return Ok(None);
        }
        let bytes = self.next().await?;
        self.source.survey(self.offset, &bytes)?;
        Ok(Some(bytes))
    }

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
            From::Repository(_) | From::Hub(_) => self.next_remote().await,
        }
    }

    /// The next bytes of what is elsewhere; where an answer breaks, the rest is asked for.
    async fn next_remote(&mut self) -> Result<Bytes, RegistryError> {
        let source = Arc::clone(&self.source);
        loop {
            let mut stream = match self.remote.take() {
                Some(stream) => stream,
                None => source.open(self.offset).await?,
            };
            match next_from(&mut stream, self.offset).await {
                Ok(bytes) => {
                    (self.remote, self.broken) = (Some(stream), None);
                    return Ok(bytes);
                }
                Err(error) => {
                    let attempts = self.broken.get_or_insert_with(|| source.patience().attempts());
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
    /// Bytes are about to be handed on from there.
    fn begin(&self, offset: u64) {
        if let Some(survey) = self.survey.as_ref().filter(|_| offset == 0) {
            *survey.lock().unwrap_or_else(PoisonError::into_inner) = Survey::new(self.size);
        }
    }

    /// Hashes what is about to be handed on, and holds the end back if the whole is not the blob.
    fn survey(&self, offset: u64, bytes: &[u8]) -> Result<(), RegistryError> {
        let Some(survey) = &self.survey else { return Ok(()) };
        let mut survey = survey.lock().unwrap_or_else(PoisonError::into_inner);
        survey.take(offset, bytes);
        let Some(found) = survey.digest().filter(|found| *found != self.digest) else { return Ok(()) };
        let (expected, host) = (self.digest, self.from.to_string());
        if let From::Hub(from) = &self.from {
            from.distrust(&expected);
            return Err(from.wrong_bytes(&expected).into());
        }
        let exchange = Exchange { operation: format!("read blob `{expected}`"), host };
        Err(RegistryError::Digest { exchange, expected, found })
    }

    /// Begins to read what is elsewhere, from there on.
    async fn open(&self, offset: u64) -> Result<BlobStream, RegistryError> {
        let (digest, rest) = (&self.digest, offset..self.size);
        match &self.from {
            From::Repository(from) => from.read(digest, self.size, rest).await,
            From::Hub(from) => from.stream(digest, rest).await,
            From::File(_) => {
                let source = io::ErrorKind::Unsupported.into();
                Err(RegistryError::File { digest: self.digest, source })
            }
        }
    }

    fn patience(&self) -> Patience {
        match &self.from {
            From::Repository(from) => from.channel.patience(),
            From::Hub(from) => from.patience(),
            From::File(_) => Patience::default(),
        }
    }

    fn read(&self, offset: u64) -> io::Result<Bytes> {
        let length = READ_BYTES.min(self.size - offset);
        let mut buffer = vec![0; usize::try_from(length).expect("at most READ_BYTES")];
        let From::File(file) = &self.from else { return Err(io::ErrorKind::Unsupported.into()) };
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }
}
