//! The versions of one model directory, and which of them has its name.
//!
//! ```text
//! /models/chat                          a symbolic link: what servers open
//! /models/.chat.versions/sha256-HEX/    a version, as it was proved; never written again. What is a part of the
//!                                       artifact only has the digest of that selection behind: sha256-HEX+HEX
//! /models/.chat.versions/lock           one sidecar at a time
//! ```
//!
//! A switch renames a new link over the old one, so that there is a whole version under the name at any moment, also
//! after a crash. What a server has open or mapped of a former version stays as it is, even when that is removed. Owns:
//! these names, the lock and the switch. Does not own: how a version comes, or when to switch.

use std::{
    fs::{self, File, TryLockError},
    io::ErrorKind,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use modelpack::{digest::Sha256Digest, selection::Selection};
use store::CompleteRecord;

use crate::{error::SidecarError, relative::relative};

/// What the names of versions begin with.
const VERSION_PREFIX: &str = "sha256-";

/// Digits that tell selections of one artifact apart.
const SELECTION_DIGITS: usize = 16;

/// Held while this process keeps the directory.
const LOCK_NAME: &str = "lock";

/// A link before it has its name.
const NEXT_NAME: &str = "next";

/// The model repositories of Triton.
pub(crate) const TRITON_NAME: &str = "triton";

/// The versions of one directory.
#[derive(Debug)]
pub struct Versions {
    /// The link.
    dir: PathBuf,
    /// Where the versions lie.
    home: PathBuf,
    /// Behind the names of versions.
    suffix: String,
    /// The kernel lets go of it when this process ends, however it does.
    _lock: File,
}

impl Versions {
    /// Takes the directory for this process.
    pub fn open(dir: &Path, selection: &Selection) -> Result<Self, SidecarError> {
        let dir = std::path::absolute(dir).map_err(SidecarError::io("find", dir))?;
        let occupied = |what| SidecarError::Occupied { dir: dir.clone(), what };
        let (Some(parent), Some(name)) = (dir.parent(), dir.file_name()) else {
            return Err(occupied("the root of all files"));
        };
        match dir.symlink_metadata() {
            Ok(meta) if meta.is_dir() => return Err(occupied("a directory")),
            Ok(meta) if !meta.is_symlink() => return Err(occupied("a file")),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(SidecarError::io("look at", &dir)(error)),
        }
        let home = parent.join(format!(".{}.versions", name.display()));
        fs::create_dir_all(&home).map_err(SidecarError::io("make", &home))?;
        let path = home.join(LOCK_NAME);
        let lock = File::options().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(SidecarError::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(SidecarError::Busy(dir)),
            Err(TryLockError::Error(error)) => return Err(SidecarError::io("lock", &path)(error)),
        }
        let suffix = if selection.is_everything() {
            String::new()
        } else {
            let digest = Sha256Digest::of(selection.to_string().as_bytes());
            format!("+{}", &digest.hex()[..SELECTION_DIGITS])
        };
        let versions = Self { dir, home, suffix, _lock: lock };
        // A link of somebody else's is not ours to replace.
        if versions.dir.is_symlink() && versions.target().is_none() {
            return Err(SidecarError::Occupied { dir: versions.dir, what: "a link to something else" });
        }
        Ok(versions)
    }

    /// The directory, as servers open it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the versions lie.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Where a version lies, or would.
    pub fn path(&self, version: &Sha256Digest) -> PathBuf {
        self.home.join(self.name(version))
    }

    /// Where a version lies while it is brought.
    pub(crate) fn staging(&self, version: &Sha256Digest) -> PathBuf {
        self.home.join(format!(".{}.modelctl", self.name(version)))
    }

    fn name(&self, version: &Sha256Digest) -> String {
        format!("{VERSION_PREFIX}{}{}", version.hex(), self.suffix)
    }

    /// The version in place, if each of its files is still what was proved.
    pub fn live(&self) -> Result<Option<Sha256Digest>, SidecarError> {
        let Some(version) = self.named() else { return Ok(None) };
        Ok(self.is_whole(&version).then_some(version))
    }

    /// Whether a version is there, and each of its files is what was proved.
    pub(crate) fn is_whole(&self, version: &Sha256Digest) -> bool {
        let path = self.path(version);
        let record = CompleteRecord::load(&path).ok().flatten();
        record.is_some_and(|record| store::verify_record(&path, &record).is_ok())
    }

    /// Makes room for a version of which something is there that is not what was proved. Whoever has it open keeps it.
    pub(crate) fn discard_damaged(&self, version: &Sha256Digest) -> Result<(), SidecarError> {
        let path = self.path(version);
        if !path.exists() || self.is_whole(version) {
            return Ok(());
        }
        tracing::warn!(version = %version, "its files are not what was proved: it is brought again");
        remove(&path)
    }

    /// The version that has the directory's name, if it is of the same selection: another is one to be replaced.
    fn named(&self) -> Option<Sha256Digest> {
        let name = self.target()?;
        let version = version_of(name.strip_suffix(self.suffix.as_str())?)?;
        (self.name(&version) == name).then_some(version)
    }

    /// What the link leads to, if that is a version.
    fn target(&self) -> Option<String> {
        let target = fs::read_link(&self.dir).ok()?;
        let home = self.home.file_name()?;
        (target.parent() == Some(Path::new(home))).then_some(())?;
        let name = target.file_name()?.to_str()?;
        name.starts_with(VERSION_PREFIX).then(|| name.to_owned())
    }

    /// Gives a version the directory's name.
    pub fn flip(&self, version: &Sha256Digest) -> Result<(), SidecarError> {
        let parent = self.dir.parent().expect("it was opened below one");
        relink(&self.home, &relative(parent, &self.path(version)), &self.dir)
    }

    /// Removes what is no longer wanted: versions, what was begun of them, and their model repositories.
    pub fn sweep(&self, kept: &[Sha256Digest]) -> Result<(), SidecarError> {
        let names = kept.iter().map(|version| self.name(version));
        let names: Vec<_> = names.flat_map(|name| [format!(".{name}.modelctl"), name]).collect();
        let unwanted = |name: &str| {
            let is_version = name.trim_start_matches('.').starts_with(VERSION_PREFIX);
            is_version && !names.iter().any(|kept| kept == name)
        };
        for entry in entries(&self.home)? {
            if entry.file_name().is_some_and(|name| name.to_str().is_some_and(unwanted)) {
                remove(&entry)?;
            }
        }
        Ok(())
    }
}

fn version_of(name: &str) -> Option<Sha256Digest> {
    format!("sha256:{}", name.strip_prefix(VERSION_PREFIX)?).parse().ok()
}

/// The paths of all in a directory, sorted; none if there is no such directory.
pub(crate) fn entries(dir: &Path) -> Result<Vec<PathBuf>, SidecarError> {
    let listed = match fs::read_dir(dir) {
        Ok(listed) => listed,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SidecarError::io("list", dir)(error)),
    };
    let paths = listed.map(|entry| entry.map(|entry| entry.path())).collect::<Result<Vec<_>, _>>();
    let mut paths = paths.map_err(SidecarError::io("list", dir))?;
    paths.sort();
    Ok(paths)
}

/// Makes `link` point to `target` at one moment. `scratch` is a directory of the same file system.
pub(crate) fn relink(scratch: &Path, target: &Path, link: &Path) -> Result<(), SidecarError> {
    let next = scratch.join(NEXT_NAME);
    match fs::remove_file(&next) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(SidecarError::io("remove", next)(error));
        }
        _ => {}
    }
    symlink(target, &next).map_err(SidecarError::io("make", &next))?;
    fs::rename(&next, link).map_err(SidecarError::io("rename a link to", link))?;
    let parent = link.parent().expect("a link lies in a directory");
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(SidecarError::io("sync", parent))
}

/// Removes a directory and all below it. A version that was removed in part counts as damaged.
pub(crate) fn remove(path: &Path) -> Result<(), SidecarError> {
    fs::remove_dir_all(path).map_err(SidecarError::io("remove", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u8) -> Sha256Digest {
        Sha256Digest::new([number; 32])
    }

    fn fill(versions: &Versions, number: u8) {
        let path = versions.path(&version(number));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("config.json"), [number]).unwrap();
    }

    #[test]
    fn the_name_has_a_whole_version_at_any_moment() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("chat");
        let versions = Versions::open(&dir, &Selection::default()).unwrap();
        for number in 1..=2 {
            fill(&versions, number);
        }
        versions.flip(&version(1)).unwrap();
        let open = File::open(dir.join("config.json")).unwrap();
        versions.flip(&version(2)).unwrap();
        assert_eq!(fs::read(dir.join("config.json")).unwrap(), [2]);
        assert!(fs::read_link(&dir).unwrap().is_relative(), "a volume may be mounted elsewhere");
        versions.sweep(&[version(2)]).unwrap();
        assert_eq!(std::io::read_to_string(open).unwrap().as_bytes(), [1], "who has it open keeps it");
        assert!(!versions.path(&version(1)).exists());
        assert!(versions.path(&version(2)).exists());
    }

    #[test]
    fn sweeping_leaves_what_is_kept_and_what_is_begun_of_it() {
        let root = tempfile::tempdir().unwrap();
        let versions = Versions::open(&root.path().join("chat"), &Selection::default()).unwrap();
        for number in 1..=3 {
            fill(&versions, number);
            fs::create_dir(versions.staging(&version(number))).unwrap();
        }
        versions.sweep(&[version(2)]).unwrap();
        let left = entries(versions.home()).unwrap();
        assert_eq!(
            left,
            [versions.staging(&version(2)), versions.home().join("lock"), versions.path(&version(2))]
        );
    }

    #[test]
    fn one_process_a_directory() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("chat");
        let first = Versions::open(&dir, &Selection::default()).unwrap();
        assert!(matches!(Versions::open(&dir, &Selection::default()), Err(SidecarError::Busy(_))));
        drop(first);
        Versions::open(&dir, &Selection::default()).unwrap();
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("chat");
        fs::create_dir(&dir).unwrap();
        assert!(matches!(Versions::open(&dir, &Selection::default()), Err(SidecarError::Occupied { .. })));
        fs::remove_dir(&dir).unwrap();
        symlink("elsewhere", &dir).unwrap();
        assert!(matches!(Versions::open(&dir, &Selection::default()), Err(SidecarError::Occupied { .. })));
        assert_eq!(fs::read_link(&dir).unwrap(), Path::new("elsewhere"));
    }

    #[test]
    fn a_version_without_its_record_is_not_in_place() {
        let root = tempfile::tempdir().unwrap();
        let versions = Versions::open(&root.path().join("chat"), &Selection::default()).unwrap();
        fill(&versions, 1);
        versions.flip(&version(1)).unwrap();
        assert_eq!(versions.live().unwrap(), None);
        versions.discard_damaged(&version(1)).unwrap();
        assert!(!versions.path(&version(1)).exists());
    }

    #[test]
    fn another_selection_is_another_version_that_takes_the_name_of_the_first() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("chat");
        let whole = Versions::open(&dir, &Selection::default()).unwrap();
        fill(&whole, 1);
        whole.flip(&version(1)).unwrap();
        assert_eq!(whole.named(), Some(version(1)));
        let path = whole.path(&version(1));
        drop(whole);
        let selection = Selection::new(&["*.safetensors".to_owned()], &[], &[]).unwrap();
        let part = Versions::open(&dir, &selection).unwrap();
        assert_eq!(part.named(), None, "what is there is not what is wanted");
        fill(&part, 1);
        assert_ne!(part.path(&version(1)), path);
        assert!(path.exists(), "and stays until the other is there");
        part.flip(&version(1)).unwrap();
        assert_eq!(part.named(), Some(version(1)));
        part.sweep(&[version(1)]).unwrap();
        assert!(!path.exists() && part.path(&version(1)).exists());
    }
}
