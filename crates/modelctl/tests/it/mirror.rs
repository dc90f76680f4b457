//! Peers that stand in for a registry, and the clients that others wrote: skopeo, curl, and requests byte for byte.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
    time::Duration,
};

use modelpack::digest::Sha256Digest;
use serde_json::Value;

use crate::{
    door::Door,
    running::Running,
    support::{PATIENCE, Registry, Scratch, contents, said, skip, until},
};

pub(crate) const LARGE: usize = (24 << 20) + 12_345;
pub(crate) const NAME: &str = "models/drill:v1";
pub(crate) const REPOSITORY: &str = "models/drill";

/// A model in a registry behind a door, and peers that stand in for it, all of one fleet.
pub(crate) struct Fleet {
    _scheduler: Mutex<Running>,
    /// Of no use to two threads at once, but this whole value is.
    peers: Vec<Mutex<Running>>,
    /// Where each is a mirror of the registry, and a hub.
    pub(crate) mirrors: Vec<String>,
    pub(crate) hubs: Vec<String>,
    pub(crate) registry: Registry,
    pub(crate) door: Door,
    pub(crate) scratch: Scratch,
}

impl Fleet {
    /// The door lets `bytes` through until it is opened.
    pub(crate) fn start(count: usize, bytes: u64) -> Self {
        let scratch = Scratch::new();
        scratch.write_large_model("model", LARGE);
        Self::around(scratch, Registry::start(), count, bytes)
    }

    fn around(scratch: Scratch, registry: Registry, count: usize, bytes: u64) -> Self {
        let build = ["build", "model", "-t", &registry.reference(NAME), "--plain-http"];
        let output = scratch.modelctl(&build).env("DOCKER_CONFIG", scratch.path("docker")).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        let door = Door::before(&registry, bytes);
        let listen = ["scheduler", "--listen", "127.0.0.1:0", "--json"];
        let mut scheduler = Running::start(scratch.modelctl(&listen));
        let url = format!("http://{}", scheduler.line()["listening"].as_str().unwrap());
        let upstream = format!("http://{}", door.reference("").trim_end_matches('/'));
        let rule = door.reference("models/{id}:{rev}");
        let (mut peers, mut mirrors, mut hubs) = (Vec::new(), Vec::new(), Vec::new());
        for number in 0..count {
            let (store, socket) = (format!("store-{number}"), format!("{number}.sock"));
            let mut peer = Running::start(scratch.modelctl(&[
                "peer",
                "--store",
                &store,
                "--socket",
                &socket,
                "--scheduler",
                &url,
                "--json",
                "--oci-listen",
                "127.0.0.1:0",
                "--oci-upstream",
                &upstream,
                "--hub-listen",
                "127.0.0.1:0",
                "--hub-models",
                &rule,
            ]));
            let ready = peer.line();
            let at = |face: &str| ready[face].as_str().unwrap().to_owned();
            mirrors.push(at("oci"));
            hubs.push(at("hub"));
            peers.push(Mutex::new(peer));
        }
        Self { _scheduler: Mutex::new(scheduler), peers, mirrors, hubs, registry, door, scratch }
    }

    /// The manifest as the registry has it.
    pub(crate) fn manifest(&self) -> Value {
        serde_json::from_slice(&self.registry.get(&format!("{REPOSITORY}/manifests/v1"))).unwrap()
    }

    /// The digest of the large blob.
    pub(crate) fn weights(&self) -> String {
        let manifest = self.manifest();
        let layers = manifest["layers"].as_array().unwrap();
        let large = layers.iter().find(|layer| layer["size"].as_u64() == Some(LARGE as u64)).unwrap();
        large["digest"].as_str().unwrap().to_owned()
    }

    /// What a mirror answers.
    pub(crate) fn get(&self, mirror: usize, path: &str, headers: &[&str]) -> Answer {
        ask(&self.mirrors[mirror], "GET", path, headers)
    }

    fn weights_path(&self) -> String {
        format!("/v2/{REPOSITORY}/blobs/{}", self.weights())
    }

    /// The bytes of the large blob.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        fs::read(self.scratch.path("model/model.bin")).unwrap()
    }
}

/// An answer as it came.
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: BTreeMap<String, String>,
    /// All of it that came, which is less than was said if the connection broke.
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The code of an error in the specification's form.
    pub(crate) fn code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }

    fn is_whole(&self) -> bool {
        self.header("content-length").parse() == Ok(self.body.len())
    }
}

/// One request on a connection of its own, without the help of a library that would mend anything.
pub(crate) fn ask(address: &str, method: &str, path: &str, headers: &[&str]) -> Answer {
    let mut reader = BufReader::new(begin(address, method, path, headers));
    let (status, headers) = head(&mut reader);
    let mut body = Vec::new();
    if method != "HEAD" {
        // An error is a connection that broke.
        let _ = reader.read_to_end(&mut body);
    }
    Answer { status, headers, body }
}

/// Sends a request.
fn begin(address: &str, method: &str, path: &str, headers: &[&str]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (first, host) = (format!("{method} {path} HTTP/1.1"), format!("Host: {address}"));
    let lines = [&[first.as_str(), &host, "Connection: close"], headers, &["", ""]];
    let request = lines.concat().join("\r\n");
    socket.write_all(request.as_bytes()).unwrap();
    socket
}

fn head(reader: &mut BufReader<TcpStream>) -> (u16, BTreeMap<String, String>) {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {line}")).parse().unwrap();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    (status, headers)
}

pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}; run scripts/setup"));
    assert!(output.status.success(), "{program} {args:?}\n{}", said(&output));
}

#[test]
fn clients_that_know_nothing_pull_through_the_fleet_and_the_origin_gives_it_once() {
    let fleet = Fleet::start(3, 0);
    fleet.door.open();
    let before = fleet.registry.sent();
    let scratch = &fleet.scratch;
    let path = |rel: &str| scratch.path(rel).display().to_string();
    thread::scope(|scope| {
        scope.spawn(|| {
            let from = format!("docker://{}/{NAME}", fleet.mirrors[0]);
            let to = format!("oci:{}:v1", path("layout"));
            run("skopeo", &["copy", "-q", "--src-tls-verify=false", &from, &to]);
        });
        scope.spawn(|| {
            let from = format!("http://{}/v2/{REPOSITORY}", fleet.mirrors[1]);
            run(
                "curl",
                &["-sSf", "--noproxy", "*", "-o", &path("manifest"), &format!("{from}/manifests/v1")],
            );
            let weights = format!("{from}/blobs/{}", fleet.weights());
            let curl = ["-sSf", "--noproxy", "*", "--retry", "3"];
            run("curl", &[&curl[..], &["-r", "0-9999999", "-o", &path("weights"), &weights]].concat());
            // Goes on where it stopped, as any of them does after a failure.
            run("curl", &[&curl[..], &["-C", "-", "-o", &path("weights"), &weights]].concat());
        });
        scope.spawn(|| {
            let from = format!("{}/{NAME}", fleet.mirrors[2]);
            scratch.stdout(&["pull", &from, "--plain-http", "--peer", "none", "-o", "pulled"]);
        });
    });
    let sent = fleet.registry.sent() - before;
    let model: u64 = contents(&scratch.path("model")).iter().map(|(_, bytes)| bytes.len() as u64).sum();
    assert!(sent <= model + model / 100, "the origin gave {sent} bytes of blobs for a model of {model}");
    scratch.stdout(&["pull", "oci:./layout:v1", "-o", "of-skopeo"]);
    for dir in ["of-skopeo", "pulled"] {
        scratch.assert_pulled("model", dir);
    }
    assert!(fs::read(scratch.path("weights")).unwrap() == fleet.bytes(), "curl has something else");
    assert_eq!(
        Sha256Digest::of(&fs::read(scratch.path("manifest")).unwrap()).to_string(),
        fleet.registry.digest(REPOSITORY, "v1")
    );
}

#[test]
fn ranges_and_questions_are_answered_as_a_registry_does() {
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    let digest = fleet.registry.digest(REPOSITORY, "v1");
    assert_eq!(fleet.get(0, "/v2/", &[]).status, 200);
    for name in ["v1", &digest] {
        let path = format!("/v2/{REPOSITORY}/manifests/{name}");
        for method in ["GET", "HEAD"] {
            let answer = ask(&fleet.mirrors[0], method, &path, &[]);
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("docker-content-digest"), digest);
            assert_eq!(answer.header("content-type"), "application/vnd.oci.image.manifest.v1+json");
            assert_eq!(answer.header("warning"), "");
        }
    }
    let (path, bytes) = (fleet.weights_path(), fleet.bytes());
    let head = ask(&fleet.mirrors[0], "HEAD", &path, &[]);
    assert_eq!((head.status, head.header("content-length")), (200, LARGE.to_string().as_str()));
    let etag = head.header("etag").to_owned();
    let check = |range: &str, more: &str, status: u16, expected: &[u8]| {
        let answer = fleet.get(0, &path, &[&format!("Range: bytes={range}"), more]);
        assert_eq!(answer.status, status, "{range}");
        assert!(answer.body == expected, "{range}: {} bytes", answer.body.len());
    };
    let no = "X-Nothing: here";
    check("0-0", no, 206, &bytes[..1]);
    check("-5", no, 206, &bytes[LARGE - 5..]);
    // Across the end of a piece, and of a portion that is read at once.
    check("1048000-1049000", no, 206, &bytes[1_048_000..=1_049_000]);
    check("200000-900000", &format!("If-Range: {etag}"), 206, &bytes[200_000..=900_000]);
    check("200000-900000", "If-Range: \"another\"", 200, &bytes);
    let past = fleet.get(0, &path, &[&format!("Range: bytes={LARGE}-")]);
    assert_eq!((past.status, past.code().as_str()), (416, "RANGE_INVALID"));
    assert_eq!(past.header("content-range"), format!("bytes */{LARGE}"));
    let pushed = ask(&fleet.mirrors[0], "POST", &format!("/v2/{REPOSITORY}/blobs/uploads/"), &[]);
    assert_eq!((pushed.status, pushed.code().as_str()), (405, "UNSUPPORTED"));
    let nobody = format!("/v2/{REPOSITORY}/blobs/{}", Sha256Digest::of(b"nobody has this"));
    assert_eq!(
        (fleet.get(0, &nobody, &[]).status, fleet.get(0, &nobody, &[]).code()),
        (404, "BLOB_UNKNOWN".into())
    );
    // docker-registry knows neither pages nor referrers; the list of the latter is under a tag.
    let list = digest.replace(':', "-");
    let page = fleet.get(0, &format!("/v2/{REPOSITORY}/tags/list?n=1"), &[]);
    let tags: Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!(tags, serde_json::json!({ "name": REPOSITORY, "tags": [list] }));
    let next = page.header("link").trim_start_matches('<').split_once(">; rel=\"next\"").unwrap().0;
    let page = fleet.get(0, next, &[]);
    let tags: Value = serde_json::from_slice(&page.body).unwrap();
    assert_eq!((&tags["tags"], page.header("link")), (&serde_json::json!(["v1"]), ""));
    let referrers = |query: &str| {
        let answer = fleet.get(0, &format!("/v2/{REPOSITORY}/referrers/{digest}{query}"), &[]);
        let index: Value = serde_json::from_slice(&answer.body).unwrap();
        (index["manifests"].as_array().unwrap().len(), answer.header("oci-filters-applied").to_owned())
    };
    assert_eq!(referrers(""), (1, String::new()));
    let trees = "?artifactType=application/vnd.modelcast.pieces.v1";
    assert_eq!(referrers(trees), (1, "artifactType".to_owned()));
    assert_eq!(referrers("?artifactType=something/else"), (0, "artifactType".to_owned()));
    let elsewhere = fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v1?ns=elsewhere.example.org"), &[]);
    assert_eq!((elsewhere.status, elsewhere.code().as_str()), (404, "NAME_UNKNOWN"));
    let upstream = fleet.door.reference("").trim_end_matches('/').replace(':', "%3A");
    assert_eq!(fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v1?ns={upstream}"), &[]).status, 200);
}

#[test]
fn a_range_comes_when_its_pieces_are_proved_and_not_when_all_is_there() {
    // A quarter comes through.
    let fleet = Fleet::start(1, LARGE as u64 / 4);
    assert_eq!(fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v1"), &[]).status, 200);
    let mut all = BufReader::new(begin(&fleet.mirrors[0], "GET", &fleet.weights_path(), &[]));
    assert_eq!(head(&mut all).0, 200);
    let mut first = vec![0; 1 << 20];
    all.read_exact(&mut first).unwrap();
    assert!(first == fleet.bytes()[..1 << 20], "the first piece");
    fleet.door.open();
    let mut rest = Vec::new();
    all.read_to_end(&mut rest).unwrap();
    assert!(rest == fleet.bytes()[1 << 20..], "{} bytes", rest.len());
}

#[test]
fn what_cannot_be_proved_piece_by_piece_comes_when_the_whole_is() {
    let fleet = Fleet::start(2, 0);
    fleet.door.open();
    // As other tools write it.
    let mut manifest = fleet.manifest();
    for layer in manifest["layers"].as_array_mut().unwrap() {
        layer["annotations"].as_object_mut().unwrap().remove("org.modelcast.blake3").expect("ours has it");
    }
    fleet.registry.put_manifest(REPOSITORY, "foreign", &manifest.to_string());
    let before = fleet.registry.sent();
    thread::scope(|scope| {
        for mirror in 0..2 {
            let fleet = &fleet;
            scope.spawn(move || {
                let path = format!("/v2/{REPOSITORY}/manifests/foreign");
                assert_eq!(fleet.get(mirror, &path, &[]).status, 200);
                assert!(fleet.get(mirror, &fleet.weights_path(), &[]).body == fleet.bytes());
            });
        }
    });
    let sent = fleet.registry.sent() - before;
    assert!(sent <= LARGE as u64 * 101 / 100, "the origin gave {sent} bytes of a blob of {LARGE}");
}

#[test]
fn wrong_bytes_of_the_registry_reach_no_client() {
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    fleet.registry.damage(fleet.weights().trim_start_matches("sha256:"));
    assert_eq!(fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v1"), &[]).status, 200);
    let answer = fleet.get(0, &fleet.weights_path(), &[]);
    assert!(!answer.is_whole(), "the connection breaks, so that the client knows");
    assert!(fleet.bytes().starts_with(&answer.body), "nothing that came is wrong");
}

#[test]
fn private_models_are_for_those_whom_the_registry_lets_in() {
    let scratch = Scratch::new();
    scratch.write_large_model("model", LARGE);
    let registry = Registry::with_login();
    // `me:secret`.
    let proof = "bWU6c2VjcmV0";
    scratch.write(
        "docker/config.json",
        format!(r#"{{"auths":{{"{}":{{"auth":"{proof}"}}}}}}"#, registry.address()),
    );
    let fleet = Fleet::around(scratch, registry, 1, 0);
    fleet.door.open();
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let as_me = format!("Authorization: Basic {proof}");
    let refused = |path: &str, headers: &[&str]| {
        let answer = fleet.get(0, path, headers);
        assert_eq!((answer.status, answer.code().as_str()), (401, "UNAUTHORIZED"), "{path}");
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"test\"", "as the registry says it");
    };
    refused("/v2/", &[]);
    refused(&path, &[]);
    refused(&path, &["Authorization: Basic eW91OnNlY3JldA=="]);
    let manifest = fleet.get(0, &path, &[&as_me]);
    assert_eq!(manifest.status, 200);
    let manifest: Value = serde_json::from_slice(&manifest.body).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let large = layers.iter().find(|layer| layer["size"].as_u64() == Some(LARGE as u64)).unwrap();
    let weights = format!("/v2/{REPOSITORY}/blobs/{}", large["digest"].as_str().unwrap());
    assert!(fleet.get(0, &weights, &[&as_me]).body == fleet.bytes());
    // It is all here, and still nobody else's.
    let config = format!("/v2/{REPOSITORY}/blobs/{}", manifest["config"]["digest"].as_str().unwrap());
    for path in [&path, &weights, &config, &format!("/v2/{REPOSITORY}/tags/list")] {
        refused(path, &[]);
        assert_eq!(fleet.get(0, path, &[&as_me]).status, 200, "{path}");
    }
    let from = format!("docker://{}/{NAME}", fleet.mirrors[0]);
    let to = format!("dir:{}", fleet.scratch.path("of-skopeo").display());
    run("skopeo", &["copy", "-q", "--src-tls-verify=false", "--src-creds", "me:secret", &from, &to]);
}

#[test]
fn what_is_here_is_had_when_the_registry_is_gone() {
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    let digest = fleet.get(0, &path, &[]).header("docker-content-digest").to_owned();
    let weights = fleet.weights_path();
    assert!(fleet.get(0, &weights, &[]).body == fleet.bytes());
    fleet.door.close();
    until("what the registry said of the tag is old", || {
        let answer = fleet.get(0, &path, &[]);
        assert_eq!(answer.status, 200);
        answer.header("warning").starts_with("111 ")
    });
    assert_eq!(fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/{digest}"), &[]).status, 200);
    assert!(fleet.get(0, &weights, &[]).body == fleet.bytes());
    assert_eq!(fleet.get(0, "/v2/", &[]).status, 200);
    let other = fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v2"), &[]);
    assert_eq!((other.status, other.code().as_str()), (503, "UNAVAILABLE"));
}

#[test]
fn clients_that_go_away_cost_nobody_anything() {
    let fleet = Fleet::start(2, LARGE as u64 / 4);
    let path = format!("/v2/{REPOSITORY}/manifests/v1");
    for mirror in 0..2 {
        assert_eq!(fleet.get(mirror, &path, &[]).status, 200);
    }
    let weights = fleet.weights_path();
    let before = fleet.registry.sent();
    // Those go away in the middle of what they were promised.
    for mirror in 0..2 {
        for _ in 0..20 {
            let mut client = BufReader::new(begin(&fleet.mirrors[mirror], "GET", &weights, &[]));
            assert_eq!(head(&mut client).0, 200);
        }
    }
    fleet.door.open();
    // One that reads nothing keeps nobody from anything.
    let _lazy = begin(&fleet.mirrors[0], "GET", &weights, &[]);
    for mirror in 0..2 {
        assert!(fleet.get(mirror, &weights, &[]).body == fleet.bytes());
    }
    let sent = fleet.registry.sent() - before;
    assert!(sent <= LARGE as u64 * 101 / 100, "the origin gave {sent} bytes of a blob of {LARGE}");
}

#[test]
fn a_thousand_small_questions_are_answered_and_the_registry_hears_of_few() {
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    assert_eq!(fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/v1"), &[]).status, 200);
    let (weights, bytes) = (fleet.weights_path(), fleet.bytes());
    assert!(fleet.get(0, &weights, &[]).body == bytes);
    let before = fleet.registry.requests().len();
    thread::scope(|scope| {
        for client in 0..4_usize {
            let (fleet, weights, bytes) = (&fleet, &weights, &bytes);
            scope.spawn(move || {
                for number in 0..250 {
                    let start = (client * 250 + number) * 24_001;
                    let range = format!("Range: bytes={start}-{}", start + 99);
                    let answer = fleet.get(0, weights, &[&range]);
                    assert!(answer.status == 206 && answer.body == bytes[start..start + 100], "{range}");
                }
            });
        }
    });
    let asked = fleet.registry.requests().len() - before;
    assert!(asked <= 10, "the registry was asked {asked} times");
}

/// The manifest of a container image with one layer.
fn image(config: &str, layer: &str, size: usize) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{layer}","size":{size}}}]}}"#
    )
}

#[test]
fn container_images_are_left_to_their_registry_and_small_things_are_handed_on() {
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    let config = fleet.registry.config(REPOSITORY, "v1");
    let weights = fleet.weights();
    fleet.registry.put_manifest(REPOSITORY, "image", &image(&config, &weights, LARGE));
    let answer = fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/image"), &[]);
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (404, "MANIFEST_UNKNOWN"),
        "containerd goes on to the origin"
    );
    // The list of piece trees is under a tag of its own, and is no model.
    let subject = fleet.registry.digest(REPOSITORY, "v1").replace(':', "-");
    let list = fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/{subject}"), &[]);
    assert_eq!(list.status, 200);
    let list: Value = serde_json::from_slice(&list.body).unwrap();
    let trees = list["manifests"][0]["digest"].as_str().unwrap();
    let trees = fleet.get(0, &format!("/v2/{REPOSITORY}/manifests/{trees}"), &[]);
    assert_eq!(trees.status, 200);
    let trees: Value = serde_json::from_slice(&trees.body).unwrap();
    let layer = &trees["layers"][0];
    let tree = fleet.get(0, &format!("/v2/{REPOSITORY}/blobs/{}", layer["digest"].as_str().unwrap()), &[]);
    assert_eq!((tree.status, tree.body.len() as u64), (200, layer["size"].as_u64().unwrap()));
}

#[test]
fn containerd_takes_its_mirror_for_models_and_the_registry_for_images() {
    if Command::new("containerd").arg("--version").output().is_err() {
        return skip("containerd is not installed");
    }
    let fleet = Fleet::start(1, 0);
    fleet.door.open();
    let config = fleet.registry.config(REPOSITORY, "v1");
    fleet.registry.put_manifest(REPOSITORY, "image", &image(&config, &fleet.weights(), LARGE));
    let path = |rel: &str| fleet.scratch.path(rel).display().to_string();
    let upstream = fleet.door.reference("").trim_end_matches('/').to_owned();
    let hosts = format!(
        "server = \"http://{upstream}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        fleet.mirrors[0]
    );
    fleet.scratch.write(&format!("certs/{upstream}/hosts.toml"), hosts);
    let settings = format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
         \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n",
        path("root"),
        path("state"),
        path("c.sock"),
        path("t.sock")
    );
    fleet.scratch.write("containerd.toml", settings);
    let mut daemon = Command::new("containerd");
    daemon.args(["--config", &path("containerd.toml")]);
    let daemon = Running::start(daemon);
    until("containerd serves", || daemon.logged("containerd successfully booted") > 0);
    let fetch = |tag: &str| {
        let reference = format!("{upstream}/{REPOSITORY}:{tag}");
        run("ctr", &["-a", &path("c.sock"), "content", "fetch", "--hosts-dir", &path("certs"), &reference]);
    };
    // The registry says in its log who asked: the mirror, or containerd by itself.
    fetch("v1");
    assert_eq!(fleet.registry.asked_by("containerd"), 0, "all of the model came by the mirror");
    let blob = path(&format!("root/io.containerd.content.v1.content/blobs/sha256/{}", &fleet.weights()[7..]));
    assert!(fs::read(blob).unwrap() == fleet.bytes());
    fetch("image");
    assert!(fleet.registry.asked_by("containerd") > 0, "the image came from the registry");
}

#[test]
fn a_peer_that_ends_ends_its_mirror() {
    let mut fleet = Fleet::start(1, 0);
    let mirror = fleet.mirrors[0].clone();
    let peer = fleet.peers.remove(0).into_inner().unwrap();
    peer.signal(crate::running::Signal::TERM);
    let output = peer.end_within(Duration::from_secs(10));
    assert!(output.status.success(), "{}", said(&output));
    assert!(TcpStream::connect(mirror).is_err(), "nobody listens there any more");
}
