//! `modelctl pull` when something goes wrong on the way: it is killed, or runs twice; the registry dies or has wrong
//! bytes; there is no room.

use std::{fs, path::Path, time::Duration};

use crate::{
    door::Door,
    running::Running,
    support::{Mount, Registry, Scratch, assert_said, contents, until},
};

/// Many times what a pull asks of a registry at once.
const LARGE: usize = (128 << 20) + 12_345;
/// What the registry gives before it is held back in the middle of a pull: half can have landed, but not everything.
const HELD_AT: u64 = LARGE as u64 * 4 / 5;
/// What the small disks of these tests have no room for.
const MEDIUM: usize = (12 << 20) + 12_345;
const SMALL_DISK: &str = "size=8m";

/// The journal's format: a header, then one record a piece.
const HEADER_BYTES: u64 = 48;
const RECORD_BYTES: u64 = 48;
const PIECE_BYTES: u64 = 1 << 20;

/// How long a registry that is gone may keep a pull busy.
const GIVING_UP: Duration = Duration::from_mins(1);

/// The model in the registry.
const NAME: &str = "models/drill:v1";

struct Published {
    registry: Registry,
    reference: String,
    scratch: Scratch,
}

impl Published {
    fn of(bytes: usize) -> Self {
        let (scratch, registry) = (Scratch::new(), Registry::start());
        scratch.write_large_model("model", bytes);
        let reference = registry.reference(NAME);
        scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
        Self { registry, reference, scratch }
    }

    fn pull(&self, dir: &str) -> Running {
        self.pull_through("none", dir)
    }

    fn pull_through(&self, peer: &str, dir: &str) -> Running {
        self.pull_of(&self.reference, peer, dir)
    }

    fn pull_of(&self, reference: &str, peer: &str, dir: &str) -> Running {
        let args = ["pull", reference, "--plain-http", "--peer", peer, "-o", dir, "--json"];
        Running::start(self.scratch.modelctl(&args))
    }

    /// Starts a peer whose socket is `peer.sock`.
    fn peer(&self, store: &str) -> Running {
        let args = ["peer", "--store", store, "--socket", "peer.sock", "--json"];
        let mut peer = Running::start(self.scratch.modelctl(&args));
        peer.line();
        peer
    }

    /// Starts a pull into `out` and waits until half has landed. More than a part of the rest will not, before the
    /// door is opened.
    fn pull_half_way(&self) -> (Running, Door) {
        let door = Door::before(&self.registry, HELD_AT);
        let pull = self.pull_of(&door.reference(NAME), "none", "out");
        let journal = self.scratch.path(".out.modelctl/journal");
        until("half has landed", || landed(&journal) * 2 >= LARGE as u64);
        assert!(!self.scratch.path("out").exists(), "nothing has its final name before everything is proved");
        (pull, door)
    }
}

/// How many bytes a journal says have landed.
fn landed(journal: &Path) -> u64 {
    let bytes = fs::metadata(journal).map_or(0, |meta| meta.len());
    bytes.saturating_sub(HEADER_BYTES) / RECORD_BYTES * PIECE_BYTES
}

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    let published = Published::of(LARGE);
    let before = published.registry.sent();
    let (pull, _door) = published.pull_half_way();
    pull.kill();
    assert!(!published.scratch.path("out").exists());
    let result = published.pull("out").result();
    published.scratch.assert_pulled("model", "out");
    let read = result["origin_bytes"].as_u64().unwrap();
    assert!(read * 10 < LARGE as u64 * 6, "{result}");
    until("the registry has logged what it sent", || published.registry.sent() - before >= read);
    // What the first one was being sent when it was killed is logged at any time, with what waited in sockets.
    assert!((published.registry.sent() - before) * 10 < LARGE as u64 * 14, "all was read again");
    assert!(!published.scratch.path(".out.modelctl").exists(), "what was staged is gone");
}

#[test]
fn a_directory_that_is_being_pulled_into_is_left_to_whoever_does() {
    let published = Published::of(LARGE);
    let (first, door) = published.pull_half_way();
    assert_said!(published.pull("out").failure());
    door.open();
    first.result();
    published.scratch.assert_pulled("model", "out");
}

#[test]
fn of_pulls_that_start_together_one_wins_and_none_does_harm() {
    let published = Published::of(MEDIUM);
    let pulls: Vec<_> = (0..3).map(|_| published.pull("out")).collect();
    let ends: Vec<_> = pulls.into_iter().map(Running::end).collect();
    assert!(ends.iter().any(|end| end.status.success()));
    for end in ends.iter().filter(|end| !end.status.success()) {
        let stderr = String::from_utf8_lossy(&end.stderr);
        assert_eq!(end.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: another process is using"), "{stderr}");
    }
    published.scratch.assert_pulled("model", "out");
    assert_eq!(published.pull("out").result()["origin_bytes"], 0);
}

#[test]
fn a_registry_that_dies_is_told_and_nothing_that_landed_is_lost() {
    let published = Published::of(LARGE);
    let (pull, door) = published.pull_half_way();
    door.close();
    assert_said!(pull.failure_within(GIVING_UP));
    assert!(!published.scratch.path("out").exists());
    assert!(landed(&published.scratch.path(".out.modelctl/journal")) * 2 >= LARGE as u64);
}

#[test]
fn wrong_bytes_at_the_registry_are_never_published() {
    let published = Published::of(MEDIUM);
    let listed = published.scratch.json(&["inspect", &published.reference, "--plain-http"]);
    let files = listed["files"].as_array().unwrap();
    let weights = files.iter().find(|file| file["path"] == "model.bin").unwrap();
    published.registry.damage(weights["sha256"].as_str().unwrap());
    let _peer = published.peer("store");
    let said = ["none", "unix:peer.sock"].map(|peer| {
        let said = published.pull_through(peer, "out").failure();
        assert!(!published.scratch.path("out").exists());
        format!("$ modelctl pull --peer {peer}\n{said}")
    });
    assert_said!(said.join("\n"));
}

#[test]
fn a_disk_without_room_is_told_before_the_first_byte() {
    let Some(disk) = Mount::tmpfs(SMALL_DISK) else { return };
    let published = Published::of(MEDIUM);
    let _peer = published.peer(&disk.path("store"));
    let pulls = [("none", disk.path("out")), ("unix:peer.sock", "out".to_owned())];
    let said = pulls.map(|(peer, dir)| {
        let said = disk.hidden_in(&published.pull_through(peer, &dir).failure());
        format!("$ modelctl pull --peer {peer}\n{said}")
    });
    assert_said!(said.join("\n"));
    assert!(published.registry.sent() < PIECE_BYTES, "only what describes the model was read");
    assert!(!published.scratch.path("out").exists());
    assert!(contents(disk.dir.path()).iter().all(|(path, _)| path.starts_with("store")));
}

#[test]
fn a_disk_that_cannot_be_written_is_told() {
    let Some(disk) = Mount::tmpfs("ro") else { return };
    let published = Published::of(MEDIUM);
    assert_said!(disk.hidden_in(&published.pull(&disk.path("out")).failure()));
    assert!(published.registry.sent() < PIECE_BYTES, "only what describes the model was read");
}

#[test]
fn a_full_disk_of_one_client_is_no_business_of_the_peer_or_of_others() {
    let Some(disk) = Mount::tmpfs(SMALL_DISK) else { return };
    let published = Published::of(MEDIUM);
    let peer = published.peer("store");
    let full = published.pull_through("unix:peer.sock", &disk.path("out"));
    let other = published.pull_through("unix:peer.sock", "out");
    assert_said!(disk.hidden_in(&full.failure()));
    other.result();
    published.scratch.assert_pulled("model", "out");
    let left: usize = contents(disk.dir.path()).iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(left < 4096, "{left} bytes are left on the full disk");
    let again = published.pull_through("unix:peer.sock", "again").result();
    assert_eq!(again["local_bytes"], again["bytes"], "the peer has it, and serves on: {again}");
    drop(peer);
}

#[test]
fn when_the_last_client_is_killed_its_transfer_is_given_up_and_a_later_one_goes_on() {
    let published = Published::of(LARGE);
    let door = Door::before(&published.registry, HELD_AT);
    let reference = door.reference(NAME);
    let args = ["peer", "--store", "store", "--socket", "peer.sock", "--json"];
    let mut command = published.scratch.modelctl(&args);
    command.env("MODELCTL_LOG", "info");
    let mut peer = Running::start(command);
    peer.line();
    let start = |dir| published.pull_of(&reference, "unix:peer.sock", dir);
    let mut clients = ["a", "b"].map(start);
    for client in &mut clients {
        client.wait_for_percent(20);
    }
    let given_up = || peer.logged("given up: nobody waits for it any more");
    let [first, mut second] = clients;
    first.kill();
    // The other hears of it still.
    second.wait_for_percent(20);
    assert_eq!(given_up(), 0);
    second.kill();
    until("the transfer is given up", || given_up() == 1);
    door.open();
    let result = start("out").result();
    published.scratch.assert_pulled("model", "out");
    let number = |name: &str| result[name].as_u64().unwrap();
    assert!(number("local_bytes") * 10 > number("bytes"), "{result}");
    assert_eq!(given_up(), 1, "that one came to its end");
}
