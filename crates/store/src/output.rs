//! Output directories (`-o DIR`): where the staging lies, who may have it, and what was proved in the end.
//!
//! Owns: telling a fresh, an occupied and a complete directory apart, and the record of a complete one. Does not own:
//! the renames of publishing (`publish`), or landing pieces ([`Landing`]).

use std::{
    collections::BTreeMap,
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use modelpack::{digest::Sha256Digest, layout::BlobIndex};
use serde::{Deserialize, Serialize};

use crate::{
    ahead::Ahead,
    contents::Contents,
    error::{Context as _, Occupied, StoreError},
    files::{Dir, Fingerprint, FsKind, is_regular},
    journal::Journal,
    landing::{Landing, Site},
    link::{self, LinkMode, LinkUsed},
    lock::{DirLock, LOCK_NAME},
    publish::{self, Marker},
};

/// Our own part of an output directory.
pub(crate) const OWN_NAME: &str = ".modelctl";
/// The staging directory within it.
const STAGING_NAME: &str = "staging";
/// The record of what was proved.
pub(crate) const RECORD_NAME: &str = "complete.json";
/// In a staging directory: the selection that it is for, where it is not for all of an artifact.
pub(crate) const SELECTION_NAME: &str = "selection";
/// What mkfs leaves in the root of a file system: it does not make a directory occupied.
const LOST_AND_FOUND: &str = "lost+found";
/// Most bytes of a record: 8,192 files with paths of 4,096 bytes.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// One file of a [`CompleteRecord`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedFile {
    /// Its path below the directory.
    pub path: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its SHA-256: the one that the manifest names its blob by, or of an archive's file, the one that was computed when
    /// it was unpacked.
    pub sha256: Sha256Digest,
    /// Its inode when it was published.
    pub inode: u64,
    /// Its modification time when it was published, in nanoseconds since 1970.
    pub mtime_ns: i64,
}

/// What was proved when a directory was published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompleteRecord {
    /// The manifest's digest.
    pub digest: Sha256Digest,
    /// Every file, by path.
    pub files: Vec<RecordedFile>,
    /// Which part of the artifact it is, as on the command line; `None` for all of it.
    pub selection: Option<String>,
}

/// The record as it is written: digests are text.
#[derive(Serialize, Deserialize)]
struct RecordJson {
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    selection: Option<String>,
    files: Vec<FileJson>,
}

#[derive(Serialize, Deserialize)]
struct FileJson {
    path: String,
    size: u64,
    sha256: String,
    inode: u64,
    mtime_ns: i64,
}

impl CompleteRecord {
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let file = |file: &RecordedFile| FileJson {
            path: file.path.clone(),
            size: file.size,
            sha256: file.sha256.to_string(),
            inode: file.inode,
            mtime_ns: file.mtime_ns,
        };
        let json = RecordJson {
            digest: self.digest.to_string(),
            selection: self.selection.clone(),
            files: self.files.iter().map(file).collect(),
        };
        serde_json::to_vec_pretty(&json).expect("text and numbers always serialise")
    }

    /// Reads the record of a published directory; `None` if it has none.
    pub fn load(dir: &Path) -> Result<Option<Self>, StoreError> {
        Self::load_from(&Dir::open(dir)?)
    }

    fn load_from(dir: &Dir) -> Result<Option<Self>, StoreError> {
        let Some(own) = dir.find_sub(OWN_NAME)? else { return Ok(None) };
        let Some(bytes) = own.read_small(RECORD_NAME, RECORD_BYTES_MAX)? else { return Ok(None) };
        let malformed = |reason: String| StoreError::Malformed { path: own.path().join(RECORD_NAME), reason };
        let json: RecordJson =
            serde_json::from_slice(&bytes).map_err(|error| malformed(error.to_string()))?;
        let digest = |text: &str| text.parse().map_err(|error| malformed(format!("{error}")));
        let mut files = Vec::new();
        for FileJson { path, size, sha256, inode, mtime_ns } in json.files {
            check_path(&path)?;
            files.push(RecordedFile { path, size, sha256: digest(&sha256)?, inode, mtime_ns });
        }
        Ok(Some(Self { digest: digest(&json.digest)?, files, selection: json.selection }))
    }
}

/// Checks that every file is still the one that was proved: same inode, size and modification time. A change means
/// that the directory must be verified again before anybody relies on it.
pub fn verify_record(dir: &Path, record: &CompleteRecord) -> Result<(), StoreError> {
    verify_in(&Dir::open(dir)?, record)
}

fn verify_in(dir: &Dir, record: &CompleteRecord) -> Result<(), StoreError> {
    for file in &record.files {
        let expected = Fingerprint { inode: file.inode, size: file.size, mtime_ns: file.mtime_ns };
        let found = match dir.locate(&file.path)? {
            Some((parent, name)) => parent.stat(name)?,
            None => None,
        };
        if !found.is_some_and(|stat| is_regular(&stat) && Fingerprint::of(&stat) == expected) {
            let reason = Occupied::Changed(file.path.clone());
            return Err(StoreError::Occupied { dir: dir.path().to_path_buf(), reason });
        }
    }
    Ok(())
}

/// Opens output directories.
#[derive(Debug)]
pub struct OutputDir;

/// What an output directory is.
#[derive(Debug)]
pub enum OpenedOutput {
    /// It holds the artifact, unchanged since it was proved: there is nothing to do.
    Complete(CompleteRecord),
    /// It is to be filled, or its filling is to be resumed.
    Fresh(Output),
}

/// An output directory that is being filled. Nothing in it has its final name before [`Output::publish`].
#[derive(Debug)]
pub struct Output {
    pub(crate) target: Target,
    pub(crate) contents: Arc<Contents>,
    pub(crate) landing: Arc<Landing>,
    /// Blobs that were handed over as a whole, and whether by a second name.
    pub(crate) placed: Mutex<BTreeMap<BlobIndex, LinkUsed>>,
    /// Archives that are unpacked while they land.
    pub(crate) ahead: Mutex<Option<Ahead>>,
}

/// Where the published files go.
#[derive(Debug)]
pub(crate) enum Target {
    /// The directory is absent: it is staged beside and renamed as a whole.
    Beside { dir: PathBuf },
    /// The directory is there and empty: its files are renamed into it one by one.
    Inside { dir: Dir },
}

/// What publishing did.
#[derive(Clone, Debug)]
pub struct Published {
    /// The directory.
    pub dir: PathBuf,
    /// What was proved, as it was recorded there.
    pub record: CompleteRecord,
    /// Blobs whose bytes were copied from the local peer instead of shared with it.
    pub copied: u32,
}

/// That a path from a manifest names something below its directory, and nothing of ours.
pub(crate) fn check_path(path: &str) -> Result<(), StoreError> {
    let is_plain = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    let is_ours = path.split('/').next().is_some_and(|first| first.eq_ignore_ascii_case(OWN_NAME));
    if is_ours || !path.split('/').all(is_plain) {
        return Err(StoreError::UnsafePath(path.to_owned()));
    }
    Ok(())
}

impl OutputDir {
    /// Looks at `dir` and makes it ready to be filled (DESIGN §3, "The directory"). A directory that holds anything
    /// else is refused and left as it is.
    pub fn open(dir: &Path, contents: impl Into<Contents>) -> Result<OpenedOutput, StoreError> {
        let contents = contents.into();
        contents.assert_whole();
        for file in &contents.files {
            check_path(&file.path)?;
        }
        match std::fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => Self::open_existing(dir, contents),
            Ok(_) => Err(occupied(dir, Occupied::NotADirectory)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                if dir.symlink_metadata().is_ok() {
                    return Err(occupied(dir, Occupied::NotADirectory));
                }
                let site = Site::open(&staging_beside(dir)?)?;
                let root = site.dir.find_sub(publish::TREE_NAME)?;
                let target = Target::Beside { dir: dir.to_path_buf() };
                Self::fresh(site, root.as_ref(), target, contents)
            }
            Err(error) => Err(error).context("look at", dir),
        }
    }

    fn open_existing(path: &Path, contents: Contents) -> Result<OpenedOutput, StoreError> {
        let dir = Dir::open(path)?;
        if let Some(record) = CompleteRecord::load_from(&dir)? {
            if record.digest != contents.digest {
                return Err(occupied(path, Occupied::OtherArtifact(record.digest)));
            }
            if record.selection != contents.selection.as_ref().map(ToString::to_string) {
                return Err(occupied(path, Occupied::OtherSelection));
            }
            verify_in(&dir, &record)?;
            sweep(&dir, path, &contents.identity());
            return Ok(OpenedOutput::Complete(record));
        }
        let staging = dir.find_sub(&format!("{OWN_NAME}/{STAGING_NAME}"))?;
        let begun = staging.as_ref().map(Journal::identity_in).transpose()?.flatten();
        if let (Some(staging), Some(other)) = (&staging, begun.filter(|begun| *begun != contents.identity()))
        {
            return Err(occupied(path, begun_there(staging, other)?));
        }
        // A publication that was cut off has left files of ours: only then may there be any.
        let published = match (&staging, begun) {
            (Some(staging), Some(_)) => {
                Marker::load(staging)?.map(|marker| marker.names()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        refuse_foreign(&dir, &published)?;
        let site = Site::open(&path.join(OWN_NAME).join(STAGING_NAME))?;
        let root = dir.again()?;
        Self::fresh(site, Some(&root), Target::Inside { dir }, contents)
    }

    fn fresh(
        site: Site,
        root: Option<&Dir>,
        target: Target,
        contents: Contents,
    ) -> Result<OpenedOutput, StoreError> {
        match Journal::identity_in(&site.dir)? {
            Some(begun) if begun == contents.identity() => publish::undo(&site.dir, root)?,
            Some(other) => return Err(occupied(site.dir.path(), begun_there(&site.dir, other)?)),
            None => {}
        }
        if let Target::Inside { dir } = &target {
            refuse_foreign(dir, &[])?;
        }
        let landing = Arc::new(Landing::open_at(site, &contents.layout, &contents.identity())?);
        if let Some(selection) = &contents.selection {
            landing.dir().write_atomic(SELECTION_NAME, selection.to_string().as_bytes())?;
        }
        let (contents, placed, ahead) = (Arc::new(contents), Mutex::default(), Mutex::default());
        Ok(OpenedOutput::Fresh(Output { target, contents, landing, placed, ahead }))
    }
}

/// What the staging of something else is for.
fn begun_there(staging: &Dir, other: Sha256Digest) -> Result<Occupied, StoreError> {
    // A selection is known by a digest of its own, which nobody has ever seen.
    let is_selection = staging.stat(SELECTION_NAME)?.is_some();
    Ok(if is_selection { Occupied::OtherSelection } else { Occupied::OtherArtifact(other) })
}

/// That nothing lies in `dir` but what may: our own directory, `lost+found` and first components of `published`.
fn refuse_foreign(dir: &Dir, published: &[String]) -> Result<(), StoreError> {
    for name in dir.names()? {
        let is_ours = name == OWN_NAME || name == LOST_AND_FOUND || published.contains(&name);
        if !is_ours {
            return Err(occupied(dir.path(), Occupied::Foreign(name)));
        }
    }
    Ok(())
}

pub(crate) fn occupied(dir: &Path, reason: Occupied) -> StoreError {
    StoreError::Occupied { dir: dir.to_path_buf(), reason }
}

/// `.NAME.modelctl` beside `dir`.
fn staging_beside(dir: &Path) -> Result<PathBuf, StoreError> {
    match dir.file_name().and_then(|name| name.to_str()) {
        Some(name) => Ok(dir.with_file_name(format!(".{name}.modelctl"))),
        None => Err(StoreError::UnsafePath(dir.display().to_string())),
    }
}

/// Removes staging that a run left behind when it was cut off after publishing. Best effort: it only takes space.
fn sweep(dir: &Dir, path: &Path, digest: &Sha256Digest) {
    let sweep_one = |staging: Option<Dir>| -> Result<(), StoreError> {
        let Some(staging) = staging else { return Ok(()) };
        if Journal::identity_in(&staging)? != Some(*digest) {
            return Ok(());
        }
        let _lock = DirLock::acquire(&staging, LOCK_NAME)?;
        publish::clear_staging(&staging)
    };
    let inside = dir.find_sub(&format!("{OWN_NAME}/{STAGING_NAME}"));
    let beside = staging_beside(path).and_then(|beside| {
        if beside.symlink_metadata().is_ok_and(|meta| meta.is_dir()) {
            Dir::open(&beside).map(Some)
        } else {
            Ok(None)
        }
    });
    for staging in [inside, beside] {
        if let Err(error) = staging.and_then(sweep_one) {
            tracing::debug!(%error, "old staging stays");
        }
    }
}

impl Output {
    /// Where the blobs land.
    pub fn landing(&self) -> Arc<Landing> {
        Arc::clone(&self.landing)
    }

    /// Begins to unpack archives while they land, so that little is left to do at the end. It is a head start and proves
    /// nothing: what comes of it counts if, in the end, its decoder has read the very bytes that the manifest names, and
    /// is unpacked again otherwise.
    ///
    /// What is unpacked leaves blobs the space that they will take.
    pub fn unpack_ahead(&self) {
        let begin = || Ahead::begin(&self.contents, &self.landing);
        match begin() {
            Ok(ahead) => *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead,
            Err(error) => tracing::debug!(%error, "nothing is unpacked before everything is here"),
        }
    }

    /// The artifact it is for.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Takes a whole blob from a file that the local peer handed over.
    ///
    /// The local peer is trusted like the store it owns: it proved the blob and says so by handing over the
    /// descriptor; whoever can speak on its socket in its stead can write the store as well. The size is checked
    /// here. A caller that wants more may call [`Landing::prove_sha256`] on the blob.
    pub fn place_from(&self, blob: BlobIndex, source: &File, mode: LinkMode) -> Result<LinkUsed, StoreError> {
        let path = self.landing.blob_path(blob);
        let expected = self.contents.blobs[blob.0 as usize].size;
        let is_published = self.contents.files.iter().any(|file| file.blob == blob);
        let found = source.metadata().context("look at", &path)?;
        if !found.is_file() || found.len() != expected {
            let (expected, found) = (format!("{expected} bytes"), format!("{} bytes", found.len()));
            return Err(StoreError::Digest { path, expected, found });
        }
        if !is_published {
            // An archive is read where it lies.
            self.landing.set_placed(blob, source.try_clone().context("duplicate the handle of", &path)?);
            self.placed.lock().unwrap_or_else(PoisonError::into_inner).insert(blob, LinkUsed::Reflink);
            return Ok(LinkUsed::Reflink);
        }
        let used = self.bring(blob, source, mode, &path)?;
        self.placed.lock().unwrap_or_else(PoisonError::into_inner).insert(blob, used);
        Ok(used)
    }

    fn bring(
        &self,
        blob: BlobIndex,
        source: &File,
        mode: LinkMode,
        path: &Path,
    ) -> Result<LinkUsed, StoreError> {
        let name = blob.to_string();
        let blobs = self.landing.blobs();
        // Into a new file: whoever holds the old one must not see it change.
        let temporary = format!(".{name}.placed");
        blobs.remove_if_there(&temporary)?;
        if mode != LinkMode::Hard {
            let target = blobs.create_new(&temporary)?;
            let is_shared = mode != LinkMode::Copy && link::reflink(&target, source).is_ok();
            // What its owner may write, such as a file of a seeded directory, is not shared unless that is asked for.
            let is_writable = source.metadata().context("look at", path)?.mode() & 0o222 != 0;
            let may_link = mode == LinkMode::Auto && !is_shared && !is_writable && self.may_hard_link(blob);
            if may_link && self.hard_link(blob, source, &name).is_ok() {
                blobs.remove_if_there(&temporary)?;
                return Ok(LinkUsed::Hard);
            }
            let filled =
                if is_shared { Ok(LinkUsed::Reflink) } else { link::fill(&target, source, mode, path) };
            // What was written of it would fill the disk for nothing.
            let used = filled.inspect_err(|_| drop(blobs.remove_if_there(&temporary)))?;
            blobs.rename(&temporary, blobs, &name)?;
            self.landing.set_placed(blob, target);
            return Ok(used);
        }
        if !self.may_hard_link(blob) {
            return Err(rustix::io::Errno::OPNOTSUPP).context("hard-link", path);
        }
        self.hard_link(blob, source, &name).context("hard-link", path)?;
        Ok(LinkUsed::Hard)
    }

    /// Never on tmpfs, where a writer through a mapping would go unnoticed, and not where the file needs a mode that
    /// the store's own file, 0444, does not have.
    fn may_hard_link(&self, blob: BlobIndex) -> bool {
        let is_executable =
            self.contents.files.iter().any(|file| file.blob == blob && file.mode & 0o111 != 0);
        self.landing.kind() != FsKind::Tmpfs && !is_executable
    }

    /// The kernel decides whether we may (`protected_hardlinks`), so it is tried.
    fn hard_link(&self, blob: BlobIndex, source: &File, name: &str) -> std::io::Result<()> {
        let blobs = self.landing.blobs();
        let as_io = |error: StoreError| std::io::Error::other(error);
        // Not the name of the file that is filled where linking fails.
        let temporary = format!(".{name}.linked");
        blobs.remove_if_there(&temporary).map_err(as_io)?;
        blobs.link(source, &temporary)?;
        blobs.rename(&temporary, blobs, name).map_err(as_io)?;
        self.landing.set_placed(blob, source.try_clone()?);
        Ok(())
    }
}
