//! What crate `wire` and crate `transport-rdma` each call the same: the one knows no cards, the other no messages.
//!
//! Owns: the translation. Does not own: any check, which both do.

use transport_rdma::{Endpoint, Network, Probe, RemoteWindow};
use wire::rdma;

pub(crate) fn endpoint(end: &Endpoint) -> rdma::Endpoint {
    let network = match end.network {
        Network::RoceIpv4 => rdma::Network::RoceIpv4,
        Network::RoceIpv6 => rdma::Network::RoceIpv6,
        Network::InfiniBand => rdma::Network::InfiniBand,
    };
    rdma::Endpoint {
        rail: end.rail,
        queue_pair: end.qpn,
        first_packet: end.psn,
        gid: end.gid,
        lid: end.lid,
        mtu_bytes: end.mtu_bytes,
        network,
        reads_in_flight_max: end.reads_in_flight_max,
    }
}

pub(crate) fn endpoint_from(end: &rdma::Endpoint) -> Endpoint {
    let network = match end.network {
        rdma::Network::RoceIpv4 => Network::RoceIpv4,
        rdma::Network::RoceIpv6 => Network::RoceIpv6,
        rdma::Network::InfiniBand => Network::InfiniBand,
    };
    Endpoint {
        rail: end.rail,
        qpn: end.queue_pair,
        psn: end.first_packet,
        gid: end.gid,
        lid: end.lid,
        mtu_bytes: end.mtu_bytes,
        network,
        reads_in_flight_max: end.reads_in_flight_max,
    }
}

pub(crate) fn probe(probe: &Probe) -> rdma::Probe {
    rdma::Probe { address: probe.address, rkeys: probe.rkeys.clone(), value: probe.value }
}

pub(crate) fn probe_from(probe: &rdma::Probe) -> Probe {
    Probe { address: probe.address, rkeys: probe.rkeys.clone(), value: probe.value }
}

pub(crate) fn window(blob: u32, window: RemoteWindow) -> rdma::GrantedWindow {
    let RemoteWindow { index, address, bytes, rkeys } = window;
    rdma::GrantedWindow { id: rdma::WindowId { blob, index }, address, bytes, rkeys }
}

pub(crate) fn window_from(window: &rdma::GrantedWindow) -> RemoteWindow {
    RemoteWindow {
        index: window.id.index,
        address: window.address,
        bytes: window.bytes,
        rkeys: window.rkeys.clone(),
    }
}
