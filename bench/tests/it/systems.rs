//! The systems below `bench/systems`: they keep the contract of its README.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use testbed::{
    artifact::Source,
    maker::Maker,
    netns::{self, Host, Mbit, Network},
    process::{LOOK_INTERVAL, Process},
};

/// What the names of these tests' namespaces say. Not `bench`: that would take them for leftovers of its own.
const TOOL: &str = "bench-it";

const PEERS: usize = 2;
const RATE: Mbit = Mbit(400);
const MODEL_BYTES: u64 = 8 << 20;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// After how long without a byte a peer gives up, where it has to.
const STALL_S: &str = "1";

/// Namespaces are named by process, so that the tests of one process take turns.
static TURN: Mutex<()> = Mutex::new(());

#[test]
fn a_registry_serves_all() {
    check_broadcast("registry");
}

#[test]
fn a_chain_passes_everything_on() {
    check_broadcast("chain");
}

#[test]
fn libtorrent_swarms() {
    check_broadcast("bittorrent");
}

#[test]
fn aria2_swarms() {
    check_broadcast("aria2");
}

#[test]
fn a_peer_without_origin_says_so() {
    for name in ["registry", "chain", "bittorrent", "aria2"] {
        let Some(lab) = Lab::new(name) else { continue };
        let mut command = lab.command(1, "peer");
        command.env("BENCH_STALL_S", STALL_S);
        let mut peer = Process::start_listening(command, lab.dir.path(), "alone").unwrap();
        peer.said("ready").unwrap();
        peer.tell("go").unwrap();
        let status = peer.wait(PATIENCE).unwrap();
        assert!(!status.success() && !peer.has_said("done"), "{name}: {status}");
        assert!(peer.log().contains(&format!("{name}: ")), "{name}: {}", peer.log());
    }
}

#[test]
fn a_peer_whose_harness_has_gone_ends() {
    for name in ["registry", "chain", "bittorrent", "aria2"] {
        let Some(lab) = Lab::new(name) else { continue };
        // With an empty stdin.
        let command = lab.command(1, "peer");
        let mut peer = Process::start(command, lab.dir.path(), "orphan").unwrap();
        assert!(!peer.wait(PATIENCE).unwrap().success(), "{name}");
        assert!(peer.log().contains("stdin"), "{name}: {}", peer.log());
    }
}

#[test]
fn what_is_missing_is_named() {
    let empty = tempfile::tempdir().unwrap();
    for (name, tools) in [
        ("registry", "no docker-registry curl sha256sum find awk: apt-get install docker-registry curl "),
        ("chain", "no nc tee tar find awk: apt-get install netcat-openbsd coreutils tar "),
        ("aria2", "no aria2c python3 find awk: apt-get install aria2 python3 "),
    ] {
        let output = Command::new(system(name)).arg("missing").env("PATH", empty.path()).output().unwrap();
        check_missing(name, &output, tools);
    }
    if !Path::new("/usr/bin/python3").exists() {
        return skip("bittorrent: no /usr/bin/python3");
    }
    // Python finds this one first.
    fs::write(empty.path().join("libtorrent.py"), "raise ImportError\n").unwrap();
    let output = Command::new(system("bittorrent")).arg("missing").env("PYTHONPATH", empty.path()).output();
    let words = "no libtorrent for /usr/bin/python3: apt-get install python3-libtorrent";
    check_missing("bittorrent", &output.unwrap(), words);
}

fn check_missing(name: &str, output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
    assert!(said.starts_with(words) && said.lines().count() == 1, "{name}: {output:?}");
}

/// Has a system move a model to all peers, and compares what arrived.
fn check_broadcast(name: &str) {
    let Some(lab) = Lab::new(name) else { return };
    let mut origin = lab.start(0, "origin");
    origin.said("ready").unwrap();
    let mut peers: Vec<Process> = (1..=PEERS).map(|index| lab.start(index, "peer")).collect();
    for peer in &mut peers {
        peer.said("ready").unwrap();
    }
    origin.tell("go").unwrap();
    for peer in &mut peers {
        peer.tell("go").unwrap();
    }
    let wanted = contents(&lab.source.dir);
    for (index, peer) in (1..).zip(&mut peers) {
        until_done(peer);
        // Whatever is not there yet, or under another name, is missing here.
        assert!(
            contents(&lab.output(index)) == wanted,
            "{name}: the output of peer {index} is not the model"
        );
    }
    let sent = lab.hosts[0].sent_bytes().unwrap();
    assert!(sent > lab.size(), "{name}: the origin's network card sent {sent} bytes only");
}

fn until_done(peer: &mut Process) {
    let begin = Instant::now();
    while !peer.has_said("done") {
        assert!(peer.end().is_none(), "{} ended before it was done: {}", peer.name, peer.last_words());
        assert!(begin.elapsed() < PATIENCE, "{} is not done: {}", peer.name, peer.last_words());
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The files below a directory, by their paths in it.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(dir).unwrap().to_path_buf();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Hosts, a model, and a system that is prepared to move it.
struct Lab {
    system: PathBuf,
    hosts: Vec<Host>,
    source: Source,
    // The namespaces go first, with all that runs in them.
    _network: Network,
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// `None`, said aloud, where this machine cannot do it.
    fn new(name: &str) -> Option<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let maker = Maker::this(TOOL);
        let system = system(name);
        if let Err(why) = netns::probe(maker) {
            skip(&format!("{name}: {why:#}"));
            return None;
        }
        match Command::new(&system).arg("missing").output() {
            Ok(output) if output.status.success() => {}
            Ok(output) => {
                skip(&format!("{name}: {}", String::from_utf8_lossy(&output.stdout).trim()));
                return None;
            }
            Err(error) => {
                skip(&format!("{name}: {error}"));
                return None;
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let source = Source::write(&dir.path().join("model"), MODEL_BYTES, 1).unwrap();
        // A name that has to be quoted, in a directory of its own.
        fs::create_dir(source.dir.join("sub")).unwrap();
        fs::write(source.dir.join("sub/a \"quoted\" \\ name.json"), "{}\n").unwrap();
        let mut network = Network::new(maker).unwrap();
        let hosts = (0..=PEERS).map(|index| network.add(&format!("host{index}"), RATE).unwrap()).collect();
        let lab = Self { system, hosts, source, _network: network, dir, _turn: turn };
        let mut prepare = lab.start(0, "prepare");
        assert!(prepare.wait(PATIENCE).unwrap().success(), "{name}: {}", prepare.last_words());
        Some(lab)
    }

    fn start(&self, index: usize, verb: &str) -> Process {
        let command = self.command(index, verb);
        Process::start_listening(command, self.dir.path(), &format!("{verb}{index}")).unwrap()
    }

    fn command(&self, index: usize, verb: &str) -> Command {
        let sub = |name: &str| {
            let dir = self.dir.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            dir
        };
        let addresses: Vec<String> = self.hosts.iter().map(|host| host.address.to_string()).collect();
        let mut command = self.hosts[index].command(&self.system);
        command.arg(verb).env("BENCH_N", PEERS.to_string()).env("BENCH_INDEX", index.to_string());
        command.env("BENCH_ADDRESSES", addresses.join(" ")).env("BENCH_RATE_MBIT", RATE.0.to_string());
        command
            .env("BENCH_SCRATCH", sub(&format!("scratch-{verb}{index}")))
            .env("BENCH_SHARED", sub("shared"));
        if index == 0 {
            command.env("BENCH_MODEL", &self.source.dir);
        } else {
            command.env("BENCH_OUTPUT", self.output(index));
        }
        command
    }

    fn output(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("output{index}"))
    }

    fn size(&self) -> u64 {
        self.source.files.values().map(|(bytes, _)| bytes).sum()
    }
}

fn system(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systems").join(name)
}

/// Says why a test does nothing on this machine; `scripts/test` counts it as skipped.
fn skip(why: &str) {
    let line = format!("skipped: {}\n", why.replace('\n', " "));
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(list) = std::env::var_os("MODELCAST_SKIPPED") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        // In one write, as other tests write there at the same time.
        list.write_all(line.as_bytes()).unwrap();
    }
}
