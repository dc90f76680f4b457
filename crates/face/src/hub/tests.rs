//! Who asks, and refusals, in the words of the hub. Whole downloads are tried with the hub's own client elsewhere.

use http_body_util::BodyExt as _;
use hyper::Request;

use super::*;
use crate::seam::{Content, Document, HubFile, List, Listed};

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

/// The hub behind: it has one model, for whoever has a token, and says what it was shown.
impl Hubs for Gate {
    fn model<'a>(
        &'a self,
        token: Option<&'a str>,
        id: &'a str,
        revision: &'a str,
    ) -> BoxFuture<'a, Result<(Arc<HubModel>, bool), Refused>> {
        Box::pin(async move {
            match (id, token) {
                ("Born/There", Some(_)) => {
                    let digest = Sha256Digest::of(b"x");
                    let file = |path: &str, is_large| HubFile {
                        path: path.to_owned(),
                        size: 1,
                        digest,
                        git: "b".repeat(40),
                        is_large,
                    };
                    let files = vec![file("config.json", false), file("model.bin", true)];
                    Ok((Arc::new(HubModel { commit: "a".repeat(40), files }), false))
                }
                ("Born/There", None) => Err(Refused::new(Why::Gated, "who are you")),
                _ => Err(Refused::new(Why::NoName, format!("hub: {id} {revision} {token:?}"))),
            }
        })
    }

    fn file(&self, _: Option<&str>, _: &str, _: (&HubModel, &HubFile)) -> Result<Box<dyn Content>, Refused> {
        Err(Refused::new(Why::NoBlob, "not today"))
    }
}

/// Status, code and what was said.
async fn ask(path: &str, authorization: Option<&str>) -> (u16, String, String) {
    let mut request = Request::builder().uri(path);
    if let Some(authorization) = authorization {
        request = request.header(AUTHORIZATION, authorization);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let hub = Hub::new(Arc::new(Gate), Some("r.io/hub/{id}:{rev}".parse().unwrap()));
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
async fn what_the_registry_has_not_is_asked_of_the_hub_behind_and_what_it_hides_is_not() {
    let said = async |path: &str, authorization: Option<&str>| ask(path, authorization).await.2;
    let hf = Some("Bearer hf_abc");
    assert_eq!(said("/api/models/Org/New/revision/v2", hf).await, r#"hub: Org/New v2 Some("hf_abc")"#);
    assert_eq!(said("/api/models/Org/New", Some("Bearer me:secret")).await, "hub: Org/New main None");
    // A revision that no tag can be.
    assert_eq!(said("/api/models/a/b/revision/refs%2Fpr%2F1", None).await, "hub: a/b refs/pr/1 None");
    for hidden in ["secret", "gated", "away"] {
        assert!(said(&format!("/api/models/{hidden}"), hf).await.starts_with("Some"), "{hidden}");
    }
    let gated = ask("/Born/There/resolve/main/config.json", None).await;
    assert_eq!((gated.0, gated.1.as_str()), (401, "GatedRepo"));
    assert_eq!(ask("/Born/There/resolve/main/nothing", hf).await.1, "EntryNotFound");
}

#[tokio::test]
async fn a_model_of_the_hub_behind_is_listed_as_it_lists_it() {
    let hub = Arc::new(Hub::new(Arc::new(Gate), None));
    let request = Request::builder().uri("/api/models/Born/There/tree/main?recursive=true");
    let (head, ()) = request.header(AUTHORIZATION, "Bearer hf_abc").body(()).unwrap().into_parts();
    let response = hub.answer(head).await;
    assert_eq!(response.headers()[COMMIT], "a".repeat(40).as_str());
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let tree: Value = serde_json::from_slice(&body).unwrap();
    let (git, sha256) = ("b".repeat(40), Sha256Digest::of(b"x").hex());
    let expected = json!([
        { "type": "file", "oid": git, "size": 1, "path": "config.json" },
        { "type": "file", "oid": git, "size": 1, "path": "model.bin",
          "lfs": { "oid": sha256, "sha256": sha256, "size": 1, "pointerSize": 0 } },
    ]);
    assert_eq!(tree, expected);
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
