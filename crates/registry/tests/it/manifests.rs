//! Manifests, small blobs and referrers from servers that lie, ramble or know less than they should.

use std::time::Duration;

use modelpack::piece_trees::{ARTIFACT_TYPE, fallback_tag};
use registry::{Class, Patience, RegistryError};

use crate::{
    bounded, digest,
    fault_server::{FaultServer, Reply},
    open, patience,
};

const MANIFEST: &[u8] = br#"{"schemaVersion":2}"#;

#[tokio::test]
async fn takes_wrong_bytes_for_an_accident_once() {
    let wrong = || Reply::body(200, &br#"{"schemaVersion":3}"#[..]);
    let server = FaultServer::replay([wrong(), Reply::body(200, MANIFEST)]).await;
    let raw = bounded(open(&server.host()).manifest(&digest(MANIFEST))).await.unwrap();
    assert_eq!((raw, server.seen().len()), (MANIFEST.to_owned(), 2));

    let server = FaultServer::replay([wrong()]).await;
    let repository = open(&server.host());
    let error = bounded(repository.manifest(&digest(MANIFEST))).await.unwrap_err();
    assert_eq!((error.class(), server.seen().len()), (Class::Integrity, 2));
    let error = bounded(repository.small_blob(&digest(MANIFEST), 100)).await.unwrap_err();
    assert_eq!((error.class(), server.seen().len()), (Class::Integrity, 4));

    // Without a digest of the user's, damage on the way shows against the registry's word.
    let stated = digest(MANIFEST).to_string();
    let server = FaultServer::replay([wrong().header("Docker-Content-Digest", &stated)]).await;
    let error = bounded(open(&server.host()).resolve(Some("v1"), None)).await.unwrap_err();
    assert_eq!(error.class(), Class::Integrity);
    assert_eq!(server.seen()[0].path, "/v2/models/one/manifests/v1");
}

#[tokio::test]
async fn reads_no_more_than_belongs_there() {
    let oversized = vec![b' '; (4 << 20) + 1];
    for reply in [Reply::body(200, oversized), Reply::body(200, vec![b' '; 64 << 10]).endless()] {
        let server = FaultServer::replay([reply]).await;
        let error = bounded(open(&server.host()).resolve(Some("v1"), None)).await.unwrap_err();
        assert!(matches!(error, RegistryError::TooLarge { .. }), "{error}");
        assert_eq!(server.seen().len(), 1);
    }
}

#[tokio::test]
async fn asks_again_when_a_small_answer_breaks_or_drags() {
    let good = || Reply::body(200, MANIFEST);
    let server = FaultServer::replay([good().short(5), good().reset(5), good()]).await;
    bounded(open(&server.host()).manifest(&digest(MANIFEST))).await.unwrap();

    let server = FaultServer::replay([good().silent(5), good()]).await;
    let patience = Patience { small_answer_max: Duration::from_millis(300), ..patience() };
    bounded(open(&server.host()).with_patience(patience).manifest(&digest(MANIFEST))).await.unwrap();
}

fn index(entries: &[(&str, &str)]) -> Vec<u8> {
    let manifests: Vec<_> = entries
        .iter()
        .map(|(digest, artifact_type)| serde_json::json!({"digest": digest, "artifactType": artifact_type}))
        .collect();
    serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
}

#[tokio::test]
async fn lists_referrers_over_pages_by_its_own_judgement() {
    let (one, two, other) = (digest(b"1").to_string(), digest(b"2").to_string(), digest(b"3").to_string());
    // Filters are optional for registries.
    let first = index(&[(&one, ARTIFACT_TYPE), (&other, "application/sbom"), ("sha512:00", ARTIFACT_TYPE)]);
    let second = index(&[(&one, ARTIFACT_TYPE), (&two, ARTIFACT_TYPE)]);
    let server = FaultServer::replay([
        Reply::status(503),
        Reply::body(200, first).header("Link", r#"</v2/models/one/more?last=x>; rel="next""#),
        Reply::body(200, second),
    ])
    .await;
    let found = bounded(open(&server.host()).referrers(&digest(MANIFEST), ARTIFACT_TYPE)).await.unwrap();
    assert_eq!(found, [digest(b"1"), digest(b"2")]);
    let paths: Vec<_> = server.seen().into_iter().map(|seen| seen.path).collect();
    let subject = digest(MANIFEST);
    let api =
        format!("/v2/models/one/referrers/{subject}?artifactType=application%2Fvnd.modelcast.pieces.v1");
    assert_eq!(paths, [api.as_str(), api.as_str(), "/v2/models/one/more?last=x"]);

    // Pages that never end.
    let page = Reply::body(200, index(&[(&one, ARTIFACT_TYPE)])).header("Link", "</v2/again>; rel=next");
    let server = FaultServer::replay([page]).await;
    let found = bounded(open(&server.host()).referrers(&subject, ARTIFACT_TYPE)).await.unwrap();
    assert_eq!((found, server.seen().len()), (vec![digest(b"1")], 16));
}

#[tokio::test]
async fn falls_back_to_the_tag() {
    let subject = digest(MANIFEST);
    let one = digest(b"1").to_string();
    let path = format!("/v2/models/one/manifests/{}", fallback_tag(&subject));
    let apis = [
        Reply::status(404),
        Reply::status(405),
        Reply::body(200, "<html>welcome</html>"),
        // Under the type of its config, as go-containerregistry's registry lists it; or not at all.
        Reply::body(200, index(&[(&one, "application/vnd.oci.empty.v1+json")])),
        Reply::body(200, index(&[])),
    ];
    for api in apis {
        let listed = index(&[(&one, ARTIFACT_TYPE)]);
        let tag = path.clone();
        let server =
            FaultServer::start(
                move |seen| {
                    if seen.path == tag { Reply::body(200, listed.clone()) } else { api.clone() }
                },
            )
            .await;
        let found = bounded(open(&server.host()).referrers(&subject, ARTIFACT_TYPE)).await.unwrap();
        assert_eq!(found, [digest(b"1")]);
    }
    for nothing in [Reply::status(404), Reply::body(404, "<html>no</html>")] {
        let server = FaultServer::replay([nothing]).await;
        let found = bounded(open(&server.host()).referrers(&subject, ARTIFACT_TYPE)).await.unwrap();
        assert!(found.is_empty());
    }
}
