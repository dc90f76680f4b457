//! The whole client against docker-registry 2.8: plain, with a login, over TLS.

use std::{fs::File, io::Write as _, ops::Range};

use modelpack::{
    digest::Sha256Digest,
    manifest::MEDIA_TYPE,
    piece_trees::{ARTIFACT_TYPE, fallback_tag},
};
use registry::{Access, Class, Credentials, Repository};
use serde_json::{Value, json};

use crate::{
    bounded, bytes, digest,
    docker_registry::{DockerRegistry, Setup},
    open, open_with,
};

async fn push_file(repository: &Repository, raw: &[u8]) -> Vec<u64> {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(raw).unwrap();
    let steps = std::sync::Mutex::new(Vec::new());
    let progress = |sent| steps.lock().unwrap().push(sent);
    repository.push_blob(&digest(raw), raw.len() as u64, file, &progress).await.unwrap();
    steps.into_inner().unwrap()
}

async fn read(repository: &Repository, blob: &[u8], range: Range<usize>) -> Vec<u8> {
    let range = range.start as u64..range.end as u64;
    let mut stream = repository.read(&digest(blob), blob.len() as u64, range.clone()).await.unwrap();
    assert_eq!(stream.start(), range.start);
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    all
}

fn descriptor(media_type: &str, raw: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": digest(raw).to_string(), "size": raw.len()})
}

/// A manifest over `layers`, with `{}` as its config, which is pushed too.
async fn push_manifest(repository: &Repository, layers: &[&[u8]]) -> (Vec<u8>, Sha256Digest) {
    repository.push_bytes(b"{}").await.unwrap();
    let layers: Vec<_> = layers.iter().map(|raw| descriptor("application/octet-stream", raw)).collect();
    let config = descriptor("application/vnd.oci.empty.v1+json", b"{}");
    let manifest = json!({"schemaVersion": 2, "mediaType": MEDIA_TYPE, "config": config, "layers": layers});
    let raw = serde_json::to_vec(&manifest).unwrap();
    let pushed = repository.push_manifest(&raw, MEDIA_TYPE, Some("v1")).await.unwrap();
    (raw, pushed)
}

#[tokio::test]
async fn gives_back_what_was_pushed() {
    let registry = DockerRegistry::start(Setup::default());
    let repository = open(registry.host());
    bounded(async {
        let blob = bytes(3_000_000);
        let none: &[u8] = b"";
        assert!(!repository.has_blob(&digest(&blob), 3_000_000).await.unwrap());
        let steps = push_file(&repository, &blob).await;
        assert!(steps.len() > 2 && steps.is_sorted(), "it says how far it is");
        assert!(repository.has_blob(&digest(&blob), 3_000_000).await.unwrap());
        assert_eq!(push_file(&repository, &blob).await, [3_000_000], "nothing is sent twice");
        // On another thread, as a pool of uploads would.
        let other = repository.clone();
        tokio::spawn(async move { push_file(&other, b"").await }).await.unwrap();

        for range in [0..1, 1_000_000..2_500_000, 2_999_999..3_000_000, 0..3_000_000] {
            let slice = &blob[range.clone()];
            assert!(read(&repository, &blob, range).await == slice);
        }
        assert!(repository.small_blob(&digest(none), 0).await.unwrap().is_empty());
        assert_eq!(repository.small_blob(&digest(&blob), 3_000_000).await.unwrap().len(), 3_000_000);

        let (raw, pushed) = push_manifest(&repository, &[&blob, none]).await;
        assert_eq!(push_manifest(&repository, &[&blob, none]).await.1, pushed);
        assert_eq!(pushed, digest(&raw));
        assert_eq!(repository.resolve(Some("v1"), None).await.unwrap(), raw);
        assert_eq!(repository.resolve(Some("other"), Some(&pushed)).await.unwrap(), raw);
        let missing = repository.resolve(Some("other"), None).await.unwrap_err();
        assert_eq!(missing.class(), Class::NotFound);
        assert!(missing.to_string().contains("MANIFEST_UNKNOWN"), "{missing}");
    })
    .await;
}

#[tokio::test]
async fn lists_referrers_under_the_fallback_tag_once() {
    let registry = DockerRegistry::start(Setup::default());
    let repository = open(registry.host());
    bounded(async {
        let (subject_raw, subject) = push_manifest(&repository, &[]).await;
        let referrer = |number: u32| {
            let manifest = json!({
                "schemaVersion": 2, "mediaType": MEDIA_TYPE, "artifactType": ARTIFACT_TYPE,
                "config": descriptor("application/vnd.oci.empty.v1+json", b"{}"), "layers": [],
                "subject": descriptor(MEDIA_TYPE, &subject_raw), "annotations": {"number": number.to_string()},
            });
            serde_json::to_vec(&manifest).unwrap()
        };
        assert!(repository.referrers(&subject, ARTIFACT_TYPE).await.unwrap().is_empty());
        let first = repository.push_referrer(&referrer(1), &subject, ARTIFACT_TYPE).await.unwrap();
        let second = repository.push_referrer(&referrer(2), &subject, "application/other").await.unwrap();
        repository.push_referrer(&referrer(1), &subject, ARTIFACT_TYPE).await.unwrap();
        assert_eq!(repository.referrers(&subject, ARTIFACT_TYPE).await.unwrap(), [first]);
        assert_eq!(repository.referrers(&subject, "application/other").await.unwrap(), [second]);
        assert_eq!(repository.manifest(&first).await.unwrap(), referrer(1));

        let index = repository.resolve(Some(&fallback_tag(&subject)), None).await.unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let entries = index["manifests"].as_array().unwrap();
        assert_eq!(entries.len(), 2);
        let expected = json!({
            "mediaType": MEDIA_TYPE, "digest": first.to_string(), "size": referrer(1).len(),
            "artifactType": ARTIFACT_TYPE, "annotations": {"number": "1"},
        });
        assert_eq!(entries[0], expected);
    })
    .await;
}

#[tokio::test]
async fn logs_in() {
    let registry = DockerRegistry::start(Setup { wants_login: true, ..Setup::default() });
    let with = |password: &str| {
        let credentials = Credentials::Basic { username: "me".to_owned(), password: password.to_owned() };
        open_with(registry.host(), Access { plain_http: true, credentials, ..Access::default() })
    };
    bounded(async {
        let blob = bytes(600_000);
        push_file(&with("secret"), &blob).await;
        assert!(read(&with("secret"), &blob, 1000..500_000).await == blob[1000..500_000]);
        for stranger in [with("wrong"), open(registry.host())] {
            let error = stranger.read(&digest(&blob), 600_000, 0..1).await.unwrap_err();
            assert_eq!(error.class(), Class::Unauthorized, "{error}");
            let error = stranger.push_bytes(b"x").await.unwrap_err();
            assert_eq!(error.class(), Class::Unauthorized, "{error}");
        }
    })
    .await;
}

#[tokio::test]
async fn trusts_the_authority_it_is_given_and_no_other() {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let certificate = own.cert.pem();
    let tls = Some((certificate.clone(), own.signing_key.serialize_pem()));
    let registry = DockerRegistry::start(Setup { tls, ..Setup::default() });
    bounded(async {
        let access = Access { ca_pem: Some(certificate.into_bytes()), ..Access::default() };
        let repository = open_with(registry.host(), access);
        let blob = bytes(600_000);
        push_file(&repository, &blob).await;
        assert!(read(&repository, &blob, 1000..500_000).await == blob[1000..500_000]);

        let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let access = Access { ca_pem: Some(other.cert.pem().into_bytes()), ..Access::default() };
        let error = open_with(registry.host(), access).resolve(Some("v1"), None).await.unwrap_err();
        assert_eq!(error.class(), Class::Fatal, "{error:?}");
        assert!(error.hint().unwrap().contains("--ca-cert"));
    })
    .await;
}

#[tokio::test]
async fn shows_its_certificate_to_a_registry_that_asks_for_one() {
    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        (certificate.pem(), rcgen::Issuer::new(params, key))
    };
    let (ca, issuer) = authority("one authority");
    let signed = |names: &[&str]| {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &issuer).unwrap().pem(), key.serialize_pem())
    };
    let tls = Some(signed(&["localhost", "127.0.0.1"]));
    let setup = Setup { tls, client_ca: Some(ca.clone()), ..Setup::default() };
    let registry = DockerRegistry::start(setup);
    let (certificate, key) = signed(&["client"]);
    let ca_pem = Some(ca.into_bytes());
    bounded(async {
        let client_pem = Some(format!("{certificate}\n{key}").into_bytes());
        let access = Access { ca_pem: ca_pem.clone(), client_pem, ..Access::default() };
        let repository = open_with(registry.host(), access);
        let blob = bytes(600_000);
        push_file(&repository, &blob).await;
        assert!(read(&repository, &blob, 1000..500_000).await == blob[1000..500_000]);
        let stranger = open_with(registry.host(), Access { ca_pem, ..Access::default() });
        stranger.resolve(Some("v1"), None).await.unwrap_err();
    })
    .await;
}
