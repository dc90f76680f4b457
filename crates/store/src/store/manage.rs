//! What a person asks of a store: what is in it, and what is to go or to stay.
//!
//! Owns: the inventory, names, pins that last, and removing by hand. Does not own: collection under a budget (`collect`),
//! whose order and care are used here.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::{Duration, SystemTime},
};

use modelpack::{digest::Sha256Digest, manifest::Manifest};

use super::{
    PROVED_NAME, Store,
    collect::{Account, NoReaders, Step},
    pins::BlobName,
};
use crate::{
    error::StoreError,
    files::Dir,
    index::{Index, LAYOUT_NAME},
    lock::{DirLock, LOCK_NAME},
};

/// What a store holds.
#[derive(Clone, Debug)]
pub struct Inventory {
    /// Every listed artifact, the most recently used first.
    pub artifacts: Vec<StoredArtifact>,
    /// What has landed of others.
    pub partials: Vec<StoredPartial>,
    /// The bytes of all blobs and partial landings; what artifacts share counts once.
    pub bytes: u64,
    /// Those of them that nothing needs: a crash has left them.
    pub leftover_bytes: u64,
}

/// An artifact of a store.
#[derive(Clone, Debug)]
pub struct StoredArtifact {
    /// Its manifest's digest.
    pub digest: Sha256Digest,
    /// What it was pulled as, or has been called since.
    pub names: Vec<String>,
    /// Its manifest; `None` if it is none of a model.
    pub manifest: Option<Manifest>,
    /// The bytes of its blobs that are here.
    pub bytes: u64,
    /// Those of them that no other artifact of the store has.
    pub own_bytes: u64,
    /// When it was used last.
    pub used: SystemTime,
    /// Whether it is never collected.
    pub is_pinned: bool,
}

/// What has landed of an artifact that is not complete.
#[derive(Clone, Debug)]
pub struct StoredPartial {
    /// The artifact, if it can be told.
    pub digest: Option<Sha256Digest>,
    /// What is allocated for it, in bytes.
    pub bytes: u64,
    /// When something landed last.
    pub used: SystemTime,
}

/// What would go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prune {
    /// Artifacts, in the order in which they go, and the bytes that each frees.
    pub artifacts: Vec<(Sha256Digest, u64)>,
    /// Partial landings by their directory's name, and the bytes of each.
    pub partials: Vec<(String, u64)>,
    /// Bytes of blobs that nothing lists.
    pub leftover_bytes: u64,
    /// The bytes of all that stays.
    pub left_bytes: u64,
}

impl Prune {
    /// The bytes of all that would go.
    pub fn freed_bytes(&self) -> u64 {
        let artifacts = self.artifacts.iter().map(|(_, bytes)| bytes);
        let partials = self.partials.iter().map(|(_, bytes)| bytes);
        artifacts.chain(partials).sum::<u64>() + self.leftover_bytes
    }
}

impl Store {
    /// What the store in `dir` holds, also while another process has it open. Nothing is changed.
    pub fn look(dir: &Path) -> Result<Inventory, StoreError> {
        Self::unlocked(dir)?.inventory()
    }

    /// Says that an artifact is never to be collected, also while another process has the store open.
    pub fn keep(dir: &Path, digest: &Sha256Digest) -> Result<(), StoreError> {
        let store = Self::unlocked(dir)?;
        store.kept.open_or_create(&digest.hex())?;
        store.sync(&store.kept)
    }

    /// Takes that back; says whether it had been said.
    pub fn let_go(dir: &Path, digest: &Sha256Digest) -> Result<bool, StoreError> {
        Self::unlocked(dir)?.kept.remove_if_there(&digest.hex())
    }

    /// Only what is safe beside the process that has the store may be done with it.
    fn unlocked(dir: &Path) -> Result<Self, StoreError> {
        let dir = Dir::open(dir)?;
        for name in [LAYOUT_NAME, LOCK_NAME, PROVED_NAME] {
            if dir.stat(name)?.is_none() {
                let (dir, what) = (dir.path().to_path_buf(), format!("`{name}`: it is no store"));
                return Err(StoreError::Missing { dir, what });
            }
        }
        Self::in_dir(dir, Vec::new())
    }

    /// What it holds.
    pub fn inventory(&self) -> Result<Inventory, StoreError> {
        let account = self.account()?;
        let mut names: BTreeMap<Sha256Digest, Vec<String>> = BTreeMap::new();
        for entry in Index::load(&self.dir)?.entries() {
            names.entry(entry.digest).or_default().extend(entry.tag);
        }
        let holders = account.holders();
        let mut artifacts = Vec::new();
        for one in &account.artifacts {
            let raw = self.read_small(&one.digest)?;
            artifacts.push(StoredArtifact {
                digest: one.digest,
                names: names.remove(&one.digest).unwrap_or_default(),
                manifest: raw.and_then(|raw| Manifest::parse(&raw).ok()),
                bytes: account.bytes_of(one.names.iter()),
                own_bytes: account.bytes_of(one.names.iter().filter(|name| holders[*name] == 1)),
                used: time(one.used_ns),
                is_pinned: one.is_pinned,
            });
        }
        artifacts.sort_by(|a, b| b.used.cmp(&a.used).then(a.digest.cmp(&b.digest)));
        let partials = account.partials.iter().map(|partial| StoredPartial {
            digest: partial.digest(),
            bytes: partial.bytes,
            used: time(partial.used_ns),
        });
        Ok(Inventory {
            artifacts,
            partials: partials.collect(),
            bytes: account.total(),
            leftover_bytes: account.leftover_bytes(),
        })
    }

    /// Removes an artifact and all that only it needs; says how many bytes that freed. [`StoreError::Pinned`] if it is
    /// to stay.
    pub fn remove(&self, digest: &Sha256Digest) -> Result<u64, StoreError> {
        let account = self.account()?;
        let Some(one) = account.artifacts.iter().find(|one| one.digest == *digest) else {
            return Err(self.missing(digest));
        };
        if one.is_pinned {
            return Err(StoreError::Pinned { dir: self.dir.path().to_path_buf(), digest: *digest });
        }
        if !self.remove_artifact(digest, &NoReaders)? {
            return Err(StoreError::Busy { dir: self.dir.path().to_path_buf() });
        }
        Ok(account.total().saturating_sub(self.account()?.total()))
    }

    /// Takes a name away; says which artifact had it. The artifact stays.
    pub fn unname(&self, name: &str) -> Result<Option<Sha256Digest>, StoreError> {
        let _writing = self.writing();
        let mut index = Index::load(&self.dir)?;
        let had = index.unname(name);
        if had.is_some() {
            index.save(&self.dir)?;
            self.sync(&self.dir)?;
        }
        Ok(had)
    }

    /// What would have to go: partial landings that nobody fills, what nothing lists, and with a budget as many artifacts
    /// as it takes, the least recently used first. What is pinned stays.
    pub fn plan_prune(&self, bytes_max: Option<u64>) -> Result<Prune, StoreError> {
        let account = self.account()?;
        let mut prune = Prune { leftover_bytes: account.leftover_bytes(), ..Prune::default() };
        let mut left = account.total().saturating_sub(prune.leftover_bytes);
        for partial in &account.partials {
            if self.is_idle(&partial.name)? {
                left = left.saturating_sub(partial.bytes);
                prune.partials.push((partial.name.clone(), partial.bytes));
            }
        }
        let mut holders = account.holders();
        for step in account.steps() {
            let Step::Artifact(one) = step else { continue };
            if bytes_max.is_none_or(|bytes_max| left <= bytes_max) {
                break;
            }
            let mut freed = 0;
            for name in &one.names {
                let holders = holders.entry(name).or_default();
                *holders = holders.saturating_sub(1);
                freed += if *holders == 0 { account.blobs.get(name).copied().unwrap_or(0) } else { 0 };
            }
            left = left.saturating_sub(freed);
            prune.artifacts.push((one.digest, freed));
        }
        prune.left_bytes = left;
        Ok(prune)
    }

    /// Removes what was planned.
    pub fn carry_out(&self, prune: &Prune) -> Result<(), StoreError> {
        let account = self.account()?;
        for partial in &account.partials {
            if prune.partials.iter().any(|(name, _)| *name == partial.name) {
                self.remove_partial(partial)?;
            }
        }
        for (digest, _) in &prune.artifacts {
            self.remove_artifact(digest, &NoReaders)?;
        }
        self.sweep(&self.pins.freeze())
    }

    /// Whether nobody fills a partial landing.
    fn is_idle(&self, name: &str) -> Result<bool, StoreError> {
        let Some(dir) = self.dir.find_sub(&format!("{}/{name}", super::PARTIAL_NAME))? else {
            return Ok(false);
        };
        match DirLock::acquire(&dir, LOCK_NAME) {
            Ok(_) => Ok(true),
            Err(StoreError::Busy { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Account {
    /// How many artifacts need each blob.
    fn holders(&self) -> BTreeMap<&BlobName, usize> {
        let mut holders = BTreeMap::new();
        for name in self.artifacts.iter().flat_map(|one| &one.names) {
            *holders.entry(name).or_default() += 1;
        }
        holders
    }

    fn bytes_of<'a>(&self, names: impl Iterator<Item = &'a BlobName>) -> u64 {
        names.filter_map(|name| self.blobs.get(name)).sum()
    }

    fn leftover_bytes(&self) -> u64 {
        let needed: BTreeSet<_> = self.artifacts.iter().flat_map(|one| &one.names).collect();
        self.bytes_of(self.blobs.keys().filter(|name| !needed.contains(name)))
    }
}

fn time(unix_ns: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(u64::try_from(unix_ns).unwrap_or_default())
}
