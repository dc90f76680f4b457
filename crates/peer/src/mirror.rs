//! Registries that this peer stands in for, so that clients that know nothing of it pull through the fleet.
//!
//! Owns: which manifest a client's name stands for and whether that client may have it, which blobs belong to what, and
//! how what is asked for becomes a transfer. Does not own: HTTP (`face`), the transfers (`transfer`), or who is asked what
//! an artifact is (`lookup`).
//!
//! Whether a client may read a repository is the registry's to say: it is asked with the client's own proof, passed on as
//! it came. What it said holds for [`rights::FRESH`]. The bytes are then read by whoever the fleet's plan says, and are
//! proved before they are handed on.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use face::{
    Caller, Content, Document, Hub, HubFile, HubModel, Hubs, List, Listed, Named, Oci, Refused, Rule,
    Upstreams, Why,
};
use futures_util::future::BoxFuture;
use modelpack::{
    digest::Sha256Digest,
    reference::{Reference, RegistryReference},
};
use registry::{Access, Class, Credentials, RegistryError, Repository};
use tokio::{
    net::TcpListener,
    sync::Semaphore,
    time::{MissedTickBehavior, interval},
};

use crate::{
    clients::Clients,
    error::PeerError,
    fill::blocking,
    lookup::{self, shared_here},
    metrics::{Metrics, Outcome},
    origin::Origin,
    presence::Present,
};

mod lists;
mod models;
mod reading;
mod rights;
mod slots;

use models::Models;
use reading::{Counted, Memory, Part, Stored};
use rights::{Rights, Standing, Who};
use slots::{Learned, Model, Slot, Slots, plain};

/// Blobs that belong to no model are read whole and checked when they are asked for: signatures, lists of piece trees,
/// configs. Larger ones are the registry's own business.
const SMALL_BYTES_MAX: u64 = 4 << 20;

/// Such blobs in memory at once: 64 MiB of them. More wait.
const SMALL_AT_ONCE: usize = 16;

/// How often what nobody uses is looked for.
const TEND_INTERVAL: Duration = Duration::from_secs(5);

/// A registry that a peer stands in for.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// `HOST[:PORT]`, as clients name it.
    pub registry: String,
    /// How it is reached. With its credentials, if it has some, this peer reads what its clients may read.
    pub access: Access,
}

/// What a peer stands in for, and where.
#[derive(Debug)]
pub struct MirrorOptions {
    /// The registries. The first is meant where a client names none.
    pub upstreams: Vec<Upstream>,
    /// Where it is a registry that can only be read.
    pub oci: Option<TcpListener>,
    /// Where it is a hub that can only be read.
    pub hub: Option<HubFace>,
}

/// A hub that can only be read.
#[derive(Debug)]
pub struct HubFace {
    /// Where.
    pub listener: TcpListener,
    /// Which artifacts of a registry its models are.
    pub rule: Option<Rule>,
    /// The hub that has those that are none, asked with the clients' own tokens.
    pub upstream: Option<Access>,
}

/// The same when the registries can be asked.
pub(crate) struct Opened {
    upstreams: Vec<(Upstream, Repository)>,
    oci: Option<TcpListener>,
    hub: Option<HubFace>,
}

impl MirrorOptions {
    /// Prepares to talk to the registries. Nothing is sent.
    pub(crate) fn open(self) -> Result<Opened, PeerError> {
        let open = |upstream: Upstream| {
            let at = RegistryReference {
                registry: upstream.registry.clone(),
                // Of no repository in particular: each request names its own.
                repository: "mirror".to_owned(),
                tag: None,
                digest: None,
            };
            let opened = Repository::open(&at, upstream.access.clone());
            let repository = opened.map_err(|source| PeerError::registry(&upstream.registry, source))?;
            Ok((upstream, repository))
        };
        let Self { upstreams, oci, hub } = self;
        let upstreams = upstreams.into_iter().map(open).collect::<Result<_, PeerError>>()?;
        Ok(Opened { upstreams, oci, hub })
    }
}

impl Opened {
    /// Serves until the process leaves.
    pub(crate) fn begin(self, clients: &Arc<Clients>, present: &mut Present) {
        let Self { upstreams, oci, hub } = self;
        let (hub, behind) = hub.map(|hub| ((hub.listener, hub.rule), hub.upstream)).unzip();
        let mirror = Arc::new(Mirror {
            models: behind.flatten().map(Models::new),
            clients: Arc::clone(clients),
            upstreams,
            rights: Rights::default(),
            slots: Slots::default(),
            small: Arc::new(Semaphore::new(SMALL_AT_ONCE)),
        });
        let leaves = present.children().told();
        present.spawn(Arc::clone(&mirror).tend(leaves));
        if let Some(listener) = oci {
            let leaves = present.children().told();
            present.spawn(face::serve(listener, Arc::new(Oci::new(Arc::clone(&mirror))), leaves));
        }
        if let Some((listener, rule)) = hub {
            let leaves = present.children().told();
            present.spawn(face::serve(listener, Arc::new(Hub::new(mirror, rule)), leaves));
        }
    }
}

/// Stands in for registries.
pub(crate) struct Mirror {
    clients: Arc<Clients>,
    upstreams: Vec<(Upstream, Repository)>,
    rights: Rights,
    slots: Slots,
    small: Arc<Semaphore>,
    /// Of the hub behind, if there is one.
    models: Option<Models>,
}

/// A repository of a registry, and who asks for something of it.
struct At<'a> {
    upstream: &'a Upstream,
    key: (usize, String),
    who: Who,
    credentials: Credentials,
    /// The registry, asked with those.
    repository: Repository,
}

impl At<'_> {
    /// `REGISTRY/REPOSITORY` and what it is asked for.
    fn reference(&self, tag: Option<&str>, digest: Option<Sha256Digest>) -> Reference {
        Reference::Registry(RegistryReference {
            registry: self.upstream.registry.clone(),
            repository: self.key.1.clone(),
            tag: tag.map(ToOwned::to_owned),
            digest,
        })
    }
}

impl Mirror {
    /// Lets go of what nobody reads any more, until `stopped`.
    pub(crate) async fn tend(self: Arc<Self>, stopped: impl Future<Output = ()> + Send) {
        let mut ticks = interval(TEND_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(stopped);
        loop {
            tokio::select! {
                () = &mut stopped => return,
                _ = ticks.tick() => {
                    self.slots.rest();
                    if let Some(models) = &self.models {
                        models.rest();
                    }
                }
            }
        }
    }

    /// The repository that a caller means. Only registries that were configured are asked: a client must not make this
    /// process talk to whatever it names.
    fn at(&self, caller: &Caller, repository: &str) -> Result<At<'_>, Refused> {
        let index = match &caller.upstream {
            Some(wanted) => self.upstreams.iter().position(|(upstream, _)| upstream.registry == *wanted),
            None => Some(0),
        };
        let found = index.and_then(|index| Some((index, self.upstreams.get(index)?)));
        let Some((index, (upstream, base))) = found else {
            let wanted = caller.upstream.as_deref().unwrap_or_default();
            let message = format!("this mirror does not stand in for `{wanted}`");
            return Err(Refused::new(Why::NoName, message));
        };
        let credentials = Credentials::Forwarded { authorization: caller.authorization.clone() };
        let asked = base.sibling(repository, credentials.clone());
        let asked = asked.map_err(|error| refused(&error, Why::NoName))?;
        let who = Who::of(caller.authorization.as_deref());
        let key = (index, repository.to_owned());
        Ok(At { upstream, key, who, credentials, repository: asked })
    }

    /// The digest that a name stands for, if the caller may read it; and whether the registry could not be asked, so that
    /// it is what it said earlier.
    async fn resolve(&self, at: &At<'_>, named: &Named) -> Result<(Sha256Digest, bool), Refused> {
        let standing = self.rights.standing(&at.key, &at.who);
        let known = match named {
            Named::Digest(digest) => self.slots.find(&at.key, digest).map(|_| *digest),
            Named::Tag(tag) => self.rights.resolved(&at.key, tag, standing),
        };
        if let Some(digest) = known.filter(|_| standing == Standing::Fresh) {
            return Ok((digest, false));
        }
        let stale = match named {
            Named::Digest(_) => known,
            Named::Tag(tag) => self.rights.last_resolved(&at.key, tag),
        };
        let stale = stale.filter(|_| standing != Standing::Unknown);
        // Nobody waits again for one that did not answer just now.
        if let Some(digest) = stale.filter(|_| self.rights.is_gone(at.key.0)) {
            return Ok((digest, true));
        }
        let (tag, digest) = match named {
            Named::Tag(tag) => (Some(tag.as_str()), None),
            Named::Digest(digest) => (None, Some(digest)),
        };
        let asked = match at.repository.stated_digest(tag, digest).await {
            Ok(Some(digest)) => Ok(digest),
            // It does not say, so that the manifest has to.
            Ok(None) => at.repository.resolve(tag, digest).await.map(|raw| Sha256Digest::of(&raw)),
            Err(error) => Err(error),
        };
        match asked {
            Ok(digest) => {
                self.rights.accept(&at.key, at.who);
                if let Named::Tag(tag) = named {
                    self.rights.resolve(&at.key, tag, digest);
                }
                Ok((digest, false))
            }
            Err(error) => {
                let refused = refused(&error, Why::NoManifest);
                self.withdraw(at, &refused);
                if refused.why != Why::Unavailable {
                    return Err(refused);
                }
                self.rights.gone(at.key.0);
                stale.map(|digest| (digest, true)).ok_or(refused)
            }
        }
    }

    /// What the registry refuses to somebody, it does not hand out through this peer from now on.
    fn withdraw(&self, at: &At<'_>, refused: &Refused) {
        if matches!(refused.why, Why::Unauthorized | Why::Denied) {
            self.rights.forget(&at.key, &at.who);
        }
    }

    /// What that manifest is, learned once for all callers.
    async fn open(&self, at: &At<'_>, digest: &Sha256Digest) -> Result<Arc<Slot>, Refused> {
        let slot = self.slots.slot(&at.key, digest);
        slot.learned.get_or_try_init(|| self.learn(at, digest)).await?;
        if let Some(Learned::Model(model)) = slot.learned.get() {
            // What an index lists is asked for next.
            self.slots.note(&at.key, model);
        }
        Ok(slot)
    }

    async fn learn(&self, at: &At<'_>, digest: &Sha256Digest) -> Result<Learned, Refused> {
        let reference = at.reference(None, Some(*digest));
        let node = self.clients.node();
        if let Some(artifact) = shared_here(node, &reference.to_string(), digest) {
            return Ok(Learned::Model(Model::of(artifact, None)));
        }
        let own = lookup::open(node, &reference, at.upstream.access.clone()).await;
        let error = match own {
            Ok((origin, artifact)) => return Ok(Learned::Model(Model::of(artifact, Some(origin)))),
            Err(error) => error,
        };
        // What is not for everybody is read with the proof of whoever asks.
        let error = if is_refusal(&error) {
            let access = Access { credentials: at.credentials.clone(), ..at.upstream.access.clone() };
            match lookup::open(node, &reference, access).await {
                Ok((_, artifact)) => return Ok(Learned::Model(Model::of(artifact, None))),
                Err(error) => error,
            }
        } else {
            error
        };
        match error {
            PeerError::Manifest { .. } | PeerError::Config { .. } => {
                let raw = at.repository.manifest(digest).await;
                Ok(plain(raw.map_err(|error| refused(&error, Why::NoManifest))?, SMALL_BYTES_MAX))
            }
            PeerError::Registry { source, .. } => Err(refused(&source, Why::NoManifest)),
            other => Err(unavailable(&other)),
        }
    }

    async fn document(&self, caller: &Caller, repository: &str, named: &Named) -> Result<Document, Refused> {
        let at = self.at(caller, repository)?;
        let (digest, is_stale) = self.resolve(&at, named).await?;
        let slot = self.open(&at, &digest).await?;
        if let Named::Tag(tag) = named {
            slot.named(at.reference(Some(tag), None).to_string());
        }
        match slot.learned.get() {
            Some(Learned::Model(model)) => {
                let (raw, media_type) = model.document(&digest);
                Ok(Document { raw, media_type, digest, is_stale })
            }
            Some(Learned::Plain { raw, media_type }) => {
                Ok(Document { raw: raw.clone(), media_type: media_type.clone(), digest, is_stale })
            }
            Some(Learned::Foreign) | None => {
                let message = "this mirror hands out models only: pull it from the registry itself";
                Err(Refused::new(Why::NoManifest, message))
            }
        }
    }

    async fn content(
        &self,
        caller: &Caller,
        repository: &str,
        digest: &Sha256Digest,
    ) -> Result<Box<dyn Content>, Refused> {
        let at = self.at(caller, repository)?;
        let mut refusal = None;
        for (manifest, slot) in self.slots.listing(&at.key, digest) {
            match self.resolve(&at, &Named::Digest(manifest)).await {
                Ok(_) => return Ok(self.listed(&at, &slot, digest)),
                // It may have been deleted, and another that lists the same blob may be there.
                Err(refused) => refusal = Some(refused),
            }
        }
        match refusal {
            Some(refused) => Err(refused),
            None => self.unlisted(&at, digest).await,
        }
    }

    /// A blob that a model lists.
    fn listed(&self, at: &At<'_>, slot: &Arc<Slot>, digest: &Sha256Digest) -> Box<dyn Content> {
        let Some(Learned::Model(model)) = slot.learned.get() else {
            unreachable!("only a model lists blobs")
        };
        let Some(blob) = model.blobs.get(digest).copied() else {
            let bytes = Bytes::from(model.artifact.config.clone());
            return Box::new(Memory { bytes, permit: None });
        };
        let origin = model.origin.clone().unwrap_or_else(|| Origin::Registry(at.repository.clone()));
        let (clients, artifact) = (Arc::clone(&self.clients), Arc::clone(&model.artifact));
        Box::new(Part::new(clients, Arc::clone(slot), (artifact, origin), blob))
    }

    /// A blob of which no manifest that lists it was asked for here. The registry says whether the caller may have it.
    async fn unlisted(&self, at: &At<'_>, digest: &Sha256Digest) -> Result<Box<dyn Content>, Refused> {
        let failed = |error: RegistryError| {
            let refused = refused(&error, Why::NoBlob);
            self.withdraw(at, &refused);
            refused
        };
        let size = at.repository.blob_bytes(digest).await.map_err(failed)?;
        let identity = store::BlobIdentity { digest: *digest, size, root: None };
        let store = Arc::clone(self.clients.store());
        if let Some(file) = blocking(move || store.blob_file(&identity)).await.map_err(|error| {
            let error = PeerError::from(error);
            unavailable(&error)
        })? {
            return Ok(Box::new(Stored::new(file, size)));
        }
        if size > SMALL_BYTES_MAX {
            let message =
                "no manifest of a model that lists this blob was asked for here: ask for that first";
            return Err(Refused::new(Why::NoBlob, message));
        }
        let permit = Arc::clone(&self.small).acquire_owned().await.ok();
        let raw = at.repository.small_blob(digest, size).await.map_err(failed)?;
        Ok(Box::new(Memory { bytes: Bytes::from(raw), permit }))
    }
}

impl Upstreams for Mirror {
    fn ping<'a>(&'a self, caller: &'a Caller) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async move {
            let at = self.at(caller, "mirror")?;
            match at.repository.ping().await.map_err(|error| refused(&error, Why::NoName)) {
                // What is here can be had all the same.
                Err(refused) if refused.why == Why::Unavailable => Ok(()),
                answer => answer,
            }
        })
    }

    fn manifest<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        named: &'a Named,
    ) -> BoxFuture<'a, Result<Document, Refused>> {
        Box::pin(async move { self.counted(self.document(caller, repository, named).await) })
    }

    fn blob<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        digest: &'a Sha256Digest,
    ) -> BoxFuture<'a, Result<Box<dyn Content>, Refused>> {
        Box::pin(async move {
            let content = self.counted(self.content(caller, repository, digest).await)?;
            Ok(Box::new(Counted { content, metrics: Arc::clone(self.metrics()) }) as Box<dyn Content>)
        })
    }

    fn list<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        list: &'a List,
        query: Vec<(String, String)>,
    ) -> BoxFuture<'a, Result<Listed, Refused>> {
        Box::pin(async move {
            let at = self.at(caller, repository)?;
            let listed = match list {
                List::Tags => lists::tags(&at.repository, &query).await,
                List::Referrers(subject) => lists::referrers(&at.repository, subject, &query).await,
            };
            self.counted(listed.map_err(|error| {
                let refused = refused(&error, Why::NoName);
                self.withdraw(&at, &refused);
                refused
            }))
        })
    }
}

impl Mirror {
    fn metrics(&self) -> &Arc<Metrics> {
        self.clients.node().metrics()
    }

    /// What became of a question, for whoever watches this peer.
    fn counted<T>(&self, result: Result<T, Refused>) -> Result<T, Refused> {
        self.metrics().asked(match &result {
            Ok(_) => Outcome::Answered,
            Err(Refused { why: Why::Unavailable | Why::TooMany, .. }) => Outcome::Unanswered,
            Err(_) => Outcome::Refused,
        });
        result
    }
}

impl Hubs for Mirror {
    fn model<'a>(
        &'a self,
        token: Option<&'a str>,
        id: &'a str,
        revision: &'a str,
    ) -> BoxFuture<'a, Result<(Arc<HubModel>, bool), Refused>> {
        Box::pin(async move {
            let Some(models) = &self.models else {
                return Err(Refused::new(Why::NoName, "no artifact is this model at this revision"));
            };
            let found = models.find((self.clients.node(), &self.rights), token, (id, revision)).await;
            self.counted(found)
        })
    }

    fn file(
        &self,
        token: Option<&str>,
        id: &str,
        (model, file): (&HubModel, &HubFile),
    ) -> Result<Box<dyn Content>, Refused> {
        let gone = || Refused::new(Why::Unavailable, "too many models at once: ask again");
        let models = self.models.as_ref().ok_or_else(gone)?;
        let content = models.file(&self.clients, token, (id, model, file)).ok_or_else(gone)?;
        Ok(Box::new(Counted { content, metrics: Arc::clone(self.metrics()) }))
    }
}

/// A registry's answer as a client of this mirror gets it. `missing` is what it means that there is nothing.
fn refused(error: &RegistryError, missing: Why) -> Refused {
    let (status, challenges) = match error {
        RegistryError::Refused { refusal, .. } => (refusal.status, refusal.challenges.clone()),
        _ => (0, Vec::new()),
    };
    let why = match (error.class(), status) {
        (Class::Unauthorized, 403) => Why::Denied,
        (Class::Unauthorized, _) => Why::Unauthorized,
        (Class::NotFound, _) => missing,
        (_, 429) => Why::TooMany,
        _ => Why::Unavailable,
    };
    let message = chain(error);
    if why == Why::Unavailable {
        tracing::warn!(message, "a registry cannot be asked for a client");
    }
    Refused { why, message, challenges }
}

fn unavailable(error: &PeerError) -> Refused {
    tracing::warn!(error = error as &dyn std::error::Error, "a client of the mirror gets nothing");
    Refused::new(Why::Unavailable, chain(error))
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Whether the registry does not let this peer read it.
fn is_refusal(error: &PeerError) -> bool {
    let PeerError::Registry { source, .. } = error else { return false };
    matches!(source.class(), Class::Unauthorized | Class::NotFound)
}
