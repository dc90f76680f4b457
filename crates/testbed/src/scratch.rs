//! The directory of one run, in memory or on disk.
//!
//! Owns: choosing where, finding what killed runs left, removing. Does not own: what is in it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    thread::sleep,
};

use crate::{maker::Maker, process::LOOK_INTERVAL};

/// Where memory is a file system.
const MEMORY: &str = "/dev/shm";

/// How often a directory is removed that somebody still writes to.
const REMOVALS_MAX: usize = 500;

/// Where the data of a run lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A file system in memory.
    Memory,
    /// Where temporary files are.
    Disk,
}

impl Medium {
    /// In memory if there is room for so many bytes, else on disk.
    pub fn with_room(bytes: u64) -> anyhow::Result<Self> {
        let info = fs::read_to_string("/proc/meminfo")?;
        let available = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        let kib: u64 =
            available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
        let Ok(room) = rustix::fs::statvfs(MEMORY) else { return Ok(Self::Disk) };
        let room = (room.f_bavail * room.f_frsize).min(kib * 1024);
        Ok(if room > bytes { Self::Memory } else { Self::Disk })
    }

    fn base(self) -> PathBuf {
        match self {
            Self::Memory => MEMORY.into(),
            Self::Disk => std::env::temp_dir(),
        }
    }
}

/// Makes the directory of a run.
pub fn make(maker: Maker, medium: Medium) -> anyhow::Result<PathBuf> {
    let dir = dir_of(maker, medium);
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

fn dir_of(maker: Maker, medium: Medium) -> PathBuf {
    medium.base().join(maker.to_string())
}

/// Who of that tool made the directories there are.
pub(crate) fn makers(tool: &'static str) -> BTreeSet<Maker> {
    let entries = |medium: Medium| fs::read_dir(medium.base()).into_iter().flatten().flatten();
    let names = [Medium::Memory, Medium::Disk].into_iter().flat_map(entries);
    names.filter_map(|entry| Maker::of(tool, entry.file_name().to_str()?)).collect()
}

/// Removes the directories that `maker` made.
pub(crate) fn sweep(maker: Maker) {
    for dir in [Medium::Memory, Medium::Disk].map(|medium| dir_of(maker, medium)) {
        remove_clocks(&dir);
        for _ in 0..REMOVALS_MAX {
            // Absent where it was not put; and what was under way may still have put something there.
            let _ = fs::remove_dir_all(&dir);
            if !dir.exists() {
                break;
            }
            sleep(LOOK_INTERVAL);
        }
    }
}

/// Where a run notes the process ids of those whose clock it fakes, one a line.
pub const CLOCKED: &str = "clocked";

/// Removes what libfaketime leaves in memory for each process that is killed.
fn remove_clocks(dir: &Path) {
    for pid in fs::read_to_string(dir.join(CLOCKED)).unwrap_or_default().lines() {
        for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
            // Absent where it ended well.
            let _ = fs::remove_file(Path::new(MEMORY).join(name));
        }
    }
}
