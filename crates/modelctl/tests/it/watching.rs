//! What is seen of a fleet from outside: `/metrics`, `/healthz` and `modelctl status`.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
};

use serde_json::Value;

use crate::{
    door::Door,
    running::{Running, Signal},
    support::{PATIENCE, Registry, Scratch, assert_said, until},
};

/// A process that shows itself.
struct Shown {
    process: Running,
    listening: String,
    http: String,
}

impl Shown {
    fn start(scratch: &Scratch, args: &[&str]) -> Self {
        let args = [args, &["--http-listen", "127.0.0.1:0", "--json"]].concat();
        let mut process = Running::start(scratch.modelctl(&args));
        let ready = process.line();
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self { listening: text("listening"), http: text("http"), process }
    }

    /// The status code and the body of a page.
    fn page(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(&self.http).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// One value of `/metrics`, if it is there.
    fn value(&self, name: &str) -> Option<String> {
        let (code, page) = self.page("/metrics");
        assert_eq!(code, 200);
        page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned))
    }

    /// One that is a whole number, and there.
    fn number(&self, name: &str) -> u64 {
        let value =
            self.value(name).unwrap_or_else(|| panic!("{name} is not on\n{}", self.page("/metrics").1));
        value.parse().unwrap()
    }
}

const FROM_ORIGIN: &str = r#"modelctl_peer_received_bytes_total{source="origin",transport="http"}"#;
const FROM_PEERS: &str = r#"modelctl_peer_received_bytes_total{source="peer",transport="tcp"}"#;
const FROM_SEEDS: &str = r#"modelctl_peer_received_bytes_total{source="seed",transport="tcp"}"#;
const SENT: &str = r#"modelctl_peer_sent_bytes_total{transport="tcp"}"#;
const FINISHED: &str = r#"modelctl_peer_transfers_ended_total{result="finished"}"#;
const CANCELLED: &str = r#"modelctl_peer_transfers_ended_total{result="cancelled"}"#;
const PARENTS: &str = r#"modelctl_peer_links{to="parent",transport="tcp"}"#;
const CHILDREN: &str = r#"modelctl_peer_links{to="child",transport="tcp"}"#;

#[test]
fn a_pull_is_seen_in_metrics_and_status() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("models/drill:v1");
    scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
    scratch.stdout(&["fleet-key", "new", "fleet.key"]);
    let key = ["--fleet-key", "fleet.key"];
    let scheduler = Shown::start(&scratch, &[&["scheduler", "--listen", "127.0.0.1:0"], &key[..]].concat());
    let url = format!("http://{}", scheduler.listening);
    let peers = ["a", "b"].map(|name| {
        let (store, socket) = (format!("store-{name}"), format!("{name}.sock"));
        let args = ["peer", "--store", &store, "--socket", &socket, "--name", name, "--nic-rate", "200"];
        Shown::start(&scratch, &[&args[..], &["--scheduler", &url], &key].concat())
    });
    until("both peers are there", || scheduler.number("modelctl_scheduler_peers") >= 2);
    for peer in &peers {
        assert_eq!(peer.page("/healthz"), (200, "serving\n".to_owned()));
        for name in [FROM_ORIGIN, FROM_PEERS, FROM_SEEDS, SENT, FINISHED] {
            assert_eq!(peer.number(name), 0, "{name}");
        }
        assert_eq!(peer.value("modelctl_peer_bound_ratio"), None);
    }
    assert_eq!(scheduler.number("modelctl_scheduler_swarms"), 0);

    let pulls = ["a", "b"].map(|name| {
        let (peer, output) = (format!("unix:{name}.sock"), format!("out-{name}"));
        let args = ["pull", &reference, "--plain-http", "--peer", &peer, "-o", &output, "--json"];
        Running::start(scratch.modelctl(&args)).result()
    });
    let bytes = pulls[0]["bytes"].as_u64().unwrap();
    let [first, second] = &peers;
    assert_eq!([FROM_ORIGIN, FROM_PEERS, FROM_SEEDS].map(|name| first.number(name)), [bytes, 0, 0]);
    assert_eq!([FROM_ORIGIN, FROM_PEERS, FROM_SEEDS].map(|name| second.number(name)), [0, bytes, 0]);
    until("what was sent is counted", || first.number(SENT) == bytes);
    until("the link is down", || first.number(CHILDREN) == 0);
    for peer in &peers {
        assert_eq!(peer.number(FINISHED), 1);
        assert_eq!(peer.number("modelctl_peer_transfers_begun_total"), 1);
        assert_eq!(peer.number("modelctl_peer_scheduler_connected"), 1);
        assert!(peer.value("modelctl_peer_bound_ratio").unwrap().parse::<f64>().unwrap() > 0.0);
    }
    let plans = scheduler.number("modelctl_scheduler_plans_total");
    assert!(plans >= 2, "{plans}");
    assert!(scheduler.number("modelctl_scheduler_plan_seconds_count") >= 2);
    assert_eq!(scheduler.number("modelctl_scheduler_members"), 2);

    let status = || scratch.json(&[&["status", "--scheduler", &url], &key[..]].concat());
    until("the scheduler has heard of the last piece", || status()["swarms"][0]["complete"] == 2);
    let status = status();
    assert_eq!(status["scheduler"], scheduler.listening);
    assert_eq!(status["active"], true);
    let swarm = &status["swarms"][0];
    assert_eq!([&swarm["digest"], &swarm["bytes"]], [&pulls[0]["digest"], &pulls[0]["bytes"]]);
    assert_eq!([&swarm["members"], &swarm["progress"]], [&Value::from(2), &Value::from(1.0)]);
    let peers_of = |name: &str| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().map(|peer| peer[name].clone()).collect::<Vec<_>>()
    };
    assert_eq!(peers_of("name"), ["a", "b"]);
    assert_eq!(peers_of("address"), [first, second].map(|peer| peer.listening.as_str()));
    assert_eq!(peers_of("nic_bytes_per_second"), [25_000_000, 25_000_000]);
    assert_eq!(peers_of("standing"), ["good", "good"]);
    // Through the local peer, which knows where the scheduler is.
    let through = scratch.json(&[&["status", "--peer", "unix:a.sock"], &key[..]].concat());
    assert_eq!(through["scheduler"], scheduler.listening);
}

#[test]
fn what_is_under_way_is_seen() {
    const LARGE: usize = 64 << 20;
    let (scratch, registry) = (Scratch::new(), Registry::start());
    scratch.write_large_model("model", LARGE);
    let name = "models/drill:v1";
    scratch.stdout(&["build", "model", "-t", &registry.reference(name), "--plain-http"]);
    let door = Door::before(&registry, LARGE as u64 / 2);
    let scheduler = Shown::start(&scratch, &["scheduler", "--listen", "127.0.0.1:0"]);
    let url = format!("http://{}", scheduler.listening);
    let peers = ["a", "b"].map(|name| {
        let (store, socket) = (format!("store-{name}"), format!("{name}.sock"));
        Shown::start(&scratch, &["peer", "--store", &store, "--socket", &socket, "--scheduler", &url])
    });
    let pulls = ["a", "b"].map(|peer| {
        let (socket, output) = (format!("unix:{peer}.sock"), format!("out-{peer}"));
        let args =
            ["pull", &door.reference(name), "--plain-http", "--peer", &socket, "-o", &output, "--json"];
        Running::start(scratch.modelctl(&args))
    });
    let status = || scratch.json(&["status", "--scheduler", &url]);
    // The registry gives no more than half, so that nobody can be done.
    until("both have read from one another", || peers.iter().all(|peer| peer.number(FROM_PEERS) > 0));
    until("each has a parent and a child", || {
        peers.iter().all(|peer| peer.number(PARENTS) == 1 && peer.number(CHILDREN) == 1)
    });
    until("the scheduler has heard of some pieces", || {
        status()["swarms"][0]["progress"].as_f64() > Some(0.0)
    });
    let swarm = &status()["swarms"][0];
    assert!(swarm["progress"].as_f64() < Some(1.0), "{swarm}");
    assert_eq!([&swarm["members"], &swarm["complete"]], [2, 0]);
    assert_eq!(peers[0].number("modelctl_peer_shared_artifacts"), 1);

    // One client goes away, and the other gets what it wanted.
    let [gone, stays] = pulls;
    gone.kill();
    until("its transfer is given up", || peers[0].number(CANCELLED) == 1);
    door.open();
    stays.result();
    until("no link is left", || {
        peers.iter().all(|peer| peer.number(PARENTS) == 0 && peer.number(CHILDREN) == 0)
    });
}

/// A port that was free a moment ago: both schedulers have to know the addresses of both before they start.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn a_scheduler_that_stands_by_is_healthy_and_names_the_one_that_plans() {
    let scratch = Scratch::new();
    let addresses = [free_address(), free_address()];
    let urls = addresses.clone().map(|address| format!("http://{address}")).join(",");
    let mut schedulers =
        addresses.map(|at| Shown::start(&scratch, &["scheduler", "--listen", &at, "--scheduler", &urls]));
    if !planner::FleetName::LOCAL.prefers(&schedulers[0].listening, &schedulers[1].listening) {
        schedulers.reverse();
    }
    let [first, second] = schedulers;
    until("the second knows the first", || second.page("/healthz") == (200, "standby\n".to_owned()));
    assert_eq!(first.page("/healthz"), (200, "active\n".to_owned()));
    assert_eq!(second.number("modelctl_scheduler_active"), 0);
    let status = scratch.json(&["status", "--scheduler", &format!("http://{}", second.listening)]);
    assert_eq!(
        [&status["scheduler"], &status["active"]],
        [&Value::from(&*first.listening), &Value::from(true)]
    );
    assert_eq!(status["schedulers"][1]["state"], "standby");
    assert_eq!(first.number("modelctl_scheduler_activations_total"), 0);
    first.process.kill();
    until("the second has taken over", || second.page("/healthz") == (200, "active\n".to_owned()));
    assert_eq!(second.number("modelctl_scheduler_activations_total"), 1);
    let text = scratch.stdout(&["status", "--scheduler", &urls]);
    assert!(text.starts_with(&format!("scheduler  {}, active\n", second.listening)), "{text}");
    assert!(text.contains(&format!("{}, silent (", first.listening)), "{text}");
    assert!(text.ends_with("fleet      no peers, no swarms, no alarms\n"), "{text}");
}

#[test]
fn who_may_not_ask_or_asks_nobody_is_told_what_to_do() {
    let scratch = Scratch::new();
    for key in ["fleet.key", "other.key"] {
        scratch.stdout(&["fleet-key", "new", key]);
    }
    let keyed = Shown::start(&scratch, &["scheduler", "--listen", "127.0.0.1:0", "--fleet-key", "fleet.key"]);
    let open = Shown::start(&scratch, &["scheduler", "--listen", "127.0.0.1:0"]);
    let hanging = Shown::start(&scratch, &["scheduler", "--listen", "127.0.0.1:0"]);
    hanging.process.signal(Signal::STOP);
    let [keyed, open, hanging] =
        [&keyed, &open, &hanging].map(|scheduler| format!("http://{}", scheduler.listening));
    let peer = ["peer", "--store", "lone", "--socket", "lone.sock"];
    let _lone = Shown::start(&scratch, &peer);
    let peer = ["peer", "--store", "member", "--socket", "member.sock", "--scheduler", &keyed];
    let _member = Shown::start(&scratch, &[&peer[..], &["--fleet-key", "fleet.key"]].concat());
    let lines: &[(&str, &[&str])] = &[
        ("--peer unix:lone.sock", &["--peer", "unix:lone.sock"]),
        ("--peer unix:member.sock", &["--peer", "unix:member.sock"]),
        ("--peer none", &["--peer", "none"]),
        ("--peer unix:none.sock", &["--peer", "unix:none.sock"]),
        ("--scheduler ABSENT", &["--scheduler", "http://127.0.0.1:1"]),
        ("--scheduler HANGING", &["--scheduler", &hanging]),
        ("--scheduler KEYED", &["--scheduler", &keyed]),
        ("--scheduler KEYED --fleet-key other.key", &["--scheduler", &keyed, "--fleet-key", "other.key"]),
        ("--scheduler OPEN --fleet-key fleet.key", &["--scheduler", &open, "--fleet-key", "fleet.key"]),
    ];
    let said: Vec<_> = lines
        .iter()
        .map(|(what, args)| {
            format!("$ modelctl status {what}\n{}", scratch.run(&[&["status"], *args].concat()))
        })
        .collect();
    assert_said!(said.join("\n"));
}

#[test]
fn what_is_shown_is_for_this_machine_only_unless_there_is_a_key() {
    let scratch = Scratch::new();
    let anywhere = ["--http-listen", "0.0.0.0:0"];
    let peer = ["peer", "--store", "store", "--socket", "peer.sock"];
    let scheduler = ["scheduler", "--listen", "127.0.0.1:0"];
    let said = [&peer[..], &scheduler].map(|args| {
        let args = [args, &anywhere].concat();
        format!("$ modelctl {}\n{}", args.join(" "), Running::start(scratch.modelctl(&args)).failure())
    });
    assert_said!(said.join("\n"));
    assert!(!scratch.path("peer.sock").exists(), "nothing has begun");
    scratch.stdout(&["fleet-key", "new", "fleet.key"]);
    let key = ["--fleet-key", "fleet.key"];
    let mut allowed =
        Running::start(scratch.modelctl(&[&scheduler[..], &anywhere, &key, &["--json"]].concat()));
    assert!(allowed.line()["http"].as_str().unwrap().starts_with("0.0.0.0:"));
}

#[test]
fn where_nothing_can_be_shown_is_told_before_anything_is_hashed() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    for (listen, why) in [("0.0.0.0:0", "can be reached from other machines"), (&taken, "cannot listen on")] {
        // The directory is not there, which is found when its files are listed to be hashed.
        let args = ["peer", "--store", "store", "--seed", "./missing", "--http-listen", listen];
        let said = Running::start(scratch.modelctl(&args)).failure();
        assert!(said.contains(why), "{said}");
    }
}
