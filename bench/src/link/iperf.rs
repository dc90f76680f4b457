//! iperf3 between the same two hosts, and what it says. Does not own the hosts.

use std::{path::Path, time::Duration};

use anyhow::{bail, ensure};
use serde_json::Value;
use testbed::{
    netns::Host,
    process::{LOOK_INTERVAL, Process, ending},
};

use super::runs::Measured;

/// How often the client asks until the server listens.
const TRIES_MAX: u32 = 300;

/// Sends so many bytes from one host to the other.
pub(super) fn run(
    (sender, receiver): (&Host, &Host),
    bytes: u64,
    logs: &Path,
    patience: Duration,
) -> anyhow::Result<Measured> {
    let program = Path::new("iperf3");
    let mut serve = receiver.command(program);
    serve.args(["--server", "--one-off", "--bind", &receiver.address.to_string()]);
    let mut server = Process::start(serve, logs, "iperf3-server")?;
    for _ in 0..TRIES_MAX {
        let mut send = sender.command(program);
        send.args(["--client", &receiver.address.to_string(), "--bytes", &bytes.to_string(), "--json"]);
        let mut client = Process::start(send, logs, "iperf3")?;
        let status = client.wait(patience)?;
        // It ends well even if nobody listens, and says so only there.
        let report: Value = serde_json::from_str(&client.output()).unwrap_or_default();
        if let Some(measured) = measured(&report) {
            return Ok(measured);
        }
        let why = report.get("error").map_or_else(|| client.last_words(), Value::to_string);
        ensure!(server.end().is_none(), "iperf3 failed ({}): {why}", ending(status));
        std::thread::sleep(LOOK_INTERVAL);
    }
    bail!("iperf3 did not begin to listen: {}", server.last_words())
}

fn measured(report: &Value) -> Option<Measured> {
    let end = report.get("end")?;
    let sum = end.get("sum_received")?;
    let (bytes, seconds) = (sum.get("bytes")?.as_u64()?, sum.get("seconds")?.as_f64()?);
    let cpu = |side: &str| Some(end.get("cpu_utilization_percent")?.get(side)?.as_f64()? / 100.0 * seconds);
    Some(Measured {
        bytes,
        seconds,
        sender_cpu_s: Some(cpu("host_total")?),
        receiver_cpu_s: Some(cpu("remote_total")?),
        read_us: Vec::new(),
        piece_us: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn percent_of_a_core_are_seconds() {
        let report = json!({"end": {
            "sum_received": {"bytes": 4_000_000_000_u64, "seconds": 2.0},
            "cpu_utilization_percent": {"host_total": 50.0, "remote_total": 75.0},
        }});
        let Measured { bytes, seconds, sender_cpu_s, receiver_cpu_s, .. } = measured(&report).unwrap();
        assert_eq!((bytes, seconds), (4_000_000_000, 2.0));
        assert_eq!((sender_cpu_s, receiver_cpu_s), (Some(1.0), Some(1.5)));
        assert!(measured(&json!({"error": "unable to connect"})).is_none());
    }
}
