//! Publishing to a real registry, and reading from it.

use std::fs;

use crate::support::{Registry, Scratch, assert_said};

#[test]
fn build_push_inspect_and_verify_against_a_registry() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let (v1, v2) = (registry.reference("models/small:v1"), registry.reference("models/small:v2"));
    let v1_json = registry.reference("other/small:v1");
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let lines: &[&[&str]] = &[
        &["build", "model", "-t", &v1, "--plain-http"],
        &["push", "oci:out:v1", &v2, "--plain-http"],
        &["push", "oci:out:v1", &v1_json, "--plain-http", "--json"],
        &["inspect", &v2, "--plain-http"],
        &["verify", &v2, "model", "--plain-http"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn build_and_push_leave_the_same_in_a_registry() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let built = scratch.json(&["build", "model", "-t", &registry.reference("built:v1"), "--plain-http"]);
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let pushed = scratch.json(&["push", "oci:out:v1", &registry.reference("pushed:v1"), "--plain-http"]);
    assert_eq!(built["digest"], pushed["digest"]);
    let manifest = registry.get("pushed/manifests/v1");
    assert_eq!(registry.get("built/manifests/v1"), manifest);
    let hex = built["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    assert_eq!(fs::read(scratch.path("out/blobs/sha256").join(hex)).unwrap(), manifest, "byte for byte");

    // This registry has no referrers API, so the piece trees are listed under the fallback tag.
    let index = registry.get(&format!("pushed/manifests/sha256-{hex}"));
    assert_eq!(registry.get(&format!("built/manifests/sha256-{hex}")), index);
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let trees = &index["manifests"][0];
    assert_eq!(trees["artifactType"], "application/vnd.modelcast.pieces.v1");
    let trees = registry.get(&format!("pushed/manifests/{}", trees["digest"].as_str().unwrap()));
    let trees: serde_json::Value = serde_json::from_slice(&trees).unwrap();
    let tree = registry.get(&format!("pushed/blobs/{}", trees["layers"][0]["digest"].as_str().unwrap()));
    assert_eq!(tree.len(), 64, "two pieces");
}

#[test]
fn the_second_push_sends_nothing() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("models/small:v1");
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let first = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(first["sent_bytes"], first["bytes"]);
    let second = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(second["sent_bytes"], 0);
}

#[test]
fn a_layout_that_was_damaged_is_not_published() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let built = scratch.json(&["build", "model", "-t", "oci:out:v1"]);
    assert_eq!(built["files"], 6);
    let weights = fs::read(scratch.path("model/model.safetensors")).unwrap();
    let digest = scratch.json(&["inspect", "oci:out:v1"])["files"][1]["sha256"].as_str().unwrap().to_owned();
    let mut damaged = weights;
    damaged[0] ^= 1;
    fs::write(scratch.path("out/blobs/sha256").join(digest), damaged).unwrap();
    let reference = registry.reference("models/small:v1");
    let failure = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 3, "{failure}");
    let failure = scratch.json(&["inspect", &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 1, "no manifest was written: {failure}");
}

#[test]
fn registry_failures() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let absent = registry.reference("models/absent:v1");
    let lines: &[&[&str]] = &[
        &["inspect", &absent, "--plain-http"],
        &["inspect", &absent],
        &["build", "model", "-t", &absent],
        &["inspect", "127.0.0.1:1/models/small:v1", "--plain-http"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}
