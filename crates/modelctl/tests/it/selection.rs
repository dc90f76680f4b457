//! Pulls of a part of an artifact, and tensors that are listed without pulling.

use std::fs;

use serde_json::{Value, json};

use crate::{
    pull::published,
    reading::write,
    support::{Registry, Scratch, assert_said, contents, safetensors},
};

fn pull<'a>(reference: &'a str, dir: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["pull", reference, "-o", dir, "--plain-http", "--peer", "none"], more].concat()
}

fn paths(scratch: &Scratch, dir: &str) -> Vec<String> {
    let found = contents(&scratch.path(dir)).into_iter().map(|(path, _)| path.to_str().unwrap().to_owned());
    found.filter(|path| !path.starts_with(".modelctl/")).collect()
}

#[test]
fn what_is_left_out_is_not_read() {
    let (scratch, registry, reference) = published();
    let before = registry.sent();
    let result = scratch.json(&pull(&reference, "some", &["--include", "*.json", "--include", "tools/*"]));
    assert_eq!(paths(&scratch, "some"), ["config.json", "tools/convert.py"]);
    assert_eq!((&result["files"], &result["origin_bytes"]), (&json!(2), &result["bytes"]), "{result}");
    assert_eq!(result["selection"], "--include *.json --include tools/*");
    assert!(registry.sent() - before < 10_000, "no weights, only a config, trees and these files");
    scratch.stdout(&pull(&reference, "kinds", &["--kind", "weight,config", "--exclude", "tools/**"]));
    let kinds = paths(&scratch, "kinds");
    assert!(
        kinds.contains(&"model.safetensors".into()) && kinds.contains(&"config.json".into()),
        "{kinds:?}"
    );
    assert!(!kinds.iter().any(|path| path == "README.md" || path.starts_with("tools/")), "{kinds:?}");
    let verify =
        |more: &[&str]| scratch.json(&[&["verify", &reference, "some", "--plain-http"], more].concat());
    assert_eq!(verify(&[])["exit_code"], 3, "the rest is missing");
    let verified = verify(&["--include", "*.json", "--include", "tools/*"]);
    assert_eq!((&verified["verified"], &verified["files"]), (&json!(true), &json!(2)), "{verified}");
    assert_eq!(verified["selection"], result["selection"]);
    assert_eq!(verify(&["--include", "*.gguf"])["exit_code"], 1, "a pattern that matches nothing");
    fs::write(scratch.path("some/tools/convert.py"), "print()").unwrap();
    assert_eq!(verify(&["--include", "tools/*"])["exit_code"], 3);
    let record = fs::read_to_string(scratch.path("some/.modelctl/complete.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    assert_eq!(record["selection"], result["selection"]);
}

#[test]
fn a_selection_is_no_complete_artifact() {
    let (scratch, _registry, reference) = published();
    let some = ["--include", "*.json"];
    let lines = [
        pull(&reference, "there", &[&some[..], &["--dry-run"]].concat()),
        pull(&reference, "there", &some),
        pull(&reference, "there", &some),
        pull(&reference, "there", &[]),
        pull(&reference, "there", &["--include", "*.md"]),
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    scratch.stdout(&pull(&reference, "all", &[]));
    assert_eq!(scratch.json(&pull(&reference, "all", &some))["exit_code"], 1, "nor the other way round");
}

#[test]
fn what_matches_nothing_is_said() {
    let (scratch, _registry, reference) = published();
    let lines: Vec<_> = [
        &["--include", "*.gguf"][..],
        &["--exclude", "original/**"],
        &["--kind", "dataset"],
        &["--include", "a["],
        &["--include", "*.md", "--kind", "weight"],
        &["--exclude", "**"],
        &["--kind", "tensor"],
    ]
    .iter()
    .map(|more| pull(&reference, "there", more))
    .collect();
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    assert!(!scratch.path("there").exists() && !scratch.path(".there.modelctl").exists());
}

/// A safetensors file of this header, with so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn tensors_are_listed_from_headers_alone_and_what_lies_is_said() {
    let (scratch, registry) = (Scratch::new(), Registry::start());
    let mut overflow = u64::MAX.to_le_bytes().to_vec();
    overflow.resize(100, 0);
    let files = [
        ("bad-1-overflow.safetensors", overflow),
        (
            "bad-2-overlap.safetensors",
            file(
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
            ),
        ),
        (
            "bad-3-shape.safetensors",
            file(r#"{"a":{"dtype":"F32","shape":[18446744073709551615,8],"data_offsets":[0,4]}}"#, 4),
        ),
        (
            "bad-4-short.safetensors",
            file(r#"{"a":{"dtype":"F32","shape":[100],"data_offsets":[0,400]}}"#, 10),
        ),
        ("bad-5-not-json.safetensors", file("{", 10)),
        ("bad-6-empty.safetensors", Vec::new()),
        ("bad-7-longer-than-the-file.safetensors", 1000_u64.to_le_bytes().to_vec()),
        ("model.safetensors", safetensors()),
        (
            "scalar.safetensors",
            file(
                r#"{"__metadata__":{"format":"pt"},"s\u001b[2J":{"dtype":"I64","shape":[],"data_offsets":[0,8]}}"#,
                8,
            ),
        ),
    ];
    let layer = |(path, bytes): &(&str, Vec<u8>)| {
        let annotations = json!({"org.cncf.model.filepath": path});
        ("application/vnd.cncf.model.weight.v1.raw".to_owned(), bytes.clone(), annotations)
    };
    write(&scratch, "v1", "application/vnd.cncf.model.config.v1+json", files.iter().map(layer).collect());
    let reference = registry.reference("m:v1");
    scratch.stdout(&["push", "oci:foreign:v1", &reference, "--plain-http"]);
    let before = registry.sent();
    let said = scratch.run(&["inspect", &reference, "--plain-http", "--tensors"]);
    assert!(registry.sent() - before < 600_000, "less than the one real file of them has");
    assert_said!(said);
    let found = scratch.json(&["inspect", "oci:foreign:v1", "--tensors"]);
    let listed = found["tensor_files"].as_array().unwrap();
    assert_eq!(listed.iter().filter(|file| file["error"].is_string()).count(), 7);
    let model = listed.iter().find(|file| file["path"] == "model.safetensors").unwrap();
    let offset = 8 + 134;
    assert_eq!(
        model["tensors"],
        json!([
            {"name": "a", "dtype": "F32", "shape": [512, 600], "offset": offset, "bytes": 1_228_800},
            {"name": "b", "dtype": "BF16", "shape": [100], "offset": offset + 1_228_800, "bytes": 200},
        ])
    );
    // What lies is still delivered: it is what was asked for.
    let pulled = scratch.json(&pull(&reference, "there", &[]));
    assert_eq!((&pulled["verified"], &pulled["files"]), (&json!(true), &json!(9)));
    for (path, bytes) in &files {
        assert!(fs::read(scratch.path("there").join(path)).unwrap() == *bytes, "{path}");
    }
    let of_dir = scratch.json(&["inspect", "./there", "--tensors"]);
    assert_eq!(of_dir["tensor_files"].as_array().unwrap().len(), 9);
    assert_eq!(of_dir["tensors"], found["tensors"]);
}
