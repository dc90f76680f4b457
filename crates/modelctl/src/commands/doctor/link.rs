//! The test of the way to one peer. Does not own what is measured (crate `peer`), or what follows from it (`judge`).

use std::{net::Ipv6Addr, time::Duration};

use identity::{FleetKey, Identity, Security};
use peer::{LinkFigures, LinkReport, LinkTestOptions, PeerSecurity, link_test};

use super::facts::{Link, LinkSpeed, Rail};
use crate::{access, cli::PeerTestArgs};

/// Tests it, if that is asked for.
pub(super) fn link(args: &PeerTestArgs) -> anyhow::Result<Option<Link>> {
    let Some(address) = &args.peer else { return Ok(None) };
    let control = match &args.fleet_key {
        Some(file) => Security::Fleet(Identity::new(&FleetKey::load(file)?)?),
        None => Security::Plain,
    };
    let data = if args.data_plain { Security::Plain } else { control.clone() };
    let options = LinkTestOptions {
        address: address.clone(),
        security: PeerSecurity { control, data },
        devices: args.devices.rdma_device.clone(),
    };
    let report = access::runtime()?.block_on(link_test(options));
    Ok(Some(of(address, report)))
}

fn of(address: &str, LinkReport { tcp, rdma, rails }: LinkReport) -> Link {
    let rails = rails.into_iter().map(|rail| Rail {
        name: format!("{}/{}", rail.name, rail.port),
        gid: Ipv6Addr::from(rail.gid).to_string(),
        mtu_bytes: rail.mtu_bytes,
        netdev: rail.netdev,
    });
    Link { peer: address.to_owned(), tcp: speed(tcp), rdma: speed(rdma), rails: rails.collect() }
}

fn speed(measured: Result<LinkFigures, String>) -> LinkSpeed {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    match measured {
        Ok(LinkFigures { bytes_per_second, median, p99 }) => LinkSpeed {
            works: true,
            reason: None,
            bytes_per_second: Some(whole(bytes_per_second)),
            read_median_us: Some(micros(median)),
            read_p99_us: Some(micros(p99)),
        },
        Err(reason) => LinkSpeed {
            works: false,
            reason: Some(reason),
            bytes_per_second: None,
            read_median_us: None,
            read_p99_us: None,
        },
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "no link carries 2^64 bytes a second"
)]
fn whole(rate: f64) -> u64 {
    rate.max(0.0) as u64
}
