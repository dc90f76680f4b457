//! Where broadcasts are measured: hosts on a bridge, the model, the fleet's key, the directory of it all.
//!
//! Owns: making it once for all systems and runs. Does not own: what runs there.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use testbed::{
    maker::Maker,
    model::Model,
    netns::{Host, Mbit, Network},
    program::{call, find, path},
    scratch::{self, Medium},
    stage,
};

use crate::TOOL;

/// What a lab is made of.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The program that is measured.
    pub(crate) modelctl: PathBuf,
    /// How many hosts receive.
    pub(crate) peers: usize,
    /// What every network card does in each direction.
    pub(crate) rate: Mbit,
    /// About how many bytes the model has.
    pub(crate) bytes: u64,
    /// Where model, stores and outputs lie.
    pub(crate) medium: Medium,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Lab {
    pub(crate) modelctl: PathBuf,
    pub(crate) dir: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) rate: Mbit,
    pub(crate) network: Network,
    /// Where the model is at the beginning.
    pub(crate) origin: Host,
    /// Who are to have it.
    pub(crate) peers: Vec<Host>,
    /// What else a system runs that moves no model bytes.
    pub(crate) aside: Host,
    pub(crate) model: Model,
}

impl Lab {
    /// Makes the hosts, the key and the model.
    pub(crate) fn new(order: &Order) -> anyhow::Result<Self> {
        let modelctl = find(&order.modelctl)?;
        let maker = Maker::this(TOOL);
        let dir = scratch::make(maker, order.medium)?;
        fs::create_dir_all(dir.join("logs"))?;
        let mut network = Network::new(maker)?;
        let origin = network.add("origin", order.rate)?;
        let peers = (1..=order.peers)
            .map(|number| network.add(&format!("peer{number}"), order.rate))
            .collect::<anyhow::Result<_>>()?;
        let aside = network.add("aside", order.rate)?;
        let key = dir.join("fleet.key");
        call(&modelctl, &["fleet-key", "new", path(&key)])?;
        let model = Model::new(&modelctl, &dir, "model", order.bytes)?;
        Ok(Self { modelctl, dir, key, rate: order.rate, network, origin, peers, aside, model })
    }

    /// A directory of that name, made anew.
    pub(crate) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        stage::goes_on()?;
        let dir = self.dir.join(name);
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| format!("cannot clear `{}`", dir.display()))?;
        }
        fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The directory that the peer of that number is to make.
    pub(crate) fn output(&self, peer: usize) -> PathBuf {
        self.dir.join(format!("outputs/{}/model", peer + 1))
    }

    /// The artifact's bytes.
    pub(crate) fn size(&self) -> u64 {
        self.model.artifact.bytes()
    }
}
