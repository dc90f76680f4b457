//! The body of one upload: a local file, read as fast as the connection takes it.
//!
//! Owns: reading the file and saying how much has been handed on. Does not own: the upload's protocol (`push`).

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

use crate::error::RegistryError;

/// A read of the page cache takes some 50 µs for this much, well above the cost of handing it to another thread, and
/// one such buffer is in flight for each upload.
const READ_BYTES: u64 = 256 << 10;

/// A blob in a file. Cheap to make bodies from: each starts at the first byte.
#[derive(Debug)]
pub(crate) struct Upload {
    source: Arc<Source>,
}

#[derive(Debug)]
struct Source {
    file: File,
    size: u64,
    digest: Sha256Digest,
    sent: watch::Sender<u64>,
    failure: Mutex<Option<io::Error>>,
}

impl Upload {
    pub(crate) fn new(file: File, size: u64, digest: Sha256Digest) -> Self {
        let (sent, failure) = (watch::Sender::new(0), Mutex::default());
        Self { source: Arc::new(Source { file, size, digest, sent, failure }) }
    }

    pub(crate) fn size(&self) -> u64 {
        self.source.size
    }

    /// How many bytes the current body has handed to the connection.
    pub(crate) fn sent(&self) -> watch::Receiver<u64> {
        self.source.sent.subscribe()
    }

    /// A failure to read the file shows as a broken body to the HTTP client; here is what really happened.
    pub(crate) fn check(&self) -> Result<(), RegistryError> {
        let failure = self.source.failure.lock().expect("nobody panics while holding the failure").take();
        match failure {
            Some(source) => Err(RegistryError::File { digest: self.source.digest, source }),
            None => Ok(()),
        }
    }

    /// The body from its first byte on.
    pub(crate) fn body(&self) -> Body {
        self.source.sent.send_replace(0);
        let source = Arc::clone(&self.source);
        Body::wrap_stream(stream::try_unfold((source, 0), |(source, offset)| async move {
            if offset == source.size {
                return Ok::<_, io::Error>(None);
            }
            let (read, source) = spawn_blocking(move || (source.read(offset), source)).await?;
            match read {
                Ok(bytes) => {
                    let end = offset + bytes.len() as u64;
                    source.sent.send_replace(end);
                    Ok(Some((bytes, (source, end))))
                }
                Err(error) => {
                    let broken = io::Error::from(error.kind());
                    *source.failure.lock().expect("nobody panics while holding the failure") = Some(error);
                    Err(broken)
                }
            }
        }))
    }
}

impl Source {
    fn read(&self, offset: u64) -> io::Result<Bytes> {
        let length = READ_BYTES.min(self.size - offset);
        let mut buffer = vec![0; usize::try_from(length).expect("at most READ_BYTES")];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    }
}
