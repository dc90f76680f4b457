//! `modelctl inspect`.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

use store::LayoutWriter;

use crate::support::{Scratch, assert_said};

fn built() -> Scratch {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    scratch
}

/// The model as a tool without BLAKE3 would have published it, as `oci:out:plain`.
pub(crate) fn without_roots() -> Scratch {
    let scratch = built();
    let digest = scratch.json(&["inspect", "oci:out:v1"])["digest"].as_str().unwrap().to_owned();
    let path = scratch.path("out/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["annotations"].as_object_mut().unwrap().remove("org.modelcast.blake3").unwrap();
    }
    let writer = LayoutWriter::open(&scratch.path("out")).unwrap();
    writer.put_manifest(manifest.to_string().as_bytes(), Some("plain")).unwrap();
    scratch
}

#[test]
fn inspect_layout() {
    assert_said!(built().run(&["inspect", "oci:out:v1"]));
}

#[test]
fn inspect_json() {
    assert_said!(built().run(&["inspect", "oci:out:v1", "--json"]));
}

#[test]
fn inspect_directory() {
    assert_said!(built().run(&["inspect", "./model"]));
}

#[test]
fn inspect_without_roots() {
    let scratch = without_roots();
    let lines: &[&[&str]] =
        &[&["inspect", "oci:out:plain"], &["inspect", "oci:out:plain", "--checksums", "blake3"]];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn inspect_what_is_not_there() {
    let scratch = built();
    let lines: &[&[&str]] = &[
        &["inspect", "oci:out:v2"],
        &["inspect", "oci:absent:v1"],
        &["inspect", "./absent"],
        &["inspect", "oci:absent:v1", "--json"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn sha256sum_accepts_the_checksums_of_artifact_and_directory() {
    let scratch = built();
    for reference in ["oci:out:v1", "./model"] {
        let list = scratch.stdout(&["inspect", reference, "--checksums", "sha256"]);
        let mut child = Command::new("sha256sum")
            .args(["-c", "--strict"])
            .current_dir(scratch.path("model"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(String::from_utf8(output.stdout).unwrap().matches(": OK\n").count(), 6, "six files");
    }
}

#[test]
fn blake3_checksums_are_the_plain_hashes_of_the_files() {
    let scratch = built();
    let of_artifact = scratch.stdout(&["inspect", "oci:out:v1", "--checksums", "blake3"]);
    for line in of_artifact.lines() {
        let (hex, path) = line.split_once("  ").unwrap();
        let bytes = fs::read(scratch.path("model").join(path)).unwrap();
        assert_eq!(hex, blake3::hash(&bytes).to_hex().as_str(), "{path}");
    }
    let of_directory = scratch.stdout(&["inspect", "./model", "--checksums", "blake3"]);
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&of_artifact), sorted(&of_directory));
}

#[test]
fn a_damaged_manifest_is_an_integrity_failure() {
    let scratch = built();
    let digest = scratch.json(&["inspect", "oci:out:v1"])["digest"].as_str().unwrap().to_owned();
    let path = scratch.path("out/blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    assert_eq!(scratch.json(&["inspect", "oci:out:v1"])["exit_code"], 3);
}
