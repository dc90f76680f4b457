//! What is moved and from where to where: a directory, a registry on loopback, a model.
//!
//! Owns: making and clearing them. Does not own: who moves it.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use testbed::{
    artifact::{self, Source},
    maker::Maker,
    process::Process,
    registry,
    scratch::{self, Medium},
};

use super::contest::Ground;
use crate::{TOOL, broadcast::Dest, output::tell};

/// The type that the kernel gives to tmpfs.
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Two directories of one run: everything that only stands by in memory, and where the measured bytes land.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) memory: PathBuf,
    pub(crate) landing: PathBuf,
    pub(crate) dest: Dest,
}

impl Site {
    /// Makes them, if what is to be in memory fits.
    pub(crate) fn new(dest: Dest, memory_bytes: u64) -> anyhow::Result<Self> {
        let maker = Maker::this(TOOL);
        ensure!(
            Medium::with_room(memory_bytes)? == Medium::Memory,
            "memory has no room for {memory_bytes} bytes: choose a smaller --size"
        );
        let memory = scratch::make(maker, Medium::Memory)?;
        let landing = match dest {
            Dest::Tmpfs => memory.clone(),
            Dest::Disk => {
                let dir = scratch::make(maker, Medium::Disk)?;
                let kind = rustix::fs::statfs(&dir)?.f_type;
                ensure!(
                    kind != TMPFS_MAGIC,
                    "`{}` is in memory: set TMPDIR to a directory on disk",
                    dir.display()
                );
                dir
            }
        };
        Ok(Self { memory, landing, dest })
    }

    /// What ends each script: on disk everybody's bytes are on it when the time ends.
    pub(crate) fn flush(&self) -> &'static str {
        match self.dest {
            Dest::Tmpfs => "",
            Dest::Disk => "; sync -f .",
        }
    }

    /// Lets the disk finish and forget what is cached of it, so that each run begins alike.
    pub(crate) fn settle(&self) {
        if self.dest == Dest::Tmpfs {
            return;
        }
        rustix::fs::sync();
        if let Err(why) = fs::write("/proc/sys/vm/drop_caches", "1") {
            tell(&format!("caches stay filled: {why}"));
        }
    }

    /// Starts a registry of that name on a port of loopback that is free; its blobs are in memory.
    pub(crate) fn registry(&self, name: &str) -> anyhow::Result<Registry> {
        let dir = fresh(&self.memory.join(name))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "docker-registry"]);
        let process = registry::start(command, &dir, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), &dir)?;
        let log = process.log();
        let (_, rest) = log.split_once("listening on ").context("a registry says where it listens")?;
        let address = rest.split(['"', ' ', '\n']).next().unwrap_or_default();
        let address = address.parse().with_context(|| format!("`{address}` is no address"))?;
        Ok(Registry { address, process })
    }
}

/// A registry that runs.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    #[expect(dead_code, reason = "it runs as long as this value")]
    process: Process,
}

/// Makes a directory anew.
pub(crate) fn fresh(dir: &Path) -> anyhow::Result<PathBuf> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot clear `{}`", dir.display()))?;
    }
    fs::create_dir_all(dir)?;
    Ok(dir.to_path_buf())
}

/// What the files of a model are.
pub(crate) fn hashes(source: &Source) -> BTreeSet<[u8; 32]> {
    source.files.values().map(|(_, hash)| *hash.as_bytes()).collect()
}

/// An empty directory for each run, in which files of these hashes are to be in the end.
#[derive(Clone, Debug)]
pub(crate) struct Landing {
    site: Site,
    dir: PathBuf,
    hashes: BTreeSet<[u8; 32]>,
}

impl Landing {
    pub(crate) fn new(site: &Site, hashes: BTreeSet<[u8; 32]>) -> Self {
        Self { site: site.clone(), dir: site.landing.join("out"), hashes }
    }
}

impl Ground for Landing {
    fn reset(&mut self) -> anyhow::Result<()> {
        fresh(&self.dir)?;
        self.site.settle();
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn logs(&self) -> &Path {
        &self.site.memory
    }

    fn check(&self) -> anyhow::Result<()> {
        holds(&self.dir, &self.hashes)
    }
}

/// Fails unless the files below `dir` hold, under whatever names, what was asked for.
pub(crate) fn holds(dir: &Path, hashes: &BTreeSet<[u8; 32]>) -> anyhow::Result<()> {
    let mut missing = hashes.clone();
    for file in artifact::files_below(dir)? {
        missing.remove(artifact::hash(&file)?.1.as_bytes());
    }
    ensure!(missing.is_empty(), "{} files of the model are not below `{}`", missing.len(), dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_count_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("blobs")).unwrap();
        fs::write(dir.path().join("blobs/x"), "weights").unwrap();
        let of = |text: &str| *blake3::hash(text.as_bytes()).as_bytes();
        holds(dir.path(), &BTreeSet::from([of("weights")])).unwrap();
        holds(dir.path(), &BTreeSet::from([of("weights"), of("config")])).unwrap_err();
    }
}
