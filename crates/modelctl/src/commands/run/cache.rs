//! Where `run` keeps artifacts of which nobody says where they belong: a directory each, named by digest.
//!
//! ```text
//! ~/.cache/modelctl/models/sha256-HEX/       an artifact
//! ~/.cache/modelctl/models/.sha256-HEX.lock  held by each command that uses it; its time is that of the last use
//! ```
//!
//! Owns: that there are not ever more of them, and that none goes that a command uses. Does not own: what is in them.

use std::{
    env,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::Context as _;
use modelpack::digest::Sha256Digest;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::{printer::Printer, report::Refusal};

const PREFIX: &str = "sha256-";
const LOCK: &str = ".lock";

/// The directory of one artifact, which stays for as long as this process, and whatever it becomes, lives.
pub(super) struct Place {
    pub(super) dir: PathBuf,
    models: PathBuf,
    /// Not closed by exec(2): the command holds it then, and what that starts.
    lock: File,
}

impl Place {
    /// Takes the directory of an artifact.
    pub(super) fn of(digest: &Sha256Digest) -> anyhow::Result<Self> {
        let models = models()?;
        fs::create_dir_all(&models).with_context(|| format!("cannot make `{}`", models.display()))?;
        let name = format!("{PREFIX}{}", digest.hex());
        let path = lock_of(&models, &name);
        let lock = take(&path).with_context(|| format!("cannot lock `{}`", path.display()))?;
        Ok(Self { dir: models.join(&name), models, lock })
    }

    /// From now on the lock is the command's.
    pub(super) fn hand_on(self) -> io::Result<()> {
        fcntl_setfd(&self.lock, FdFlags::empty())?;
        // Closed when the last process that has it ends.
        std::mem::forget(self.lock);
        Ok(())
    }

    /// Removes what was not used for longest and is not used now, but for `keep` besides this one.
    pub(super) fn clear(&self, keep: usize, printer: &Printer) {
        let own = self.dir.file_name();
        let mut others: Vec<_> =
            names(&self.models).into_iter().filter(|name| own != Some(name.as_ref())).collect();
        // The last used first.
        others.sort_by_key(|name| std::cmp::Reverse(used(&self.models, name)));
        for name in others.into_iter().skip(keep) {
            match remove_unused(&self.models, &name) {
                Ok(true) => printer.note(format_args!(
                    "removed {}, which was not used for longest",
                    self.models.join(&name).display()
                )),
                Ok(false) => {}
                Err(error) => {
                    printer.warn(format_args!("`{}` stays: {error}", self.models.join(&name).display()));
                }
            }
        }
    }
}

fn models() -> anyhow::Result<PathBuf> {
    // As the XDG base directory specification has it, a relative path counts as none.
    let dir_of = |name| env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let cache = dir_of("XDG_CACHE_HOME").or_else(|| dir_of("HOME").map(|home| home.join(".cache")));
    let Some(cache) = cache else {
        let message = "neither `XDG_CACHE_HOME` nor `HOME` says where the directory could lie";
        return Err(Refusal::usage(message).hint("name it with `-o DIR`").into());
    };
    Ok(cache.join("modelctl/models"))
}

fn lock_of(models: &Path, name: &str) -> PathBuf {
    models.join(format!(".{name}{LOCK}"))
}

/// The lock of somebody who uses the directory, once nobody removes it.
fn take(path: &Path) -> io::Result<File> {
    loop {
        let lock = File::options().create(true).truncate(false).write(true).open(path)?;
        lock.lock_shared()?;
        // Whoever removed the directory meanwhile has removed this file, too.
        if path.metadata().is_ok_and(|meta| lock.metadata().is_ok_and(|own| own.ino() == meta.ino())) {
            // For whoever looks for the one that was not used for longest.
            lock.set_modified(SystemTime::now())?;
            return Ok(lock);
        }
    }
}

/// What is there, whole or begun.
fn names(models: &Path) -> Vec<String> {
    let entries = fs::read_dir(models).into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let name = name.trim_start_matches('.').split('.').next()?.to_owned();
        name.starts_with(PREFIX).then_some(name)
    };
    let mut names: Vec<_> = entries.filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

/// When it was used last, as far as is known.
fn used(models: &Path, name: &str) -> Option<SystemTime> {
    let at = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    at(&lock_of(models, name)).or_else(|| at(&models.join(name)))
}

/// Says whether it did.
fn remove_unused(models: &Path, name: &str) -> io::Result<bool> {
    let path = lock_of(models, name);
    let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(false),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    for dir in [models.join(name), models.join(format!(".{name}.modelctl"))] {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    fs::remove_file(&path)?;
    Ok(true)
}
