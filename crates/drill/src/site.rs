//! Where a drill runs: its directory, its hosts, its key, its models, the program it tries.
//!
//! Owns: making all of that once. Does not own: processes, cleaning up (`testbed`).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use testbed::{
    maker::Maker,
    model::Model,
    netns::{self, Host, Mbit, Network},
    program::{are_installed, call, path},
    scratch::{self, Medium},
    stage,
};

/// What this program is called in names of what it makes.
pub(crate) const TOOL: &str = "fleet-drill";

/// Copies of the model on disk at a time: the source, its layout and its registry; a store and an output a peer, with
/// some room.
const COPIES: u64 = 24;

/// How many peers pull.
pub(crate) const PEERS: usize = 8;

/// How many schedulers there are.
pub(crate) const SCHEDULERS: usize = 2;

/// What has to be installed.
const TOOLS: &[&str] = &["ip", "tc", "setpriv", "tcpdump", "docker-registry"];

/// The hosts, one network card each.
#[derive(Debug)]
pub(crate) struct Hosts {
    pub(crate) schedulers: Vec<Host>,
    pub(crate) seed: Host,
    pub(crate) registry: Host,
    pub(crate) double: Host,
    pub(crate) peers: Vec<Host>,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Site {
    pub(crate) modelctl: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) rate: Mbit,
    pub(crate) network: Network,
    pub(crate) hosts: Hosts,
    pub(crate) model: Model,
    /// The same files, published by another tool.
    pub(crate) foreign: Model,
}

/// Whether a drill can run here, and if not, what is missing.
pub(crate) fn probe() -> anyhow::Result<()> {
    are_installed(TOOLS)?;
    netns::probe(maker())
}

/// This drill, as what it makes is named after it.
pub(crate) fn maker() -> Maker {
    Maker::this(TOOL)
}

impl Site {
    /// Makes the directory, the hosts, the key and a model of about `bytes`.
    pub(crate) fn new(modelctl: &Path, bytes: u64, rate: Mbit) -> anyhow::Result<Self> {
        let modelctl = fs::canonicalize(modelctl)
            .with_context(|| format!("there is no modelctl at `{}`", modelctl.display()))?;
        let dir = scratch::make(maker(), Medium::with_room(bytes * COPIES)?)?;
        fs::create_dir_all(dir.join("logs"))?;
        let mut network = Network::new(maker())?;
        let hosts = Hosts::new(&mut network, rate)?;
        let key = dir.join("fleet.key");
        call(&modelctl, &["fleet-key", "new", path(&key)])?;
        let model = Model::new(&modelctl, &dir, "model", bytes)?;
        let foreign = model.foreign()?;
        Ok(Self { modelctl, dir, key, rate, network, hosts, model, foreign })
    }

    /// What a card does that others want, too: so little that processors can fill it beside everything else.
    pub(crate) fn shared_rate(&self) -> Mbit {
        Mbit(self.rate.0 / 4)
    }

    /// A directory for one process, made anew.
    pub(crate) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        stage::goes_on()?;
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where the peer of that number is to put the model.
    pub(crate) fn output(&self, peer: usize) -> PathBuf {
        self.dir.join(format!("outputs/{peer}/model"))
    }
}

impl Hosts {
    fn new(network: &mut Network, rate: Mbit) -> anyhow::Result<Self> {
        let mut several = |name: &str, count: usize| {
            (1..=count)
                .map(|number| network.add(&format!("{name}{number}"), rate))
                .collect::<anyhow::Result<Vec<_>>>()
        };
        let (schedulers, peers) = (several("scheduler", SCHEDULERS)?, several("peer", PEERS)?);
        let [seed, registry, double] = ["seed", "registry", "double"].map(|name| network.add(name, rate));
        Ok(Self { schedulers, seed: seed?, registry: registry?, double: double?, peers })
    }
}
