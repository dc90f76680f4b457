//! What the face needs of whoever has the artifacts.
//!
//! Owns: the words that both sides use. Does not own: how they become HTTP (`oci`).

use std::{fmt, io, ops::Range, sync::Arc};

use bytes::Bytes;
use futures_util::{future::BoxFuture, stream::BoxStream};
use modelpack::digest::Sha256Digest;

use crate::route::Named;

/// Who asks, for which registry.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The registry that this face stands in for, as containerd names it (`?ns=HOST`); none for the first that is
    /// configured.
    pub upstream: Option<String>,
    /// What it proves itself with: the value of its `Authorization`.
    pub authorization: Option<String>,
}

impl fmt::Debug for Caller {
    /// Without the proof.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

/// The registries that the face stands in for. Each method is asked by a client and answers what that client may have:
/// whoever implements it sees to that.
pub trait Upstreams: Send + Sync + 'static {
    /// Whether the registry lets the caller in, or what it wants to be proved.
    fn ping<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<(), Refused>>;

    /// A manifest.
    fn manifest<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        named: &'a Named,
    ) -> BoxFuture<'a, Result<Document, Refused>>;

    /// A blob. Nothing is fetched before [`Content::read`].
    fn blob<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        digest: &'a Sha256Digest,
    ) -> BoxFuture<'a, Result<Box<dyn Content>, Refused>>;

    /// One page of a list.
    fn list<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        list: &'a List,
        query: Vec<(String, String)>,
    ) -> BoxFuture<'a, Result<Listed, Refused>>;
}

/// A hub that the face stands in for.
pub trait Hubs: Send + Sync + 'static {
    /// A model at a revision, if whoever has this token may have it; and whether the hub could not be asked, so that it is
    /// what it said earlier.
    fn model<'a>(
        &'a self,
        token: Option<&'a str>,
        id: &'a str,
        revision: &'a str,
    ) -> BoxFuture<'a, Result<(Arc<HubModel>, bool), Refused>>;

    /// A file of a model that was found just now with this token. Nothing is fetched before [`Content::read`].
    fn file(
        &self,
        token: Option<&str>,
        id: &str,
        what: (&HubModel, &HubFile),
    ) -> Result<Box<dyn Content>, Refused>;
}

/// A model at one commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubModel {
    /// 40 hexadecimal digits.
    pub commit: String,
    /// Its files.
    pub files: Vec<HubFile>,
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubFile {
    /// Where it is in the model.
    pub path: String,
    /// Its bytes.
    pub size: u64,
    /// The SHA-256 of them.
    pub digest: Sha256Digest,
    /// Its name in Git: 40 hexadecimal digits.
    pub git: String,
    /// Whether it is kept as a large file, and is known by its SHA-256.
    pub is_large: bool,
}

impl HubFile {
    /// What stands for its bytes in caches of clients.
    pub(crate) fn tag(&self) -> String {
        if self.is_large { self.digest.hex() } else { self.git.clone() }
    }
}

/// A manifest as it is handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Its bytes.
    pub raw: Bytes,
    /// What it says that it is.
    pub media_type: String,
    /// Its digest.
    pub digest: Sha256Digest,
    /// Whether the registry could not be asked, so that this is what it said earlier.
    pub is_stale: bool,
}

/// The bytes of a blob.
pub trait Content: Send {
    /// How many there are.
    fn bytes(&self) -> u64;

    /// Those of `range`, in order, as they are proved. An error ends it.
    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>>;
}

/// What is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List {
    /// The tags of a repository.
    Tags,
    /// The manifests that point at this one.
    Referrers(Sha256Digest),
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// JSON.
    pub raw: Bytes,
    /// The query string that gives the next page, if there is one.
    pub next: Option<String>,
    /// Whether only referrers of the asked type are listed.
    pub is_filtered: bool,
}

/// Why a client does not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The kind.
    pub why: Why,
    /// For people.
    pub message: String,
    /// What the registry wants to be proved: the values of its `WWW-Authenticate`.
    pub challenges: Vec<String>,
}

/// The kinds of refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// The registry wants a proof, or another one.
    Unauthorized,
    /// It does not allow it.
    Denied,
    /// It wants to know who asks, and that one to have agreed to its terms.
    Gated,
    /// It has no such repository, or this face does not stand in for it.
    NoName,
    /// It has no such manifest, or it is none that is read here.
    NoManifest,
    /// It has no such blob, or it is of nothing that is read here.
    NoBlob,
    /// It is asked too often.
    TooMany,
    /// It cannot be asked now, and what it would say is not known.
    Unavailable,
}

impl Refused {
    /// One without challenges.
    pub fn new(why: Why, message: impl Into<String>) -> Self {
        Self { why, message: message.into(), challenges: Vec::new() }
    }
}
