//! One broadcast: a pull on every peer at the same moment, watched from outside.
//!
//! Owns: progress, ends, what each pull reported, and whether that is right. Does not own: faults.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, bail, ensure};
use serde_json::Value;

use testbed::{
    artifact,
    process::{LOOK_INTERVAL, Process, ending},
};

use crate::{fleet::Fleet, site::PEERS, watch::Watch};

/// How long a broadcast may take, faults and all: many times what it does.
const PATIENCE: Duration = Duration::from_mins(2);

/// Pulls under way.
#[derive(Debug)]
pub(crate) struct Broadcast {
    begin: Instant,
    pub(crate) pulls: Vec<Process>,
    watch: Watch,
}

/// What came of a broadcast.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Until the last healthy pull was done.
    pub(crate) seconds: f64,
    /// Origin bytes of all pulls, those that did not end well included, in artifacts.
    pub(crate) origin_x: f64,
}

impl Broadcast {
    /// Starts all pulls.
    pub(crate) fn start(fleet: &Fleet<'_>) -> anyhow::Result<Self> {
        let outputs = (0..PEERS).map(|peer| fleet.site().output(peer)).collect();
        let watch = Watch::begin(outputs);
        let begin = Instant::now();
        let mut pulls = Vec::new();
        for peer in 0..PEERS {
            pulls.push(fleet.pull(peer)?);
        }
        Ok(Self { begin, pulls, watch })
    }

    /// Waits until so many hundredths of all bytes are there.
    pub(crate) fn wait_for_percent(&mut self, percent: f64) -> anyhow::Result<()> {
        while self.percent() < percent {
            ensure!(self.begin.elapsed() < PATIENCE, "the broadcast did not get to {percent} %");
            if let Some(failed) = self.pulls.iter_mut().find_map(failure) {
                bail!(failed);
            }
            thread::sleep(LOOK_INTERVAL);
        }
        ensure!(self.percent() < 95.0, "the broadcast was over before the fault");
        Ok(())
    }

    fn percent(&self) -> f64 {
        let share = |pull: &Process| {
            let line = pull.last_line()?;
            let (done, total) = (line["bytes_done"].as_f64(), line["bytes_total"].as_f64());
            // The result has neither.
            Some(if line["verified"] == true { 1.0 } else { done? / total? })
        };
        let shares: f64 = self.pulls.iter().map(|pull| share(pull).unwrap_or(0.0)).sum();
        shares * 100.0 / f64::from(u32::try_from(self.pulls.len().max(1)).unwrap_or(u32::MAX))
    }

    /// Waits until these pulls have ended well; returns when the last did, in seconds since the start.
    pub(crate) fn wait_for(&mut self, peers: &[usize]) -> anyhow::Result<f64> {
        loop {
            // All of them are looked at each time, since an end is dated by when it is seen.
            let ends: Vec<_> = self.pulls.iter_mut().map(Process::end).collect();
            let ended: Vec<_> = peers.iter().filter_map(|peer| ends[*peer]).collect();
            if let Some(failed) = peers.iter().find_map(|peer| failure(&mut self.pulls[*peer])) {
                bail!(failed);
            }
            if ended.len() == peers.len() {
                let last = ended.into_iter().map(|(after, _)| after).max().unwrap_or_default();
                return Ok(last.as_secs_f64());
            }
            ensure!(self.begin.elapsed() < PATIENCE, "not done after {} s", PATIENCE.as_secs());
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Judges every output. Pulls that are still running are killed first.
    pub(crate) fn judge(&mut self, fleet: &Fleet<'_>) -> anyhow::Result<()> {
        let mut said = Vec::new();
        for pull in &mut self.pulls {
            let is_done = pull.end().is_some_and(|(_, status)| status.success());
            pull.kill();
            let end = pull.end().map_or(self.begin, |(after, _)| self.begin + after);
            said.push(is_done.then_some(end));
        }
        self.watch.end();
        let watch = &self.watch;
        // Side by side: hashing every output and store is most of what is left of a fault's time.
        thread::scope(|scope| {
            let judges: Vec<_> = (0..)
                .zip(said)
                .map(|(peer, said)| scope.spawn(move || judge_peer(watch, fleet, peer, said)))
                .collect();
            judges.into_iter().try_for_each(|judge| judge.join().map_err(|_| anyhow!("a judge panicked"))?)
        })
    }

    /// Bytes that pulls say came from the origin, whether or not they ended well.
    pub(crate) fn origin_bytes(&self) -> u64 {
        self.pulls
            .iter()
            .filter_map(Process::last_line)
            .filter_map(|line| line["origin_bytes"].as_u64())
            .sum()
    }

    /// The result of a pull that ended well.
    pub(crate) fn result(&self, peer: usize) -> Option<Value> {
        self.pulls[peer].last_line().filter(|line| line["verified"] == true)
    }
}

/// Why a pull has failed, if it has.
fn failure(pull: &mut Process) -> Option<String> {
    let (_, status) = pull.end().filter(|(_, status)| !status.success())?;
    Some(format!("{} failed with {}: {}", pull.name, ending(status), pull.last_words()))
}

fn judge_peer(watch: &Watch, fleet: &Fleet<'_>, peer: usize, said: Option<Instant>) -> anyhow::Result<()> {
    let judged = watch.judge(&fleet.site().output(peer), &fleet.model().source, said);
    judged.with_context(|| format!("the output of peer {}", peer + 1))?;
    judge_store(fleet, peer).with_context(|| format!("the store of peer {}", peer + 1))
}

/// Whatever has the name of one of the artifact's blobs in a store is that blob.
fn judge_store(fleet: &Fleet<'_>, peer: usize) -> anyhow::Result<()> {
    let blobs = fleet.site().dir.join(format!("peer{}/store/blobs", peer + 1));
    if !blobs.exists() {
        return Ok(());
    }
    for path in artifact::files_below(&blobs)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(expected) = fleet.model().names.get(name) {
            let found = artifact::hash(&path);
            // A blob gets its SHA-256 name in place of its BLAKE3 name once that is computed.
            if found.is_err() && !path.exists() {
                continue;
            }
            ensure!(found? == *expected, "{name} is visible and wrong");
        }
    }
    Ok(())
}
