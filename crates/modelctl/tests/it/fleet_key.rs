//! `modelctl fleet-key`, and processes that are given a key that they cannot use.

use std::{fs, os::unix::fs::PermissionsExt as _};

use crate::support::{Scratch, assert_said};

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
