//! Why there is no RDMA here: exactly what is missing, and how to get it. Does not own: devices that are there and fail.

use std::{fs, io};

use rustix::io::Errno;

/// What is missing for RDMA.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// No `libibverbs.so.1`.
    #[error("no RDMA library: `libibverbs.so.1` is not installed")]
    NoLibrary,
    /// The kernel has no user verbs.
    #[error("no RDMA in this kernel: `ib_uverbs` is not loaded")]
    NoUserVerbs,
    /// Neither the kernel nor the library knows a device.
    #[error("no RDMA device")]
    NoDevice,
    /// The kernel has a device, but nothing to open is in `/dev/infiniband`.
    #[error("the RDMA device `{device}` has no node in `/dev/infiniband`")]
    NoDeviceNode {
        /// The kernel's name of it.
        device: String,
    },
    /// The kernel has a device that the library cannot drive.
    #[error("no library drives the RDMA device `{device}`")]
    NoProvider {
        /// The kernel's name of it.
        device: String,
    },
    /// The library could not list devices.
    #[error("listing RDMA devices failed: errno {errno}")]
    List {
        /// What it answered.
        errno: i32,
    },
}

impl Unavailable {
    /// How to get what is missing.
    pub fn hint(&self) -> String {
        match self {
            Self::NoLibrary => {
                "install it: `apt install libibverbs1 ibverbs-providers`, or `dnf install libibverbs`".to_owned()
            }
            Self::NoUserVerbs => {
                "`modprobe ib_uverbs`, and the driver of the card; without a card `modprobe rdma_rxe`. Kernels made for \
                 clouds often have neither"
                    .to_owned()
            }
            Self::NoDevice => "load the driver of the card; without a card `rdma link add rxe0 type rxe netdev DEV` \
                               makes a slow one in software. `rdma link` lists them"
                .to_owned(),
            Self::NoDeviceNode { .. } => {
                "`modprobe ib_uverbs`; in a container start it with `--device /dev/infiniband`".to_owned()
            }
            Self::NoProvider { .. } => {
                "install the drivers of libibverbs: `apt install ibverbs-providers`, or `dnf install libibverbs`, of the \
                 same release as the library"
                    .to_owned()
            }
            Self::List { .. } => "see `ibv_devices`, and `dmesg`".to_owned(),
        }
    }

    /// From what the library answered when it was asked for devices.
    pub(crate) fn from_answer(answer: &io::Error) -> Self {
        match Errno::from_io_error(answer) {
            Some(Errno::OPNOTSUPP) => Self::NoLibrary,
            Some(Errno::NOSYS) => Self::NoUserVerbs,
            errno => Self::List { errno: errno.map_or(0, Errno::raw_os_error) },
        }
    }

    /// When the library lists nothing: from the first of the devices that the kernel has.
    pub(crate) fn from_kernel(devices: &[String], has_nodes: bool) -> Self {
        match devices.first() {
            None => Self::NoDevice,
            Some(device) if !has_nodes => Self::NoDeviceNode { device: device.clone() },
            Some(device) => Self::NoProvider { device: device.clone() },
        }
    }
}

/// The names of devices that the kernel has, whether or not the library knows them.
pub(crate) fn kernel_devices() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Whether there is any device of user verbs to open.
pub(crate) fn has_nodes() -> bool {
    let entries = fs::read_dir("/dev/infiniband").into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("uverbs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(found: &Unavailable, expect: &Unavailable, hint: &str) {
        assert_eq!(found, expect);
        assert!(found.hint().contains(hint), "{hint} is not in: {}", found.hint());
    }

    #[test]
    fn what_the_library_answers_says_what_is_missing() {
        let of = |errno: Errno| Unavailable::from_answer(&errno.into());
        check(&of(Errno::OPNOTSUPP), &Unavailable::NoLibrary, "apt install libibverbs1 ibverbs-providers");
        check(&of(Errno::OPNOTSUPP), &Unavailable::NoLibrary, "dnf install libibverbs");
        check(&of(Errno::NOSYS), &Unavailable::NoUserVerbs, "modprobe ib_uverbs");
        check(&of(Errno::NOSYS), &Unavailable::NoUserVerbs, "modprobe rdma_rxe");
        check(&of(Errno::PERM), &Unavailable::List { errno: 1 }, "ibv_devices");
    }

    #[test]
    fn an_empty_list_says_who_does_not_know_the_device() {
        let device = || "mlx5_0".to_owned();
        let of = |names: &[String], nodes| Unavailable::from_kernel(names, nodes);
        check(&of(&[], true), &Unavailable::NoDevice, "rdma link add");
        let node = Unavailable::NoDeviceNode { device: device() };
        check(&of(&[device()], false), &node, "--device /dev/infiniband");
        let provider = Unavailable::NoProvider { device: device() };
        check(&of(&[device()], true), &provider, "ibverbs-providers");
    }
}
