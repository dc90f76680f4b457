//! Models of a hub: what is listed, what is read, what is refused, and what goes on to a registry.

use std::{
    fs,
    io::Read as _,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use modelpack::{
    digest::Sha256Digest,
    manifest::Manifest,
    reference::{HubReference, Reference},
};
use registry::{
    Access, CachedModel, Class, FileBytes, HubAccess, HubFailure, Problem, RegistryError, Snapshot,
};

use crate::{
    bounded, bytes, digest,
    docker_registry::{DockerRegistry, Setup},
    fault_server::{FaultServer, Reply, Seen},
    hub_model::{COMMIT, HubModel, MODEL},
    open, patience,
};

const LARGE: usize = 3_000_000;

fn model() -> HubModel {
    HubModel::new()
        .with("config.json", r#"{"model_type":"bert","architectures":["B"]}"#)
        .with("empty.txt", "")
        .with("sub/with space.md", "# hello\n")
        .with_lfs("model.bin", bytes(LARGE))
        .with_lfs("sub/twin.bin", bytes(LARGE))
}

async fn serve(model: HubModel) -> FaultServer {
    FaultServer::start(move |seen| model.reply(seen)).await
}

/// A server that says something else to some requests.
async fn serve_but(
    model: HubModel,
    other: impl Fn(&Seen, usize) -> Option<Reply> + Send + Sync + 'static,
) -> FaultServer {
    let count = AtomicUsize::new(0);
    FaultServer::start(move |seen| {
        let said = other(seen, count.fetch_add(1, Ordering::Relaxed));
        said.unwrap_or_else(|| model.reply(seen))
    })
    .await
}

fn at(text: &str) -> HubReference {
    let Ok(Reference::Hub(at)) = text.parse() else { panic!("`{text}` is on a hub") };
    at
}

fn access(server: &FaultServer) -> Access {
    let hub = HubAccess { endpoint: format!("http://{}", server.host()), ..HubAccess::default() };
    Access { hub, ..Access::default() }
}

async fn snapshot_of(server: &FaultServer) -> Result<Snapshot, RegistryError> {
    Snapshot::open_with(&at(&format!("hf://{MODEL}")), &access(server), patience()).await
}

/// All that is to be read of a range.
async fn read(snapshot: &Snapshot, digest: &Sha256Digest, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut all = Vec::new();
    match snapshot.read(digest, range).await.unwrap() {
        FileBytes::Stream(mut stream) => {
            while let Some(bytes) = stream.next().await.unwrap() {
                all.extend_from_slice(&bytes);
            }
        }
        FileBytes::Cached(mut file) => drop(file.read_to_end(&mut all).unwrap()),
        FileBytes::Kept(bytes) => all.extend_from_slice(&bytes),
    }
    all
}

#[tokio::test]
async fn a_model_is_listed_and_read_as_an_artifact() {
    bounded(async {
        let server = serve(model()).await;
        let access = access(&server);
        // On another thread, as peers do it.
        let opening = async move { Snapshot::open_with(&at("hf://org/small"), &access, patience()).await };
        let snapshot = tokio::spawn(opening).await.unwrap().unwrap();
        assert_eq!(snapshot.commit().to_string(), COMMIT);
        let manifest = Manifest::parse(snapshot.manifest()).unwrap();
        assert_eq!((manifest.files().len(), manifest.blobs().len()), (5, 4), "two files are one blob");
        let config = String::from_utf8(snapshot.config().to_vec()).unwrap();
        for part in ["hf://org/small", COMMIT, r#""family":"bert""#] {
            assert!(config.contains(part), "{config}");
        }
        for (file, digest) in snapshot.files() {
            let expected = model().bytes(&file.path).to_vec();
            assert_eq!(*digest, Sha256Digest::of(&expected), "{}", file.path);
            assert!(read(&snapshot, digest, 0..file.size).await == expected, "{}", file.path);
        }
        let weights = digest(&bytes(LARGE));
        assert!(read(&snapshot, &weights, 1000..5000).await == bytes(LARGE)[1000..5000]);
        // The same everywhere, whoever asks and whatever the hub is called.
        let again = snapshot_of(&serve(model()).await).await.unwrap();
        assert_eq!(again.manifest(), snapshot.manifest());
    })
    .await;
}

#[tokio::test]
async fn a_token_goes_to_the_hub_alone() {
    bounded(async {
        let server = serve(model().gated("secret")).await;
        let mut access = access(&server);
        access.hub.token = Some("secret".into());
        let snapshot = Snapshot::open_with(&at("hf://org/small@main"), &access, patience()).await.unwrap();
        read(&snapshot, &digest(&bytes(LARGE)), 0..10).await;
        let seen = server.seen();
        let shown = |seen: &Seen| seen.header("authorization") == Some("Bearer secret");
        assert!(seen.iter().all(|seen| shown(seen) != seen.path.starts_with("/storage/")));
        assert!(seen.iter().any(|seen| seen.path.starts_with("/storage/")));
    })
    .await;
}

fn problem(error: &RegistryError) -> Option<Problem> {
    match error {
        RegistryError::Hub(HubFailure::Refused { problem, .. }) => Some(*problem),
        _ => None,
    }
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    bounded(async {
        let gated = serve(model().gated("secret")).await;
        let open_as = async |text: &str, token: Option<&str>| {
            let mut access = access(&gated);
            access.hub.token = token.map(str::to_owned);
            Snapshot::open_with(&at(text), &access, patience()).await.unwrap_err()
        };
        let check = |error: RegistryError, expected, class, hint: &str| {
            assert_eq!((problem(&error), error.class()), (Some(expected), class), "{error:?}");
            assert!(error.hint().unwrap().contains(hint), "{error:?}: {:?}", error.hint());
        };
        let name = "hf://org/small";
        check(open_as(name, None).await, Problem::Gated, Class::Unauthorized, "HF_TOKEN");
        let other = open_as(name, Some("other")).await;
        check(other, Problem::Gated, Class::Unauthorized, "the account of the token");
        let absent = open_as("hf://org/absent", None).await;
        check(absent, Problem::NoModel, Class::NotFound, "private");
        let revision = open_as("hf://org/small@v9", Some("secret")).await;
        check(revision, Problem::NoRevision, Class::NotFound, "/tree/main");
        let seen = gated.seen().len();
        assert!(seen < 20, "nothing of this is asked again: {seen} requests");
    })
    .await;
}

#[tokio::test]
async fn a_hub_that_limits_requests_is_asked_again_and_in_the_end_believed() {
    bounded(async {
        let limited = || Reply::status(429).header("RateLimit", r#""api";r=0;t=7"#);
        let server = serve_but(model(), move |_, count| (count < 3).then(limited)).await;
        snapshot_of(&server).await.unwrap();
        let server = serve_but(model(), move |_, _| Some(limited())).await;
        let error = snapshot_of(&server).await.unwrap_err();
        assert_eq!(problem(&error), Some(Problem::Limited));
        assert!(error.hint().unwrap().contains("in 7 s"), "{:?}", error.hint());
        assert_eq!(server.seen().len(), patience().attempts as usize);
    })
    .await;
}

#[tokio::test]
async fn what_breaks_on_the_way_is_asked_for_again() {
    bounded(async {
        for fault in ["listing", "small", "storage"] {
            let faulty = move |seen: &Seen, _: usize| {
                let is_meant = match fault {
                    "listing" => seen.path.contains("/tree/"),
                    "small" => seen.path.ends_with("config.json"),
                    _ => seen.path.starts_with("/storage/"),
                };
                is_meant.then(|| model().reply(seen).short(3))
            };
            let count = AtomicUsize::new(0);
            let server = serve_but(model(), move |seen, number| {
                let reply = faulty(seen, number)?;
                (count.fetch_add(1, Ordering::Relaxed) == 0).then_some(reply)
            })
            .await;
            snapshot_of(&server).await.unwrap_or_else(|error| panic!("{fault}: {error:?}"));
        }
    })
    .await;
}

#[tokio::test]
async fn an_expired_address_of_storage_is_asked_for_anew() {
    bounded(async {
        let count = AtomicUsize::new(0);
        let server = serve_but(model(), move |seen, _| {
            let is_second = seen.path.starts_with("/storage/") && count.fetch_add(1, Ordering::Relaxed) == 1;
            is_second.then(|| Reply::status(403))
        })
        .await;
        let snapshot = snapshot_of(&server).await.unwrap();
        assert!(read(&snapshot, &digest(&bytes(LARGE)), 0..100).await == bytes(100));
        let resolved = server.seen().iter().filter(|seen| seen.path.contains("/resolve/")).count();
        assert_eq!(resolved, 3 + 2, "three small files, and the large one twice");
    })
    .await;
}

#[tokio::test]
async fn wrong_bytes_and_wrong_links_are_not_taken() {
    bounded(async {
        let server = serve(model().sending("config.json", vec![b'x'; 43])).await;
        let error = snapshot_of(&server).await.unwrap_err();
        assert_eq!(error.class(), Class::Integrity, "{error:?}");
        for (name, value) in [("X-Linked-Etag", "\"ab\""), ("X-Linked-Size", "5")] {
            let server = serve_but(model(), move |seen, _| {
                let is_linked = seen.path.contains("/resolve/") && seen.path.contains(".bin");
                is_linked.then(|| model().reply(seen).header(name, value))
            })
            .await;
            let error = snapshot_of(&server).await.unwrap_err();
            assert_eq!(error.class(), Class::Integrity, "{name}: {error:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn listings_that_never_end_or_escape_are_refused() {
    bounded(async {
        let counted =
            |count: usize| format!(r#"</api/models/org/small/tree/{COMMIT}?cursor={count}>; rel="next""#);
        let endless = move |seen: &Seen, count: usize| {
            seen.path.contains("/tree/").then(|| Reply::body(200, "[]").header("Link", &counted(count)))
        };
        let server = serve_but(model(), endless).await;
        let error = snapshot_of(&server).await.unwrap_err();
        assert!(matches!(error, RegistryError::Hub(HubFailure::Listing { .. })), "{error:?}");
        assert!(server.seen().len() < 100);
        for path in ["../evil", "/etc/evil", "a/../../evil", ".modelctl/evil"] {
            let entry = format!(r#"[{{"type":"file","oid":"{COMMIT}","size":1,"path":"{path}"}}]"#);
            let server = serve_but(model(), move |seen, _| {
                seen.path.contains("/tree/").then(|| Reply::body(200, entry.clone()))
            })
            .await;
            let error = snapshot_of(&server).await.unwrap_err();
            assert!(matches!(error, RegistryError::Hub(HubFailure::Listing { .. })), "{path}: {error:?}");
        }
        let server = serve_but(model(), |seen, _| {
            seen.path.contains("/tree/").then(|| Reply::body(200, "[")).or(None)
        })
        .await;
        assert_eq!(snapshot_of(&server).await.unwrap_err().class(), Class::Fatal);
    })
    .await;
}

#[tokio::test]
async fn what_is_in_the_shared_cache_is_not_asked_for() {
    bounded(async {
        let server = serve(model()).await;
        let root = tempfile::tempdir().unwrap();
        let blobs = root.path().join("models--org--small/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let weights = digest(&bytes(LARGE));
        fs::write(blobs.join(weights.hex()), bytes(LARGE)).unwrap();
        let mut access = access(&server);
        access.hub.cache = Some(root.path().to_owned());
        let snapshot = Snapshot::open_with(&at("hf://org/small"), &access, patience()).await.unwrap();
        let before = server.seen().len();
        assert!(read(&snapshot, &weights, 0..LARGE as u64).await == bytes(LARGE));
        assert_eq!(server.seen().len(), before);
        // Somebody who found it to be wrong gets it from the hub.
        snapshot.distrust(&weights);
        assert!(matches!(snapshot.read(&weights, 0..5).await.unwrap(), FileBytes::Stream(_)));
        // A file of another size is none of it.
        fs::write(blobs.join(weights.hex()), b"short").unwrap();
        let snapshot = Snapshot::open_with(&at("hf://org/small"), &access, patience()).await.unwrap();
        assert!(matches!(snapshot.read(&weights, 0..5).await.unwrap(), FileBytes::Stream(_)));
    })
    .await;
}

#[tokio::test]
async fn offline_nothing_is_asked_of_the_hub() {
    bounded(async {
        let server = serve(model()).await;
        let root = tempfile::tempdir().unwrap();
        let mut access = access(&server);
        (access.hub.cache, access.hub.is_offline) = (Some(root.path().to_owned()), true);
        let error = Snapshot::open(&at("hf://org/small"), &access).await.unwrap_err();
        assert!(matches!(error, RegistryError::Hub(HubFailure::NoRevision { .. })), "{error:?}");
        assert!(error.hint().unwrap().contains("HF_HUB_OFFLINE"));
        assert!(server.seen().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_damaged_file_of_the_cache_is_an_integrity_failure_where_there_is_no_hub() {
    bounded(async {
        let server = serve(HubModel::new().with_lfs("model.bin", bytes(LARGE))).await;
        let root = tempfile::tempdir().unwrap();
        let mut access = access(&server);
        let at = at("hf://org/small");
        let (commit, listing) = Snapshot::list(&at, &access).await.unwrap();
        let staged = root.path().join("staged");
        fs::create_dir(&staged).unwrap();
        fs::write(staged.join("model.bin"), bytes(LARGE)).unwrap();
        CachedModel::new(root.path(), &at).take(commit, &listing, &staged).unwrap();
        (access.hub.cache, access.hub.is_offline) = (Some(root.path().to_owned()), true);
        let snapshot = Snapshot::open(&at, &access).await.unwrap();
        let weights = digest(&bytes(LARGE));
        assert!(read(&snapshot, &weights, 0..LARGE as u64).await == bytes(LARGE));
        snapshot.distrust(&weights);
        let error = snapshot.read(&weights, 0..1).await.unwrap_err();
        assert_eq!(error.class(), Class::Integrity, "{error:?}");
    })
    .await;
}

#[tokio::test]
async fn a_file_goes_to_a_registry_and_is_proved_on_the_way() {
    bounded(async {
        let server = serve(model()).await;
        let registry = DockerRegistry::start(Setup::default());
        let to = open(registry.host());
        let snapshot = Arc::new(snapshot_of(&server).await.unwrap());
        let blob = bytes(LARGE);
        let (digest, size) = (digest(&blob), LARGE as u64);
        let tree = to.push_from_hub(&snapshot, (&digest, size), &|_| {}).await.unwrap();
        assert!(to.has_blob(&digest, size).await.unwrap());
        assert_eq!(to.small_blob(&digest, size).await.unwrap(), blob);
        // What is there tells the same.
        assert_eq!(to.survey_blob((&digest, size), &|_| {}).await.unwrap(), tree);
    })
    .await;
}

#[tokio::test]
async fn wrong_bytes_of_a_hub_are_held_back_from_a_registry() {
    bounded(async {
        let mut wrong = bytes(LARGE);
        wrong[LARGE - 1] ^= 1;
        let server = serve(model().sending("model.bin", wrong.clone()).sending("sub/twin.bin", wrong)).await;
        // One that takes whatever comes.
        let taken = Arc::new(AtomicUsize::new(0));
        let registry = {
            let taken = Arc::clone(&taken);
            FaultServer::start(move |seen| match seen.method.as_str() {
                "POST" => Reply::status(202).header("Location", "/upload"),
                "PUT" => {
                    taken.fetch_add(1, Ordering::Relaxed);
                    Reply::status(201)
                }
                _ => Reply::status(404),
            })
            .await
        };
        let snapshot = Arc::new(snapshot_of(&server).await.unwrap());
        let digest = digest(&bytes(LARGE));
        let pushed = open(&registry.host()).push_from_hub(&snapshot, (&digest, LARGE as u64), &|_| {}).await;
        let error = pushed.unwrap_err();
        assert_eq!(error.class(), Class::Integrity, "{error:?}");
        assert_eq!(taken.load(Ordering::Relaxed), 0, "no upload was ever complete");
    })
    .await;
}

#[tokio::test]
async fn a_damaged_file_of_the_cache_is_replaced_on_its_way_to_a_registry() {
    bounded(async {
        let server = serve(model()).await;
        let registry = DockerRegistry::start(Setup::default());
        let root = tempfile::tempdir().unwrap();
        let blobs = root.path().join("models--org--small/blobs");
        fs::create_dir_all(&blobs).unwrap();
        let digest = digest(&bytes(LARGE));
        fs::write(blobs.join(digest.hex()), vec![7; LARGE]).unwrap();
        let mut access = access(&server);
        access.hub.cache = Some(root.path().to_owned());
        let opened = Snapshot::open_with(&at("hf://org/small"), &access, patience()).await;
        let (snapshot, to) = (Arc::new(opened.unwrap()), open(registry.host()));
        to.push_from_hub(&snapshot, (&digest, LARGE as u64), &|_| {}).await.unwrap();
        assert!(to.has_blob(&digest, LARGE as u64).await.unwrap());
    })
    .await;
}
