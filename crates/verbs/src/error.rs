//! What verbs answer when they fail, and what to do about it. Does not own: why there is no device at all.

use std::io;

use rustix::io::Errno;

use crate::{Rights, State, Unavailable};

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// There is nothing to call.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// A device that was asked for by name is not there.
    #[error("no RDMA device `{name}`; there are: {}", present.join(", "))]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// What there is.
        present: Vec<String>,
    },
    /// Memory could not be registered.
    #[error("registering {bytes} bytes for {rights} on `{device}`")]
    Register {
        /// On which device.
        device: String,
        /// How much.
        bytes: usize,
        /// What for.
        rights: Rights,
        /// ENOMEM, EFAULT, EOPNOTSUPP and others; see [`VerbsError::hint`].
        #[source]
        source: io::Error,
    },
    /// A queue pair could not be brought to its next state.
    #[error("moving a queue pair of `{device}` from {from} to {to}: {diagnosis}")]
    Modify {
        /// On which device.
        device: String,
        /// The state that it is in.
        from: State,
        /// The state that it was to reach.
        to: State,
        /// What of the path cannot be right.
        diagnosis: String,
        /// EINVAL, ETIMEDOUT, ENETUNREACH and others.
        #[source]
        source: io::Error,
    },
    /// It is not in a state for that.
    #[error("a queue pair in state {state} cannot {what}")]
    WrongState {
        /// The state that it is in.
        state: State,
        /// What it was told.
        what: &'static str,
    },
    /// What was asked for would break a rule of this crate; nothing was done.
    #[error("refused: {0}")]
    Refused(&'static str),
    /// Any other verb.
    #[error("`{verb}` on `{device}`")]
    Verb {
        /// Its name in libibverbs.
        verb: &'static str,
        /// On which device.
        device: String,
        /// What it answered.
        #[source]
        source: io::Error,
    },
}

impl VerbsError {
    pub(crate) fn verb(verb: &'static str, device: &str, source: io::Error) -> Self {
        Self::Verb { verb, device: device.to_owned(), source }
    }

    /// The number that the kernel or the library answered with.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Register { source, .. } | Self::Modify { source, .. } | Self::Verb { source, .. } => {
                source.raw_os_error()
            }
            _ => None,
        }
    }

    /// What its reader can do.
    pub fn hint(&self) -> Option<String> {
        let errno = self.errno().map(Errno::from_raw_os_error);
        match self {
            Self::Unavailable(unavailable) => Some(unavailable.hint()),
            Self::NoSuchDevice { .. } => Some("name one of those, or none to use all".to_owned()),
            Self::Register { rights, .. } => register_hint(*rights, errno?).map(str::to_owned),
            Self::Modify { .. } | Self::Verb { .. } => general_hint(errno?).map(str::to_owned),
            Self::WrongState { .. } | Self::Refused(_) => None,
        }
    }
}

fn register_hint(rights: Rights, errno: Errno) -> Option<&'static str> {
    match (errno, rights) {
        (Errno::FAULT, Rights::LocalWrite) => Some(
            "since Linux 6.5 pages of ordinary file systems cannot be pinned for writing, before it is unsafe: land on \
             tmpfs, or staged",
        ),
        (Errno::FAULT, Rights::RemoteRead) => Some(
            "before Linux 6.2 a read-only mapping cannot be registered: use a newer kernel, or serve a copy in memory",
        ),
        (Errno::OPNOTSUPP | Errno::INVAL | Errno::FAULT, Rights::LocalWriteOnDemand) => {
            Some("this device cannot write on demand (ODP): land staged, or on tmpfs")
        }
        (Errno::OPNOTSUPP, _) => {
            Some("memory of this file system (DAX) cannot be pinned: use tmpfs, or staged")
        }
        _ => general_hint(errno),
    }
}

fn general_hint(errno: Errno) -> Option<&'static str> {
    Some(match errno {
        Errno::NOMEM => {
            "the limit of locked memory may be too low: `ulimit -l unlimited`, `LimitMEMLOCK=infinity` in a systemd unit, \
             `--ulimit memlock=-1 --cap-add IPC_LOCK` for a container; CAP_IPC_LOCK lifts it. Or pin less: lower \
             `pinned_bytes_max`"
        }
        Errno::ACCESS | Errno::PERM => {
            "this user may not open the device: give it `/dev/infiniband/uverbs*`, in a container by `--device \
             /dev/infiniband`"
        }
        Errno::IO | Errno::NODEV | Errno::NXIO => "the device is gone, or going: see `dmesg`",
        Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => {
            "the peer's address did not resolve: both ends must be on one RDMA network; see `ip route get`, and \
             `rdma link`"
        }
        _ => return None,
    })
}

/// What a verb left in `errno`.
pub(crate) fn last_errno() -> io::Error {
    io::Error::last_os_error()
}

/// The result of a verb that answers with an errno, some with its negative.
pub(crate) fn check(answer: i32) -> io::Result<()> {
    match answer {
        0 => Ok(()),
        // Some providers answer -1 and leave the reason in `errno`.
        -1 => Err(last_errno()),
        errno => Err(io::Error::from_raw_os_error(errno.abs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(rights: Rights, errno: Errno) -> String {
        let source = errno.into();
        let error = VerbsError::Register { device: "rxe0".to_owned(), bytes: 4096, rights, source };
        assert_eq!(error.errno(), Some(errno.raw_os_error()));
        error.hint().unwrap_or_default()
    }

    #[test]
    fn a_low_limit_says_how_to_raise_it() {
        let hint = register(Rights::LocalWrite, Errno::NOMEM);
        for way in ["ulimit -l", "LimitMEMLOCK=infinity", "CAP_IPC_LOCK", "--ulimit memlock=-1"] {
            assert!(hint.contains(way), "{way} is not in: {hint}");
        }
    }

    #[test]
    fn a_refused_pin_says_which_kernels_and_file_systems() {
        assert!(register(Rights::LocalWrite, Errno::FAULT).contains("6.5"));
        assert!(register(Rights::RemoteRead, Errno::FAULT).contains("6.2"));
        assert!(register(Rights::LocalWriteOnDemand, Errno::OPNOTSUPP).contains("ODP"));
        assert!(register(Rights::LocalWrite, Errno::OPNOTSUPP).contains("DAX"));
    }

    #[test]
    fn what_nobody_can_help_has_no_hint() {
        assert_eq!(VerbsError::verb("ibv_poll_cq", "rxe0", Errno::INVAL.into()).hint(), None);
        assert_eq!(VerbsError::Refused("x").hint(), None);
    }

    #[test]
    fn answers_of_verbs() {
        check(0).expect("zero is success");
        for answer in [22, -22] {
            assert_eq!(check(answer).expect_err("an errno").raw_os_error(), Some(22));
        }
    }
}
