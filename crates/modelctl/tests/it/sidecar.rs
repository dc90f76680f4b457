//! `modelctl sidecar` with a real registry: processes that are killed, filled up, and told to end.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    door::Door,
    fault_server::{FaultServer, Reply, Seen},
    hub_model::{COMMIT, HubModel},
    running::{Running, Signal},
    support::{Mount, Registry, Scratch, said, skip, until},
};

/// A sidecar that answers over HTTP.
pub(crate) struct Sidecar {
    pub(crate) process: Running,
    http: String,
}

impl Sidecar {
    /// `modelctl sidecar` with these arguments, on a free port, looking at the tag without a pause to speak of.
    pub(crate) fn start(scratch: &Scratch, args: &[&str]) -> Self {
        let more = ["--plain-http", "--http-listen", "127.0.0.1:0", "--poll", "100ms", "--json"];
        Self::of(scratch.modelctl(&[&["sidecar"], args, &more].concat()))
    }

    fn of(command: Command) -> Self {
        let mut process = Running::start(command);
        let http = process.line()["http"].as_str().unwrap().to_owned();
        Self { process, http }
    }

    /// Status and body of a page.
    pub(crate) fn get(&self, path: &str) -> (u16, String) {
        let mut socket = TcpStream::connect(&self.http).unwrap();
        write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    pub(crate) fn model(&self) -> Value {
        let (status, body) = self.get("/v1/models");
        assert_eq!(status, 200);
        serde_json::from_str::<Value>(&body).unwrap()["models"][0].clone()
    }

    pub(crate) fn until_in_place(&self, digest: &str) {
        until("the version is in place", || self.model()["digest"] == digest);
    }
}

struct Site {
    scratch: Scratch,
    registry: Registry,
}

impl Site {
    fn new() -> Self {
        let site = Self { scratch: Scratch::with_model(), registry: Registry::start() };
        site.publish("model", "stable");
        site
    }

    /// Publishes a directory under a tag; gives its digest.
    fn publish(&self, dir: &str, tag: &str) -> String {
        let reference = self.registry.reference(&format!("models/m:{tag}"));
        self.scratch.stdout(&["build", dir, "-t", &reference, "--plain-http"]);
        self.registry.digest("models/m", tag)
    }

    fn reference(&self) -> String {
        self.registry.reference("models/m:stable")
    }

    /// An init container, to its end.
    fn once(&self, reference: &str, dir: &str) -> std::process::Output {
        let args = ["sidecar", reference, "-o", dir, "--once", "--plain-http", "--peer", "none"];
        self.scratch.modelctl(&args).output().unwrap()
    }
}

#[test]
fn a_tag_is_followed_and_probes_say_what_is_so() {
    let site = Site::new();
    let first = site.registry.digest("models/m", "stable");
    let sidecar = Sidecar::start(&site.scratch, &[&site.reference(), "-o", "models/chat", "--peer", "none"]);
    assert_eq!(sidecar.get("/healthz"), (200, "alive\n".to_owned()));
    until("it is ready", || sidecar.get("/readyz").0 == 200);
    assert_eq!(sidecar.get("/startupz"), (200, "started\n".to_owned()));
    site.scratch.assert_pulled("model", "models/chat");
    let model = sidecar.model();
    assert_eq!(
        (&model["digest"], &model["ready"], &model["stale"]),
        (&first.into(), &true.into(), &Value::Null)
    );
    assert_eq!(model["bytes_done"], model["bytes_total"]);
    // A server has the first version open, and keeps it.
    let open = fs::File::open(site.scratch.path("models/chat/config.json")).unwrap();
    site.scratch.write_model("second");
    site.scratch.write("second/config.json", r#"{"model_type":"bert","number":2}"#);
    let second = site.publish("second", "stable");
    sidecar.until_in_place(&second);
    site.scratch.assert_pulled("second", "models/chat");
    assert!(std::io::read_to_string(open).unwrap().contains("torch_dtype"));
    assert!(sidecar.get("/metrics").1.contains("\nmodelctl_sidecar_switches_total 2\n"));
    assert_eq!(sidecar.get("/nothing").0, 404);
    sidecar.process.signal(Signal::TERM);
    let ended = sidecar.process.end();
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    // Without the registry what is there is served.
    drop(site.registry);
    let sidecar = Sidecar::start(
        &site.scratch,
        &["localhost:1/models/m:stable", "-o", "models/chat", "--peer", "none"],
    );
    until("it says so", || sidecar.model()["stale"].is_string());
    assert_eq!(sidecar.get("/readyz").0, 200);
    assert_eq!(sidecar.model()["digest"], second);
}

/// Longer than a registry lets through at once.
const LARGE: usize = (24 << 20) + 321;

#[test]
fn killed_in_the_middle_it_has_shown_nothing_and_goes_on_where_it_was() {
    let site = Site::new();
    site.scratch.write_large_model("large", LARGE);
    site.publish("large", "stable");
    let door = Door::before(&site.registry, LARGE as u64 / 2);
    let reference = door.reference("models/m:stable");
    let start = || Sidecar::start(&site.scratch, &[&reference, "-o", "models/chat", "--peer", "none"]);
    let dir = site.scratch.path("models/chat");
    for _ in 0..2 {
        let sidecar = start();
        // The second time nothing more comes through the door: it is what had landed before.
        until("some has landed", || sidecar.model()["bytes_done"].as_u64() > Some(LARGE as u64 / 4));
        assert_eq!(sidecar.get("/readyz").0, 503);
        sidecar.process.kill();
        assert!(dir.symlink_metadata().is_err(), "nothing has the name of the model");
    }
    door.open();
    let sidecar = start();
    until("it is ready", || sidecar.get("/readyz").0 == 200);
    site.scratch.assert_pulled("large", "models/chat");
}

#[test]
fn killed_at_any_moment_of_a_switch_it_has_shown_one_whole_version() {
    let site = Site::new();
    site.scratch.write_model("second");
    site.scratch.write("second/config.json", r#"{"model_type":"bert","number":2}"#);
    assert!(site.once(&site.reference(), "models/chat").status.success());
    let dir = site.scratch.path("models/chat");
    let versions =
        ["model", "second"].map(|dir| fs::read(site.scratch.path(dir).join("config.json")).unwrap());
    for round in 0..12_u64 {
        site.publish(["second", "model"][(round % 2) as usize], "stable");
        let mut sidecar = Running::start(site.scratch.modelctl(&[
            "sidecar",
            &site.reference(),
            "-o",
            "models/chat",
            "--once",
            "--plain-http",
            "--peer",
            "none",
            "--json",
        ]));
        // Another moment each time; the last rounds come to their end.
        std::thread::sleep(std::time::Duration::from_millis(round * 12));
        if round < 10 {
            sidecar.kill();
        } else {
            sidecar.line();
        }
        let found = fs::read(dir.join("config.json")).unwrap();
        let version = versions.iter().position(|version| *version == found).expect("it is one of the two");
        site.scratch.assert_pulled(["model", "second"][version], "models/chat");
    }
}

#[test]
fn a_volume_that_is_too_small_is_named_with_what_it_lacks() {
    let site = Site::new();
    let Some(volume) = Mount::tmpfs("size=1m") else { return };
    let output = site.once(&site.reference(), &volume.path("chat"));
    let text = volume.hidden_in(&said(&output));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains(
            "error: `[DISK]/.chat.versions` has no room for it: 2 MiB are needed yet, 1 MiB are free"
        ),
        "{text}"
    );
    assert!(text.contains("\nhint: make the volume 1 MiB larger (`sizeLimit` of an emptyDir)"), "{text}");
    assert!(site.registry.sent() < 10_000, "no weights were read: {}", site.registry.sent());
}

#[test]
fn two_keep_two_directories_from_one_store_and_none_keeps_anothers() {
    let site = Site::new();
    let args = ["peer", "--store", "store", "--socket", "peer.sock", "--json"];
    let mut peer = Running::start(site.scratch.modelctl(&args));
    peer.line();
    let start = |dir: &str| {
        Sidecar::start(&site.scratch, &[&site.reference(), "-o", dir, "--peer", "unix:peer.sock"])
    };
    let sidecars = ["a/chat", "b/chat"].map(start);
    for (sidecar, dir) in sidecars.iter().zip(["a/chat", "b/chat"]) {
        until("it is ready", || sidecar.get("/readyz").0 == 200);
        site.scratch.assert_pulled("model", dir);
    }
    let weights = fs::metadata(site.scratch.path("model/model.safetensors")).unwrap().len();
    assert!(site.registry.sent() < 2 * weights, "the store brought it once");
    let other = site.once(&site.reference(), "a/chat");
    assert!(said(&other).contains("error: another process keeps `"), "{}", said(&other));
    assert_eq!(other.status.code(), Some(1));
}

/// As a container runs it that may do nothing: any user, no home, nothing to write to but the volume.
#[test]
fn any_user_without_a_home_on_a_read_only_root_is_enough() {
    let site = Site::new();
    let Some(volume) = Mount::tmpfs("size=1g,mode=1777") else { return };
    // It may lie where only its owner may look.
    let program = volume.dir.path().join("modelctl");
    fs::copy(env!("CARGO_BIN_EXE_modelctl"), &program).unwrap();
    let command = format!(
        "mount -o remount,bind,ro / && cd / && exec env -i PATH=/usr/bin:/bin setpriv --reuid 54321 --regid 54321 --clear-groups \
         {} sidecar {} -o {} --once --plain-http --peer none --json",
        program.display(),
        site.reference(),
        volume.path("models/chat"),
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &command]).output().unwrap();
    if String::from_utf8_lossy(&output.stderr).contains("mount:") {
        return skip(&format!("cannot make the root read-only here: {}", said(&output)));
    }
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(volume.dir.path().join("models/chat/config.json").exists());
}

#[test]
fn one_that_was_started_again_serves_the_fleet_what_it_has() {
    let site = Site::new();
    let args = ["scheduler", "--listen", "127.0.0.1:0", "--json"];
    let mut scheduler = Running::start(site.scratch.modelctl(&args));
    let scheduler = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    let start = |dir: &str| {
        let fleet = ["--peer", "none", "--scheduler", &scheduler, "--linger", "0"];
        Sidecar::start(&site.scratch, &[&[&site.reference(), "-o", dir][..], &fleet].concat())
    };
    let first = start("a/chat");
    until("it is ready", || first.get("/readyz").0 == 200);
    first.process.signal(Signal::TERM);
    assert_eq!(first.process.end().status.code(), Some(0));
    let first = start("a/chat");
    let holders =
        || site.scratch.json(&["status", "--scheduler", &scheduler])["swarms"][0]["complete"].clone();
    until("it is announced", || holders() == 1);
    let sent = site.registry.sent();
    let second = start("b/chat");
    until("it is ready", || second.get("/readyz").0 == 200);
    site.scratch.assert_pulled("model", "b/chat");
    assert_eq!(first.model()["bytes_total"], 0, "nothing was brought again");
    // But configs and piece trees, which everybody reads for himself.
    assert!(
        site.registry.sent() - sent < 100_000,
        "{} bytes came from the registry",
        site.registry.sent() - sent
    );
}

#[test]
fn of_a_hub_only_the_commit_is_looked_at_and_another_one_is_brought() {
    let (runtime, scratch) = (Runtime::new().unwrap(), Scratch::new());
    let model = |text: &str| {
        HubModel::new().with("config.json", text).with_lfs("model.safetensors", crate::support::safetensors())
    };
    let has_moved = Arc::new(AtomicBool::new(false));
    let (moved, first, second) = (Arc::clone(&has_moved), model("{}"), model(r#"{"number":2}"#));
    let later = "89".repeat(20);
    let reply = move |seen: &Seen| {
        if !moved.load(Ordering::Relaxed) {
            return first.reply(seen);
        }
        // The same model under another commit.
        if seen.path.ends_with("/revision/main") {
            return Reply::body(200, format!(r#"{{"sha":"{later}"}}"#));
        }
        let mut asked = seen.clone();
        asked.path = asked.path.replace(&later, COMMIT);
        second.reply(&asked)
    };
    let hub = runtime.block_on(FaultServer::start(reply));
    let args = ["sidecar", "hf://org/small", "-o", "models/chat", "--peer", "none"];
    let more = ["--http-listen", "127.0.0.1:0", "--poll", "50ms", "--json"];
    let mut command = scratch.modelctl(&[&args[..], &more].concat());
    command.env("HF_ENDPOINT", format!("http://{}", hub.host())).env("HF_HOME", scratch.path("hf"));
    let sidecar = Sidecar::of(command);
    until("it is ready", || sidecar.get("/readyz").0 == 200);
    let asked = |part: &str| hub.seen().iter().filter(|seen| seen.path.contains(part)).count();
    let (polls, reads) = (asked("/revision/main"), asked("config.json"));
    until("it has looked some times more", || asked("/revision/main") > polls + 5);
    assert_eq!(asked("config.json"), reads, "nothing else is asked for");
    has_moved.store(true, Ordering::Relaxed);
    let config = scratch.path("models/chat/config.json");
    until("the next is in place", || fs::read(&config).is_ok_and(|found| found == br#"{"number":2}"#));
    assert_eq!(sidecar.get("/readyz").0, 200);
}

#[test]
fn a_part_of_an_artifact_is_kept_and_another_part_takes_its_place() {
    let site = Site::new();
    let files = || {
        let mut names: Vec<_> = fs::read_dir(site.scratch.path("models/chat")).unwrap().flatten().collect();
        names.retain(|entry| entry.file_name() != ".modelctl");
        names.into_iter().map(|entry| entry.file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let once = |more: &[&str]| {
        let reference = site.reference();
        let args = ["sidecar", &reference, "-o", "models/chat", "--once", "--plain-http", "--peer", "none"];
        let output = site.scratch.modelctl(&[&args[..], more].concat()).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
    };
    once(&["--include", "*.json"]);
    assert_eq!(files(), ["config.json"]);
    assert!(site.registry.sent() < 10_000, "no weights were read: {}", site.registry.sent());
    once(&["--kind", "weight"]);
    assert_eq!(files(), ["model.safetensors"]);
    once(&[]);
    site.scratch.assert_pulled("model", "models/chat");
    let member = ["--scheduler", "http://127.0.0.1:1", "--include", "*.json"];
    let reference = site.reference();
    let said = site.scratch.run(&[&["sidecar", &reference, "-o", "b/chat"][..], &member].concat());
    assert!(said.starts_with("exit code: 2\n") && said.contains("members of a fleet"), "{said}");
}

/// A control group with a limit, where there are some that may be made.
struct Group(std::path::PathBuf);

impl Group {
    fn limited(bytes: u64) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = fs::read_to_string(root.join("cgroup.subtree_control")).unwrap_or_default();
        if !controllers.contains("memory") {
            skip(
                "there are no control groups (v2) for memory here; `scripts/memory-limit` has a machine with some",
            );
            return None;
        }
        let dir = root.join(format!("modelctl-{}", std::process::id()));
        let limited =
            fs::create_dir(&dir).and_then(|()| fs::write(dir.join("memory.max"), bytes.to_string()));
        match limited {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                drop(fs::remove_dir(&dir));
                skip(&format!("no control group (v2) with a limit of memory can be made here: {error}"));
                None
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.0));
    }
}

#[test]
fn what_the_control_group_may_use_is_asked_before_the_first_byte() {
    let Some(group) = Group::limited(200 << 20) else { return };
    let site = Site::new();
    let Some(volume) = Mount::tmpfs("size=1g") else { return };
    site.scratch.write_large_model("large", 60 << 20);
    site.publish("large", "stable");
    let before = site.registry.sent();
    let line = format!(
        "echo $$ >{}/cgroup.procs && exec {} sidecar {} -o {} --once --plain-http --peer none",
        group.0.display(),
        env!("CARGO_BIN_EXE_modelctl"),
        site.reference(),
        volume.path("chat"),
    );
    let settings = site.scratch.modelctl(&[]);
    let mut command = Command::new("sh");
    command.args(["-c", &line]).current_dir(site.scratch.path(""));
    for (name, value) in settings.get_envs() {
        value.map(|value| command.env(name, value));
    }
    let output = command.output().unwrap();
    let text = volume.hidden_in(&said(&output));
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("memory"), "it says what is missing: {text}");
    assert!(site.registry.sent() - before < 100_000, "no weights were read");
}

#[test]
fn a_file_that_cannot_be_used_is_told_with_the_place() {
    let scratch = Scratch::new();
    scratch.write("sidecar.toml", "[[model]]\nreference = \"a.b/c:d\"\ndirectory = \"chat\"\nkept = 1\n");
    let said = scratch.run(&["sidecar", "--config", "sidecar.toml"]);
    let expected =
        "error: `sidecar.toml` cannot be used: line 4, column 1: unknown field `kept`, expected one of";
    assert!(said.starts_with("exit code: 2\n") && said.contains(expected), "{said}");
    assert!(Path::new(&scratch.path("chat")).symlink_metadata().is_err());
}
