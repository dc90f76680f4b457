//! How each process of a fleet is started, and under which address it is found.
//!
//! Owns: command lines. Does not own: the order of starts, or what the processes do.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::{Cast, Data, Origin};
use testbed::{
    model::Model,
    netns::{Host, Mbit},
    process::Process,
    program::{path, without_settings},
    registry,
    scratch::CLOCKED,
};

use crate::{doubles::Behaviour, site::Site};

const SCHEDULER_PORT: u16 = 7100;
const PEER_PORT: u16 = 7200;
const REGISTRY_PORT: u16 = 5000;

/// The library that fakes a process's wall clock.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// The file that says how late it is.
const CLOCK: &str = "clock";

/// How long a push to the registry may take: many times what it does.
const PUSH_PATIENCE: Duration = Duration::from_mins(2);

/// What every process of one fleet is started with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Starter<'a> {
    pub(crate) site: &'a Site,
    pub(crate) model: &'a Model,
    pub(crate) cast: Cast,
}

impl Starter<'_> {
    fn modelctl(&self, host: &Host) -> Command {
        let mut command = host.command(&self.site.modelctl);
        without_settings(&mut command);
        command.env("MODELCTL_LOG", "info").env("HOME", &self.site.dir);
        command
    }

    fn start(&self, command: Command, name: &str) -> anyhow::Result<Process> {
        Process::start(command, &self.site.logs(), name)
    }

    fn key(&self) -> &str {
        path(&self.site.key)
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.site.dir.join(name).join("peer.sock")
    }

    fn scheduler_urls(&self) -> String {
        let url = |host: &Host| format!("http://{}:{SCHEDULER_PORT}", host.address);
        let urls: Vec<_> = self.site.hosts.schedulers.iter().map(url).collect();
        urls.join(",")
    }

    pub(super) fn scheduler(&self, number: usize) -> anyhow::Result<Process> {
        let host = &self.site.hosts.schedulers[number];
        let listen = format!("{}:{SCHEDULER_PORT}", host.address);
        let mut command = self.modelctl(host);
        command.args(["scheduler", "--listen", &listen, "--fleet-key", self.key(), "--json"]);
        command.args(["--scheduler", &self.scheduler_urls()]);
        self.start(command, &format!("scheduler{}", number + 1))
    }

    fn peer_command(&self, host: &Host, name: &str, rate: Mbit) -> anyhow::Result<Command> {
        let dir = self.site.fresh(name)?;
        let (store, socket) = (dir.join("store"), self.socket(name));
        let listen = format!("{}:{PEER_PORT}", host.address);
        let mut command = self.modelctl(host);
        command.args(["peer", "--store", path(&store), "--socket", path(&socket), "--listen", &listen]);
        command.args(["--scheduler", &self.scheduler_urls(), "--fleet-key", self.key()]);
        command.args(["--name", name, "--nic-rate", &format!("{}mbit", rate.0), "--json"]);
        if self.cast.data == Data::Plain {
            command.arg("--data-plain");
        }
        Ok(command)
    }

    pub(super) fn peer(&self, number: usize) -> anyhow::Result<Process> {
        let name = format!("peer{}", number + 1);
        let (host, gives_way) = (&self.site.hosts.peers[number], self.cast.background == Some(number));
        let rate = if gives_way { self.site.shared_rate() } else { self.site.rate };
        let mut command = self.peer_command(host, &name, rate)?;
        if self.cast.clockwork == Some(number) {
            let clock = self.clock();
            fs::write(&clock, "+0")?;
            let library = FAKETIME.iter().find(|library| Path::new(library).exists());
            command.env("LD_PRELOAD", library.context("libfaketime is not installed: run scripts/setup")?);
            command.env("FAKETIME_TIMESTAMP_FILE", clock).env("FAKETIME_NO_CACHE", "1");
            // What measures durations goes on truly, as it does on a machine whose wall clock is set.
            command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        if gives_way {
            command.arg("--background");
        }
        let peer = self.start(command, &name)?;
        if self.cast.clockwork == Some(number) {
            let mut clocked =
                OpenOptions::new().create(true).append(true).open(self.site.dir.join(CLOCKED))?;
            writeln!(clocked, "{}", peer.pid())?;
        }
        Ok(peer)
    }

    /// The file that tells a clockwork how late it is, relative to the true time.
    pub(super) fn clock(&self) -> PathBuf {
        self.site.dir.join(CLOCK)
    }

    pub(super) fn seed(&self) -> anyhow::Result<Process> {
        let mut command = self.peer_command(&self.site.hosts.seed, "seed", self.site.rate)?;
        command.args(["--seed", &self.model.reference()]);
        let mut seed = self.start(command, "seed")?;
        seed.ready()?;
        Ok(seed)
    }

    /// It speaks with the scheduler that plans, as a peer of before there were several is told to.
    pub(super) fn double(&self, behaviour: Behaviour, scheduler: usize) -> anyhow::Result<Process> {
        let host = &self.site.hosts.double;
        // This very binary, also where another was built in its place since.
        let own = format!("/proc/{}/exe", std::process::id());
        let mut command = host.command(Path::new(&own));
        let behaviour = clap::ValueEnum::to_possible_value(&behaviour).context("a behaviour has a name")?;
        command.args(["double", "--behaviour", behaviour.get_name()]);
        command.args(["--listen", &format!("{}:{PEER_PORT}", host.address)]);
        let scheduler = format!("http://{}:{SCHEDULER_PORT}", self.site.hosts.schedulers[scheduler].address);
        command.args(["--scheduler", &scheduler, "--fleet-key", self.key()]);
        command.args(["--layout", path(&self.model.layout), "--tag", self.model.tag]);
        command.env("TMPDIR", &self.site.dir);
        if self.cast.data == Data::Plain {
            command.arg("--data-plain");
        }
        self.start(command, "double")
    }

    pub(super) fn origin_host(&self) -> &Host {
        match self.cast.origin {
            Origin::Seed => &self.site.hosts.seed,
            Origin::Registry => &self.site.hosts.registry,
        }
    }

    fn registry_reference(&self) -> String {
        format!("{}:{REGISTRY_PORT}/drill/model:{}", self.site.hosts.registry.address, self.model.tag)
    }

    /// Debian's registry, with the model in it.
    pub(super) fn registry(&self) -> anyhow::Result<Process> {
        let host = &self.site.hosts.registry;
        let dir = self.site.dir.join("registry");
        let listen = SocketAddr::new(host.address.into(), REGISTRY_PORT);
        let command = host.command(Path::new("docker-registry"));
        let registry = registry::start(command, &dir, listen, &self.site.logs())?;
        let mut push = self.modelctl(host);
        push.args(["push", &self.model.reference(), &self.registry_reference(), "--plain-http"]);
        let mut push = self.start(push, "push")?;
        let status = push.wait(PUSH_PATIENCE)?;
        ensure!(status.success(), "the registry did not take the model: {}", push.last_words());
        Ok(registry)
    }

    /// What a pull names.
    fn reference(&self) -> String {
        match self.cast.origin {
            Origin::Seed => format!("fleet:{}", self.model.artifact.digest()),
            Origin::Registry => self.registry_reference(),
        }
    }

    /// A pull through the peer of that number.
    pub(super) fn pull(&self, number: usize) -> anyhow::Result<Process> {
        let (output, name) = (self.site.output(number), format!("peer{}", number + 1));
        fs::create_dir_all(output.parent().context("an output has a parent")?)?;
        let socket = format!("unix:{}", self.socket(&name).display());
        let mut command = self.modelctl(&self.site.hosts.peers[number]);
        command.args(["pull", &self.reference(), "-o", path(&output), "--peer", &socket, "--json"]);
        if self.cast.origin == Origin::Registry {
            command.arg("--plain-http");
        }
        self.start(command, &format!("pull{}", number + 1))
    }
}
