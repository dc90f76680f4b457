//! What the kernel says about itself in `/proc` and `/sys`.
//!
//! Owns: where each fact lies. Does not own: what follows from it.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use serde::Serialize;

/// One port of an RDMA device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Port {
    device: String,
    number: String,
    /// `ACTIVE`, `DOWN`, …
    state: String,
    /// As the driver puts it: `100 Gb/sec (4X EDR)`.
    rate: String,
    link_layer: String,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, number, state, rate, link_layer } = self;
        write!(f, "{device} port {number}: {state}, {rate}, {link_layer}")
    }
}

/// The kernel's release: `6.12.0`.
pub(super) fn kernel() -> String {
    let name = rustix::system::uname();
    format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy())
}

/// Reads facts below a root, which tests replace.
#[derive(Debug)]
pub(in crate::commands) struct Probe {
    root: PathBuf,
}

impl Probe {
    pub(in crate::commands) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The ports of all RDMA devices, sorted; `None` if the kernel has no RDMA at all.
    pub(super) fn rdma_ports(&self) -> Option<Vec<Port>> {
        let mut ports = Vec::new();
        let devices = names(&self.root.join("sys/class/infiniband"))?;
        for device in devices {
            let dir = self.root.join("sys/class/infiniband").join(&device).join("ports");
            for number in names(&dir).unwrap_or_default() {
                let fact =
                    |name: &str| read(&dir.join(&number).join(name)).unwrap_or_else(|| "unknown".into());
                // "4: ACTIVE"
                let state = fact("state");
                let state = state.rsplit(' ').next().unwrap_or(&state).to_owned();
                let (rate, link_layer) = (fact("rate"), fact("link_layer"));
                ports.push(Port { device: device.clone(), number, state, rate, link_layer });
            }
        }
        Some(ports)
    }

    /// Where the dynamic linker would find a library, by its cache.
    pub(super) fn library(&self, name: &str) -> Option<PathBuf> {
        // The cache holds its paths as NUL-terminated strings, one after the other (ld.so(8)).
        let cache = fs::read(self.root.join("etc/ld.so.cache")).ok()?;
        cache
            .split(|byte| *byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok())
            .filter(|entry| entry.starts_with('/'))
            .map(PathBuf::from)
            .find(|path| path.file_name().is_some_and(|file| file == name))
    }

    /// The machine's memory.
    pub(in crate::commands) fn memory_bytes(&self) -> Option<u64> {
        let text = read(&self.root.join("proc/meminfo"))?;
        let kilobytes: u64 = text
            .lines()
            .find_map(|line| line.strip_prefix("MemTotal:"))?
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse()
            .ok()?;
        Some(kilobytes * 1024)
    }

    /// The smallest memory limit among this process's control groups and those above; `None` if there is none.
    pub(in crate::commands) fn cgroup_memory_bytes_max(&self) -> Option<u64> {
        let text = read(&self.root.join("proc/self/cgroup"))?;
        text.lines()
            .filter_map(|line| {
                let mut fields = line.splitn(3, ':');
                let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
                let (mount, file) = match controllers {
                    "" => ("sys/fs/cgroup", "memory.max"),
                    list if list.split(',').any(|one| one == "memory") => {
                        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
                    }
                    _ => return None,
                };
                let dirs = Path::new(path.trim_start_matches('/')).ancestors();
                dirs.filter_map(|dir| limit(&self.root.join(mount).join(dir).join(file))).min()
            })
            .min()
    }

    /// What the kernel will do about huge pages in the tmpfs that holds `path`.
    pub(super) fn huge_pages(&self, path: &Path) -> String {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mounts = read(&self.root.join("proc/self/mountinfo")).unwrap_or_default();
        match mount_option(&mounts, &path, "huge=") {
            Some(value) => format!("mounted with huge={value}"),
            None => {
                "mounted without huge=…; `mount -o remount,huge=advise` makes large files faster".to_owned()
            }
        }
    }
}

/// The value of an option of the mount that holds `path`, from the text of `mountinfo` (proc(5)).
fn mount_option(mounts: &str, path: &Path, option: &str) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let depth = Path::new(point).components().count();
        // Of several mounts on one point the last hides the others.
        if path.starts_with(point) && best.is_none_or(|(deepest, _)| depth >= deepest) {
            best = Some((depth, right));
        }
    }
    let options = best?.1.rsplit(' ').next()?;
    options.split(',').find_map(|one| one.strip_prefix(option)).map(str::to_owned)
}

/// Version 1 says "no limit" as the largest multiple of a page; no machine has half of that.
const NO_LIMIT_BYTES: u64 = 1 << 62;

fn limit(path: &Path) -> Option<u64> {
    read(path)?.parse().ok().filter(|bytes| *bytes < NO_LIMIT_BYTES)
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn names(dir: &Path) -> Option<Vec<String>> {
    let entries = fs::read_dir(dir).ok()?.flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root with these files in it.
    fn root(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Probe) {
        let dir = tempfile::tempdir().unwrap();
        for (path, bytes) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let probe = Probe::new(dir.path());
        (dir, probe)
    }

    #[test]
    fn no_driver_and_no_device_are_told_apart() {
        let (dir, probe) = root(&[]);
        assert_eq!(probe.rdma_ports(), None);
        fs::create_dir_all(dir.path().join("sys/class/infiniband")).unwrap();
        assert_eq!(probe.rdma_ports(), Some(Vec::new()));
    }

    #[test]
    fn ports_are_described_by_their_driver() {
        let (_dir, probe) = root(&[
            ("sys/class/infiniband/mlx5_0/ports/1/state", b"4: ACTIVE\n"),
            ("sys/class/infiniband/mlx5_0/ports/1/rate", b"100 Gb/sec (4X EDR)\n"),
            ("sys/class/infiniband/mlx5_0/ports/1/link_layer", b"Ethernet\n"),
        ]);
        let ports = probe.rdma_ports().unwrap();
        assert_eq!(ports[0].to_string(), "mlx5_0 port 1: ACTIVE, 100 Gb/sec (4X EDR), Ethernet");
    }

    #[test]
    fn a_library_is_found_by_its_whole_name() {
        let cache = b"\x01\x02ld.so-1.7\0libibverbs.so.1\0/usr/lib/libibverbs.so.1\0/usr/lib/libc.so.6\0";
        let (_dir, probe) = root(&[("etc/ld.so.cache", cache)]);
        assert_eq!(probe.library("libibverbs.so.1"), Some("/usr/lib/libibverbs.so.1".into()));
        assert_eq!(probe.library("libibverbs.so"), None);
    }

    #[test]
    fn the_smallest_limit_of_all_groups_counts() {
        let (_dir, probe) = root(&[
            ("proc/self/cgroup", b"0::/pods/one\n"),
            ("sys/fs/cgroup/pods/memory.max", b"4096\n"),
            ("sys/fs/cgroup/pods/one/memory.max", b"max\n"),
        ]);
        assert_eq!(probe.cgroup_memory_bytes_max(), Some(4096));
        let (_dir, probe) = root(&[
            ("proc/self/cgroup", b"4:cpu,memory:/a\n0::/\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", b"9223372036854771712\n"),
            ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", b"8192\n"),
        ]);
        assert_eq!(probe.cgroup_memory_bytes_max(), Some(8192));
        let (_dir, probe) = root(&[("proc/self/cgroup", b"0::/\n")]);
        assert_eq!(probe.cgroup_memory_bytes_max(), None);
    }

    #[test]
    fn options_are_those_of_the_deepest_and_last_mount() {
        let mounts = "1 0 0:1 / / rw - ext4 /dev/sda rw,huge=never\n\
                      2 1 0:2 / /models rw - tmpfs tmpfs rw\n\
                      3 1 0:3 / /models rw shared:1 - tmpfs tmpfs rw,huge=advise,size=1g\n\
                      4 1 0:4 / /models/sub rw - tmpfs tmpfs rw";
        let option = |path: &str| mount_option(mounts, Path::new(path), "huge=");
        assert_eq!(option("/models/a").as_deref(), Some("advise"));
        assert_eq!(option("/modelsx").as_deref(), Some("never"));
        assert_eq!(option("/models/sub/a"), None);
    }
}
