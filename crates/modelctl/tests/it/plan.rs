//! `modelctl plan`: what would happen, for whom, and what is wrong with a list of peers.

use std::{collections::BTreeMap, fs};

use record::{Event, Source};
use serde_json::Value;
use simulator::{policies::Kind, rerun::Play};

use crate::{
    door::Door,
    running::{Running, Signal},
    support::{Mount, Registry, Scratch, assert_said, until},
};

/// A layout with a model in it, and a list of peers.
fn with_peers(peers: &str) -> Scratch {
    let scratch = Scratch::with_model();
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    scratch.write("peers.txt", peers);
    scratch
}

#[test]
fn what_would_happen_is_said_and_drawn() {
    let scratch = with_peers("node[01-40] 8mbit  # a rack\nold 4mbit\n");
    let plan = ["plan", "oci:out:v1", "--peers", "peers.txt"];
    let seeded = "store 80mbit seed\nnode[1-6] 8mbit\n";
    scratch.write("seeded.txt", seeded);
    let lines: &[&[&str]] = &[
        &plan,
        &[&plan[..], &["--origin-rate", "1mbit", "--stripe", "1", "--svg", "trees.svg"]].concat(),
        &["plan", "oci:out:v1", "--peers", "seeded.txt"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
    let svg = fs::read_to_string(scratch.path("trees.svg")).unwrap();
    assert_eq!(svg.matches("<title>node").count(), 40);
}

#[test]
fn a_plan_is_data_too() {
    let scratch = with_peers("node[1-3] 8mbit");
    assert_said!(scratch.run(&["plan", "oci:out:v1", "--peers", "peers.txt", "--json"]));
}

#[test]
fn what_cannot_be_planned_is_told() {
    let scratch = with_peers("a 10gbit\n\nb 10 parsecs\n");
    scratch.write("none.txt", "# nobody yet\n");
    scratch.write("fast.txt", "a fast\n");
    scratch.write("seeded.txt", "a 1\ns 1 seed\n");
    let lines: &[&[&str]] = &[
        &["plan", "oci:out:v1"],
        &["plan", "oci:out:v1", "--peers", "peers.txt", "--live"],
        &["plan", "oci:out:v1", "--live", "--peer", "none"],
        &["plan", "oci:out:v1", "--live", "--scheduler", "http://127.0.0.1:1"],
        &["plan", "oci:out:v1", "--peers", "absent.txt"],
        &["plan", "oci:out:v1", "--peers", "peers.txt"],
        &["plan", "oci:out:v1", "--peers", "none.txt"],
        &["plan", "oci:out:v1", "--peers", "fast.txt"],
        &["plan", "oci:out:v1", "--peers", "seeded.txt", "--origin-rate", "1"],
        &["plan", "oci:out:v1", "--peers", "seeded.txt", "--stripe", "6"],
        &["plan", "oci:out:v1", "--peers", "seeded.txt", "--svg", "absent/trees.svg"],
        &["plan", "oci:out:v2", "--peers", "seeded.txt"],
        &["plan", "./model", "--peers", "seeded.txt"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn the_plan_of_a_fleet_is_shown_while_it_is_carried_out() {
    const LARGE: usize = 64 << 20;
    let (scratch, registry) = (Scratch::new(), Registry::start());
    scratch.write_large_model("model", LARGE);
    let name = "models/drill:v1";
    let built = scratch.json(&["build", "model", "-t", &registry.reference(name), "--plain-http"]);
    // The registry gives no more than half, so that nobody can be done.
    let door = Door::before(&registry, LARGE as u64 / 2);
    let scheduler = ["scheduler", "--listen", "127.0.0.1:0", "--record", "record.jsonl", "--json"];
    let mut scheduler = Running::start(scratch.modelctl(&scheduler));
    let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    let ask = |reference: &str| scratch.json(&["plan", reference, "--live", "--scheduler", &url]);
    let fleet = format!("fleet:{}", built["digest"].as_str().unwrap());
    let nobody = ask(&fleet);
    assert_eq!(nobody["error"], format!("nobody in the fleet has or wants `{fleet}`"));
    assert_eq!(nobody["exit_code"], 1);

    let mut processes = Vec::new();
    for name in ["a", "b"] {
        let (store, socket) = (format!("store-{name}"), format!("{name}.sock"));
        let args = ["peer", "--store", &store, "--socket", &socket, "--name", name, "--nic-rate", "8gbit"];
        let mut peer =
            Running::start(scratch.modelctl(&[&args[..], &["--scheduler", &url, "--json"]].concat()));
        peer.line();
        processes.push(peer);
    }
    for peer in ["a", "b"] {
        let (socket, output) = (format!("unix:{peer}.sock"), format!("out-{peer}"));
        let args =
            ["pull", &door.reference(name), "--plain-http", "--peer", &socket, "-o", &output, "--json"];
        processes.push(Running::start(scratch.modelctl(&args)));
    }
    let has_some = |plan: &Value| (0..2).all(|at| plan["peers"][at]["progress"].as_f64() > Some(0.0));
    until("the scheduler has heard of some pieces of both", || has_some(&ask(&fleet)));

    let plan = ask(&fleet);
    assert_eq!([&plan["digest"], &plan["bytes"]], [&built["digest"], &built["bytes"]]);
    assert_eq!([&plan["peers"][0]["name"], &plan["peers"][1]["name"]], ["a", "b"]);
    assert!(plan["epoch"].as_u64() >= Some(2) && plan["bound_seconds"].as_f64() > Some(0.0), "{plan}");
    let stripes = plan["stripes"].as_array().unwrap();
    assert_eq!(stripes.len(), 16);
    for stripe in stripes {
        let entrant = usize::try_from(stripe["entrant"].as_u64().unwrap()).unwrap();
        assert_eq!(
            [&stripe["parents"][1 - entrant], &stripe["parents"][entrant]],
            [&Value::from(entrant), &Value::Null]
        );
    }
    // Through the local peer, which knows where the scheduler is.
    let text = scratch.stdout(&["plan", &fleet, "--live", "--peer", "unix:a.sock"]);
    assert!(text.contains("\norigin\n└─ ") && text.contains(" %"), "{text}");

    door.open();
    let recorded = || fs::read_to_string(scratch.path("record.jsonl")).unwrap();
    until("both are done", || recorded().matches(r#""event":"finished""#).count() == 2);
    drop(processes);
    until("both are gone", || recorded().matches(r#""event":"gone""#).count() == 2);
    scheduler.signal(Signal::TERM);
    assert!(scheduler.end().status.success());
    assert_tells(&recorded(), &built);
}

/// A record says who came, how they got on and what they were told, and no address.
fn assert_tells(text: &str, built: &Value) {
    assert!(!text.contains("127.0.0.1"), "{text}");
    let records = record::parse(text).unwrap();
    let [record] = &records[..] else { panic!("{text}") };
    assert_eq!(record.header.fleet, "local");
    let events = || record.entries.iter().map(|entry| &entry.event);
    let names = events().filter_map(|event| match event {
        Event::Registered { name, nic_bytes_per_second, .. } => Some((name.as_str(), *nic_bytes_per_second)),
        _ => None,
    });
    let rate = Some(1_000_000_000);
    assert_eq!(names.collect::<BTreeMap<_, _>>(), BTreeMap::from([("a", rate), ("b", rate)]));
    let mut joined = 0;
    for event in events() {
        if let Event::Joined { artifact, bytes, pieces, has, .. } = event {
            assert_eq!(Some(artifact.as_str()), built["digest"].as_str());
            assert_eq!((Some(*bytes), *has), (built["bytes"].as_u64(), 0));
            assert!(*pieces >= 65, "{pieces}");
            joined += 1;
        }
    }
    assert_eq!(joined, 2, "{text}");
    assert!(events().any(|event| matches!(event, Event::Progress { .. })), "{text}");
    let planned = events().filter_map(|event| match event {
        Event::Planned { because, sources, .. } => Some((because, sources)),
        _ => None,
    });
    let (mut parents, mut entrants) = (0, 0);
    for (because, sources) in planned {
        assert!(!because.is_empty() && sources.len() == 16, "{text}");
        parents += sources.iter().filter(|source| matches!(source, Some(Source::Peer(_)))).count();
        entrants += sources.iter().filter(|source| matches!(source, Some(Source::Origin(_)))).count();
    }
    assert!(parents >= 16 && entrants >= 16, "{text}");
    // What it is for: it can be played again.
    let broadcasts = simulator::rerun::broadcasts(record);
    let [broadcast] = &broadcasts[..] else { panic!("{text}") };
    assert_eq!(broadcast.members.len(), 2);
    let recorded = broadcast.recorded().expect("both were done");
    let origin_rate = broadcast.origin_rate().expect("they got something");
    let play = Play { pieces: 64, quanta: 4, seed: 1, origin_rate };
    for policy in Kind::ALL {
        let last = broadcast.last(&policy.run(&broadcast.options(&play)));
        assert!(last.is_some_and(|last| last <= recorded * 2), "{policy:?}: {last:?}, {recorded:?}");
    }
}

#[test]
fn a_record_that_cannot_be_written_is_told_at_the_start_and_stops_nobody_later() {
    let scratch = Scratch::new();
    scratch.write("notes.txt", "buy milk\n");
    let scheduler = ["scheduler", "--listen", "127.0.0.1:0", "--record"];
    let said = ["notes.txt", "absent/record.jsonl", "/dev/full"].map(|file| {
        let args = [&scheduler[..], &[file]].concat();
        format!("$ modelctl {}\n{}", args.join(" "), Running::start(scratch.modelctl(&args)).failure())
    });
    assert_said!(said.join("\n"));
    assert_eq!(fs::read_to_string(scratch.path("notes.txt")).unwrap(), "buy milk\n");

    // Four pages, of which three are taken, and the fourth but for a hundred bytes.
    let Some(disk) = Mount::tmpfs("size=16k") else { return };
    let record = disk.path("record.jsonl");
    let header = |fleet: &str| {
        let (fleet, start) = (fleet.to_owned(), "2026-11-26T09:20:44Z".to_owned());
        record::Header { record: record::VERSION, fleet, start }.line()
    };
    fs::write(&record, header(&"x".repeat(4096 - 100 - 2 * header("").len()))).unwrap();
    fs::write(disk.path("rest"), [0; 12 << 10]).unwrap();
    let args = [&scheduler[..], &[&record, "--json"]].concat();
    let mut scheduler = Running::start(scratch.modelctl(&args));
    let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    let peer = ["peer", "--store", "store", "--socket", "peer.sock", "--scheduler", &url, "--json"];
    let mut peer = Running::start(scratch.modelctl(&peer));
    peer.line();
    until("it is said", || scheduler.logged("the record cannot be written, and ends") == 1);
    peer.kill();
    let status = || scratch.json(&["status", "--scheduler", &url]);
    until("the scheduler goes on", || status()["peers"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(scheduler.logged("the record"), 1);
    let records = record::parse(&fs::read_to_string(&record).unwrap()).unwrap();
    assert_eq!(records.iter().map(|record| record.entries.len()).collect::<Vec<_>>(), [0, 0]);
}
