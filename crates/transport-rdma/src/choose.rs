//! Which rail here goes with which rail there, and what a QP between them carries. Pure.

use verbs::{Gid, GidKind, LinkLayer, Port};

use crate::{Endpoint, Network};

/// The address that a port is reached by: RoCE v2 over IPv4, else over an IPv6 that is more than link-local, else
/// InfiniBand. The first of equals. With an interface's name only its addresses count.
pub fn choose_gid<'a>(gids: &'a [Gid], port: &Port, netdev: Option<&str>) -> Option<(&'a Gid, Network)> {
    let usable = gids.iter().filter(|gid| gid.port == port.number);
    let wanted = usable.filter(|gid| netdev.is_none_or(|name| gid.netdev.as_deref() == Some(name)));
    wanted
        .filter_map(|gid| Some((gid, network(gid, port)?)))
        .min_by_key(|(gid, network)| (*network, gid.index))
}

fn network(gid: &Gid, port: &Port) -> Option<Network> {
    let is_ipv4 = gid.raw[..10] == [0; 10] && gid.raw[10..12] == [0xff; 2];
    let is_link_local = gid.raw[0] == 0xfe && gid.raw[1] & 0xc0 == 0x80;
    match (gid.kind, port.link) {
        (GidKind::RoceV2, LinkLayer::Ethernet) if is_ipv4 => Some(Network::RoceIpv4),
        (GidKind::RoceV2, LinkLayer::Ethernet) if !is_link_local => Some(Network::RoceIpv6),
        (GidKind::InfiniBand, LinkLayer::InfiniBand) => Some(Network::InfiniBand),
        _ => None,
    }
}

/// For each rail of the other end the rail here that goes with it: the one of the same place if they are of one network,
/// else the first of that network that is still free.
pub(crate) fn match_rails(theirs: &[Network], ours: &[Network]) -> Vec<Option<usize>> {
    let mut is_free = vec![true; ours.len()];
    let mut matched = vec![None; theirs.len()];
    for (place, network) in theirs.iter().enumerate() {
        if ours.get(place) == Some(network) {
            is_free[place] = false;
            matched[place] = Some(place);
        }
    }
    for (network, matched) in theirs.iter().zip(&mut matched).filter(|(_, matched)| matched.is_none()) {
        let place = (0..ours.len()).find(|place| is_free[*place] && ours[*place] == *network);
        if let Some(place) = place {
            is_free[place] = false;
            *matched = Some(place);
        }
    }
    matched
}

/// How many reads a QP between the two carries at once, of what `most` allows.
pub(crate) fn reads_in_flight(own: &Endpoint, peer: &Endpoint, most: u8) -> u8 {
    own.reads_in_flight_max.min(peer.reads_in_flight_max).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, kind: GidKind, start: &[u8], netdev: &str) -> Gid {
        let mut raw = [0; 16];
        raw[..start.len()].copy_from_slice(start);
        raw[15] = index + 1;
        Gid { raw, index, port: 1, kind, netdev: Some(netdev.to_owned()) }
    }

    #[test]
    fn a_port_is_reached_by_its_best_address() {
        const IPV4: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10];
        const IPV6: &[u8] = &[0x20, 1];
        const LOCAL: &[u8] = &[0xfe, 0x80];
        use GidKind::{InfiniBand as Ib, RoceV1 as V1, RoceV2 as V2};
        let ethernet = Port {
            number: 1,
            is_active: true,
            link: LinkLayer::Ethernet,
            mtu_bytes: 1024,
            lid: 0,
            mbit: None,
        };
        let subnet = Port { link: LinkLayer::InfiniBand, ..ethernet };
        let check = |gids: &[Gid], port: &Port, netdev: Option<&str>, expect: Option<(u8, Network)>| {
            let found = choose_gid(gids, port, netdev).map(|(gid, network)| (gid.index, network));
            assert_eq!(found, expect);
        };
        let all = [
            gid(0, V1, LOCAL, "a"),
            gid(1, V2, LOCAL, "a"),
            gid(2, V1, IPV4, "a"),
            gid(3, V2, IPV6, "a"),
            gid(4, V2, IPV4, "a"),
            gid(5, V2, IPV4, "b"),
        ];
        check(&all, &ethernet, None, Some((4, Network::RoceIpv4)));
        check(&all, &ethernet, Some("b"), Some((5, Network::RoceIpv4)));
        check(&all, &ethernet, Some("c"), None);
        check(&all[..4], &ethernet, None, Some((3, Network::RoceIpv6)));
        // RoCE v1 and link-local addresses reach no other subnet.
        check(&all[..3], &ethernet, None, None);
        check(&all, &subnet, None, None);
        check(&[gid(0, Ib, LOCAL, "")], &subnet, None, Some((0, Network::InfiniBand)));
        check(&all, &Port { number: 2, ..ethernet }, None, None);
    }

    #[test]
    fn rails_pair_by_place_then_by_network() {
        use Network::{InfiniBand as Ib, RoceIpv4 as V4, RoceIpv6 as V6};
        let check = |theirs: &[Network], ours: &[Network], expect: &[Option<usize>]| {
            assert_eq!(match_rails(theirs, ours), expect, "{theirs:?} with {ours:?}");
        };
        check(&[V4, V4], &[V4, V4], &[Some(0), Some(1)]);
        check(&[V4, V4], &[V4], &[Some(0), None]);
        check(&[V4], &[V4, V4], &[Some(0)]);
        check(&[Ib], &[V4], &[None]);
        check(&[V4], &[V6], &[None]);
        // Out of place, but of one network.
        check(&[Ib, V4], &[V4, Ib], &[Some(1), Some(0)]);
        check(&[V4, V4, Ib], &[Ib, V4], &[None, Some(1), Some(0)]);
        check(&[], &[V4], &[]);
        check(&[V4], &[], &[None]);
    }
}
