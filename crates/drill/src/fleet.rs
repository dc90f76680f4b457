//! The processes of one fleet: schedulers, an origin, peers, perhaps a double.
//!
//! Owns: how each is started and found. Does not own: pulls, faults.

use std::{
    fs::{self, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    artifact::TAG,
    doubles::Behaviour,
    netns::Host,
    process::Process,
    site::{CLOCKED, Model, PEERS, SCHEDULERS, Site, path, without_settings},
};

const SCHEDULER_PORT: u16 = 7100;
const PEER_PORT: u16 = 7200;
const REGISTRY_PORT: u16 = 5000;

/// The library that fakes a process's wall clock.
const FAKETIME: &[&str] = &[
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
];

/// How data links are secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Data {
    #[default]
    Encrypted,
    Plain,
}

/// Where the bytes first come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Origin {
    #[default]
    Seed,
    Registry,
}

/// What is special in a fleet.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cast {
    pub(crate) data: Data,
    pub(crate) origin: Origin,
    pub(crate) double: Option<Behaviour>,
    /// The peer whose wall clock can be set.
    pub(crate) clockwork: Option<usize>,
}

/// A fleet that runs. Dropping it kills all of it.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    pub(crate) site: &'a Site,
    pub(crate) model: &'a Model,
    cast: Cast,
    pub(crate) schedulers: Vec<Process>,
    _origin: Process,
    pub(crate) peers: Vec<Process>,
    pub(crate) double: Option<Process>,
    /// How many bytes the origin's card had sent before.
    sent_before: u64,
}

impl<'a> Fleet<'a> {
    /// Starts everybody with empty stores and waits until all are ready.
    pub(crate) fn start(site: &'a Site, model: &'a Model, cast: Cast) -> anyhow::Result<Self> {
        site.fresh("outputs")?;
        let starter = Starter { site, model, cast };
        let mut schedulers = Vec::new();
        for number in 0..site.hosts.schedulers.len() {
            schedulers.push(starter.scheduler(number)?);
        }
        for scheduler in &mut schedulers {
            scheduler.ready()?;
        }
        let sent_before = starter.origin_host().sent_bytes()?;
        let origin = match cast.origin {
            Origin::Seed => starter.seed()?,
            Origin::Registry => starter.registry()?,
        };
        let mut peers = Vec::new();
        for number in 0..PEERS {
            peers.push(starter.peer(number)?);
        }
        for peer in &mut peers {
            peer.ready()?;
        }
        let mut fleet =
            Self { site, model, cast, schedulers, _origin: origin, peers, double: None, sent_before };
        fleet.wait_until_connected()?;
        if let Some(behaviour) = cast.double {
            let active = fleet.active_scheduler()?;
            let double = starter.double(behaviour, active)?;
            fleet.double.insert(double).ready()?;
            fleet.schedulers[active].logged("joined peer=")?;
            fleet.schedulers[active].logged("name=\"double\"")?;
        }
        Ok(fleet)
    }

    /// Until some scheduler has heard of every peer.
    fn wait_until_connected(&mut self) -> anyhow::Result<()> {
        for peer in &mut self.peers {
            peer.logged("connected to the scheduler")?;
        }
        Ok(())
    }

    /// Starts a scheduler again that has ended.
    pub(crate) fn restart_scheduler(&mut self, number: usize) -> anyhow::Result<()> {
        self.schedulers[number].kill();
        let starter = Starter { site: self.site, model: self.model, cast: self.cast };
        self.schedulers[number] = starter.scheduler(number)?;
        self.schedulers[number].ready().map(drop)
    }

    /// The scheduler that plans now: the one that peers connected to.
    pub(crate) fn active_scheduler(&self) -> anyhow::Result<usize> {
        let peers = |number: &usize| {
            let log = self.schedulers[*number].log();
            let count = |words: &str| log.lines().filter(|line| line.contains(words)).count();
            count(" connected peer=").saturating_sub(count(" gone peer="))
        };
        let numbers = 0..self.schedulers.len();
        numbers.filter(|number| peers(number) > 0).max_by_key(peers).context("some scheduler plans")
    }

    /// What a pull names.
    pub(crate) fn reference(&self) -> String {
        let starter = Starter { site: self.site, model: self.model, cast: self.cast };
        match self.cast.origin {
            Origin::Seed => format!("fleet:{}", self.model.artifact.digest()),
            Origin::Registry => starter.registry_reference(),
        }
    }

    /// Starts a pull through the peer of that number.
    pub(crate) fn pull(&self, peer: usize) -> anyhow::Result<Process> {
        let output = self.site.output(peer);
        fs::create_dir_all(output.parent().context("an output has a parent")?)?;
        let starter = Starter { site: self.site, model: self.model, cast: self.cast };
        let socket = format!("unix:{}", starter.socket(&format!("peer{}", peer + 1)).display());
        let mut command = starter.modelctl(&self.site.hosts.peers[peer]);
        command.args(["pull", &self.reference(), "-o", path(&output), "--peer", &socket, "--json"]);
        if self.cast.origin == Origin::Registry {
            command.arg("--plain-http");
        }
        Process::start(command, &self.site.logs(), &format!("pull{}", peer + 1))
    }

    /// What the origin's card has sent since this fleet began.
    pub(crate) fn origin_sent(&self) -> anyhow::Result<u64> {
        let starter = Starter { site: self.site, model: self.model, cast: self.cast };
        Ok(starter.origin_host().sent_bytes()? - self.sent_before)
    }

    /// Ends the double and gives its report.
    pub(crate) fn double_report(&mut self) -> anyhow::Result<Value> {
        let double = self.double.as_mut().context("this fleet has a double")?;
        double.signal(Signal::TERM)?;
        double.wait(std::time::Duration::from_secs(10))?;
        double.last_line().context("a double reports at its end")
    }

    /// What its double says its id is.
    pub(crate) fn double_id(&self) -> anyhow::Result<String> {
        let first = self.double.as_ref().and_then(|double| double.lines().into_iter().next());
        let id = first.and_then(|line| line["peer"].as_str().map(str::to_owned));
        id.context("a double says who it is")
    }

    /// Sets the wall clock of the peer that has a clockwork, relative to the true time.
    pub(crate) fn set_clock(&self, offset: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.site.dir.join(CLOCK), offset)?)
    }

    /// Whether the peer of that number runs with a clockwork indeed.
    pub(crate) fn has_clockwork(&self, peer: usize) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.peers[peer].pid()));
        maps.is_ok_and(|maps| maps.contains("libfaketime"))
    }
}

/// The file that says how late it is.
const CLOCK: &str = "clock";

/// How each process is started.
struct Starter<'a> {
    site: &'a Site,
    model: &'a Model,
    cast: Cast,
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
        let used = if self.site.has_standby { SCHEDULERS } else { 1 };
        let urls: Vec<_> = self.site.hosts.schedulers.iter().take(used).map(url).collect();
        urls.join(",")
    }

    fn scheduler(&self, number: usize) -> anyhow::Result<Process> {
        let host = &self.site.hosts.schedulers[number];
        let listen = format!("{}:{SCHEDULER_PORT}", host.address);
        let mut command = self.modelctl(host);
        command.args(["scheduler", "--listen", &listen, "--fleet-key", self.key(), "--json"]);
        if self.site.has_standby {
            command.args(["--scheduler", &self.scheduler_urls()]);
        }
        self.start(command, &format!("scheduler{}", number + 1))
    }

    fn peer_command(&self, host: &Host, name: &str) -> anyhow::Result<Command> {
        let dir = self.site.fresh(name)?;
        let (store, socket) = (dir.join("store"), self.socket(name));
        let listen = format!("{}:{PEER_PORT}", host.address);
        let mut command = self.modelctl(host);
        command.args(["peer", "--store", path(&store), "--socket", path(&socket), "--listen", &listen]);
        command.args(["--scheduler", &self.scheduler_urls(), "--fleet-key", self.key()]);
        command.args(["--name", name, "--nic-rate", &format!("{}mbit", self.site.rate.0), "--json"]);
        if self.cast.data == Data::Plain {
            command.arg("--data-plain");
        }
        Ok(command)
    }

    fn peer(&self, number: usize) -> anyhow::Result<Process> {
        let name = format!("peer{}", number + 1);
        let mut command = self.peer_command(&self.site.hosts.peers[number], &name)?;
        if self.cast.clockwork == Some(number) {
            let clock = self.site.dir.join(CLOCK);
            fs::write(&clock, "+0")?;
            let library = FAKETIME.iter().find(|library| Path::new(library).exists());
            command.env("LD_PRELOAD", library.context("libfaketime is not installed: run scripts/setup")?);
            command.env("FAKETIME_TIMESTAMP_FILE", clock).env("FAKETIME_NO_CACHE", "1");
            // What measures durations goes on truly, as it does on a machine whose wall clock is set.
            command.env("DONT_FAKE_MONOTONIC", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
        }
        let peer = self.start(command, &name)?;
        if self.cast.clockwork == Some(number) {
            let mut clocked =
                OpenOptions::new().create(true).append(true).open(self.site.dir.join(CLOCKED))?;
            writeln!(clocked, "{}", peer.pid())?;
        }
        Ok(peer)
    }

    fn seed(&self) -> anyhow::Result<Process> {
        let mut command = self.peer_command(&self.site.hosts.seed, "seed")?;
        command.args(["--seed", &format!("oci:{}:{TAG}", self.model.layout.display())]);
        let mut seed = self.start(command, "seed")?;
        seed.ready()?;
        Ok(seed)
    }

    /// It speaks with the scheduler that plans, as a peer of before there were several is told to.
    fn double(&self, behaviour: Behaviour, scheduler: usize) -> anyhow::Result<Process> {
        let host = &self.site.hosts.double;
        // This very binary, also where another was built in its place since.
        let own = format!("/proc/{}/exe", std::process::id());
        let mut command = host.command(Path::new(&own));
        let behaviour = clap::ValueEnum::to_possible_value(&behaviour).context("a behaviour has a name")?;
        command.args(["double", "--behaviour", behaviour.get_name()]);
        command.args(["--listen", &format!("{}:{PEER_PORT}", host.address)]);
        let scheduler = format!("http://{}:{SCHEDULER_PORT}", self.site.hosts.schedulers[scheduler].address);
        command.args(["--scheduler", &scheduler, "--fleet-key", self.key()]);
        command.args(["--layout", path(&self.model.layout)]).env("TMPDIR", &self.site.dir);
        if self.cast.data == Data::Plain {
            command.arg("--data-plain");
        }
        self.start(command, "double")
    }

    fn origin_host(&self) -> &Host {
        match self.cast.origin {
            Origin::Seed => &self.site.hosts.seed,
            Origin::Registry => &self.site.hosts.registry,
        }
    }

    fn registry_reference(&self) -> String {
        format!("{}:{REGISTRY_PORT}/drill/model:{TAG}", self.site.hosts.registry.address)
    }

    /// Debian's registry, with the model in it.
    fn registry(&self) -> anyhow::Result<Process> {
        let host = &self.site.hosts.registry;
        let dir = self.site.dir.join("registry");
        let is_new = !dir.exists();
        fs::create_dir_all(&dir)?;
        let config = dir.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{}:{REGISTRY_PORT}\"}}\n",
            dir.join("storage").display(),
            host.address
        );
        fs::write(&config, text)?;
        let mut command = host.command(Path::new("docker-registry"));
        command.args(["serve", path(&config)]).env_remove("OTEL_TRACES_EXPORTER");
        let mut registry = self.start(command, "registry")?;
        registry.logged("listening on ")?;
        if is_new {
            let mut build = self.modelctl(host);
            let reference = self.registry_reference();
            build.args(["build", path(&self.model.source.dir), "-t", &reference, "--plain-http"]);
            let mut build = self.start(build, "build")?;
            let status = build.wait(std::time::Duration::from_mins(2))?;
            anyhow::ensure!(status.success(), "the registry did not take the model: {}", build.last_words());
        }
        Ok(registry)
    }
}
