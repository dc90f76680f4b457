//! `modelctl pull` without a peer, and what refuses it.

use std::fs;

use crate::support::{Registry, Scratch, assert_said, contents, skip};

const PULL: [&str; 3] = ["--plain-http", "--peer", "none"];

/// A registry that has the model as `small:v1`, and the reference.
pub(crate) fn published() -> (Scratch, Registry, String) {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("small:v1");
    scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
    (scratch, registry, reference)
}

fn pull<'a>(reference: &'a str, dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["pull", reference, "-o", dir], &PULL[..], more].concat()
}

#[test]
fn what_is_pulled_is_the_model_and_the_second_pull_moves_nothing() {
    let (scratch, _registry, reference) = published();
    let lines = [
        pull(&reference, "there", &["--dry-run"]),
        pull(&reference, "there", &[]),
        pull(&reference, "there", &[]),
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    assert_eq!(scratch.json(&["verify", &reference, "there", "--plain-http"])["verified"], true);
    scratch.assert_pulled("model", "there");
    assert_said!("inspect_pulled_directory", scratch.run(&["inspect", "./there"]));
}

#[test]
fn pull_json_ends_with_the_result() {
    let (scratch, _registry, reference) = published();
    let result = scratch.json(&pull(&reference, "there", &[]));
    assert_eq!(result["verified"], true);
    assert_eq!(result["origin_bytes"], result["bytes"]);
    assert_eq!(result["bytes_by_landing"]["staged"], result["bytes"]);
    for name in [
        "reference",
        "digest",
        "files",
        "bytes",
        "origin_bytes",
        "peer_bytes",
        "local_bytes",
        "seconds",
        "first_piece_seconds",
        "transport",
        "bytes_by_transport",
        "landing",
        "bytes_by_landing",
        "fallback_reason",
        "bound_seconds",
        "ratio",
        "bounded_by",
        "verified",
        "output",
    ] {
        assert!(result.get(name).is_some(), "no {name} in {result}");
    }
}

#[test]
fn a_file_system_that_cannot_be_landed_on_directly_is_told_before_anything_is_made() {
    let (scratch, _registry, reference) = published();
    if store::filesystem_of(&scratch.path(".")).unwrap().lands_direct() {
        return skip("the directory of temporary files is in memory");
    }
    let output = scratch.modelctl(&pull(&reference, "there", &["--landing", "direct"])).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("bytes cannot land directly in") && said.contains("hint: "), "{said}");
    assert!(["there", ".there.modelctl"].iter().all(|name| !scratch.path(name).exists()), "nothing is made");
    let result = scratch.json(&pull(&reference, "there", &["--landing", "staged"]));
    assert_eq!(result["landing"], "staged");
}

#[test]
fn a_directory_with_other_things_in_it_is_left_alone() {
    let (scratch, _registry, reference) = published();
    scratch.write("mine/notes.txt", "mine");
    let before = contents(&scratch.path("mine"));
    assert_said!(scratch.run(&pull(&reference, "mine", &[])));
    assert_eq!(contents(&scratch.path("mine")), before);
}

#[test]
fn a_file_that_changed_since_is_said_and_not_overwritten() {
    let (scratch, _registry, reference) = published();
    scratch.stdout(&pull(&reference, "there", &[]));
    fs::write(scratch.path("there/config.json"), "{}").unwrap();
    assert_said!(scratch.run(&pull(&reference, "there", &[])));
    assert_eq!(fs::read(scratch.path("there/config.json")).unwrap(), b"{}");
    assert_eq!(scratch.json(&["inspect", "./there"])["unchanged"], false);
}
