//! Rules about the walls between crates. Does not own what is inside them.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use crate::tree::{assert_none, root};

/// Who stands on whom, highest first: a crate may use the crates of lower rows, and none of its own.
const LAYERS: &[&[&str]] = &[
    &["modelctl", "drill", "bench", "rxe"], // the binary, and those that try and measure it from outside
    &["peer", "scheduler", "sidecar"],      // one event loop each
    &["registry", "store", "wire"],         // the edges: network, disk, messages
    &["transport-rdma"],                    // the data plane through network cards
    &["transport"],                         // the data plane and its seam
    &["verbs"],                             // a wall around libibverbs
    &["testbed"],                           // namespaces and processes, for those that try
    &["telemetry", "face"],                 // HTTP: metrics and health; a registry that can only be read
    &["identity", "memory", "simulator"], // the fleet key; a wall around buffers; the pure crates under a virtual clock
    &["swarm"],                           // pure, like all below
    &["planner", "record"],
    &["modelpack"],
    &["tidy"], // these checks, which use nothing and nobody uses
];

/// What the pure crates must not reach, not even through others: runtimes and the network. Their clippy.toml bans what
/// the standard library has of that kind.
const IMPURE: &[&str] = &["tokio", "mio", "socket2", "hyper", "tonic", "reqwest"];
const PURE: &[&str] = &["modelpack", "planner", "record", "swarm"];

/// The crates with `unsafe` in them write their own lints, as `forbid` cannot be loosened.
const UNSAFE: &[&str] = &["memory", "verbs"];

/// One member of the workspace.
struct Crate {
    name: String,
    manifest: Table,
    clippy: Option<Table>,
}

fn read_table(path: &str) -> Option<Table> {
    let text = std::fs::read_to_string(root().join(path)).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{path} is no TOML: {error}")))
}

fn members() -> Vec<Crate> {
    let crates = std::fs::read_dir(root().join("crates")).expect("the workspace has crates");
    let mut dirs: Vec<String> = crates
        .map(|entry| format!("crates/{}", entry.expect("readable").file_name().to_string_lossy()))
        .chain(["modelpack".to_owned()])
        .collect();
    dirs.sort();
    let read = |dir: &String| {
        let manifest = read_table(&format!("{dir}/Cargo.toml"))?;
        let name = manifest["package"]["name"].as_str().expect("a package has a name").to_owned();
        Some(Crate { name, manifest, clippy: read_table(&format!("{dir}/clippy.toml")) })
    };
    dirs.iter().filter_map(read).collect()
}

/// The names of all dependencies in the tables of these names.
fn dependencies<'a>(manifest: &'a Table, tables: &[&str]) -> BTreeSet<&'a str> {
    let tables = tables.iter().filter_map(|name| manifest.get(*name).and_then(Value::as_table));
    tables.flat_map(Table::keys).map(String::as_str).collect()
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&name))
}

#[test]
fn arrows_point_down() {
    let mut upward = Vec::new();
    for Crate { name, manifest, .. } in &members() {
        let Some(mine) = layer(name) else {
            upward.push(format!("{name} is in no layer: give it one in {}", file!()));
            continue;
        };
        let used = dependencies(manifest, &["dependencies", "build-dependencies"]);
        let wrong = used.iter().filter(|used| layer(used).is_some_and(|theirs| theirs <= mine));
        upward.extend(wrong.map(|used| format!("{name} uses {used}")));
        // Tests of one end of a conversation may use the other end, its neighbour.
        let used = dependencies(manifest, &["dev-dependencies"]);
        let wrong = used.iter().filter(|used| layer(used).is_some_and(|theirs| theirs < mine));
        upward.extend(wrong.map(|used| format!("tests of {name} use {used}")));
    }
    assert_none("a crate may use the crates of lower layers only:", &upward);
}

#[test]
fn simulator_drives_pure_crates_only() {
    let members = members();
    let simulator = members.iter().find(|member| member.name == "simulator").expect("the workspace has one");
    let used = dependencies(&simulator.manifest, &["dependencies"]);
    let impure = used.iter().filter(|used| !PURE.contains(used)).map(|used| format!("simulator uses {used}"));
    assert_none("the simulator is one thread and a virtual clock:", &impure.collect::<Vec<_>>());
}

#[test]
fn pure_crates_reach_no_runtime() {
    let lock = read_table("Cargo.lock").expect("the lockfile is committed");
    let mut edges: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().expect("a lockfile lists packages") {
        let used = package.get("dependencies").and_then(Value::as_array).into_iter().flatten();
        // `name`, or `name version` where there are several: two versions of one name count as one here.
        let names = used.filter_map(Value::as_str).filter_map(|used| used.split(' ').next());
        edges.entry(package["name"].as_str().expect("a package has a name")).or_default().extend(names);
    }
    let mut impure = Vec::new();
    for member in members().iter().filter(|member| PURE.contains(&member.name.as_str())) {
        // Tests of pure crates may use what they like (proptest draws random numbers).
        let mut waiting: Vec<Vec<&str>> =
            dependencies(&member.manifest, &["dependencies", "build-dependencies"])
                .into_iter()
                .map(|used| vec![used])
                .collect();
        let mut seen = BTreeSet::new();
        while let Some(path) = waiting.pop() {
            let last = *path.last().expect("a path has an end");
            // Another member is judged for itself: the lockfile mixes its tests' dependencies in.
            if !seen.insert(last) || layer(last).is_some() {
                continue;
            }
            if IMPURE.contains(&last) {
                impure.push(format!("{} → {}", member.name, path.join(" → ")));
            }
            let further = edges.get(last).into_iter().flatten();
            waiting.extend(further.map(|next| [path.as_slice(), &[*next]].concat()));
        }
    }
    assert_none("a pure crate reaches no runtime and no network:", &impure);
}

#[test]
fn unsafe_code_is_forbidden_outside_its_walls() {
    let workspace = read_table("Cargo.toml").expect("the workspace has a manifest");
    let forbidden = workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str();
    assert_eq!(forbidden, Some("forbid"), "the workspace forbids unsafe code");
    let members = members();
    let loose = members.iter().filter(|member| !UNSAFE.contains(&member.name.as_str())).filter(|member| {
        let inherits = member.manifest.get("lints").and_then(|lints| lints.get("workspace"));
        inherits.and_then(Value::as_bool) != Some(true)
    });
    assert_none(
        &format!("every crate but {} has `[lints] workspace = true`:", UNSAFE.join(" and ")),
        &loose.map(|member| member.name.clone()).collect::<Vec<_>>(),
    );
}

#[test]
fn lint_thresholds_are_the_same_everywhere() {
    let house = read_table("clippy.toml").expect("the workspace has clippy.toml");
    let mut different = Vec::new();
    for member in members() {
        // A crate's own file replaces the workspace's, so it must repeat it.
        let Some(own) = &member.clippy else { continue };
        let keys = house.keys().filter(|key| key.ends_with("-threshold"));
        let wrong = keys.filter(|key| own.get(*key) != house.get(*key));
        different.extend(wrong.map(|key| format!("{}: `{key}` is not the workspace's", member.name)));
    }
    assert_none("a crate's own clippy.toml repeats the workspace's thresholds:", &different);
}
