//! Ranged reads of large blobs.
//!
//! Owns: asking for a range and holding the answer to it byte for byte. Does not own: proving the bytes, or asking
//! again for what a broken stream did not deliver.

use std::{ops::Range, sync::Arc, time::Instant};

use bytes::Bytes;
use modelpack::digest::Sha256Digest;
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderValue, RANGE},
};

use crate::{
    answer::Answer,
    channel::Channel,
    error::RegistryError,
    mirrors::{Name, Served, Site},
    repository::Repository,
};

/// The bytes of one range of a blob, or of the whole blob where the server serves no ranges.
#[derive(Debug)]
pub struct BlobStream {
    /// `None` for an empty range, which needs no answer.
    answer: Option<Answer>,
    start: u64,
    is_whole: bool,
    left: u64,
    position: u64,
    /// The mirror it comes from, if it comes from one.
    site: Option<Arc<Site>>,
    /// Since when somebody waits for more.
    waiting: Option<Instant>,
}

impl Repository {
    /// One GET of bytes `range` of a blob of `blob_bytes` bytes. Retries by itself until the response head is good;
    /// then streams. A stream that breaks is not mended: the caller, who knows what has landed, asks for the rest.
    ///
    /// # Panics
    /// If `range` is not within the blob.
    pub async fn read(
        &self,
        digest: &Sha256Digest,
        blob_bytes: u64,
        range: Range<u64>,
    ) -> Result<BlobStream, RegistryError> {
        assert!(range.start <= range.end && range.end <= blob_bytes, "{range:?} of {blob_bytes} bytes");
        if range.is_empty() {
            return Ok(BlobStream::empty(range.start));
        }
        let name = digest.to_string();
        for site in self.mirrors.asked(Name::Digest(&name)) {
            let answer = Box::pin(read_once(&site.channel, digest, blob_bytes, &range));
            if let Some(stream) = site.answer(Name::Digest(&name), answer).await {
                return Ok(stream.of(site));
            }
        }
        let mut attempts = self.channel.patience().attempts();
        loop {
            match read_once(&self.channel, digest, blob_bytes, &range).await {
                Ok(stream) => return Ok(stream),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }
}

async fn read_once(
    channel: &Channel,
    digest: &Sha256Digest,
    blob_bytes: u64,
    range: &Range<u64>,
) -> Result<BlobStream, RegistryError> {
    let operation = format!("read bytes {} to {} of blob `{digest}`", range.start, range.end);
    let mut ask = channel.ask(Method::GET, &["blobs", &digest.to_string()], operation);
    let header = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1));
    ask.headers.insert(RANGE, header.expect("numbers and signs make a header"));
    let answer = channel.send_for_blob(ask, digest).await?;
    let stream = BlobStream::check(answer, blob_bytes, range);
    if stream.is_err() {
        channel.forget_location(digest);
    }
    stream
}

impl BlobStream {
    pub(crate) fn empty(start: u64) -> Self {
        Self::new(None, (start, false, 0))
    }

    pub(crate) fn check(answer: Answer, blob_bytes: u64, range: &Range<u64>) -> Result<Self, RegistryError> {
        answer.require_identity()?;
        let (start, is_whole, bytes) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let stated = answer.header(CONTENT_RANGE).unwrap_or_default();
                let expected = format!("bytes {}-{}/{blob_bytes}", range.start, range.end - 1);
                if !stated.trim().eq_ignore_ascii_case(&expected) {
                    let stated: String = stated.chars().take(100).collect();
                    return Err(answer.problem(format!("the answer has `{stated}` instead of `{expected}`")));
                }
                (range.start, false, range.end - range.start)
            }
            StatusCode::OK => (0, true, blob_bytes),
            status => return Err(answer.problem(format!("unexpected status {}", status.as_u16()))),
        };
        let stated = answer.header(CONTENT_LENGTH);
        if stated.is_some_and(|stated| stated.parse() != Ok(bytes)) {
            return Err(answer.problem(format!("the answer is not {bytes} bytes long")));
        }
        Ok(Self::new(Some(answer), (start, is_whole, bytes)))
    }

    fn new(answer: Option<Answer>, (start, is_whole, left): (u64, bool, u64)) -> Self {
        Self { answer, start, is_whole, left, position: start, site: None, waiting: None }
    }

    fn of(mut self, site: Arc<Site>) -> Self {
        self.site = Some(site);
        self
    }

    /// Who serves it.
    pub fn served(&self) -> Served {
        Served::by(self.site.clone())
    }

    /// The offset in the blob of the first byte that [`Self::next`] yields: the range's start, or 0 if the server
    /// ignored the range.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The offset in the blob of the next byte that [`Self::next`] yields.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Whether the server ignored the range and sends the whole blob.
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The next bytes. `None` comes exactly at the end of the range, or of the blob if it [is whole](Self::is_whole).
    ///
    /// # Errors
    /// The body broke, is too short or too long. What was yielded before is as good as ever.
    pub async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.waiting = Some(Instant::now());
        let next = self.next_bytes().await;
        self.waiting = None;
        if let Some(site) = &self.site {
            match &next {
                Ok(bytes) => site.came(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
                Err(error) => site.failed(None, error),
            }
        }
        next
    }

    async fn next_bytes(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(answer) = &mut self.answer else { return Ok(None) };
        loop {
            match answer.chunk().await? {
                Some(chunk) if chunk.is_empty() => {}
                Some(chunk) if chunk.len() as u64 > self.left => {
                    return Err(answer.problem("the answer is longer than it says"));
                }
                Some(chunk) => {
                    self.left -= chunk.len() as u64;
                    self.position += chunk.len() as u64;
                    return Ok(Some(chunk));
                }
                None if self.left > 0 => {
                    return Err(answer.problem(format!("the answer ends {} bytes early", self.left)));
                }
                None => {
                    self.answer = None;
                    return Ok(None);
                }
            }
        }
    }
}

impl Drop for BlobStream {
    /// Whoever stops waiting because nothing comes has learned something of the mirror.
    fn drop(&mut self) {
        if let Some((site, since)) = self.site.as_ref().zip(self.waiting) {
            site.was_silent(since);
        }
    }
}
