//! The face of a Hugging Face hub that can only be read, on models that are artifacts of a registry.
//!
//! Owns: what is answered to a request for a model, a list of files or a file. Does not own: connections (`server`), the
//! artifacts ([`Upstreams`]), other kinds of repositories than models.
//!
//! What the hub calls a commit is here the first 40 digits of the manifest's digest. A file's tag (`ETag`) is the SHA-256 of
//! its bytes, as on the hub for every file that is kept as a large one, so that a cache filled here and one filled there
//! share those.

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
use modelpack::{digest::Sha256Digest, index::sole_manifest, manifest::Manifest};
use serde_json::{Value, json};

use crate::{
    part,
    reply::{self, Body, STALE, put},
    route::Named,
    seam::{Caller, Refused, Upstreams, Why},
    server::Handler,
};

mod listing;
mod route;
mod rule;

use listing::{commit, is_commit};
use route::Route;
pub use rule::Rule;

const COMMIT: HeaderName = HeaderName::from_static("x-repo-commit");
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
const ERROR_CODE: HeaderName = HeaderName::from_static("x-error-code");
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// Manifests that are kept parsed, and commits that are known: those of the models of a node.
const MODELS_MAX: usize = 64;

/// Answers as the hub does.
pub struct Hub<U> {
    upstreams: Arc<U>,
    rule: Rule,
    models: Mutex<BTreeMap<(String, String), Manifest>>,
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

/// A model at a revision.
struct Found {
    manifest: Manifest,
    repository: String,
    is_stale: bool,
}

impl<U: Upstreams> Hub<U> {
    /// A hub whose models are what `rule` makes of their names.
    pub fn new(upstreams: Arc<U>, rule: Rule) -> Self {
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
        let caller = self.caller(head);
        let (found, mut response) = match route {
            Route::Info { id, revision } => {
                let found = self.find(&caller, &id, &revision).await?;
                let body = listing::info(&id, &found.manifest);
                (found, json_of(StatusCode::OK, &body))
            }
            Route::Tree { id, revision, dir } => {
                let found = self.find(&caller, &id, &revision).await?;
                let mut query = form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes());
                let is_recursive =
                    query.any(|(name, value)| name == "recursive" && value.eq_ignore_ascii_case("true"));
                let tree = listing::tree(&found.manifest, dir.as_deref(), is_recursive);
                let tree = tree.ok_or_else(|| no_entry("there is no such directory"))?;
                (found, json_of(StatusCode::OK, &tree))
            }
            Route::File { id, revision, path } => {
                let found = self.find(&caller, &id, &revision).await?;
                let response = self.file(&caller, &found, &path, head).await?;
                (found, response)
            }
        };
        put(&mut response, COMMIT, &commit(&found.manifest));
        if found.is_stale {
            put(&mut response, WARNING, STALE);
        }
        Ok(response)
    }

    async fn file(
        &self,
        caller: &Caller,
        found: &Found,
        path: &str,
        head: &Parts,
    ) -> Result<Response<Body>, Problem> {
        let file = found.manifest.files().iter().find(|file| file.path == path);
        let file = file.ok_or_else(|| no_entry("there is no such file"))?;
        let blob = listing::blob(&found.manifest, file);
        let content = self.upstreams.blob(caller, &found.repository, &blob.digest).await;
        let content = content.map_err(|refused| problem(&refused, "EntryNotFound"))?;
        let etag = format!("\"{}\"", blob.digest.hex());
        let mut response = part::of(content, &head.headers, &etag);
        put(&mut response, LINKED_ETAG, &etag);
        put(&mut response, LINKED_SIZE, &blob.size.to_string());
        Ok(response)
    }

    /// What a revision of a model stands for, if the caller may have it.
    async fn find(&self, caller: &Caller, id: &str, revision: &str) -> Result<Found, Problem> {
        let missing = if revision == "main" { "RepoNotFound" } else { "RevisionNotFound" };
        let none =
            || Problem::new(StatusCode::NOT_FOUND, missing, "no artifact is this model at this revision");
        let known = self.models().get(&(id.to_owned(), revision.to_owned())).cloned();
        // A commit that was never told here can only be what the model is now.
        let name = if is_commit(revision) { "main" } else { revision };
        let (repository, tag) = self.rule.apply(id, name).ok_or_else(none)?;
        let named = known.map_or(Named::Tag(tag), |manifest| Named::Digest(manifest.digest()));
        let (manifest, is_stale) = self.manifest(caller, &repository, (&named, missing)).await?;
        if is_commit(revision) && commit(&manifest) != revision {
            return Err(none());
        }
        if !manifest.archives().is_empty() {
            let message = "some of its files are in archives, which are only unpacked by `modelctl pull`";
            return Err(Problem::new(StatusCode::NOT_IMPLEMENTED, "", message));
        }
        let mut models = self.models();
        if models.len() >= MODELS_MAX {
            models.pop_first();
        }
        models.insert((id.to_owned(), commit(&manifest)), manifest.clone());
        drop(models);
        Ok(Found { manifest, repository, is_stale })
    }

    async fn manifest(
        &self,
        caller: &Caller,
        repository: &str,
        (named, missing): (&Named, &'static str),
    ) -> Result<(Manifest, bool), Problem> {
        let ask = async |named: &Named| {
            let document = self.upstreams.manifest(caller, repository, named).await;
            document.map_err(|refused| problem(&refused, missing))
        };
        let unusable =
            || Problem::new(StatusCode::NOT_FOUND, missing, "what the registry has there is no model");
        let mut document = ask(named).await?;
        let sole: Option<Sha256Digest> = sole_manifest(&document.raw).map_err(|_| unusable())?;
        if let Some(sole) = sole {
            document = ask(&Named::Digest(sole)).await?;
        }
        let manifest = Manifest::parse(&document.raw).map_err(|_| unusable())?;
        Ok((manifest, document.is_stale))
    }

    /// Who asks. A token of the hub is none of the registry's and is not shown to it. `USER:PASSWORD` in its place, which no
    /// token of the hub looks like, is meant for the registry.
    fn caller(&self, head: &Parts) -> Caller {
        let header = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(|header| header.strip_prefix("Bearer "));
        let pair = token.filter(|token| token.contains(':'));
        let authorization = pair.map(|pair| format!("Basic {}", STANDARD.encode(pair)));
        Caller { upstream: Some(self.rule.registry().to_owned()), authorization }
    }

    fn models(&self) -> MutexGuard<'_, BTreeMap<(String, String), Manifest>> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.models.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<U: Upstreams> Handler for Hub<U> {
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
        Why::NoName | Why::NoManifest | Why::NoBlob => (StatusCode::NOT_FOUND, missing),
        Why::TooMany => (StatusCode::TOO_MANY_REQUESTS, ""),
        Why::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, ""),
    };
    Problem::new(status, code, refused.message.clone())
}

#[cfg(test)]
mod tests;
