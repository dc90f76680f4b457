//! The two hosts, and the runs between them.
//!
//! Owns: which kinds are measured in which order, starting both sides. Does not own: what a side does.

use std::{
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::de::DeserializeOwned;
use testbed::{
    maker::Maker,
    netns::{Host, Mbit, Network},
    process::{Process, ending},
    program::{are_installed, path},
    stage,
};

use super::{
    Check, LinkArgs, Securing, Transport, iperf,
    receiver::Received,
    result::{Row, Skipped},
    sender::{Offer, Used},
};
use crate::output::tell;

/// How long one run may take at least; slow cards get more.
const PATIENCE: Duration = Duration::from_mins(2);

/// Cards that are not shaped are made with this rate first, in megabits per second.
const MADE_WITH: Mbit = Mbit(10_000);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Variant {
    /// The product's link.
    Link(Securing),
    /// iperf3, one stream.
    Iperf3,
    /// The product's link over RDMA.
    Rdma,
    /// `ib_read_bw`.
    ReadBw,
}

impl Variant {
    pub(super) const TLS: Self = Self::Link(Securing::Tls);
    pub(super) const PLAIN: Self = Self::Link(Securing::Plain);
    /// The least that receives and checks.
    pub(super) const BARE: Self = Self::Link(Securing::Bare);

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Link(Securing::Tls) => "modelctl-tls",
            Self::Link(Securing::Plain) => "modelctl-plain",
            Self::Link(Securing::Bare) => "recv-blake3",
            Self::Iperf3 => "iperf3",
            Self::Rdma => "rdma",
            Self::ReadBw => "ib_read_bw",
        }
    }
}

/// What one run took.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) bytes: u64,
    pub(super) seconds: f64,
    /// Without a network both sides are one process, whose CPU is the receiver's.
    pub(super) sender_cpu_s: Option<f64>,
    pub(super) receiver_cpu_s: Option<f64>,
    pub(super) read_us: Vec<u64>,
    pub(super) piece_us: Vec<u64>,
}

/// Both hosts, if there is a network.
struct Cable {
    sender: Host,
    receiver: Host,
    /// Dropped last: it removes them.
    _network: Network,
}

/// Where everything happens.
pub(super) struct Lab {
    cable: Option<Cable>,
    dir: PathBuf,
    dest: PathBuf,
    file: PathBuf,
    bytes: u64,
    check: Check,
    patience: Duration,
}

impl Lab {
    pub(super) fn new(
        args: &LinkArgs,
        (dir, dest, file): (PathBuf, PathBuf, PathBuf),
        maker: Maker,
    ) -> anyhow::Result<Self> {
        let mbit = args.rate.map(|rate| u32::try_from((rate.0 / 125_000).max(1)).map(Mbit)).transpose()?;
        let cable = (args.transport == Transport::Tcp).then(|| Cable::new(maker, mbit)).transpose()?;
        let slowest = args.rate.map_or(0, |rate| args.size.0 / rate.0);
        let patience = PATIENCE + 3 * Duration::from_secs(slowest);
        Ok(Self { cable, dir, dest, file, bytes: args.size.0, check: args.check, patience })
    }

    /// Everything so often, alternately, then once more to count system calls.
    pub(super) fn measure(&self, runs: NonZeroU32) -> anyhow::Result<(Vec<Row>, Vec<Skipped>)> {
        let mut skipped = Vec::new();
        let mut variants = vec![Variant::PLAIN];
        if self.cable.is_some() {
            variants.extend([Variant::TLS, Variant::BARE]);
            match are_installed(&["iperf3"]) {
                Ok(()) => variants.push(Variant::Iperf3),
                Err(why) => skipped.push(Skipped::new("iperf3", &why)),
            }
        }
        let mut measured: Vec<Vec<Measured>> = variants.iter().map(|_| Vec::new()).collect();
        for run in 1..=runs.get() {
            for (variant, all) in variants.iter().zip(&mut measured) {
                tell(&format!("run {run} of {runs}: {}", variant.name()));
                all.push(self.run(*variant, None).with_context(|| variant.name())?);
            }
        }
        let counter = Counter::new().inspect_err(|why| skipped.push(Skipped::new("syscalls", why))).ok();
        let mut rows = Vec::new();
        for (variant, all) in variants.into_iter().zip(measured) {
            let mut row = Row::new(variant, &all);
            if let (Some(counter), Variant::Link(_)) = (&counter, variant) {
                tell(&format!("system calls: {}", variant.name()));
                let measured = self.run(variant, Some(counter)).with_context(|| variant.name())?;
                let of = |side| Counter::read(&self.dir, side);
                let sender = self.cable.is_some().then(|| of("sender")).transpose()?;
                row.count_calls(sender, of("receiver")?, measured.bytes);
            }
            rows.push(row);
        }
        Ok((rows, skipped))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where logs are.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Where the next run lands: what the last one left there is removed.
    pub(super) fn landing_dir(&self) -> anyhow::Result<PathBuf> {
        let landing = self.dest.join("landing");
        if landing.exists() {
            std::fs::remove_dir_all(&landing)?;
        }
        Ok(landing)
    }

    fn run(&self, variant: Variant, counter: Option<&Counter>) -> anyhow::Result<Measured> {
        stage::goes_on()?;
        let securing = match (variant, &self.cable) {
            (Variant::Iperf3, Some(cable)) => {
                return iperf::run((&cable.sender, &cable.receiver), self.bytes, &self.dir, self.patience);
            }
            (Variant::Iperf3, None) => anyhow::bail!("iperf3 needs a network"),
            (Variant::Rdma | Variant::ReadBw, _) => anyhow::bail!("RDMA has runs of its own"),
            (Variant::Link(securing), _) => securing,
        };
        let landing = self.landing_dir()?;
        let received = [path(&self.file), path(&landing), securing.name(), self.check.name()];
        let Some(cable) = &self.cable else {
            let (program, before) = Counter::wrap(counter, &self.dir, "receiver");
            let mut command = Command::new(program);
            command.args(before).arg("link-receiver").args(received);
            return Ok(Measured::of(self.finish(command, "receiver")?, None));
        };
        let (program, before) = Counter::wrap(counter, &self.dir, "sender");
        let mut command = cable.sender.command(&program);
        let listen = cable.sender.address.to_string();
        command.args(before).args(["link-sender", path(&self.file), &listen, securing.name()]);
        let mut sender = Process::start(command, &self.dir, "sender")?;
        let offer: Offer = serde_json::from_value(sender.ready()?)?;

        let (program, before) = Counter::wrap(counter, &self.dir, "receiver");
        let mut command = cable.receiver.command(&program);
        command.args(before).arg("link-receiver").args(received);
        command.args(["--address", &offer.address.to_string(), "--link", &offer.link.to_string()]);
        command.args(["--secret", &offer.secret, "--window", &offer.window.to_string()]);
        let received: Received = self.finish(command, "receiver")?;
        // Fails only if it has ended by itself, as the bare one does.
        let pid = i32::try_from(offer.pid).ok().and_then(Pid::from_raw).context("a process has a number")?;
        let _ = kill_process(pid, Signal::TERM);
        let used: Used = self.end_of(sender)?;
        Ok(Measured::of(received, Some(used.cpu_s)))
    }

    pub(super) fn finish<T: DeserializeOwned>(&self, command: Command, name: &str) -> anyhow::Result<T> {
        self.end_of(Process::start(command, &self.dir, name)?)
    }

    /// The last line of a process that ends.
    fn end_of<T: DeserializeOwned>(&self, mut process: Process) -> anyhow::Result<T> {
        let status = process.wait(self.patience)?;
        ensure!(status.success(), "{}: {}: {}", process.name, ending(status), process.last_words());
        let line = process.last_line().with_context(|| format!("{} said nothing", process.name))?;
        Ok(serde_json::from_value(line)?)
    }
}

impl Measured {
    pub(super) fn of(received: Received, sender_cpu_s: Option<f64>) -> Self {
        let Received { bytes, seconds, cpu_s, read_us, piece_us } = received;
        Self { bytes, seconds, sender_cpu_s, receiver_cpu_s: Some(cpu_s), read_us, piece_us }
    }
}

impl Cable {
    fn new(maker: Maker, rate: Option<Mbit>) -> anyhow::Result<Self> {
        let mut network = Network::new(maker)?;
        let sender = network.add("sender", rate.unwrap_or(MADE_WITH))?;
        let receiver = network.add("receiver", rate.unwrap_or(MADE_WITH))?;
        if rate.is_none() {
            for host in [&sender, &receiver] {
                host.unshape()?;
            }
        }
        Ok(Self { sender, receiver, _network: network })
    }
}

/// Counts the system calls of a process and its threads, by `perf`.
pub(super) struct Counter;

/// What perf counts.
const EVENT: &str = "raw_syscalls:sys_enter";

impl Counter {
    fn new() -> anyhow::Result<Self> {
        are_installed(&["perf"])?;
        let output = Command::new("perf").args(["stat", "-x", ",", "-e", EVENT, "true"]).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        let can_count = output.status.success() && calls_of(&said).is_some();
        // What follows the first line is how to use it.
        ensure!(can_count, "perf cannot count: {}", said.trim().lines().next().unwrap_or_default());
        Ok(Self)
    }

    fn file(dir: &Path, side: &str) -> PathBuf {
        dir.join(format!("calls-{side}"))
    }

    /// The program to run instead of this one, and the arguments that come before this one's.
    fn wrap(counter: Option<&Self>, dir: &Path, side: &str) -> (PathBuf, Vec<String>) {
        // By its number: whatever starts it is itself where that says `self`.
        let this = format!("/proc/{}/exe", std::process::id());
        if counter.is_none() {
            return (this.into(), Vec::new());
        }
        let file = Self::file(dir, side).display().to_string();
        let args = ["stat", "-x", ",", "-e", EVENT, "-o", &file, "--", &this];
        ("perf".into(), args.map(str::to_owned).to_vec())
    }

    fn read(dir: &Path, side: &str) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(Self::file(dir, side))?;
        calls_of(&text).with_context(|| format!("perf has counted nothing: {}", text.trim()))
    }
}

/// The count in what `perf stat -x ,` writes.
fn calls_of(text: &str) -> Option<u64> {
    text.lines().find(|line| line.contains(EVENT))?.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_what_perf_counted() {
        let text = "# started on Tue\n\n1234,,raw_syscalls:sys_enter,5678,100.00,,\n";
        assert_eq!(calls_of(text), Some(1234));
        assert_eq!(calls_of("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(calls_of(""), None);
    }
}
