//! `modelctl plan`: what would happen, for whom, and what is wrong with a list of peers.

use crate::support::{Scratch, assert_said};

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
