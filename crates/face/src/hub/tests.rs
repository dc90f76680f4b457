//! Who asks, and refusals, in the words of the hub. Whole downloads are tried with the hub's own client elsewhere.

use http_body_util::BodyExt as _;
use hyper::Request;

use super::*;
use crate::seam::{Content, Document, List, Listed};

/// Refuses everybody, and says what it was shown.
struct Gate;

impl Upstreams for Gate {
    fn ping<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<(), Refused>> {
        unreachable!("a hub pings nobody")
    }

    fn manifest<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        named: &'a Named,
    ) -> BoxFuture<'a, Result<Document, Refused>> {
        let why = match repository {
            "hub/secret" => Why::Unauthorized,
            "hub/gated" => Why::Denied,
            "hub/away" => Why::Unavailable,
            _ => Why::NoManifest,
        };
        let shown = format!("{:?} {repository} {named:?} {:?}", caller.upstream, caller.authorization);
        Box::pin(async move { Err(Refused::new(why, shown)) })
    }

    fn blob<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a str,
        _: &'a Sha256Digest,
    ) -> BoxFuture<'a, Result<Box<dyn Content>, Refused>> {
        unreachable!("nobody gets as far")
    }

    fn list<'a>(
        &'a self,
        _: &'a Caller,
        _: &'a str,
        _: &'a List,
        _: Vec<(String, String)>,
    ) -> BoxFuture<'a, Result<Listed, Refused>> {
        unreachable!("a hub lists no tags")
    }
}

/// Status, code and what was said.
async fn ask(path: &str, authorization: Option<&str>) -> (u16, String, String) {
    let mut request = Request::builder().uri(path);
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let hub = Hub::new(Arc::new(Gate), "r.io/hub/{id}:{rev}".parse().unwrap());
    let response = Arc::new(hub).answer(head).await;
    let code = response.headers().get(ERROR_CODE).map_or("", |code| code.to_str().unwrap()).to_owned();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    (status, code, body["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn a_token_of_the_hub_is_not_shown_to_the_registry() {
    let shown = async |authorization: Option<&str>| ask("/api/models/Secret", authorization).await.2;
    let nobody = r#"Some("r.io") hub/secret Tag("main") None"#;
    assert_eq!(shown(None).await, nobody);
    assert_eq!(shown(Some("Bearer hf_abcdef")).await, nobody);
    assert_eq!(shown(Some("Basic bWU6c2VjcmV0")).await, nobody, "that is none of the hub's forms");
    let me = r#"Some("r.io") hub/secret Tag("main") Some("Basic bWU6c2VjcmV0")"#;
    assert_eq!(shown(Some("Bearer me:secret")).await, me);
}

#[tokio::test]
async fn refusals_are_the_hubs() {
    let check = async |path: &str, status: u16, code: &str| {
        let (found, said, _) = ask(path, None).await;
        assert_eq!((found, said.as_str()), (status, code), "{path}");
    };
    check("/api/models/secret", 401, "RepoNotFound").await;
    check("/gated/resolve/main/config.json", 403, "GatedRepo").await;
    check("/api/models/away/tree/main", 503, "").await;
    check("/api/models/nothing", 404, "RepoNotFound").await;
    check("/api/models/nothing/revision/v2", 404, "RevisionNotFound").await;
    check("/api/models/nothing/revision/refs%2Fpr%2F1", 404, "RevisionNotFound").await;
    check("/api/whoami-v2", 404, "").await;
}
