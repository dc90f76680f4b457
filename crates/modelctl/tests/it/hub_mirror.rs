//! Peers that stand in for a Hugging Face hub, and its own Python client.

use std::{path::Path, process::Command, thread};

use serde_json::Value;

use crate::{
    mirror::{Answer, Fleet, ask},
    support::{contents, said, skip},
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
