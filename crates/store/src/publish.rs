//! Publishing: how proved blobs get their final names, and how a publication that was cut off is taken back.
//!
//! Owns: the order of syncs and renames, the marker that makes them undoable, and the removal of staging. Does not
//! own: proving blobs, or deciding where they go.
//!
//! Order: every file is prepared in staging (copies made, modes set, bytes synced) · the marker names each file and
//! its inode · renames, small files first, then weights, then indexes · the record · directories are synced · an
//! absent directory appears by one rename · staging is removed. A run that finds the marker moves the files that
//! still have the marked inode back and starts over from the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use modelpack::layout::BlobIndex;
use rustix::{fs::Mode, io::Errno};
use serde::{Deserialize, Serialize};

use crate::{
    contents::ContentFile,
    error::{Context as _, Occupied, StoreError},
    files::{Dir, Fingerprint, FsKind, is_regular},
    journal::JOURNAL_NAME,
    landing::{BLOBS_NAME, Landing},
    link::{self, LinkMode, LinkUsed},
    lock::LOCK_NAME,
    output::{CompleteRecord, OWN_NAME, Output, Published, RECORD_NAME, RecordedFile, Target, occupied},
    proof::BlobProof,
};

/// The tree that becomes an absent directory.
pub(crate) const TREE_NAME: &str = "tree";
/// Second and further files of one blob.
const COPIES_NAME: &str = "copies";
const MARKER_NAME: &str = "publishing";
/// Most bytes of a marker: as a record's.
const MARKER_BYTES_MAX: u64 = 64 << 20;

/// Which files are being renamed out of staging.
#[derive(Serialize, Deserialize)]
pub(crate) struct Marker {
    files: Vec<MarkedFile>,
}

#[derive(Serialize, Deserialize)]
struct MarkedFile {
    path: String,
    blob: u32,
    inode: u64,
}

impl Marker {
    pub(crate) fn load(staging: &Dir) -> Result<Option<Self>, StoreError> {
        let Some(bytes) = staging.read_small(MARKER_NAME, MARKER_BYTES_MAX)? else { return Ok(None) };
        let malformed = |reason| StoreError::Malformed { path: staging.path().join(MARKER_NAME), reason };
        let marker: Self = serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        for file in &marker.files {
            crate::output::check_path(&file.path)?;
        }
        Ok(Some(marker))
    }

    /// The names that the published files have in the directory itself.
    pub(crate) fn names(&self) -> Vec<String> {
        let first = |file: &MarkedFile| file.path.split('/').next().unwrap_or_default().to_owned();
        self.files.iter().map(first).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

/// A file ready to be renamed.
struct Prepared<'a> {
    file: &'a ContentFile,
    /// Its name in `blobs`, or in `copies` if another file has taken the blob.
    name: String,
    is_copy: bool,
    inode: u64,
}

impl Output {
    /// Gives every file its final name. Needs a proof for each blob that was not placed by the local peer.
    ///
    /// After an error nothing half-written has a final name that the next run does not know of: open the directory
    /// again to resume.
    pub fn publish(self, proofs: impl IntoIterator<Item = BlobProof>) -> Result<Published, StoreError> {
        let proofs: Vec<_> = proofs.into_iter().collect();
        self.check_proofs(&proofs)?;
        let staging = self.landing.dir();
        for blob in self.landing.layout().blobs() {
            self.landing.seal(blob)?;
        }
        // Bytes may have landed between the check and the seal; from here on none can.
        if let Some(stale) = proofs.iter().find(|proof| !self.landing.admits(proof)) {
            return Err(StoreError::Unproved { dir: staging.path().to_path_buf(), blob: stale.blob });
        }
        let prepared = self.prepare(staging)?;
        write_marker(staging, &prepared)?;
        let root = match &self.target {
            Target::Beside { .. } => staging.make(TREE_NAME)?,
            Target::Inside { dir } => dir.again()?,
        };
        let record = self.rename_all(&root, &prepared)?;
        if let Target::Beside { dir } = &self.target {
            rename_tree(staging, dir)?;
        }
        if let Err(error) = self.remove_staging() {
            tracing::warn!(%error, "staging is left behind; the next run removes it");
        }
        let dir = match &self.target {
            Target::Beside { dir } => dir.clone(),
            Target::Inside { dir } => dir.path().to_path_buf(),
        };
        let placed = self.placed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let copied = placed.values().filter(|used| **used == LinkUsed::Copy).count();
        Ok(Published { dir, record, copied: u32::try_from(copied).expect("blobs are numbered by u32") })
    }

    fn check_proofs(&self, proofs: &[BlobProof]) -> Result<(), StoreError> {
        let placed = self.placed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut proved: BTreeSet<BlobIndex> =
            placed.keys().copied().filter(|blob| self.landing.came_from_store(*blob)).collect();
        for proof in proofs {
            let is_good =
                self.landing.admits(proof) && proof.fits(&self.contents.blobs[proof.blob.0 as usize]);
            if is_good {
                proved.insert(proof.blob);
            }
        }
        match self.landing.layout().blobs().find(|blob| !proved.contains(blob)) {
            Some(blob) => Err(StoreError::Unproved { dir: self.landing.dir().path().to_path_buf(), blob }),
            None => Ok(()),
        }
    }

    /// Makes one file a path: the blob's own for the first, a reflink or copy for each further one.
    fn prepare(&self, staging: &Dir) -> Result<Vec<Prepared<'_>>, StoreError> {
        let placed = self.placed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let mut taken = BTreeMap::new();
        let mut prepared = Vec::new();
        for (number, file) in self.contents.files.iter().enumerate() {
            let blob_file = self.landing.file(file.blob);
            let is_copy = taken.insert(file.blob, number).is_some();
            let (dir, name) = if is_copy {
                (staging.make(COPIES_NAME)?, number.to_string())
            } else {
                (staging.sub(BLOBS_NAME)?, file.blob.to_string())
            };
            let path = dir.path().join(&name);
            let target = if is_copy {
                dir.remove_if_there(&name)?;
                let copy = dir.create_new(&name)?;
                link::fill(&copy, &blob_file, LinkMode::Auto, &path)?;
                copy
            } else {
                dir.find(&name)?.ok_or(Errno::NOENT).context("open", &path)?
            };
            // A second name of the store's file keeps the store's mode.
            if is_copy || placed.get(&file.blob) != Some(&LinkUsed::Hard) {
                let mode = if file.is_executable { 0o755 } else { 0o644 };
                rustix::fs::fchmod(&target, Mode::from_raw_mode(mode)).context("set the mode of", &path)?;
            }
            if self.landing.kind() != FsKind::Tmpfs {
                target.sync_all().context("sync", &path)?;
            }
            let inode = Fingerprint::of_file(&target, &path)?.inode;
            prepared.push(Prepared { file, name, is_copy, inode });
        }
        // Weights after small files, indexes last: who sees the index sees everything it names.
        prepared.sort_by_key(|ready| rank(ready.file));
        Ok(prepared)
    }

    fn rename_all(&self, root: &Dir, prepared: &[Prepared<'_>]) -> Result<CompleteRecord, StoreError> {
        let staging = self.landing.dir();
        let mut files = Vec::new();
        let mut parents = BTreeMap::new();
        for ready in prepared {
            let (parent, name) = root.locate_or_make(&ready.file.path)?;
            let from = staging.sub(if ready.is_copy { COPIES_NAME } else { BLOBS_NAME })?;
            match from.rename_new(&ready.name, &parent, name) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    return Err(occupied(root.path(), Occupied::Foreign(ready.file.path.clone())));
                }
                Err(errno) => return Err(errno).context("rename to", parent.path().join(name)),
            }
            let path = parent.path().join(name);
            let stat = parent.stat(name)?.ok_or(Errno::NOENT).context("look at", &path)?;
            let Fingerprint { inode, size, mtime_ns } = Fingerprint::of(&stat);
            let sha256 = self.contents.blobs[ready.file.blob.0 as usize].digest;
            files.push(RecordedFile { path: ready.file.path.clone(), size, sha256, inode, mtime_ns });
            parents.insert(parent.path().to_path_buf(), parent);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let record = CompleteRecord { digest: self.contents.digest, files };
        if self.landing.kind() != FsKind::Tmpfs {
            for parent in parents.values() {
                sync_up_to(parent, root)?;
            }
        }
        let own = root.make(OWN_NAME)?;
        own.write_atomic(RECORD_NAME, &record.to_json())?;
        own.sync()?;
        root.sync()?;
        Ok(record)
    }

    fn remove_staging(&self) -> Result<(), StoreError> {
        clear_staging(self.landing.dir())
    }
}

/// Syncs a directory and those above it up to `root`: each was perhaps made just now.
fn sync_up_to(dir: &Dir, root: &Dir) -> Result<(), StoreError> {
    dir.sync()?;
    if let Ok(rel) = dir.path().strip_prefix(root.path()) {
        for above in rel.ancestors().skip(1).filter_map(Path::to_str).filter(|above| !above.is_empty()) {
            root.sub(above)?.sync()?;
        }
    }
    Ok(())
}

fn rank(file: &ContentFile) -> u8 {
    match file {
        file if file.path.ends_with(".index.json") => 2,
        file if file.is_weight => 1,
        _ => 0,
    }
}

fn write_marker(staging: &Dir, prepared: &[Prepared<'_>]) -> Result<(), StoreError> {
    let file = |ready: &Prepared<'_>| MarkedFile {
        path: ready.file.path.clone(),
        blob: ready.file.blob.0,
        inode: ready.inode,
    };
    let marker = Marker { files: prepared.iter().map(file).collect() };
    let bytes = serde_json::to_vec(&marker).expect("text and numbers always serialise");
    staging.write_atomic(MARKER_NAME, &bytes)?;
    staging.sync()
}

/// Makes the absent directory appear as a whole.
fn rename_tree(staging: &Dir, dir: &Path) -> Result<(), StoreError> {
    let parent = Dir::open(parent_of(dir))?;
    let name = dir.file_name().and_then(|name| name.to_str()).expect("staging was named after it");
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    let renamed = match rustix::fs::renameat_with(staging, TREE_NAME, &parent, name, flags) {
        // Without the flag an empty directory of ours is replaced: mkdir fails if somebody else was first.
        Err(Errno::INVAL | Errno::NOSYS) => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
            .and_then(|()| rustix::fs::renameat(staging, TREE_NAME, &parent, name)),
        other => other,
    };
    match renamed {
        Ok(()) => parent.sync(),
        Err(Errno::EXIST | Errno::NOTEMPTY) => {
            Err(occupied(dir, Occupied::Foreign("what appeared there meanwhile".into())))
        }
        Err(errno) => Err(errno).context("rename to", dir),
    }
}

/// The directory in which `path` lies.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Takes a publication back that was cut off: files that still are what the marker says return to staging.
pub(crate) fn undo(staging: &Dir, root: Option<&Dir>) -> Result<(), StoreError> {
    let Some(marker) = Marker::load(staging)? else { return Ok(()) };
    let blobs = staging.make(BLOBS_NAME)?;
    if let Some(root) = root {
        for file in &marker.files {
            let Some((parent, name)) = root.locate(&file.path)? else { continue };
            let Some(stat) = parent.stat(name)? else { continue };
            if !is_regular(&stat) || stat.st_ino != file.inode {
                continue;
            }
            let blob = BlobIndex(file.blob).to_string();
            match blobs.stat(&blob)? {
                None => parent.rename(name, &blobs, &blob)?,
                Some(_) => {
                    parent.remove_if_there(name)?;
                }
            }
        }
        remove_empty_parents(root, marker.files.iter().map(|file| file.path.as_str()))?;
    }
    if let Some(tree) = staging.find_sub(TREE_NAME)? {
        if let Some(own) = tree.find_sub(OWN_NAME)? {
            own.remove_if_there(RECORD_NAME)?;
            tree.remove_empty_dir(OWN_NAME)?;
        }
        staging.remove_empty_dir(TREE_NAME)?;
    }
    remove_copies(staging)?;
    staging.remove_if_there(MARKER_NAME)?;
    Ok(())
}

fn remove_copies(staging: &Dir) -> Result<(), StoreError> {
    if let Some(copies) = staging.find_sub(COPIES_NAME)? {
        for name in copies.names()? {
            copies.remove_if_there(&name)?;
        }
        staging.remove_empty_dir(COPIES_NAME)?;
    }
    Ok(())
}

fn remove_empty_parents<'a>(root: &Dir, paths: impl Iterator<Item = &'a str>) -> Result<(), StoreError> {
    let mut parents = BTreeSet::new();
    for path in paths {
        let mut at = path;
        while let Some((parent, _)) = at.rsplit_once('/') {
            parents.insert(parent);
            at = parent;
        }
    }
    // A longer path sorts after its prefix, so that in reverse the inner directories come first.
    for path in parents.into_iter().rev() {
        if let Some((parent, name)) = root.locate(path)? {
            parent.remove_empty_dir(name)?;
        }
    }
    Ok(())
}

/// Removes a staging directory and the lock in it last: until then nobody else may come in.
pub(crate) fn clear_staging(staging: &Dir) -> Result<(), StoreError> {
    if let Some(blobs) = staging.find_sub(BLOBS_NAME)? {
        for name in blobs.names()? {
            blobs.remove_if_there(&name)?;
        }
        staging.remove_empty_dir(BLOBS_NAME)?;
    }
    remove_copies(staging)?;
    for name in [MARKER_NAME, JOURNAL_NAME, LOCK_NAME] {
        staging.remove_if_there(name)?;
    }
    if let Some(name) = staging.path().file_name().and_then(|name| name.to_str()) {
        Dir::open(parent_of(staging.path()))?.remove_empty_dir(name)?;
    }
    Ok(())
}

/// What is removed when a landing's blobs have all gone elsewhere.
pub(crate) fn clear_landing(landing: &Landing) -> Result<(), StoreError> {
    clear_staging(landing.dir())
}
