//! One run: everything stands ready, the clock starts, and each peer is dated when it is done.
//!
//! Owns: the clock, and whether what arrived is right. Does not own: systems, or sums over several runs.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use testbed::{artifact, stage};

use super::{
    faults::Acts,
    lab::Lab,
    meter::{Busy, Meter, Sample},
    system::{Moved, Standing, System},
};

/// How often peers are looked at: what a finish may be dated too late.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What came of one run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Seconds from the clock's start until each peer was done, by peer; a fault may keep one from it.
    pub(crate) done_s: Vec<Option<f64>>,
    pub(crate) busy: Busy,
    pub(crate) rss_anon_max: u64,
    /// By the system's own count.
    pub(crate) moved: Option<Moved>,
    /// What the cards moved, the origin's first.
    pub(crate) samples: Vec<Sample>,
    /// What came over the uplinks of all racks, where there are racks.
    pub(crate) uplink_bytes: Option<u64>,
}

impl Run {
    /// What the origin's card has sent, headers and all.
    pub(crate) fn origin_card_bytes(&self) -> u64 {
        self.samples.last().and_then(|last| last.sent.first().copied()).unwrap_or_default()
    }

    /// What the card of that peer has sent.
    pub(crate) fn sent_by(&self, peer: usize) -> u64 {
        self.samples.last().and_then(|last| last.sent.get(1 + peer).copied()).unwrap_or_default()
    }

    /// What all peers' cards have sent.
    pub(crate) fn peer_card_bytes(&self) -> u64 {
        self.samples.last().map_or(0, |last| last.sent.iter().skip(1).sum())
    }
}

/// Lets a system run once; `patience` is how long it may take.
pub(crate) fn run(lab: &Lab, system: &dyn System, patience: Duration) -> anyhow::Result<Run> {
    let outputs = lab.fresh("outputs")?;
    for peer in 0..lab.peers.len() {
        fs::create_dir_all(lab.output(peer).parent().unwrap_or(&outputs))?;
    }
    let mut standing = system.stand(lab)?;
    let run = clock(lab, standing.as_mut(), patience)?;
    drop(standing);
    verify(lab)?;
    Ok(run)
}

/// From the clock's start until the last peer is done.
fn clock(lab: &Lab, standing: &mut dyn Standing, patience: Duration) -> anyhow::Result<Run> {
    let deadline = Instant::now() + patience;
    let (cast, all) = (&lab.cast, 0..lab.peers.len());
    let well: Vec<usize> = all.clone().filter(|peer| cast.is_well(*peer)).collect();
    let mut begun: Vec<usize> = all.clone().filter(|peer| cast.begins(*peer)).collect();
    let mut done: Vec<Option<f64>> = vec![None; lab.peers.len()];
    let mut acts = Acts::begin(lab)?;
    let uplinks_before = over_uplinks(lab)?;
    let mut meter = Meter::begin(lab)?;
    for peer in &begun {
        standing.start(*peer)?;
    }
    standing.go()?;
    while all.clone().any(|peer| cast.finishes(peer) && done[peer].is_none()) {
        stage::goes_on()?;
        ensure!(Instant::now() < deadline, "not done after {} s: {done:?}", patience.as_secs());
        begun.extend(acts.due(meter.share(lab.size(), &well), standing)?);
        for peer in begun.iter().filter(|peer| cast.finishes(**peer)) {
            if done[*peer].is_none() && standing.is_done(*peer)? {
                done[*peer] = Some(meter.elapsed_s());
            }
        }
        meter.tick(&standing.peer_pids())?;
        thread::sleep(LOOK_INTERVAL);
    }
    let uplink_bytes = lab.cast.racks.is_some().then_some(over_uplinks(lab)? - uplinks_before);
    acts.end()?;
    let busy = meter.end()?;
    Ok(Run {
        done_s: done,
        busy,
        rss_anon_max: meter.rss_anon_max,
        moved: standing.moved(),
        samples: std::mem::take(&mut meter.samples),
        uplink_bytes,
    })
}

/// What all racks have received so far.
fn over_uplinks(lab: &Lab) -> anyhow::Result<u64> {
    Ok(lab.network.uplinks()?.iter().map(|uplink| uplink.received).sum())
}

/// Compares every output that there is to be with the source, byte for byte.
fn verify(lab: &Lab) -> anyhow::Result<()> {
    for peer in (0..lab.peers.len()).filter(|peer| lab.cast.finishes(*peer)) {
        let found = artifact::proofs(&lab.output(peer))
            .with_context(|| format!("the output of peer {}", peer + 1))?;
        ensure!(found == lab.model.source.files, "peer {} has something else than the source", peer + 1);
    }
    Ok(())
}
