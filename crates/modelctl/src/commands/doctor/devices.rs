//! What libibverbs says of the devices. Does not own: what the kernel says (`probe`), or what follows from it.

use std::net::Ipv6Addr;

use verbs::{Context, GidKind, VerbsError};

use super::facts::{Device, DevicePort, Gid, Unavailable};

/// The devices that the library finds, or why it finds none.
pub(super) fn devices() -> (Vec<Device>, Option<Unavailable>) {
    match verbs::devices() {
        Ok(devices) => (devices.iter().map(|device| look_at(&device.name)).collect(), None),
        Err(why) => (Vec::new(), Some(Unavailable { reason: why.to_string(), hint: why.hint() })),
    }
}

fn look_at(name: &str) -> Device {
    let read = || -> Result<Device, VerbsError> {
        let context = Context::open(name)?;
        let gids = context.gids()?;
        let port = |number| {
            let port = context.port(number)?;
            let gid = best(gids.iter().filter(|gid| gid.port == number));
            Ok(DevicePort { number, is_active: port.is_active, mtu_bytes: port.mtu_bytes, gid })
        };
        let ports = context.ports().map(port).collect::<Result<_, VerbsError>>()?;
        Ok(Device { name: name.to_owned(), error: None, has_odp: context.limits().has_odp_read, ports })
    };
    read().unwrap_or_else(|error| Device {
        name: name.to_owned(),
        error: Some(error.to_string()),
        has_odp: false,
        ports: Vec::new(),
    })
}

/// The address that links use: an IPv4 one on RoCE, else another that can be routed, or InfiniBand's.
fn best<'a>(gids: impl Iterator<Item = &'a verbs::Gid>) -> Option<Gid> {
    let rank = |gid: &verbs::Gid| match (gid.kind, Ipv6Addr::from(gid.raw).to_ipv4_mapped()) {
        (GidKind::RoceV2, Some(_)) => Some(0),
        (GidKind::RoceV2, None) => Some(1),
        (GidKind::InfiniBand, _) => Some(2),
        (GidKind::RoceV1, _) => None,
    };
    let (_, gid) = gids.filter_map(|gid| Some((rank(gid)?, gid))).min_by_key(|(rank, _)| *rank)?;
    let kind = if gid.kind == GidKind::InfiniBand { "InfiniBand" } else { "RoCE v2" };
    Some(Gid {
        address: Ipv6Addr::from(gid.raw).to_string(),
        index: gid.index,
        kind: kind.to_owned(),
        netdev: gid.netdev.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, kind: GidKind, address: &str) -> verbs::Gid {
        let raw = address.parse::<Ipv6Addr>().unwrap().octets();
        verbs::Gid { raw, index, port: 1, kind, netdev: None }
    }

    #[test]
    fn an_ipv4_address_goes_before_others_and_what_cannot_be_routed_never() {
        let check = |gids: &[verbs::Gid], expect: Option<u8>| {
            assert_eq!(best(gids.iter()).map(|gid| gid.index), expect);
        };
        let old = gid(0, GidKind::RoceV1, "::ffff:10.0.0.1");
        let link_local = gid(1, GidKind::RoceV2, "fe80::1");
        let ipv4 = gid(2, GidKind::RoceV2, "::ffff:10.0.0.1");
        check(&[old.clone(), link_local.clone(), ipv4], Some(2));
        check(&[old.clone(), link_local], Some(1));
        check(&[old], None);
        check(&[gid(0, GidKind::InfiniBand, "fe80::1")], Some(0));
    }

    #[test]
    fn without_a_library_or_device_the_reason_has_a_hint() {
        let (devices, unavailable) = devices();
        assert_eq!(devices.is_empty(), unavailable.is_some());
        assert!(unavailable.is_none_or(|why| !why.reason.is_empty() && !why.hint.is_empty()));
    }
}
