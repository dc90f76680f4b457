//! Peers that stand in for a registry: more of the clients that others wrote, and a registry behind TLS.

use std::{fs, process::Command};

use serde_json::Value;

use crate::{
    mirror::{Fleet, LARGE, NAME, REPOSITORY, ask, run},
    running::Running,
    support::{Registry, Scratch, said, skip},
};

#[test]
fn a_registry_behind_tls_is_reached_with_the_authority_that_is_named() {
    let scratch = Scratch::new();
    scratch.write_large_model("model", LARGE);
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let registry = Registry::with_tls(&own.cert.pem(), &own.signing_key.serialize_pem());
    scratch.write("ca.pem", own.cert.pem());
    scratch.stdout(&["build", "model", "-t", &registry.reference(NAME), "--ca-cert", "ca.pem"]);
    let start = |store: &str, more: &[&str]| {
        let (socket, upstream) = (format!("{store}.sock"), format!("https://{}", registry.address()));
        let args = ["peer", "--store", store, "--socket", &socket, "--json", "--oci-listen", "127.0.0.1:0"];
        let mut peer =
            Running::start(scratch.modelctl(&[&args[..], &["--oci-upstream", &upstream], more].concat()));
        let mirror = peer.line()["oci"].as_str().unwrap().to_owned();
        (peer, mirror)
    };
    let (_stranger, mirror) = start("stranger", &[]);
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let answer = ask(&mirror, "GET", &path, &[]);
    assert_eq!((answer.status, answer.code().as_str()), (503, "UNAVAILABLE"), "nobody vouches for it");
    let (_peer, mirror) = start("store", &["--ca-cert", "ca.pem"]);
    let answer = ask(&mirror, "GET", &path, &[]);
    assert_eq!(answer.status, 200);
    let manifest: Value = serde_json::from_slice(&answer.body).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let large = layers.iter().find(|layer| layer["size"].as_u64() == Some(LARGE as u64)).unwrap();
    let weights = format!("/v2/{REPOSITORY}/blobs/{}", large["digest"].as_str().unwrap());
    assert!(ask(&mirror, "GET", &weights, &[]).body == fs::read(scratch.path("model/model.bin")).unwrap());
}

#[test]
fn oras_and_podman_find_what_they_know_to_read() {
    let fleet = Fleet::start(2, 0);
    fleet.door.open();
    let before = fleet.registry.sent();
    let mut missing = Vec::new();
    if Command::new("oras").arg("version").output().is_ok_and(|output| output.status.success()) {
        let to = format!("{}:v1", fleet.scratch.path("of-oras").display());
        let from = format!("{}/{NAME}", fleet.mirrors[0]);
        run("oras", &["copy", "--no-tty", "--from-plain-http", &from, "--to-oci-layout", &to]);
        fleet.scratch.stdout(&["verify", &format!("oci:{to}"), "model"]);
        let found = fleet.scratch.path("weights-of-oras").display().to_string();
        let blob = format!("{}/{REPOSITORY}@{}", fleet.mirrors[1], fleet.weights());
        // It knows of no manifest, but of a blob; the mirror learns of the manifest first.
        assert_eq!(fleet.get(1, &format!("/v2/{REPOSITORY}/manifests/v1"), &[]).status, 200);
        run("oras", &["blob", "fetch", "--no-tty", "--plain-http", "--output", &found, &blob]);
        assert!(fs::read(found).unwrap() == fleet.bytes());
    } else {
        missing.push("oras");
    }
    if Command::new("podman").arg("--version").output().is_ok_and(|output| output.status.success()) {
        // Of an artifact it reads the manifest and the config, by the mirror, and then says that it runs images. Since 5.4 it
        // has `podman artifact`, which this one may not have.
        let podman = |args: &[&str]| {
            let mut podman = Command::new("podman");
            podman.args(["--storage-driver", "vfs"]).args(args).env("HOME", fleet.scratch.path("home"));
            podman.output().unwrap()
        };
        let at = format!("{}/{REPOSITORY}", fleet.mirrors[0]);
        let tags = podman(&["search", "--tls-verify=false", "--list-tags", &at]);
        assert!(said(&tags).contains("v1"), "{}", said(&tags));
        let pulled = podman(&["pull", "--tls-verify=false", &format!("{at}:v1")]);
        assert!(said(&pulled).contains("operation on artifact with type"), "{}", said(&pulled));
    } else {
        missing.push("podman");
    }
    let sent = fleet.registry.sent() - before;
    assert!(sent <= LARGE as u64 * 101 / 100, "the origin gave {sent} bytes of a blob of {LARGE}");
    if !missing.is_empty() {
        skip(&format!("not installed: {}", missing.join(", ")));
    }
}
