//! `modelctl fleet-key`, processes that are given a key that they cannot use, and schedulers that cannot be reached.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::{
    running::{Running, Signal},
    support::{Scratch, assert_said, said, until},
};

#[test]
fn a_key_is_written_once_and_secret() {
    let scratch = Scratch::new();
    let first = scratch.json(&["fleet-key", "new", "fleet.key"]);
    assert_eq!(first["fleet"].as_str().unwrap().len(), 16, "{first}");
    let key = fs::read(scratch.path("fleet.key")).unwrap();
    assert_eq!(key.len(), 32);
    assert_eq!(fs::metadata(scratch.path("fleet.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert_said!(scratch.run(&["fleet-key", "new", "fleet.key"]));
    assert_eq!(fs::read(scratch.path("fleet.key")).unwrap(), key);
}

#[test]
fn keys_that_cannot_be_used_are_refused_before_anything_starts() {
    let scratch = Scratch::new();
    scratch.write("short.key", "short");
    fs::set_permissions(scratch.path("short.key"), fs::Permissions::from_mode(0o600)).unwrap();
    scratch.write("open.key", "a key of thirty-two bytes, nearly");
    fs::set_permissions(scratch.path("open.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let said: Vec<_> = ["none.key", "short.key", "open.key"]
        .iter()
        .map(|key| scratch.run(&["scheduler", "--listen", "127.0.0.1:0", "--fleet-key", key]))
        .collect();
    assert_said!(said.join("\n"));
}

/// The one line that this process says about its scheduler, whatever else it says.
fn of_scheduler(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().filter(|line| line.contains("scheduler")).collect();
    assert_eq!(lines.len(), 1, "once, and no flood: {stderr}");
    lines[0].to_owned()
}

#[test]
fn a_scheduler_that_cannot_be_reached_is_told_once_with_a_way_out() {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:layout:v1"]);
    for key in ["a.key", "b.key"] {
        scratch.stdout(&["fleet-key", "new", key]);
    }
    let mut scheduler = Running::start(scratch.modelctl(&[
        "scheduler",
        "--listen",
        "127.0.0.1:0",
        "--fleet-key",
        "a.key",
        "--json",
    ]));
    let keyed = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    // Longer than a name can be, so that nobody has to be asked.
    let nowhere = format!("http://{}:7100", "x".repeat(64));
    let cases: [(&str, &[&str]); 3] = [
        ("a name that does not resolve", &["--scheduler", &nowhere]),
        ("nobody there", &["--scheduler", "http://127.0.0.1:1"]),
        ("another key", &["--scheduler", &keyed, "--fleet-key", "b.key"]),
    ];
    let mut told = Vec::new();
    for (number, (what, args)) in cases.into_iter().enumerate() {
        let (store, socket, out) = (format!("s{number}"), format!("{number}.sock"), format!("out{number}"));
        let peer = ["peer", "--store", &store, "--socket", &socket, "--json"];
        let mut peer = Running::start(scratch.modelctl(&[&peer[..], args].concat()));
        peer.line();
        until("the peer has said so", || peer.logged("the scheduler is not reachable") == 1);
        let pull = ["pull", "oci:layout:v1", "-o", &out, "--peer", "none", "--json"];
        let pull = Running::start(scratch.modelctl(&[&pull[..], args].concat())).end();
        assert!(pull.status.success(), "{}", said(&pull));
        peer.signal(Signal::TERM);
        let peer = peer.end();
        for (who, output) in [("peer", peer), ("pull", pull)] {
            let stderr = String::from_utf8(output.stderr).unwrap();
            told.push(format!("{who}, {what}:\n{}", of_scheduler(&stderr)));
        }
    }
    let told = told.join("\n").replace(&"x".repeat(64), "[NAME]");
    assert_eq!(scheduler.logged("a connection was refused"), 1, "however often they came");
    // What the resolver calls it differs from system to system.
    let start = told.find("does not resolve: ").unwrap();
    let words = told[start..].split('"').next().unwrap().to_owned();
    assert_said!(told.replace(&words, "does not resolve: [WHY]"));
}
