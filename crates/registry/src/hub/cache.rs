//! The cache that all tools of a user share for what they read from a hub.
//!
//! Source: `huggingface_hub` 2.4, `file_download.py`, `_snapshot_download.py` and `_tree_cache.py`. Owns: its layout,
//! `models--ORG--NAME/{blobs,refs,snapshots,trees}`, read and written. Does not own: proof. A blob there has the right
//! name and size; whoever uses its bytes hashes them.
//!
//! **Invariant:** a blob appears under its name by a rename, complete; its file is shared with nobody, so that no other
//! directory's writer can change it.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use modelpack::{
    hub::{Commit, HubError, HubFile, Listing, cached_file},
    manifest::LAYERS_MAX,
    reference::HubReference,
};

use super::HubFailure;

/// Longest listing that is read: some hundred bytes for each file that an artifact may have.
const TREE_BYTES_MAX: u64 = 16 << 20;

/// Longest name of a commit in a file of its own.
const REF_BYTES_MAX: u64 = 256;

/// Directories below one another in a snapshot.
const DEPTH_MAX: usize = 32;

/// What marks a directory as a cache, for tools that make backups (<https://bford.info/cachedir/>).
const CACHE_TAG: &str = "Signature: 8a477f597d28d172789f06886806bc55\n\
    # This file is a cache directory tag created by modelctl, as huggingface_hub creates it.\n";

/// One model in the shared cache, be it there or not.
#[derive(Clone, Debug)]
pub struct CachedModel {
    root: PathBuf,
    dir: PathBuf,
    at: HubReference,
}

impl CachedModel {
    /// The model in the cache at `root` (`HF_HUB_CACHE`).
    pub fn new(root: &Path, at: &HubReference) -> Self {
        let dir = root.join(format!("models--{}--{}", at.owner, at.name));
        Self { root: root.to_owned(), dir, at: at.clone() }
    }

    /// The directory whose files have the model's paths.
    pub fn snapshot(&self, commit: Commit) -> PathBuf {
        self.dir.join("snapshots").join(commit.to_string())
    }

    /// A directory on the cache's file system for files on their way into it.
    pub fn staging(&self, commit: Commit) -> PathBuf {
        self.dir.join(format!(".modelctl-{commit}"))
    }

    /// The bytes of a file, if somebody has put them there; they are not proved.
    pub fn blob(&self, file: &HubFile) -> Option<File> {
        let opened = File::open(self.blob_path(file)).ok()?;
        let metadata = opened.metadata().ok()?;
        (metadata.is_file() && metadata.len() == file.size).then_some(opened)
    }

    /// The same by path.
    pub fn blob_path(&self, file: &HubFile) -> PathBuf {
        self.dir.join("blobs").join(file.etag())
    }

    /// What the revision is here, without asking the hub: every file of it is there.
    pub(super) fn found(&self) -> Result<(Commit, Listing), HubFailure> {
        let revision = self.at.revision();
        let absent = || HubFailure::NoRevision {
            model: self.at.model(),
            revision: revision.to_owned(),
            dir: self.dir.clone(),
        };
        let commit = if let Ok(commit) = revision.parse() {
            commit
        } else {
            let path = self.dir.join("refs").join(revision);
            let raw = read(&path, REF_BYTES_MAX)?.ok_or_else(absent)?;
            String::from_utf8_lossy(&raw).trim().parse().map_err(|_| absent())?
        };
        let tree = self.tree_path(commit);
        let listing = match read(&tree, TREE_BYTES_MAX)?.map(|raw| Listing::parse_tree(&raw)) {
            Some(Ok(listing)) => listing,
            Some(Err(error)) => {
                tracing::warn!(%error, "`{}` is not used", tree.display());
                self.linked(commit)?.ok_or_else(absent)?
            }
            None => self.linked(commit)?.ok_or_else(absent)?,
        };
        let missing = listing.files().iter().filter(|file| self.blob(file).is_none());
        let files: Vec<_> = missing.map(|file| file.path.clone()).collect();
        if files.is_empty() {
            return Ok((commit, listing));
        }
        Err(HubFailure::Missing { model: self.at.model(), files, dir: self.dir.clone() })
    }

    /// What the links of a snapshot say. Whether the model has more files, they do not.
    fn linked(&self, commit: Commit) -> Result<Option<Listing>, HubFailure> {
        let top = self.snapshot(commit);
        if !top.is_dir() {
            return Ok(None);
        }
        let mut files = Vec::new();
        let mut dirs = vec![(top.clone(), 0)];
        while let Some((dir, depth)) = dirs.pop() {
            let failed = |source| HubFailure::Cache { path: dir.clone(), source };
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() && depth < DEPTH_MAX {
                    dirs.push((entry.path(), depth + 1));
                } else {
                    files.push(self.link(&top, &entry.path())?);
                }
                if files.len() > LAYERS_MAX {
                    return Err(self.unusable(HubError::TooMany));
                }
            }
        }
        tracing::warn!("the cache keeps no listing of `{}`: it may have more files than these", self.at);
        Listing::new(files).map(Some).map_err(|error| self.unusable(error))
    }

    fn link(&self, top: &Path, path: &Path) -> Result<HubFile, HubFailure> {
        let failed = |source| HubFailure::Cache { path: path.to_owned(), source };
        let target = fs::read_link(path).map_err(failed)?;
        // A blob that is gone has no size, and is found missing then.
        let size = fs::metadata(path).map_or(0, |metadata| metadata.len());
        let below = path.strip_prefix(top).ok().and_then(Path::to_str);
        let etag = target.file_name().and_then(|name| name.to_str());
        let named = below.zip(etag).ok_or_else(|| failed(io::ErrorKind::InvalidFilename.into()))?;
        cached_file(named.0, size, named.1).map_err(|error| self.unusable(error))
    }

    fn unusable(&self, source: HubError) -> HubFailure {
        HubFailure::Listing { model: self.at.model(), source }
    }

    fn tree_path(&self, commit: Commit) -> PathBuf {
        self.dir.join("trees").join(format!("{commit}.json"))
    }

    /// Moves proved files from `dir`, where they have the paths of the listing, to their places in the cache, and makes
    /// the snapshot: what `dir` lacks is in the cache already.
    pub fn take(&self, commit: Commit, listing: &Listing, dir: &Path) -> Result<(), HubFailure> {
        let snapshot = self.snapshot(commit);
        for file in listing.files() {
            let (from, blob) = (dir.join(&file.path), self.blob_path(file));
            if from.is_file() {
                make_parent(&blob)?;
                let moved = fs::rename(&from, &blob);
                moved.map_err(|source| HubFailure::Cache { path: blob.clone(), source })?;
            }
            // `../../blobs/ETAG`, and one level more for each directory of the path.
            let up = "../".repeat(2 + file.path.matches('/').count());
            put_link(&snapshot.join(&file.path), &format!("{up}blobs/{}", file.etag()))?;
        }
        put(&self.tree_path(commit), &listing.to_tree())?;
        let revision = self.at.revision();
        if revision != commit.to_string() {
            put(&self.dir.join("refs").join(revision), commit.to_string().as_bytes())?;
        }
        let tag = self.root.join("CACHEDIR.TAG");
        if tag.exists() { Ok(()) } else { put(&tag, CACHE_TAG.as_bytes()) }
    }
}

/// A file of at most `bytes_max` bytes; `None` if it is not there.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, HubFailure> {
    let read = || {
        let size = fs::metadata(path)?.len();
        if size > bytes_max { Err(io::ErrorKind::FileTooLarge.into()) } else { fs::read(path) }
    };
    match read() {
        Ok(raw) => Ok(Some(raw)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubFailure::Cache { path: path.to_owned(), source }),
    }
}

fn make_parent(path: &Path) -> Result<(), HubFailure> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| HubFailure::Cache { path: parent.to_owned(), source })
}

/// Writes a small file in whole or not at all.
fn put(path: &Path, raw: &[u8]) -> Result<(), HubFailure> {
    make_parent(path)?;
    let new = beside(path);
    let written = fs::write(&new, raw).and_then(|()| fs::rename(&new, path));
    written.map_err(|source| HubFailure::Cache { path: path.to_owned(), source })
}

/// Makes a link, in place of whatever file is there.
fn put_link(path: &Path, target: &str) -> Result<(), HubFailure> {
    if fs::read_link(path).is_ok_and(|there| there == Path::new(target)) {
        return Ok(());
    }
    make_parent(path)?;
    let new = beside(path);
    let made = symlink(target, &new).and_then(|()| fs::rename(&new, path));
    made.map_err(|source| HubFailure::Cache { path: path.to_owned(), source })
}

/// A name that nobody else uses, in the same directory.
fn beside(path: &Path) -> PathBuf {
    path.with_file_name(format!(".modelctl-{}-{:08x}.tmp", std::process::id(), fastrand::u32(..)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use modelpack::{digest::Sha256Digest, hub::GitBlob};

    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn at(revision: Option<&str>) -> HubReference {
        HubReference { owner: "org".into(), name: "name".into(), revision: revision.map(str::to_owned) }
    }

    fn listing() -> Listing {
        let small = cached_file("sub/config.json", 2, &GitBlob::of(b"{}").to_string()).unwrap();
        let large = cached_file("model.bin", 3, &Sha256Digest::of(b"abc").hex()).unwrap();
        Listing::new(vec![small, large]).unwrap()
    }

    fn filled(root: &Path) -> CachedModel {
        let cache = CachedModel::new(root, &at(None));
        let commit = COMMIT.parse().unwrap();
        let staged = cache.staging(commit);
        fs::create_dir_all(staged.join("sub")).unwrap();
        fs::write(staged.join("sub/config.json"), "{}").unwrap();
        fs::write(staged.join("model.bin"), "abc").unwrap();
        cache.take(commit, &listing(), &staged).unwrap();
        cache
    }

    #[test]
    fn what_is_taken_is_found_again() {
        let root = tempfile::tempdir().unwrap();
        let cache = filled(root.path());
        let commit: Commit = COMMIT.parse().unwrap();
        let snapshot = cache.snapshot(commit);
        assert_eq!(fs::read(snapshot.join("sub/config.json")).unwrap(), b"{}");
        assert_eq!(fs::read_link(snapshot.join("model.bin")).unwrap().components().count(), 4);
        assert_eq!(fs::read_to_string(cache.dir.join("refs/main")).unwrap(), COMMIT);
        assert_eq!(cache.found().unwrap(), (commit, listing()));
        // Without the listing, by the links.
        fs::remove_dir_all(cache.dir.join("trees")).unwrap();
        let (_, linked) = cache.found().unwrap();
        assert!(linked.files().iter().map(HubFile::etag).eq(listing().files().iter().map(HubFile::etag)));
        let by_commit = CachedModel::new(root.path(), &at(Some(COMMIT)));
        assert_eq!(by_commit.found().unwrap().0, commit);
        let other = CachedModel::new(root.path(), &at(Some("v2")));
        assert!(matches!(other.found(), Err(HubFailure::NoRevision { .. })));
    }

    #[test]
    fn what_is_missing_is_named() {
        let root = tempfile::tempdir().unwrap();
        let cache = filled(root.path());
        fs::write(cache.blob_path(&listing().files()[0]), "ab").unwrap();
        let check = || match cache.found() {
            Err(HubFailure::Missing { files, .. }) => assert_eq!(files, ["model.bin"]),
            other => panic!("{other:?}"),
        };
        check();
        fs::remove_file(cache.blob_path(&listing().files()[0])).unwrap();
        check();
    }

    #[test]
    fn a_snapshot_that_is_no_links_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let cache = filled(root.path());
        fs::remove_dir_all(cache.dir.join("trees")).unwrap();
        fs::write(cache.snapshot(COMMIT.parse().unwrap()).join("extra"), "x").unwrap();
        assert!(matches!(cache.found(), Err(HubFailure::Cache { .. })));
    }

    #[test]
    fn a_link_is_replaced_and_a_blob_is_not_written_into() {
        let root = tempfile::tempdir().unwrap();
        let cache = filled(root.path());
        let all = listing();
        let file = &all.files()[0];
        let before = cache.blob(file).unwrap();
        filled(root.path());
        assert!(cache.blob(file).is_some());
        let again = cache.blob(file).unwrap();
        assert_ne!(before.metadata().unwrap().ino(), again.metadata().unwrap().ino());
    }
}
