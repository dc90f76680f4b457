//! Models of the hub that this peer stands in for.
//!
//! Owns: which commit a revision is, whether a client may have it, and what is fetched when a file is asked for. Does not
//! own: HTTP (`face`), the hub's API (`registry`), what the fleet knows of a name (`names`).
//!
//! Whether a client may have a model is the hub's to say: it is asked for one byte of its largest file with the client's own
//! token. What it said holds for [`rights::FRESH`].

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use face::{Content, HubFile, HubModel, Refused, Why};
use modelpack::{
    hub::Commit,
    reference::{HubReference, Reference},
};
use registry::{Access, Class, HubAccess, HubFailure, Problem, RegistryError, Snapshot, Told};

use super::{
    chain,
    reading::{Memory, Part},
    rights::{Key, Rights, Standing, Who},
    slots::{Model, Slot},
};
use crate::{
    clients::Clients,
    error::PeerError,
    names::{self, Answer},
    node::Node,
    origin::{self, Origin},
};

/// Where rights are kept beside those of registries, which are numbered from 0.
const HUB: usize = usize::MAX;

/// How long the hub's word for a branch is believed in a whole fleet. Hubs count requests by address, and a fleet is often
/// behind one: at most two questions a minute for each branch that is asked for.
const BRANCH_FRESH: Duration = Duration::from_secs(30);

/// How long it is believed while the hub cannot be asked.
const BRANCH_KNOWN: Duration = Duration::from_hours(24);

/// A commit stays what it is.
const COMMIT_HOLDS: Duration = Duration::from_hours(24);

/// Models at a commit that are remembered: those that a node loads. Each holds the small files of it, at most 16 MiB.
const MODELS_MAX: usize = 16;

/// Revisions that are remembered.
const REVISIONS_MAX: usize = 256;

/// What the hub says of models.
pub(super) struct Models {
    /// Without a token: each client has its own.
    access: Access,
    revisions: Mutex<BTreeMap<(String, String), Arc<Revision>>>,
    commits: Mutex<BTreeMap<(String, Commit), Arc<Known>>>,
}

/// What a revision was when it was asked for. Those who ask for the same wait for one answer.
type Revision = tokio::sync::Mutex<Option<(Commit, Instant)>>;

/// A model at a commit.
struct Known {
    snapshot: Snapshot,
    listed: Arc<HubModel>,
    told: Arc<Told>,
    model: Model,
    slot: Arc<Slot>,
}

/// What was learned just now.
struct Learned {
    known: Arc<Known>,
    /// When the hub said so.
    asked: Instant,
    /// Whether it said so to whoever asks now, and lets that one read.
    is_allowed: bool,
}

impl Models {
    /// Nothing is asked.
    pub(super) fn new(access: Access) -> Self {
        Self { access, revisions: Mutex::default(), commits: Mutex::default() }
    }

    /// A model at a revision, if whoever has this token may have it; and whether the hub could not be asked.
    pub(super) async fn find(
        &self,
        (node, rights): (&Node, &Rights),
        token: Option<&str>,
        (id, revision): (&str, &str),
    ) -> Result<(Arc<HubModel>, bool), Refused> {
        let at = reference(id, revision)?;
        let (key, who): (Key, Who) = ((HUB, id.to_owned()), Who::of(token));
        let client = Asker { rights, standing: rights.standing(&key, &who), key, who, token };
        let state = self.revision(id, revision);
        let mut state = state.lock().await;
        let last = state.and_then(|(commit, asked)| Some((self.known(id, commit)?, asked)));
        let is_commit = revision.parse::<Commit>().is_ok();
        let fresh = last.as_ref().filter(|(_, asked)| is_commit || asked.elapsed() < BRANCH_FRESH);
        let learned = match fresh {
            Some((known, asked)) => {
                Ok(Learned { known: Arc::clone(known), asked: *asked, is_allowed: false })
            }
            None => self.learn(node, &at, token).await,
        };
        match learned {
            Ok(Learned { known, asked, is_allowed }) => {
                *state = Some((known.snapshot.commit(), asked));
                drop(state);
                if !is_allowed && client.standing != Standing::Fresh {
                    if let Err(error) = known.snapshot.lets_in(token).await {
                        return client.refused(&error, Some(&known));
                    }
                    rights.accept(&client.key, client.who);
                } else if is_allowed {
                    rights.accept(&client.key, client.who);
                }
                known.slot.touch();
                if !is_commit {
                    known.slot.named(at.to_string());
                }
                Ok((Arc::clone(&known.listed), false))
            }
            Err(error) => {
                let last = last.filter(|(_, asked)| asked.elapsed() < BRANCH_KNOWN);
                client.refused(&error, last.map(|(known, _)| known).as_ref())
            }
        }
    }

    /// The bytes of a file of a model that was found just now. Small ones are here; any other begins or joins the transfer
    /// of the whole model.
    pub(super) fn file(
        &self,
        clients: &Arc<Clients>,
        token: Option<&str>,
        (id, model, file): (&str, &HubModel, &HubFile),
    ) -> Option<Box<dyn Content>> {
        let known = self.known(id, model.commit.parse().ok()?)?;
        let kept =
            if file.size == 0 { Some(Bytes::new()) } else { known.snapshot.kept(&file.digest).cloned() };
        if let Some(bytes) = kept {
            return Some(Box::new(Memory { bytes, permit: None }));
        }
        let blob = known.model.blobs.get(&file.digest).copied()?;
        let origin = Origin::Hub(Arc::new(known.snapshot.in_name_of(token).ok()?));
        let artifact = Arc::clone(&known.model.artifact);
        Some(Box::new(Part::new(Arc::clone(clients), Arc::clone(&known.slot), (artifact, origin), blob)))
    }

    /// Lets go of transfers that nobody reads.
    pub(super) fn rest(&self) {
        let models: Vec<_> =
            self.commits.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        for known in models {
            known.slot.rest();
        }
    }

    /// What a revision is now: as somebody of the fleet says, or else the hub.
    async fn learn(
        &self,
        node: &Node,
        at: &HubReference,
        token: Option<&str>,
    ) -> Result<Learned, RegistryError> {
        if let Ok(commit) = at.revision().parse() {
            return self.learn_commit(node, at, (commit, token)).await;
        }
        let name = names::key(&self.access.hub.endpoint, &at.model(), at.revision());
        let turn = match names::ask(node, &name).await {
            Answer::Told(told, asked) if asked.elapsed() < BRANCH_FRESH => {
                let known = self.keep(at, &told).await?;
                names::tell(node, &name, (&told, asked), BRANCH_FRESH).await;
                names::tell(node, &self.commit_name(at, told.commit), (&told, asked), COMMIT_HOLDS).await;
                return Ok(Learned { known, asked, is_allowed: false });
            }
            Answer::Told(..) => None,
            Answer::Ask(turn) => Some(turn),
        };
        let asked = Instant::now();
        let commit = Snapshot::commit_of(at, &self.access_of(token)).await?;
        let learned = self.learn_commit(node, at, (commit, token)).await?;
        names::tell(node, &name, (&learned.known.told, asked), BRANCH_FRESH).await;
        if let Some(turn) = turn {
            turn.knows();
        }
        Ok(Learned { asked, ..learned })
    }

    async fn learn_commit(
        &self,
        node: &Node,
        at: &HubReference,
        (commit, token): (Commit, Option<&str>),
    ) -> Result<Learned, RegistryError> {
        let asked = Instant::now();
        if let Some(known) = self.known(&at.model(), commit) {
            return Ok(Learned { known, asked, is_allowed: false });
        }
        let name = self.commit_name(at, commit);
        let turn = match names::ask(node, &name).await {
            Answer::Told(told, _) if told.commit == commit => {
                let known = self.keep(at, &told).await?;
                names::tell(node, &name, (&told, asked), COMMIT_HOLDS).await;
                return Ok(Learned { known, asked, is_allowed: false });
            }
            Answer::Told(..) => None,
            Answer::Ask(turn) => Some(turn),
        };
        let pinned = HubReference { revision: Some(commit.to_string()), ..at.clone() };
        let snapshot = Snapshot::open(&pinned, &self.access_of(token)).await?;
        let told = Arc::new(snapshot.to_tell());
        let known = self.insert(at, snapshot, Arc::clone(&told)).await?;
        names::tell(node, &name, (&told, asked), COMMIT_HOLDS).await;
        if let Some(turn) = turn {
            turn.knows();
        }
        // Of a gated model anybody may see the list: only who has read a file of it is let in.
        let is_allowed = !told.small.is_empty();
        Ok(Learned { known, asked, is_allowed })
    }

    fn commit_name(&self, at: &HubReference, commit: Commit) -> modelpack::digest::Sha256Digest {
        names::key(&self.access.hub.endpoint, &at.model(), &commit.to_string())
    }

    /// What somebody of the fleet says of a commit, which is what this peer goes by from now on.
    async fn keep(&self, at: &HubReference, told: &Arc<Told>) -> Result<Arc<Known>, RegistryError> {
        if let Some(known) = self.known(&at.model(), told.commit) {
            return Ok(known);
        }
        let snapshot = Snapshot::told(at, &self.access, Told::clone(told)).await?;
        self.insert(at, snapshot, Arc::clone(told)).await
    }

    async fn insert(
        &self,
        at: &HubReference,
        snapshot: Snapshot,
        told: Arc<Told>,
    ) -> Result<Arc<Known>, RegistryError> {
        let commit = snapshot.commit();
        let name = Reference::Hub(at.clone()).to_string();
        let own = Arc::new(snapshot.in_name_of(None)?);
        let (_, artifact) = match origin::of_snapshot(name, own).await {
            Ok(described) => described,
            Err(PeerError::Registry { source, .. }) => return Err(*source),
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a model of a hub makes no artifact"
                );
                return Err(HubFailure::Endpoint(self.access.hub.endpoint.clone()).into());
            }
        };
        let listed = Arc::new(listed(&snapshot));
        let model = Model::of(artifact, None);
        let known = Arc::new(Known { snapshot, listed, told, model, slot: Arc::default() });
        let mut models = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (at.model(), commit);
        if models.len() >= MODELS_MAX && !models.contains_key(&at) {
            let oldest = models.iter().min_by_key(|(_, known)| known.slot.used()).map(|(at, _)| at.clone());
            oldest.and_then(|oldest| models.remove(&oldest));
        }
        models.insert(at, Arc::clone(&known));
        Ok(known)
    }

    fn known(&self, id: &str, commit: Commit) -> Option<Arc<Known>> {
        let models = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        models.get(&(id.to_owned(), commit)).cloned()
    }

    fn revision(&self, id: &str, revision: &str) -> Arc<Revision> {
        let mut revisions = self.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        let at = (id.to_owned(), revision.to_owned());
        if revisions.len() >= REVISIONS_MAX && !revisions.contains_key(&at) {
            // Whoever waits for it now still gets it.
            revisions.pop_first();
        }
        Arc::clone(revisions.entry(at).or_default())
    }

    fn access_of(&self, token: Option<&str>) -> Access {
        let hub = HubAccess { token: token.map(ToOwned::to_owned), ..self.access.hub.clone() };
        Access { hub, ..self.access.clone() }
    }
}

/// Who asks for a model.
struct Asker<'a> {
    rights: &'a Rights,
    standing: Standing,
    key: Key,
    who: Who,
    token: Option<&'a str>,
}

impl Asker<'_> {
    /// What this one gets when the hub refuses or does not answer: what was known, if it had a right to that.
    fn refused(
        &self,
        error: &RegistryError,
        known: Option<&Arc<Known>>,
    ) -> Result<(Arc<HubModel>, bool), Refused> {
        let refused = refused(error, self.token);
        if matches!(refused.why, Why::Unauthorized | Why::Denied | Why::Gated | Why::NoName) {
            self.rights.forget(&self.key, &self.who);
        }
        let is_away = matches!(refused.why, Why::Unavailable | Why::TooMany);
        match known.filter(|_| is_away && self.standing != Standing::Unknown) {
            Some(known) => Ok((Arc::clone(&known.listed), true)),
            None => Err(refused),
        }
    }
}

fn reference(id: &str, revision: &str) -> Result<HubReference, Refused> {
    match format!("hf://{id}@{revision}").parse() {
        Ok(Reference::Hub(at)) => Ok(at),
        _ => Err(Refused::new(Why::NoName, "a model is ORG/NAME here, at a branch, a tag or a commit")),
    }
}

fn listed(snapshot: &Snapshot) -> HubModel {
    let files = snapshot.files().map(|(file, digest)| HubFile {
        path: file.path.clone(),
        size: file.size,
        digest: *digest,
        git: file.git.to_string(),
        is_large: file.lfs.is_some(),
    });
    HubModel { commit: snapshot.commit().to_string(), files: files.collect() }
}

/// The hub's answer as a client gets it.
fn refused(error: &RegistryError, token: Option<&str>) -> Refused {
    let why = match error {
        RegistryError::Hub(HubFailure::Refused { problem, .. }) => match (problem, token) {
            (Problem::Gated, None) => Why::Gated,
            (Problem::Gated | Problem::Forbidden, _) => Why::Denied,
            (Problem::BadToken, _) | (Problem::NoModel, None) => Why::Unauthorized,
            (Problem::NoModel, Some(_)) => Why::NoName,
            (Problem::NoRevision, _) => Why::NoManifest,
            (Problem::NoFile, _) => Why::NoBlob,
            (Problem::Limited, _) => Why::TooMany,
            _ => Why::Unavailable,
        },
        _ => match error.class() {
            Class::Unauthorized => Why::Unauthorized,
            Class::NotFound => Why::NoName,
            _ => Why::Unavailable,
        },
    };
    if why == Why::Unavailable {
        tracing::warn!(error = error as &dyn std::error::Error, "a hub cannot be asked for a client");
    }
    Refused::new(why, chain(error))
}
