//! Network namespaces on one bridge, with shaped network cards.
//!
//! Owns: making and removing them, their addresses, racks. Does not own: what runs in them, how a rate is kept (`shape`),
//! counting (`counters`).
//!
//! The bridge has a namespace of its own, so that nothing appears in the machine's network and no rule of its firewall
//! applies. A namespace's name says which process made it: what a killed run left is found by that and removed.

mod counters;
mod inside;
mod shape;

use std::{
    collections::BTreeSet,
    fs, io,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use self::{counters::Counters, shape::shape};
pub use self::{counters::Traffic, shape::Mbit};
use crate::maker::Maker;

/// The bridge's own namespace, and the bridge in it.
const SWITCH: &str = "switch";
const BRIDGE: &str = "br0";

/// The network card within a host's namespace.
const CARD: &str = "eth0";

/// How TCP shares a card. A namespace takes after its machine, and bbr shares so unequally that two machines measure
/// different things; this is what Linux comes with.
const CONGESTION_CONTROL: &str = "cubic";

/// How long processes may take to go away after SIGKILL.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// The bridges, and how many hosts and racks there are.
#[derive(Debug)]
pub struct Network {
    maker: Maker,
    counters: Counters,
    hosts: u8,
    racks: u8,
}

/// A bridge of its own below the bridge of all, over one cable.
#[derive(Clone, Debug)]
pub struct Rack {
    switch: String,
    number: u8,
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
        let switch = name_of(maker, SWITCH);
        ip(&["netns", "add", &switch])?;
        let opened = Counters::open(&switch).inspect_err(|_| sweep(maker))?;
        let network = Self { maker, counters: opened, hosts: 0, racks: 0 };
        bridge(&switch, BRIDGE)?;
        Ok(network)
    }

    fn name(&self, host: &str) -> String {
        name_of(self.maker, host)
    }

    /// A host of that name, whose card does `rate` in each direction.
    pub fn add(&mut self, name: &str, rate: Mbit) -> anyhow::Result<Host> {
        self.plug(name, rate, BRIDGE)
    }

    /// A rack, whose cable to the bridge of all does `uplink` in each direction.
    pub fn add_rack(&mut self, uplink: Mbit) -> anyhow::Result<Rack> {
        self.racks = self.racks.checked_add(1).context("too many racks")?;
        let rack = Rack { switch: self.name(SWITCH), number: self.racks };
        let (switch, above, below) = (rack.switch.as_str(), rack.above(), rack.below());
        bridge(switch, &rack.bridge())?;
        ip(&["-n", switch, "link", "add", &above, "type", "veth", "peer", "name", &below])?;
        ip(&["-n", switch, "link", "set", &above, "master", BRIDGE, "up"])?;
        ip(&["-n", switch, "link", "set", &below, "master", &rack.bridge(), "up"])?;
        rack.shape(uplink)?;
        Ok(rack)
    }

    /// A host in that rack.
    pub fn add_in_rack(&mut self, rack: &Rack, name: &str, rate: Mbit) -> anyhow::Result<Host> {
        self.plug(name, rate, &rack.bridge())
    }

    fn plug(&mut self, name: &str, rate: Mbit, bridge: &str) -> anyhow::Result<Host> {
        self.hosts = self.hosts.checked_add(1).filter(|count| *count < u8::MAX).context("too many hosts")?;
        let host = Host {
            namespace: self.name(name),
            switch: self.name(SWITCH),
            port: port(self.hosts),
            address: Ipv4Addr::new(10, 99, 0, self.hosts),
        };
        let Host { namespace, switch, port, .. } = &host;
        ip(&["netns", "add", namespace])?;
        ip(&["-n", switch, "link", "add", port, "type", "veth", "peer", "name", CARD, "netns", namespace])?;
        ip(&["-n", switch, "link", "set", port, "master", bridge, "up"])?;
        ip(&["-n", namespace, "address", "add", &format!("{}/24", host.address), "dev", CARD])?;
        ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        ip(&["-n", namespace, "link", "set", CARD, "up"])?;
        host.control_congestion()?;
        host.shape(rate)?;
        Ok(host)
    }

    /// What every host's card has moved, in the order in which hosts were added. Cheap: no process is started.
    pub fn counters(&self) -> anyhow::Result<Vec<Traffic>> {
        self.counters.across((1..=self.hosts).map(port))
    }

    /// What every rack's cable has moved, as the rack sees it.
    pub fn uplinks(&self) -> anyhow::Result<Vec<Traffic>> {
        self.counters.across((1..=self.racks).map(above))
    }

    /// A command that runs where all packets pass that leave a rack, and the interface to look at.
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

    /// Does `work` in a thread of this process that is there: its sockets are that host's. It dies with this process, but
    /// [`Host::kill_all`] does not know of it.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<anyhow::Result<T>> {
        inside::spawn(self.namespace.clone(), work)
    }

    fn control_congestion(&self) -> anyhow::Result<()> {
        let set = || {
            let set = || fs::write("/proc/sys/net/ipv4/tcp_congestion_control", CONGESTION_CONTROL);
            let Ok(set) = self.spawn(set).join() else { bail!("the thread that sets up TCP panicked") };
            set
        };
        let mut result = set()?;
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            allow_congestion_control()?;
            result = set()?;
        }
        result.with_context(|| format!("cannot make `{CONGESTION_CONTROL}` TCP's congestion control"))
    }

    /// Gives its card another rate, in both directions.
    pub fn shape(&self, rate: Mbit) -> anyhow::Result<()> {
        shape(&self.namespace, CARD, rate)?;
        shape(&self.switch, &self.port, rate)
    }

    /// Kills whatever runs there.
    pub fn kill_all(&self) {
        kill_within(KILL_PATIENCE, &self.namespace);
    }

    /// Lets its card do what it can, in both directions.
    pub fn unshape(&self) -> anyhow::Result<()> {
        for (namespace, card) in [(self.namespace.as_str(), CARD), (&self.switch, &self.port)] {
            run("tc", &["-n", namespace, "qdisc", "delete", "dev", card, "root"])?;
        }
        Ok(())
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

impl Rack {
    /// Gives its cable another rate, in both directions.
    pub fn shape(&self, uplink: Mbit) -> anyhow::Result<()> {
        shape(&self.switch, &self.above(), uplink)?;
        shape(&self.switch, &self.below(), uplink)
    }

    fn bridge(&self) -> String {
        format!("rack{}", self.number)
    }

    fn above(&self) -> String {
        above(self.number)
    }

    /// The rack's end of its cable.
    fn below(&self) -> String {
        format!("below{}", self.number)
    }
}

/// A host's port.
fn port(number: u8) -> String {
    format!("port{number}")
}

/// The end of a rack's cable that is in the bridge of all.
fn above(number: u8) -> String {
    format!("above{number}")
}

fn name_of(maker: Maker, host: &str) -> String {
    format!("{maker}-{host}")
}

fn bridge(switch: &str, name: &str) -> anyhow::Result<()> {
    ip(&["-n", switch, "link", "add", name, "type", "bridge"])?;
    ip(&["-n", switch, "link", "set", name, "up"])
}

fn command_in(namespace: &str, program: &Path) -> Command {
    let mut command = Command::new("ip");
    // Both replace themselves by the program, so that the child's process id is the program's.
    command.args(["netns", "exec", namespace, "setpriv", "--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// A namespace may only have what the machine lets every program choose; a machine that uses another may not list it.
fn allow_congestion_control() -> anyhow::Result<()> {
    let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let allow = |allowed: String| fs::write(path, format!("{} {CONGESTION_CONTROL}", allowed.trim()));
    let hint = || format!("namespaces may not use `{CONGESTION_CONTROL}`: add it to `{path}`");
    fs::read_to_string(path).and_then(allow).with_context(hint)
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
