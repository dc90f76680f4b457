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
    lab::Lab,
    meter::{Busy, Meter, Sample},
    system::{Moved, Standing, System},
};

/// How often peers are looked at: what a finish may be dated too late.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What came of one run.
#[derive(Debug)]
pub(crate) struct Run {
    /// Seconds from the clock's start until each peer was done.
    pub(crate) done_s: Vec<f64>,
    pub(crate) busy: Busy,
    pub(crate) rss_anon_max: u64,
    /// By the system's own count.
    pub(crate) moved: Option<Moved>,
    /// What the cards moved, the origin's first.
    pub(crate) samples: Vec<Sample>,
}

impl Run {
    /// What the origin's card has sent, headers and all.
    pub(crate) fn origin_card_bytes(&self) -> u64 {
        self.samples.last().and_then(|last| last.sent.first().copied()).unwrap_or_default()
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
    let mut done: Vec<Option<f64>> = vec![None; lab.peers.len()];
    let mut meter = Meter::begin(lab)?;
    for peer in 0..lab.peers.len() {
        standing.start(peer)?;
    }
    standing.go()?;
    while done.contains(&None) {
        stage::goes_on()?;
        ensure!(Instant::now() < deadline, "not done after {} s: {done:?}", patience.as_secs());
        for (peer, done) in done.iter_mut().enumerate() {
            if done.is_none() && standing.is_done(peer)? {
                *done = Some(meter.elapsed_s());
            }
        }
        meter.tick(&standing.peer_pids())?;
        thread::sleep(LOOK_INTERVAL);
    }
    let busy = meter.end()?;
    Ok(Run {
        done_s: done.into_iter().flatten().collect(),
        busy,
        rss_anon_max: meter.rss_anon_max,
        moved: standing.moved(),
        samples: std::mem::take(&mut meter.samples),
    })
}

/// Compares every output with the source, byte for byte.
fn verify(lab: &Lab) -> anyhow::Result<()> {
    for peer in 0..lab.peers.len() {
        let found = artifact::proofs(&lab.output(peer))
            .with_context(|| format!("the output of peer {}", peer + 1))?;
        ensure!(found == lab.model.source.files, "peer {} has something else than the source", peer + 1);
    }
    Ok(())
}
