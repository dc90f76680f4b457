//! Publishing: how proved blobs get their final names, and how a publication that was cut off is taken back.
//!
//! Owns: the order of syncs and renames, the marker that makes them undoable, and the removal of staging. Does not
//! own: proving blobs, or deciding where they go.
//!
//! Order: every file is prepared in staging (archives unpacked, copies made, modes and times set, bytes synced) · the
//! marker names each file and its inode · renames, small files first, then weights, then indexes · the record ·
//! directories are synced · an absent directory appears by one rename · staging is removed. A run that finds the marker
//! moves the files that still have the marked inode back and starts over from the journal.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::Path,
};

use modelpack::{digest::Sha256Digest, layout::BlobIndex};
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
    output::{
        CompleteRecord, OWN_NAME, Output, Published, RECORD_NAME, RecordedFile, SELECTION_NAME, Target,
        occupied,
    },
    proof::BlobProof,
    unpack::{self, UNPACKED_NAME, Unpacked, set_modified},
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
    /// `None` for a file of an archive: it is unpacked again.
    #[serde(default)]
    blob: Option<u32>,
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
struct Prepared {
    path: String,
    /// The directory of staging in which it lies, and its name there.
    place: (&'static str, String),
    /// The blob whose file it is.
    blob: Option<BlobIndex>,
    sha256: Sha256Digest,
    is_weight: bool,
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
        let unpacked = self.unpack(staging).inspect_err(|_| {
            // What was unpacked so far takes space and is of no use.
            if let Err(error) = unpack::clear(staging) {
                tracing::warn!(%error, "unpacked files are left behind; the next run removes them");
            }
        })?;
        let prepared = self.prepare(staging, unpacked)?;
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

    /// Makes one file a path.
    fn prepare(&self, staging: &Dir, unpacked: Vec<Unpacked>) -> Result<Vec<Prepared>, StoreError> {
        let mut taken = BTreeSet::new();
        let mut prepared = Vec::new();
        for (number, file) in self.contents.files.iter().enumerate() {
            let is_first = taken.insert(file.blob);
            prepared.push(self.prepare_file(staging, (file, number), is_first)?);
        }
        for file in unpacked {
            prepared.push(self.prepare_unpacked(staging, file)?);
        }
        // Weights after small files, indexes last: who sees the index sees everything it names.
        prepared.sort_by_key(rank);
        Ok(prepared)
    }

    /// The blob's own file for the first path, a reflink or copy for each further one.
    fn prepare_file(
        &self,
        staging: &Dir,
        (file, number): (&ContentFile, usize),
        is_first: bool,
    ) -> Result<Prepared, StoreError> {
        let place =
            if is_first { (BLOBS_NAME, file.blob.to_string()) } else { (COPIES_NAME, number.to_string()) };
        let dir = if is_first { staging.sub(BLOBS_NAME)? } else { staging.make(COPIES_NAME)? };
        let path = dir.path().join(&place.1);
        let target = if is_first {
            dir.find(&place.1)?.ok_or(Errno::NOENT).context("open", &path)?
        } else {
            dir.remove_if_there(&place.1)?;
            let copy = dir.create_new(&place.1)?;
            link::fill(&copy, &self.landing.file(file.blob), LinkMode::Auto, &path)?;
            copy
        };
        let used =
            self.placed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get(&file.blob).copied();
        // A second name of the store's file keeps the store's mode and time.
        if !is_first || used != Some(LinkUsed::Hard) {
            let mode = Mode::from_raw_mode(file.mode);
            rustix::fs::fchmod(&target, mode).context("set the mode of", &path)?;
            set_modified(&target, file.modified).context("set the time of", &path)?;
        }
        Ok(Prepared {
            path: file.path.clone(),
            place,
            blob: Some(file.blob),
            sha256: self.contents.blobs[file.blob.0 as usize].digest,
            is_weight: file.is_weight,
            inode: self.settle(&target, &path)?,
        })
    }

    fn prepare_unpacked(&self, staging: &Dir, file: Unpacked) -> Result<Prepared, StoreError> {
        let Unpacked { path, name, sha256, is_weight } = file;
        let dir = staging.sub(UNPACKED_NAME)?;
        let at = dir.path().join(&name);
        let target = dir.find(&name)?.ok_or(Errno::NOENT).context("open", &at)?;
        let inode = self.settle(&target, &at)?;
        Ok(Prepared { path, place: (UNPACKED_NAME, name), blob: None, sha256, is_weight, inode })
    }

    /// Makes a file's bytes last; says which file it is.
    fn settle(&self, file: &File, path: &Path) -> Result<u64, StoreError> {
        if self.landing.kind() != FsKind::Tmpfs {
            file.sync_all().context("sync", path)?;
        }
        Ok(Fingerprint::of_file(file, path)?.inode)
    }

    fn rename_all(&self, root: &Dir, prepared: &[Prepared]) -> Result<CompleteRecord, StoreError> {
        let staging = self.landing.dir();
        let mut files = Vec::new();
        let mut parents = BTreeMap::new();
        for ready in prepared {
            let (parent, name) = root.locate_or_make(&ready.path)?;
            let (dir, staged) = &ready.place;
            match staging.sub(dir)?.rename_new(staged, &parent, name) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    return Err(occupied(root.path(), Occupied::Foreign(ready.path.clone())));
                }
                Err(errno) => return Err(errno).context("rename to", parent.path().join(name)),
            }
            let path = parent.path().join(name);
            let stat = parent.stat(name)?.ok_or(Errno::NOENT).context("look at", &path)?;
            let Fingerprint { inode, size, mtime_ns } = Fingerprint::of(&stat);
            files.push(RecordedFile {
                path: ready.path.clone(),
                size,
                sha256: ready.sha256,
                inode,
                mtime_ns,
            });
            parents.insert(parent.path().to_path_buf(), parent);
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let selection = self.contents.selection.as_ref().map(ToString::to_string);
        let record = CompleteRecord { digest: self.contents.digest, files, selection };
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

fn rank(ready: &Prepared) -> u8 {
    match ready {
        ready if ready.path.ends_with(".index.json") => 2,
        ready if ready.is_weight => 1,
        _ => 0,
    }
}

fn write_marker(staging: &Dir, prepared: &[Prepared]) -> Result<(), StoreError> {
    let file = |ready: &Prepared| MarkedFile {
        path: ready.path.clone(),
        blob: ready.blob.map(|blob| blob.0),
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
            match file.blob.map(|blob| BlobIndex(blob).to_string()) {
                Some(blob) if blobs.stat(&blob)?.is_none() => parent.rename(name, &blobs, &blob)?,
                _ => {
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
    unpack::clear(staging)?;
    for name in [MARKER_NAME, SELECTION_NAME, JOURNAL_NAME, LOCK_NAME] {
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
