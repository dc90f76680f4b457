//! Versions that are brought at once, and what is waited for.

use std::{
    cell::RefCell,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    rc::Rc,
    time::Duration,
};

use modelpack::digest::Sha256Digest;
use sidecar::{Board, Config, Ended, ModelConfig, Settings, Source, Trouble, machine::Until};
use telemetry::{Reply, Watched as _};

/// How long anything that is waited for may take: far more than it does.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) fn version(number: u8) -> Sha256Digest {
    Sha256Digest::new([number; 32])
}

/// A registry in memory, with one tag. Clones are the same.
#[derive(Clone)]
pub(crate) struct Registry(Rc<RefCell<State>>);

pub(crate) struct State {
    /// What the tag names; nothing if nobody answers.
    pub(crate) tag: Option<u8>,
    /// What each version is said to be large.
    pub(crate) size: u64,
    /// Versions that were brought.
    pub(crate) pulled: Vec<u8>,
    /// Versions that others are served without having been brought.
    pub(crate) served: Vec<u8>,
    /// The tag moves there while a version is brought.
    pub(crate) moves_to: Option<u8>,
    /// So many pulls fail, after they have left something behind.
    pub(crate) fails: u32,
}

impl Registry {
    pub(crate) fn with(tag: u8) -> Self {
        let state = State {
            tag: Some(tag),
            size: 1,
            pulled: Vec::new(),
            served: Vec::new(),
            moves_to: None,
            fails: 0,
        };
        Self(Rc::new(RefCell::new(state)))
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.borrow_mut());
    }

    pub(crate) fn served(&self) -> Vec<u8> {
        self.0.borrow().served.clone()
    }

    pub(crate) fn pulled(&self) -> Vec<u8> {
        self.0.borrow().pulled.clone()
    }
}

impl Source for Registry {
    type Error = String;

    async fn resolve(&self) -> Result<Sha256Digest, String> {
        self.0.borrow().tag.map(version).ok_or_else(|| "nobody answers".to_owned())
    }

    async fn size(&self, _: &Sha256Digest) -> Result<u64, String> {
        Ok(self.0.borrow().size)
    }

    async fn pull(&self, wanted: &Sha256Digest, dir: &Path, _: &dyn Fn(u64, u64)) -> Result<(), String> {
        let mut state = self.0.borrow_mut();
        let number = wanted.bytes()[0];
        let staging = dir.with_file_name(format!(".{}.modelctl", dir.file_name().unwrap().display()));
        fs::create_dir_all(&staging).unwrap();
        fs::write(staging.join("half"), "half").unwrap();
        if state.fails > 0 {
            state.fails -= 1;
            return Err("cut off".to_owned());
        }
        fs::remove_dir_all(staging).unwrap();
        publish(dir, number);
        state.pulled.push(number);
        if let Some(tag) = state.moves_to.take() {
            state.tag = Some(tag);
        }
        Ok(())
    }

    async fn serve(&self, version: &Sha256Digest, _: &Path) -> Result<(), String> {
        self.0.borrow_mut().served.push(version.bytes()[0]);
        Ok(())
    }

    async fn leave(&self) {}
}

/// A directory as the store publishes it, with the number of the version in each of its files.
pub(crate) fn publish(dir: &Path, number: u8) {
    fs::create_dir_all(dir.join(".modelctl")).unwrap();
    let mut files = Vec::new();
    for path in ["config.pbtxt", "model.py"] {
        let at = dir.join(path);
        fs::write(&at, number.to_string()).unwrap();
        let meta = at.metadata().unwrap();
        let mtime = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
        files.push(serde_json::json!({
            "path": path, "size": meta.len(), "sha256": version(number).to_string(), "inode": meta.ino(), "mtime_ns": mtime,
        }));
    }
    let record = serde_json::json!({ "digest": version(number).to_string(), "files": files });
    fs::write(dir.join(".modelctl/complete.json"), record.to_string()).unwrap();
}

/// A directory for one test.
pub(crate) struct Site {
    root: tempfile::TempDir,
    pub(crate) registry: Registry,
    board: RefCell<Board>,
}

impl Site {
    pub(crate) fn new() -> Self {
        Self { root: tempfile::tempdir().unwrap(), registry: Registry::with(1), board: RefCell::default() }
    }

    pub(crate) fn path(&self, rel: &str) -> PathBuf {
        self.root.path().join(rel)
    }

    /// The only model, with what else is said of it.
    pub(crate) fn model(&self, more: &str) -> ModelConfig {
        let dir = self.path("chat");
        let text =
            format!("[[model]]\nreference = \"a.b/chat:v\"\ndirectory = \"{}\"\n{more}", dir.display());
        Config::parse(&text).unwrap().models.remove(0)
    }

    /// Keeps it until everything is there, or one attempt has failed.
    pub(crate) async fn once(&self, more: &str) -> Result<Ended, String> {
        let ended = self.keep(more, Until::Present, std::future::pending()).await?;
        Ok(ended.into_iter().next().unwrap())
    }

    /// Keeps it while the test does something.
    pub(crate) async fn meanwhile(&self, more: &str, test: impl Future<Output = ()>) {
        let kept = tokio::time::timeout(PATIENCE, self.keep(more, Until::Told, test)).await;
        kept.expect("the test has ended in time").unwrap();
    }

    async fn keep(
        &self,
        more: &str,
        until: Until,
        end: impl Future<Output = ()>,
    ) -> Result<Vec<Ended>, String> {
        let board = Board::new();
        *self.board.borrow_mut() = board.clone();
        let settings = Settings { poll: Duration::from_millis(20), until, seed: 1 };
        let models = vec![(self.model(more), self.registry.clone())];
        sidecar::keep(models, settings, &board, end).await.map_err(|trouble| match trouble {
            Trouble::Source(error) => error,
            Trouble::Sidecar(error) => error.to_string(),
        })
    }

    /// What is in place, as a server sees it.
    pub(crate) fn in_place(&self) -> Option<String> {
        fs::read_to_string(self.path("chat/model.py")).ok()
    }

    /// The model as `/v1/models` shows it.
    pub(crate) fn shown(&self) -> serde_json::Value {
        let Some(Reply::Json(text)) = self.board.borrow().page("/v1/models") else {
            panic!("there is such a page")
        };
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["models"][0].clone()
    }

    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.board.borrow().page("/readyz"), Some(Reply::Well(_)))
    }

    /// The names of the versions that are there, and of what is begun.
    pub(crate) fn versions(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(self.path(".chat.versions"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("sha256-"))
            .collect();
        names.sort();
        names
    }
}

/// Waits until something is so.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("{what}: not after {PATIENCE:?}"));
}
