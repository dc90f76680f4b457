//! Uploads of blobs and manifests.
//!
//! Owns: the upload protocol, as one POST and one streaming PUT, which every registry takes (chunks are refused, limited
//! or lack a `Location` in some). Where the PUT of a large blob breaks, the registry is asked once how far it came, and
//! gets the rest; one that does not say gets the blob anew. Does not own: what is uploaded and in which order.

use std::{fs::File, sync::Arc};

use bytes::Bytes;
use modelpack::{
    digest::Sha256Digest,
    piece_tree::{PieceTree, Provisional},
};
use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, RANGE},
};

use crate::{
    answer::Answer,
    auth::Action,
    channel::{Ask, Payload},
    error::{Class, RegistryError},
    hub::Snapshot,
    repository::{CONTENT_DIGEST, Repository},
    upload::{Surveyed, Upload},
};

/// The type of every blob upload: the manifest's descriptor says what the blob is.
const BLOB_TYPE: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Smaller blobs are sent anew rather than asked about.
const RESUME_BYTES_MIN: u64 = 16 << 20;

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
            self.upload_large(&Upload::new(file, size, *digest), None, progress).await?;
        }
        progress(size);
        Ok(())
    }

    /// Uploads a blob that fits into memory unless the registry has it.
    pub async fn push_bytes(&self, raw: &[u8]) -> Result<Sha256Digest, RegistryError> {
        let digest = Sha256Digest::of(raw);
        if !self.has_blob(&digest, raw.len() as u64).await? {
            self.upload_small(&digest, raw).await?;
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

    /// Uploads one blob that is in memory.
    async fn upload_small(&self, digest: &Sha256Digest, raw: &[u8]) -> Result<(), RegistryError> {
        let bytes = Bytes::copy_from_slice(raw);
        let mut attempts = self.channel.patience().attempts();
        loop {
            let put = async {
                let session = self.begin_upload(digest).await?;
                self.put_blob(&session, digest, Payload::Bytes(bytes.clone())).await
            };
            match put.await {
                Ok(()) => return Ok(()),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }

    /// Uploads one blob, into the session `open` if there is one.
    pub(crate) async fn upload_large(
        &self,
        upload: &Upload,
        mut open: Option<Url>,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), RegistryError> {
        let digest = upload.digest();
        let mut attempts = self.channel.patience().attempts();
        let mut offset = 0;
        loop {
            let session = match open.take() {
                Some(session) => Ok(session),
                None => self.begin_upload(digest).await,
            };
            let error = match session {
                Ok(session) => {
                    let payload = Payload::Upload(upload, offset, progress);
                    match self.put_blob(&session, digest, payload).await {
                        Ok(()) => return Ok(()),
                        Err(error) => {
                            // What was resumed once and broke again is sent anew: the registry may be what is wrong.
                            let is_fresh = std::mem::take(&mut offset) == 0;
                            let may_go_on = is_fresh && matches!(error, RegistryError::Connection { .. });
                            open = Some(session).filter(|_| may_go_on);
                            error
                        }
                    }
                }
                Err(error) => error,
            };
            attempts.pause_or_fail(error).await?;
            if let Some(session) = open.take()
                && let Some((session, taken)) = self.uploaded(session, upload).await
            {
                tracing::debug!(%digest, taken, "an upload that broke goes on");
                (open, offset) = (Some(session), taken);
            }
        }
    }

    /// How much of a broken upload the registry has kept; `None` if it does not say so, or if that is nothing.
    async fn uploaded(&self, session: Url, upload: &Upload) -> Option<(Url, u64)> {
        if upload.size() < RESUME_BYTES_MIN {
            return None;
        }
        let operation = format!("ask how much of blob `{}` is there", upload.digest());
        let mut ask = self.channel.ask(Method::GET, &[], operation);
        (ask.action, ask.url) = (Action::Push, session);
        let answer = self.channel.send(&ask).await.ok()?;
        let last = answer.header(RANGE)?.trim_start_matches("bytes=").strip_prefix("0-")?;
        let taken = last.parse::<u64>().ok()?.checked_add(1)?;
        // `0-0` is what registries say of nothing as well as of one byte.
        (taken > 1 && taken < upload.size()).then_some(())?;
        Some((answer.location().ok()?, taken))
    }

    /// Opens an upload; says where it goes.
    async fn begin_upload(&self, digest: &Sha256Digest) -> Result<Url, RegistryError> {
        let operation = format!("start the upload of blob `{digest}`");
        let mut ask = self.channel.ask(Method::POST, &["blobs", "uploads", ""], operation);
        ask.action = Action::Push;
        let answer = self.channel.send(&ask).await?;
        // The location may be elsewhere, and may have a query of its own that has to stay as it is.
        if answer.status() != StatusCode::ACCEPTED {
            return Err(answer.problem(format!("unexpected status {}", answer.status().as_u16())));
        }
        let url = answer.location()?;
        answer.settle().await;
        Ok(url)
    }

    async fn put_blob(
        &self,
        session: &Url,
        digest: &Sha256Digest,
        payload: Payload<'_>,
    ) -> Result<(), RegistryError> {
        let mut ask = self.channel.ask(Method::PUT, &[], format!("upload blob `{digest}`"));
        ask.action = Action::Push;
        ask.url = session.clone();
        ask.url.query_pairs_mut().append_pair("digest", &digest.to_string());
        ask.headers.insert(CONTENT_TYPE, BLOB_TYPE);
        if let Payload::Upload(upload, offset @ 1.., _) = &payload {
            let range = format!("{offset}-{}", upload.size() - 1);
            ask.headers.insert(CONTENT_RANGE, HeaderValue::try_from(range).expect("digits make a header"));
        }
        let ask = Ask { payload, ..ask };
        self.channel.send(&ask).await?.settle().await;
        Ok(())
    }

    /// Copies a blob from another repository unless it is here: within one registry by name alone where that is allowed,
    /// else byte by byte through this process, which keeps none. `progress` is as for [`Self::push_blob`].
    pub async fn copy_blob(
        &self,
        from: &Self,
        digest: &Sha256Digest,
        size: u64,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Copied, RegistryError> {
        let copied = if self.has_blob(digest, size).await? {
            Copied::WasThere
        } else {
            match self.mount(from, digest).await? {
                Mounted::Yes => Copied::Mounted,
                Mounted::No(open) => {
                    let upload = Upload::between(from.clone(), size, *digest);
                    self.upload_large(&upload, open, progress).await?;
                    Copied::Sent
                }
            }
        };
        progress(size);
        Ok(copied)
    }

    /// Asks the registry to take over a blob from another of its repositories.
    async fn mount(&self, from: &Self, digest: &Sha256Digest) -> Result<Mounted, RegistryError> {
        if !self.channel.shares_registry(&from.channel) {
            return Ok(Mounted::No(None));
        }
        let operation = format!("take over blob `{digest}`");
        let mut ask = self.channel.ask(Method::POST, &["blobs", "uploads", ""], operation);
        ask.action = Action::Push;
        let query = [("mount", digest.to_string()), ("from", from.channel.repository().to_owned())];
        ask.url.query_pairs_mut().extend_pairs(query);
        let mut attempts = self.channel.patience().attempts();
        loop {
            let error = match self.channel.send(&ask).await {
                Ok(answer) if answer.status() == StatusCode::CREATED => {
                    answer.settle().await;
                    return Ok(Mounted::Yes);
                }
                // It does not, but has opened an upload instead.
                Ok(answer) => {
                    let open = answer.location().ok().filter(|_| answer.status() == StatusCode::ACCEPTED);
                    answer.settle().await;
                    return Ok(Mounted::No(open));
                }
                Err(error) => error,
            };
            match error.class() {
                Class::Retry => attempts.pause_or_fail(error).await?,
                // Whoever may not take it over may still be allowed to send it.
                _ => return Ok(Mounted::No(None)),
            }
        }
    }

    /// The same repository, prepared to take over blobs from another of the same registry.
    #[must_use]
    pub fn taking_from(&self, from: &Self) -> Self {
        if !self.channel.shares_registry(&from.channel) {
            return self.clone();
        }
        Self { channel: Arc::new(self.channel.also_reading(from.channel.repository())), ..self.clone() }
    }
}

impl Repository {
    /// Sends a file of a hub's model to this repository, in which it is not yet, and computes its piece tree on the way.
    /// Its bytes are proved before the last of them are sent. `progress` is as for [`Self::push_blob`].
    pub async fn push_from_hub(
        &self,
        from: &Arc<Snapshot>,
        (digest, size): (&Sha256Digest, u64),
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PieceTree<Provisional>, RegistryError> {
        if let Some(file) = from.cached(digest) {
            let upload = Upload::surveyed(Surveyed::File(file), size, *digest);
            match self.upload_large(&upload, None, progress).await {
                Err(error) if error.class() == Class::Integrity => from.distrust(digest),
                Err(error) => return Err(error),
                Ok(()) => return tree_of(&upload, progress).await,
            }
        }
        let upload = Upload::surveyed(Surveyed::Hub(Arc::clone(from)), size, *digest);
        self.upload_large(&upload, None, progress).await?;
        tree_of(&upload, progress).await
    }

    /// Reads a blob that is here, proves it, and computes its piece tree.
    pub async fn survey_blob(
        &self,
        (digest, size): (&Sha256Digest, u64),
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<PieceTree<Provisional>, RegistryError> {
        let upload = Upload::surveyed(Surveyed::Repository(self.clone()), size, *digest);
        tree_of(&upload, progress).await
    }
}

/// The tree of a blob. A registry may say that it has everything before it has read it; the bytes are read again then.
async fn tree_of(
    upload: &Upload,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<PieceTree<Provisional>, RegistryError> {
    if let Some(tree) = upload.tree() {
        return Ok(tree);
    }
    upload.drain(progress).await?;
    Ok(upload.tree().expect("every byte was read"))
}

/// How a blob came into a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It was there before.
    WasThere,
    /// The registry had it in another repository.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// What came of the attempt to take a blob over.
enum Mounted {
    Yes,
    /// Perhaps with an upload that the registry has opened instead.
    No(Option<Url>),
}
