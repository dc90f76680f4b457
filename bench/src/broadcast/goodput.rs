//! What the cards really carry: TCP payload with every link loaded both ways at once.
//!
//! Owns: measuring it by iperf3. Does not own: what is concluded.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use testbed::{netns::Host, process::Process};

use super::lab::Lab;
use crate::statistics::median;

/// How long is measured, after what is left out while TCP finds its pace, in seconds.
const MEASURED_S: u32 = 3;
const OMITTED_S: u32 = 1;

/// How often: a machine that is held up meanwhile carries less than its cards do, which would flatter whoever is compared
/// with them.
const PROBES: usize = 3;

/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes per second of the card in the middle, in the best of some probes.
pub(crate) fn goodput(lab: &Lab) -> anyhow::Result<f64> {
    let mut best = 0.0_f64;
    for _ in 0..PROBES {
        best = best.max(median(&probe(lab)?).context("there are links")?);
    }
    Ok(best)
}

/// Bytes per second that each host received, the origin first. Each host sends to the next, the last to the first.
fn probe(lab: &Lab) -> anyhow::Result<Vec<f64>> {
    let hosts: Vec<&Host> = [&lab.origin].into_iter().chain(&lab.peers).collect();
    let logs = lab.logs();
    let mut servers = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let mut command = host.command(Path::new("iperf3"));
        command.args(["--server", "--one-off", "--forceflush", "--bind", &host.address.to_string()]);
        servers.push(Process::start(command, &logs, &format!("iperf3-server{index}"))?);
    }
    for server in &mut servers {
        server.printed("Server listening")?;
    }
    let mut clients = Vec::new();
    for (index, host) in hosts.iter().enumerate() {
        let next = hosts[(index + 1) % hosts.len()];
        let mut command = host.command(Path::new("iperf3"));
        command.args(["--client", &next.address.to_string(), "--json"]);
        command.args(["--time", &MEASURED_S.to_string(), "--omit", &OMITTED_S.to_string()]);
        clients.push(Process::start(command, &logs, &format!("iperf3-client{index}"))?);
    }
    let mut received = vec![0.0; hosts.len()];
    for (index, client) in clients.iter_mut().enumerate() {
        let status = client.wait(PATIENCE)?;
        ensure!(status.success(), "iperf3 failed: {} {}", client.output().trim(), client.last_words());
        received[(index + 1) % hosts.len()] = bytes_per_second(&client.output())?;
    }
    Ok(received)
}

/// What the receiver of an iperf3 run says.
fn bytes_per_second(report: &str) -> anyhow::Result<f64> {
    let report: Value = serde_json::from_str(report).context("iperf3 reports JSON")?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.context("iperf3 reports what was received")? / 8.0)
}
