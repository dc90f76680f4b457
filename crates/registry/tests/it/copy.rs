//! Blobs from one repository to another, uploads that go on where they broke, and what points at a manifest.

use std::sync::{Arc, Mutex};

use modelpack::{manifest::MEDIA_TYPE, reference::RegistryReference};
use registry::{Access, Class, Copied, Repository};
use serde_json::json;

use crate::{
    bounded, bytes, digest,
    docker_registry::{DockerRegistry, Setup},
    fault_server::{FaultServer, Reply, Seen},
    open, patience,
};

fn repository(host: &str, name: &str) -> Repository {
    let reference = RegistryReference {
        registry: host.to_owned(),
        repository: name.to_owned(),
        tag: Some("v1".to_owned()),
        digest: None,
    };
    let access = Access { plain_http: true, ..Access::default() };
    Repository::open(&reference, access).unwrap().with_patience(patience())
}

async fn copy(to: &Repository, from: &Repository, raw: &[u8]) -> Result<Copied, registry::RegistryError> {
    to.copy_blob(from, &digest(raw), raw.len() as u64, &|_| {}).await
}

#[tokio::test]
async fn blobs_go_from_registry_to_registry_and_within_one_by_name() {
    let (here, there) = (DockerRegistry::start(Setup::default()), DockerRegistry::start(Setup::default()));
    let (from, to) = (open(here.host()), open(there.host()));
    bounded(async {
        let blob = bytes(3_000_000);
        for raw in [&blob[..], b""] {
            from.push_bytes(raw).await.unwrap();
            assert_eq!(copy(&to, &from, raw).await.unwrap(), Copied::Sent);
            assert_eq!(copy(&to, &from, raw).await.unwrap(), Copied::WasThere);
            let size = raw.len() as u64;
            assert!(to.small_blob(&digest(raw), size).await.unwrap() == raw);
        }
        let other = repository(here.host(), "other/two").taking_from(&from);
        assert_eq!(copy(&other, &from, &blob).await.unwrap(), Copied::Mounted);
        assert!(other.has_blob(&digest(&blob), 3_000_000).await.unwrap());
        let error = copy(&to, &from, b"absent").await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound, "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_source_that_breaks_is_asked_for_the_rest_and_one_without_ranges_for_all() {
    let raw = bytes(1_000_000);
    for has_ranges in [true, false] {
        let (blob, count) = (raw.clone(), Mutex::new(0));
        let source = FaultServer::start(move |seen: &Seen| {
            let mut count = count.lock().unwrap();
            *count += 1;
            let whole = if has_ranges { Reply::blob(seen, &blob) } else { Reply::body(200, blob.clone()) };
            // Without ranges each begins anew, and has to come further.
            let bytes = 300_000 * if has_ranges { 1 } else { *count };
            if *count <= 3 { whole.short(bytes) } else { whole }
        })
        .await;
        let sink = DockerRegistry::start(Setup::default());
        let (from, to) = (open(&source.host()), open(sink.host()));
        assert_eq!(bounded(copy(&to, &from, &raw)).await.unwrap(), Copied::Sent);
        assert!(bounded(to.small_blob(&digest(&raw), 1_000_000)).await.unwrap() == raw);
        let starts: Vec<_> =
            source.seen().iter().map(|seen| seen.range().map_or(0, |range| range.start)).collect();
        assert_eq!(starts.len(), 4, "{starts:?}");
        assert!(starts.windows(2).all(|pair| pair[0] < pair[1]), "each asks for the rest: {starts:?}");
    }
}

#[tokio::test]
async fn what_the_source_says_is_told_and_not_that_an_upload_broke() {
    let source = FaultServer::start(|_| Reply::status(403)).await;
    let sink = DockerRegistry::start(Setup::default());
    let error = bounded(copy(&open(sink.host()), &open(&source.host()), b"blob")).await.unwrap_err();
    assert_eq!(error.class(), Class::Unauthorized, "{error:?}");
    assert!(error.to_string().contains(&source.host()), "{error}");
}

/// A registry that keeps what it has read of uploads, takes `first` bytes of the first PUT, and all of the next.
async fn forgetful(first: usize, status: impl Fn(usize) -> Reply + Send + Sync + 'static) -> FaultServer {
    let puts = Mutex::new(0);
    FaultServer::start(move |seen: &Seen| match seen.method.as_str() {
        "POST" => Reply::status(202).header("Location", "/upload/one?state=1"),
        "GET" => status(first),
        "PUT" => {
            let mut puts = puts.lock().unwrap();
            *puts += 1;
            if *puts == 1 { Reply::hang_up() } else { Reply::status(201) }
        }
        _ => Reply::status(404),
    })
    .await
}

#[tokio::test]
async fn a_large_upload_that_broke_goes_on_where_it_was() {
    let raw = bytes(17 << 20);
    let server = forgetful(5 << 20, |taken| {
        let range = format!("0-{}", taken - 1);
        Reply::status(204).header("Range", &range).header("Location", "/upload/one?state=2")
    })
    .await;
    let steps = Arc::new(Mutex::new(Vec::new()));
    push(&server, &raw, &steps).await;
    let seen = server.seen();
    let puts: Vec<_> = seen.iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(puts.len(), 2);
    assert_eq!(puts[0].header("content-range"), None);
    let last = (17 << 20) - 1;
    assert_eq!(puts[1].header("content-range"), Some(format!("{}-{last}", 5 << 20).as_str()));
    assert_eq!(puts[1].header("content-length"), Some((12 << 20).to_string().as_str()));
    assert!(puts[1].path.starts_with("/upload/one?state=2&digest="), "{}", puts[1].path);
    assert_eq!(seen.iter().filter(|seen| seen.method == "POST").count(), 1, "in the same session");
    assert_eq!(steps.lock().unwrap().last(), Some(&(17 << 20)));
}

#[tokio::test]
async fn one_that_says_nothing_useful_of_it_gets_all_anew() {
    let raw = bytes(17 << 20);
    let answers: [fn(usize) -> Reply; 4] = [
        |_| Reply::status(404),
        |_| Reply::status(204).header("Location", "/upload/one"),
        |_| Reply::status(204).header("Range", "0-99999999999").header("Location", "/upload/one"),
        |_| Reply::status(204).header("Range", "7-x").header("Location", "/upload/one"),
    ];
    for answer in answers {
        let server = forgetful(0, answer).await;
        push(&server, &raw, &Arc::default()).await;
        let seen = server.seen();
        let puts: Vec<_> = seen.iter().filter(|seen| seen.method == "PUT").collect();
        assert!(puts.len() == 2 && puts.iter().all(|put| put.header("content-range").is_none()));
        assert_eq!(seen.iter().filter(|seen| seen.method == "POST").count(), 2);
    }
}

async fn push(server: &FaultServer, raw: &[u8], steps: &Arc<Mutex<Vec<u64>>>) {
    use std::io::Write as _;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(raw).unwrap();
    let progress = |sent| steps.lock().unwrap().push(sent);
    let size = raw.len() as u64;
    bounded(open(&server.host()).push_blob(&digest(raw), size, file, &progress)).await.unwrap();
}

#[tokio::test]
async fn referrers_of_all_kinds_are_listed_over_pages_and_under_the_tag() {
    let subject = digest(b"subject");
    let entry = |name: &str, kind: &str| json!({"mediaType": MEDIA_TYPE, "digest": digest(name.as_bytes()).to_string(), "size": 1, "artifactType": kind});
    let pages = [json!({"manifests": [entry("a", "x/sig")]}), json!({"manifests": [entry("b", "x/sbom")]})];
    let tagged = json!({"schemaVersion": 2, "manifests": [entry("b", "x/sbom"), entry("c", "")]});
    let server = FaultServer::start(move |seen: &Seen| {
        if seen.path.contains("/manifests/") {
            return Reply::body(200, tagged.to_string());
        }
        let is_second = seen.path.contains("last=");
        let page = Reply::body(200, pages[usize::from(is_second)].to_string());
        if is_second {
            page
        } else {
            page.header("Link", r#"</v2/models/one/referrers/x?last=1>; rel="next""#)
        }
    })
    .await;
    let found = bounded(open(&server.host()).all_referrers(&subject)).await.unwrap();
    let found: Vec<_> = found.iter().map(|one| (one.digest, one.artifact_type.as_str())).collect();
    assert_eq!(found, [(digest(b"a"), "x/sig"), (digest(b"b"), "x/sbom"), (digest(b"c"), "")]);
    assert!(server.seen().iter().all(|seen| !seen.path.contains("artifactType")));
}

#[tokio::test]
async fn a_token_for_a_mount_opens_both_repositories() {
    let tokens = FaultServer::start(|_| Reply::body(200, r#"{"token":"one","expires_in":300}"#)).await;
    let challenge = format!(r#"Bearer realm="http://{}/token",service="here""#, tokens.host());
    let server =
        FaultServer::start(move |seen: &Seen| match (seen.header("authorization"), seen.method.as_str()) {
            (None, _) => Reply::status(401).header("WWW-Authenticate", &challenge),
            (_, "POST") => Reply::status(201),
            _ => Reply::status(404),
        })
        .await;
    let from = repository(&server.host(), "models/one");
    let to = repository(&server.host(), "other/two").taking_from(&from);
    assert_eq!(bounded(copy(&to, &from, b"blob")).await.unwrap(), Copied::Mounted);
    let asked: Vec<_> = tokens.seen().iter().map(|seen| seen.path.clone()).collect();
    let scopes = "scope=repository%3Aother%2Ftwo%3Apull%2Cpush&scope=repository%3Amodels%2Fone%3Apull";
    assert_eq!(asked.last().unwrap(), &format!("/token?service=here&{scopes}"), "{asked:?}");
    let mount = server.seen().into_iter().find(|seen| seen.method == "POST").unwrap();
    let digest = digest(b"blob").hex();
    assert_eq!(mount.path, format!("/v2/other/two/blobs/uploads/?mount=sha256%3A{digest}&from=models%2Fone"));
}
