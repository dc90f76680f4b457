//! Artifacts that a peer announces from its own machine, and who may use its socket.

use std::{
    fs,
    io::Write as _,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
    process::Command,
};

use serde_json::Value;

use crate::{
    running::Running,
    support::{PATIENCE, Registry, Scratch, assert_said, skip, until},
};

/// A scheduler, and the scratch directory of its peers.
struct Site {
    scheduler: Running,
    url: String,
    scratch: Scratch,
}

impl Site {
    fn new() -> Self {
        let scratch = Scratch::with_model();
        let mut scheduler =
            Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
        let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
        Self { scheduler, url, scratch }
    }

    /// A peer of that name, and the line that it says when it is ready.
    fn peer(&self, name: &str, more: &[&str]) -> (Running, Value) {
        let (store, socket) = (format!("store-{name}"), format!("{name}.sock"));
        let args = ["--store", &store, "--socket", &socket, "--scheduler", &self.url, "--json"];
        let mut peer = Running::start(self.scratch.modelctl(&[&["peer"], &args[..], more].concat()));
        let ready = peer.line();
        (peer, ready)
    }

    fn pull(&self, peer: &str, reference: &str, out: &str) -> Running {
        let peer = format!("unix:{peer}.sock");
        let args = ["pull", reference, "--plain-http", "--peer", &peer, "-o", out, "--json"];
        Running::start(self.scratch.modelctl(&args))
    }

    /// Pulls what may have been announced just now: the scheduler learns it a moment later.
    fn pull_announced(&self, peer: &str, reference: &str, out: &str) -> Value {
        let start = std::time::Instant::now();
        loop {
            let output = self.pull(peer, reference, out).end();
            if output.status.success() {
                let stdout = String::from_utf8(output.stdout).unwrap();
                return serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
            }
            assert!(start.elapsed() < PATIENCE, "{}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn references(ready: &Value) -> Vec<String> {
    let seeds = ready["seeds"].as_array().unwrap().iter();
    seeds.map(|seed| seed["reference"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_directory_and_a_layout_feed_a_fleet_that_has_no_registry() {
    let site = Site::new();
    site.scratch.write_large_model("large", 5_000_000);
    site.scratch.write("twin/a.txt", "the same");
    site.scratch.write("twin/b.txt", "the same");
    let built = site.scratch.json(&["build", "model", "-t", "oci:layout:v1"]);
    let (_seed, ready) = site.peer(
        "seed",
        &["--seed", "./large", "--seed", "oci:layout:v1", "--seed", "./twin", "--seed", "./model"],
    );
    let announced = references(&ready);
    // The same files are the same artifact, however they are announced.
    let of_layout = format!("fleet:{}", built["digest"].as_str().unwrap());
    assert_eq!((announced.len(), &announced[1], &announced[3]), (4, &of_layout, &of_layout));
    let (_other, _) = site.peer("other", &[]);
    for (model, reference) in ["large", "model", "twin"].into_iter().zip(&announced) {
        let out = format!("out-{model}");
        let result = site.pull_announced("other", reference, &out);
        site.scratch.assert_pulled(model, &out);
        assert_eq!(
            (&result["origin_bytes"], &result["peer_bytes"]),
            (&result["bytes"], &0.into()),
            "{result}"
        );
    }
    // On the seed's own machine the files are handed over, and copied, because somebody may write them.
    site.pull("seed", &announced[0], "local").result();
    site.scratch.assert_pulled("large", "local");
    let inode = |path: &str| fs::metadata(site.scratch.path(path)).unwrap().ino();
    assert_ne!(inode("local/model.bin"), inode("large/model.bin"));
    let stored = fs::read_dir(site.scratch.path("store-seed/blobs/sha256")).unwrap().count();
    assert_eq!(stored, 0, "what is announced stays where it is");
    drop(site.scheduler);
}

#[test]
fn a_seed_says_how_to_pull_it() {
    let scratch = Scratch::with_model();
    let mut peer = scratch.modelctl(&["peer", "--store", "s", "--socket", "p.sock", "--seed", "./model"]);
    peer.stdout(fs::File::create(scratch.path("said")).unwrap());
    let mut peer = peer.spawn().unwrap();
    let said = || fs::read_to_string(scratch.path("said")).unwrap();
    until("it is ready", || said().lines().count() == 2);
    let said = said();
    peer.kill().unwrap();
    peer.wait().unwrap();
    assert_said!(said);
}

#[test]
fn a_file_that_changes_while_it_is_announced_is_noticed() {
    let site = Site::new();
    site.scratch.write_large_model("large", 5_000_000);
    let (seed, ready) = site.peer("seed", &["--seed", "./large"]);
    let reference = &references(&ready)[0];
    let (_other, _) = site.peer("other", &[]);
    site.pull_announced("other", reference, "before");
    // In place, and as long as before.
    let path = site.scratch.path("large/model.bin");
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all(b"other bytes").unwrap();
    drop(file);
    let (_third, _) = site.peer("third", &[]);
    // The other one has it, so that it is pulled all the same: from there.
    let result = site.pull("third", reference, "after").result();
    assert_eq!(result["origin_bytes"], 0, "{result}");
    assert!(
        fs::read(site.scratch.path("before/model.bin")).unwrap()
            == fs::read(site.scratch.path("after/model.bin")).unwrap()
    );
    assert_said!(site.pull("seed", reference, "local").failure());
    assert!(!site.scratch.path("local").exists());
    assert_eq!(seed.logged("has changed since it was hashed: the artifact is no longer announced"), 1);
}

#[test]
fn what_a_store_has_is_announced_by_name_or_digest() {
    let site = Site::new();
    let registry = Registry::start();
    let reference = registry.reference("models/small:v1");
    site.scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
    let (first, _) = site.peer("seed", &[]);
    let result = site.pull("seed", &reference, "first").result();
    let by_digest = format!("fleet:{}", result["digest"].as_str().unwrap());
    first.kill();
    drop(registry);
    for (number, seed) in [&reference, &by_digest].into_iter().enumerate() {
        // A budget that has no room for it does not take what is announced.
        let (_seed, ready) = site.peer("seed", &["--seed", seed, "--store-max", "1KB"]);
        assert_eq!(references(&ready), [by_digest.as_str()]);
        let (name, out) = (format!("other-{number}"), format!("out-{number}"));
        let (_other, _) = site.peer(&name, &[]);
        let result = site.pull_announced(&name, &by_digest, &out);
        site.scratch.assert_pulled("model", &out);
        assert_eq!(result["origin_bytes"], result["bytes"], "{result}");
    }
}

#[test]
fn what_cannot_be_announced_is_refused_before_anything_is_opened() {
    let scratch = Scratch::with_model();
    fs::create_dir(scratch.path("empty")).unwrap();
    scratch.write("linked/a.txt", "a");
    symlink("nowhere", scratch.path("linked/b.txt")).unwrap();
    let digest = format!("fleet:sha256:{}", "0".repeat(64));
    let mut said = Vec::new();
    for seed in [
        "./missing",
        "./empty",
        "./linked",
        "oci:missing:v1",
        "localhost:5000/models/small:v1",
        &digest,
        "hf://org/name",
        "./",
        "model",
    ] {
        let args = ["peer", "--store", "store", "--socket", "p.sock", "--seed", seed];
        said.push(format!("$ modelctl {}\n{}", args.join(" "), scratch.run(&args)));
        assert!(!scratch.path("p.sock").exists());
    }
    // A store that another process has is found before anything is hashed.
    let mut peer =
        Running::start(scratch.modelctl(&["peer", "--store", "store", "--socket", "p.sock", "--json"]));
    peer.line();
    let args = ["peer", "--store", "store", "--socket", "other.sock", "--seed", "./model"];
    said.push(format!("$ modelctl {}\n{}", args.join(" "), scratch.run(&args)));
    assert_said!(said.join("\n"));
}

#[test]
fn members_of_a_group_may_use_a_socket() {
    let scratch = Scratch::new();
    let start = |group: &str| {
        let args = ["peer", "--store", "s", "--socket", "p.sock", "--socket-group", group, "--json"];
        Running::start(scratch.modelctl(&args))
    };
    assert_said!(start("no-such-group").failure());
    assert!(!scratch.path("p.sock").exists());
    if !rustix::process::geteuid().is_root() {
        return skip("only root may give a socket to any group");
    }
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    for group in ["daemon", "1"] {
        let mut peer = start(group);
        peer.line();
        let meta = fs::metadata(scratch.path("p.sock")).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.uid(), meta.gid()), (0o660, 0, 1));
        assert!(may_write(&scratch.path("p.sock"), 1) && !may_write(&scratch.path("p.sock"), 65_533));
    }
}

/// Whether somebody who is nobody but in that group may write a file: what connecting to a socket needs.
fn may_write(path: &Path, group: u32) -> bool {
    let mut test = Command::new("test");
    test.arg("-w").arg(path).uid(65_534).gid(group);
    test.status().unwrap().success()
}

#[test]
fn of_many_peers_that_start_on_one_store_one_has_it() {
    let scratch = Scratch::new();
    for round in 0..3 {
        let starts: Vec<_> = (0..4)
            .map(|number| {
                let socket = format!("{round}-{number}.sock");
                Running::start(scratch.modelctl(&["peer", "--store", "s", "--socket", &socket, "--json"]))
            })
            .collect();
        // Those that lose say so and end; the winner goes on, and is killed before the next round.
        let is_there = |number: &usize| scratch.path(&format!("{round}-{number}.sock")).exists();
        until("one has it", || (0..4).any(|number| is_there(&number)));
        let of_peers = starts.into_iter().enumerate();
        let (ready, others): (Vec<_>, Vec<_>) = of_peers.partition(|(number, _)| is_there(number));
        // While the winner lives: one that is slow to start would have the store after it.
        for (_, peer) in others {
            let said = peer.failure();
            assert!(said.contains("error: another process is using `s`"), "{said}");
        }
        assert_eq!(ready.len(), 1);
        for (_, winner) in ready {
            winner.kill();
        }
    }
}
