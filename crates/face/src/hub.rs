//! The face of a Hugging Face hub that can only be read.
//!
//! Owns: what is answered to a request for a model, a list of files or a file, and whether a name means an artifact of a
//! registry or a model of the hub that stands behind. Does not own: connections (`server`), the artifacts ([`Upstreams`]),
//! that hub ([`Hubs`]), other kinds of repositories than models.
//!
//! A model of the hub has its own commit and tags of files. Of an artifact, what the hub calls a commit is the first 40
//! digits of the manifest's digest, and a file's tag (`ETag`) is the SHA-256 of its bytes, as on the hub for every file that
//! is kept as a large one. So a cache filled here and one filled there share those.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use hyper::{
    Method, Response, StatusCode,
    header::{ALLOW, AUTHORIZATION, HeaderName, WARNING},
    http::request::Parts,
};
use modelpack::{digest::Sha256Digest, index::sole_manifest, manifest::Manifest, reference::MAIN};
use serde_json::{Value, json};

use crate::{
    part,
    reply::{self, Body, STALE, put},
    route::Named,
    seam::{Caller, HubModel, Hubs, Refused, Upstreams, Why},
    server::Handler,
};

mod listing;
mod route;
mod rule;

use listing::is_commit;
use route::Route;
pub use rule::Rule;

const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// Models whose commits were told and are remembered: those of a node.
const MODELS_MAX: usize = 64;

/// Answers as the hub does.
pub struct Hub<U> {
    upstreams: Arc<U>,
    rule: Option<Rule>,
    models: Mutex<BTreeMap<(String, String), Told>>,
}

/// What a commit that was told here is.
#[derive(Clone)]
enum Told {
    /// That artifact.
    Artifact(Sha256Digest, Arc<HubModel>),
    /// What the hub behind says that it is.
    OfHub,
}

/// Why a client does not get what it asked for, in the hub's words.
struct Problem {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl Problem {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }
}

/// Who asks.
struct Asker {
    /// With a proof for the registry of the rule.
    caller: Caller,
    /// With a token of the hub.
    token: Option<String>,
}

/// A model at a revision.
struct Found {
    model: Arc<HubModel>,
    /// Of the registry; none if it is on the hub behind.
    repository: Option<String>,
    is_stale: bool,
}

impl<U: Upstreams + Hubs> Hub<U> {
    /// A hub whose models are what `rule` makes of their names, and those of the hub behind.
    pub fn new(upstreams: Arc<U>, rule: Option<Rule>) -> Self {
        Self { upstreams, rule, models: Mutex::default() }
    }

    async fn respond(&self, head: &Parts) -> Result<Response<Body>, Problem> {
        if ![Method::GET, Method::HEAD].contains(&head.method) {
            let message = "this hub can only be read";
            return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "", message));
        }
        let Some(route) = Route::parse(head.uri.path()) else {
            return Err(Problem::new(StatusCode::NOT_FOUND, "", "this hub has models, and nothing else"));
        };
        let asker = self.asker(head);
        let (found, mut response) = match route {
            Route::Info { id, revision } => {
                let found = self.find(&asker, &id, &revision).await?;
                let body = listing::info(&id, &found.model);
                (found, json_of(StatusCode::OK, &body))
            }
            Route::Tree { id, revision, dir } => {
                let found = self.find(&asker, &id, &revision).await?;
                let mut query = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
                let is_recursive =
                    query.any(|(name, value)| name == "recursive" && value.eq_ignore_ascii_case("true"));
                let tree = listing::tree(&found.model, dir.as_deref(), is_recursive);
                let tree = tree.ok_or_else(|| no_entry("there is no such directory"))?;
                (found, json_of(StatusCode::OK, &tree))
            }
            Route::File { id, revision, path } => {
                let found = self.find(&asker, &id, &revision).await?;
                let response = self.file(&asker, &found, (&id, &path), head).await?;
                (found, response)
            }
        };
        put(&mut response, COMMIT, &found.model.commit);
        if found.is_stale {
            put(&mut response, WARNING, STALE);
        }
        Ok(response)
    }

    async fn file(
        &self,
        asker: &Asker,
        found: &Found,
        (id, path): (&str, &str),
        head: &Parts,
    ) -> Result<Response<Body>, Problem> {
        let file = found.model.files.iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| no_entry("there is no such file"))?;
        let content = match &found.repository {
            Some(repository) => self.upstreams.blob(&asker.caller, repository, &file.digest).await,
            None => self.upstreams.file(asker.token.as_deref(), id, (&found.model, file)),
        };
        let content = content.map_err(|refused| problem(&refused, "EntryNotFound"))?;
        let etag = format!("\"{}\"", file.tag());
        let mut response = part::of(content, &head.headers, &etag);
        put(&mut response, LINKED_ETAG, &etag);
        put(&mut response, LINKED_SIZE, &file.size.to_string());
        Ok(response)
    }

    /// What a revision of a model stands for, if the asker may have it. Only what the registry says it has not is asked of
    /// the hub behind: a model that the registry hides, or cannot be asked for, must not become one that somebody has put
    /// under its name there.
    async fn find(&self, asker: &Asker, id: &str, revision: &str) -> Result<Found, Problem> {
        let missing = if revision == MAIN { "RepoNotFound" } else { "RevisionNotFound" };
        let told = self.models().get(&(id.to_owned(), revision.to_owned())).cloned();
        if let (Some(rule), None | Some(Told::Artifact(..))) = (&self.rule, &told)
            && let Some(found) = self.mapped(asker, rule, (id, revision, missing), told.as_ref()).await?
        {
            return Ok(found);
        }
        let found = self.upstreams.model(asker.token.as_deref(), id, revision).await;
        let (model, is_stale) = found.map_err(|refused| problem(&refused, missing))?;
        self.remember(id, &model.commit, Told::OfHub);
        Ok(Found { model, repository: None, is_stale })
    }

    /// The artifact that the rule makes of a name, unless the registry has none there.
    async fn mapped(
        &self,
        asker: &Asker,
        rule: &Rule,
        (id, revision, missing): (&str, &str, &'static str),
        told: Option<&Told>,
    ) -> Result<Option<Found>, Problem> {
        // A commit that was never told here can only be what the model is now.
        let name = if is_commit(revision) { MAIN } else { revision };
        let Some((repository, tag)) = rule.apply(id, name) else { return Ok(None) };
        let named = match told {
            Some(Told::Artifact(digest, _)) => Named::Digest(*digest),
            _ => Named::Tag(tag),
        };
        let Some((manifest, is_stale)) = self.manifest(asker, &repository, (&named, missing)).await? else {
            return Ok(None);
        };
        let model = match told {
            Some(Told::Artifact(digest, model)) if *digest == manifest.digest() => Arc::clone(model),
            _ => Arc::new(listing::of_artifact(&manifest)),
        };
        if is_commit(revision) && model.commit != revision {
            return Ok(None);
        }
        if !manifest.archives().is_empty() {
            let message = "some of its files are in archives, which are only unpacked by `modelctl pull`";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "", message));
        }
        self.remember(id, &model.commit, Told::Artifact(manifest.digest(), Arc::clone(&model)));
        Ok(Some(Found { model, repository: Some(repository), is_stale }))
    }

    async fn manifest(
        &self,
        asker: &Asker,
        repository: &str,
        (named, missing): (&Named, &'static str),
    ) -> Result<Option<(Manifest, bool)>, Problem> {
        let ask = async |named: &Named| match self.upstreams.manifest(&asker.caller, repository, named).await
        {
            Err(Refused { why: Why::NoName | Why::NoManifest, .. }) => Ok(None),
            Err(refused) => Err(problem(&refused, missing)),
            Ok(document) => Ok(Some(document)),
        };
        let unusable =
            || Problem::new(StatusCode::NOT_FOUND, missing, "what the registry has there is no model");
        let Some(mut document) = ask(named).await? else { return Ok(None) };
        let sole: Option<Sha256Digest> = sole_manifest(&document.raw).map_err(|_| unusable())?;
        if let Some(sole) = sole {
            let Some(listed) = ask(&Named::Digest(sole)).await? else { return Err(unusable()) };
            document = listed;
        }
        let manifest = Manifest::parse(&document.raw).map_err(|_| unusable())?;
        Ok(Some((manifest, document.is_stale)))
    }

    /// Who asks. A token of the hub is none of the registry's and is not shown to it. `USER:PASSWORD` in its place, which no
    /// token of the hub looks like, is meant for the registry, and is not shown to the hub.
    fn asker(&self, head: &Parts) -> Asker {
        let header = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let pair = token.filter(|token| token.contains(':'));
        let authorization = pair.map(|pair| format!("Basic {}", STANDARD.encode(pair)));
        let upstream = self.rule.as_ref().map(|rule| rule.registry().to_owned());
        let token = token.filter(|token| !token.contains(':')).map(ToOwned::to_owned);
        Asker { caller: Caller { upstream, authorization }, token }
    }

    fn remember(&self, id: &str, commit: &str, told: Told) {
        let at = (id.to_owned(), commit.to_owned());
        let mut models = self.models();
        if models.len() >= MODELS_MAX && !models.contains_key(&at) {
            models.pop_first();
        }
        models.insert(at, told);
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<(String, String), Told>> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<U: Upstreams + Hubs> Handler for Hub<U> {
    fn answer(self: Arc<Self>, head: Parts) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            match self.respond(&head).await {
                Ok(response) => response,
                Err(Problem { status, code, message }) => {
                    let mut response = json_of(status, &json!({ "error": message }));
                    if !code.is_empty() {
                        put(&mut response, ERROR_CODE, code);
                    }
                    put(&mut response, ERROR_MESSAGE, &message);
                    if status == StatusCode::METHOD_NOT_ALLOWED {
                        put(&mut response, ALLOW, "GET, HEAD");
                    }
                    response
                }
            }
        })
    }
}

fn json_of(status: StatusCode, body: &Value) -> Response<Body> {
    reply::whole(status, "application/json", body.to_string())
}

fn no_entry(message: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "EntryNotFound", message)
}

/// A refusal in the hub's words. `missing` is what of the model is not there.
fn problem(refused: &Refused, missing: &'static str) -> Problem {
    let (status, code) = match refused.why {
        // As the hub has it: whether there is such a model is not told to those who may not know.
        Why::Unauthorized => (StatusCode::UNAUTHORIZED, "RepoNotFound"),
        Why::Denied => (StatusCode::FORBIDDEN, "GatedRepo"),
        Why::Gated => (StatusCode::UNAUTHORIZED, "GatedRepo"),
        Why::NoName | Why::NoManifest | Why::NoBlob => (StatusCode::NOT_FOUND, missing),
        Why::TooMany => (StatusCode::TOO_MANY_REQUESTS, ""),
        Why::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, ""),
    };
    Problem::new(status, code, refused.message.clone())
}

#[cfg(test)]
mod tests;
