//! A scratch directory with a small model in it, and `modelctl` run there.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

/// How long anything that is waited for may take: far more than it does.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A directory of its own for one test.
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
}

impl Scratch {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// One with a model in `model`.
    pub(crate) fn with_model() -> Self {
        let scratch = Self::new();
        scratch.write_model("model");
        scratch
    }

    /// The path of something in it.
    pub(crate) fn path(&self, rel: &str) -> PathBuf {
        self.dir.path().join(rel)
    }

    /// Writes a file, and the directories above it.
    pub(crate) fn write(&self, rel: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(rel);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Files of each kind, one of them of two pieces, and what belongs to other tools.
    pub(crate) fn write_model(&self, dir: &str) {
        let write = |name: &str, bytes: &[u8]| self.write(&format!("{dir}/{name}"), bytes);
        write(
            "config.json",
            br#"{"architectures":["BertModel"],"model_type":"bert","torch_dtype":"float32"}"#,
        );
        write("model.safetensors", &safetensors());
        write("README.md", b"# A small model\n");
        write("empty.txt", b"");
        write("tools/convert.py", b"print('hello')\n");
        fs::set_permissions(self.path(&format!("{dir}/tools/convert.py")), fs::Permissions::from_mode(0o755))
            .unwrap();
        write(".gitattributes", b"*.safetensors filter=lfs\n");
        write(".git/HEAD", b"ref: refs/heads/main\n");
        write(".modelctl/complete.tmp", b"");
        write(".cache/huggingface/download.lock", b"");
    }

    /// A model large enough that something can happen while it moves, but cheap to make: noise.
    pub(crate) fn write_large_model(&self, dir: &str, bytes: usize) {
        let mut weights = vec![0; bytes];
        blake3::Hasher::new().finalize_xof().fill(&mut weights);
        self.write(&format!("{dir}/model.bin"), weights);
        self.write(&format!("{dir}/config.json"), "{}");
    }

    /// Compares what was pulled with the model, byte for byte.
    pub(crate) fn assert_pulled(&self, model: &str, dir: &str) {
        let of_others = [".git", ".modelctl", ".cache"];
        let [expected, found] = [model, dir].map(|dir| {
            let mut contents = contents(&self.path(dir));
            contents.retain(|(path, _)| of_others.iter().all(|name| !path.starts_with(name)));
            contents
        });
        // Not by `assert_eq`, which would print the bytes.
        assert!(found == expected, "{dir} is not {model}");
    }

    /// `modelctl` in this directory, with nobody's settings but these.
    pub(crate) fn modelctl(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_modelctl"));
        for (name, _) in std::env::vars_os() {
            let name_text = name.to_string_lossy();
            if name_text.starts_with("MODELCTL_")
                || name_text.starts_with("HF_")
                || ["SOURCE_DATE_EPOCH", "COLUMNS", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"]
                    .contains(&&*name_text)
                || ["XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"].contains(&&*name_text)
            {
                command.env_remove(name);
            }
        }
        command.args(args).current_dir(self.dir.path()).env("HOME", self.dir.path()).stdin(Stdio::null());
        command
    }

    /// Runs it and says everything that it said.
    pub(crate) fn run(&self, args: &[&str]) -> String {
        said(&self.modelctl(args).output().unwrap())
    }

    /// Runs it, which has to go well, and gives stdout.
    pub(crate) fn stdout(&self, args: &[&str]) -> String {
        let output = self.modelctl(args).output().unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs it with `--json`, whatever comes of it, and gives the last line.
    pub(crate) fn json(&self, args: &[&str]) -> serde_json::Value {
        let output = self.modelctl(args).arg("--json").output().unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(stdout.lines().last().unwrap()).unwrap()
    }
}

/// Exit code, stdout and stderr as one text.
pub(crate) fn said(output: &Output) -> String {
    let code = output.status.code().map_or_else(|| "signal".to_owned(), |code| code.to_string());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    format!("exit code: {code}\n----- stdout -----\n{stdout}----- stderr -----\n{stderr}")
}

/// Compares with a snapshot; what differs from run to run or version to version is replaced first.
macro_rules! assert_said {
    ($($args:expr),+) => {{
        let mut settings = insta::Settings::clone_current();
        settings.add_filter(r"\d+\.\d\d s\b", "[TIME]");
        settings.add_filter(r#""seconds":[0-9.e-]+"#, r#""seconds":"[TIME]""#);
        settings.add_filter(r"\d+\.\d [KMGT]B free", "[SIZE] free");
        settings.add_filter(r"bounded by \w+", "bounded by [STAGE]");
        settings.add_filter(r"has \d+ bytes free", "has [FREE] bytes free");
        settings.add_filter(r"bytes \d+ to \d+ of blob", "bytes [FROM] to [TO] of blob");
        settings.add_filter(r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]");
        settings.add_filter(concat!(r"\b", env!("CARGO_PKG_VERSION"), r"\b"), "[VERSION]");
        settings.set_omit_expression(true);
        settings.set_prepend_module_to_snapshot(false);
        settings.bind(|| insta::assert_snapshot!($($args),+));
    }};
}
pub(crate) use assert_said;

/// Two tensors: `a` of 512 × 600 `F32` and `b` of 100 `BF16`. The file is a piece and a bit.
pub(crate) fn safetensors() -> Vec<u8> {
    let header = br#"{"a":{"dtype":"F32","shape":[512,600],"data_offsets":[0,1228800]},"b":{"dtype":"BF16","shape":[100],"data_offsets":[1228800,1229000]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend((0..1_229_000_u32).map(|at| (at % 251).to_le_bytes()[0] ^ (at >> 12).to_le_bytes()[0]));
    file
}

/// Where the registry writes one line a request, in a directory of its own.
const ACCESS_LOG: &str = "access.log";

/// Debian's registry, on a free port of loopback, stopped at the end.
pub(crate) struct Registry {
    process: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::start_with(tempfile::tempdir().unwrap(), "", "")
    }

    /// One that wants the user `me` with the password `secret`.
    pub(crate) fn with_login() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("htpasswd");
        // What `htpasswd -B` would write.
        fs::write(&path, "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n").unwrap();
        let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display());
        Self::start_with(dir, "", &auth)
    }

    /// One with a certificate and its key.
    pub(crate) fn with_tls(certificate: &str, key: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [certificate, key] = [("certificate", certificate), ("key", key)].map(|(name, text)| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        });
        Self::start_with(dir, &format!(", tls: {{certificate: {certificate}, key: {key}}}"), "")
    }

    fn start_with(dir: tempfile::TempDir, http: &str, rest: &str) -> Self {
        let config = dir.path().join("config.yml");
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"127.0.0.1:0\"{http}}}\n{rest}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .env_remove("OTEL_TRACES_EXPORTER")
            .stdout(fs::File::create(dir.path().join(ACCESS_LOG)).unwrap())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is not installed: run scripts/setup");
        let address = listening(&mut process);
        Self { process, address, dir }
    }

    /// HOST:PORT.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A reference in it.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// GET of a path, as curl does it.
    pub(crate) fn get(&self, path: &str) -> Vec<u8> {
        let accept = "Accept: application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";
        let url = format!("http://{}/v2/{path}", self.address);
        let output =
            Command::new("curl").args(["-sSfH", accept, "--noproxy", "*", &url]).output().expect("curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// PUT of a manifest, as curl does it.
    pub(crate) fn put_manifest(&self, repository: &str, tag: &str, raw: &str) {
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        let output = Command::new("curl")
            .args(["-sSf", "-X", "PUT", "-H", kind, "--noproxy", "*", "--data-binary", raw, &url])
            .output()
            .expect("curl");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// How many bytes of blobs it says it has sent.
    pub(crate) fn sent(&self) -> u64 {
        let log = fs::read_to_string(self.dir.path().join(ACCESS_LOG)).unwrap();
        let sent = |line: &str| {
            // ADDRESS - - [TIME] "GET PATH HTTP/1.1" STATUS BYTES "" "AGENT"
            let mut parts = line.split('"').skip(1);
            let (request, answer) = (parts.next()?, parts.next()?);
            let is_read = request.starts_with("GET ") && request.contains("/blobs/");
            answer.split_whitespace().nth(1).filter(|_| is_read)?.parse::<u64>().ok()
        };
        log.lines().filter_map(sent).sum()
    }

    /// The requests that it says it has answered, as `METHOD PATH HTTP/1.1`.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = fs::read_to_string(self.dir.path().join(ACCESS_LOG)).unwrap();
        log.lines().filter_map(|line| line.split('"').nth(1).map(ToOwned::to_owned)).collect()
    }

    /// How many requests it says it has answered to whoever calls itself so.
    pub(crate) fn asked_by(&self, agent: &str) -> usize {
        let log = fs::read_to_string(self.dir.path().join(ACCESS_LOG)).unwrap();
        log.lines().filter(|line| line.split('"').nth(5).is_some_and(|says| says.contains(agent))).count()
    }

    /// The digest of the manifest under a tag.
    pub(crate) fn digest(&self, repository: &str, tag: &str) -> String {
        let manifest = self.get(&format!("{repository}/manifests/{tag}"));
        modelpack::digest::Sha256Digest::of(&manifest).to_string()
    }

    /// The digest of the config of the manifest under a tag.
    pub(crate) fn config(&self, repository: &str, tag: &str) -> String {
        let manifest = self.get(&format!("{repository}/manifests/{tag}"));
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["config"]["digest"].as_str().unwrap().to_owned()
    }

    /// Flips a bit in the middle of its copy of the blob of that SHA-256, as a disk may.
    pub(crate) fn damage(&self, hex: &str) {
        let blobs = self.dir.path().join("storage/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The address from the registry's log, which it writes once it accepts connections.
fn listening(process: &mut Child) -> String {
    let log = BufReader::new(process.stderr.take().unwrap());
    let (sender, receiver) = mpsc::channel();
    // Reads on to the end, so that the registry never waits for somebody to read its log.
    thread::spawn(move || {
        for line in log.lines().map_while(Result::ok) {
            let Some((_, rest)) = line.split_once("listening on ") else { continue };
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':').unwrap_or(rest.len());
            let _ = sender.send(rest[..end].to_owned());
        }
    });
    receiver.recv_timeout(PATIENCE).expect("docker-registry says where it listens")
}

/// Every file below a directory with its bytes, sorted.
pub(crate) fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(at) = open.pop() {
        for entry in fs::read_dir(at).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push((path.strip_prefix(dir).unwrap().to_path_buf(), fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Waits until something is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Says why a test does nothing on this machine; `scripts/test` counts it as skipped.
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
    if let Some(list) = std::env::var_os("MODELCAST_SKIPPED") {
        let mut list = fs::OpenOptions::new().append(true).create(true).open(list).unwrap();
        // In one write, as other tests write there at the same time.
        list.write_all(format!("skipped: {}\n", why.replace('\n', " ")).as_bytes()).unwrap();
    }
}

/// A tmpfs of its own, unmounted at the end.
pub(crate) struct Mount {
    pub(crate) dir: tempfile::TempDir,
}

impl Mount {
    /// `None`, and says why, where this process may not mount.
    pub(crate) fn tmpfs(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(dir.path()).output();
        match mount {
            Ok(output) if output.status.success() => Some(Self { dir }),
            other => {
                skip(&format!("cannot mount a tmpfs here: {other:?}"));
                None
            }
        }
    }

    /// The path of something in it, as an argument.
    pub(crate) fn path(&self, rel: &str) -> String {
        self.dir.path().join(rel).to_str().unwrap().to_owned()
    }

    /// A text without its path, which is another in each run.
    pub(crate) fn hidden_in(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "[DISK]")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let done = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(done.is_ok_and(|status| status.success()), "{} stays mounted", self.dir.path().display());
    }
}
