//! The broadcast: one seed, three peers, all at once, over RDMA; into memory, and onto a disk.
//!
//! Owns: what is asked of it, and what it comes to. Does not own: the fleet.

use anyhow::ensure;

use crate::{
    fleet::{ByLanding, Cast, Fleet, Owner, Pulled, Transport},
    report::{self, BroadcastProof, Report, Row},
    site::{Place, Site},
};

/// How many peers pull.
const PEERS: usize = 3;

/// So much of a model, one part in these, may go through buffers where the card writes files: a piece that is read a
/// second time at the very end has its place out to the first read.
const HEDGED_PART: u64 = 8;

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
                    judge(place.landing, pulled)?;
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
fn judge(here: &str, all: &[Pulled]) -> anyhow::Result<()> {
    for pulled in all {
        let Pulled { bytes, bytes_by_transport: by, bytes_by_landing: landed, fallback_reason, .. } = pulled;
        let why = fallback_reason.as_deref().unwrap_or("it does not say why");
        ensure!(by.tcp == 0, "{} bytes came over TCP: {why}", by.tcp);
        ensure!(by.rdma >= *bytes, "only {} of {bytes} bytes came over RDMA", by.rdma);
        let ByLanding { direct, staged } = *landed;
        let is_as_there = match here {
            "direct" => staged <= bytes / HEDGED_PART && direct + staged >= *bytes,
            _ => direct == 0 && staged >= *bytes,
        };
        ensure!(is_as_there, "{direct} bytes landed direct and {staged} staged; here it is {here}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn is_fine(landing: &str, (tcp, rdma): (u64, u64), (direct, staged): (u64, u64)) -> bool {
        let pulled = json!({
            "bytes": 80, "bytes_by_transport": {"tcp": tcp, "rdma": rdma},
            "bytes_by_landing": {"direct": direct, "staged": staged}, "fallback_reason": null, "verified": true,
        });
        judge(landing, &[serde_json::from_value(pulled).unwrap()]).is_ok()
    }

    #[test]
    fn each_byte_has_to_come_over_rdma() {
        assert!(is_fine("direct", (0, 80), (80, 0)));
        assert!(!is_fine("direct", (1, 80), (80, 0)));
        assert!(!is_fine("direct", (0, 79), (80, 0)));
    }

    #[test]
    fn what_is_hedged_may_be_staged_and_no_more() {
        assert!(is_fine("direct", (0, 90), (75, 10)));
        assert!(!is_fine("direct", (0, 91), (80, 11)));
        assert!(!is_fine("direct", (0, 80), (79, 0)), "the rest landed nowhere");
        assert!(is_fine("staged", (0, 80), (0, 80)));
        assert!(!is_fine("staged", (0, 81), (1, 80)));
    }
}
