//! `modelctl ls`, `rm`, `tag`, `prune`: a store by hand; and `diff`.

use crate::{
    running::{Running, Signal},
    support::{Registry, Scratch, assert_said},
};

/// A store with two models that share files, pulled through a peer that has ended since.
fn store(scratch: &Scratch, registry: &Registry) -> [String; 2] {
    scratch.write_model("other");
    scratch.write("other/README.md", b"# Another model\n");
    let references = ["models/small:v1", "models/other:v1"].map(|name| registry.reference(name));
    let peer = peer(scratch);
    for (dir, reference) in ["model", "other"].iter().zip(&references) {
        scratch.stdout(&["build", dir, "-t", reference, "--plain-http"]);
        scratch.stdout(&["pull", reference, "--plain-http", "--peer", "unix:p.sock"]);
    }
    end(peer);
    references
}

fn peer(scratch: &Scratch) -> Running {
    let args = ["peer", "--store", "store", "--socket", "p.sock", "--json"];
    let mut peer = Running::start(scratch.modelctl(&args));
    peer.line();
    peer
}

fn end(peer: Running) {
    peer.signal(Signal::TERM);
    assert!(peer.end().status.success());
}

#[test]
fn a_store_is_listed_named_pinned_and_emptied() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let [small, other] = store(&scratch, &registry);
    let digest = registry.digest("models/small", "v1");
    let run = |args: &[&str]| {
        let said = scratch.run(&[args, &["--store", "store"]].concat());
        format!("$ modelctl {}\n{said}", args.join(" "))
    };
    let stable = "registry.example.org/models/small:stable";
    let said = [
        run(&["ls"]),
        run(&["tag", &small, stable]),
        run(&["tag", &small, "--pin"]),
        run(&["ls"]),
        run(&["prune", "--max", "1KB", "--dry-run"]),
        run(&["rm", &other]),
        run(&["rm", &small]),
        run(&["rm", stable]),
        run(&["tag", &digest[..20], "--unpin"]),
        run(&["rm", &digest]),
        run(&["rm", &digest]),
        run(&["ls"]),
        run(&["prune"]),
    ];
    assert_said!(said.join("\n"));
}

#[test]
fn what_is_not_there_or_in_use_is_told() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let [small, _] = store(&scratch, &registry);
    let peer = peer(&scratch);
    let lines: &[&[&str]] = &[
        &["ls", "--store", "absent"],
        &["ls", "--store", "model"],
        &["rm", "sha256:ffffffffffff", "--store", "store"],
        &["rm", &small, "--store", "store"],
        &["prune", "--store", "store"],
        &["tag", &small, "./dir", "--store", "store"],
        &["tag", &small, "--store", "store"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    let listed = scratch.json(&["ls", "--store", "store"]);
    assert_eq!(listed["artifacts"].as_array().unwrap().len(), 2, "also while a peer runs: {listed}");
    scratch.stdout(&["tag", &small, "--pin", "--store", "store"]);
    end(peer);
    let pruned = scratch.json(&["prune", "--max", "1KB", "--store", "store"]);
    assert_eq!(pruned["exit_code"], 1, "what is pinned stays: {pruned}");
    let listed = scratch.json(&["ls", "--store", "store"]);
    assert_eq!(listed["artifacts"][0]["names"][0], small.as_str());
    assert_eq!(listed["artifacts"].as_array().unwrap().len(), 1);
}

#[test]
fn two_artifacts_are_compared_piece_by_piece() {
    let scratch = Scratch::with_model();
    scratch.write_large_model("model/large", 5 << 20);
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let mut weights = std::fs::read(scratch.path("model/large/model.bin")).unwrap();
    weights[3 << 20] ^= 1;
    weights.truncate((5 << 20) - 10);
    scratch.write("model/large/model.bin", weights);
    scratch.write("model/README.md", b"# A small model, revised\n");
    let mut tensors = std::fs::read(scratch.path("model/model.safetensors")).unwrap();
    *tensors.last_mut().unwrap() ^= 1;
    scratch.write("model/model.safetensors", tensors);
    scratch.write("model/new.json", b"{}");
    std::fs::remove_file(scratch.path("model/tools/convert.py")).unwrap();
    scratch.stdout(&["build", "model", "-t", "oci:out:v2"]);
    let said = [["diff", "oci:out:v1", "oci:out:v2"], ["diff", "oci:out:v2", "oci:out:v2"]]
        .map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(&args)));
    assert_said!(said.join("\n"));
    let json = scratch.json(&["diff", "oci:out:v1", "oci:out:v2"]);
    let large = json["files"].as_array().unwrap().iter().find(|file| file["path"] == "large/model.bin");
    // The piece that changed, and the last one, which is shorter now.
    assert_eq!(large.unwrap()["moving_bytes"], (2 << 20) - 10);
    assert_eq!(large.unwrap()["by_pieces"], true);
}
