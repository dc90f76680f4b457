//! `ib_read_bw` with the same reads on the same device, and what it says. Does not own when it runs.

use std::{path::Path, process::Command, thread, time::Duration};

use anyhow::{bail, ensure};
use testbed::{
    process::{LOOK_INTERVAL, Process, ending},
    program::are_installed,
};

use super::ShapeArgs;
use crate::link::runs::Measured;

const PROGRAM: &str = "ib_read_bw";

/// How often the client asks until the server listens.
const TRIES_MAX: u32 = 300;

/// Whether it is there.
pub(super) fn probe() -> anyhow::Result<()> {
    are_installed(&[PROGRAM])
}

/// Reads so many bytes from one process of it to the other.
pub(super) fn run(
    shape: &ShapeArgs,
    bytes: u64,
    logs: &Path,
    patience: Duration,
) -> anyhow::Result<Measured> {
    let port = free_port()?.to_string();
    let mut server = Process::start(command(shape, bytes, &port), logs, "ib_read_bw-server")?;
    for _ in 0..TRIES_MAX {
        let mut read = command(shape, bytes, &port);
        read.arg("127.0.0.1");
        let mut client = Process::start(read, logs, PROGRAM)?;
        let status = client.wait(patience)?;
        if let Some(mib_per_s) = average(&client.output()) {
            server.wait(patience)?;
            return Ok(measured(bytes, mib_per_s));
        }
        let why = format!("{} {}", client.output().trim(), client.last_words());
        ensure!(server.end().is_none(), "{PROGRAM} failed ({}): {why}", ending(status));
        // Its server says nothing when it begins to listen, so that there is nothing to wait for but it.
        thread::sleep(LOOK_INTERVAL);
    }
    bail!("{PROGRAM} did not begin to listen: {}", server.last_words())
}

fn command(shape: &ShapeArgs, bytes: u64, port: &str) -> Command {
    let qps = u64::from(shape.qps);
    let iterations = (bytes / shape.work_size.0 / qps).max(5);
    let mut command = Command::new(PROGRAM);
    command.args(shape.device.iter().flat_map(|device| ["-d", device]));
    // -F: a clock that changes its speed is no reason not to measure.
    command.args(["-F", "-p", port, "-s", &shape.work_size.0.to_string(), "-q", &qps.to_string()]);
    command.args(["-o", &shape.outstanding.to_string(), "-t", &shape.outstanding.to_string()]);
    command.args(["-n", &iterations.to_string()]);
    command
}

/// A port that was free a moment ago.
fn free_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// The average in MiB per second: the fourth number of the line below the heading.
fn average(output: &str) -> Option<f64> {
    let line = output.lines().skip_while(|line| !line.trim_start().starts_with("#bytes")).nth(1)?;
    line.split_whitespace().nth(3)?.parse().ok()
}

fn measured(bytes: u64, mib_per_s: f64) -> Measured {
    #[expect(clippy::cast_precision_loss, reason = "no file has 2^53 bytes")]
    let seconds = bytes as f64 / (mib_per_s * 1024.0 * 1024.0);
    Measured {
        bytes,
        seconds,
        sender_cpu_s: None,
        receiver_cpu_s: None,
        read_us: Vec::new(),
        piece_us: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_what_counts() {
        let output = " local address: LID 0000 QPN 0x0011\n---\n \
            #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]\n \
            1048576    64             66.31              64.02                 0.000064\n---\n";
        let rate = average(output).unwrap();
        assert!((rate - 64.02).abs() < 1e-9);
        let measured = measured(64 << 20, rate);
        assert!((measured.seconds - 64.0 / 64.02).abs() < 1e-9);
        assert_eq!(average("Couldn't connect to 127.0.0.1:18515\n"), None);
    }
}
