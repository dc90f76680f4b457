//! Pulls without scheduler, daemon or store.

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use modelpack::{digest::Sha256Digest, piece_trees::TreesManifest, reference::Reference};
use peer::{ErrorClass, PeerError, PullRequest, PullWatch, Transports};
use registry::Access;
use serde_json::json;

use crate::{
    origin::{FaultServer, Gate, Holding, Origin, Read, Reply},
    support::{Model, PATIENCE, names, pattern, pull},
};

const PIECE: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_of_a_layout_lands_proved() {
    let (model, top) = (Model::of(9), tempfile::tempdir().unwrap());
    let reference = model.write_layout(&top.path().join("layout"));
    let output = top.path().join("out");
    let report = pull(reference.clone(), &output).await.unwrap();
    model.assert_in(&output);
    let expected = (model.bytes(), model.bytes(), model.digest());
    assert_eq!((report.bytes, report.origin_bytes, report.digest), expected);
    let again = pull(reference, &output).await.unwrap();
    assert_eq!((again.origin_bytes, again.local_bytes), (0, model.bytes()));
}

/// Pulls from a registry with this fault, and requires the model and nothing else.
async fn survives(
    name: &str,
    holding: fn(&Model) -> Holding,
    fault: impl Fn(&Read<'_>, Reply) -> Reply + Send + Sync + 'static,
) {
    let (model, top) = (Model::of(9), tempfile::tempdir().unwrap());
    let origin = Origin::with_fault(holding(&model), fault).await;
    let output = top.path().join("out");
    pull(origin.reference(), &output).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    model.assert_in(&output);
    assert_eq!(names(top.path()).len(), names(&output).len(), "{name}: nothing lies beside the directory");
}

/// Pulls from a registry with this fault, and requires an error of this class and no file under its final name.
async fn refuses(
    name: &str,
    class: ErrorClass,
    holding: Holding,
    fault: impl Fn(&Read<'_>, Reply) -> Reply + Send + Sync + 'static,
) -> PeerError {
    let top = tempfile::tempdir().unwrap();
    let origin = Origin::with_fault(holding, fault).await;
    let output = top.path().join("out");
    let error = pull(origin.reference(), &output).await.expect_err(name);
    assert_eq!(error.class(), class, "{name}: {error:?}");
    assert!(!output.exists(), "{name}: nothing has its final name");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_once_is_repaired() {
    let once = |change: fn(&Read<'_>, Reply) -> Reply| {
        move |read: &Read<'_>, reply: Reply| if read.number == 1 { change(read, reply) } else { reply }
    };
    for holding in [Holding::of, Holding::without_trees, Holding::foreign] {
        survives("a wrong byte", holding, once(|read, _| read.flipped())).await;
        survives("a short body", holding, once(|_, reply| reply.short(700_000))).await;
        survives("a reset in mid-body", holding, once(|_, reply| reply.reset(1_500_000))).await;
        survives("416", holding, once(|_, _| Reply::status(416))).await;
        survives("500", holding, once(|_, _| Reply::status(500))).await;
        survives("429", holding, once(|_, _| Reply::status(429).header("Retry-After", "0"))).await;
        survives("a hang-up", holding, once(|_, _| Reply::hang_up())).await;
        let other_place = |_: &Read<'_>, reply: Reply| reply.header("Content-Range", "bytes 0-9/10");
        survives("a wrong Content-Range", holding, once(other_place)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_stay_wrong_are_refused() {
    let model = Model::of(3);
    for holding in [Holding::of(&model), Holding::without_trees(&model), Holding::foreign(&model)] {
        let error = refuses("wrong bytes", ErrorClass::Integrity, holding, |read, _| read.flipped()).await;
        assert!(
            error.to_string().starts_with("the origin delivers wrong bytes for `model.bin`: "),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_wrong_as_a_whole_is_fetched_anew_by_the_next_pull() {
    let (model, top) = (Model::of(3), tempfile::tempdir().unwrap());
    let (holding, output) = (Holding::foreign(&model), top.path().join("out"));
    let is_repaired = Arc::new(AtomicU64::new(0));
    let repaired = Arc::clone(&is_repaired);
    let origin = Origin::with_fault(holding, move |read, reply| {
        if repaired.load(Ordering::SeqCst) == 0 { read.flipped() } else { reply }
    })
    .await;
    assert_eq!(pull(origin.reference(), &output).await.unwrap_err().class(), ErrorClass::Integrity);
    is_repaired.store(1, Ordering::SeqCst);
    pull(origin.reference(), &output).await.unwrap();
    model.assert_in(&output);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_without_ranges_is_read_in_one_stream() {
    let (model, top) = (Model::of(40), tempfile::tempdir().unwrap());
    let origin = Origin::with_fault(Holding::of(&model), |read, _| Reply::body(200, read.blob)).await;
    let output = top.path().join("out");
    let report = pull(origin.reference(), &output).await.unwrap();
    model.assert_in(&output);
    // The first reads are given up when they turn out to be whole; one stream brings everything.
    assert!(report.origin_bytes < model.bytes() + 9 * PIECE, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_to_another_host_is_followed() {
    let model = Model::of(3);
    let holding = Holding::of(&model);
    let storage = Origin::honest(holding.clone()).await;
    let host = storage.reference().to_string().split('/').next().unwrap().to_owned();
    let top = tempfile::tempdir().unwrap();
    let origin = Origin::with_fault(holding, move |read, _| {
        Reply::status(307).header("Location", &format!("http://{host}{}", read.seen.path))
    })
    .await;
    pull(origin.reference(), &top.path().join("out")).await.unwrap();
    model.assert_in(&top.path().join("out"));
    assert!(storage.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_was_cut_off_goes_on_where_it_stopped() {
    for holding in [Holding::of, Holding::foreign] {
        let (model, top) = (Model::of(64), tempfile::tempdir().unwrap());
        let output = top.path().join("out");
        let gate = Gate::default();
        let held = gate.clone();
        let origin = Origin::with_fault(holding(&model), move |read, reply| {
            if read.number >= 10 {
                held.pass();
            }
            reply
        })
        .await;
        let pulling = tokio::spawn({
            let (reference, output) = (origin.reference(), output.clone());
            async move { pull(reference, &output).await }
        });
        // Ten reads of four pieces are answered, so that at least nine have landed once a further one was asked for.
        while origin.seen().iter().filter(|seen| seen.range().is_some()).count() < 14 {
            tokio::task::yield_now().await;
        }
        pulling.abort();
        let _ = pulling.await;
        assert!(!output.exists());
        gate.open();
        let report = pull_when_free(&origin, &output).await;
        model.assert_in(&output);
        assert!(report.local_bytes >= 20 * PIECE, "{report:?}");
        assert!(report.origin_bytes <= model.bytes() - report.local_bytes, "{report:?}");
    }
}

/// The last checks of a pull that was cut off hold its directory for a moment.
async fn pull_when_free(origin: &Origin, output: &Path) -> peer::PullReport {
    loop {
        match pull(origin.reference(), output).await {
            Err(PeerError::Store(store::StoreError::Busy { .. })) => tokio::task::yield_now().await,
            result => return result.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tree_that_lies_is_not_used() {
    let (model, top) = (Model::of(5), tempfile::tempdir().unwrap());
    let trees = model.built.trees.as_ref().unwrap();
    let layer = &TreesManifest::parse(&trees.manifest).unwrap().layers[0];
    // Right by its own digest, as if somebody had pushed another tree for the same model.
    let wrong = vec![7; usize::try_from(layer.size).unwrap()];
    let mut listed: serde_json::Value = serde_json::from_slice(&trees.manifest).unwrap();
    listed["layers"][0]["digest"] = json!(Sha256Digest::of(&wrong).to_string());
    let raw = listed.to_string().into_bytes();
    let mut model = Model { files: model.files, built: model.built.clone() };
    model.built.trees.as_mut().unwrap().manifest = raw;
    let holding = Holding::of(&model).with_blob(&Sha256Digest::of(&wrong).to_string(), &wrong);
    let origin = Origin::honest(holding).await;
    pull(origin.reference(), &top.path().join("out")).await.unwrap();
    model.assert_in(&top.path().join("out"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_artifacts_leave_no_file_anywhere() {
    let model = Model::of(1);
    let path = |path: &'static str| {
        move |manifest: &mut serde_json::Value| {
            for name in ["org.cncf.model.filepath", "org.opencontainers.image.title"] {
                manifest["layers"][0]["annotations"][name] = json!(path);
            }
        }
    };
    for hostile in
        ["../escaped", "/tmp/escaped", "a/../../escaped", ".modelctl/complete.json", "", "MODEL.bin"]
    {
        let holding = Holding::of(&model).with_manifest(path(hostile));
        refuses(hostile, ErrorClass::Failed, holding, |_, reply| reply).await;
    }
    let size = Holding::of(&model).with_manifest(|manifest| manifest["layers"][0]["size"] = json!(u64::MAX));
    refuses("an enormous size", ErrorClass::Failed, size, |_, reply| reply).await;
    let digest =
        Holding::of(&model).with_manifest(|manifest| manifest["layers"][0]["digest"] = json!("md5:00"));
    refuses("an unknown digest", ErrorClass::Failed, digest, |_, reply| reply).await;
    let no_json = b"not JSON".to_vec();
    let config = Sha256Digest::of(&no_json).to_string();
    let holding = Holding::of(&model).with_blob(&config, &no_json).with_manifest(|manifest| {
        manifest["config"]["digest"] = json!(config);
        manifest["config"]["size"] = json!(no_json.len());
    });
    refuses("a config that is not JSON", ErrorClass::Failed, holding, |_, reply| reply).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_not_there_is_said() {
    let top = tempfile::tempdir().unwrap();
    let server = FaultServer::replay([Reply::status(404)]).await;
    let reference = format!("{}/models/test:v1", server.host()).parse().unwrap();
    let error = pull(reference, &top.path().join("out")).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Failed);
    assert_eq!(names(top.path()), Vec::<std::path::PathBuf>::new());
}

/// Pulls until all but `missing` bytes are done, and is cut off.
async fn pull_all_but(missing: u64, reference: Reference, output: &Path) {
    let access = Access { plain_http: true, ..Access::default() };
    let request = PullRequest {
        reference,
        access,
        output: output.to_path_buf(),
        landing: peer::LandingMode::Auto,
        selection: Arc::default(),
        bases: Vec::new(),
        priority: planner::Priority::default(),
    };
    let watch = PullWatch::new();
    let pulling = tokio::spawn({
        let watch = watch.clone();
        async move { peer::pull(request, Transports::tcp(), &watch).await }
    });
    let is_near = async {
        loop {
            let progress = watch.progress();
            if progress.total > 0 && progress.done + missing >= progress.total {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_near).await.expect("it comes so far in time");
    pulling.abort();
    let _ = pulling.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn bytes_that_were_hashed_are_not_written_again() {
    let (model, top) = (Model::of(24), tempfile::tempdir().unwrap());
    let output = top.path().join("out");
    let gate = Gate::default();
    let held = gate.clone();
    let first = Origin::with_fault(Holding::foreign(&model), move |read, reply| {
        if read.seen.range().is_some_and(|range| range.start == 4 << 20) {
            held.pass();
        }
        reply
    })
    .await;
    pull_all_but(4 * PIECE, first.reference(), &output).await;
    gate.open();
    // The other registry serves no ranges: what is missing comes with what is here behind it, and that is damaged.
    let second = Origin::with_fault(Holding::foreign(&model), |read, _| {
        let mut blob = read.blob.to_vec();
        blob[8 << 20..].fill(0);
        Reply::body(200, blob)
    })
    .await;
    let report = pull_when_free(&second, &output).await;
    model.assert_in(&output);
    assert_eq!(report.local_bytes, model.bytes() - 4 * PIECE, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_may_be_wrong_as_a_whole_once() {
    let files = ["a.bin", "b.bin", "c.bin"];
    let files = (1..).zip(files).map(|(seed, name)| (name.to_owned(), pattern(seed * 99, 3 << 20))).collect();
    let (model, top) = (Model::new(files), tempfile::tempdir().unwrap());
    let seen = Mutex::new(BTreeSet::new());
    let origin = Origin::with_fault(Holding::foreign(&model), move |read, reply| {
        let is_first = seen.lock().unwrap().insert(read.seen.path.clone());
        if is_first { read.flipped() } else { reply }
    })
    .await;
    pull(origin.reference(), &top.path().join("out")).await.unwrap();
    model.assert_in(&top.path().join("out"));
}
