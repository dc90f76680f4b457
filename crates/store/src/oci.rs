//! `oci:DIR` layouts of the user: written by build, read by push and pull.
//!
//! Owns: writing and reading an OCI image layout so that skopeo and oras read it too. Does not own: what goes into a
//! manifest, or reference syntax.

use std::{
    fs::File,
    path::Path,
    sync::{Mutex, PoisonError},
};

use modelpack::digest::Sha256Digest;
use serde_json::Value;

use crate::{
    error::{Context as _, StoreError},
    files::{Dir, Fingerprint, FsKind},
    index::{self, Entry, Index, LAYOUT_NAME},
    link::{self, LinkMode, LinkUsed},
    lock::DirLock,
    proof::{hash_file, mismatch},
};

/// Most bytes of a manifest (DESIGN §4) and of a piece-tree manifest.
const MANIFEST_BYTES_MAX: u64 = 4 << 20;

/// One manifest of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its digest.
    pub digest: Sha256Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its name in this layout.
    pub tag: Option<String>,
    /// For a referrer: what it is.
    pub artifact_type: Option<String>,
}

impl From<Entry> for Listed {
    fn from(entry: Entry) -> Self {
        let Entry { media_type, digest, size, tag, artifact_type } = entry;
        Self { digest, media_type, size, tag, artifact_type }
    }
}

/// Writes a layout. Every call may be repeated; what is there already is kept.
#[derive(Debug)]
pub struct LayoutWriter {
    dir: Dir,
    blobs: Dir,
    writing: Mutex<()>,
    _lock: DirLock,
}

impl LayoutWriter {
    /// Opens the layout in `dir`, which is made if it is missing. [`StoreError::Busy`] if another process writes it.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let made = crate::landing::create_dirs(dir)?;
        let dir = Dir::open(dir).inspect_err(|_| crate::landing::remove_dirs(&made))?;
        if made.is_empty() && dir.stat(LAYOUT_NAME)?.is_none() {
            // Blobs amid somebody's files would be hard to tell from them again.
            if let Some(name) = dir.names()?.into_iter().next() {
                let reason = crate::error::Occupied::Foreign(name);
                return Err(StoreError::Occupied { dir: dir.path().to_path_buf(), reason });
            }
        }
        index::make_layout(&dir)?;
        // The one file that every layout has and that nobody replaces.
        let lock = DirLock::acquire(&dir, LAYOUT_NAME)?;
        Ok(Self { blobs: dir.make("blobs/sha256")?, dir, writing: Mutex::new(()), _lock: lock })
    }

    /// Writes a blob from a file, by reflink or else by copying, and hashes what was written: a source that changed
    /// since its digest was taken is an integrity error. `None` if the blob was there already, which its size says.
    pub fn write_blob(
        &self,
        digest: &Sha256Digest,
        size: u64,
        source: &File,
    ) -> Result<Option<LinkUsed>, StoreError> {
        let hex = digest.hex();
        if self.blobs.stat(&hex)?.is_some_and(|stat| u64::try_from(stat.st_size) == Ok(size)) {
            return Ok(None);
        }
        let temporary = format!(".{hex}.tmp");
        self.blobs.remove_if_there(&temporary)?;
        let path = self.blobs.path().join(&temporary);
        let target = self.blobs.create_new(&temporary)?;
        let write = || {
            let used = link::fill(&target, source, LinkMode::Auto, &path)?;
            let found = hash_file(&target, &path)?;
            if found.sha256 != *digest || found.bytes != size {
                return Err(mismatch(self.blobs.path().join(&hex), digest, &found.sha256));
            }
            if self.blobs.kind()? != FsKind::Tmpfs {
                target.sync_all().context("sync", &path)?;
            }
            self.blobs.rename(&temporary, &self.blobs, &hex)?;
            Ok(Some(used))
        };
        write().inspect_err(|_| {
            if let Err(error) = self.blobs.remove_if_there(&temporary) {
                tracing::warn!(%error, "a temporary file is left behind");
            }
        })
    }

    /// Brings in a file whose digest has just been computed, while the file was as `taken` says: by sharing its blocks,
    /// as a second name of it, or by copying, as `mode` allows; [`LinkMode::Auto`] makes no second name, which somebody
    /// could write through. It is not read again: a file that is no longer as it was is an integrity error. `None` if
    /// the blob was there already, which its size says.
    pub fn take_blob(
        &self,
        digest: &Sha256Digest,
        taken: &Fingerprint,
        source: &File,
        mode: LinkMode,
    ) -> Result<Option<LinkUsed>, StoreError> {
        let hex = digest.hex();
        if self.blobs.stat(&hex)?.is_some_and(|stat| u64::try_from(stat.st_size) == Ok(taken.size)) {
            return Ok(None);
        }
        let temporary = format!(".{hex}.tmp");
        self.blobs.remove_if_there(&temporary)?;
        let path = self.blobs.path().join(&temporary);
        let take = || {
            let used = if mode == LinkMode::Hard {
                self.blobs.link(source, &temporary).context("hard-link to", &path)?;
                LinkUsed::Hard
            } else {
                let target = self.blobs.create_new(&temporary)?;
                let used = link::fill(&target, source, mode, &path)?;
                if self.blobs.kind()? != FsKind::Tmpfs {
                    target.sync_all().context("sync", &path)?;
                }
                used
            };
            let now = Fingerprint::of_file(source, &path)?;
            if now != *taken {
                let found = "a file that was written meanwhile".to_owned();
                return Err(StoreError::Digest {
                    path: self.blobs.path().join(&hex),
                    expected: digest.to_string(),
                    found,
                });
            }
            self.blobs.rename(&temporary, &self.blobs, &hex)?;
            Ok(Some(used))
        };
        take().inspect_err(|_| {
            if let Err(error) = self.blobs.remove_if_there(&temporary) {
                tracing::warn!(%error, "a temporary file is left behind");
            }
        })
    }

    /// Writes a small blob: a manifest, a config, a piece tree.
    pub fn write_bytes(&self, raw: &[u8]) -> Result<Sha256Digest, StoreError> {
        let digest = Sha256Digest::of(raw);
        let hex = digest.hex();
        if self.blobs.stat(&hex)?.is_none_or(|stat| u64::try_from(stat.st_size) != Ok(raw.len() as u64)) {
            self.blobs.write_atomic(&hex, raw)?;
        }
        Ok(digest)
    }

    /// Writes a manifest and lists it, by `tag` if there is one. A tag that another manifest had moves here.
    pub fn put_manifest(&self, raw: &[u8], tag: Option<&str>) -> Result<Sha256Digest, StoreError> {
        self.list(raw, tag, None)
    }

    /// Writes a manifest that refers to another by its `subject`, and lists it with its artifact type.
    pub fn put_referrer(&self, raw: &[u8], artifact_type: &str) -> Result<Sha256Digest, StoreError> {
        self.list(raw, None, Some(artifact_type))
    }

    fn list(
        &self,
        raw: &[u8],
        tag: Option<&str>,
        artifact_type: Option<&str>,
    ) -> Result<Sha256Digest, StoreError> {
        let digest = self.write_bytes(raw)?;
        let malformed = |error: serde_json::Error| StoreError::Malformed {
            path: self.blobs.path().join(digest.hex()),
            reason: error.to_string(),
        };
        let (media_type, own_type) = index::types_of(raw).map_err(malformed)?;
        let artifact_type = artifact_type.map(str::to_owned).or(own_type);
        let tag = tag.map(str::to_owned);
        let entry = Entry { media_type, digest, size: raw.len() as u64, tag, artifact_type };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.blobs.sync()?;
        let mut index = Index::load(&self.dir)?;
        index.put(&entry);
        index.save(&self.dir)?;
        self.dir.sync()?;
        Ok(digest)
    }
}

/// Reads a layout, also one that other tools wrote.
#[derive(Debug)]
pub struct LayoutReader {
    dir: Dir,
}

impl LayoutReader {
    /// Opens the layout in `dir`.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let dir = Dir::open(dir)?;
        if dir.stat(LAYOUT_NAME)?.is_none() {
            return Err(StoreError::Missing {
                dir: dir.path().to_path_buf(),
                what: format!("`{LAYOUT_NAME}` file"),
            });
        }
        Ok(Self { dir })
    }

    /// Every manifest that the layout lists.
    pub fn list(&self) -> Result<Vec<Listed>, StoreError> {
        Ok(Index::load(&self.dir)?.entries().into_iter().map(Listed::from).collect())
    }

    /// The manifest named `tag`; without a tag the only one that is no referrer.
    pub fn resolve(&self, tag: Option<&str>) -> Result<Listed, StoreError> {
        let mut listed = self.list()?;
        match tag {
            Some(tag) => listed.retain(|one| one.tag.as_deref() == Some(tag)),
            None if listed.len() > 1 => {
                let mut plain = Vec::new();
                for one in listed {
                    if self.subject(&one.digest)?.is_none() {
                        plain.push(one);
                    }
                }
                listed = plain;
            }
            None => {}
        }
        let what = match (tag, listed.len()) {
            (_, 1) => return Ok(listed.swap_remove(0)),
            (Some(tag), _) => format!("single manifest with the tag `{tag}`"),
            (None, _) => "single manifest: name one by its tag".to_owned(),
        };
        Err(StoreError::Missing { dir: self.dir.path().to_path_buf(), what })
    }

    /// The raw bytes of the manifest that a reference means: the digest decides, else the tag.
    pub fn find(&self, tag: Option<&str>, digest: Option<&Sha256Digest>) -> Result<Vec<u8>, StoreError> {
        match digest {
            Some(digest) => self.manifest(digest),
            None => self.manifest(&self.resolve(tag)?.digest),
        }
    }

    /// The raw bytes of a manifest, checked against its digest.
    pub fn manifest(&self, digest: &Sha256Digest) -> Result<Vec<u8>, StoreError> {
        self.small_blob(digest, MANIFEST_BYTES_MAX)
    }

    /// A whole blob of at most `bytes_max` bytes, checked against its digest.
    pub fn small_blob(&self, digest: &Sha256Digest, bytes_max: u64) -> Result<Vec<u8>, StoreError> {
        let name = blob_name(digest);
        let raw = self.dir.read_small(&name, bytes_max)?.ok_or_else(|| self.missing(digest))?;
        let found = Sha256Digest::of(&raw);
        if found == *digest { Ok(raw) } else { Err(mismatch(self.dir.path().join(name), digest, &found)) }
    }

    /// A blob's file, of the size given but otherwise unchecked.
    pub fn blob(&self, digest: &Sha256Digest, size: u64) -> Result<File, StoreError> {
        let name = blob_name(digest);
        let file = self.dir.find(&name)?.ok_or_else(|| self.missing(digest))?;
        let path = self.dir.path().join(name);
        let found = file.metadata().context("look at", &path)?;
        if !found.is_file() || found.len() != size {
            let (expected, found) = (format!("{digest} of {size} bytes"), format!("{} bytes", found.len()));
            return Err(StoreError::Digest { path, expected, found });
        }
        Ok(file)
    }

    /// The listed manifests of this artifact type that refer to `subject`.
    pub fn referrers(&self, subject: &Sha256Digest, artifact_type: &str) -> Result<Vec<Listed>, StoreError> {
        let mut found = Vec::new();
        for one in self.list()? {
            if one.artifact_type.as_deref() == Some(artifact_type)
                && self.subject(&one.digest)? == Some(*subject)
            {
                found.push(one);
            }
        }
        Ok(found)
    }

    /// What a listed manifest refers to.
    fn subject(&self, digest: &Sha256Digest) -> Result<Option<Sha256Digest>, StoreError> {
        let raw = self.manifest(digest)?;
        let subject = serde_json::from_slice::<Value>(&raw)
            .ok()
            .and_then(|json| json.get("subject")?.get("digest")?.as_str()?.parse().ok());
        Ok(subject)
    }

    fn missing(&self, digest: &Sha256Digest) -> StoreError {
        StoreError::Missing { dir: self.dir.path().to_path_buf(), what: format!("blob `{digest}`") }
    }
}

fn blob_name(digest: &Sha256Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}
