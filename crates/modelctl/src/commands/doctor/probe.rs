//! What the kernel says about itself in `/proc` and `/sys`.
//!
//! Owns: where each fact lies. Does not own: what follows from it.

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use super::facts::{Container, DeviceFile, Port};

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
                let netdev = self.netdev(&device, &number);
                ports.push(Port { device: device.clone(), number, state, rate, link_layer, netdev });
            }
        }
        Some(ports)
    }

    /// The network interface of an RDMA device: software names its parent, a card's port its first address's or its own.
    fn netdev(&self, device: &str, port: &str) -> Option<String> {
        let dir = self.root.join("sys/class/infiniband").join(device);
        read(&dir.join("parent"))
            .or_else(|| read(&dir.join("ports").join(port).join("gid_attrs/ndevs/0")))
            .or_else(|| names(&dir.join("device/net"))?.into_iter().next())
            .filter(|name| !name.is_empty())
    }

    /// The drivers that the verbs library has.
    pub(super) fn providers(&self) -> Vec<String> {
        let files = names(&self.root.join("etc/libibverbs.d")).unwrap_or_default();
        files.iter().filter_map(|file| file.strip_suffix(".driver")).map(str::to_owned).collect()
    }

    /// The files by which programs reach RDMA devices. To open one and close it again does nothing to the device.
    pub(super) fn device_files(&self) -> Vec<DeviceFile> {
        let dir = self.root.join("dev/infiniband");
        let names = names(&dir).unwrap_or_default();
        let files = names.iter().filter(|name| name.starts_with("uverbs")).map(|name| dir.join(name));
        files
            .map(|path| DeviceFile {
                opens: File::options().read(true).write(true).open(&path).is_ok(),
                path,
            })
            .collect()
    }

    /// What this process runs in, by what each leaves there.
    pub(super) fn container(&self) -> Option<Container> {
        let is_there = |path: &str| self.root.join(path).exists();
        if is_there("var/run/secrets/kubernetes.io") || env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
            Some(Container::Kubernetes)
        } else if is_there("run/.containerenv") {
            Some(Container::Podman)
        } else if is_there(".dockerenv") {
            Some(Container::Docker)
        } else {
            None
        }
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

    /// The `huge=` option of the mount that holds `path`.
    pub(super) fn huge_pages(&self, path: &Path) -> Option<String> {
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let mounts = read(&self.root.join("proc/self/mountinfo")).unwrap_or_default();
        mount_option(&mounts, &path, "huge=")
    }
}

/// Why a directory, which may still have to be made, cannot be written.
pub(super) fn refusal(path: &Path) -> Option<String> {
    let there = path.ancestors().find(|dir| dir.exists());
    // The rest of a relative path is nothing.
    let there = there.filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !there.is_dir() {
        return Some(format!("`{}` is no directory", there.display()));
    }
    let errno = access(there, Access::WRITE_OK | Access::EXEC_OK).err()?;
    Some(match errno {
        rustix::io::Errno::ROFS => "the file system is mounted read-only".to_owned(),
        rustix::io::Errno::ACCESS => format!("this user may not write to `{}`", there.display()),
        errno => format!("`{}`: {errno}", there.display()),
    })
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
            ("sys/class/infiniband/mlx5_0/device/net/eth2/mtu", b"1500\n"),
        ]);
        let ports = probe.rdma_ports().unwrap();
        let port = &ports[0];
        assert_eq!(
            (port.device.as_str(), port.number.as_str(), port.state.as_str()),
            ("mlx5_0", "1", "ACTIVE")
        );
        assert_eq!((port.rate.as_str(), port.link_layer.as_str()), ("100 Gb/sec (4X EDR)", "Ethernet"));
        assert_eq!(port.netdev.as_deref(), Some("eth2"));
    }

    #[test]
    fn a_library_is_found_by_its_whole_name() {
        let cache = b"\x01\x02ld.so-1.7\0libibverbs.so.1\0/usr/lib/libibverbs.so.1\0/usr/lib/libc.so.6\0";
        let (_dir, probe) = root(&[("etc/ld.so.cache", cache)]);
        assert_eq!(probe.library("libibverbs.so.1"), Some("/usr/lib/libibverbs.so.1".into()));
        assert_eq!(probe.library("libibverbs.so"), None);
    }

    #[test]
    fn drivers_and_device_files_are_listed() {
        let (_dir, probe) = root(&[
            ("etc/libibverbs.d/rxe.driver", b"driver rxe\n"),
            ("etc/libibverbs.d/README", b""),
            ("dev/infiniband/uverbs0", b""),
            ("dev/infiniband/rdma_cm", b""),
        ]);
        assert_eq!(probe.providers(), ["rxe"]);
        let files = probe.device_files();
        assert_eq!(files.len(), 1);
        assert!(files[0].opens && files[0].path.ends_with("dev/infiniband/uverbs0"));
    }

    #[test]
    fn what_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), b"").unwrap();
        assert_eq!(refusal(&dir.path().join("to/come")), None);
        assert!(refusal(&dir.path().join("file")).unwrap().ends_with("/file` is no directory"));
        assert!(refusal(&dir.path().join("file/below")).unwrap().ends_with("/file` is no directory"));
        assert_eq!(refusal(Path::new("a/relative/one")), None);
        assert!(refusal(Path::new("/proc/self")).is_some());
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
