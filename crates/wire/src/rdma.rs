//! What travels on a link's control stream for RDMA, checked: ends of connections, the probe, windows.
//!
//! Owns: their bounds. Does not own: devices, memory, or what a window costs whoever grants it.

use crate::{WireError, control, convert::bounded};

/// Most ends of connections in one offer or answer: two for each rail.
pub const ENDPOINTS_MAX: usize = 64;

/// Most rails of one process, and so most keys of one piece of memory.
pub const RAILS_MAX: usize = 32;

/// Most windows in one request or release.
pub const WINDOWS_MAX: usize = 256;

/// Numbers of queue pairs and packets have 24 bits.
const NUMBER_MAX: u32 = (1 << 24) - 1;

/// What InfiniBand knows as an MTU.
const MTUS: [u32; 5] = [256, 512, 1024, 2048, 4096];

/// In which network two ends can reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// RoCE v2 between IPv4 addresses.
    RoceIpv4,
    /// RoCE v2 between IPv6 addresses.
    RoceIpv6,
    /// An InfiniBand subnet.
    InfiniBand,
}

/// One end of a reliable connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Number of the device and port on the child's side.
    pub rail: u32,
    /// Number of its queue pair.
    pub queue_pair: u32,
    /// Number of its first packet.
    pub first_packet: u32,
    /// Its port's address.
    pub gid: [u8; 16],
    /// Its port's address within a subnet.
    pub lid: u16,
    /// What its port sends at once.
    pub mtu_bytes: u32,
    /// What its packets are made of.
    pub network: Network,
    /// How many reads its queue pair carries at once.
    pub reads_in_flight_max: u8,
}

/// Memory of the parent that the child reads first.
#[derive(Clone, PartialEq, Eq)]
pub struct Probe {
    /// Where it is.
    pub address: u64,
    /// Its key for each rail of the answer.
    pub rkeys: Vec<u32>,
    /// What is there.
    pub value: [u8; 32],
}

/// 256 MiB of a blob, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WindowId {
    /// The blob.
    pub blob: u32,
    /// Which window of it.
    pub index: u32,
}

/// A granted window, of which only the numbers have been looked at.
#[derive(Clone, PartialEq, Eq)]
pub struct GrantedWindow {
    /// Which.
    pub id: WindowId,
    /// Where it is.
    pub address: u64,
    /// How much of it may be read.
    pub bytes: u64,
    /// Its key for each rail of the answer.
    pub rkeys: Vec<u32>,
}

fn invalid(field: &'static str, why: &'static str) -> WireError {
    WireError::Invalid { field, why }
}

impl From<&Endpoint> for control::RdmaEndpoint {
    fn from(endpoint: &Endpoint) -> Self {
        let network = match endpoint.network {
            Network::RoceIpv4 => control::RdmaNetwork::RoceIpv4,
            Network::RoceIpv6 => control::RdmaNetwork::RoceIpv6,
            Network::InfiniBand => control::RdmaNetwork::Infiniband,
        };
        Self {
            rail: endpoint.rail,
            queue_pair: endpoint.queue_pair,
            first_packet: endpoint.first_packet,
            gid: endpoint.gid.to_vec(),
            lid: endpoint.lid.into(),
            mtu_bytes: endpoint.mtu_bytes,
            network: network.into(),
            reads_in_flight_max: endpoint.reads_in_flight_max.into(),
        }
    }
}

impl TryFrom<&control::RdmaEndpoint> for Endpoint {
    type Error = WireError;

    fn try_from(message: &control::RdmaEndpoint) -> Result<Self, WireError> {
        let network = match control::RdmaNetwork::try_from(message.network) {
            Ok(control::RdmaNetwork::RoceIpv4) => Network::RoceIpv4,
            Ok(control::RdmaNetwork::RoceIpv6) => Network::RoceIpv6,
            Ok(control::RdmaNetwork::Infiniband) => Network::InfiniBand,
            Ok(control::RdmaNetwork::None) | Err(_) => {
                return Err(invalid("network", "none that this version knows"));
            }
        };
        let gid = message.gid.as_slice();
        let gid = gid.try_into().map_err(|_| WireError::Length { field: "gid", got: gid.len(), want: 16 })?;
        if message.queue_pair > NUMBER_MAX || message.first_packet > NUMBER_MAX {
            return Err(invalid("queue_pair", "more than 24 bits"));
        }
        if message.rail as usize >= RAILS_MAX {
            return Err(invalid("rail", "more rails than a process may have"));
        }
        if !MTUS.contains(&message.mtu_bytes) {
            return Err(invalid("mtu_bytes", "no MTU of RDMA"));
        }
        let reads_in_flight_max = u8::try_from(message.reads_in_flight_max).ok().filter(|reads| *reads > 0);
        let reads_in_flight_max =
            reads_in_flight_max.ok_or_else(|| invalid("reads_in_flight_max", "none, or more than 8 bits"))?;
        Ok(Self {
            rail: message.rail,
            queue_pair: message.queue_pair,
            first_packet: message.first_packet,
            gid,
            lid: u16::try_from(message.lid).map_err(|_| invalid("lid", "more than 16 bits"))?,
            mtu_bytes: message.mtu_bytes,
            network,
            reads_in_flight_max,
        })
    }
}

/// An offer: as many ends as there may be. None is no offer.
pub fn endpoints(messages: &[control::RdmaEndpoint]) -> Result<Vec<Endpoint>, WireError> {
    bounded("rdma", messages.len(), ENDPOINTS_MAX)?;
    messages.iter().map(Endpoint::try_from).collect()
}

/// Ends as they travel.
pub fn endpoint_messages(endpoints: &[Endpoint]) -> Vec<control::RdmaEndpoint> {
    endpoints.iter().map(control::RdmaEndpoint::from).collect()
}

/// The answer to an offer: some ends, and what to read first.
pub fn answer(message: &control::RdmaAnswer) -> Result<(Vec<Endpoint>, Probe), WireError> {
    let endpoints = endpoints(&message.endpoints)?;
    if endpoints.is_empty() {
        return Err(invalid("endpoints", "there is none"));
    }
    let probe = message.probe.as_ref().ok_or_else(|| invalid("probe", "there is none"))?;
    let value = probe.value.as_slice();
    let value =
        value.try_into().map_err(|_| WireError::Length { field: "value", got: value.len(), want: 32 })?;
    check_keys(&probe.rkeys)?;
    Ok((endpoints, Probe { address: probe.address, rkeys: probe.rkeys.clone(), value }))
}

/// An answer as it travels.
pub fn answer_message(endpoints: &[Endpoint], probe: &Probe) -> control::RdmaAnswer {
    let Probe { address, rkeys, value } = probe;
    let probe = control::RdmaProbe { address: *address, rkeys: rkeys.clone(), value: value.to_vec() };
    control::RdmaAnswer { endpoints: endpoint_messages(endpoints), probe: Some(probe) }
}

fn check_keys(rkeys: &[u32]) -> Result<(), WireError> {
    bounded("rkeys", rkeys.len(), RAILS_MAX)?;
    if rkeys.is_empty() { Err(invalid("rkeys", "there is none")) } else { Ok(()) }
}

/// The windows of a request or release: some, and none twice.
pub fn window_ids(messages: &[control::RdmaWindow]) -> Result<Vec<WindowId>, WireError> {
    bounded("windows", messages.len(), WINDOWS_MAX)?;
    let mut ids: Vec<_> =
        messages.iter().map(|&control::RdmaWindow { blob, index }| WindowId { blob, index }).collect();
    ids.sort_unstable();
    if ids.is_empty() || ids.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(invalid("windows", "none, or one twice"));
    }
    Ok(ids)
}

/// Windows as they travel.
pub fn window_messages(ids: &[WindowId]) -> Vec<control::RdmaWindow> {
    ids.iter().map(|&WindowId { blob, index }| control::RdmaWindow { blob, index }).collect()
}

/// A granted window, whose end is a number. Whether it was asked for is its child's to say.
pub fn granted_window(message: &control::WindowGrant) -> Result<GrantedWindow, WireError> {
    let &control::WindowGrant { blob, index, address, bytes, ref rkeys } = message;
    check_keys(rkeys)?;
    if bytes == 0 || address.checked_add(bytes).is_none() {
        return Err(invalid("bytes", "no memory is like that"));
    }
    Ok(GrantedWindow { id: WindowId { blob, index }, address, bytes, rkeys: rkeys.clone() })
}

/// A granted window as it travels.
pub fn grant_message(window: &GrantedWindow) -> control::WindowGrant {
    let GrantedWindow { id: WindowId { blob, index }, address, bytes, rkeys } = window.clone();
    control::WindowGrant { blob, index, address, bytes, rkeys }
}
