//! What is known of a machine, before anybody judges it. Does not own where the facts come from (`probe`).

use std::path::PathBuf;

use serde::Serialize;
use verbs::KernelVersion;

/// All of it. Serialised, it is part of the result of `--json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Facts {
    pub(super) version: String,
    pub(super) kernel: String,
    #[serde(skip)]
    pub(super) kernel_version: Option<KernelVersion>,
    pub(super) cpus: usize,
    pub(super) memory_bytes: Option<u64>,
    /// The smallest limit of the control groups that this process is in.
    pub(super) cgroup_memory_bytes_max: Option<u64>,
    /// What the process runs in, if that is no whole machine.
    pub(super) container: Option<Container>,
    pub(super) limits: Limits,
    pub(super) rdma: Rdma,
    pub(super) destinations: Vec<Destination>,
    pub(super) peer: Peer,
    /// Of the peer that somebody named.
    pub(super) link: Option<Link>,
}

/// The way to one peer, tested.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Link {
    /// HOST:PORT.
    pub(super) peer: String,
    pub(super) tcp: LinkSpeed,
    pub(super) rdma: LinkSpeed,
    /// Those of this machine that were tried.
    pub(super) rails: Vec<Rail>,
}

/// What came of one transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct LinkSpeed {
    pub(super) works: bool,
    /// Why it does not.
    pub(super) reason: Option<String>,
    pub(super) bytes_per_second: Option<u64>,
    /// Of reads of 1 MiB, one at a time.
    pub(super) read_median_us: Option<u64>,
    pub(super) read_p99_us: Option<u64>,
}

/// A device and port that links use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rail {
    /// `DEVICE/PORT`.
    pub(super) name: String,
    pub(super) gid: String,
    pub(super) mtu_bytes: u32,
    pub(super) netdev: Option<String>,
}

/// What a process runs in. Each wants its own words to be given a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Container {
    Kubernetes,
    Docker,
    Podman,
}

/// What this process may take. `None`: no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Limits {
    pub(super) memlock_bytes_max: Option<u64>,
    /// What this user may raise it to.
    pub(super) memlock_bytes_hard_max: Option<u64>,
    pub(super) open_files_max: Option<u64>,
    /// Whether `CAP_IPC_LOCK` lifts the limit of locked memory. In a user namespace the kernel does not ask for it.
    pub(super) has_ipc_lock: bool,
}

/// Of RDMA: what the kernel has, and what the library makes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Rdma {
    /// `None` if the kernel has no RDMA at all.
    pub(super) kernel_ports: Option<Vec<Port>>,
    /// Where the library is, if it is known to the dynamic linker.
    pub(super) library: Option<PathBuf>,
    /// Drivers of the library that are installed: `mlx5`, `rxe`, ….
    pub(super) providers: Vec<String>,
    /// Device files by which programs reach devices.
    pub(super) device_files: Vec<DeviceFile>,
    /// The devices that the library finds.
    pub(super) devices: Vec<Device>,
    /// Why it finds none.
    pub(super) unavailable: Option<Unavailable>,
}

/// One of `/dev/infiniband/uverbs*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DeviceFile {
    pub(super) path: PathBuf,
    /// Whether this process may open it.
    pub(super) opens: bool,
}

/// One port of an RDMA device, as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) number: String,
    /// `ACTIVE`, `DOWN`, …
    pub(super) state: String,
    /// As the driver puts it: `100 Gb/sec (4X EDR)`.
    pub(super) rate: String,
    pub(super) link_layer: String,
    /// The network interface that it belongs to, where it is Ethernet.
    pub(super) netdev: Option<String>,
}

/// Why the library has no device, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Unavailable {
    pub(super) reason: String,
    pub(super) hint: String,
}

/// A device as the library has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Device {
    pub(super) name: String,
    /// Why it cannot be opened.
    pub(super) error: Option<String>,
    /// Whether the card may fault pages in.
    pub(super) has_odp: bool,
    pub(super) ports: Vec<DevicePort>,
}

/// A port as the library has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct DevicePort {
    pub(super) number: u8,
    pub(super) is_active: bool,
    /// Bytes of a packet.
    pub(super) mtu_bytes: u32,
    /// The one that links would use; `None` if no address of the port is fit for use.
    pub(super) gid: Option<Gid>,
}

/// An address of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Gid {
    pub(super) address: String,
    pub(super) index: u8,
    /// `RoCE v2` or `InfiniBand`.
    pub(super) kind: String,
    pub(super) netdev: Option<String>,
}

/// A directory that models come to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Destination {
    pub(super) path: PathBuf,
    pub(super) role: Role,
    pub(super) exists: bool,
    /// Why nothing can be written there, if that is so.
    pub(super) refusal: Option<String>,
    pub(super) filesystem: Filesystem,
    pub(super) free_bytes: u64,
    /// The `huge=` option of a tmpfs.
    pub(super) huge_pages: Option<String>,
}

/// Why a directory is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    /// Somebody named it.
    Directory,
    /// A peer's store would be there.
    Store,
}

/// What a directory lies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Filesystem {
    Tmpfs,
    /// Huge pages as files, whose lengths are whole pages.
    Hugetlbfs,
    /// Any other, by its name.
    #[serde(untagged)]
    Named(String),
}

/// The peer of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Peer {
    pub(super) socket: PathBuf,
    pub(super) answers: bool,
    pub(super) reason: Option<String>,
}
