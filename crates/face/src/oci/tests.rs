//! Requests and the answers to them, with upstreams that are made up.

use std::{io, ops::Range};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use http_body_util::BodyExt as _;
use hyper::Request;

use super::*;
use crate::seam::{Content, Listed, Why};

const BLOB: &[u8] = b"0123456789";
const MANIFEST: &[u8] = b"{}";

/// One public repository `a` with a manifest and a blob, a private one `b`, and a registry that is gone for `c`.
struct Made;

struct Memory;

impl Content for Memory {
    fn bytes(&self) -> u64 {
        BLOB.len() as u64
    }

    fn read(self: Box<Self>, range: Range<u64>) -> BoxStream<'static, io::Result<Bytes>> {
        let at = |offset: u64| usize::try_from(offset).unwrap();
        let part = Bytes::from_static(BLOB).slice(at(range.start)..at(range.end));
        // Byte by byte.
        futures_util::stream::iter(part.into_iter().map(|byte| Ok(Bytes::from(vec![byte])))).boxed()
    }
}

fn gate(caller: &Caller, repository: &str) -> Result<(), Refused> {
    match (repository, caller.authorization.as_deref()) {
        ("a" | "c", _) | ("b", Some("Basic bWU6c2VjcmV0")) => Ok(()),
        ("b", _) => {
            let challenges = vec!["Basic realm=\"x\"".to_owned(), "Bearer realm=\"y\"".to_owned()];
            Err(Refused { why: Why::Unauthorized, message: "who are you".to_owned(), challenges })
        }
        _ => Err(Refused::new(Why::NoName, "no such repository")),
    }
}

impl Upstreams for Made {
    fn ping<'a>(&'a self, _: &'a Caller) -> BoxFuture<'a, Result<(), Refused>> {
        Box::pin(async { Ok(()) })
    }

    fn manifest<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        named: &'a Named,
    ) -> BoxFuture<'a, Result<Document, Refused>> {
        Box::pin(async move {
            gate(caller, repository)?;
            let digest = Sha256Digest::of(MANIFEST);
            if *named != Named::Tag("v1".to_owned()) && *named != Named::Digest(digest) {
                return Err(Refused::new(Why::NoManifest, "no such manifest"));
            }
            let media_type = "application/vnd.oci.image.manifest.v1+json".to_owned();
            Ok(Document {
                raw: Bytes::from_static(MANIFEST),
                media_type,
                digest,
                is_stale: repository == "c",
            })
        })
    }

    fn blob<'a>(
        &'a self,
        caller: &'a Caller,
        repository: &'a str,
        digest: &'a Sha256Digest,
    ) -> BoxFuture<'a, Result<Box<dyn Content>, Refused>> {
        Box::pin(async move {
            gate(caller, repository)?;
            if *digest == Sha256Digest::of(BLOB) {
                Ok(Box::new(Memory) as Box<dyn Content>)
            } else {
                Err(Refused::new(Why::NoBlob, "no such blob"))
            }
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
            gate(caller, repository)?;
            let next = query.iter().any(|(name, _)| name == "n").then(|| "last=v1&n=1".to_owned());
            let is_filtered = *list != List::Tags && !query.is_empty();
            Ok(Listed { raw: Bytes::from(format!("{query:?}")), next, is_filtered })
        })
    }
}

/// Status, the headers that say something, and the body.
async fn ask(method: Method, path: &str, headers: &[(&str, &str)]) -> (u16, Vec<String>, String) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let (head, ()) = request.body(()).unwrap().into_parts();
    let response = Arc::new(Oci::new(Arc::new(Made))).answer(head).await;
    let status = response.status().as_u16();
    let said = response.headers().iter().filter(|(name, _)| **name != API_VERSION);
    let mut said: Vec<_> = said.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
    said.sort();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, said, String::from_utf8(body.to_vec()).unwrap())
}

async fn get(path: &str, headers: &[(&str, &str)]) -> (u16, Vec<String>, String) {
    ask(Method::GET, path, headers).await
}

#[tokio::test]
async fn manifests_come_by_tag_and_by_digest() {
    let digest = Sha256Digest::of(MANIFEST);
    for name in ["v1".to_owned(), digest.to_string()] {
        let (status, headers, body) = get(&format!("/v2/a/manifests/{name}"), &[]).await;
        assert_eq!((status, body.as_str()), (200, "{}"));
        let expected = [
            "content-length: 2".to_owned(),
            "content-type: application/vnd.oci.image.manifest.v1+json".to_owned(),
            format!("docker-content-digest: {digest}"),
            format!("etag: \"{digest}\""),
        ];
        assert_eq!(headers, expected);
    }
    let (status, _, body) = get("/v2/a/manifests/v2", &[]).await;
    assert_eq!((status, body.contains("\"MANIFEST_UNKNOWN\"")), (404, true), "{body}");
    let (_, headers, _) = get("/v2/c/manifests/v1", &[]).await;
    assert!(headers.contains(&format!("warning: {STALE}")), "{headers:?}");
}

#[tokio::test]
async fn blobs_come_whole_or_in_parts() {
    let path = format!("/v2/a/blobs/{}", Sha256Digest::of(BLOB));
    let etag = format!("\"{}\"", Sha256Digest::of(BLOB));
    let check = async |headers: &[(&str, &str)], status: u16, range: Option<&str>, bytes: &str| {
        let (found, said, body) = get(&path, headers).await;
        assert_eq!((found, body.as_str()), (status, bytes), "{headers:?}");
        let stated = said.iter().find_map(|line| line.strip_prefix("content-range: "));
        assert_eq!(stated, range, "{headers:?}");
        assert!(said.contains(&format!("content-length: {}", bytes.len())), "{said:?}");
        assert!(said.contains(&"accept-ranges: bytes".to_owned()), "{said:?}");
    };
    check(&[], 200, None, "0123456789").await;
    check(&[("range", "bytes=2-4")], 206, Some("bytes 2-4/10"), "234").await;
    check(&[("range", "bytes=-4")], 206, Some("bytes 6-9/10"), "6789").await;
    check(&[("range", "bytes=7-")], 206, Some("bytes 7-9/10"), "789").await;
    check(&[("range", "bytes=7-"), ("if-range", &etag)], 206, Some("bytes 7-9/10"), "789").await;
    check(&[("range", "bytes=7-"), ("if-range", "\"x\"")], 200, None, "0123456789").await;
    let (status, said, body) = get(&path, &[("range", "bytes=10-")]).await;
    assert_eq!((status, body.contains("\"RANGE_INVALID\"")), (416, true));
    assert!(said.contains(&"content-range: bytes */10".to_owned()), "{said:?}");
}

#[tokio::test]
async fn what_the_registry_wants_to_be_proved_is_passed_on() {
    let (status, headers, body) = get("/v2/b/manifests/v1", &[]).await;
    assert_eq!((status, body.contains("\"UNAUTHORIZED\"")), (401, true));
    for challenge in ["Basic realm=\"x\"", "Bearer realm=\"y\""] {
        assert!(headers.contains(&format!("www-authenticate: {challenge}")), "{headers:?}");
    }
    let (status, ..) = get("/v2/b/manifests/v1", &[("authorization", "Basic bWU6c2VjcmV0")]).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn lists_lead_to_their_next_page() {
    let (status, headers, body) = get("/v2/a/tags/list?n=1&ns=r.io%3A5000", &[]).await;
    assert_eq!((status, body.as_str()), (200, r#"[("n", "1")]"#), "`ns` is for the mirror only");
    let link = r#"link: </v2/a/tags/list?last=v1&n=1&ns=r.io%3A5000>; rel="next""#;
    assert!(headers.contains(&link.to_owned()), "{headers:?}");
    let path = format!("/v2/a/referrers/{}?artifactType=x", Sha256Digest::of(MANIFEST));
    let (_, headers, _) = get(&path, &[]).await;
    assert!(headers.contains(&"oci-filters-applied: artifactType".to_owned()), "{headers:?}");
    assert!(headers.contains(&format!("content-type: {INDEX_TYPE}")), "{headers:?}");
}

#[tokio::test]
async fn nothing_else_is_done() {
    assert_eq!(get("/v2/", &[]).await.0, 200);
    for method in [Method::PUT, Method::POST, Method::PATCH, Method::DELETE] {
        let (status, headers, body) = ask(method, "/v2/a/blobs/uploads/", &[]).await;
        assert_eq!((status, body.contains("\"UNSUPPORTED\"")), (405, true));
        assert!(headers.contains(&"allow: GET, HEAD".to_owned()));
    }
    assert_eq!(get("/v2/a/blobs/uploads/", &[]).await.0, 404);
    assert_eq!(get("/v2/a/blobs/sha256:0", &[]).await.0, 400);
    assert_eq!(get("/v2/zzz/tags/list", &[]).await.0, 404);
}
