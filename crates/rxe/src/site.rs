//! Where the proof runs: directories in memory and on a disk, the fleet's key, the model in both.
//!
//! Owns: making all of that once, comparing with the model. Does not own: processes.

use std::{
    fs::{self, File, Permissions},
    io::{ErrorKind, Read},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;
use testbed::{
    artifact::{Artifact, Source, files_below},
    program::{self, call, path},
};

use crate::Cli;

/// The models, in directories of these names: their bytes, at least. Faults need less to be in the middle of.
const BROADCAST: (&str, u64) = ("broadcast", 64 << 20);
const FAULTS: (&str, u64) = ("faults", 32 << 20);

/// What is in the directory of a model: its files, and how it is published.
const SOURCE: &str = "source";
const LAYOUT: &str = "model.oci";
const TAG: &str = "v1";

/// How much is compared at a time.
const COMPARED_BYTES: usize = 1 << 20;

/// Writes the models into a directory and builds their layouts. It is done outside: emulated processors hash slowly.
pub(crate) fn make_models(modelctl: &Path, dir: &Path) -> anyhow::Result<()> {
    let modelctl = program::find(modelctl, "--modelctl")?;
    for (name, bytes) in [BROADCAST, FAULTS] {
        let (source, layout) = (dir.join(name).join(SOURCE), dir.join(name).join(LAYOUT));
        Source::write(&source, bytes, bytes)?;
        call(&modelctl, &["build", path(&source), "-t", &reference(&layout)])?;
    }
    Ok(())
}

fn reference(layout: &Path) -> String {
    format!("oci:{}:{TAG}", layout.display())
}

/// A directory on some file system, and a model there.
#[derive(Debug)]
pub(crate) struct Place {
    dir: TempDir,
    source: PathBuf,
    /// What a seed names, and what a pull does.
    pub(crate) published: String,
    pub(crate) wanted: String,
    /// How bytes land there over RDMA.
    pub(crate) landing: &'static str,
}

impl Place {
    fn new(at: &Path, model: &Path, landing: &'static str) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("rxe-proof-").tempdir_in(at);
        let dir = dir.with_context(|| format!("cannot make a directory in `{}`", at.display()))?;
        // Some peers are another user's.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755))?;
        let (layout, copy) = (model.join(LAYOUT), dir.path().join(LAYOUT));
        for file in files_below(&layout)? {
            let to = copy.join(file.strip_prefix(&layout)?);
            fs::create_dir_all(to.parent().context("a file is in a directory")?)?;
            fs::copy(&file, to)?;
        }
        let wanted = format!("fleet:{}", Artifact::read(&copy, TAG)?.digest());
        Ok(Self { dir, source: model.join(SOURCE), published: reference(&copy), wanted, landing })
    }

    /// A directory for one fleet, made anew: those before it are not needed any more.
    pub(crate) fn fresh(&self) -> anyhow::Result<PathBuf> {
        let dir = self.dir.path().join("fleet");
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(dir.join("logs"))?;
        Ok(dir)
    }

    /// Fails unless a directory holds the model, and nothing else that can be seen.
    pub(crate) fn compare(&self, output: &Path) -> anyhow::Result<()> {
        let (expected, found) = (relative(&self.source)?, relative(output)?);
        ensure!(found == expected, "it holds {found:?}, not {expected:?}");
        for file in &expected {
            let same = are_same(&self.source.join(file), &output.join(file));
            ensure!(same.with_context(|| file.display().to_string())?, "{} differs", file.display());
        }
        Ok(())
    }
}

/// All of it. It goes away with this value.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) modelctl: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) memory: Place,
    pub(crate) disk: Place,
    /// In memory, too.
    pub(crate) faults: Place,
}

impl Site {
    pub(crate) fn new(cli: &Cli) -> anyhow::Result<Self> {
        let modelctl = program::find(&cli.modelctl, "--modelctl")?;
        let models = cli.models.as_deref();
        let models =
            models.context("no models are named: make them and name their directory with `--models`")?;
        let memory = Place::new(&cli.memory, &models.join(BROADCAST.0), "direct")?;
        let disk = Place::new(&cli.disk, &models.join(BROADCAST.0), "staged")?;
        let faults = Place::new(&cli.memory, &models.join(FAULTS.0), "direct")?;
        let key = memory.dir.path().join("fleet.key");
        call(&modelctl, &["fleet-key", "new", path(&key)])?;
        Ok(Self { modelctl, key, memory, disk, faults })
    }
}

/// The files in a directory but for what the product keeps for itself, in order.
fn relative(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for file in files_below(dir)? {
        let file = file.strip_prefix(dir)?;
        if !file.starts_with(".modelctl") {
            files.push(file.to_path_buf());
        }
    }
    files.sort();
    Ok(files)
}

/// Whether two files have the same bytes.
fn are_same(one: &Path, other: &Path) -> anyhow::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, File::open(other)?);
    let (mut left, mut right) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
    loop {
        let (read, beside) = (fill(&mut one, &mut left)?, fill(&mut other, &mut right)?);
        if left[..read] != right[..beside] {
            return Ok(false);
        }
        if read == 0 {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> anyhow::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_is_a_difference() {
        let dir = tempfile::tempdir().unwrap();
        let [source, output] = ["source", "output"].map(|name| dir.path().join(name));
        let bytes = vec![7; COMPARED_BYTES + 9];
        for dir in [&source, &output] {
            fs::create_dir_all(dir).unwrap();
            fs::write(dir.join("weights"), &bytes).unwrap();
        }
        let place = Place {
            dir: TempDir::new().unwrap(),
            source,
            published: String::new(),
            wanted: String::new(),
            landing: "direct",
        };
        place.compare(&output).unwrap();
        let wrong = |bytes: &[u8]| {
            fs::write(output.join("weights"), bytes).unwrap();
            place.compare(&output).is_err()
        };
        let mut other = bytes.clone();
        other[COMPARED_BYTES + 3] ^= 1;
        assert!(wrong(&other));
        assert!(wrong(&bytes[1..]));
        assert!(wrong(&[&bytes[..], &[7]].concat()));
        assert!(!wrong(&bytes));
        fs::write(output.join("more"), "").unwrap();
        assert!(place.compare(&output).is_err());
    }
}
