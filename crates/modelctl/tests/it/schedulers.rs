//! Two schedulers, and what happens when the one that is used dies, hangs, or comes back; and that a registry is asked
//! once for what a fleet needs to know.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    door::Door,
    running::{Running, Signal},
    support::{Registry, Scratch, until},
};

const LARGE: usize = (96 << 20) + 12_345;
/// What a registry gives before it is held back in the middle of a pull.
const HELD_AT: u64 = LARGE as u64 / 2;
const A_TENTH: u64 = 10;

struct Fleet {
    /// By port, in the order in which they were started.
    schedulers: Vec<(u16, Option<Running>)>,
    peers: Vec<Running>,
    registry: Registry,
    door: Door,
    scratch: Scratch,
}

/// A port that was free a moment ago: both schedulers have to know the addresses of both before they start.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Fleet {
    fn start(scratch: Scratch, peers: usize) -> Self {
        let registry = Registry::start();
        scratch.stdout(&["build", "model", "-t", &registry.reference("models/drill:v1"), "--plain-http"]);
        let door = Door::before(&registry, HELD_AT);
        let schedulers = [free_port(), free_port()].map(|port| (port, None)).into();
        let mut fleet = Self { schedulers, peers: Vec::new(), registry, door, scratch };
        for number in 0..2 {
            fleet.start_scheduler(number);
        }
        for number in 0..peers {
            let (store, socket) = (format!("store-{number}"), format!("{number}.sock"));
            let args =
                ["peer", "--store", &store, "--socket", &socket, "--scheduler", &fleet.urls(), "--json"];
            let mut command = fleet.scratch.modelctl(&args);
            command.env("MODELCTL_LOG", "info");
            let mut peer = Running::start(command);
            peer.line();
            fleet.peers.push(peer);
        }
        fleet.wait_until_all_are_at(fleet.first(), 1);
        fleet
    }

    fn urls(&self) -> String {
        let urls: Vec<String> =
            self.schedulers.iter().map(|(port, _)| format!("http://127.0.0.1:{port}")).collect();
        urls.join(",")
    }

    fn start_scheduler(&mut self, number: usize) {
        let listen = format!("127.0.0.1:{}", self.schedulers[number].0);
        let urls = self.urls();
        let args = ["scheduler", "--listen", &listen, "--scheduler", &urls, "--json"];
        let mut scheduler = Running::start(self.scratch.modelctl(&args));
        scheduler.line();
        self.schedulers[number].1 = Some(scheduler);
    }

    /// The number of the scheduler that all peers prefer.
    fn first(&self) -> usize {
        let address = |at: usize| format!("127.0.0.1:{}", self.schedulers[at].0);
        usize::from(planner::FleetName::LOCAL.prefers(&address(1), &address(0)))
    }

    fn kill_scheduler(&mut self, number: usize) {
        self.schedulers[number].1.take().unwrap().kill();
    }

    fn signal_scheduler(&self, number: usize, signal: Signal) {
        self.schedulers[number].1.as_ref().unwrap().signal(signal);
    }

    /// Waits until each peer has come to that scheduler so many times.
    fn wait_until_all_are_at(&self, number: usize, times: usize) {
        let (start, text) = (Instant::now(), format!("127.0.0.1:{}\"", self.schedulers[number].0));
        until("all peers are there", || self.peers.iter().all(|peer| peer.logged(&text) >= times));
        assert!(start.elapsed() < TAKE_OVER_MAX, "{:?}", start.elapsed());
    }

    fn pull_all(&self) -> Vec<Running> {
        let reference = self.door.reference("models/drill:v1");
        let pull = |number: usize| {
            let (peer, output) = (format!("unix:{number}.sock"), format!("out-{number}"));
            let args = ["pull", &reference, "--plain-http", "--peer", &peer, "-o", &output, "--json"];
            Running::start(self.scratch.modelctl(&args))
        };
        (0..self.peers.len()).map(pull).collect()
    }

    /// Waits for all pulls, which have to bring the model and to read the origin hardly more than once.
    fn pulled(&self, pulls: Vec<Running>) {
        let results: Vec<Value> = pulls.into_iter().map(Running::result).collect();
        let sum = |name: &str| results.iter().map(|result| result[name].as_u64().unwrap()).sum::<u64>();
        for number in 0..results.len() {
            self.scratch.assert_pulled("model", &format!("out-{number}"));
        }
        let (bytes, read) = (sum("bytes") / results.len() as u64, sum("origin_bytes"));
        assert!(read * 100 <= bytes * 110, "{read} bytes of {bytes} came from the registry: {results:?}");
    }
}

fn large() -> Scratch {
    let scratch = Scratch::new();
    scratch.write_large_model("model", LARGE);
    scratch
}

/// What all peers may take to be at another scheduler: two seconds are aimed at, on machines that are not as busy as
/// those that run tests.
const TAKE_OVER_MAX: Duration = Duration::from_secs(15);

/// The registry stays held while `what` is done and is noticed, so that it happens in the middle.
fn in_the_middle(what: impl FnOnce(&mut Fleet)) {
    let mut fleet = Fleet::start(large(), 3);
    let mut pulls = fleet.pull_all();
    pulls[0].wait_for_percent(A_TENTH);
    what(&mut fleet);
    fleet.door.open();
    fleet.pulled(pulls);
}

#[test]
fn the_other_scheduler_takes_over_from_one_that_is_killed() {
    in_the_middle(|fleet| {
        let first = fleet.first();
        fleet.kill_scheduler(first);
        fleet.wait_until_all_are_at(1 - first, 1);
    });
}

#[test]
fn the_other_scheduler_takes_over_from_one_that_hangs_and_it_does_no_harm_later() {
    in_the_middle(|fleet| {
        let first = fleet.first();
        fleet.signal_scheduler(first, Signal::STOP);
        fleet.wait_until_all_are_at(1 - first, 1);
        fleet.signal_scheduler(first, Signal::CONT);
        fleet.wait_until_all_are_at(first, 2);
    });
}

#[test]
fn the_first_scheduler_is_used_again_when_it_is_back() {
    in_the_middle(|fleet| {
        let first = fleet.first();
        fleet.kill_scheduler(first);
        fleet.wait_until_all_are_at(1 - first, 1);
        fleet.start_scheduler(first);
        fleet.wait_until_all_are_at(first, 2);
        // Without the other one the plans can only come from the first.
        fleet.kill_scheduler(1 - first);
    });
}

#[test]
fn a_registry_is_asked_once_for_what_all_peers_need_to_know() {
    let fleet = Fleet::start(large(), 8);
    fleet.door.open();
    let before = fleet.registry.requests().len();
    let pulls = fleet.pull_all();
    fleet.pulled(pulls);
    let of_tag = |method: &str, requests: &[String]| {
        requests.iter().filter(|at| at.starts_with(method) && at.contains("/manifests/v1 ")).count()
    };
    until("the registry has logged all questions", || {
        of_tag("HEAD", &fleet.registry.requests()[before..]) >= 8
    });
    let requests = fleet.registry.requests().split_off(before);
    let manifest = fleet.registry.digest("models/drill", "v1");
    let config = fleet.registry.config("models/drill", "v1");
    let count = |part: &str| requests.iter().filter(|at| at.starts_with("GET") && at.contains(part)).count();
    for (what, count, expected) in [
        ("HEAD of the tag", of_tag("HEAD", &requests), 8),
        ("GET of the tag", of_tag("GET", &requests), 0),
        ("GET of the manifest", count(&format!("/manifests/{manifest} ")), 1),
        ("GET of the config", count(&format!("/blobs/{config} ")), 1),
        ("GET of the referrers", count(&format!("/referrers/{manifest}?")), 1),
    ] {
        assert_eq!(count, expected, "{what}: {requests:?}");
    }
}
