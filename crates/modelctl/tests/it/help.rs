//! Help pages, and what is said to somebody who typed something wrong.

use std::process::Stdio;

use crate::support::{Scratch, assert_said};

#[test]
fn help() {
    assert_said!(Scratch::new().run(&["--help"]));
}

#[test]
fn help_build() {
    assert_said!(Scratch::new().run(&["build", "--help"]));
}

#[test]
fn help_modelfile() {
    assert_said!(Scratch::new().run(&["modelfile", "--help"]));
}

#[test]
fn help_login() {
    assert_said!(Scratch::new().run(&["login", "--help"]));
}

#[test]
fn help_logout() {
    assert_said!(Scratch::new().run(&["logout", "--help"]));
}

#[test]
fn help_ls() {
    assert_said!(Scratch::new().run(&["ls", "--help"]));
}

#[test]
fn help_rm() {
    assert_said!(Scratch::new().run(&["rm", "--help"]));
}

#[test]
fn help_tag() {
    assert_said!(Scratch::new().run(&["tag", "--help"]));
}

#[test]
fn help_prune() {
    assert_said!(Scratch::new().run(&["prune", "--help"]));
}

#[test]
fn help_diff() {
    assert_said!(Scratch::new().run(&["diff", "--help"]));
}

#[test]
fn help_push() {
    assert_said!(Scratch::new().run(&["push", "--help"]));
}

#[test]
fn help_pull() {
    assert_said!(Scratch::new().run(&["pull", "--help"]));
}

#[test]
fn help_run() {
    assert_said!(Scratch::new().run(&["run", "--help"]));
}

#[test]
fn help_sidecar() {
    assert_said!(Scratch::new().run(&["sidecar", "--help"]));
}

#[test]
fn help_peer() {
    assert_said!(Scratch::new().run(&["peer", "--help"]));
}

#[test]
fn help_scheduler() {
    assert_said!(Scratch::new().run(&["scheduler", "--help"]));
}

#[test]
fn help_status() {
    assert_said!(Scratch::new().run(&["status", "--help"]));
}

#[test]
fn help_plan() {
    assert_said!(Scratch::new().run(&["plan", "--help"]));
}

#[test]
fn help_fleet_key() {
    assert_said!(Scratch::new().run(&["fleet-key", "--help"]));
}

#[test]
fn help_inspect() {
    assert_said!(Scratch::new().run(&["inspect", "--help"]));
}

#[test]
fn help_verify() {
    assert_said!(Scratch::new().run(&["verify", "--help"]));
}

#[test]
fn help_doctor() {
    assert_said!(Scratch::new().run(&["doctor", "--help"]));
}

#[test]
fn version() {
    assert_said!(Scratch::new().run(&["--version"]));
}

#[test]
fn usage_errors() {
    let scratch = Scratch::new();
    let lines: &[&[&str]] = &[
        &[],
        &["biuld"],
        &["build", "model"],
        &["build", "model", "-t", "oci:out:v1", "--plain-htp"],
        &["inspect", "models/minilm:v1"],
        &["inspect", "registry.example.org/models/minilm"],
        &["inspect", "oci:out:v1", "--checksums", "md5"],
        &["inspect", "models/minilm:v1", "--json"],
        &["verify", "./model", "./model"],
        &["push", "./model", "registry.example.org/models/minilm:v1"],
        &["push", "oci:out:v1", "oci:other:v1"],
        &["pull", "oci:out:v1"],
        &["pull", "oci:out:v1", "-o", "there", "--peer", "tcp:1"],
        &["peer", "--store", "store", "--nic-rate", "fast"],
        &["peer", "--store", "store", "--listen", "0.0.0.0:0"],
        &["scheduler", "--listen", "0.0.0.0:0"],
        &["inspect", "localhost:1/m:v1", "--authfile", "absent.json"],
        &["inspect", "localhost:1/m:v1", "--plain-http", "--ca-cert", "ca.pem"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    let scratch = Scratch::new();
    let mut child =
        scratch.modelctl(&["--help"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), b"".as_slice()));
}

#[test]
fn a_full_disk_behind_stdout_is_a_failure() {
    let scratch = Scratch::new();
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = scratch.modelctl(&["--version"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}
