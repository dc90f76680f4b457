//! What `--transport` does on a machine that has no such device as it is asked for.

use crate::support::Scratch;

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
