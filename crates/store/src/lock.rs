//! One process a directory.
//!
//! Owns: taking the lock so that it is the lock of the directory as it is now. Does not own: waiting for it.

use std::fs::File;

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    error::{Context as _, StoreError},
    files::{Dir, Fingerprint},
};

/// The name of the lock file in a directory of ours.
pub(crate) const LOCK_NAME: &str = "lock";

/// Tries before giving up when somebody keeps removing the lock file under us.
const ATTEMPTS_MAX: u32 = 16;

/// Held until dropped, also over a crash: the kernel lets go of it.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held for its drop")] File);

impl DirLock {
    /// Locks `dir` by its file `name`, or says that it is busy.
    pub(crate) fn acquire(dir: &Dir, name: &str) -> Result<Self, StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let file = dir.open_or_create(name)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(errno) => return Err(errno).context("lock", dir.path().join(name)),
            }
            // Whoever held it before may have removed the directory's content: a lock on a nameless file locks nobody out.
            let held = Fingerprint::of_file(&file, dir.path())?.inode;
            if dir.stat(name)?.is_some_and(|stat| stat.st_ino == held) {
                return Ok(Self(file));
            }
        }
        Err(StoreError::Busy { dir: dir.path().to_path_buf() })
    }
}
