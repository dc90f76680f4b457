//! Uploads of blobs and manifests.
//!
//! Owns: the upload protocol, as one POST and one streaming PUT, which every registry takes (chunks are refused, limited
//! or lack a `Location` in some). Does not own: what is uploaded and in which order.

use std::fs::File;

use bytes::Bytes;
use modelpack::digest::Sha256Digest;
use reqwest::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};

use crate::{
    answer::Answer,
    auth::Action,
    channel::{Ask, Payload},
    error::{Class, RegistryError},
    repository::{CONTENT_DIGEST, Repository},
    upload::Upload,
};

/// The type of every blob upload: the manifest's descriptor says what the blob is.
const BLOB_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

impl Repository {
    /// Whether the registry has this blob, with this size.
    pub async fn has_blob(&self, digest: &Sha256Digest, size: u64) -> Result<bool, RegistryError> {
        let mut attempts = self.channel.patience().attempts();
        loop {
            let operation = format!("look for blob `{digest}`");
            let ask = self.channel.ask(Method::HEAD, &["blobs", &digest.to_string()], operation);
            match self.channel.send(&ask).await {
                // Without a length the registry's word is enough: it checked the digest when it took the blob.
                Ok(answer) => {
                    let stated = answer.header(CONTENT_LENGTH);
                    return Ok(stated.is_none_or(|stated| stated.parse() == Ok(size)));
                }
                Err(error) if error.class() == Class::NotFound => return Ok(false),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }

    /// Uploads the `size` bytes of `file` unless the registry has them. `progress` is told how many bytes of the blob
    /// have been sent; it falls back to 0 when a failure makes the upload start over.
    pub async fn push_blob(
        &self,
        digest: &Sha256Digest,
        size: u64,
        file: File,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        if !self.has_blob(digest, size).await? {
            let upload = Upload::new(file, size, *digest);
            self.upload(digest, || Payload::Upload(&upload, progress)).await?;
        }
        progress(size);
        Ok(())
    }

    /// Uploads a blob that fits into memory unless the registry has it.
    pub async fn push_bytes(&self, raw: &[u8]) -> Result<Sha256Digest, RegistryError> {
        let digest = Sha256Digest::of(raw);
        if !self.has_blob(&digest, raw.len() as u64).await? {
            let bytes = Bytes::copy_from_slice(raw);
            self.upload(&digest, || Payload::Bytes(bytes.clone())).await?;
        }
        Ok(digest)
    }

    /// Uploads a manifest under `tag`, or else under its digest only. All that it names has to be there.
    ///
    /// # Panics
    /// If `media_type` holds what no header can.
    pub async fn push_manifest(
        &self,
        raw: &[u8],
        media_type: &str,
        tag: Option<&str>,
    ) -> Result<Sha256Digest, RegistryError> {
        let digest = Sha256Digest::of(raw);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        self.put_manifest(raw, media_type, &name).await?;
        Ok(digest)
    }

    pub(crate) async fn put_manifest(
        &self,
        raw: &[u8],
        media_type: &str,
        name: &str,
    ) -> Result<Answer, RegistryError> {
        let digest = Sha256Digest::of(raw);
        let operation = format!("write manifest `{name}`");
        let mut ask = self.channel.ask(Method::PUT, &["manifests", name], operation);
        ask.action = Action::Push;
        let media_type = HeaderValue::try_from(media_type).expect("media types make headers");
        ask.headers.insert(CONTENT_TYPE, media_type);
        ask.payload = Payload::Bytes(Bytes::copy_from_slice(raw));
        let mut attempts = self.channel.patience().attempts();
        loop {
            let error = match self.channel.send(&ask).await {
                Ok(answer) => match answer.header(CONTENT_DIGEST).and_then(|stated| stated.parse().ok()) {
                    Some(found) if found != digest => {
                        let exchange = answer.exchange().clone();
                        RegistryError::Digest { exchange, expected: digest, found }
                    }
                    _ => return Ok(answer),
                },
                Err(error) => error,
            };
            attempts.pause_or_fail(error).await?;
        }
    }

    /// Uploads one blob, from its first byte each time.
    async fn upload<'a>(
        &self,
        digest: &Sha256Digest,
        payload: impl Fn() -> Payload<'a>,
    ) -> Result<(), RegistryError> {
        let mut attempts = self.channel.patience().attempts();
        loop {
            match self.upload_once(digest, payload()).await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }

    async fn upload_once(&self, digest: &Sha256Digest, payload: Payload<'_>) -> Result<(), RegistryError> {
        let operation = format!("start the upload of blob `{digest}`");
        let mut ask = self.channel.ask(Method::POST, &["blobs", "uploads", ""], operation);
        ask.action = Action::Push;
        let answer = self.channel.send(&ask).await?;
        // The location may be elsewhere, and may have a query of its own that has to stay as it is.
        if answer.status() != StatusCode::ACCEPTED {
            return Err(answer.problem(format!("unexpected status {}", answer.status().as_u16())));
        }
        let mut url = answer.location()?;
        answer.settle().await;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());

        ask.method = Method::PUT;
        ask.url = url;
        ask.operation = format!("upload blob `{digest}`");
        ask.headers.insert(CONTENT_TYPE, BLOB_TYPE);
        let ask = Ask { payload, ..ask };
        self.channel.send(&ask).await?.settle().await;
        Ok(())
    }
}
