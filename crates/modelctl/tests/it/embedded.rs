//! Pulls that take part in a fleet by themselves, each a process of its own, and how long they live on.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    door::Door,
    running::{Running, Signal},
    support::{Registry, Scratch, assert_said, said, until},
};

/// Many times what the processes ask of a registry at once.
const LARGE: usize = (64 << 20) + 12_345;

/// Nobody can have everything when a registry is held there.
const HELD_AT: u64 = LARGE as u64 * 3 / 4;

/// Longer than any test: where it matters that the process ends for another reason.
const FOR_EVER: &str = "1h";

/// How long a process may take to end that has nothing to wait for.
const SOON: Duration = Duration::from_secs(5);

struct Swarm {
    scheduler: Option<Running>,
    scheduler_url: String,
    registry: Registry,
    door: Door,
    reference: String,
    scratch: Scratch,
}

impl Swarm {
    /// A scheduler, and a large model in a registry that stops in the middle until its door is opened.
    fn held() -> Self {
        Self::with(&[])
    }

    /// The same with a scheduler that is started with more arguments.
    fn with(arguments: &[&str]) -> Self {
        let scratch = Scratch::new();
        scratch.write_large_model("model", LARGE);
        if arguments.contains(&"--fleet-key") {
            scratch.stdout(&["fleet-key", "new", "fleet.key"]);
        }
        let registry = Registry::start();
        scratch.stdout(&["build", "model", "-t", &registry.reference("models/m:v1"), "--plain-http"]);
        let door = Door::before(&registry, HELD_AT);
        let reference = door.reference("models/m:v1");
        let args = [&["scheduler", "--listen", "127.0.0.1:0", "--json"], arguments].concat();
        let mut scheduler = Running::start(scratch.modelctl(&args));
        let scheduler_url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
        Self { scheduler: Some(scheduler), scheduler_url, registry, door, reference, scratch }
    }

    /// Starts a pull that takes part by itself.
    fn pull(&self, dir: &str, more: &[&str]) -> Running {
        let scheduler = ["--scheduler", &self.scheduler_url];
        self.pull_with(dir, &[&scheduler, &["--peer", "none"], more].concat())
    }

    fn pull_with(&self, dir: &str, more: &[&str]) -> Running {
        let args = ["pull", &self.reference, "--plain-http", "-o", dir, "--json"];
        Running::start(self.scratch.modelctl(&[&args, more].concat()))
    }

    fn start_peer(&self) -> Running {
        let args = ["--store", "store", "--socket", "a.sock", "--scheduler", &self.scheduler_url, "--json"];
        let mut peer = Running::start(self.scratch.modelctl(&[&["peer"], &args[..]].concat()));
        peer.line();
        peer
    }

    /// That it brought the model.
    fn assert_pulled(&self, dir: &str, result: &Value) {
        assert_eq!(result["verified"], true, "{result}");
        self.scratch.assert_pulled("model", dir);
    }

    /// That what the pulls say they read from the registry, and what it says it sent, is one model and a bit.
    fn assert_read_once(&self, results: &[Value]) {
        let from_origin = results.iter().map(|result| number(result, "origin_bytes")).sum();
        let model = number(&results[0], "bytes");
        until("the registry has logged what it sent", || self.registry.sent() >= from_origin);
        for sent in [from_origin, self.registry.sent()] {
            assert!(sent * 100 <= model * 102, "{sent} bytes of {model} came from the registry");
        }
    }
}

fn number(result: &Value, name: &str) -> u64 {
    result[name].as_u64().unwrap_or_else(|| panic!("no {name} in {result}"))
}

/// Reads on to the result, and leaves the process as it is.
fn result_line(pull: &mut Running) -> Value {
    loop {
        let line = pull.line();
        if line.get("verified").is_some() {
            return line;
        }
    }
}

/// That it ends well by itself, or was told to, within that time.
fn assert_ends_within(pull: Running, limit: Duration) -> String {
    let output = pull.end_within(limit);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    String::from_utf8(output.stderr).unwrap()
}

/// Waits until every pull is a member and has something, then lets the registry give the rest.
fn open_when_all_have_begun(swarm: &Swarm, pulls: &mut [Running]) {
    for pull in &mut *pulls {
        pull.wait_for_percent(5);
    }
    swarm.door.open();
}

#[test]
fn pulls_without_any_daemon_share_one_copy_and_end_by_themselves() {
    let swarm = Swarm::held();
    let dirs = ["a", "b", "c", "d"];
    let mut pulls = dirs.map(|dir| swarm.pull(dir, &["--linger", FOR_EVER]));
    open_when_all_have_begun(&swarm, &mut pulls);
    let mut results = Vec::new();
    for (dir, pull) in dirs.into_iter().zip(pulls) {
        // Each ends once nobody reads from it: none of them may wait for the hour that it could.
        let result = pull.result();
        swarm.assert_pulled(dir, &result);
        assert!(number(&result, "peer_bytes") > 0, "{result}");
        assert_eq!((&result["transport"], &result["fallback_reason"]), (&"tcp".into(), &Value::Null));
        assert!(result["bounded_by"].is_string(), "{result}");
        assert!(!swarm.scratch.path(&format!(".{dir}.modelctl")).exists(), "staging is gone");
        results.push(result);
    }
    swarm.assert_read_once(&results);
}

#[test]
fn a_pull_that_nobody_reads_from_does_not_linger() {
    let swarm = Swarm::held();
    swarm.door.open();
    let mut pull = swarm.pull("a", &["--linger", FOR_EVER]);
    let result = result_line(&mut pull);
    swarm.assert_pulled("a", &result);
    assert_eq!(result["origin_bytes"], result["bytes"]);
    assert_ends_within(pull, SOON);
    // There is nothing to serve in what was there before.
    let again = swarm.pull("a", &["--linger", FOR_EVER]).result();
    assert_eq!(again["local_bytes"], again["bytes"], "{again}");
}

/// Two pulls that read from each other, of which the second then hangs; the result of the first, which goes on.
fn done_while_another_hangs(swarm: &Swarm, linger: &str) -> (Running, Running) {
    let mut pulls = ["a", "b"].map(|dir| swarm.pull(dir, &["--linger", linger]));
    for pull in &mut pulls {
        pull.wait_for_percent(5);
    }
    let [mut first, second] = pulls;
    second.signal(Signal::STOP);
    swarm.door.open();
    let result = result_line(&mut first);
    swarm.assert_pulled("a", &result);
    (first, second)
}

#[test]
fn a_child_that_hangs_holds_nobody_longer_than_was_said() {
    let swarm = Swarm::held();
    let (first, second) = done_while_another_hangs(&swarm, "1s");
    assert_ends_within(first, Duration::from_secs(1) + SOON);
    // It goes on without whoever has left.
    second.signal(Signal::CONT);
    swarm.assert_pulled("b", &second.result());
}

#[test]
fn a_pull_that_lingers_ends_at_once_when_it_is_told_to() {
    let swarm = Swarm::held();
    for signal in [Signal::TERM, Signal::INT] {
        let (first, _second) = done_while_another_hangs(&swarm, FOR_EVER);
        first.signal(signal);
        assert_ends_within(first, SOON);
        for dir in ["a", "b"] {
            let _ = std::fs::remove_dir_all(swarm.scratch.path(dir));
            let _ = std::fs::remove_dir_all(swarm.scratch.path(&format!(".{dir}.modelctl")));
        }
    }
}

#[test]
fn a_pull_goes_on_without_its_scheduler_and_says_so() {
    let mut swarm = Swarm::held();
    swarm.door.open();
    swarm.scheduler.take().unwrap().kill();
    let start = Instant::now();
    let output = swarm.pull("a", &[]).end();
    assert!(output.status.success(), "{}", said(&output));
    let stdout = String::from_utf8(output.stdout).unwrap();
    let result: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    swarm.assert_pulled("a", &result);
    assert_eq!(result["fallback_reason"], "the scheduler is not reachable");
    assert_eq!(result["origin_bytes"], result["bytes"]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("the scheduler is not reachable; pulls go on without it"), "{stderr}");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    let swarm = Swarm::held();
    let mut pull = swarm.pull("a", &[]);
    pull.wait_for_percent(20);
    pull.kill();
    assert!(!swarm.scratch.path("a").exists());
    swarm.door.open();
    let result = swarm.pull("a", &[]).result();
    swarm.assert_pulled("a", &result);
    assert!(number(&result, "local_bytes") * 10 > number(&result, "bytes"), "{result}");
}

#[test]
fn direct_pulls_land_the_bytes_themselves_and_read_from_the_local_peer() {
    let swarm = Swarm::held();
    let _daemon = swarm.start_peer();
    let local = ["--peer", "unix:a.sock"];
    let through = swarm.pull_with("through", &local);
    let direct = ["a", "b"].map(|dir| swarm.pull_with(dir, &[&local[..], &["--direct"]].concat()));
    let mut pulls: Vec<_> = [through].into_iter().chain(direct).collect();
    open_when_all_have_begun(&swarm, &mut pulls);
    let mut results = Vec::new();
    for (dir, pull) in ["through", "a", "b"].into_iter().zip(pulls) {
        let result = pull.result();
        swarm.assert_pulled(dir, &result);
        assert!(number(&result, "peer_bytes") > 0, "{result}");
        results.push(result);
    }
    swarm.assert_read_once(&results);
    // What the store has whole, a later one reads from nobody else.
    let late = swarm.pull_with("late", &[&local[..], &["--direct"]].concat()).result();
    assert_eq!((number(&late, "origin_bytes"), late["peer_bytes"].clone()), (0, late["bytes"].clone()));
}

#[test]
fn a_fleet_with_a_key_is_one_for_embedded_pulls_too() {
    let swarm = Swarm::with(&["--fleet-key", "fleet.key"]);
    let key = ["--fleet-key", "fleet.key"];
    let plain = [&key[..], &["--data-plain"]].concat();
    let mut pulls = [swarm.pull("a", &key), swarm.pull("b", &key)];
    open_when_all_have_begun(&swarm, &mut pulls);
    let results = pulls.map(Running::result);
    swarm.assert_read_once(&results);
    let pulls = [swarm.pull("c", &plain), swarm.pull("d", &plain)].map(Running::result);
    for (dir, result) in ["a", "b", "c", "d"].into_iter().zip(results.into_iter().chain(pulls)) {
        swarm.assert_pulled(dir, &result);
        assert_eq!(result["fallback_reason"], Value::Null);
    }
    // Whoever has no key, or another, is no member, and reads by itself.
    let stranger = swarm.pull("e", &[]).result();
    assert_eq!(stranger["fallback_reason"], "the scheduler is not reachable");
    assert_eq!(stranger["origin_bytes"], stranger["bytes"]);
}

#[test]
fn what_cannot_be_is_refused_with_a_way_out() {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:layout:v1"]);
    scratch.stdout(&["fleet-key", "new", "fleet.key"]);
    let start = |args: &[&str]| Running::start(scratch.modelctl(&[&["peer", "--json"], args].concat()));
    let mut alone = start(&["--store", "a", "--socket", "alone.sock"]);
    alone.line();
    let scheduler = ["--scheduler", "http://127.0.0.1:1", "--fleet-key", "fleet.key"];
    let mut keyed = start(&[&["--store", "b", "--socket", "keyed.sock"], &scheduler[..]].concat());
    keyed.line();
    let digest = format!("fleet:sha256:{}", "0".repeat(64));
    let pulls: [&[&str]; 7] = [
        &["oci:layout:v1", "--direct", "--peer", "unix:keyed.sock"],
        &["oci:layout:v1", "--direct", "--peer", "unix:nobody.sock"],
        &[&digest, "--direct", "--peer", "unix:alone.sock"],
        &["oci:layout:v1", "--scheduler", "http://127.0.0.1:1", "--listen", "0.0.0.0:0"],
        &["oci:layout:v1", "--scheduler", "http://127.0.0.1:1", "--linger", "10"],
        &["oci:layout:v1", "--scheduler", "http://127.0.0.1"],
        &["oci:layout:v1", "--data-plain"],
    ];
    let refused = pulls.map(|args| {
        let said = scratch.run(&[&["pull"], args, &["-o", "out"]].concat());
        format!("$ modelctl pull {}\n{said}", args.join(" "))
    });
    assert!(!scratch.path("out").exists());
    assert_said!(refused.join("\n"));
}

#[test]
fn direct_without_a_fleet_reads_the_origin_alone_and_says_why() {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:layout:v1"]);
    let args = ["pull", "oci:layout:v1", "-o", "out", "--direct", "--peer", "none", "--json"];
    let output = scratch.modelctl(&args).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "warning: no scheduler is named: pulling from the origin alone\n"
    );
    let result: Value =
        serde_json::from_str(String::from_utf8(output.stdout).unwrap().lines().last().unwrap()).unwrap();
    assert_eq!(result["fallback_reason"], "no scheduler is named");
    scratch.assert_pulled("model", "out");
}
