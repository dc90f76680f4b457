//! `modelctl doctor`: its form, because its facts are the machine's.

use crate::support::Scratch;

#[test]
fn every_area_is_told_and_tcp_is_enough() {
    let scratch = Scratch::new();
    let text = scratch.stdout(&["doctor"]);
    for name in ["open files", "rdma", "memlock", "directory", "store", "peer"] {
        let is_told = |line: &str| line.get(9..).is_some_and(|rest| rest.starts_with(name));
        assert!(text.lines().any(is_told), "no {name} in:\n{text}");
    }
    assert!(text.contains("\nTCP   can be used\nRDMA  can"), "{text}");
    assert!(text.contains("`.` ("), "the current directory without another: {text}");
}

#[test]
fn each_directory_is_described_and_none_is_made() {
    let scratch = Scratch::new();
    let path = scratch.path("a/to/come");
    let report = scratch.json(&["doctor", "/dev/shm/a/directory/to/come", path.to_str().unwrap()]);
    let [shm, other, store] = report["facts"]["destinations"].as_array().unwrap().as_slice() else {
        panic!("two were named, and there is the store: {report}")
    };
    assert_eq!(shm["filesystem"], "tmpfs");
    assert_eq!(report["landings"][0], "direct");
    assert!(shm["free_bytes"].as_u64().unwrap() > 0);
    assert_eq!((&other["exists"], &other["refusal"]), (&false.into(), &serde_json::Value::Null));
    assert_eq!(store["role"], "store");
    assert!(!std::path::Path::new("/dev/shm/a").exists() && !path.exists(), "doctor changes nothing");
}

#[test]
fn a_directory_that_cannot_be_written_is_a_failure() {
    let scratch = Scratch::new();
    scratch.write("file", b"");
    let output = scratch.modelctl(&["doctor", "file", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let [report, failure] = [0, 1].map(|line| stdout.lines().nth(line).unwrap());
    assert!(report.contains(r#""severity":"problem","area":"directory""#), "{report}");
    assert!(failure.contains("`file` is no directory"), "{failure}");
}
