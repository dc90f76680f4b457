//! What the two ends of a link tell each other before its first byte. Does not own how it travels.

/// What a rail's packets are made of: two rails reach each other only within one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Network {
    /// RoCE v2 between IPv4 addresses.
    RoceIpv4 = 1,
    /// RoCE v2 between IPv6 addresses.
    RoceIpv6 = 2,
    /// An InfiniBand subnet.
    InfiniBand = 3,
}

impl Network {
    /// Its number in messages.
    pub fn number(self) -> u32 {
        self as u32
    }

    /// The network of a number, if this version knows it.
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::RoceIpv4, Self::RoceIpv6, Self::InfiniBand].into_iter().find(|known| known.number() == number)
    }
}

/// One end of one QP, as the other end needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Which rail of the offering side it is for: an answer repeats the number of the endpoint that it answers.
    pub rail: u32,
    /// The QP's number.
    pub qpn: u32,
    /// The number of its first packet.
    pub psn: u32,
    /// The rail's address.
    pub gid: [u8; 16],
    /// The rail's address in an InfiniBand subnet, else zero.
    pub lid: u16,
    /// The longest packet that the rail carries.
    pub mtu_bytes: u32,
    /// What the rail's packets are made of.
    pub network: Network,
    /// How many reads the QP carries at once.
    pub reads_in_flight_max: u8,
}

/// What a reader reads first, to know that the two ends reach each other: 32 bytes that it was told beforehand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Where they are in the sender's memory.
    pub address: u64,
    /// The key for each rail of the answer's endpoints, in the order in which those first name them.
    pub rkeys: Vec<u32>,
    /// The bytes.
    pub value: [u8; PROBE_BYTES],
}

/// Length of [`Probe::value`].
pub(crate) const PROBE_BYTES: usize = 32;

/// A window as a reader names it in its reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteWindow {
    /// Which one of its file: it starts at that many times [`crate::WINDOW_BYTES`].
    pub index: u32,
    /// Where it is in the sender's memory.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The key for each rail of the answer's endpoints, in the order in which those first name them.
    pub rkeys: Vec<u32>,
}

/// One device and port of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RailInfo {
    /// The device's name, as the system has it.
    pub name: String,
    /// The port's number.
    pub port: u8,
    /// The address by which others reach it.
    pub gid: [u8; 16],
    /// Its address in an InfiniBand subnet, else zero.
    pub lid: u16,
    /// The longest packet that it carries.
    pub mtu_bytes: u32,
    /// What its packets are made of.
    pub network: Network,
    /// The network interface that it is the same port as, if any.
    pub netdev: Option<String>,
    /// How many reads one QP of it carries at once, in either direction.
    pub reads_in_flight_max: u8,
}
