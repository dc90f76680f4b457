//! What of this machine decides how RDMA goes, for `modelctl doctor`. Does not own: devices, nor how it is printed.

use std::{fmt, fs, path::Path};

use rustix::process::{Resource, getrlimit};

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// How much memory may be pinned.
    pub memlock: Memlock,
    /// How much memory this process's cgroup may use, pinned or not, if it is limited.
    pub cgroup_bytes_max: Option<u64>,
    /// The kernel, if it says which it is.
    pub kernel: Option<KernelVersion>,
}

/// The limit of locked memory, which registrations count against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memlock {
    /// Bytes, or `None` for no limit.
    pub soft: Option<u64>,
    /// What the soft limit can be raised to.
    pub hard: Option<u64>,
    /// Whether `CAP_IPC_LOCK` makes the limit void.
    pub is_bypassed: bool,
}

impl Memlock {
    /// How many bytes may be pinned, or `None` for all.
    pub fn effective(&self) -> Option<u64> {
        self.soft.filter(|_| !self.is_bypassed)
    }
}

/// A kernel's version, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion {
    /// 6 of 6.12.
    pub major: u32,
    /// 12 of 6.12.
    pub minor: u32,
}

impl KernelVersion {
    /// Whether a read-only mapping of a file can be registered for peers to read. Distributions may have it in an older
    /// kernel, so that trying decides.
    pub fn registers_read_only(self) -> bool {
        self >= Self { major: 6, minor: 2 }
    }

    /// Whether pinning pages of ordinary file systems for writing is refused; before that it is let, and unsafe.
    pub fn refuses_file_pins(self) -> bool {
        self >= Self { major: 6, minor: 5 }
    }

    /// Whether SoftRoCE can do without pinning.
    pub fn has_rxe_on_demand(self) -> bool {
        self >= Self { major: 6, minor: 15 }
    }

    fn parse(release: &str) -> Option<Self> {
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One finding in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What is so.
    pub text: String,
    /// What to do about it, if it stands in the way.
    pub hint: Option<&'static str>,
}

/// A window that is served is this long; less than one that is pinned is of no use.
const USEFUL_BYTES: u64 = 256 << 20;

impl Findings {
    /// All of it in words, what stands in the way with a hint.
    pub fn notes(&self) -> Vec<Note> {
        let mut notes = vec![self.memlock_note()];
        if let Some(bytes) = self.cgroup_bytes_max {
            let text = format!("the cgroup may use {} MiB of memory, pinned pages among it", bytes >> 20);
            notes.push(Note { text, hint: None });
        }
        notes.extend(self.kernel.map(kernel_note));
        notes
    }

    fn memlock_note(&self) -> Note {
        let Memlock { soft, hard, is_bypassed } = self.memlock;
        let text = match (is_bypassed, soft) {
            (true, _) => "any amount of memory may be pinned (CAP_IPC_LOCK)".to_owned(),
            (false, None) => "any amount of memory may be pinned".to_owned(),
            (false, Some(bytes)) => format!("no more than {} KiB of memory may be pinned", bytes >> 10),
        };
        let is_low = |limit: Option<u64>| limit.is_some_and(|bytes| bytes < USEFUL_BYTES);
        let hint = (is_low(self.memlock.effective())).then_some(if is_low(hard) {
            "`LimitMEMLOCK=infinity` in a systemd unit, `memlock` in /etc/security/limits.conf, `--ulimit memlock=-1 \
             --cap-add IPC_LOCK` for a container"
        } else {
            "`ulimit -l` raises it, as far as the hard limit"
        });
        Note { text, hint }
    }
}

fn kernel_note(kernel: KernelVersion) -> Note {
    if kernel.registers_read_only() {
        let landing = if kernel.refuses_file_pins() {
            "direct landing is for tmpfs and memfd"
        } else {
            "direct landing is for tmpfs and memfd, though pinning other files for writing is not refused"
        };
        let odp = if kernel.has_rxe_on_demand() { "; SoftRoCE may land without pinning (ODP)" } else { "" };
        return Note {
            text: format!("Linux {kernel} serves files of any file system; {landing}{odp}"),
            hint: None,
        };
    }
    let text =
        format!("Linux {kernel} cannot register read-only mappings: files are served from copies in memory");
    Note { text, hint: Some("Linux 6.2 and later serve files of any file system without a copy") }
}

/// What this machine says.
pub fn findings() -> Findings {
    let limit = getrlimit(Resource::Memlock);
    let status = read("/proc/self/status");
    let map = read("/proc/self/uid_map");
    let memlock =
        Memlock { soft: limit.current, hard: limit.maximum, is_bypassed: has_ipc_lock(&status, &map) };
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let cgroup_bytes_max = cgroup_bytes_max(Path::new("/sys/fs/cgroup"), &read("/proc/self/cgroup"));
    Findings { memlock, cgroup_bytes_max, kernel: KernelVersion::parse(&release) }
}

/// A file of the kernel's, or nothing.
fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether the kernel lets this process pin without limit: it has the capability, and not only in a user namespace.
fn has_ipc_lock(status: &str, uid_map: &str) -> bool {
    const CAP_IPC_LOCK: u64 = 1 << 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let is_everybody = uid_map.split_whitespace().eq(["0", "0", "4294967295"]);
    effective & CAP_IPC_LOCK != 0 && is_everybody
}

/// The least of the limits of the process's cgroup and of those that it is in.
fn cgroup_bytes_max(root: &Path, membership: &str) -> Option<u64> {
    membership.lines().filter_map(|line| limit_of(root, line)).min()
}

/// By one line of `/proc/self/cgroup`, `HIERARCHY:CONTROLLERS:PATH`.
fn limit_of(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mount, file) = match controllers {
        "" => (root.to_owned(), "memory.max"),
        list if list.split(',').any(|name| name == "memory") => {
            (root.join("memory"), "memory.limit_in_bytes")
        }
        _ => return None,
    };
    // In a container the path may be the host's, and then only its end, the mount itself, is there.
    let groups =
        Path::new(path.trim_start_matches('/')).ancestors().map(|group| mount.join(group).join(file));
    // Version 1 says "no limit" by a number near the largest; version 2 by a word.
    groups.filter_map(|file| read(file).trim().parse().ok()).filter(|bytes| *bytes < u64::MAX >> 2).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_says_something() {
        let found = findings();
        assert!(found.kernel.is_some(), "the tests run on Linux");
        assert!(found.notes().len() >= 2, "{:?}", found.notes());
    }

    #[test]
    fn versions_of_kernels() {
        let of = |release| KernelVersion::parse(release).expect("a version");
        assert_eq!(of("6.12.117+deb12-amd64"), KernelVersion { major: 6, minor: 12 });
        assert!(!of("6.1.0-56-amd64").registers_read_only());
        assert!(of("6.2.0").registers_read_only() && !of("6.4.9").refuses_file_pins());
        assert!(of("6.5.0").refuses_file_pins() && !of("6.14.1").has_rxe_on_demand());
        assert!(of("6.15-rc1").has_rxe_on_demand() && of("7.0").has_rxe_on_demand());
        assert_eq!(KernelVersion::parse("plan9"), None);
    }

    #[test]
    fn the_capability_counts_only_outside_of_user_namespaces() {
        let status = "Name:\tx\nCapEff:\t000001ffffffffff\n";
        assert!(has_ipc_lock(status, "         0          0 4294967295\n"));
        assert!(!has_ipc_lock(status, "         0       1000          1\n"));
        assert!(!has_ipc_lock("CapEff:\t00000000a80425fb\n", "0 0 4294967295"));
        assert!(!has_ipc_lock("", "0 0 4294967295"));
    }

    #[test]
    fn a_low_limit_has_a_hint_that_helps() {
        let of = |soft, hard, is_bypassed| {
            let memlock = Memlock { soft, hard, is_bypassed };
            Findings { memlock, cgroup_bytes_max: None, kernel: None }.notes().remove(0)
        };
        let low = of(Some(65536), Some(65536), false);
        assert_eq!(low.text, "no more than 64 KiB of memory may be pinned");
        assert!(low.hint.is_some_and(|hint| hint.contains("LimitMEMLOCK=infinity")));
        assert!(of(Some(65536), None, false).hint.is_some_and(|hint| hint.contains("ulimit -l")));
        assert_eq!(of(Some(65536), Some(65536), true).hint, None);
        assert_eq!(of(None, None, false).hint, None);
        assert_eq!(of(Some(1 << 40), None, false).hint, None);
    }

    #[test]
    fn the_least_limit_of_a_cgroup_and_those_above_it() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("it has one")).expect("a directory");
            fs::write(path, text).expect("a file");
        };
        write("a/b/memory.max", "max\n");
        write("a/memory.max", "4096\n");
        write("memory/docker/memory.limit_in_bytes", "9223372036854771712\n");
        write("memory/memory.limit_in_bytes", "8192\n");
        let of = |membership| cgroup_bytes_max(root.path(), membership);
        assert_eq!(of("0::/a/b\n"), Some(4096));
        assert_eq!(of("0::/elsewhere\n"), None);
        assert_eq!(of("5:cpu,cpuacct:/a\n4:memory:/docker\n"), Some(8192));
        assert_eq!(of("4:memory:/docker\n0::/a/b\n"), Some(4096));
    }
}
