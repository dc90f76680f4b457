//! The transports of a process that takes part in a fleet, as its flags want them.
//!
//! Owns: how much memory may be pinned where nobody says it. Does not own: opening devices (crate `peer`).

use std::path::Path;

use modelpack::quantity::Rate;
use peer::{Cards, PeerError, TransportMode, TransportOptions, Transports};

use super::doctor::probe::Probe;
use crate::{
    cli::{Transport, TransportArgs},
    report::Refusal,
};

/// What may be pinned where the system tells neither its memory nor a limit.
const PINNED_UNKNOWN: u64 = 4 << 30;

/// Opens what the flags allow.
pub(super) fn open(args: &TransportArgs) -> anyhow::Result<Transports> {
    let mode = match args.transport {
        Transport::Auto => TransportMode::Auto,
        Transport::Tcp => TransportMode::Tcp,
        Transport::Rdma => TransportMode::Rdma,
    };
    if mode == TransportMode::Tcp && !args.devices.rdma_device.is_empty() {
        let message = "`--rdma-device` names devices that `--transport tcp` does not open";
        return Err(Refusal::usage(message).hint("leave one of them out").into());
    }
    if mode == TransportMode::Rdma && args.background {
        let message = "`--background` serves others over TCP, which `--transport rdma` excludes";
        return Err(Refusal::usage(message).hint("use `--transport auto`").into());
    }
    let devices = args.devices.rdma_device.clone();
    let pinned_bytes_max = args.pinned_max.map_or_else(pinned_default, |size| size.0);
    limited(Transports::open(TransportOptions { mode, devices, pinned_bytes_max })?, args)
}

/// What a process needs that reads from no peer.
pub(super) fn alone(args: &TransportArgs) -> anyhow::Result<Transports> {
    limited(Transports::tcp(), args)
}

fn limited(transports: Transports, args: &TransportArgs) -> anyhow::Result<Transports> {
    let transports = match args.limit {
        Some(Rate(rate)) => transports.limited(rate),
        None => transports,
    };
    if !args.background {
        return Ok(transports);
    }
    let rate = args.nic_rate.map(|rate| rate.0);
    Ok(transports.giving_way(Cards::find(Path::new("/"), rate).map_err(PeerError::Cards)?)?)
}

/// Fails where RDMA is all that may be used and there is none, before anything else is done.
pub(super) fn check(args: &TransportArgs) -> anyhow::Result<()> {
    match args.transport {
        Transport::Rdma => open(args).map(drop),
        Transport::Auto | Transport::Tcp => Ok(()),
    }
}

fn pinned_default() -> u64 {
    let found = verbs::findings();
    let limit = found.memlock.effective();
    let memory = [Probe::new("/").memory_bytes(), found.cgroup_bytes_max];
    let pinned = pinned_max(memory, limit);
    tracing::debug!(pinned, ?memory, memlock = ?limit, "RDMA may pin so many bytes");
    pinned
}

/// Half of the least memory; of what may be locked an eighth is left for queues and the like.
fn pinned_max(memory: [Option<u64>; 2], memlock: Option<u64>) -> u64 {
    let half = memory.into_iter().flatten().min().map_or(PINNED_UNKNOWN, |memory| memory / 2);
    memlock.map_or(half, |memlock| half.min(memlock - memlock / 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_pinned_is_half_of_the_least_and_no_more_than_may_be_locked() {
        const GIB: u64 = 1 << 30;
        for (memory, memlock, expected) in [
            ([Some(16 * GIB), None], None, 8 * GIB),
            ([Some(16 * GIB), Some(4 * GIB)], None, 2 * GIB),
            ([Some(16 * GIB), Some(64 * GIB)], None, 8 * GIB),
            ([Some(16 * GIB), None], Some(8 << 20), 7 << 20),
            ([Some(16 * GIB), None], Some(64 * GIB), 8 * GIB),
            ([Some(16 * GIB), None], Some(0), 0),
            ([None, None], None, PINNED_UNKNOWN),
        ] {
            assert_eq!(pinned_max(memory, memlock), expected, "{memory:?}, {memlock:?}");
        }
    }
}
