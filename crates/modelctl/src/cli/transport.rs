//! By what bytes move between peers, as it is typed. Does not own what the machine can.

use clap::{Args, ValueEnum};
use modelpack::quantity::{Rate, Size};

/// By what bytes move between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// RDMA where both ends can, else TCP
    Auto,
    /// TCP; no device is opened
    Tcp,
    /// RDMA or nothing
    Rdma,
}

/// How links to other peers carry bytes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Transport")]
pub(crate) struct TransportArgs {
    /// By what bytes move between this process and other peers
    #[arg(
        long,
        value_enum,
        default_value_t = Transport::Auto,
        env = "MODELCTL_TRANSPORT",
        hide_env_values = true
    )]
    pub(crate) transport: Transport,

    /// Send no more than this to other peers, and receive no more, as in 2gbit or 250MB/s [default: no limit]
    #[arg(long, value_name = "RATE", env = "MODELCTL_LIMIT", hide_env_values = true)]
    pub(crate) limit: Option<Rate>,

    /// Give way to other traffic: move only what that leaves on the network cards of this machine
    #[arg(long, env = "MODELCTL_BACKGROUND", hide_env_values = true)]
    pub(crate) background: bool,

    /// What the network card does in each direction, as in 25gbit or 3GB/s; a bare number is in mbit
    #[arg(long, value_name = "RATE", env = "MODELCTL_NIC_RATE", hide_env_values = true)]
    pub(crate) nic_rate: Option<Rate>,

    /// How much memory RDMA may pin, as in 8GiB [default: half of the memory, as far as it may be locked]
    #[arg(long, value_name = "SIZE", env = "MODELCTL_PINNED_MAX", hide_env_values = true)]
    pub(crate) pinned_max: Option<Size>,

    #[command(flatten)]
    pub(crate) devices: DeviceArgs,
}

/// By which devices.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// The RDMA devices to use [default: all that are active]
    #[arg(
        long,
        value_name = "NAME[,NAME…]",
        value_delimiter = ',',
        env = "MODELCTL_RDMA_DEVICE",
        hide_env_values = true
    )]
    pub(crate) rdma_device: Vec<String>,
}

/// How urgent an artifact is, where its peers fetch or serve something else as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Urgency {
    /// Before all others
    High,
    /// As what nothing is said of
    Normal,
    /// What others leave, and never nothing
    Low,
}

impl From<Urgency> for planner::Priority {
    fn from(urgency: Urgency) -> Self {
        match urgency {
            Urgency::High => Self::High,
            Urgency::Normal => Self::Normal,
            Urgency::Low => Self::Low,
        }
    }
}
