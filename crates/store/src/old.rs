//! Files that are here already, and whose bytes a new artifact may share.
//!
//! Owns: listing them, in a directory and in a store. Does not own: what of them is equal; nothing of them is trusted.

use std::{
    fs::File,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use modelpack::{
    digest::Sha256Digest,
    manifest::{LAYERS_MAX, Manifest},
    piece_tree::{Anchored, PieceTree},
};
use rustix::fs::OFlags;

use crate::{
    contents::BlobIdentity,
    error::{Context as _, StoreError},
    output::{CompleteRecord, OWN_NAME},
    store::{Pin, Store},
};

/// Artifacts of a store that are looked through for one that is pulled: the last versions, at most.
const ARTIFACTS_MAX: usize = 3;

/// How deep directories may lie in one another.
const DEPTH_MAX: usize = 32;

/// An open file.
#[derive(Debug)]
pub struct OldFile {
    /// Its path in its artifact or directory.
    pub path: String,
    /// Its size in bytes when it was opened.
    pub bytes: u64,
    /// Its SHA-256, if somebody computed it; it may have changed since.
    pub digest: Option<Sha256Digest>,
    /// Its piece tree, if that is known.
    pub tree: Option<PieceTree<Anchored>>,
    /// Itself.
    pub file: File,
}

/// The files of any directory: one that was pulled, or one that another program has filled. Symbolic links to files
/// are followed, as those of a hub's cache have to be; the user has named the directory.
pub fn old_files_in(dir: &Path) -> Result<Vec<OldFile>, StoreError> {
    let record = match std::fs::symlink_metadata(dir.join(OWN_NAME)) {
        // A record that cannot be read only says less.
        Ok(_) => CompleteRecord::load(dir).ok().flatten(),
        Err(_) => None,
    };
    let digest_of = |path: &str| {
        let file = record.as_ref()?.files.iter().find(|file| file.path == path)?;
        Some(file.sha256)
    };
    let mut paths = Vec::new();
    list(dir, (dir, 0), &mut paths)?;
    paths.sort();
    let mut found = Vec::new();
    for (name, path) in paths {
        match open(&path) {
            Ok(Some((file, bytes))) => {
                found.push(OldFile { digest: digest_of(&name), path: name, bytes, tree: None, file });
            }
            Ok(None) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "a file is not looked at");
            }
        }
    }
    Ok(found)
}

fn list(
    top: &Path,
    (at, depth): (&Path, usize),
    found: &mut Vec<(String, PathBuf)>,
) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(at).context("list", at)? {
        let entry = entry.context("list", at)?;
        let path = entry.path();
        let Some(name) = path.strip_prefix(top).ok().and_then(Path::to_str).map(str::to_owned) else {
            continue;
        };
        let is_dir = entry.file_type().context("look at", &path)?.is_dir();
        if is_dir && name != OWN_NAME && depth < DEPTH_MAX {
            list(top, (&path, depth + 1), found)?;
        } else if !is_dir && found.len() < LAYERS_MAX {
            found.push((name, path));
        }
    }
    Ok(())
}

/// `None` for what is no file. A pipe is not waited for.
fn open(path: &Path) -> Result<Option<(File, u64)>, StoreError> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).context("open", path)?;
    let meta = file.metadata().context("look at", path)?;
    Ok(meta.is_file().then_some((file, meta.len())))
}

impl Store {
    /// The files of the artifacts here that have most in common with a new one, by their paths. They stay as long as
    /// the pins are held.
    pub fn old_files(&self, new: &Manifest) -> Result<(Vec<OldFile>, Vec<Pin>), StoreError> {
        let mut alike = Vec::new();
        for digest in self.complete_manifests()? {
            let Some(raw) = self.manifest(&digest)? else { continue };
            let Ok(old) = Manifest::parse(&raw) else { continue };
            let common = common_bytes(&old, new);
            if digest != new.digest() && common > 0 {
                alike.push((common, old));
            }
        }
        alike.sort_by_key(|(common, _)| std::cmp::Reverse(*common));
        let (mut files, mut pins) = (Vec::new(), Vec::new());
        for (_, old) in alike.into_iter().take(ARTIFACTS_MAX) {
            pins.push(self.pin(&old));
            for file in old.files() {
                let blob = BlobIdentity::from(&old.blobs()[file.blob.0 as usize]);
                // Collected meanwhile, or changed on disk.
                let Some(open) = self.blob_file(&blob)? else { continue };
                let tree = blob.root.and_then(|root| self.tree(blob.size, root));
                let (path, digest) = (file.path.clone(), Some(blob.digest));
                files.push(OldFile { path, bytes: blob.size, digest, tree, file: open });
            }
        }
        Ok((files, pins))
    }
}

/// The bytes of new files whose path an old one has, too.
fn common_bytes(old: &Manifest, new: &Manifest) -> u64 {
    let paths: std::collections::BTreeSet<_> = old.files().iter().map(|file| file.path.as_str()).collect();
    let common = new.files().iter().filter(|file| paths.contains(file.path.as_str()));
    common.map(|file| new.blobs()[file.blob.0 as usize].size).sum()
}
