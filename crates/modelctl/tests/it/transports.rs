//! What `--transport` does on a machine that has no such device as it is asked for, and what `--limit` does.

use std::time::{Duration, Instant};

use crate::{
    running::Running,
    support::{Registry, Scratch, said},
};

const NO_DEVICE: &str = "no-such-device-0";

#[test]
fn who_wants_rdma_only_is_told_at_once_what_is_missing() {
    let scratch = Scratch::new();
    let pull: &[&str] = &["pull", "oci:out:v1", "-o", "model"];
    let peer: &[&str] = &["peer", "--store", "store", "--socket", "sock"];
    for command in [pull, peer] {
        let args = [command, &["--transport", "rdma", "--rdma-device", NO_DEVICE]].concat();
        let output = scratch.modelctl(&args).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: RDMA cannot be used\n\nCaused by:"), "{stderr}");
        assert!(stderr.contains("\nhint: ") && stderr.contains("`--transport auto`"), "{stderr}");
    }
    assert!(!scratch.path("model").exists() && !scratch.path("store").exists(), "nothing was begun");
}

#[test]
fn a_device_that_would_not_be_opened_is_wrong_usage() {
    let scratch = Scratch::new();
    let peer = ["peer", "--store", "store", "--socket", "sock"];
    let args = [&peer[..], &["--transport", "tcp", "--rdma-device", NO_DEVICE]].concat();
    let output = scratch.modelctl(&args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("`--transport tcp` does not open"), "{stderr}");
}

#[test]
fn who_gives_way_serves_over_tcp_and_so_cannot_be_rdma_only() {
    let scratch = Scratch::new();
    let peer = ["peer", "--store", "store", "--socket", "sock", "--transport", "rdma", "--background"];
    let output = scratch.modelctl(&peer).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("serves others over TCP"), "{}", said(&output));
}

#[test]
fn a_limit_binds_a_pull_of_its_own_and_not_the_local_peer() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("models/drill:v1");
    scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
    let pull = ["pull", &reference, "--plain-http", "--limit", "4mbit"];
    let begin = Instant::now();
    let result = scratch.json(&[&pull[..], &["--peer", "none", "-o", "alone"]].concat());
    // What may move at once is 64 KiB.
    let least = Duration::from_millis((result["origin_bytes"].as_u64().unwrap() - (64 << 10)) / 500);
    assert!(begin.elapsed() >= least, "{:?}, and not {least:?}", begin.elapsed());

    let peer = ["peer", "--store", "store", "--socket", "peer.sock", "--limit", "4mbit", "--json"];
    let mut peer = Running::start(scratch.modelctl(&peer));
    peer.line();
    let background = ["pull", &reference, "--plain-http", "--background"];
    let output =
        scratch.modelctl(&[&background[..], &["--peer", "unix:peer.sock"]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("keeps to its own `--background`"), "{}", said(&output));
    for rest in [&["-o", "through"][..], &[]] {
        let args = [&pull[..], &["--peer", "unix:peer.sock"], rest].concat();
        let output = scratch.modelctl(&args).output().unwrap();
        let told = said(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains("keeps to its own `--limit`") && told.contains("hint: "), "{told}");
    }
    assert!(!scratch.path("through").exists());
    let begin = Instant::now();
    scratch.json(&["pull", &reference, "--plain-http", "--peer", "unix:peer.sock", "-o", "through"]);
    assert!(begin.elapsed() >= least, "{:?}, and not {least:?}", begin.elapsed());
}
