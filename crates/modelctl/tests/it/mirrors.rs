//! Mirrors of a registry, as `containers-registries.conf(5)` names them.

use std::{fmt::Write as _, fs};

use crate::{
    door::Door,
    running::Running,
    support::{Registry, Scratch, assert_said, until},
};

const BYTES: usize = (32 << 20) + 12_345;

/// An artifact of 33 pieces in a registry, and one more registry that has it under another name.
struct Mirrored {
    scratch: Scratch,
    origin: Registry,
    near: Registry,
    reference: String,
}

impl Mirrored {
    fn new() -> Self {
        let (scratch, origin, near) = (Scratch::new(), Registry::start(), Registry::start());
        scratch.write_large_model("model", BYTES);
        let reference = origin.reference("models/large:v1");
        scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
        scratch.stdout(&["push", &reference, &near.reference("cache/models/large:v1"), "--plain-http"]);
        Self { scratch, origin, near, reference }
    }

    fn configure(&self, mirrors: &[&str]) {
        let mut text = format!("[[registry]]\nlocation = \"{}\"\n", self.origin.address());
        for mirror in mirrors {
            writeln!(text, "[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true").unwrap();
        }
        self.scratch.write("registries.conf", text);
    }

    fn pull(&self, dir: &str) -> Running {
        self.pull_by(&["--peer", "none"], dir)
    }

    fn pull_by(&self, way: &[&str], dir: &str) -> Running {
        let args = [&["pull", &self.reference, "--plain-http", "-o", dir, "--json"], way].concat();
        let mut command = self.scratch.modelctl(&args);
        command.env("CONTAINERS_REGISTRIES_CONF", self.scratch.path("registries.conf"));
        Running::start(command)
    }

    /// The result of a pull that has to go well.
    fn pulled(&self, pull: Running, dir: &str) -> serde_json::Value {
        let output = pull.end();
        assert!(output.status.success(), "{}", crate::support::said(&output));
        self.scratch.assert_pulled("model", dir);
        serde_json::from_slice(
            output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap(),
        )
        .unwrap()
    }
}

#[test]
fn a_mirror_gives_everything_and_is_named() {
    let all = Mirrored::new();
    all.configure(&["127.0.0.1:1/nobody", &all.near.reference("cache")]);
    let (before, sent) = (all.origin.requests().len(), all.near.sent());
    let result = all.pulled(all.pull("there"), "there");
    assert_eq!(result["origin_bytes"], result["bytes"]);
    assert_eq!(result["mirrors"][0]["registry"], all.near.address());
    assert_eq!(result["mirrors"][0]["bytes"], result["bytes"]);
    assert_eq!(all.origin.requests().len(), before, "the registry is asked for nothing");
    assert!(all.near.sent() - sent >= BYTES as u64);
}

#[test]
fn a_mirror_that_dies_in_the_middle_costs_nothing_but_what_was_on_its_way() {
    let mut all = Mirrored::new();
    let door = Door::before(&all.near, BYTES as u64 / 2);
    all.configure(&[&door.reference("cache")]);
    let pull = all.pull("there");
    let journal = all.scratch.path(".there.modelctl/journal");
    until("a part has landed", || fs::metadata(&journal).is_ok_and(|meta| meta.len() > 48 * 8));
    // Its process, and what is still on its way through the door.
    let dead = std::mem::replace(&mut all.near, Registry::start());
    drop(dead);
    door.close();
    let result = all.pulled(pull, "there");
    let mirrored = result["mirrors"][0]["bytes"].as_u64().unwrap();
    assert!(mirrored > 0 && mirrored < BYTES as u64, "{result}");
    let again = result["origin_bytes"].as_u64().unwrap() - result["bytes"].as_u64().unwrap();
    assert!(again <= 16 << 20, "only what was on its way: {result}");
}

#[test]
fn a_mirror_with_damaged_bytes_is_found_out() {
    let all = Mirrored::new();
    let manifest: serde_json::Value =
        serde_json::from_slice(&all.origin.get("models/large/manifests/v1")).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let large = layers.iter().find(|layer| layer["size"].as_u64() == Some(BYTES as u64)).unwrap();
    all.near.damage(large["digest"].as_str().unwrap().trim_start_matches("sha256:"));
    all.configure(&[&all.near.reference("cache")]);
    let result = all.pulled(all.pull("there"), "there");
    let mirrored = result["mirrors"][0]["bytes"].as_u64().unwrap();
    assert!(mirrored < result["origin_bytes"].as_u64().unwrap(), "{result}");
    assert_eq!(result["verified"], true);
}

#[test]
fn a_local_peer_reads_from_the_mirror_that_its_client_names() {
    let all = Mirrored::new();
    all.configure(&[&all.near.reference("cache")]);
    let mut peer =
        Running::start(all.scratch.modelctl(&["peer", "--store", "store", "--socket", "p.sock", "--json"]));
    peer.line();
    let before = all.origin.requests().len();
    let result = all.pulled(all.pull_by(&["--peer", "unix:p.sock"], "there"), "there");
    assert_eq!(result["mirrors"][0]["bytes"], result["bytes"]);
    assert_eq!(all.origin.requests().len(), before);
}

#[test]
fn settings_that_make_no_sense_are_told_and_a_push_goes_to_the_registry() {
    let all = Mirrored::new();
    let run = |args: &[&str]| {
        let mut command = all.scratch.modelctl(args);
        command.env("CONTAINERS_REGISTRIES_CONF", "registries.conf");
        format!("$ modelctl {}\n{}", args.join(" "), crate::support::said(&command.output().unwrap()))
    };
    all.configure(&[""]);
    let inspect = ["inspect", &all.reference, "--plain-http"];
    let twisted = run(&inspect);
    let blocked = format!("[[registry]]\nlocation = \"{}\"\nblocked = true\n", all.origin.address());
    all.scratch.write("registries.conf", blocked);
    assert_said!([twisted, run(&inspect)].join("\n"));
    all.configure(&[&all.near.reference("cache")]);
    let (near, origin) = (all.near.requests().len(), all.origin.requests().len());
    all.scratch.write("model/config.json", "{\"changed\":true}");
    let said = run(&["build", "model", "-t", &all.origin.reference("models/large:v2"), "--plain-http"]);
    assert!(said.contains("exit code: 0"), "{said}");
    assert_eq!(all.near.requests().len(), near);
    assert!(all.origin.requests().len() > origin);
}
