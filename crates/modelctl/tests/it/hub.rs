//! Models of a hub: pulled, published, and shared with the hub's own tools.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use modelpack::digest::Sha256Digest;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::{
    fault_server::{FaultServer, Reply, Seen},
    hub_model::{COMMIT, HubModel},
    running::Running,
    support::{Registry, Scratch, assert_said, contents, safetensors, said, skip, until},
};

/// Some pieces, and a bit.
const LARGE: usize = (40 << 20) + 12_345;

/// The model on the hub.
const NAME: &str = "hf://org/small";

struct Hub {
    _runtime: Runtime,
    server: FaultServer,
}

impl Hub {
    fn start(model: HubModel) -> Self {
        Self::start_with(move |seen| model.reply(seen))
    }

    fn start_with(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(FaultServer::start(script));
        Self { _runtime: runtime, server }
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.server.host())
    }

    /// `modelctl` whose hub this is.
    fn modelctl(&self, scratch: &Scratch, args: &[&str]) -> Command {
        let mut command = scratch.modelctl(args);
        command.env("HF_ENDPOINT", self.endpoint()).env("HF_HOME", scratch.path("hf"));
        command
    }

    /// Runs it and says everything that it said, and how it was called.
    fn run(&self, scratch: &Scratch, args: &[&str]) -> String {
        let output = self.modelctl(scratch, args).output().unwrap();
        format!("$ modelctl {}\n{}", args.join(" "), said(&output))
    }

    fn json(&self, scratch: &Scratch, args: &[&str]) -> Value {
        let output = self.modelctl(scratch, args).arg("--json").output().unwrap();
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        serde_json::from_str(stdout.lines().last().unwrap_or_else(|| panic!("{}", said(&output)))).unwrap()
    }

    /// Bytes of files that it was asked for.
    fn reads(&self) -> usize {
        self.server.seen().iter().filter(|seen| seen.path.starts_with("/storage/")).count()
    }
}

/// The model of [`Scratch::write_model`], as far as a hub has such files.
fn small() -> HubModel {
    HubModel::new()
        .with("config.json", r#"{"architectures":["BertModel"],"model_type":"bert","torch_dtype":"float32"}"#)
        .with("README.md", "# A small model\n")
        .with("empty.txt", "")
        .with("tools/with space.py", "print('hello')\n")
        .with_lfs("model.safetensors", safetensors())
}

fn large() -> HubModel {
    let mut weights = vec![0; LARGE];
    blake3::Hasher::new().finalize_xof().fill(&mut weights);
    HubModel::new().with("config.json", "{}").with_lfs("model.bin", weights)
}

/// Every file of a model in a directory.
fn assert_is(model: &HubModel, dir: &Path, paths: &[&str]) {
    let mut found = contents(dir);
    found.retain(|(path, _)| !path.starts_with(".modelctl"));
    assert_eq!(found.len(), paths.len(), "{}", dir.display());
    for path in paths {
        assert!(fs::read(dir.join(path)).unwrap() == model.bytes(path), "{path}");
    }
}

const SMALL: [&str; 5] =
    ["config.json", "README.md", "empty.txt", "tools/with space.py", "model.safetensors"];

#[test]
fn a_model_of_a_hub_is_pulled_and_looked_at_and_the_second_pull_moves_nothing() {
    let (scratch, hub) = (Scratch::new(), Hub::start(small()));
    let lines: &[&[&str]] = &[
        &["pull", NAME, "-o", "out", "--dry-run"],
        &["pull", NAME, "-o", "out"],
        &["inspect", NAME],
        &["verify", NAME, "out"],
        &["pull", &format!("{NAME}@{COMMIT}"), "-o", "out"],
        &["pull", NAME, "-o", "part", "--kind", "config"],
    ];
    let said: Vec<_> = lines.iter().map(|args| hub.run(&scratch, args)).collect();
    assert_said!(said.join("\n"));
    assert_is(&small(), &scratch.path("out"), &SMALL);
    assert_is(&small(), &scratch.path("part"), &["config.json"]);
    assert_eq!(hub.json(&scratch, &["inspect", NAME, "--tensors"])["tensors"]["count"], 2);
}

/// From a hub through a registry to another machine, as the documentation shows it.
#[test]
fn a_model_goes_from_a_hub_through_a_registry_to_another_store() {
    let (here, there, registry) = (Scratch::new(), Scratch::new(), Registry::start());
    let hub = Hub::start(small());
    let reference = registry.reference("models/small:v1");
    let mut said = vec![hub.run(&here, &["push", NAME, &reference, "--plain-http"])];
    let mut peer =
        Running::start(there.modelctl(&["peer", "--store", "store", "--socket", "peer.sock", "--json"]));
    peer.line();
    let pull = ["pull", &reference, "--plain-http", "--peer", "unix:peer.sock", "-o", "model"];
    for args in [&pull[..], &["inspect", &reference, "--plain-http"]] {
        said.push(format!("$ modelctl {}\n{}", args.join(" "), there.run(args)));
    }
    said.push(hub.run(&here, &["diff", NAME, &reference, "--plain-http"]));
    assert_said!(said.join("\n"));
    assert_is(&small(), &there.path("model"), &SMALL);
}

/// A model of eight tensors of 4 MiB each, of which one may be another than at first.
fn layers(trained: Option<u32>) -> HubModel {
    const BYTES: u32 = 4 << 20;
    let tensor = |number: u32| {
        format!(
            r#""layer.{number}":{{"dtype":"F32","shape":[1024,1024],"data_offsets":[{},{}]}}"#,
            number * BYTES,
            (number + 1) * BYTES
        )
    };
    let header = format!("{{{}}}", (0..8).map(tensor).collect::<Vec<_>>().join(","));
    let mut file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    for number in 0..8 {
        let mut bytes = vec![0; BYTES as usize];
        let seed = [number, u32::from(trained == Some(number))].map(u32::to_le_bytes).concat();
        blake3::Hasher::new().update(&seed).finalize_xof().fill(&mut bytes);
        file.extend(bytes);
    }
    HubModel::new().with("config.json", r#"{"model_type":"bert"}"#).with_lfs("model.safetensors", file)
}

/// Two versions from a hub through a registry into a store, which fetches of the second what differs.
#[test]
fn a_new_version_of_a_model_moves_only_what_differs() {
    let (here, there, registry) = (Scratch::new(), Scratch::new(), Registry::start());
    let [first, second] = ["models/layers:v1", "models/layers:v2"].map(|name| registry.reference(name));
    let mut peer =
        Running::start(there.modelctl(&["peer", "--store", "store", "--socket", "peer.sock", "--json"]));
    peer.line();
    let mut said = Vec::new();
    for (model, reference, dir) in
        [(layers(None), &first, "layers-v1"), (layers(Some(3)), &second, "layers-v2")]
    {
        let hub = Hub::start(model);
        said.push(hub.run(&here, &["push", NAME, reference, "--plain-http"]));
        let pull = ["pull", reference, "--plain-http", "--peer", "unix:peer.sock", "-o", dir];
        if dir == "layers-v2" {
            let diff = ["diff", &first, reference, "--plain-http"];
            said.push(format!("$ modelctl {}\n{}", diff.join(" "), there.run(&diff)));
        }
        said.push(format!("$ modelctl {}\n{}", pull.join(" "), there.run(&pull)));
    }
    assert_said!(said.join("\n"));
    assert_is(&layers(Some(3)), &there.path("layers-v2"), &["config.json", "model.safetensors"]);
}

/// What a peer has of an older version is left alone where that is asked for.
#[test]
fn a_peer_without_delta_fetches_all_of_a_new_version() {
    let (here, there, registry) = (Scratch::new(), Scratch::new(), Registry::start());
    let args = ["peer", "--store", "store", "--socket", "peer.sock", "--no-delta", "--json"];
    let mut peer = Running::start(there.modelctl(&args));
    peer.line();
    for (model, tag) in [(layers(None), "v1"), (layers(Some(3)), "v2")] {
        let (hub, reference) = (Hub::start(model), registry.reference(&format!("models/layers:{tag}")));
        hub.run(&here, &["push", NAME, &reference, "--plain-http"]);
        let pull = ["pull", &reference, "--plain-http", "--peer", "unix:peer.sock", "-o", tag];
        let pulled = there.json(&pull);
        assert!(pulled["origin_bytes"].as_u64().unwrap() > 8 * (4 << 20), "{pulled}");
    }
    assert_is(&layers(Some(3)), &there.path("v2"), &["config.json", "model.safetensors"]);
}

#[test]
fn a_second_push_from_a_hub_reads_nothing_back_but_never_leaves_what_is_another() {
    let (scratch, registry, hub) = (Scratch::new(), Registry::start(), Hub::start(large()));
    let reference = registry.reference("models/large:v1");
    let push = ["push", NAME, &reference, "--plain-http"];
    let first = hub.json(&scratch, &push);
    let (read, sent) = (hub.reads(), registry.sent());
    let second = hub.json(&scratch, &push);
    assert_eq!((&second["digest"], &second["sent_bytes"]), (&first["digest"], &Value::from(0)), "{second}");
    assert_eq!(hub.reads(), read + 1, "whether it may be read is asked, and nothing more");
    assert!(registry.sent() - sent < 10_000, "the list of piece trees, and not the weights");

    // Another artifact of the same bytes is under the tag: what is published is the hub's.
    scratch.write("model/model.bin", large().bytes("model.bin"));
    let other = scratch.json(&["build", "model", "-t", &reference, "--plain-http"]);
    assert_ne!(other["digest"], first["digest"]);
    assert_eq!(hub.json(&scratch, &push)["digest"], first["digest"]);
    assert_eq!(registry.digest("models/large", "v1"), first["digest"].as_str().unwrap());
}

#[test]
fn a_part_of_a_hubs_model_is_published() {
    let (scratch, registry, hub) = (Scratch::new(), Registry::start(), Hub::start(small()));
    let reference = registry.reference("models/part:v1");
    let part = ["--kind", "weight,config", "--exclude", "tools/**"];
    let pushed = hub.json(&scratch, &[&["push", NAME, &reference, "--plain-http"], &part[..]].concat());
    assert_eq!(pushed["files"], 2, "{pushed}");
    scratch.stdout(&["pull", &reference, "--plain-http", "--peer", "none", "-o", "part"]);
    assert_is(&small(), &scratch.path("part"), &["config.json", "model.safetensors"]);
    let none = hub.json(&scratch, &["push", NAME, &reference, "--plain-http", "--include", "*.gguf"]);
    assert_eq!(none["exit_code"], 1, "{none}");
    let other = registry.reference("models/other:v1");
    let copied = scratch.json(&["push", &reference, &other, "--plain-http", "--kind", "weight"]);
    assert_eq!(copied["exit_code"], 2, "a manifest is copied as it is: {copied}");
}

/// What a mirror has says nothing of the registry that is written to.
#[test]
fn a_push_from_a_hub_asks_no_mirror() {
    let (scratch, registry, mirror) = (Scratch::new(), Registry::start(), Registry::start());
    let (hub, name) = (Hub::start(small()), "models/small:v1");
    for at in [&mirror, &registry] {
        hub.run(&scratch, &["push", NAME, &at.reference(name), "--plain-http"]);
    }
    let settings = format!(
        "[[registry]]\nlocation = \"{}\"\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n",
        registry.address(),
        mirror.address()
    );
    scratch.write("registries.conf", settings);
    let before = mirror.requests().len();
    let mut again = hub.modelctl(&scratch, &["push", NAME, &registry.reference(name), "--plain-http"]);
    let output = again.env("CONTAINERS_REGISTRIES_CONF", "registries.conf").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(mirror.requests().len(), before);
}

#[test]
fn what_is_published_from_a_hub_is_as_good_as_what_is_built_from_its_files() {
    let (scratch, registry, hub) = (Scratch::new(), Registry::start(), Hub::start(large()));
    let reference = registry.reference("models/large:v1");
    let pushed = hub.json(&scratch, &["push", NAME, &reference, "--plain-http"]);
    assert_eq!(pushed["sent_bytes"], pushed["bytes"], "{pushed}");
    for path in ["config.json", "model.bin"] {
        scratch.write(&format!("model/{path}"), large().bytes(path));
    }
    scratch.stdout(&["build", "model", "-t", &registry.reference("built/large:v1"), "--plain-http"]);
    let layers = |name: &str| {
        let manifest: Value = serde_json::from_slice(&registry.get(&format!("{name}/manifests/v1"))).unwrap();
        manifest["layers"].clone()
    };
    assert_eq!(layers("models/large"), layers("built/large"), "with the same BLAKE3 roots");
    let trees = |name: &str| {
        let hex = registry.digest(name, "v1").trim_start_matches("sha256:").to_owned();
        let index: Value =
            serde_json::from_slice(&registry.get(&format!("{name}/manifests/sha256-{hex}"))).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let trees: Value =
            serde_json::from_slice(&registry.get(&format!("{name}/manifests/{digest}"))).unwrap();
        trees["layers"].clone()
    };
    assert_eq!(trees("models/large"), trees("built/large"));
    // Again: nothing comes from the hub or goes to the registry, and the result is the same.
    let before = hub.reads();
    let again = hub.json(&scratch, &["push", NAME, &reference, "--plain-http"]);
    assert_eq!((&again["digest"], &again["sent_bytes"]), (&pushed["digest"], &Value::from(0)));
    assert!(hub.reads() - before <= 1, "that it may be read is asked");
}

#[test]
fn refusals_of_a_hub_say_what_to_do() {
    let scratch = Scratch::new();
    let gated = Hub::start(small().gated("secret"));
    let open = Hub::start(small());
    let limited = Hub::start_with(|_| Reply::status(429).header("RateLimit", r#""api";r=0;t=0"#));
    let nonsense = Hub::start_with(|_| Reply::body(200, "<html>"));
    let mut said = vec![
        gated.run(&scratch, &["pull", NAME, "-o", "out"]),
        open.run(&scratch, &["pull", "hf://org/absent", "-o", "out"]),
        open.run(&scratch, &["inspect", &format!("{NAME}@v9")]),
        limited.run(&scratch, &["pull", NAME, "-o", "out"]),
        nonsense.run(&scratch, &["pull", NAME, "-o", "out"]),
        open.run(&scratch, &["build", ".", "-t", NAME]),
        open.run(&scratch, &["push", NAME, "oci:out"]),
        open.run(&scratch, &["pull", "oci:out", "--hf-cache"]),
    ];
    let with_token = |token: &str| {
        let output = gated.modelctl(&scratch, &["pull", NAME, "-o", "out"]).env("HF_TOKEN", token).output();
        format!("$ HF_TOKEN={token} modelctl pull\n{}", self::said(&output.unwrap()))
    };
    said.push(with_token("other"));
    let offline = open.modelctl(&scratch, &["pull", NAME, "-o", "out"]).env("HF_HUB_OFFLINE", "1").output();
    said.push(format!("$ HF_HUB_OFFLINE=1 modelctl pull\n{}", self::said(&offline.unwrap())));
    let text = said.join("\n").replace(scratch.path("").to_str().unwrap(), "[DIR]/");
    assert_said!(text);
    assert!(!scratch.path("out").exists());
    assert!(with_token("secret").contains("exit code: 0"));
}

#[test]
fn wrong_bytes_under_a_name_are_an_integrity_failure() {
    let mut wrong = safetensors();
    wrong[1_000_000] ^= 1;
    let (scratch, registry) = (Scratch::new(), Registry::start());
    let hub = Hub::start(small().sending("model.safetensors", wrong));
    let failure = hub.json(&scratch, &["pull", NAME, "-o", "out"]);
    assert_eq!(failure["exit_code"], 3, "{failure}");
    assert!(!scratch.path("out").exists());
    let reference = registry.reference("models/small:v1");
    let failure = hub.json(&scratch, &["push", NAME, &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 3, "{failure}");
    let failure = scratch.json(&["inspect", &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 1, "no manifest was written: {failure}");
    for length in [75, 78] {
        let hub = Hub::start(small().sending("config.json", "x".repeat(length)));
        let failure = hub.json(&scratch, &["pull", NAME, "-o", "out"]);
        assert_eq!(failure["exit_code"], 3, "{failure}");
    }
}

#[test]
fn a_hub_without_ranges_is_read_from_start_to_end() {
    let (scratch, hub) = (Scratch::new(), Hub::start(large().without_ranges()));
    let pulled = hub.json(&scratch, &["pull", NAME, "-o", "out"]);
    assert_eq!(pulled["verified"], true, "{pulled}");
    assert_is(&large(), &scratch.path("out"), &["config.json", "model.bin"]);
}

#[test]
fn a_pull_from_a_hub_that_is_killed_goes_on_where_it_was() {
    let scratch = Scratch::new();
    let (model, sent) = (large(), AtomicU64::new(0));
    // Says nothing more once half of it was sent.
    let hub = Hub::start_with(move |seen| {
        let reply = model.reply(seen);
        let Some(range) = seen.range().filter(|_| seen.path.starts_with("/storage/")) else { return reply };
        let before = sent.fetch_add(range.len() as u64, Ordering::Relaxed);
        if before > LARGE as u64 / 2 { reply.silent(0) } else { reply }
    });
    let pull = Running::start(hub.modelctl(&scratch, &["pull", NAME, "-o", "out", "--json"]));
    let journal = scratch.path(".out.modelctl/journal");
    // A header and one record for each piece.
    let landed = || fs::metadata(&journal).map_or(0, |meta| meta.len().saturating_sub(48) / 48);
    until("half has landed", || landed() >= 18);
    pull.kill();
    let hub = Hub::start(large());
    let result = hub.json(&scratch, &["pull", NAME, "-o", "out"]);
    assert_is(&large(), &scratch.path("out"), &["config.json", "model.bin"]);
    let read = result["origin_bytes"].as_u64().unwrap();
    assert!(read * 10 < LARGE as u64 * 6, "{result}");
}

#[test]
fn peers_of_a_fleet_read_a_hub_once() {
    let (scratch, hub) = (Scratch::new(), Hub::start(large()));
    let mut scheduler = Running::start(scratch.modelctl(&["scheduler", "--listen", "127.0.0.1:0", "--json"]));
    let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
    let mut peers = Vec::new();
    for name in ["a", "b"] {
        let (store, socket) = (format!("{name}.store"), format!("{name}.sock"));
        let args = [
            "peer",
            "--store",
            &store,
            "--socket",
            &socket,
            "--listen",
            "127.0.0.1:0",
            "--scheduler",
            &url,
            "--json",
        ];
        let mut peer = Running::start(scratch.modelctl(&args));
        peer.line();
        peers.push(peer);
    }
    let pulls = ["a", "b"].map(|name| {
        let (socket, out) = (format!("unix:{name}.sock"), format!("{name}.out"));
        Running::start(hub.modelctl(&scratch, &["pull", NAME, "--peer", &socket, "-o", &out, "--json"]))
    });
    let results = pulls.map(Running::result);
    for name in ["a", "b"] {
        assert_is(&large(), &scratch.path(&format!("{name}.out")), &["config.json", "model.bin"]);
    }
    let origin: u64 = results.iter().map(|result| result["origin_bytes"].as_u64().unwrap()).sum();
    assert!(origin <= LARGE as u64 * 105 / 100, "{results:?}");
    // Who may not read the model at the hub gets it from no peer either.
    let gated = Hub::start(large().gated("secret"));
    let args = ["pull", NAME, "--peer", "unix:a.sock", "-o", "c.out"];
    let failure = gated.json(&scratch, &args);
    assert!(failure["hint"].as_str().unwrap().contains("HF_TOKEN"), "{failure}");
    let mut with_token = gated.modelctl(&scratch, &args);
    assert!(with_token.env("HF_TOKEN", "secret").output().unwrap().status.success());
}

/// Runs Python with the hub's own library; `None`, and says why, where it is not installed.
fn python(hub: &Hub, scratch: &Scratch, program: &str, offline: &str) -> Option<String> {
    let mut python = Command::new("python3");
    python.args(["-c", program]).current_dir(scratch.path("")).env("HF_HUB_OFFLINE", offline);
    python.env("HF_ENDPOINT", hub.endpoint()).env("HF_HOME", scratch.path("hf"));
    python.env("HF_HUB_DISABLE_XET", "1").env("HF_HUB_DISABLE_TELEMETRY", "1").env("NO_PROXY", "*");
    python.env_remove("HF_TOKEN").env_remove("HF_HUB_CACHE");
    let output = python.output().ok()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("No module named 'huggingface_hub'") {
        skip("Python has no huggingface_hub: run scripts/setup");
        return None;
    }
    assert!(output.status.success(), "{stderr}");
    Some(String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

const SNAPSHOT: &str = "from huggingface_hub import snapshot_download as s; print(s('org/small'))";

#[test]
fn what_python_has_cached_is_used_and_proved() {
    let (scratch, hub) = (Scratch::new(), Hub::start(small()));
    let Some(snapshot) = python(&hub, &scratch, SNAPSHOT, "0") else { return };
    assert_is(&small(), Path::new(&snapshot), &SMALL);
    let asked = hub.server.seen().len();
    // Offline, nothing is asked of the hub.
    let offline = |args: &[&str]| {
        let output = hub.modelctl(&scratch, args).env("HF_HUB_OFFLINE", "1").arg("--json").output().unwrap();
        let stdout = String::from_utf8(output.stdout.clone()).unwrap();
        let last: Value = serde_json::from_str(stdout.lines().last().unwrap()).unwrap();
        last
    };
    let pulled = offline(&["pull", NAME, "-o", "offline"]);
    assert_eq!(pulled["verified"], true, "{pulled}");
    assert_is(&small(), &scratch.path("offline"), &SMALL);
    assert_eq!(hub.server.seen().len(), asked);
    // Online it is asked what the revision is, and the bytes come from the cache.
    let reads = hub.reads();
    let online = hub.json(&scratch, &["pull", NAME, "-o", "online"]);
    assert_eq!(online["digest"], pulled["digest"], "the same artifact");
    assert!(online["local_bytes"].as_u64().unwrap() >= safetensors().len() as u64, "{online}");
    assert!(hub.reads() - reads <= 1);
    // A registry is filled from it, too.
    let registry = Registry::start();
    let pushed = offline(&["push", NAME, &registry.reference("models/small:v1"), "--plain-http"]);
    assert_eq!(pushed["sent_bytes"], pushed["bytes"], "{pushed}");
    // Of what is damaged there, nothing is taken.
    let blob = scratch.path("hf/hub/models--org--small/blobs").join(Sha256Digest::of(&safetensors()).hex());
    let mut damaged = safetensors();
    damaged[1_000_000] ^= 1;
    fs::write(&blob, &damaged).unwrap();
    let failure = offline(&["pull", NAME, "-o", "damaged"]);
    assert_eq!(failure["exit_code"], 3, "{failure}");
    let mended = hub.json(&scratch, &["pull", NAME, "-o", "mended"]);
    assert_eq!(mended["verified"], true, "{mended}");
    assert_is(&small(), &scratch.path("mended"), &SMALL);
    // What is missing is named.
    fs::remove_file(&blob).unwrap();
    let failure = offline(&["pull", NAME, "-o", "missing"]);
    assert!(failure["error"].as_str().unwrap().contains("cannot read"), "{failure}");
    assert!(failure["causes"][0].as_str().unwrap().contains("`model.safetensors`"), "{failure}");
}

#[test]
fn python_finds_what_was_pulled_into_the_shared_cache() {
    let (scratch, hub) = (Scratch::new(), Hub::start(small()));
    let first = hub.run(&scratch, &["pull", NAME, "--hf-cache"]);
    let again = hub.run(&scratch, &["pull", NAME, "--hf-cache"]);
    let text = format!("{first}\n{again}").replace(scratch.path("").to_str().unwrap(), "[DIR]/");
    assert_said!(text);
    let cache = scratch.path("hf/hub/models--org--small");
    let snapshot = cache.join("snapshots").join(COMMIT);
    assert_is(&small(), &snapshot, &SMALL);
    assert!(fs::read_link(snapshot.join("tools/with space.py")).unwrap().starts_with("../../../blobs"));
    let left: Vec<_> = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "blobs, refs, snapshots and trees: {left:?}");
    for (path, _) in contents(&cache.join("blobs")) {
        assert_eq!(fs::metadata(cache.join("blobs").join(path)).unwrap().nlink(), 1);
    }
    let asked = hub.server.seen().len();
    let Some(found) = python(&hub, &scratch, SNAPSHOT, "1") else { return };
    assert_eq!(Path::new(&found), snapshot);
    let one = "from huggingface_hub import hf_hub_download as d; print(d('org/small', 'model.safetensors'))";
    let found = python(&hub, &scratch, one, "1").unwrap();
    assert!(fs::read(found).unwrap() == safetensors());
    assert_eq!(hub.server.seen().len(), asked, "all of that without the hub");
    // Online Python has nothing to fetch.
    let reads = hub.reads();
    python(&hub, &scratch, SNAPSHOT, "0").unwrap();
    assert_eq!(hub.reads(), reads);
    // Damage is found and mended.
    let blob = cache.join("blobs").join(Sha256Digest::of(&safetensors()).hex());
    fs::write(&blob, vec![7; safetensors().len()]).unwrap();
    let mended = hub.run(&scratch, &["pull", NAME, "--hf-cache"]);
    assert!(mended.contains("damaged") && mended.contains("exit code: 0"), "{mended}");
    assert!(fs::read(&blob).unwrap() == safetensors());
}
