//! What libibverbs says of the devices. Does not own: what the kernel says (`probe`), or what follows from it.

use std::net::Ipv6Addr;

use transport_rdma::Network;
use verbs::{Context, VerbsError};

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
            let gid = best(&gids, &port);
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

/// The address that links use.
fn best(gids: &[verbs::Gid], port: &verbs::Port) -> Option<Gid> {
    let (gid, network) = transport_rdma::choose_gid(gids, port, None)?;
    let kind = if network == Network::InfiniBand { "InfiniBand" } else { "RoCE v2" };
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

    #[test]
    fn without_a_library_or_device_the_reason_has_a_hint() {
        let (devices, unavailable) = devices();
        assert_eq!(devices.is_empty(), unavailable.is_some());
        assert!(unavailable.is_none_or(|why| !why.reason.is_empty() && !why.hint.is_empty()));
    }
}
