//! Debian's docker-registry as a fixture: a real server on a free port, with storage that goes when it goes.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

/// What `htpasswd -B` would write for the user `me` with the password `secret`.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// How the registry is set up.
#[derive(Default)]
pub(crate) struct Setup {
    /// Whether it wants `me` and `secret`.
    pub(crate) wants_login: bool,
    /// Its certificate and key in PEM form, for TLS.
    pub(crate) tls: Option<(String, String)>,
    /// The authority, in PEM form, whose certificates it asks its clients for.
    pub(crate) client_ca: Option<String>,
}

/// A running registry.
pub(crate) struct DockerRegistry {
    process: Child,
    host: String,
    _storage: TempDir,
}

impl DockerRegistry {
    pub(crate) fn start(setup: Setup) -> Self {
        let storage = tempfile::tempdir().unwrap();
        let path = |name: &str| storage.path().join(name).display().to_string();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
            path("data"),
        );
        if let Some((certificate, key)) = setup.tls {
            fs::write(path("certificate"), certificate).unwrap();
            fs::write(path("key"), key).unwrap();
            write!(config, "  tls:\n    certificate: {}\n    key: {}\n", path("certificate"), path("key"))
                .unwrap();
            if let Some(authority) = setup.client_ca {
                fs::write(path("clients"), authority).unwrap();
                write!(config, "    clientcas:\n      - {}\n", path("clients")).unwrap();
            }
        }
        if setup.wants_login {
            fs::write(path("htpasswd"), HTPASSWD).unwrap();
            write!(config, "auth:\n  htpasswd:\n    realm: test\n    path: {}\n", path("htpasswd")).unwrap();
        }
        fs::write(path("config.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = process.expect("`docker-registry` is not installed: run `scripts/setup`");
        // It takes a free port and says which, once it can be asked.
        let mut log = BufReader::new(process.stderr.take().unwrap()).lines().map(Result::unwrap);
        let line = log.find(|line| line.contains("listening on")).expect("docker-registry starts");
        let address = line.split("listening on ").nth(1).unwrap();
        let host = address.split([',', ' ', '"']).next().unwrap().to_owned();
        // Nobody else reads its log, and a full pipe would stop it.
        std::thread::spawn(move || log.for_each(drop));
        Self { process, host, _storage: storage }
    }

    /// `HOST:PORT`.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended by itself; then the test has failed already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
