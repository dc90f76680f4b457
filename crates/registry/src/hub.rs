//! Models on a Hugging Face hub.
//!
//! Source: the hub's API as `huggingface_hub` 2.4 uses it. Owns: one model's questions to the hub and what its refusals
//! mean. Does not own: HTTP (`channel`), the conventions of its users (`settings`), the cache (`cache`), or what a model
//! is as an artifact (`snapshot`).
//!
//! A file in the hub's Xet store is sent as plain bytes to whoever, like this client, does not say that it speaks Xet.

mod cache;
mod failure;
mod settings;
mod snapshot;

use std::{collections::BTreeSet, ops::Range};

use modelpack::{
    digest::Sha256Digest,
    hub::{Commit, HubError, HubFile, Listing, parse_commit, parse_page},
    manifest::LAYERS_MAX,
    reference::HubReference,
};
use reqwest::{
    Method,
    header::{HeaderValue, LINK, RANGE},
};

pub use self::{
    cache::CachedModel,
    failure::{HubFailure, Problem},
    settings::HubAccess,
    snapshot::{FileBytes, Snapshot, Told},
};
use crate::{
    answer::Answer,
    blob::BlobStream,
    channel::{Ask, Channel},
    error::RegistryError,
    referrers::next_link,
};

/// A page has up to a thousand entries of some hundred bytes.
const PAGE_BYTES_MAX: u64 = 8 << 20;

/// Pages of a listing: more than the files of an artifact need, and as many again for directories.
const PAGES_MAX: usize = 64;

/// What the hub says of a model.
const MODEL_BYTES_MAX: u64 = 16 << 20;

/// One model on a hub.
#[derive(Debug)]
pub(crate) struct Hub {
    channel: Channel,
    at: HubReference,
    has_token: bool,
}

impl Hub {
    /// Prepares to ask for a model. Nothing is sent.
    pub(crate) fn open(
        at: &HubReference,
        access: &HubAccess,
        ca_pem: Option<Vec<u8>>,
    ) -> Result<Self, RegistryError> {
        let channel = Channel::to_hub(&access.endpoint, access.token.as_deref(), ca_pem);
        let channel = channel.ok_or_else(|| HubFailure::Endpoint(access.endpoint.clone()))??;
        Ok(Self { channel, at: at.clone(), has_token: access.token.is_some() })
    }

    /// The same model over the same connections, for somebody else.
    pub(crate) fn in_name_of(&self, token: Option<&str>) -> Result<Self, RegistryError> {
        let channel = self.channel.with_token(token);
        let channel = channel.ok_or_else(|| HubFailure::Endpoint(self.channel.base().to_string()))?;
        Ok(Self { channel, at: self.at.clone(), has_token: token.is_some() })
    }

    pub(crate) fn with_patience(self, patience: crate::Patience) -> Self {
        Self { channel: self.channel.with_patience(patience), ..self }
    }

    pub(crate) const fn patience(&self) -> crate::Patience {
        self.channel.patience()
    }

    /// The host as errors name it.
    pub(crate) fn host(&self) -> String {
        crate::address::host_of(self.channel.base())
    }

    /// Which commit the revision is now.
    pub(crate) async fn commit(&self) -> Result<Commit, RegistryError> {
        let revision = self.at.revision();
        let path = ["api", "models", &self.at.owner, &self.at.name, "revision", revision];
        let ask = self.channel.ask(Method::GET, &path, format!("find `{}`", self.at));
        let (_, commit) = self.small(&ask, MODEL_BYTES_MAX, parse_commit).await?;
        Ok(commit)
    }

    /// All files of a commit.
    pub(crate) async fn listing(&self, commit: Commit) -> Result<Listing, RegistryError> {
        let path = ["api", "models", &self.at.owner, &self.at.name, "tree", &commit.to_string()];
        let mut ask = self.channel.ask(Method::GET, &path, format!("list the files of `{}`", self.at));
        ask.url.set_query(Some("recursive=true&expand=false"));
        let (mut files, mut seen) = (Vec::new(), BTreeSet::new());
        let failed = |source| RegistryError::from(HubFailure::Listing { model: self.at.model(), source });
        loop {
            let (next, page) = self.small(&ask, PAGE_BYTES_MAX, parse_page).await?;
            files.extend(page);
            seen.insert(ask.url.clone());
            if files.len() > LAYERS_MAX || seen.len() > PAGES_MAX {
                return Err(failed(HubError::TooMany));
            }
            match next {
                // A page that leads back to one that was read would never end.
                Some(next) if !seen.contains(&next) => ask.url = next,
                _ => break,
            }
        }
        Listing::new(files).map_err(failed)
    }

    /// An answer that fits into memory, and where the next page of it is.
    async fn small<T>(
        &self,
        ask: &Ask<'_>,
        bytes_max: u64,
        parse: impl Fn(&[u8]) -> Result<T, HubError>,
    ) -> Result<(Option<reqwest::Url>, T), RegistryError> {
        let mut attempts = self.channel.patience().attempts();
        loop {
            let read = async {
                let answer = self.channel.send(ask).await?;
                let next = match answer.header(LINK).and_then(next_link) {
                    Some(next) => Some(answer.join(next)?),
                    None => None,
                };
                Ok::<_, RegistryError>((next, answer.bytes(bytes_max).await?))
            };
            match read.await {
                Ok((next, raw)) => {
                    let parsed = parse(&raw)
                        .map_err(|source| HubFailure::Listing { model: self.at.model(), source })?;
                    return Ok((next, parsed));
                }
                Err(error) => attempts.pause_or_fail(error).await.map_err(|error| self.explained(error))?,
            }
        }
    }

    /// A file that is small enough to be read as a whole, checked.
    pub(crate) async fn whole(&self, commit: Commit, file: &HubFile) -> Result<Vec<u8>, RegistryError> {
        let mut attempts = self.channel.patience().attempts();
        loop {
            let read = async {
                let answer = self.channel.send(&self.ask_for(commit, file)).await?;
                let raw = match answer.bytes(file.size).await {
                    Err(RegistryError::TooLarge { .. }) => return Err(self.wrong_bytes(file).into()),
                    raw => raw?,
                };
                if file.is_made_of(&raw) { Ok(raw) } else { Err(RegistryError::from(self.wrong_bytes(file))) }
            };
            match read.await {
                Ok(raw) => return Ok(raw),
                Err(error) => attempts.pause_or_fail(error).await.map_err(|error| self.explained(error))?,
            }
        }
    }

    /// Begins to read `range` of a file whose digest is known, as [`crate::Repository::read`] does.
    pub(crate) async fn read(
        &self,
        (commit, file, digest): (Commit, &HubFile, &Sha256Digest),
        range: Range<u64>,
    ) -> Result<BlobStream, RegistryError> {
        if range.is_empty() {
            return Ok(BlobStream::empty(range.start));
        }
        let mut attempts = self.channel.patience().attempts();
        loop {
            let read = self.read_once((commit, file, digest), &range).await;
            match read {
                Ok(stream) => return Ok(stream),
                Err(error) => attempts.pause_or_fail(error).await.map_err(|error| self.explained(error))?,
            }
        }
    }

    async fn read_once(
        &self,
        (commit, file, digest): (Commit, &HubFile, &Sha256Digest),
        range: &Range<u64>,
    ) -> Result<BlobStream, RegistryError> {
        let mut ask = self.ask_for(commit, file);
        let header = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end - 1));
        ask.headers.insert(RANGE, header.expect("numbers and signs make a header"));
        let answer = self.channel.send_for_blob(ask, digest).await?;
        let stream =
            self.linked_rightly(&answer, file).and_then(|()| BlobStream::check(answer, file.size, range));
        if stream.is_err() {
            self.channel.forget_location(digest);
        }
        stream
    }

    fn ask_for(&self, commit: Commit, file: &HubFile) -> Ask<'static> {
        let commit = commit.to_string();
        let mut path = vec![self.at.owner.as_str(), &self.at.name, "resolve", &commit];
        path.extend(file.path.split('/'));
        self.channel.ask(Method::GET, &path, format!("read `{}` of `{}`", file.path, self.at.model()))
    }

    /// The hub says of what it leads to elsewhere which bytes those are.
    fn linked_rightly(&self, answer: &Answer, file: &HubFile) -> Result<(), RegistryError> {
        let linked = &answer.linked;
        let is_other = linked.etag.as_ref().is_some_and(|etag| *etag != file.etag());
        if is_other || linked.size.is_some_and(|size| size != file.size) {
            return Err(self.wrong_bytes(file).into());
        }
        Ok(())
    }

    fn wrong_bytes(&self, file: &HubFile) -> HubFailure {
        HubFailure::WrongBytes { path: file.path.clone(), model: self.at.model(), expected: file.etag() }
    }

    /// What came from where the hub had led before was wrong: it is asked again.
    pub(crate) fn forget_location(&self, digest: &Sha256Digest) {
        self.channel.forget_location(digest);
    }

    fn explained(&self, error: RegistryError) -> RegistryError {
        let page = format!("{}{}", self.channel.base(), self.at.model());
        failure::explained(error, &self.at, (page, self.has_token))
    }
}
