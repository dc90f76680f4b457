//! The processes of one fleet: schedulers, an origin, peers, perhaps a double.
//!
//! Owns: the order in which they are started, and what is asked of them. Does not own: their command lines (`starter`),
//! faults.

mod starter;

use std::{fs, time::Duration};

use anyhow::Context as _;
use rustix::process::Signal;
use serde_json::Value;

use testbed::{model::Model, process::Process};

use crate::{
    doubles::Behaviour,
    site::{PEERS, Site},
};
use starter::Starter;

/// How long a double may take to end.
const GOODBYE: Duration = Duration::from_secs(10);

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
    /// The peer that gives way to other traffic.
    pub(crate) background: Option<usize>,
}

/// A fleet that runs. Dropping it kills all of it.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    starter: Starter<'a>,
    pub(crate) schedulers: Vec<Process>,
    origin: Process,
    pub(crate) peers: Vec<Process>,
    double: Option<Process>,
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
        let mut fleet = Self { starter, schedulers, origin, peers, double: None, sent_before };
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

    pub(crate) fn site(&self) -> &'a Site {
        self.starter.site
    }

    /// What is broadcast.
    pub(crate) fn model(&self) -> &'a Model {
        self.starter.model
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
        self.schedulers[number] = self.starter.scheduler(number)?;
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

    /// Starts a pull through the peer of that number.
    pub(crate) fn pull(&self, peer: usize) -> anyhow::Result<Process> {
        self.starter.pull(peer)
    }

    /// What the origin's card has sent since this fleet began.
    pub(crate) fn origin_sent(&self) -> anyhow::Result<u64> {
        Ok(self.starter.origin_host().sent_bytes()? - self.sent_before)
    }

    /// Who asked the registry for what, one request a line; the push from its own host left out.
    pub(crate) fn registry_requests(&self) -> Vec<String> {
        let own = self.starter.origin_host().address.to_string();
        let log = self.origin.output();
        log.lines().filter(|line| line.split(' ').next() != Some(&own)).map(str::to_owned).collect()
    }

    /// Ends the double and gives its report.
    pub(crate) fn double_report(&mut self) -> anyhow::Result<Value> {
        let double = self.double.as_mut().context("this fleet has a double")?;
        double.signal(Signal::TERM)?;
        double.wait(GOODBYE)?;
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
        Ok(fs::write(self.starter.clock(), offset)?)
    }

    /// Whether the peer of that number runs with a clockwork indeed.
    pub(crate) fn has_clockwork(&self, peer: usize) -> bool {
        let maps = fs::read_to_string(format!("/proc/{}/maps", self.peers[peer].pid()));
        maps.is_ok_and(|maps| maps.contains("libfaketime"))
    }
}
