//! A registry, a scheduler, peers and pulls, each a process of its own, and what happens when some of them die.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _},
    path::PathBuf,
    time::Duration,
};

use serde_json::Value;

use crate::{
    door::Door,
    running::{Running, Signal},
    support::{Mount, Registry, Scratch, assert_said, said, until},
};

/// Many times what the peers ask of a registry at once.
const LARGE: usize = (128 << 20) + 12_345;
/// What a registry gives before it is held back in the middle of a pull: nobody can have everything, but each a fifth.
const HELD_AT: u64 = LARGE as u64 * 3 / 4;
const A_FIFTH: u64 = 20;

/// How long a peer that is told to end may take: children are told, nothing is waited for.
const GOODBYE: Duration = Duration::from_secs(5);

struct Fleet {
    scheduler: Option<Running>,
    scheduler_url: String,
    peers: Vec<Option<Running>>,
    registry: Registry,
    door: Door,
    reference: String,
    scratch: Scratch,
}

impl Fleet {
    /// A large model in a registry, and `count` peers that are ready.
    fn start(count: usize) -> Self {
        let scratch = Scratch::new();
        scratch.write_large_model("model", LARGE);
        let fleet = Self::around(scratch, count);
        fleet.door.open();
        fleet
    }

    /// The same with a registry that stops in the middle until its door is opened.
    fn held(count: usize) -> Self {
        let scratch = Scratch::new();
        scratch.write_large_model("model", LARGE);
        Self::around(scratch, count)
    }

    /// The model of a directory in a registry, and `count` peers that are ready.
    fn around(scratch: Scratch, count: usize) -> Self {
        let registry = Registry::start();
        let name = "models/drill:v1";
        scratch.stdout(&["build", "model", "-t", &registry.reference(name), "--plain-http"]);
        let door = Door::before(&registry, HELD_AT);
        let reference = door.reference(name);
        let mut scheduler =
            Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
        let scheduler_url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
        let scheduler = Some(scheduler);
        let mut fleet =
            Self { scheduler, scheduler_url, peers: Vec::new(), registry, door, reference, scratch };
        for number in 0..count {
            let peer = fleet.start_peer(number);
            fleet.peers.push(Some(peer));
        }
        fleet
    }

    /// Starts the peer of that number, or starts it again, and waits until it is ready.
    fn start_peer(&self, number: usize) -> Running {
        let (store, socket) = (store(number), socket(number));
        let args = ["--store", &store, "--socket", &socket, "--scheduler", &self.scheduler_url, "--json"];
        let mut peer = Running::start(self.scratch.modelctl(&[&["peer"], &args[..]].concat()));
        assert_eq!(peer.line()["socket"], socket);
        peer
    }

    fn kill_peer(&mut self, number: usize) {
        self.peers[number].take().unwrap().kill();
    }

    /// Starts a pull through the peer of that number.
    fn pull(&self, number: usize) -> Running {
        self.pull_into(number, &output(number), &[])
    }

    fn pull_into(&self, number: usize, dir: &str, more: &[&str]) -> Running {
        let peer = format!("unix:{}", socket(number));
        let args = ["pull", &self.reference, "--plain-http", "--peer", &peer, "-o", dir, "--json"];
        Running::start(self.scratch.modelctl(&[&args, more].concat()))
    }

    /// Starts one pull a peer.
    fn pull_all(&self) -> Vec<Running> {
        (0..self.peers.len()).map(|number| self.pull(number)).collect()
    }

    /// Waits for the pull of the peer of that number, which has to bring the model.
    fn pulled(&self, number: usize, pull: Running) -> Value {
        let result = pull.result();
        assert_eq!(result["verified"], true, "{result}");
        self.scratch.assert_pulled("model", &output(number));
        result
    }
}

fn store(number: usize) -> String {
    format!("store-{number}")
}

fn socket(number: usize) -> String {
    format!("{number}.sock")
}

fn output(number: usize) -> String {
    format!("out-{number}")
}

fn number(result: &Value, name: &str) -> u64 {
    result[name].as_u64().unwrap()
}

#[test]
fn everybody_gets_the_model_and_the_registry_gives_it_once() {
    let fleet = Fleet::start(4);
    let (mut model, mut from_origin) = (0, 0);
    for (peer, pull) in fleet.pull_all().into_iter().enumerate() {
        let result = fleet.pulled(peer, pull);
        model = number(&result, "bytes");
        from_origin += number(&result, "origin_bytes");
        assert!(number(&result, "peer_bytes") > 0, "{result}");
    }
    // The registry writes its line a moment after it has sent the last byte.
    until("the registry has logged what it sent", || fleet.registry.sent() >= from_origin);
    for sent in [from_origin, fleet.registry.sent()] {
        assert!(sent * 100 <= model * 102, "{sent} bytes of {model} came from the registry");
    }
}

#[test]
fn a_peer_that_is_killed_stops_nobody_else_and_goes_on_where_it_was() {
    let mut fleet = Fleet::held(4);
    let mut pulls = fleet.pull_all();
    pulls[1].wait_for_percent(A_FIFTH);
    fleet.kill_peer(1);
    fleet.door.open();
    for (peer, pull) in pulls.into_iter().enumerate() {
        if peer == 1 {
            assert_said!(pull.failure());
            assert!(!fleet.scratch.path(&output(peer)).exists());
        } else {
            fleet.pulled(peer, pull);
        }
    }
    // Its socket is still there, and its store is half full.
    fleet.peers[1] = Some(fleet.start_peer(1));
    let result = fleet.pulled(1, fleet.pull(1));
    assert!(number(&result, "local_bytes") * 10 > number(&result, "bytes"), "{result}");
}

#[test]
fn a_holder_that_was_started_again_is_enough() {
    let mut fleet = Fleet::around(Scratch::with_model(), 2);
    fleet.door.open();
    let result = fleet.pulled(0, fleet.pull(0));
    fleet.door.close();
    fleet.reference = format!("fleet:{}", result["digest"].as_str().unwrap());
    fleet.kill_peer(0);
    fleet.peers[0] = Some(fleet.start_peer(0));
    let result = fleet.pulled(1, fleet.pull(1));
    assert_eq!(result["peer_bytes"], result["bytes"]);

    // A store from before trees were kept: they are computed while the peer is at work.
    for number in [0, 1] {
        fleet.kill_peer(number);
        fs::remove_dir_all(fleet.scratch.path(&store(number)).join("trees")).unwrap();
    }
    fs::remove_dir_all(fleet.scratch.path(&store(1))).unwrap();
    fleet.peers[0] = Some(fleet.start_peer(0));
    until("the trees are there", || {
        fleet.scratch.path(&store(0)).join("trees").read_dir().unwrap().count() == 1
    });
    fleet.peers[1] = Some(fleet.start_peer(1));
    let pull = fleet.pull_into(1, "again", &[]).result();
    assert_eq!(pull["peer_bytes"], pull["bytes"]);
}

#[test]
fn a_peer_that_leaves_in_the_middle_stops_nobody_else() {
    let mut fleet = Fleet::held(3);
    let mut pulls = fleet.pull_all();
    for pull in &mut pulls {
        pull.wait_for_percent(A_FIFTH);
    }
    let leaving = fleet.peers[1].take().unwrap();
    leaving.signal(Signal::TERM);
    // Its children live, so that they close their links as soon as they have heard it.
    let output = leaving.end_within(GOODBYE);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && stderr.contains("nobody reads here any more"), "{stderr}");
    fleet.door.open();
    for (peer, pull) in pulls.into_iter().enumerate() {
        if peer == 1 {
            assert!(pull.failure().contains("error: the local peer stops"));
        } else {
            fleet.pulled(peer, pull);
        }
    }
}

/// Pulls beside a holder whose disk is damaged; gives the result, and what was said on stderr.
fn pull_beside_damage(start: impl Fn(&Fleet) -> Running) -> (Value, String) {
    let scratch = Scratch::new();
    scratch.write_large_model("model", 12 << 20);
    let fleet = Fleet::around(scratch, 2);
    fleet.door.open();
    fleet.pulled(0, fleet.pull(0));
    let hashed = |algorithm: &str| {
        let blobs = fs::read_dir(fleet.scratch.path(&store(0)).join("blobs").join(algorithm)).unwrap();
        blobs.map(|blob| blob.unwrap().path()).find(|path| path.metadata().unwrap().len() > 1 << 20)
    };
    let weights = ["sha256", "blake3"].into_iter().find_map(hashed).unwrap();
    fs::set_permissions(&weights, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options().write(true).open(weights).unwrap().write_all_at(&[0; 9], 5 << 20).unwrap();
    let output = start(&fleet).end();
    assert!(output.status.success(), "{}", said(&output));
    fleet.scratch.assert_pulled("model", "out");
    let stdout = String::from_utf8(output.stdout).unwrap();
    let result = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
    (result, String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_pull_says_whose_bytes_were_wrong() {
    let through_peer = pull_beside_damage(|fleet| fleet.pull_into(1, "out", &[]));
    let by_itself = pull_beside_damage(|fleet| {
        let args = ["--plain-http", "--scheduler", &fleet.scheduler_url, "--peer", "none", "-o", "out"];
        Running::start(fleet.scratch.modelctl(&[&["pull", &fleet.reference, "--json"], &args[..]].concat()))
    });
    for (result, stderr) in [through_peer, by_itself] {
        let [blamed] = result["blamed"].as_array().unwrap().as_slice() else { panic!("{result}") };
        assert_eq!(blamed["reason"], "it sent wrong bytes of `model.bin`");
        let peer = blamed["peer"].as_str().unwrap();
        assert!(peer.contains(" at 127.0.0.1:"), "{peer}");
        let warning =
            format!("warning: {peer} is blamed: it sent wrong bytes of `model.bin`; they were refused\n");
        assert_eq!(stderr.matches(&warning).count(), 1, "{stderr}");
    }
}

#[test]
fn a_scheduler_that_is_killed_stops_nobody() {
    let mut fleet = Fleet::held(3);
    let mut pulls = fleet.pull_all();
    pulls[0].wait_for_percent(A_FIFTH);
    fleet.scheduler.take().unwrap().kill();
    fleet.door.open();
    for (peer, pull) in pulls.into_iter().enumerate() {
        fleet.pulled(peer, pull);
    }
}

#[test]
fn a_scheduler_that_hangs_stops_nobody() {
    let fleet = Fleet::held(3);
    let mut pulls = fleet.pull_all();
    pulls[0].wait_for_percent(A_FIFTH);
    fleet.scheduler.as_ref().unwrap().signal(Signal::STOP);
    fleet.door.open();
    for (peer, pull) in pulls.into_iter().enumerate() {
        fleet.pulled(peer, pull);
    }
}

#[test]
fn without_a_scheduler_the_registry_gives_everything() {
    let mut fleet = Fleet::around(Scratch::with_model(), 0);
    fleet.scheduler.take().unwrap().kill();
    let peer = fleet.start_peer(0);
    fleet.peers.push(Some(peer));
    let result = fleet.pulled(0, fleet.pull(0));
    assert_eq!(result["origin_bytes"], result["bytes"]);
}

#[test]
fn a_client_that_is_killed_leaves_its_peer_at_work() {
    let mut fleet = Fleet::held(1);
    let mut pull = fleet.pull(0);
    pull.wait_for_percent(A_FIFTH);
    pull.kill();
    fleet.door.open();
    assert!(!fleet.scratch.path(&output(0)).exists());
    let result = fleet.pulled(0, fleet.pull(0));
    // What it had brought for the first is there for the second.
    assert!(number(&result, "local_bytes") * 10 > number(&result, "bytes"), "{result}");
    assert!(fleet.peers[0].take().unwrap().ends_well());
}

#[test]
fn a_peer_that_is_told_to_end_does_so_at_once() {
    let mut fleet = Fleet::held(1);
    let mut pull = fleet.pull(0);
    pull.wait_for_percent(A_FIFTH);
    assert!(fleet.peers[0].take().unwrap().ends_well());
    assert!(!fleet.scratch.path(&socket(0)).exists(), "the socket is removed");
    assert_said!(pull.failure());
    assert!(!fleet.scratch.path(&output(0)).exists());
}

impl Running {
    /// Tells a peer to end; says whether it did and called that a success.
    fn ends_well(self) -> bool {
        self.signal(Signal::TERM);
        self.end_within(GOODBYE).status.success()
    }
}

#[test]
fn a_store_and_a_socket_belong_to_one_peer() {
    let scratch = Scratch::new();
    let start = |store: &str, socket: &str| {
        Running::start(scratch.modelctl(&["peer", "--store", store, "--socket", socket]))
    };
    let mut first =
        Running::start(scratch.modelctl(&["peer", "--store", "a", "--socket", "a.sock", "--json"]));
    first.line();
    let refused = [("a", "b.sock"), ("b", "a.sock")].map(|(store, socket)| {
        format!("$ modelctl peer --store {store} --socket {socket}\n{}", start(store, socket).failure())
    });
    scratch.write_model("model");
    let build = scratch.run(&["build", "model", "-t", "oci:a:v1"]);
    assert_said!(
        [&refused[..], &[format!("$ modelctl build model -t oci:a:v1\n{build}")]].concat().join("\n")
    );
    assert!(scratch.path("a.sock").exists());

    first.kill();
    assert!(scratch.path("a.sock").exists(), "nobody was left to remove it");
    let mut second =
        Running::start(scratch.modelctl(&["peer", "--store", "a", "--socket", "a.sock", "--json"]));
    assert_eq!(second.line()["socket"], "a.sock");
    assert!(second.ends_well());
}

#[test]
fn without_a_directory_a_pull_goes_into_the_store_of_the_local_peer() {
    let fleet = Fleet::around(Scratch::with_model(), 1);
    fleet.door.open();
    let before = fs::read_dir(fleet.scratch.path("")).unwrap().count();
    let args = ["pull", &fleet.reference, "--plain-http", "--peer", "unix:0.sock"];
    let stored = fleet.scratch.json(&args);
    assert_eq!((&stored["output"], &stored["verified"]), (&Value::Null, &true.into()), "{stored}");
    assert_eq!(stored["origin_bytes"], stored["bytes"]);
    assert_eq!(fs::read_dir(fleet.scratch.path("")).unwrap().count(), before, "nothing is left here");
    // It is there for whoever comes later, and to do it again is cheap.
    let digest = stored["digest"].as_str().unwrap();
    let again = fleet.scratch.run(&args).replace(digest, "[DIGEST]");
    assert_said!("a_pull_into_the_store_is_told", again);
    let result = fleet.pulled(0, fleet.pull(0));
    assert_eq!(result["local_bytes"], result["bytes"], "{result}");

    let layout = "oci:layout:v1";
    fleet.scratch.stdout(&["build", "model", "-t", layout]);
    let refused: [&[&str]; 6] = [
        &["registry.example.org/models/x:v1", "--peer", "none"],
        &[layout],
        &[layout, "--peer", "none"],
        &[layout, "--peer", "unix:0.sock"],
        &[layout, "--direct"],
        &[layout, "--dry-run"],
    ];
    let refused = refused.map(|args| {
        let said = fleet.scratch.run(&[&["pull"], args].concat());
        format!("$ modelctl pull {}\n{said}", args.join(" "))
    });
    assert_said!("a_pull_without_a_directory_that_is_refused", refused.join("\n"));
}

#[test]
fn a_store_with_a_budget_makes_room_or_says_why_not() {
    let (scratch, registry) = (Scratch::new(), Registry::start());
    for (model, bytes) in [("one", 2_000_000), ("two", 2_100_000), ("large", 5_000_000)] {
        scratch.write_large_model(model, bytes);
        scratch.stdout(&["build", model, "-t", &registry.reference(&format!("{model}:v1")), "--plain-http"]);
    }
    let args = ["peer", "--store", "store", "--socket", "p.sock", "--store-max", "3MB", "--json"];
    let mut peer = Running::start(scratch.modelctl(&args));
    peer.line();
    let pull = |model: &str| {
        let (reference, out) = (registry.reference(&format!("{model}:v1")), format!("out-{model}"));
        let args = ["pull", &reference, "--plain-http", "--peer", "unix:p.sock", "-o", &out, "--json"];
        Running::start(scratch.modelctl(&args))
    };
    let is_listed = |result: &Value| {
        let index = fs::read_to_string(scratch.path("store/index.json")).unwrap();
        index.contains(result["digest"].as_str().unwrap())
    };
    let one = pull("one").result();
    assert!(is_listed(&one));
    let two = pull("two").result();
    assert!(!is_listed(&one) && is_listed(&two));
    for model in ["one", "two"] {
        scratch.assert_pulled(model, &format!("out-{model}"));
    }
    assert_said!(pull("large").failure());
    assert!(is_listed(&two) && !scratch.path("out-large").exists());
    // Also a smaller budget than before is kept, from the start.
    assert!(peer.ends_well());
    let args = ["peer", "--store", "store", "--socket", "p.sock", "--store-max", "1MB", "--json"];
    Running::start(scratch.modelctl(&args)).line();
    assert!(!is_listed(&two));
    assert_eq!(fs::read_dir(scratch.path("store/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn pulls_at_once_share_a_budget_and_damage_nothing() {
    const BUDGET: u64 = 3_000_000;
    let (scratch, registry) = (Scratch::new(), Registry::start());
    for model in 0..6_usize {
        let (dir, bytes) = (format!("model-{model}"), 1_000_000 + model * 100_000);
        // Other bytes for each, and a file that all have.
        scratch.write(&format!("{dir}/own.bin"), vec![u8::try_from(model).unwrap(); bytes]);
        scratch.write(&format!("{dir}/shared.bin"), vec![9; 300_000]);
        let name = format!("{dir}:v1");
        scratch.stdout(&["build", &dir, "-t", &registry.reference(&name), "--plain-http"]);
    }
    let args = ["peer", "--store", "store", "--socket", "p.sock", "--store-max", "3MB", "--json"];
    let mut peer = Running::start(scratch.modelctl(&args));
    peer.line();
    let pull_some = |thread: usize| {
        let mut done = 0;
        for round in 0..8 {
            let model = format!("model-{}", (thread * 2 + round * 5) % 6);
            let (reference, out) =
                (registry.reference(&format!("{model}:v1")), format!("out-{thread}-{round}"));
            let args = ["pull", &reference, "--plain-http", "--peer", "unix:p.sock", "-o", &out, "--json"];
            let output = Running::start(scratch.modelctl(&args)).end();
            if output.status.success() {
                scratch.assert_pulled(&model, &out);
                fs::remove_dir_all(scratch.path(&out)).unwrap();
                done += 1;
            } else {
                let said = String::from_utf8(output.stderr).unwrap();
                assert!(said.contains("error: `store` may hold 3000000 bytes"), "{said}");
            }
        }
        done
    };
    let done: u32 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..3).map(|thread| scope.spawn(move || pull_some(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(done >= 8, "one fits always");
    assert!(peer.ends_well());
    // Whatever is listed is whole.
    let store = ::store::Store::open(&scratch.path("store")).unwrap();
    let mut listed = 0;
    for digest in store.complete_manifests().unwrap() {
        let raw = store.manifest(&digest).unwrap().expect("it is listed");
        let manifest = modelpack::manifest::Manifest::parse(&raw).unwrap();
        assert!(store.config(&manifest.config().digest).unwrap().is_some());
        for blob in manifest.blobs() {
            assert!(store.blob_file(&::store::BlobIdentity::from(blob)).unwrap().is_some());
        }
        listed += 1;
    }
    let blobs = ["sha256", "blake3"].map(|algorithm| scratch.path("store/blobs").join(algorithm));
    let bytes = |dir: &PathBuf| {
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    assert!(listed > 0 && blobs.iter().map(bytes).sum::<u64>() <= BUDGET);
}

/// Fills a disk to its last byte; says with which file.
fn fill_up(disk: &Mount) -> PathBuf {
    let path = disk.dir.path().join("filler");
    let mut file = fs::File::create(&path).unwrap();
    // A whole page each time: one that does not fit leaves less than that.
    let full = loop {
        if let Err(error) = file.write_all(&[7; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    path
}

#[test]
fn a_full_disk_ends_a_pull_and_no_peer() {
    // The model, and a little more.
    let Some(disk) = Mount::tmpfs("size=136m") else { return };
    let (store, socket) = (disk.path("store"), "p.sock");
    let fleet = Fleet::held(0);
    let args = ["peer", "--store", &store, "--socket", socket, "--json"];
    let mut peer = Running::start(fleet.scratch.modelctl(&args));
    peer.line();
    let pull = |fleet: &Fleet, out: &str| {
        let args = ["pull", &fleet.reference, "--plain-http", "--peer", "unix:p.sock", "-o", out, "--json"];
        Running::start(fleet.scratch.modelctl(&args))
    };
    let mut said = Vec::new();

    // There is no room for it: nothing is begun.
    let filler = disk.dir.path().join("filler");
    fs::write(&filler, vec![7; 32 << 20]).unwrap();
    said.push(pull(&fleet, "out").failure());
    let partial = disk.dir.path().join("store/partial");
    assert!(!partial.exists() || fs::read_dir(&partial).unwrap().count() == 0, "something is left behind");
    fs::remove_file(&filler).unwrap();

    // In memory nothing is promised to it, so that it goes as far as there is room; the next one is told before it begins.
    let mut under_way = pull(&fleet, "out");
    under_way.wait_for_percent(A_FIFTH);
    let filler = fill_up(&disk);
    fleet.door.open();
    said.push(under_way.failure());
    assert!(!fleet.scratch.path("out").exists());
    said.push(without("bytes free, but ", ' ', &pull(&fleet, "out").failure()));

    // The peer is there, and goes on where it was.
    fs::remove_file(filler).unwrap();
    let result = pull(&fleet, "out").result();
    fleet.scratch.assert_pulled("model", "out");
    assert!(number(&result, "local_bytes") * 10 > number(&result, "bytes"), "{result}");
    assert!(peer.ends_well());
    assert_said!(without("cannot write `", '`', &disk.hidden_in(&said.join("\n"))));
}

/// A text without what stands between `begin` and `end`, which depends on how far a pull was.
fn without(begin: &str, end: char, text: &str) -> String {
    let mut parts = text.split(begin);
    let first = parts.next().unwrap().to_owned();
    parts.fold(first, |text, part| text + begin + "[…]" + &part[part.find(end).unwrap()..])
}

#[test]
fn files_come_from_the_local_peer_as_asked() {
    let scratch = Scratch::with_model();
    // A file of a store is never executable, so that a script cannot be a second name of one.
    fs::remove_dir_all(scratch.path("model/tools")).unwrap();
    let fleet = Fleet::around(scratch, 1);
    fleet.pulled(0, fleet.pull(0));
    let names_of_weights = |dir: &str| {
        fleet.scratch.assert_pulled("model", dir);
        fs::metadata(fleet.scratch.path(dir).join("model.safetensors")).unwrap().nlink()
    };
    let copy = fleet.pull_into(0, "copy", &["--link", "copy"]).end();
    assert!(copy.status.success());
    assert_said!("a_copy_is_told", String::from_utf8(copy.stderr).unwrap());
    assert_eq!(names_of_weights("copy"), 1);
    fleet.pull_into(0, "hard", &["--link", "hard"]).result();
    assert!(names_of_weights("hard") > 1);

    // Nothing of another file system can be linked or shared.
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let outside = memory.path().join("model");
    let refused = ["hard", "reflink"].map(|link| {
        let pull = fleet.pull_into(0, outside.to_str().unwrap(), &["--link", link]);
        let said = pull.failure().replace(memory.path().to_str().unwrap(), "[MEMORY]");
        format!("$ modelctl pull --link {link}\n{said}")
    });
    assert_said!("links_that_are_refused", refused.join("\n"));
    assert!(!outside.exists());
}
