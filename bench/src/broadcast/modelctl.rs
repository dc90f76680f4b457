//! modelctl as one of the systems: origin, scheduler, peers and pulls as real processes.
//!
//! Owns: their command lines. Does not own: when they start, or how they are judged.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;
use testbed::{
    netns::Host,
    process::Process,
    program::{are_installed, path, without_settings},
    registry,
};

use super::{
    lab::Lab,
    system::{Moved, Standing, System},
};

const SCHEDULER_PORT: u16 = 7100;
const PEER_PORT: u16 = 7200;
const REGISTRY_PORT: u16 = 5000;

/// How long a push to the registry may take.
const PUSH_PATIENCE: Duration = Duration::from_mins(10);

/// Where the bytes first come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Origin {
    /// Debian's registry
    Registry,
    /// A peer that announces a layout
    Seed,
}

/// Which process lands the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// A peer of the node, in its store, from where a pull takes them: what a disk is for
    Peer,
    /// The pull itself, as a member of the fleet: what memory is for
    Pull,
}

/// How links between peers are secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    Encrypted,
    Plain,
}

/// The program that is measured, in one way to use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modelctl {
    pub(crate) origin: Origin,
    pub(crate) via: Via,
    pub(crate) data: Data,
}

impl System for Modelctl {
    fn name(&self) -> &'static str {
        "modelctl"
    }

    fn missing(&self, _lab: &Lab) -> Option<String> {
        match self.origin {
            Origin::Registry => are_installed(&["docker-registry"]).err().map(|why| why.to_string()),
            Origin::Seed => None,
        }
    }

    fn prepare(&self, lab: &Lab) -> anyhow::Result<()> {
        let storage = storage(lab);
        if self.origin == Origin::Seed || storage.exists() {
            return Ok(());
        }
        let starter = Starter { lab, system: *self };
        let _registry = starter.registry()?;
        let mut push = starter.modelctl(&lab.origin);
        push.args(["push", &lab.model.reference(), &starter.reference(), "--plain-http"]);
        let mut push = Process::start(push, &lab.logs(), "push")?;
        let status = push.wait(PUSH_PATIENCE)?;
        ensure!(status.success(), "the registry did not take the model: {}", push.last_words());
        Ok(())
    }

    fn stand<'a>(&'a self, lab: &'a Lab) -> anyhow::Result<Box<dyn Standing + 'a>> {
        let starter = Starter { lab, system: *self };
        let mut scheduler = starter.scheduler()?;
        scheduler.ready()?;
        let origin = match self.origin {
            Origin::Registry => starter.registry()?,
            Origin::Seed => starter.seed()?,
        };
        let mut peers = Vec::new();
        for peer in 0..lab.peers.len() {
            peers.push(match self.via {
                _ if lab.cast.is_corrupt(peer) => Some(starter.double(peer)?),
                Via::Peer => Some(starter.peer(peer)?),
                Via::Pull => None,
            });
        }
        for (number, peer) in peers.iter_mut().enumerate() {
            let Some(peer) = peer else { continue };
            peer.ready()?;
            if lab.cast.is_corrupt(number) {
                scheduler.logged("name=\"double\"")?;
            } else {
                peer.logged("connected to the scheduler")?;
            }
        }
        let pulls = lab.peers.iter().map(|_| None).collect();
        Ok(Box::new(Fleet { starter, scheduler, origin, peers, pulls }))
    }

    fn is_encrypted(&self) -> bool {
        self.data == Data::Encrypted
    }
}

fn storage(lab: &Lab) -> PathBuf {
    lab.dir.join("registry")
}

/// What every process of a fleet is started with.
#[derive(Clone, Copy)]
struct Starter<'a> {
    lab: &'a Lab,
    system: Modelctl,
}

impl fmt::Debug for Starter<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.system.fmt(out)
    }
}

impl Starter<'_> {
    fn modelctl(&self, host: &Host) -> Command {
        let mut command = host.command(&self.lab.modelctl);
        without_settings(&mut command);
        command.env("MODELCTL_LOG", "info").env("HOME", &self.lab.dir);
        command
    }

    fn start(&self, command: Command, name: &str) -> anyhow::Result<Process> {
        Process::start(command, &self.lab.logs(), name)
    }

    /// The fleet's key, with which nothing is sent in the clear but what is asked for.
    fn add_key(&self, command: &mut Command) {
        command.args(["--fleet-key", path(&self.lab.key)]);
    }

    fn add_fleet(&self, command: &mut Command) {
        command.args(["--scheduler", &format!("http://{}:{SCHEDULER_PORT}", self.lab.aside.address)]);
        self.add_key(command);
        if self.system.data == Data::Plain {
            command.arg("--data-plain");
        }
    }

    fn scheduler(&self) -> anyhow::Result<Process> {
        let host = &self.lab.aside;
        let mut command = self.modelctl(host);
        command.args(["scheduler", "--json", "--listen", &format!("{}:{SCHEDULER_PORT}", host.address)]);
        self.add_key(&mut command);
        self.start(command, "scheduler")
    }

    fn registry(&self) -> anyhow::Result<Process> {
        let host = &self.lab.origin;
        let listen = SocketAddr::new(host.address.into(), REGISTRY_PORT);
        registry::start(
            host.command(Path::new("docker-registry")),
            &storage(self.lab),
            listen,
            &self.lab.logs(),
        )
    }

    fn peer_command(&self, host: &Host, name: &str) -> anyhow::Result<Command> {
        let dir = self.lab.fresh(name)?;
        let mut command = self.modelctl(host);
        command.args(["peer", "--json", "--name", name, "--store", path(&dir.join("store"))]);
        command.args(["--socket", path(&dir.join("peer.sock"))]);
        command.args(["--listen", &format!("{}:{PEER_PORT}", host.address)]);
        command.args(["--nic-rate", &format!("{}mbit", self.lab.rate.0)]);
        self.add_fleet(&mut command);
        Ok(command)
    }

    fn seed(&self) -> anyhow::Result<Process> {
        let mut command = self.peer_command(&self.lab.origin, "seed")?;
        command.args(["--seed", &self.lab.model.reference()]);
        let mut seed = self.start(command, "seed")?;
        seed.ready()?;
        seed.logged("connected to the scheduler")?;
        Ok(seed)
    }

    fn peer(&self, peer: usize) -> anyhow::Result<Process> {
        let name = format!("peer{}", peer + 1);
        let mut command = self.peer_command(&self.lab.peers[peer], &name)?;
        if self.lab.cast.racks.is_some() {
            command.args(["--rack", &format!("rack-{}", self.lab.cast.rack_of(peer))]);
        }
        self.start(command, &name)
    }

    /// A peer that claims to have everything and serves wrong bytes.
    fn double(&self, peer: usize) -> anyhow::Result<Process> {
        let Lab { double, peers, model, dir, aside, .. } = self.lab;
        let mut command = peers[peer].command(double.as_deref().context("there is a double")?);
        command.args(["double", "--behaviour", "wrong-bytes"]);
        command.args(["--listen", &format!("{}:{PEER_PORT}", peers[peer].address)]);
        command.args(["--scheduler", &format!("http://{}:{SCHEDULER_PORT}", aside.address)]);
        command.args(["--layout", path(&model.layout), "--tag", model.tag]).env("TMPDIR", dir);
        self.add_key(&mut command);
        if self.system.data == Data::Plain {
            command.arg("--data-plain");
        }
        self.start(command, &format!("double{}", peer + 1))
    }

    /// What pulls name.
    fn reference(&self) -> String {
        match self.system.origin {
            Origin::Registry => format!("{}:{REGISTRY_PORT}/bench/model:v1", self.lab.origin.address),
            Origin::Seed => format!("fleet:{}", self.lab.model.artifact.digest()),
        }
    }

    fn pull(&self, peer: usize) -> anyhow::Result<Process> {
        let host = &self.lab.peers[peer];
        let mut command = self.modelctl(host);
        command.args(["pull", &self.reference(), "--json", "-o", path(&self.lab.output(peer))]);
        if self.system.origin == Origin::Registry {
            command.arg("--plain-http");
        }
        match self.system.via {
            Via::Peer => {
                let socket = self.lab.dir.join(format!("peer{}/peer.sock", peer + 1));
                command.args(["--peer", &format!("unix:{}", socket.display())]);
            }
            Via::Pull => {
                command.args(["--peer", "none", "--direct"]);
                command.args(["--listen", &format!("{}:{PEER_PORT}", host.address)]);
                self.add_fleet(&mut command);
            }
        }
        self.start(command, &format!("pull{}", peer + 1))
    }
}

/// A fleet's processes.
#[derive(Debug)]
struct Fleet<'a> {
    starter: Starter<'a>,
    /// Kept until the end.
    #[expect(dead_code, reason = "it runs as long as the fleet")]
    scheduler: Process,
    #[expect(dead_code, reason = "it runs as long as the fleet")]
    origin: Process,
    /// Those that have one besides their pulls.
    peers: Vec<Option<Process>>,
    pulls: Vec<Option<Process>>,
}

impl Standing for Fleet<'_> {
    fn go(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    fn start(&mut self, peer: usize) -> anyhow::Result<()> {
        self.pulls[peer] = Some(self.starter.pull(peer)?);
        Ok(())
    }

    fn is_done(&mut self, peer: usize) -> anyhow::Result<bool> {
        let pull = self.pulls[peer].as_mut().context("it was started")?;
        let end = pull.end();
        if result(pull).is_some() {
            return Ok(true);
        }
        if let Some((_, status)) = end {
            bail!("{} ended without being done ({status}): {}", pull.name, pull.last_words());
        }
        Ok(false)
    }

    fn kill(&mut self, peer: usize) {
        for process in self.peers[peer].as_mut().into_iter().chain(self.pulls[peer].as_mut()) {
            process.kill();
        }
    }

    fn peer_pids(&self) -> Vec<u32> {
        self.peers.iter().chain(&self.pulls).flatten().map(Process::pid).collect()
    }

    fn moved(&self) -> Option<Moved> {
        let mut moved = Moved::default();
        // What a pull that did not end well has read counts as well.
        for line in self.pulls.iter().flatten().filter_map(Process::last_line) {
            moved.from_origin += line["origin_bytes"].as_u64().unwrap_or_default();
            moved.from_peers += line["peer_bytes"].as_u64().unwrap_or_default();
        }
        Some(moved)
    }
}

/// The report of a pull that is done.
fn result(pull: &Process) -> Option<Value> {
    pull.last_line().filter(|line| line["verified"] == true)
}
