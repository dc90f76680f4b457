//! Whether a version fits, said before its first byte moves.
//!
//! Pages of a tmpfs count against the control group of whoever writes them first, which is this process: it would be
//! killed in the middle of a pull. Owns: the arithmetic, and where its numbers come from. Does not own: how large a
//! version is.

use std::{
    fmt, fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use store::FsKind;

use crate::error::SidecarError;

/// What a pull needs besides the model: its buffers, and this process.
const OWN_BYTES: u64 = 160 << 20;

/// What there is where a version would lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Free in the file system. A volume's `sizeLimit` shows here for a volume in memory.
    pub free: u64,
    /// For a file system in memory: the control group that pays for it, if that is limited.
    pub memory: Option<Memory>,
}

/// What a control group may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// At most.
    pub max: u64,
    /// Already, as far as the kernel cannot give it back.
    pub used: u64,
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// Room in the file system.
    Free {
        /// Bytes that are needed yet.
        need: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// Memory that this process may use.
    Memory {
        /// Bytes that are needed yet.
        need: u64,
        /// What may be used.
        memory: Memory,
    },
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free { need, free } => {
                write!(f, "{} MiB are needed yet, {} MiB are free", mib(*need), free >> 20)
            }
            Self::Memory { need, memory: Memory { max, used } } => write!(
                f,
                "it is in memory, {} MiB are needed yet, and of the {} MiB that this container may use {} MiB are in use",
                mib(*need),
                max >> 20,
                mib(*used)
            ),
        }
    }
}

impl Lack {
    pub(crate) fn hint(&self) -> String {
        match self {
            Self::Free { need, free } => format!(
                "make the volume {} MiB larger (`sizeLimit` of an emptyDir), or keep fewer versions with `keep`",
                mib(need - free)
            ),
            Self::Memory { need, memory: Memory { max, used } } => format!(
                "raise the memory limit of this container by {} MiB: pages of a volume in memory count against whoever writes them",
                mib((used + need).saturating_sub(*max))
            ),
        }
    }
}

/// Rounded up, so that whoever does what is said has enough.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl Space {
    /// What there is for a version in the directory `home`.
    pub fn of(home: &Path) -> Result<Self, SidecarError> {
        let is_memory = store::filesystem_of(home)? == FsKind::Tmpfs;
        Ok(Self {
            free: store::free_bytes(home)?,
            memory: is_memory.then(|| Memory::of_this_process(Path::new("/"))).flatten(),
        })
    }

    /// What is missing for a version of `total` bytes of which `there` are there already.
    pub fn lack(self, total: u64, there: u64) -> Option<Lack> {
        let need = total.saturating_sub(there);
        if need == 0 {
            return None;
        }
        if need > self.free {
            return Some(Lack::Free { need, free: self.free });
        }
        let memory = self.memory?;
        let need = need + OWN_BYTES;
        (memory.used + need > memory.max).then_some(Lack::Memory { need, memory })
    }
}

impl Memory {
    /// That of the tightest control group that this process is in, with version 2 of control groups. `root` is where
    /// `/proc` and `/sys` are.
    pub fn of_this_process(root: &Path) -> Option<Self> {
        let membership = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
        let path = membership.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let top = root.join("sys/fs/cgroup");
        let own = top.join(path);
        let groups = own.ancestors().take_while(|group| group.starts_with(&top));
        groups.filter_map(Self::of_group).min_by_key(|memory| memory.max.saturating_sub(memory.used))
    }

    fn of_group(group: &Path) -> Option<Self> {
        let max = fs::read_to_string(group.join("memory.max")).ok()?.trim().parse().ok()?;
        let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
        let of = |name: &str| {
            let mut values = stat.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            values.next()?.parse::<u64>().ok()
        };
        // The rest is what the kernel takes back when it needs it: pages of files on disk.
        let used = ["anon", "shmem"].iter().filter_map(|name| of(name));
        Some(Self { max, used: used.sum() })
    }
}

/// Bytes that files below these directories occupy.
pub(crate) fn occupied(dirs: &[PathBuf]) -> u64 {
    let mut open = dirs.to_vec();
    let mut bytes = 0;
    while let Some(dir) = open.pop() {
        // What cannot be read counts as nothing, so that rather too much is asked for.
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) => bytes += meta.blocks() * 512,
                Err(_) => {}
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn says_what_is_missing() {
        let disk = Space { free: 10 * GIB, memory: None };
        assert_eq!(disk.lack(10 * GIB, 0), None);
        assert_eq!(disk.lack(12 * GIB, 2 * GIB), None);
        assert_eq!(disk.lack(12 * GIB, 0), Some(Lack::Free { need: 12 * GIB, free: 10 * GIB }));
        let memory = Memory { max: 10 * GIB, used: 3 * GIB };
        let volume = Space { free: 100 * GIB, memory: Some(memory) };
        assert_eq!(volume.lack(6 * GIB, 0), None);
        let lack = volume.lack(8 * GIB, 0).unwrap();
        assert_eq!(
            lack.to_string(),
            "it is in memory, 8352 MiB are needed yet, and of the 10240 MiB that this container may use 3072 MiB are in use"
        );
        assert!(
            lack.hint().starts_with("raise the memory limit of this container by 1184 MiB"),
            "{}",
            lack.hint()
        );
        // What is complete needs nothing, however full it is.
        assert_eq!(Space { free: 0, memory: Some(Memory { max: 0, used: 1 }) }.lack(GIB, GIB), None);
    }

    #[test]
    fn the_tightest_of_the_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("proc/self/cgroup", "12:cpu:/x\n0::/pod/container\n");
        write("sys/fs/cgroup/pod/container/memory.max", "max\n");
        write("sys/fs/cgroup/pod/container/memory.stat", "anon 1\nfile 9\nshmem 2\n");
        assert_eq!(Memory::of_this_process(root.path()), None);
        write("sys/fs/cgroup/pod/memory.max", "1000\n");
        write("sys/fs/cgroup/pod/memory.stat", "anon 100\nfile 900\nshmem_thp 5\nshmem 200\n");
        assert_eq!(Memory::of_this_process(root.path()), Some(Memory { max: 1000, used: 300 }));
        write("sys/fs/cgroup/pod/container/memory.max", "50\n");
        assert_eq!(Memory::of_this_process(root.path()), Some(Memory { max: 50, used: 3 }));
    }
}
