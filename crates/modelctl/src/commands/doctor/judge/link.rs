//! What follows from a test of the way to a peer. Pure.

use std::time::Duration;

use super::{Area, Finding, Severity};
use crate::{
    commands::doctor::facts::{Link, LinkSpeed, Rail},
    text,
};

/// One finding for each transport. `rdma_lacks`: why this machine cannot use RDMA, whatever the peer can.
pub(super) fn judge(link: &Link, rdma_lacks: Option<&str>) -> [Finding; 2] {
    let peer = text::one_line(&link.peer);
    let tcp = match figures(&link.tcp) {
        Ok(figures) => Finding::new(Severity::Ok, Area::Link, format!("`{peer}` over TCP: {figures}")),
        Err(reason) => Finding::new(Severity::Problem, Area::Link, format!("`{peer}` over TCP: {reason}"))
            .hint(
                "see that a peer of this version runs there, that this is the address that it listens on or \
             advertises, and that both have the same `--fleet-key` and `--data-plain`",
            ),
    };
    let rdma = match (figures(&link.rdma), rdma_lacks) {
        (Ok(figures), _) => {
            let rails: Vec<_> = link.rails.iter().map(rail).collect();
            Finding::new(Severity::Ok, Area::Rdma, format!("`{peer}` over {}: {figures}", rails.join(", ")))
        }
        (Err(_), Some(lacks)) => {
            Finding::new(Severity::Note, Area::Rdma, format!("`{peer}` over RDMA: not from here, as {lacks}"))
        }
        (Err(reason), None) => {
            Finding::new(Severity::Problem, Area::Rdma, format!("`{peer}` over RDMA: {reason}")).hint(
                "`modelctl doctor` there says what that end lacks; UDP port 4791 has to pass between the two, and \
                 packets of the MTU",
            )
        }
    };
    [tcp, rdma]
}

fn rail(rail: &Rail) -> String {
    let netdev = rail.netdev.as_deref().map(|netdev| format!(", {netdev}")).unwrap_or_default();
    format!("RDMA ({}, GID {}{netdev}, MTU {})", rail.name, rail.gid, rail.mtu_bytes)
}

fn figures(speed: &LinkSpeed) -> Result<String, String> {
    let LinkSpeed { bytes_per_second, read_median_us, read_p99_us, reason, .. } = speed;
    let (Some(rate), Some(median), Some(p99)) = (bytes_per_second, read_median_us, read_p99_us) else {
        return Err(text::one_line(reason.as_deref().unwrap_or("it does not work")));
    };
    let [median, p99] = [median, p99].map(|micros| milliseconds(Duration::from_micros(*micros)));
    Ok(format!("{}/s; a read of 1 MiB takes {median}, and 99 of 100 at most {p99}", text::bytes(*rate)))
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}
