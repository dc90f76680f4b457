//! Registries that are not Debian's, and tools that are not ours: go-containerregistry's `crane` with its own registry,
//! the third version of `distribution`, and `oras`.
//!
//! `scripts/setup` builds them; without one its tests are skipped, and say so.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
};

use serde_json::{Value, json};

use crate::support::{Scratch, skip};

/// How long a server may take to say where it listens.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// A program that `scripts/setup` has built, if it has.
pub(crate) fn built(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache")))?;
    let path = cache.join("modelcast/go/bin").join(name);
    if path.exists() {
        return Some(path);
    }
    skip(&format!("`{name}` is not built: run `scripts/setup`"));
    None
}

/// A server on a free port of loopback, ended with its test.
struct Server {
    process: Child,
    address: String,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; then the test has failed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// `after` is what its log has before its port.
    fn start(mut command: Command, dir: tempfile::TempDir, after: &'static str) -> Self {
        let mut process = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        let (sender, receiver) = mpsc::channel();
        // To the end, so that it never waits for somebody to read its log.
        thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                let Some((_, rest)) = line.split_once(after) else { continue };
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                let _ = sender.send(port);
            }
        });
        let port = receiver.recv_timeout(PATIENCE).expect("it says where it listens");
        Self { process, address: format!("127.0.0.1:{port}"), _dir: dir }
    }

    /// The registry of go-containerregistry, an implementation of its own, as `crane` starts it: without the referrers
    /// API.
    fn crane() -> Option<Self> {
        let (crane, dir) = (built("crane")?, tempfile::tempdir().unwrap());
        let mut command = Command::new(crane);
        command.args(["registry", "serve", "--address", "127.0.0.1:0", "--disk"]).arg(dir.path());
        Some(Self::start(command, dir, "serving on port "))
    }

    /// The same with the referrers API.
    fn with_referrers() -> Option<Self> {
        let (registry, dir) = (built("referrers-registry")?, tempfile::tempdir().unwrap());
        let mut command = Command::new(registry);
        command.arg(dir.path());
        Some(Self::start(command, dir, "serving on port "))
    }

    /// The third version of `distribution`, whose second Debian has.
    fn distribution() -> Option<Self> {
        let (registry, dir) = (built("registry")?, tempfile::tempdir().unwrap());
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"}}\n",
            dir.path().join("storage").display()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(registry);
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        Some(Self::start(command, dir, "listening on 127.0.0.1:"))
    }

    fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    fn get(&self, path: &str) -> (u16, Vec<u8>) {
        let url = format!("http://{}/v2/{path}", self.address);
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
        let args = ["-sS", "-H", accept, "--noproxy", "*", "-w", "\n%{http_code}", &url];
        let output = Command::new("curl").args(args).output().expect("curl");
        let at = output.stdout.iter().rposition(|byte| *byte == b'\n').expect("curl says the status");
        let status = String::from_utf8_lossy(&output.stdout[at + 1..]).parse().unwrap();
        (status, output.stdout[..at].to_vec())
    }
}

fn run(program: &Path, args: &[&str], dir: &Path) -> String {
    let output = Command::new(program).args(args).current_dir(dir).env("HOME", dir).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} {args:?}: {stderr}", program.display());
    String::from_utf8(output.stdout).unwrap()
}

fn pull<'a>(reference: &'a str, dir: &'a str) -> Vec<&'a str> {
    vec!["pull", reference, "-o", dir, "--plain-http", "--peer", "none"]
}

/// All that a registry is used for, with one of another kind.
fn serves_all(server: &Server, has_referrers: bool) {
    let scratch = Scratch::with_model();
    let (first, other) = (server.reference("models/small:v1"), server.reference("other/small:v1"));
    let built = scratch.json(&["build", "model", "-t", &first, "--plain-http"]);
    assert_eq!(built["sent_bytes"], built["bytes"], "{built}");
    let again = scratch.json(&["build", "model", "-t", &first, "--plain-http"]);
    assert_eq!((&again["digest"], &again["sent_bytes"]), (&built["digest"], &json!(0)), "{again}");

    // The piece trees lie where this registry has such things, and are found there.
    let hex = built["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let (status, _) = server.get(&format!("models/small/referrers/sha256:{hex}"));
    assert_eq!(status == 200, has_referrers, "{status}");
    let (fallback, index) = server.get(&format!("models/small/manifests/sha256-{hex}"));
    // Also where there is such an API, if the registry does not say that it has noted the subject.
    assert_eq!(fallback, 200);
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"][0]["artifactType"], "application/vnd.modelcast.pieces.v1");
    let plan = scratch.json(&[&pull(&first, "planned")[..], &["--dry-run"]].concat());
    assert_eq!(plan["proved_by"], "piece", "{plan}");

    let pulled = scratch.json(&pull(&first, "pulled"));
    assert_eq!((&pulled["verified"], &pulled["origin_bytes"]), (&json!(true), &pulled["bytes"]), "{pulled}");
    scratch.assert_pulled("model", "pulled");
    let tensors = scratch.json(&["inspect", &first, "--plain-http", "--tensors"]);
    assert_eq!(tensors["tensors"]["count"], 2, "headers are read by range, or without");
    assert_eq!(scratch.json(&["verify", &first, "pulled", "--plain-http"])["verified"], true);

    // Within it nothing is sent where it mounts; elsewhere the bytes stream through, and what belongs to it comes along.
    let copied = scratch.json(&["push", &first, &other, "--plain-http"]);
    assert_eq!(copied["digest"], built["digest"], "{copied}");
    let plan = scratch.json(&[&pull(&other, "planned")[..], &["--dry-run"]].concat());
    assert_eq!(plan["proved_by"], "piece", "the trees are copied, too: {plan}");
    scratch.json(&pull(&other, "of-other"));
    scratch.assert_pulled("model", "of-other");

    let absent = scratch.json(&["inspect", &server.reference("models/absent:v1"), "--plain-http"]);
    assert_eq!(absent["exit_code"], 1, "{absent}");
}

#[test]
fn the_registry_of_go_containerregistry_serves_all() {
    let Some(server) = Server::crane() else { return };
    serves_all(&server, false);
}

#[test]
fn a_registry_with_the_referrers_api_serves_all() {
    let Some(server) = Server::with_referrers() else { return };
    serves_all(&server, true);
}

#[test]
fn the_third_version_of_distribution_serves_all() {
    let Some(server) = Server::distribution() else { return };
    serves_all(&server, false);
}

#[test]
fn what_crane_copies_is_what_we_wrote_and_it_finds_nothing_wrong_with_it() {
    let (Some(crane), Some(server)) = (built("crane"), Server::distribution()) else { return };
    let scratch = Scratch::with_model();
    let (ours, theirs) = (server.reference("models/ours:v1"), server.reference("copied/ours:v1"));
    let built = scratch.json(&["build", "model", "-t", &ours, "--plain-http"]);
    let dir = scratch.path(".");
    run(&crane, &["copy", "--insecure", &ours, &theirs], &dir);
    assert_eq!(
        run(&crane, &["digest", "--insecure", &theirs], &dir).trim(),
        built["digest"].as_str().unwrap()
    );
    let manifest: Value =
        serde_json::from_str(&run(&crane, &["manifest", "--insecure", &theirs], &dir)).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    scratch.json(&pull(&theirs, "of-crane"));
    scratch.assert_pulled("model", "of-crane");
    // Into a layout, where it keeps the manifest as it is, and back.
    run(&crane, &["pull", "--insecure", "--format", "oci", &ours, "layout"], &dir);
    scratch.json(&pull(&format!("oci:layout@{}", built["digest"].as_str().unwrap()), "of-layout"));
    scratch.assert_pulled("model", "of-layout");
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let pushed = server.reference("pushed/ours:v1");
    run(&crane, &["push", "--insecure", "--index", "out", &pushed], &dir);
    scratch.json(&pull(&pushed, "of-push"));
    scratch.assert_pulled("model", "of-push");
}

#[test]
fn files_of_oras_are_pulled_and_ours_are_pulled_by_oras() {
    let (Some(oras), Some(server)) = (built("oras"), Server::crane()) else { return };
    let scratch = Scratch::with_model();
    let theirs = server.reference("oras/small:v1");
    let model = scratch.path("model");
    let mut args = vec!["push", "--plain-http", &theirs];
    // A directory is packed, with its own annotation; the rest are files with a title.
    args.extend(["model.safetensors", "config.json", "README.md", "empty.txt", ".gitattributes", "tools"]);
    run(&oras, &args, &model);
    let pulled = scratch.json(&pull(&theirs, "of-oras"));
    assert_eq!(pulled["verified"], true, "{pulled}");
    scratch.assert_pulled("model", "of-oras");

    let ours = server.reference("models/small:v1");
    scratch.stdout(&["build", "model", "-t", &ours, "--plain-http"]);
    run(&oras, &["pull", "--plain-http", &ours, "-o", "by-oras"], &scratch.path("."));
    scratch.assert_pulled("model", "by-oras");
    let copied = server.reference("copied/small:v1");
    let both = ["--from-plain-http", "--to-plain-http"];
    run(&oras, &[&["copy", "--recursive"], &both[..], &[&ours, &copied]].concat(), &scratch.path("."));
    let plan = scratch.json(&[&pull(&copied, "planned")[..], &["--dry-run"]].concat());
    assert_eq!(plan["proved_by"], "piece", "with its referrers: {plan}");
    // Into a layout of theirs, which we read.
    run(&oras, &["copy", "--from-plain-http", "--to-oci-layout", &ours, "layout:v1"], &scratch.path("."));
    scratch.json(&pull("oci:layout:v1", "of-their-layout"));
    scratch.assert_pulled("model", "of-their-layout");
    let listed = run(&oras, &["discover", "--plain-http", "--format", "json", &ours], &scratch.path("."));
    assert!(listed.contains("application/vnd.modelcast.pieces.v1"), "{listed}");
}
