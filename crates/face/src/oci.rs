//! The face of a registry that can only be read (OCI distribution specification 1.1.1).
//!
//! Owns: what is answered to a request. Does not own: connections (`server`), the artifacts ([`Upstreams`]).

use std::sync::Arc;

use futures_util::future::BoxFuture;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    header::{AUTHORIZATION, ETAG, HeaderName, LINK, WARNING},
    http::request::Parts,
};
use modelpack::digest::Sha256Digest;

use crate::{
    part,
    reply::{self, Body, STALE, put},
    route::{Named, Route, Unroutable},
    seam::{Caller, Document, List, Refused, Upstreams},
    server::Handler,
};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Answers as a registry does.
pub struct Oci<U> {
    upstreams: Arc<U>,
}

impl<U: Upstreams> Oci<U> {
    /// A registry that stands in for these.
    pub fn new(upstreams: Arc<U>) -> Self {
        Self { upstreams }
    }

    /// The answer to one request, whose body does not matter.
    async fn respond(&self, head: &Parts) -> Result<Response<Body>, Refused> {
        if ![Method::GET, Method::HEAD].contains(&head.method) {
            return Ok(reply::read_only());
        }
        let route = match Route::parse(head.uri.path()) {
            Ok(route) => route,
            Err(unroutable) => return Ok(nowhere(unroutable)),
        };
        let (caller, query) = (caller(head), query(head));
        match &route {
            Route::Base => {
                self.upstreams.ping(&caller).await?;
                Ok(reply::whole(StatusCode::OK, "application/json", "{}"))
            }
            Route::Manifest(repository, named) => self.manifest(&caller, repository, named).await,
            Route::Blob(repository, digest) => self.blob(&caller, repository, (digest, &head.headers)).await,
            Route::Tags(repository) => self.list(&caller, (repository, "tags/list"), List::Tags, query).await,
            Route::Referrers(repository, subject) => {
                let path = format!("referrers/{subject}");
                self.list(&caller, (repository, &path), List::Referrers(*subject), query).await
            }
        }
    }

    async fn manifest(
        &self,
        caller: &Caller,
        repository: &str,
        named: &Named,
    ) -> Result<Response<Body>, Refused> {
        let Document { raw, media_type, digest, is_stale } =
            self.upstreams.manifest(caller, repository, named).await?;
        let mut response = reply::whole(StatusCode::OK, &media_type, raw);
        put(&mut response, CONTENT_DIGEST, &digest.to_string());
        put(&mut response, ETAG, &etag(&digest));
        if is_stale {
            put(&mut response, WARNING, STALE);
        }
        Ok(response)
    }

    async fn blob(
        &self,
        caller: &Caller,
        repository: &str,
        (digest, headers): (&Sha256Digest, &HeaderMap),
    ) -> Result<Response<Body>, Refused> {
        let content = self.upstreams.blob(caller, repository, digest).await?;
        let mut response = part::of(content, headers, &etag(digest));
        put(&mut response, CONTENT_DIGEST, &digest.to_string());
        Ok(response)
    }

    async fn list(
        &self,
        caller: &Caller,
        (repository, path): (&str, &str),
        list: List,
        query: Vec<(String, String)>,
    ) -> Result<Response<Body>, Refused> {
        let listed = self.upstreams.list(caller, repository, &list, query).await?;
        let media_type = if list == List::Tags { "application/json" } else { INDEX_TYPE };
        let mut response = reply::whole(StatusCode::OK, media_type, listed.raw);
        if let Some(next) = listed.next {
            // The registry's own query, and the name of the registry, which it does not know.
            let ns = caller.upstream.as_deref().map(|upstream| {
                let pair: String =
                    form_urlencoded::Serializer::new(String::new()).append_pair("ns", upstream).finish();
                format!("&{pair}")
            });
            let link = format!("</v2/{repository}/{path}?{next}{}>; rel=\"next\"", ns.unwrap_or_default());
            put(&mut response, LINK, &link);
        }
        if listed.is_filtered {
            put(&mut response, FILTERS_APPLIED, "artifactType");
        }
        Ok(response)
    }
}

impl<U: Upstreams> Handler for Oci<U> {
    fn answer(self: Arc<Self>, head: Parts) -> BoxFuture<'static, Response<Body>> {
        Box::pin(async move {
            let mut response = match self.respond(&head).await {
                Ok(response) => response,
                Err(refused) => reply::refused(&refused),
            };
            put(&mut response, API_VERSION, "registry/2.0");
            response
        })
    }
}

fn etag(digest: &Sha256Digest) -> String {
    format!("\"{digest}\"")
}

fn nowhere(unroutable: Unroutable) -> Response<Body> {
    let (status, code, message) = match unroutable {
        Unroutable::Nothing => (StatusCode::NOT_FOUND, "UNSUPPORTED", "there is nothing to read there"),
        Unroutable::Name => (StatusCode::BAD_REQUEST, "NAME_INVALID", "no repository has such a name"),
        Unroutable::Digest => (StatusCode::BAD_REQUEST, "DIGEST_INVALID", "only `sha256:` and 64 digits"),
        Unroutable::Tag => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID", "no tag has such a name"),
    };
    reply::error(status, code, message)
}

/// Who asks.
fn caller(head: &Parts) -> Caller {
    let upstream = pairs(head).find(|(name, _)| name == "ns").map(|(_, value)| value);
    let authorization = head.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    Caller { upstream, authorization: authorization.map(ToOwned::to_owned) }
}

/// What the registry itself is asked, beside the path.
fn query(head: &Parts) -> Vec<(String, String)> {
    pairs(head).filter(|(name, _)| name != "ns").collect()
}

fn pairs(head: &Parts) -> impl Iterator<Item = (String, String)> + '_ {
    form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes()).into_owned()
}

#[cfg(test)]
mod tests;
