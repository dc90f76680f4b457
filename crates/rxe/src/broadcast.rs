//! The broadcast: one seed, three peers, all at once, over RDMA; into memory, and onto a disk.
//!
//! Owns: what is asked of it, and what it comes to. Does not own: the fleet.

use anyhow::ensure;

use crate::{
    fleet::{Cast, Fleet, Owner, Pulled, Transport},
    report::{self, BroadcastProof, Report, Row},
    site::{Place, Site},
};

/// How many peers pull.
const PEERS: usize = 3;

/// Runs both.
pub(crate) fn prove(site: &Site, report: Report) -> BroadcastProof {
    let mut proof = BroadcastProof::default();
    for (name, place) in [("broadcast-direct", &site.memory), ("broadcast-staged", &site.disk)] {
        let row = Row::of(name, || {
            report::verdict(run(
                site,
                place,
                |pulled| {
                    take(&mut proof, place, pulled);
                    judge(place, pulled)?;
                    Ok(format!("{PEERS} × {} bytes over RDMA", pulled[0].bytes))
                },
                report,
            ))
        });
        report.row(&row);
        match place.landing {
            "direct" => proof.direct_verified = row.is_passed(),
            _ => proof.staged_verified = row.is_passed(),
        }
    }
    proof
}

/// Runs one, and judges it while it can still say what it did.
fn run(
    site: &Site,
    place: &Place,
    judge: impl FnOnce(&[Pulled]) -> anyhow::Result<String>,
    report: Report,
) -> anyhow::Result<String> {
    let cast = Cast { seeds: 1, peers: PEERS, owner: Owner::Root, transport: Transport::Rdma };
    let mut fleet = Fleet::start(site, place, cast)?;
    fleet.pull()?;
    let pulled = fleet.finish();
    pulled.and_then(|pulled| judge(&pulled)).inspect_err(|_| report.tell(&fleet.last_words()))
}

fn take(proof: &mut BroadcastProof, place: &Place, all: &[Pulled]) {
    proof.tcp_bytes += all.iter().map(|pulled| pulled.bytes_by_transport.tcp).sum::<u64>();
    if place.landing == "direct" {
        proof.peers = all.len() as u64;
        proof.bytes = all.iter().map(|pulled| pulled.bytes).min().unwrap_or_default();
        proof.rdma_bytes = all.iter().map(|pulled| pulled.bytes_by_transport.rdma).sum();
    }
}

/// Each byte came over RDMA, and landed as it does there.
fn judge(place: &Place, all: &[Pulled]) -> anyhow::Result<()> {
    for pulled in all {
        let Pulled { bytes, bytes_by_transport: by, landing, fallback_reason, .. } = pulled;
        let why = fallback_reason.as_deref().unwrap_or("it does not say why");
        ensure!(by.tcp == 0, "{} bytes came over TCP: {why}", by.tcp);
        ensure!(by.rdma >= *bytes, "only {} of {bytes} bytes came over RDMA", by.rdma);
        // A piece that is read a second time, at the very end, goes through a buffer: its place is out to the first read.
        let is_hedged = place.landing == "direct" && landing == "mixed";
        ensure!(is_hedged || landing == place.landing, "bytes landed {landing}, not {}", place.landing);
    }
    Ok(())
}
