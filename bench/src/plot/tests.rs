//! Bad lines are named; a picture is well-formed and names all that it shows.

use std::{fs, path::PathBuf};

use super::{input, latency, makespan, progress, utilisation};

const HEAD: &str = r#"{"trace":"broadcast","system":"model<ctl","n":2,"rate_mbit":200,"goodput_mbit":190,"size":1000000,"bound_s":0.2,"hosts":["origin","peer1","peer2"]}"#;
const SAMPLES: [&str; 2] = [
    r#"{"t":0.0,"rx":[0,0,0],"tx":[0,0,0]}"#,
    r#"{"t":0.1,"rx":[0,900000,1000000],"tx":[1000000,900000,0]}"#,
];

fn file(lines: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lines.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    (dir, path)
}

#[track_caller]
fn names_line<T: std::fmt::Debug>(read: anyhow::Result<T>, line: usize) {
    let error = format!("{:#}", read.unwrap_err());
    assert!(error.contains(&format!("lines.jsonl:{line}: ")), "{error}");
}

#[test]
fn bad_results_are_named_by_file_and_line() {
    let good = r#"{"bench":"hash"}"#;
    for bad in ["{", "[]", r#"{"a":1}"#, r#"{"bench":"broadcast","system":"x"}"#] {
        let (_dir, path) = file(&[good, "", bad]);
        names_line(input::results(&path), 3);
    }
}

#[test]
fn bad_traces_are_named_by_file_and_line() {
    let [first, second] = SAMPLES;
    for (lines, bad) in [
        (vec![first], 1),
        (vec![HEAD, first, "{"], 3),
        (vec![HEAD, first, r#"{"t":0.1,"rx":[0],"tx":[0]}"#], 3),
        (vec![HEAD, second, first], 3),
    ] {
        let (_dir, path) = file(&lines);
        names_line(input::trace(&path), bad);
    }
    let (_dir, path) = file(&[HEAD, first]);
    assert!(input::trace(&path).is_err());
}

/// Every element is closed by its own name, and no text has a bare `<`.
#[track_caller]
fn is_well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name));
        } else if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap());
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
}

#[track_caller]
fn shows(svg: &str, names: &[&str]) {
    is_well_formed(svg);
    for name in names {
        assert!(svg.contains(name), "{name} is not in {svg}");
    }
}

#[test]
fn pictures_of_a_trace_name_what_they_show() {
    let (_dir, path) = file(&[HEAD, SAMPLES[0], SAMPLES[1]]);
    let trace = input::trace(&path).unwrap();
    shows(&progress::draw(&trace).unwrap(), &["model&lt;ctl", "peer1 … peer2", "bound 0.2 s", "200 mbit"]);
    shows(&utilisation::draw(&trace).unwrap(), &["origin", "peer1", "peer2", "received", "sent", "190 mbit"]);
}

#[test]
fn pictures_of_results_name_every_series() {
    let (_dir, path) = file(&[
        r#"{"bench":"broadcast","system":"modelctl","n":2,"rate_mbit":200,"size":1048576,"last_s":1.1,"bound_s":1}"#,
        r#"{"bench":"broadcast","system":"modelctl","n":4,"rate_mbit":200,"size":1048576,"last_s":1.2,"bound_s":1}"#,
        r#"{"bench":"broadcast","system":"chain","n":2,"rate_mbit":200,"size":1048576,"last_s":1.01,"bound_s":1}"#,
        r#"{"bench":"broadcast","system":"hurt","n":2,"rate_mbit":200,"size":1,"last_s":9,"bound_s":1,"faults":["x"]}"#,
        r#"{"bench":"small","rows":[{"name":"curl","pull_us":{"p50_us":1,"p90_us":2,"p99_us":3,"p999_us":4,"max_us":5}}]}"#,
    ]);
    let results = input::results(&path).unwrap();
    let svg = makespan::draw(&makespan::series(&results)).unwrap();
    shows(&svg, &["modelctl  1.20 ×", "chain  1.01 ×", "bound", "1 MiB"]);
    assert!(!svg.contains("hurt"), "a broadcast with faults has another bound");
    shows(&latency::draw(&latency::series(&results)).unwrap(), &["small curl pull", "99.9 %"]);
}
