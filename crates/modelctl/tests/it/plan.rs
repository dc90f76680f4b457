//! `modelctl plan`: what would happen, for whom, and what is wrong with a list of peers.

use serde_json::Value;

use crate::{
    door::Door,
    running::Running,
    support::{Registry, Scratch, assert_said, until},
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
    let svg = std::fs::read_to_string(scratch.path("trees.svg")).unwrap();
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
    let mut scheduler = Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
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
}
