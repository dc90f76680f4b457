//! Uploads to servers that stumble.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use registry::{Access, Class, Credentials, RegistryError};

use crate::{
    bounded, bytes, digest,
    fault_server::{FaultServer, Reply, Seen},
    open, open_with,
};

fn file(raw: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(raw).unwrap();
    file
}

/// A registry without the blob, whose answer to the n-th PUT is `put(n)`.
async fn registry(location: &str, put: impl Fn(usize) -> Reply + Send + Sync + 'static) -> FaultServer {
    let (location, count) = (location.to_owned(), AtomicUsize::new(0));
    FaultServer::start(move |seen: &Seen| match seen.method.as_str() {
        "POST" => Reply::status(202).header("Location", &location),
        "PUT" => put(count.fetch_add(1, Ordering::Relaxed)),
        _ => Reply::status(404),
    })
    .await
}

#[tokio::test]
async fn starts_over_after_a_failure() {
    let raw = bytes(1_000_000);
    let server = registry("/upload/here?_state=a%2Fb%3D", |count| match count {
        0 => Reply::status(500),
        1 => Reply::hang_up(),
        2 => Reply::status(416),
        _ => Reply::status(201),
    })
    .await;
    let steps = Mutex::new(Vec::new());
    let progress = |sent| steps.lock().unwrap().push(sent);
    bounded(open(&server.host()).push_blob(&digest(&raw), 1_000_000, file(&raw), &progress)).await.unwrap();
    let seen = server.seen();
    let puts: Vec<_> = seen.iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 4);
    for put in puts {
        assert!(put.body == raw, "each from the first byte");
        let query = format!("_state=a%2Fb%3D&digest=sha256%3A{}", digest(&raw).hex());
        assert_eq!(put.path, format!("/upload/here?{query}"));
        assert_eq!(put.header("transfer-encoding"), None);
    }
    assert_eq!(seen.iter().filter(|seen| seen.method == "POST").count(), 4, "each in a session of its own");
    let steps = steps.into_inner().unwrap();
    let tries: Vec<_> = steps.split(|&sent| sent == 0).skip(1).collect();
    assert_eq!(tries.len(), 4, "{steps:?}");
    assert!(tries.iter().all(|sent| sent.is_sorted()) && steps.last() == Some(&1_000_000), "{steps:?}");
}

#[tokio::test]
async fn uploads_nothing_with_a_length() {
    let server = registry("/upload/here", |_| Reply::status(201)).await;
    bounded(open(&server.host()).push_blob(&digest(b""), 0, file(b""), &|_| {})).await.unwrap();
    bounded(open(&server.host()).push_bytes(b"")).await.unwrap();
    for seen in server.seen().iter().filter(|seen| seen.method != "HEAD") {
        assert_eq!(seen.header("content-length"), Some("0"), "{seen:?}");
    }
}

#[tokio::test]
async fn says_when_an_upload_is_too_large() {
    let raw = bytes(8 << 20);
    let server = registry("/upload/here", |_| Reply::status(413)).await;
    let repository = open(&server.host());
    let error = bounded(repository.push_blob(&digest(&raw), 8 << 20, file(&raw), &|_| {})).await.unwrap_err();
    assert_eq!(error.class(), Class::Fatal, "{error:?}");
    assert!(error.hint().unwrap().contains("limits the size"));
}

#[tokio::test]
async fn says_when_the_file_is_the_problem() {
    let raw = bytes(1000);
    let server = registry("/upload/here", |_| Reply::status(201)).await;
    let repository = open(&server.host());
    let error = bounded(repository.push_blob(&digest(&raw), 1001, file(&raw), &|_| {})).await.unwrap_err();
    assert!(matches!(error, RegistryError::File { .. }), "{error:?}");
}

#[tokio::test]
async fn shows_credentials_to_no_upload_server() {
    let elsewhere = FaultServer::replay([Reply::status(201)]).await;
    let location = format!("http://{}/upload?signature=x", elsewhere.host());
    let challenge = r#"Basic realm="here""#;
    let server = FaultServer::start(move |seen| match (seen.header("authorization"), seen.method.as_str()) {
        (None, _) => Reply::status(401).header("WWW-Authenticate", challenge),
        (_, "POST") => Reply::status(202).header("Location", &location),
        _ => Reply::status(404),
    })
    .await;
    let credentials = Credentials::Basic { username: "me".to_owned(), password: "hunter2".to_owned() };
    let access = Access { plain_http: true, credentials, ..Access::default() };
    bounded(open_with(&server.host(), access).push_bytes(b"blob")).await.unwrap();
    let seen = elsewhere.seen();
    assert_eq!((seen.len(), seen[0].body.as_slice()), (1, &b"blob"[..]));
    assert_eq!(seen[0].header("authorization"), None);
}

#[tokio::test]
async fn checks_what_the_registry_says_it_took() {
    let wrong = Reply::status(201).header("Docker-Content-Digest", &digest(b"other").to_string());
    let server = FaultServer::replay([wrong]).await;
    let error = bounded(open(&server.host()).push_manifest(b"{}", "a/b", Some("v1"))).await.unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
}

#[tokio::test]
async fn leaves_the_tag_alone_where_referrers_are_kept_or_it_is_taken() {
    let subject = digest(b"subject");
    let keeps = FaultServer::replay([Reply::status(201).header("OCI-Subject", &subject.to_string())]).await;
    bounded(open(&keeps.host()).push_referrer(b"{}", &subject, "a/b")).await.unwrap();
    assert_eq!(keeps.seen().len(), 1);

    let taken = FaultServer::start(|seen| match seen.method.as_str() {
        "GET" => Reply::body(200, r#"{"schemaVersion":2,"layers":[]}"#),
        _ => Reply::status(201),
    })
    .await;
    let error = bounded(open(&taken.host()).push_referrer(b"{}", &subject, "a/b")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Occupied { .. }), "{error}");
    assert_eq!(taken.seen().iter().filter(|seen| seen.method == "PUT").count(), 1, "the manifest only");
}
