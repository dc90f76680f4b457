//! Looks at the output directories while pulls run: what is visible, and since when.
//!
//! Owns: looking, and what is wrong with what was seen. Does not own: pulls.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::ensure;
use testbed::{
    artifact::{self, Source},
    process::LOOK_INTERVAL,
};

/// How long after its model became visible a pull may take to say so: it syncs and its output travels.
const SAID_WITHIN: Duration = Duration::from_secs(3);

/// What a file is without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Look {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

type Looks = BTreeMap<PathBuf, Look>;

/// What was seen of each output.
type Sights = Arc<Mutex<BTreeMap<PathBuf, (Instant, Looks)>>>;

/// Looks until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    sights: Sights,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Begins to look at these directories, which are not there yet.
    pub(crate) fn begin(outputs: Vec<PathBuf>) -> Self {
        let (sights, stop) = (Sights::default(), Arc::new(AtomicBool::new(false)));
        let (seen, is_over) = (Arc::clone(&sights), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                look(&outputs, &seen);
                thread::sleep(LOOK_INTERVAL);
            }
            look(&outputs, &seen);
        });
        Self { sights, stop, thread: Some(thread) }
    }

    /// Ends it; nothing changes any more.
    pub(crate) fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has no reason to panic, and what it saw is here.
            let _ = thread.join();
        }
    }

    /// Compares what became visible at `output` with the source: all of it at once, right from the first moment, and
    /// not long before its pull said so. `said` is when a pull reported success, if it did.
    pub(crate) fn judge(&self, output: &Path, source: &Source, said: Option<Instant>) -> anyhow::Result<()> {
        let sight = self.sights.lock().unwrap_or_else(PoisonError::into_inner).get(output).cloned();
        let Some((since, looks)) = sight else {
            ensure!(said.is_none(), "a pull said that it is done and nothing is visible");
            return Ok(());
        };
        let Some(said) = said else { anyhow::bail!("something is visible of a pull that was not done") };
        ensure!(
            said.saturating_duration_since(since) < SAID_WITHIN,
            "it was visible long before it was done"
        );
        let expected: Vec<(&PathBuf, u64)> =
            source.files.iter().map(|(path, (bytes, _))| (path, *bytes)).collect();
        let first: Vec<(&PathBuf, u64)> = looks.iter().map(|(path, look)| (path, look.bytes)).collect();
        ensure!(first == expected, "not all of it was visible at once: {} files", first.len());
        ensure!(looks == looks_of(output), "files changed after they were visible");
        ensure!(artifact::proofs(output)? == source.files, "the bytes are not the source's");
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

fn look(outputs: &[PathBuf], sights: &Sights) {
    for output in outputs {
        let mut sights = sights.lock().unwrap_or_else(PoisonError::into_inner);
        if !sights.contains_key(output) && output.exists() {
            sights.insert(output.clone(), (Instant::now(), looks_of(output)));
        }
    }
}

fn looks_of(dir: &Path) -> Looks {
    let files = artifact::files_below(dir).unwrap_or_default();
    let look = |path: PathBuf| {
        let relative = path.strip_prefix(dir).ok()?.to_path_buf();
        let meta = fs::metadata(&path).ok()?;
        let look = Look { inode: meta.ino(), bytes: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) };
        (!relative.starts_with(".modelctl")).then_some((relative, look))
    };
    files.into_iter().filter_map(look).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is judged of an output into which `fill` puts files while it is watched.
    fn judged(fill: impl FnOnce(&Path, &Source), is_done: bool) -> anyhow::Result<()> {
        let dir = tempfile::tempdir().unwrap();
        let source = Source::write(&dir.path().join("source"), 4 << 10, 1).unwrap();
        let (staged, output) = (dir.path().join("staged"), dir.path().join("output"));
        fs::create_dir(&staged).unwrap();
        fill(&staged, &source);
        fs::rename(&staged, &output).unwrap();
        let mut watch = Watch::begin(vec![output.clone()]);
        watch.end();
        watch.judge(&output, &source, is_done.then(Instant::now))
    }

    fn copy(output: &Path, source: &Source) {
        for file in source.files.keys() {
            fs::copy(source.dir.join(file), output.join(file)).unwrap();
        }
    }

    #[test]
    fn the_model_is_right() {
        judged(copy, true).unwrap();
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let fill = |output: &Path, source: &Source| {
            copy(output, source);
            let path = output.join(source.files.keys().last().unwrap());
            let mut bytes = fs::read(&path).unwrap();
            bytes[0] ^= 1;
            fs::write(path, bytes).unwrap();
        };
        assert!(judged(fill, true).unwrap_err().to_string().contains("the bytes"));
    }

    #[test]
    fn a_missing_file_is_found() {
        let fill = |output: &Path, source: &Source| {
            copy(output, source);
            fs::remove_file(output.join("config.json")).unwrap();
        };
        assert!(judged(fill, true).unwrap_err().to_string().contains("not all of it"));
    }

    #[test]
    fn nothing_may_be_visible_of_a_pull_that_was_not_done() {
        assert!(judged(copy, false).unwrap_err().to_string().contains("not done"));
    }
}
