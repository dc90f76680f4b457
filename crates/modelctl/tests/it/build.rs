//! `modelctl build` into a layout on disk.

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::support::{Scratch, assert_said, contents};

#[test]
fn build_says_what_it_published() {
    let scratch = Scratch::with_model();
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1"]));
}

#[test]
fn build_json() {
    let scratch = Scratch::with_model();
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1", "--json"]));
}

#[test]
fn the_same_files_give_the_same_bytes_in_any_directory_on_any_day() {
    let scratch = Scratch::with_model();
    scratch.write_model("elsewhere/copy");
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let file = fs::File::options().write(true).open(scratch.path("elsewhere/copy/config.json")).unwrap();
    file.set_modified(old).unwrap();
    scratch.stdout(&["build", "model", "-t", "oci:one:v1"]);
    scratch.stdout(&["build", "elsewhere/copy", "-t", "oci:two:v1"]);
    assert_eq!(contents(&scratch.path("one")), contents(&scratch.path("two")));
    scratch.stdout(&["build", "model", "-t", "oci:one:v1"]);
    assert_eq!(contents(&scratch.path("one")), contents(&scratch.path("two")), "again into the same layout");
}

#[test]
fn the_creation_time_is_source_date_epoch() {
    let scratch = Scratch::with_model();
    let build = |value: &str| {
        let mut command = scratch.modelctl(&["build", "model", "-t", "oci:out:v1"]);
        assert_eq!(command.env("SOURCE_DATE_EPOCH", value).output().unwrap().status.code(), Some(0));
        scratch.json(&["inspect", "oci:out:v1"])["model"]["created_at"].clone()
    };
    assert_eq!(build("0"), "1970-01-01T00:00:00Z");
    assert_eq!(build("1700000000"), "2023-11-14T22:13:20Z");
    let output = scratch
        .modelctl(&["build", "model", "-t", "oci:out:v1"])
        .env("SOURCE_DATE_EPOCH", "yesterday")
        .output();
    assert_eq!(output.unwrap().status.code(), Some(2));
}

#[test]
fn what_cannot_be_built() {
    let scratch = Scratch::with_model();
    fs::create_dir(scratch.path("empty")).unwrap();
    scratch.write("linked/config.json", "{}");
    symlink("config.json", scratch.path("linked/model.safetensors")).unwrap();
    scratch.write("colliding/README.md", "");
    scratch.write("colliding/readme.md", "");
    scratch.write("other/notes.txt", "mine");
    let lines: &[&[&str]] = &[
        &["build", "absent", "-t", "oci:out:v1"],
        &["build", "empty", "-t", "oci:out:v1"],
        &["build", "linked", "-t", "oci:out:v1"],
        &["build", "colliding", "-t", "oci:out:v1"],
        &["build", "model", "-t", "oci:model/out:v1"],
        &["build", "model", "-t", "oci:other:v1"],
        &["build", "model", "-t", "./out"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    for untouched in ["out", "model/out", "other/oci-layout"] {
        assert!(!scratch.path(untouched).exists(), "{untouched} was made");
    }
}

#[test]
fn weights_that_are_not_there_yet_are_pointed_out() {
    let scratch = Scratch::new();
    scratch.write(
        "model/model.safetensors",
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
    );
    scratch.write("model/other.safetensors", [0xff; 64]);
    assert_said!(scratch.run(&["build", "model", "-t", "oci:out:v1"]));
}

#[test]
fn skopeo_reads_the_layout() {
    let scratch = Scratch::with_model();
    let digest = scratch.json(&["build", "model", "-t", "oci:out:v1"])["digest"].as_str().unwrap().to_owned();
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", &format!("oci:{}:v1", scratch.path("out").display())])
        .output()
        .expect("skopeo is not installed: run scripts/setup");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let hex = digest.strip_prefix("sha256:").unwrap();
    assert_eq!(output.stdout, fs::read(scratch.path("out/blobs/sha256").join(hex)).unwrap());
}
