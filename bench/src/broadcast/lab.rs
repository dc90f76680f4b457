//! Where broadcasts are measured: hosts on a bridge, the model, the fleet's key, the directory of it all.
//!
//! Owns: making it once for all systems and runs. Does not own: what runs there.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use modelpack::quantity::Rate;
use testbed::{
    maker::Maker,
    model::Model,
    netns::{Host, Mbit, Network, Rack},
    program::{call, find, path},
    scratch::{self, Medium},
    stage,
};

use super::faults::{Cast, Role};
use crate::TOOL;

/// What a card does that is to hold nothing up.
const STRANGER_RATE: Mbit = Mbit(10_000);

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
    /// Who is not well, and the racks.
    pub(crate) cast: Cast,
    /// What plays a peer that serves wrong bytes.
    pub(crate) double: Option<PathBuf>,
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
    /// With whom busy hosts have to do.
    pub(crate) stranger: Option<Host>,
    racks: Vec<Rack>,
    pub(crate) cast: Cast,
    /// What plays a peer that serves wrong bytes.
    pub(crate) double: Option<PathBuf>,
    pub(crate) model: Model,
}

impl Lab {
    /// Makes the hosts, the key and the model.
    pub(crate) fn new(order: &Order) -> anyhow::Result<Self> {
        let modelctl = find(&order.modelctl, "--modelctl")?;
        let maker = Maker::this(TOOL);
        let dir = scratch::make(maker, order.medium)?;
        fs::create_dir_all(dir.join("logs"))?;
        let mut network = Network::new(maker)?;
        let origin = network.add("origin", order.rate)?;
        let (racks, peers) = add_peers(&mut network, order)?;
        let aside = network.add("aside", order.rate)?;
        let stranger = order.cast.is_busy().then(|| network.add("stranger", STRANGER_RATE)).transpose()?;
        let key = dir.join("fleet.key");
        call(&modelctl, &["fleet-key", "new", path(&key)])?;
        let model = Model::new(&modelctl, &dir, "model", order.bytes)?;
        let Order { rate, cast, double, .. } = order.clone();
        Ok(Self {
            modelctl,
            dir,
            key,
            rate,
            network,
            origin,
            peers,
            aside,
            stranger,
            racks,
            cast,
            double,
            model,
        })
    }

    /// Gives the cards that are to be slower, and the racks' uplinks, the rates that they have for good.
    pub(crate) fn shape(&self) -> anyhow::Result<()> {
        if let Some(rate) = self.cast.origin_rate {
            self.origin.shape(mbit(rate)?)?;
        }
        for (peer, role) in &self.cast.roles {
            if let Role::Slow(factor) = role {
                self.peers[*peer].shape(part(self.rate, factor.0)?)?;
            }
        }
        for (number, rack) in self.racks.iter().enumerate() {
            rack.shape(part(self.rate, self.cast.uplink_x(number))?)?;
        }
        Ok(())
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

/// The peers, each in its rack where there are racks, whose uplinks hold nothing up yet.
fn add_peers(network: &mut Network, order: &Order) -> anyhow::Result<(Vec<Rack>, Vec<Host>)> {
    let count = order.cast.racks.map_or(0, |racks| racks.count);
    let racks = (0..count).map(|_| network.add_rack(STRANGER_RATE)).collect::<anyhow::Result<Vec<_>>>()?;
    let mut peers = Vec::new();
    for peer in 0..order.peers {
        let name = format!("peer{}", peer + 1);
        peers.push(match racks.get(order.cast.rack_of(peer)) {
            Some(rack) => network.add_in_rack(rack, &name, order.rate)?,
            None => network.add(&name, order.rate)?,
        });
    }
    Ok((racks, peers))
}

/// Cards are shaped in whole megabits.
pub(crate) fn mbit(rate: Rate) -> anyhow::Result<Mbit> {
    let mbit = u32::try_from(rate.0 * 8 / 1_000_000).ok().filter(|mbit| *mbit > 0);
    Ok(Mbit(mbit.with_context(|| format!("a card does at least 1 mbit and at most {} mbit", u32::MAX))?))
}

/// So many times that rate.
fn part(rate: Mbit, times: f64) -> anyhow::Result<Mbit> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a positive rate, and casts of floats saturate"
    )]
    let bytes = (f64::from(rate.0) * 125_000.0 * times) as u64;
    mbit(Rate(bytes))
}
