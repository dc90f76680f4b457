//! Peers that stand in for a Hugging Face hub, and its own Python client.

use std::{
    path::Path,
    process::{Command, Output},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    fault_server::{FaultServer, Reply, Seen},
    hub_model::{COMMIT, HubModel, MODEL as BEHIND},
    mirror::{Answer, Fleet, ask},
    running::Running,
    support::{Scratch, contents, said, skip},
};

const MODEL: &str = "Org/Drill";
/// What the fleet's rule makes of it, at the revision of somebody who names none.
const ARTIFACT: &str = "models/org/drill:main";

/// A fleet whose registry has the model under the name that the rule makes.
fn fleet(count: usize) -> Fleet {
    let fleet = Fleet::start(count, 0);
    fleet.door.open();
    fleet.scratch.stdout(&["build", "model", "-t", &fleet.registry.reference(ARTIFACT), "--plain-http"]);
    fleet
}

/// Python that has the hub's client.
fn python() -> Option<&'static str> {
    let has = Command::new("python3").args(["-c", "import huggingface_hub"]).output();
    match has {
        Ok(output) if output.status.success() => Some("python3"),
        other => {
            skip(&format!("no huggingface_hub here, which scripts/setup installs: {other:?}"));
            None
        }
    }
}

/// `huggingface_hub.snapshot_download` of the model, as somebody who has set `HF_ENDPOINT` and nothing else.
fn snapshot(fleet: &Fleet, hub: usize, dir: &str) {
    let code =
        "import sys, huggingface_hub as hub; hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2])";
    let output = Command::new("python3")
        .args(["-c", code, MODEL])
        .arg(fleet.scratch.path(dir))
        .env("HF_ENDPOINT", format!("http://{}", fleet.hubs[hub]))
        .env("HF_HOME", fleet.scratch.path(&format!("home-{hub}")))
        .env("NO_PROXY", "*")
        .env_remove("HF_TOKEN")
        .env_remove("HF_HUB_OFFLINE")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn the_hubs_own_client_loads_through_the_fleet_and_the_origin_gives_it_once() {
    if python().is_none() {
        return;
    }
    let fleet = fleet(3);
    let before = fleet.registry.sent();
    thread::scope(|scope| {
        for hub in 0..3 {
            let fleet = &fleet;
            scope.spawn(move || snapshot(fleet, hub, &format!("snapshot-{hub}")));
        }
    });
    let model = contents(&fleet.scratch.path("model"));
    let size: u64 = model.iter().map(|(_, bytes)| bytes.len() as u64).sum();
    let sent = fleet.registry.sent() - before;
    assert!(sent <= size + size / 100, "the origin gave {sent} bytes of blobs for a model of {size}");
    for hub in 0..3 {
        let dir = format!("snapshot-{hub}");
        let mut found = contents(&fleet.scratch.path(&dir));
        found.retain(|(path, _)| !path.starts_with(Path::new(".cache")));
        assert!(found == model, "{dir} is not the model");
    }
}

#[test]
fn files_and_lists_are_answered_as_the_hub_does() {
    let fleet = fleet(1);
    let hub = &fleet.hubs[0];
    let get = |path: &str, headers: &[&str]| ask(hub, "GET", path, headers);
    let json = |answer: &Answer| serde_json::from_slice::<Value>(&answer.body).unwrap();
    let info = json(&get(&format!("/api/models/{MODEL}"), &[]));
    let digest = fleet.registry.digest("models/org/drill", "main");
    let commit = &digest.trim_start_matches("sha256:")[..40];
    assert_eq!((info["id"].as_str(), info["sha"].as_str()), (Some(MODEL), Some(commit)));
    assert_eq!(info, json(&get(&format!("/api/models/{MODEL}/revision/main"), &[])));
    assert_eq!(info, json(&get(&format!("/api/models/{MODEL}/revision/{commit}"), &[])));
    let tree = json(&get(&format!("/api/models/{MODEL}/tree/main?recursive=true"), &[]));
    let paths: Vec<_> =
        tree.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["config.json", "model.bin"]);
    let path = format!("/{MODEL}/resolve/{commit}/model.bin");
    let head = ask(hub, "HEAD", &path, &[]);
    let bytes = std::fs::read(fleet.scratch.path("model/model.bin")).unwrap();
    assert_eq!((head.status, head.header("x-repo-commit")), (200, commit));
    for size in ["content-length", "x-linked-size"] {
        assert_eq!(head.header(size), bytes.len().to_string());
    }
    let sha256 = modelpack::digest::Sha256Digest::of(&bytes).hex();
    assert_eq!(
        (head.header("etag"), head.header("x-linked-etag")),
        (&*format!("\"{sha256}\""), &*format!("\"{sha256}\""))
    );
    let part = get(&path, &["Range: bytes=1048570-1048589"]);
    assert!(part.status == 206 && part.body == bytes[1_048_570..1_048_590]);
    let refused = |path: &str, status: u16, code: &str| {
        let answer = get(path, &[]);
        assert_eq!((answer.status, answer.header("x-error-code")), (status, code), "{path}");
    };
    refused("/api/models/Org/Nothing", 404, "RepoNotFound");
    refused(&format!("/api/models/{MODEL}/revision/v9"), 404, "RevisionNotFound");
    refused(&format!("/api/models/{MODEL}/revision/{}", "0".repeat(40)), 404, "RevisionNotFound");
    refused(&format!("/{MODEL}/resolve/main/nothing.bin"), 404, "EntryNotFound");
    refused(&format!("/api/models/{MODEL}/tree/main/nothing"), 404, "EntryNotFound");
    refused("/api/datasets/Org/Drill", 404, "");
    // A token of the hub is not shown to the registry, which would take none.
    assert_eq!(get(&path, &["Authorization: Bearer hf_secret"]).status, 200);
    assert_eq!(ask(hub, "POST", &path, &[]).status, 405);
}

/// A hub, and peers of one fleet that stand in for it.
struct Behind {
    _runtime: Runtime,
    hub: FaultServer,
    /// Whether it answers no more.
    is_gone: Arc<AtomicBool>,
    /// Of no use to two threads at once, but this whole value is.
    scheduler: Mutex<Option<Running>>,
    _peers: Vec<Mutex<Running>>,
    faces: Vec<String>,
    scratch: Scratch,
}

/// Some pieces, and a bit, of which no two are alike.
fn weights() -> Vec<u8> {
    let mut weights = vec![0; (24 << 20) + 12_345];
    blake3::Hasher::new().finalize_xof().fill(&mut weights);
    weights
}

fn model() -> HubModel {
    HubModel::new()
        .with("config.json", r#"{"model_type":"bert"}"#)
        .with("README.md", "# A model\n")
        .with("empty.txt", "")
        .with("tools/with space.py", "print('hello')\n")
        .with_lfs("model.safetensors", weights())
}

impl Behind {
    fn start(model: HubModel, count: usize) -> Self {
        let (runtime, scratch) = (Runtime::new().unwrap(), Scratch::new());
        let is_gone = Arc::new(AtomicBool::new(false));
        let gone = Arc::clone(&is_gone);
        let reply = move |seen: &Seen| {
            if gone.load(Ordering::Relaxed) { Reply::hang_up() } else { model.reply(seen) }
        };
        let hub = runtime.block_on(FaultServer::start(reply));
        let url = format!("http://{}", hub.host());
        let mut scheduler =
            Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
        let plans = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
        let (mut peers, mut faces) = (Vec::new(), Vec::new());
        for number in 0..count {
            let (store, socket) = (format!("store-{number}"), format!("{number}.sock"));
            let at = ["peer", "--store", &store, "--socket", &socket, "--scheduler", &plans, "--json"];
            let face = ["--hub-listen", "127.0.0.1:0", "--hub-upstream", &url];
            let mut peer = Running::start(scratch.modelctl(&[&at[..], &face[..]].concat()));
            faces.push(peer.line()["hub"].as_str().unwrap().to_owned());
            peers.push(Mutex::new(peer));
        }
        Self {
            _runtime: runtime,
            hub,
            is_gone,
            scheduler: Mutex::new(Some(scheduler)),
            _peers: peers,
            faces,
            scratch,
        }
    }

    /// `snapshot_download` by the hub's own client, as somebody who has set `HF_ENDPOINT`, and perhaps has a token.
    fn snapshot(&self, face: usize, dir: &str, token: Option<&str>) -> Output {
        let code =
            "import sys, huggingface_hub as hub; hub.snapshot_download(sys.argv[1], local_dir=sys.argv[2])";
        let mut command = Command::new("python3");
        command.args(["-c", code, BEHIND]).arg(self.scratch.path(dir));
        command.env("HF_ENDPOINT", format!("http://{}", self.faces[face]));
        command.env("HF_HOME", self.scratch.path(&format!("home-{dir}"))).env("NO_PROXY", "*");
        command.env_remove("HF_TOKEN").env_remove("HF_HUB_OFFLINE");
        token.map(|token| command.env("HF_TOKEN", token));
        command.output().unwrap()
    }

    /// How often the hub was asked for what a path says.
    fn asked(&self, part: &str) -> usize {
        self.hub.seen().iter().filter(|seen| seen.path.contains(part)).count()
    }

    /// Bytes of files that the hub was asked for.
    fn sent(&self) -> usize {
        let seen = self.hub.seen();
        let stored = seen.iter().filter(|seen| seen.path.starts_with("/storage/"));
        let bytes = stored.map(|seen| seen.range().map_or(weights().len(), |range| range.len()));
        bytes.sum::<usize>()
    }

    fn assert_is_the_model(&self, dir: &str) {
        let mut found = contents(&self.scratch.path(dir));
        found.retain(|(path, _)| !path.starts_with(Path::new(".cache")));
        assert_eq!(found.len(), 5, "{dir}");
        for (path, bytes) in found {
            assert!(bytes == model().bytes(path.to_str().unwrap()), "{dir}: {}", path.display());
        }
    }
}

#[test]
fn a_model_of_a_real_hub_leaves_it_once_and_its_revision_is_asked_once() {
    if python().is_none() {
        return;
    }
    let behind = Behind::start(model(), 3);
    thread::scope(|scope| {
        for face in 0..3 {
            let behind = &behind;
            scope.spawn(move || {
                let output = behind.snapshot(face, &format!("of-{face}"), None);
                assert!(output.status.success(), "{}", said(&output));
            });
        }
    });
    for face in 0..3 {
        behind.assert_is_the_model(&format!("of-{face}"));
    }
    let (size, sent) = (weights().len(), behind.sent());
    assert!(sent <= size + size / 100, "the hub gave {sent} bytes of a file of {size}");
    assert_eq!(behind.asked(&format!("/api/models/{BEHIND}/revision/main")), 1, "once in the fleet");
    assert_eq!(behind.asked("/tree/"), 3, "the pages of the listing, each once");
    for small in ["config.json", "README.md", "with%20space.py"] {
        assert_eq!(behind.asked(small), 1, "{small}");
    }
    // What is here is had when the hub is asked for nothing more than whether it lets somebody in.
    let before = behind.hub.seen().len();
    let again = behind.snapshot(0, "again", None);
    assert!(again.status.success(), "{}", said(&again));
    assert!(behind.hub.seen().len() - before <= 2, "{} questions", behind.hub.seen().len() - before);
}

#[test]
fn what_the_hub_hides_is_for_those_whom_it_lets_in() {
    let behind = Behind::start(model().gated("hf_me"), 2);
    let path = format!("/{BEHIND}/resolve/main/model.safetensors");
    let get = |face: usize, path: &str, headers: &[&str]| ask(&behind.faces[face], "GET", path, headers);
    let refused = |face: usize, headers: &[&str], status: u16| {
        for path in [&path, &format!("/api/models/{BEHIND}"), &format!("/api/models/{BEHIND}/tree/{COMMIT}")]
        {
            let answer = get(face, path, headers);
            assert_eq!((answer.status, answer.header("x-error-code")), (status, "GatedRepo"), "{path}");
        }
    };
    let (me, you) = ("Authorization: Bearer hf_me", "Authorization: Bearer hf_you");
    refused(0, &[], 401);
    refused(0, &[you], 403);
    let part = get(0, &path, &[me, "Range: bytes=1048570-1048589"]);
    assert!(part.status == 206 && part.body == weights()[1_048_570..1_048_590]);
    // It is all here, and still nobody else's; also where it came from this peer.
    for face in 0..2 {
        refused(face, &[], 401);
        refused(face, &[you], 403);
        assert_eq!(get(face, &path, &[me]).body, weights());
    }
    // A password of some registry is not shown to a hub.
    refused(0, &["Authorization: Bearer user:secret"], 401);
    let shown = behind.hub.seen();
    assert!(
        shown.iter().all(|seen| seen.header("authorization").is_none_or(|shown| !shown.contains("user")))
    );
    if python().is_some() {
        let output = behind.snapshot(1, "mine", Some("hf_me"));
        assert!(output.status.success(), "{}", said(&output));
        behind.assert_is_the_model("mine");
        let output = behind.snapshot(1, "nobodys", None);
        assert!(!output.status.success() && said(&output).contains("GatedRepoError"), "{}", said(&output));
    }
}

#[test]
fn a_model_of_a_hub_is_answered_as_the_hub_does_also_when_that_is_gone() {
    let behind = Behind::start(model(), 1);
    // Alone, a peer asks for itself.
    drop(behind.scheduler.lock().unwrap().take());
    let face = behind.faces[0].clone();
    let head = ask(&face, "HEAD", &format!("/{BEHIND}/resolve/main/config.json"), &[]);
    let git = modelpack::hub::GitBlob::of(model().bytes("config.json")).to_string();
    assert_eq!((head.status, head.header("x-repo-commit")), (200, COMMIT));
    assert_eq!(
        head.header("etag"),
        format!("\"{git}\""),
        "a cache that the hub filled has it under this name"
    );
    let tree = ask(&face, "GET", &format!("/api/models/{BEHIND}/tree/main/tools"), &[]);
    let tree: Value = serde_json::from_slice(&tree.body).unwrap();
    assert_eq!((tree.as_array().unwrap().len(), tree[0]["path"].as_str()), (1, Some("tools/with space.py")));
    assert_eq!(ask(&face, "GET", "/api/models/org/none", &[]).header("x-error-code"), "RepoNotFound");
    assert_eq!(ask(&face, "GET", "/api/models/gpt2", &[]).header("x-error-code"), "RepoNotFound");
    let revision = format!("/api/models/{BEHIND}/revision/v9");
    assert_eq!(ask(&face, "GET", &revision, &[]).header("x-error-code"), "RevisionNotFound");
    let config = format!("/{BEHIND}/resolve/main/config.json");
    assert!(behind.sent() <= 1, "small files begin no transfer: {} bytes", behind.sent());
    behind.is_gone.store(true, Ordering::Relaxed);
    let answer = ask(&face, "GET", &config, &[]);
    assert_eq!((answer.status, answer.body.as_slice()), (200, model().bytes("config.json")));
    let other = ask(&face, "GET", &format!("/api/models/{BEHIND}/revision/v2"), &[]);
    assert_eq!(other.status, 503, "what it would say is not known");
}
