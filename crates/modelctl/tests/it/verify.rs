//! `modelctl verify`.

use std::{fs, os::unix::fs::symlink};

use crate::support::{Scratch, assert_said};

fn built() -> Scratch {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    scratch
}

/// Changes one byte in the second piece, loses a file, replaces one by a link, and adds one.
fn damage(scratch: &Scratch) {
    let weights = scratch.path("model/model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    bytes[1_100_000] ^= 1;
    fs::write(&weights, bytes).unwrap();
    fs::remove_file(scratch.path("model/config.json")).unwrap();
    fs::rename(scratch.path("model/README.md"), scratch.path("README.md")).unwrap();
    symlink("../README.md", scratch.path("model/README.md")).unwrap();
    scratch.write("model/notes/today.txt", "mine");
}

#[test]
fn verify_good() {
    assert_said!(built().run(&["verify", "oci:out:v1", "model"]));
}

#[test]
fn verify_bad() {
    let scratch = built();
    damage(&scratch);
    assert_said!(scratch.run(&["verify", "oci:out:v1", "model"]));
}

#[test]
fn verify_bad_json() {
    let scratch = built();
    damage(&scratch);
    assert_said!(scratch.run(&["verify", "oci:out:v1", "model", "--json"]));
}

#[test]
fn an_extra_file_is_told_and_no_failure() {
    let scratch = built();
    scratch.write("model/notes.txt", "mine");
    assert_said!(scratch.run(&["verify", "oci:out:v1", "model"]));
}

#[test]
fn an_artifact_without_roots_is_verified_by_sha256() {
    let scratch = crate::inspect::without_roots();
    let good = scratch.json(&["verify", "oci:out:plain", "model"]);
    assert_eq!(good["verified"], true);
    damage(&scratch);
    let output = scratch.modelctl(&["verify", "oci:out:plain", "model"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
}
