//! Collection: what is removed so that the store stays within its budget (docs/adr/0010-collection.md).
//!
//! Owns: the account of bytes, the order in which things go, and that a listed artifact is whole at every moment.
//! Does not own: who else reads an artifact; it asks before it removes one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::FileTimes,
    sync::{Arc, MutexGuard, PoisonError},
    time::SystemTime,
};

use modelpack::{digest::Sha256Digest, manifest::Manifest, piece_map::PieceMap};
use serde_json::Value;

use super::{
    BLAKE3, PARTIAL_NAME, SHA256, Store,
    pins::{BlobName, Pin, Pinned, names_of},
};
use crate::{
    contents::{BlobIdentity, Contents},
    error::{Context as _, StoreError},
    files::{Dir, Fingerprint},
    index::Index,
    journal::JOURNAL_NAME,
    landing::{BLOBS_NAME, Landing},
    lock::{DirLock, LOCK_NAME},
    publish,
};

/// Who reads artifacts that lie in the store.
pub trait Readers {
    /// Whether somebody reads an artifact now.
    fn are_there(&self, artifact: &Sha256Digest) -> bool;

    /// Asks for an artifact's end: from here on nobody begins to read it. `false` if somebody reads it, and then it
    /// stays.
    fn let_go(&self, artifact: &Sha256Digest) -> bool;
}

/// Nobody: the store is not served.
#[derive(Clone, Copy, Debug)]
pub struct NoReaders;

impl Readers for NoReaders {
    fn are_there(&self, _: &Sha256Digest) -> bool {
        false
    }

    fn let_go(&self, _: &Sha256Digest) -> bool {
        true
    }
}

/// What the store holds, in bytes.
pub(super) struct Account {
    pub(super) blobs: BTreeMap<BlobName, u64>,
    pub(super) artifacts: Vec<Kept>,
    pub(super) partials: Vec<Partial>,
}

/// A listed manifest.
pub(super) struct Kept {
    pub(super) digest: Sha256Digest,
    pub(super) names: BTreeSet<BlobName>,
    /// Of what is no model nobody knows whether it may go.
    pub(super) is_model: bool,
    /// Whether somebody has said that it stays.
    pub(super) is_pinned: bool,
    pub(super) used_ns: i64,
}

impl Kept {
    fn may_go(&self) -> bool {
        self.is_model && !self.is_pinned
    }
}

/// What has landed of an artifact that is not complete.
pub(super) struct Partial {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) used_ns: i64,
}

impl Account {
    pub(super) fn total(&self) -> u64 {
        self.blobs.values().sum::<u64>() + self.partials.iter().map(|partial| partial.bytes).sum::<u64>()
    }

    /// What would be left if everything went that may.
    fn least(&self, pinned: &Pinned<'_>, readers: &dyn Readers) -> u64 {
        let kept = self.artifacts.iter().filter(|one| !one.may_go() || readers.are_there(&one.digest));
        let names: BTreeSet<_> = kept.flat_map(|one| &one.names).chain(pinned.names()).collect();
        let blobs = names.into_iter().filter_map(|name| self.blobs.get(name)).sum::<u64>();
        let partials = self.partials.iter().filter(|partial| partial.is_pinned(pinned));
        blobs + partials.map(|partial| partial.bytes).sum::<u64>()
    }

    /// What may go unless it is in use, the least recently used first.
    pub(super) fn steps(&self) -> Vec<Step<'_>> {
        let partials = self.partials.iter().map(|one| (one.used_ns, Step::Partial(one)));
        let models = self.artifacts.iter().filter(|one| one.may_go());
        let mut steps: Vec<_> =
            partials.chain(models.map(|one| (one.used_ns, Step::Artifact(one)))).collect();
        // Stable: of two with the same time the partial one goes.
        steps.sort_by_key(|(used_ns, _)| *used_ns);
        steps.into_iter().map(|(_, step)| step).collect()
    }
}

impl Partial {
    fn is_pinned(&self, pinned: &Pinned<'_>) -> bool {
        self.digest().is_some_and(|digest| pinned.has(&digest))
    }

    pub(super) fn digest(&self) -> Option<Sha256Digest> {
        format!("{SHA256}:{}", self.name).parse().ok()
    }
}

impl Store {
    /// The same store with a budget: so many bytes of blobs and partial landings together.
    #[must_use]
    pub fn with_budget(self, bytes_max: Option<u64>) -> Self {
        Self { bytes_max, ..self }
    }

    /// Keeps an artifact from being collected.
    pub fn pin(&self, manifest: &Manifest) -> Pin {
        self.pins.hold(manifest)
    }

    /// As [`Self::landing`], with every blob's full size allocated and room made for it within the budget. While the
    /// landing lives, the artifact is pinned. [`StoreError::OverBudget`] if there is no room, and nothing was begun.
    pub fn landing_in_budget(
        &self,
        manifest: &Manifest,
        readers: &dyn Readers,
    ) -> Result<(Arc<Landing>, PieceMap), StoreError> {
        // One at a time, until what it needs is allocated and counts.
        let _one = self.bytes_max.map(|_| self.making_room());
        let pin = self.pin(manifest);
        if let Some(bytes_max) = self.bytes_max {
            self.make_room(bytes_max, self.bytes_missing(manifest)?, readers)?;
        }
        let (landing, here) = self.open_landing(&Contents::from(manifest), Some(pin))?;
        landing.preallocate()?;
        Ok((Arc::new(landing), here))
    }

    /// Removes what is not needed until the store is within its budget, as far as what is in use allows. Without a
    /// budget nothing is removed.
    pub fn collect(&self, readers: &dyn Readers) -> Result<(), StoreError> {
        let Some(bytes_max) = self.bytes_max else { return Ok(()) };
        let _one = self.making_room();
        self.make_room(bytes_max, 0, readers)
    }

    /// Notes that an artifact was used just now.
    pub(super) fn touch(&self, digest: &Sha256Digest) {
        let noted = self.used.open_or_create(&digest.hex()).and_then(|file| {
            let now = FileTimes::new().set_modified(SystemTime::now());
            file.set_times(now).context("note the use of", self.used.path().join(digest.hex()))
        });
        // Only the order in which artifacts go depends on it.
        if let Err(error) = noted {
            tracing::warn!(%digest, error = &error as &dyn std::error::Error, "a use is not noted");
        }
    }

    fn making_room(&self) -> MutexGuard<'_, ()> {
        self.making_room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_room(&self, bytes_max: u64, need: u64, readers: &dyn Readers) -> Result<(), StoreError> {
        let over = |in_use| {
            let dir = self.dir.path().to_path_buf();
            Err(StoreError::OverBudget { dir, need, in_use, bytes_max })
        };
        let fits = |total: u64| total.saturating_add(need) <= bytes_max;
        let account = self.account()?;
        if fits(account.total()) {
            return Ok(());
        }
        let least = account.least(&self.pins.freeze(), readers);
        // Nothing is thrown away for a pull that will not fit all the same; and without one, as much goes as may.
        if need > 0 && !fits(least) {
            return over(least);
        }
        self.sweep(&self.pins.freeze())?;
        let mut total = self.account()?.total();
        for step in account.steps() {
            if fits(total) {
                return Ok(());
            }
            let is_gone = match step {
                Step::Partial(partial) => self.remove_partial(partial)?,
                Step::Artifact(one) => self.remove_artifact(&one.digest, readers)?,
            };
            if is_gone {
                total = self.account()?.total();
            }
        }
        if fits(total) {
            return Ok(());
        }
        if need == 0 {
            // Nobody asks for room: what is in use may go later.
            tracing::warn!(total, bytes_max, "the store is over its budget by what is in use");
            return Ok(());
        }
        over(total)
    }

    /// Bytes that a landing of this artifact would add.
    fn bytes_missing(&self, manifest: &Manifest) -> Result<u64, StoreError> {
        let partial =
            self.dir.find_sub(&format!("{PARTIAL_NAME}/{}/{BLOBS_NAME}", manifest.digest().hex()))?;
        let mut missing = 0_u64;
        for (index, blob) in manifest.layout().blobs().zip(manifest.blobs()) {
            if self.blob_file(&BlobIdentity::from(blob))?.is_some() {
                continue;
            }
            // What was allocated for it before counts already.
            let stat = partial.as_ref().map_or(Ok(None), |partial| partial.stat(&index.to_string()))?;
            let allocated = stat.map_or(0, |stat| Fingerprint::of(&stat).size);
            missing = missing.saturating_add(blob.size.saturating_sub(allocated));
        }
        let mut small = 0;
        for (digest, bytes) in [
            (manifest.digest(), manifest.raw().len() as u64),
            (manifest.config().digest, manifest.config().size),
        ] {
            small += if self.sha256.stat(&digest.hex())?.is_some() { 0 } else { bytes };
        }
        Ok(missing.saturating_add(small))
    }

    /// Takes an artifact out of the index, then removes what only it needed; says whether it did.
    pub(super) fn remove_artifact(
        &self,
        digest: &Sha256Digest,
        readers: &dyn Readers,
    ) -> Result<bool, StoreError> {
        // Held to the end: a pull of it that comes now waits, and finds it gone.
        let pinned = self.pins.freeze();
        if pinned.has(digest) || !readers.let_go(digest) {
            return Ok(false);
        }
        {
            let _writing = self.writing();
            let mut index = Index::load(&self.dir)?;
            index.remove(digest);
            index.save(&self.dir)?;
            self.sync(&self.dir)?;
        }
        self.sweep(&pinned)?;
        tracing::info!(%digest, "collected");
        Ok(true)
    }

    pub(super) fn remove_partial(&self, partial: &Partial) -> Result<bool, StoreError> {
        let pinned = self.pins.freeze();
        let Some(dir) = self.dir.find_sub(&format!("{PARTIAL_NAME}/{}", partial.name))? else {
            return Ok(true);
        };
        if partial.is_pinned(&pinned) {
            return Ok(false);
        }
        match DirLock::acquire(&dir, LOCK_NAME) {
            Ok(_lock) => publish::clear_staging(&dir)?,
            Err(StoreError::Busy { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        tracing::info!(artifact = partial.name, "collected what had landed of it");
        Ok(true)
    }

    /// Removes what nothing listed and no pin names: also what a crash has left.
    pub(super) fn sweep(&self, pinned: &Pinned<'_>) -> Result<(), StoreError> {
        let _writing = self.writing();
        let (mut needed, mut listed) = (pinned.names().clone(), BTreeSet::new());
        for one in self.kept()? {
            listed.insert(one.digest.hex());
            needed.extend(one.names);
        }
        // Records first: a blob without one is used by nobody.
        for (dir, algorithm) in [
            (&self.proved, String::new()),
            (&self.sha256, format!("{SHA256}-")),
            (&self.blake3, format!("{BLAKE3}-")),
            (&self.trees, format!("{BLAKE3}-")),
        ] {
            for file in dir.names()? {
                if !needed.contains(&format!("{algorithm}{file}")) {
                    dir.remove_if_there(&file)?;
                }
            }
        }
        for dir in [&self.used, &self.kept] {
            for hex in dir.names()?.into_iter().filter(|hex| !listed.contains(hex)) {
                dir.remove_if_there(&hex)?;
            }
        }
        Ok(())
    }

    pub(super) fn account(&self) -> Result<Account, StoreError> {
        let mut partials = Vec::new();
        // Before the blobs: one that moves meanwhile counts twice, not never.
        if let Some(dir) = self.dir.find_sub(PARTIAL_NAME)? {
            for name in dir.names()? {
                partials.extend(self.partial(&name)?);
            }
        }
        // From here on no blob gets another name.
        let _writing = self.writing();
        let mut blobs = BTreeMap::new();
        for (algorithm, dir) in [(SHA256, &self.sha256), (BLAKE3, &self.blake3)] {
            for hex in dir.names()? {
                if let Some(stat) = dir.stat(&hex)? {
                    blobs.insert(format!("{algorithm}-{hex}"), Fingerprint::of(&stat).size);
                }
            }
        }
        Ok(Account { blobs, artifacts: self.kept()?, partials })
    }

    fn partial(&self, name: &str) -> Result<Option<Partial>, StoreError> {
        let Some(dir) = self.dir.find_sub(&format!("{PARTIAL_NAME}/{name}"))? else { return Ok(None) };
        let used_ns = dir.stat(JOURNAL_NAME)?.map_or(0, |stat| Fingerprint::of(&stat).mtime_ns);
        let bytes = dir.find_sub(BLOBS_NAME)?.map_or(Ok(0), |blobs| bytes_of(&blobs))?;
        Ok(Some(Partial { name: name.to_owned(), bytes, used_ns }))
    }

    /// The listed manifests. Whoever calls holds `writing`.
    fn kept(&self) -> Result<Vec<Kept>, StoreError> {
        let mut kept: Vec<Kept> = Vec::new();
        for entry in Index::load(&self.dir)?.entries() {
            let (digest, hex) = (entry.digest, entry.digest.hex());
            if kept.iter().any(|one| one.digest == digest) {
                continue;
            }
            let raw = self.read_small(&digest)?;
            let model = raw.as_ref().and_then(|raw| Manifest::parse(raw).ok());
            let is_model = model.is_some();
            let names = match (&model, &raw) {
                (Some(manifest), _) => names_of(manifest),
                (None, Some(_)) => self.names_of_other(digest)?,
                (None, None) => BTreeSet::from([format!("{SHA256}-{hex}")]),
            };
            let stat = self.used.stat(&hex)?.map_or_else(|| self.sha256.stat(&hex), |stat| Ok(Some(stat)))?;
            let used_ns = stat.map_or(0, |stat| Fingerprint::of(&stat).mtime_ns);
            let is_pinned = self.kept.stat(&hex)?.is_some();
            kept.push(Kept { digest, names, is_model, is_pinned, used_ns });
        }
        Ok(kept)
    }

    /// What a manifest of another kind refers to, an index of images with all that its manifests refer to.
    fn names_of_other(&self, listed: Sha256Digest) -> Result<BTreeSet<BlobName>, StoreError> {
        let (mut names, mut open) = (BTreeSet::new(), vec![listed]);
        while let Some(digest) = open.pop() {
            if !names.insert(format!("{SHA256}-{}", digest.hex())) {
                continue;
            }
            let Some(raw) = self.read_small(&digest)? else { continue };
            let Ok(json) = serde_json::from_slice::<Value>(&raw) else { continue };
            let read = |descriptor: &Value| descriptor.get("digest")?.as_str()?.parse::<Sha256Digest>().ok();
            let list = |name: &str| json.get(name).and_then(Value::as_array).into_iter().flatten();
            let plain = list("layers").chain(json.get("config")).filter_map(read);
            names.extend(plain.map(|digest| format!("{SHA256}-{}", digest.hex())));
            open.extend(list("manifests").filter_map(read));
        }
        Ok(names)
    }
}

/// Something that may go.
pub(super) enum Step<'a> {
    Partial(&'a Partial),
    Artifact(&'a Kept),
}

fn bytes_of(dir: &Dir) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for name in dir.names()? {
        bytes += dir.stat(&name)?.map_or(0, |stat| Fingerprint::of(&stat).size);
    }
    Ok(bytes)
}
