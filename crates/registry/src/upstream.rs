//! A registry as the upstream of a mirror, asked in the name of the mirror's clients.
//!
//! Owns: what only a mirror asks: whether the registry lets somebody in, its lists as they are, the size of a blob. Does
//! not own: the mirror.

use modelpack::{digest::Sha256Digest, manifest::MANIFEST_BYTES_MAX};
use reqwest::{
    Method,
    header::{ACCEPT, CONTENT_LENGTH, HeaderValue, LINK},
};

use crate::{
    access::Credentials,
    error::RegistryError,
    mirrors::Mirrors,
    referrers::{INDEX_TYPE, next_link},
    repository::Repository,
};

/// A list that a registry gives page by page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listing {
    /// The tags of the repository.
    Tags,
    /// The manifests that point at this one.
    Referrers(Sha256Digest),
}

/// One page of a list, as the registry wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// JSON.
    pub raw: Vec<u8>,
    /// The query that gives the next page, if there is one.
    pub next: Option<Vec<(String, String)>>,
}

impl Repository {
    /// Another repository of the same registry, over the same connections, for somebody else.
    pub fn sibling(&self, repository: &str, credentials: Credentials) -> Result<Self, RegistryError> {
        let channel = std::sync::Arc::new(self.channel.sibling(repository, credentials)?);
        // What is asked in somebody's name is asked of nobody else.
        Ok(Self { channel, mirrors: Mirrors::default() })
    }

    /// Whether the registry lets whoever asks in at all, which is asked of no repository. Asked once.
    pub async fn ping(&self) -> Result<(), RegistryError> {
        let mut ask = self.channel.ask(Method::GET, &[], "ask who may read".to_owned());
        ask.url = self.channel.base().join("/v2/").expect("a path makes a URL");
        self.channel.send(&ask).await?.settle().await;
        Ok(())
    }

    /// The page of a list that `query` names. Asked once.
    pub async fn page(&self, listing: &Listing, query: &[(String, String)]) -> Result<Page, RegistryError> {
        let mut ask = match listing {
            Listing::Tags => self.channel.ask(Method::GET, &["tags", "list"], "list the tags".to_owned()),
            Listing::Referrers(subject) => {
                let operation = format!("list the referrers of `{subject}`");
                let mut ask = self.channel.ask(Method::GET, &["referrers", &subject.to_string()], operation);
                ask.headers.insert(ACCEPT, HeaderValue::from_static(INDEX_TYPE));
                ask
            }
        };
        if !query.is_empty() {
            ask.url.query_pairs_mut().extend_pairs(query);
        }
        let answer = self.channel.send(&ask).await?;
        let next = match answer.header(LINK).and_then(next_link) {
            Some(link) => Some(answer.join(link)?.query_pairs().into_owned().collect()),
            None => None,
        };
        Ok(Page { raw: answer.bytes(MANIFEST_BYTES_MAX).await?, next })
    }

    /// How long the registry says that a blob is. Asked once.
    pub async fn blob_bytes(&self, digest: &Sha256Digest) -> Result<u64, RegistryError> {
        let operation = format!("look for blob `{digest}`");
        let ask = self.channel.ask(Method::HEAD, &["blobs", &digest.to_string()], operation);
        let answer = self.channel.send(&ask).await?;
        let stated = answer.header(CONTENT_LENGTH).and_then(|stated| stated.parse().ok());
        stated.ok_or_else(|| answer.problem("the answer does not say how long it is"))
    }
}
