//! One repository: its manifests and small blobs.
//!
//! Owns: opening a repository and checked reads of what fits into memory. Does not own: large blobs (`blob`), writing
//! (`push`), referrers.

use std::sync::Arc;

use modelpack::{digest::Sha256Digest, manifest::MANIFEST_BYTES_MAX, reference::RegistryReference};
use reqwest::{
    Method,
    header::{ACCEPT, HeaderValue},
};

use crate::{
    access::Access,
    answer::Answer,
    channel::Channel,
    error::RegistryError,
    mirrors::{MirrorBytes, Mirrors, Name},
    patience::Patience,
};

/// What a registry may answer to a question for a manifest. The other kinds are named so that an index or a Docker
/// image is recognised for what it is, instead of not being found.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json";

/// The header by which registries name what they send or took.
pub(crate) const CONTENT_DIGEST: &str = "docker-content-digest";

/// One repository of one registry. Cloning is cheap, and clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) channel: Arc<Channel>,
    pub(crate) mirrors: Mirrors,
}

impl Repository {
    /// Prepares to talk to the repository that `reference` names. Nothing is sent.
    pub fn open(reference: &RegistryReference, mut access: Access) -> Result<Self, RegistryError> {
        let mirrors = Mirrors::new(std::mem::take(&mut access.mirrors))?;
        let channel = Channel::new(&reference.registry, &reference.repository, access)?;
        Ok(Self { channel: Arc::new(channel), mirrors })
    }

    /// The same repository with other limits in time.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { channel: Arc::new(self.channel.with_patience(patience)), ..self }
    }

    /// What came from mirrors so far.
    pub fn mirror_bytes(&self) -> Vec<MirrorBytes> {
        self.mirrors.bytes()
    }

    /// Something that was read is wrong, and nobody knows what: no mirror that served anything is asked again.
    pub fn distrust_mirrors(&self) {
        self.mirrors.distrust_all();
    }

    /// The raw manifest that `digest`, or else `tag`, names. With a digest the bytes are checked against it.
    ///
    /// # Panics
    /// If there is neither: no reference is without both.
    pub async fn resolve(
        &self,
        tag: Option<&str>,
        digest: Option<&Sha256Digest>,
    ) -> Result<Vec<u8>, RegistryError> {
        match (digest, tag) {
            (Some(digest), _) => self.manifest(digest).await,
            (None, Some(tag)) => self.tagged_anywhere(tag).await,
            (None, None) => panic!("a reference has a tag or a digest"),
        }
    }

    /// The digest of the manifest that `digest`, or else `tag`, names now, if the registry says it without sending the
    /// manifest. Asked once: whoever cannot have it this way reads the manifest. That it answers says that whoever asks
    /// may read it.
    pub async fn stated_digest(
        &self,
        tag: Option<&str>,
        digest: Option<&Sha256Digest>,
    ) -> Result<Option<Sha256Digest>, RegistryError> {
        let name = digest.map(ToString::to_string).or_else(|| tag.map(ToOwned::to_owned)).unwrap_or_default();
        let asked = if digest.is_some() { Name::Digest(&name) } else { Name::Tag(&name) };
        let mut found = None;
        for site in self.mirrors.asked(asked) {
            found = site.answer(asked, Box::pin(stated(&site.channel, &name))).await;
            if found.is_some() {
                break;
            }
        }
        let stated = match found {
            Some(stated) => stated,
            None => stated(&self.channel, &name).await?,
        };
        Ok(stated.filter(|stated| digest.is_none_or(|digest| digest == stated)))
    }

    /// The raw manifest with this digest.
    pub async fn manifest(&self, digest: &Sha256Digest) -> Result<Vec<u8>, RegistryError> {
        let name = digest.to_string();
        for site in self.mirrors.asked(Name::Digest(&name)) {
            let answer = Box::pin(manifest_once(&site.channel, &name, Some(digest)));
            if let Some(raw) = site.answer(Name::Digest(&name), answer).await {
                return Ok(raw);
            }
        }
        let mut attempts = self.channel.patience().attempts();
        loop {
            match manifest_once(&self.channel, &name, Some(digest)).await {
                Ok(raw) => return Ok(raw),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }

    /// The raw manifest under this tag, now, where a mirror or the registry has it.
    async fn tagged_anywhere(&self, tag: &str) -> Result<Vec<u8>, RegistryError> {
        for site in self.mirrors.asked(Name::Tag(tag)) {
            let answer = Box::pin(manifest_once(&site.channel, tag, None));
            if let Some(raw) = site.answer(Name::Tag(tag), answer).await {
                return Ok(raw);
            }
        }
        self.tagged(tag).await
    }

    /// The raw manifest under this tag, now, at the registry itself.
    pub(crate) async fn tagged(&self, tag: &str) -> Result<Vec<u8>, RegistryError> {
        let mut attempts = self.channel.patience().attempts();
        loop {
            match manifest_once(&self.channel, tag, None).await {
                Ok(raw) => return Ok(raw),
                Err(error) => attempts.pause_or_fail(error).await?,
            }
        }
    }

    /// A blob of at most `bytes_max` bytes, such as a config or a piece tree, checked against its digest.
    pub async fn small_blob(&self, digest: &Sha256Digest, bytes_max: u64) -> Result<Vec<u8>, RegistryError> {
        let name = digest.to_string();
        for site in self.mirrors.asked(Name::Digest(&name)) {
            let answer = Box::pin(small_once(&site.channel, digest, bytes_max));
            if let Some(raw) = site.answer(Name::Digest(&name), answer).await {
                return Ok(raw);
            }
        }
        let mut attempts = self.channel.patience().attempts();
        loop {
            match small_once(&self.channel, digest, bytes_max).await {
                Ok(raw) => return Ok(raw),
                Err(error) => {
                    self.channel.forget_location(digest);
                    attempts.pause_or_fail(error).await?;
                }
            }
        }
    }
}

async fn stated(channel: &Channel, name: &str) -> Result<Option<Sha256Digest>, RegistryError> {
    let mut ask = channel.ask(Method::HEAD, &["manifests", name], format!("look for manifest `{name}`"));
    ask.headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
    let answer = channel.send(&ask).await?;
    Ok(answer.header(CONTENT_DIGEST).and_then(|stated| stated.parse().ok()))
}

async fn manifest_once(
    channel: &Channel,
    name: &str,
    digest: Option<&Sha256Digest>,
) -> Result<Vec<u8>, RegistryError> {
    let mut ask = channel.ask(Method::GET, &["manifests", name], format!("read manifest `{name}`"));
    ask.headers.insert(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES));
    let answer = channel.send(&ask).await?;
    // A tag leaves the registry's own word as the only check on damage on the way.
    let stated = answer.header(CONTENT_DIGEST).and_then(|stated| stated.parse().ok());
    let expected = digest.copied().or(stated);
    checked(answer, expected, MANIFEST_BYTES_MAX).await
}

async fn small_once(
    channel: &Channel,
    digest: &Sha256Digest,
    bytes_max: u64,
) -> Result<Vec<u8>, RegistryError> {
    let ask = channel.ask(Method::GET, &["blobs", &digest.to_string()], format!("read blob `{digest}`"));
    checked(channel.send_for_blob(ask, digest).await?, Some(*digest), bytes_max).await
}

/// The whole body of `answer`, if it has the digest `expected`.
async fn checked(
    answer: Answer,
    expected: Option<Sha256Digest>,
    bytes_max: u64,
) -> Result<Vec<u8>, RegistryError> {
    let exchange = answer.exchange().clone();
    let raw = answer.bytes(bytes_max).await?;
    let found = Sha256Digest::of(&raw);
    match expected {
        Some(expected) if expected != found => Err(RegistryError::Digest { exchange, expected, found }),
        _ => Ok(raw),
    }
}
