//! The files below a directory, as `build`, `inspect` and `verify` see them.
//!
//! Owns: which files count, and their order. Does not own: which of them an artifact may have (`modelpack::build`).

use std::{
    fs::{self, FileType, Metadata},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use modelpack::{build::Kept, manifest::Modified};

/// What tools and file systems keep for themselves at the top of a directory: never part of a model.
const SKIPPED: [&str; 4] = [".git", ".modelctl", ".cache/huggingface", "lost+found"];

/// What is said of a symbolic link that nobody has followed.
const LINK: &str = "is a symbolic link";

/// One regular file.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// Its path below the directory, with `/` between components.
    pub(crate) path: String,
    /// Where to open it.
    pub(crate) file: PathBuf,
    pub(crate) size: u64,
    /// Whether somebody may execute it.
    pub(crate) is_executable: bool,
    /// Its permissions, and when it was last modified.
    pub(crate) kept: Kept,
}

impl Found {
    fn new(path: String, file: PathBuf, metadata: &Metadata) -> Self {
        let mode = metadata.permissions().mode() & 0o777;
        let nanoseconds = u32::try_from(metadata.mtime_nsec()).unwrap_or_default();
        let kept = Kept { mode, modified: Modified::new(metadata.mtime(), nanoseconds) };
        Self { path, file, size: metadata.len(), is_executable: mode & 0o111 != 0, kept }
    }
}

/// Something that is no regular file with a name in UTF-8.
#[derive(Clone, Debug)]
pub(crate) struct Odd {
    pub(crate) path: String,
    pub(crate) what: &'static str,
}

/// What a directory holds; both lists are sorted by path.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    pub(crate) files: Vec<Found>,
    pub(crate) odd: Vec<Odd>,
}

impl Walk {
    /// Looks at everything below `dir`. Symbolic links are found, not followed.
    pub(crate) fn of(dir: &Path) -> anyhow::Result<Self> {
        let mut walk = Self::default();
        let mut open = vec![String::new()];
        while let Some(prefix) = open.pop() {
            let at = if prefix.is_empty() { dir.to_path_buf() } else { dir.join(&prefix) };
            let entries = fs::read_dir(&at).with_context(|| format!("cannot list `{}`", at.display()))?;
            for entry in entries {
                let entry = entry.with_context(|| format!("cannot list `{}`", at.display()))?;
                let name = entry.file_name();
                let lossy = name.to_string_lossy();
                let path =
                    if prefix.is_empty() { lossy.clone().into_owned() } else { format!("{prefix}/{lossy}") };
                if SKIPPED.contains(&path.as_str()) {
                    continue;
                }
                let file = entry.path();
                let metadata =
                    entry.metadata().with_context(|| format!("cannot look at `{}`", file.display()))?;
                if name.to_str().is_none() {
                    walk.odd.push(Odd { path, what: "has a name that is not UTF-8" });
                } else if metadata.is_dir() {
                    open.push(path);
                } else if metadata.is_file() {
                    walk.files.push(Found::new(path, file, &metadata));
                } else {
                    walk.odd.push(Odd { path, what: what(metadata.file_type()) });
                }
            }
        }
        walk.files.sort_by(|a, b| a.path.cmp(&b.path));
        walk.odd.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(walk)
    }

    /// Takes symbolic links to files of the same directory for those files. All others stay odd: what lies elsewhere is
    /// no part of the model, and a link to a directory could be one to itself.
    pub(crate) fn follow_links(&mut self, dir: &Path) -> anyhow::Result<()> {
        let root = dir.canonicalize().with_context(|| format!("cannot look at `{}`", dir.display()))?;
        for mut odd in std::mem::take(&mut self.odd) {
            if odd.what != LINK {
                self.odd.push(odd);
                continue;
            }
            let target = root.join(&odd.path).canonicalize();
            let looked = target.and_then(|target| Ok((fs::metadata(&target)?, target)));
            odd.what = match looked {
                Err(_) => "is a symbolic link to nothing",
                Ok((_, target)) if !target.starts_with(&root) => "is a symbolic link out of the directory",
                Ok((metadata, _)) if metadata.is_dir() => "is a symbolic link to a directory",
                Ok((metadata, file)) if metadata.is_file() => {
                    self.files.push(Found::new(odd.path, file, &metadata));
                    continue;
                }
                Ok(_) => "is a symbolic link to something that is no file",
            };
            self.odd.push(odd);
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(())
    }

    /// How many bytes all files have together.
    pub(crate) fn bytes(&self) -> u64 {
        self.files.iter().map(|found| found.size).sum()
    }
}

/// Whether `path`, which need not exist, lies in or is the directory `dir`.
pub(crate) fn is_inside(path: &Path, dir: &Path) -> bool {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    // What is missing of it lies in what is there of it.
    let there = path.ancestors().find_map(|at| Some((at, at.canonicalize().ok()?)));
    let path = match there {
        Some((at, real)) => real.join(path.strip_prefix(at).unwrap_or(Path::new(""))),
        None => path,
    };
    dir.canonicalize().is_ok_and(|dir| path.starts_with(dir))
}

fn what(kind: FileType) -> &'static str {
    match kind {
        kind if kind.is_symlink() => LINK,
        kind if kind.is_fifo() => "is a pipe",
        kind if kind.is_socket() => "is a socket",
        _ => "is a device",
    }
}
