//! Network namespaces on one bridge, with shaped network cards.
//!
//! Owns: making and removing them, their addresses, rates and counters. Does not own: what runs in them.
//!
//! The bridge has a namespace of its own, so that nothing appears in the machine's network and no rule of its firewall
//! applies. A namespace's name says which process made it: what a killed run left is found by that and removed.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::maker::Maker;

/// The bridge's own namespace, and the bridge in it.
const SWITCH: &str = "switch";
const BRIDGE: &str = "br0";

/// The network card within a host's namespace.
const CARD: &str = "eth0";

/// What a card may send at once: above the 64 KiB that the kernel hands over in one piece.
const BURST_BYTES: u32 = 256 << 10;

/// What waits in front of a card, as time at its rate.
const QUEUE_MS: u32 = 50;

/// How long processes may take to go away after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A rate in megabits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbit(
    /// How many.
    pub u32,
);

/// The bridge, and how many hosts are on it.
#[derive(Debug)]
pub struct Network {
    maker: Maker,
    hosts: u8,
}

/// One namespace with one network card.
#[derive(Clone, Debug)]
pub struct Host {
    namespace: String,
    switch: String,
    /// The other end of its cable, in the bridge's namespace.
    port: String,
    /// By which the others reach it.
    pub address: Ipv4Addr,
}

/// Which way a cable is.
#[derive(Clone, Copy, Debug)]
pub enum Cable {
    /// Plugged in.
    In,
    /// Pulled out.
    Out,
}

impl Network {
    /// The bridge, without hosts.
    ///
    /// # Errors
    /// If this process may not make namespaces.
    pub fn new(maker: Maker) -> anyhow::Result<Self> {
        let network = Self { maker, hosts: 0 };
        let switch = network.name(SWITCH);
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", BRIDGE, "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", BRIDGE, "up"])?;
        Ok(network)
    }

    fn name(&self, host: &str) -> String {
        format!("{}-{host}", self.maker)
    }

    /// A host of that name, whose card does `rate` in each direction.
    pub fn add(&mut self, name: &str, rate: Mbit) -> anyhow::Result<Host> {
        self.hosts = self.hosts.checked_add(1).filter(|count| *count < u8::MAX).context("too many hosts")?;
        let host = Host {
            namespace: self.name(name),
            switch: self.name(SWITCH),
            port: format!("port{}", self.hosts),
            address: Ipv4Addr::new(10, 99, 0, self.hosts),
        };
        let Host { namespace, switch, port, .. } = &host;
        ip(&["netns", "add", namespace])?;
        ip(&["-n", switch, "link", "add", port, "type", "veth", "peer", "name", CARD, "netns", namespace])?;
        ip(&["-n", switch, "link", "set", port, "master", BRIDGE, "up"])?;
        ip(&["-n", namespace, "address", "add", &format!("{}/24", host.address), "dev", CARD])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", namespace, "link", "set", CARD, "up"])?;
        host.shape(rate)?;
        Ok(host)
    }

    /// A command that runs where all packets pass, and the interface to look at.
    pub fn on_the_bridge(&self, program: &Path) -> (Command, &'static str) {
        (command_in(&self.name(SWITCH), program), BRIDGE)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        sweep(self.maker);
    }
}

impl Host {
    /// A command that runs there, and is killed when this process ends, however it ends.
    pub fn command(&self, program: &Path) -> Command {
        command_in(&self.namespace, program)
    }

    /// The bridge's end of its cable, by the name of its interface.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// Gives its card another rate, in both directions.
    pub fn shape(&self, rate: Mbit) -> anyhow::Result<()> {
        let (rate, burst, queue) =
            (format!("{}mbit", rate.0), BURST_BYTES.to_string(), format!("{QUEUE_MS}ms"));
        for (namespace, card) in [(self.namespace.as_str(), CARD), (&self.switch, &self.port)] {
            run(
                "tc",
                &[
                    "-n", namespace, "qdisc", "replace", "dev", card, "root", "tbf", "rate", &rate, "burst",
                    &burst, "latency", &queue,
                ],
            )?;
        }
        Ok(())
    }

    /// Kills whatever runs there.
    pub fn kill_all(&self) {
        kill_within(KILL_PATIENCE, &self.namespace);
    }

    /// Pulls its cable out, or puts it back.
    pub fn cable(&self, cable: Cable) -> anyhow::Result<()> {
        let state = match cable {
            Cable::In => "up",
            Cable::Out => "down",
        };
        ip(&["-n", &self.switch, "link", "set", &self.port, state])
    }

    /// What its card has sent, headers and all.
    pub fn sent_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/sys/class/net/{CARD}/statistics/tx_bytes");
        let text = run("ip", &["netns", "exec", &self.namespace, "cat", &path])?;
        text.trim().parse().context("the kernel counts in numbers")
    }
}

fn command_in(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    // Both replace themselves by the program, so that the child's process id is the program's.
    command.args(["netns", "exec", namespace, "setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    command
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    run("ip", args).map(drop)
}

/// Runs a command to its end and gives its stdout.
pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot run `{program}`"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program} {}` failed: {}", args.join(" "), stderr.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether namespaces can be made here, and why not.
pub fn probe(maker: Maker) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("network namespaces need root");
    }
    let name = format!("{maker}-probe");
    ip(&["netns", "add", &name])?;
    let shaped = ip(&["-n", &name, "link", "add", "probe0", "type", "veth", "peer", "name", "probe1"])
        .and_then(|()| {
            let qdisc = ["qdisc", "add", "dev", "probe0", "root", "tbf", "rate", "1mbit"];
            let queue = ["burst", "10000", "latency", "50ms"];
            run("tc", &[&["-n", &name], &qdisc[..], &queue[..]].concat()).map(drop)
        });
    ip(&["netns", "delete", &name])?;
    shaped
}

/// Who of that tool made the namespaces there are.
pub(crate) fn makers(tool: &'static str) -> BTreeSet<Maker> {
    names().iter().filter_map(|name| Maker::of(tool, name)).collect()
}

/// Removes the namespaces that `maker` made, and every process in them.
pub(crate) fn sweep(maker: Maker) {
    let own: Vec<String> =
        names().into_iter().filter(|name| Maker::of(maker.tool(), name) == Some(maker)).collect();
    for name in &own {
        kill_within(KILL_PATIENCE, name);
    }
    for name in own {
        // What cannot be removed now is found by the next run.
        let _ = ip(&["netns", "delete", &name]);
    }
}

fn names() -> Vec<String> {
    let names = run("ip", &["netns", "list"]).unwrap_or_default();
    names.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// Kills what runs there until nothing does, for so long at most.
fn kill_within(patience: Duration, namespace: &str) {
    let deadline = Instant::now() + patience;
    while kill_all_in(namespace) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Kills what runs there; says whether anything did.
fn kill_all_in(namespace: &str) -> bool {
    let pids = run("ip", &["netns", "pids", namespace]).unwrap_or_default();
    let pids = pids.lines().filter_map(|pid| Pid::from_raw(pid.trim().parse().ok()?));
    // A process that has ended and waits to be reaped is in no namespace any more.
    let mut is_any = false;
    for pid in pids {
        is_any = true;
        // It may have ended since.
        let _ = kill_process(pid, Signal::KILL);
    }
    is_any
}
