//! What is read while a broadcast runs: the processors, the cards' counters, anonymous memory.
//!
//! Owns: reading them at an interval. Does not own: what is made of it.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use testbed::netns::{Network, Traffic};

use super::lab::Lab;

/// How often counters are read.
const INTERVAL: Duration = Duration::from_millis(100);

/// How often memory is, which takes a look at every process of the machine: in intervals.
const MEMORY_EVERY: usize = 3;

/// What the cards have moved since the meter began, by host: the origin, then the peers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sample {
    /// Seconds since the clock started.
    pub(crate) at_s: f64,
    pub(crate) received: Vec<u64>,
    pub(crate) sent: Vec<u64>,
}

/// Reads while it is told that time passes.
#[derive(Debug)]
pub(crate) struct Meter<'a> {
    network: &'a Network,
    begin: Instant,
    next: Instant,
    /// What the counters of the origin and the peers said at the beginning.
    zero: Vec<Traffic>,
    processors: Processors,
    pub(crate) samples: Vec<Sample>,
    pub(crate) rss_anon_max: u64,
}

impl<'a> Meter<'a> {
    /// The clock starts.
    pub(crate) fn begin(lab: &'a Lab) -> anyhow::Result<Self> {
        let network = &lab.network;
        // The origin was the first to be added, the peers the next.
        let zero = network.counters()?.into_iter().take(1 + lab.peers.len()).collect();
        let processors = Processors::read()?;
        let now = Instant::now();
        Ok(Self { network, begin: now, next: now, zero, processors, samples: Vec::new(), rss_anon_max: 0 })
    }

    /// Seconds since the clock started.
    pub(crate) fn elapsed_s(&self) -> f64 {
        self.begin.elapsed().as_secs_f64()
    }

    /// Reads what is due; `pids` are the peers' processes, whose children count too.
    pub(crate) fn tick(&mut self, pids: &[u32]) -> anyhow::Result<()> {
        if Instant::now() < self.next {
            return Ok(());
        }
        self.next += INTERVAL;
        self.look()?;
        if self.samples.len() % MEMORY_EVERY == 1 {
            self.rss_anon_max = self.rss_anon_max.max(rss_anon_max(pids));
        }
        Ok(())
    }

    fn look(&mut self) -> anyhow::Result<()> {
        let at_s = self.elapsed_s();
        let now = self.network.counters()?;
        let moved = |of: fn(&Traffic) -> u64| {
            self.zero.iter().zip(&now).map(|(zero, now)| of(now).saturating_sub(of(zero))).collect()
        };
        let sample = Sample { at_s, received: moved(|card| card.received), sent: moved(|card| card.sent) };
        self.samples.push(sample);
        Ok(())
    }

    /// What these peers' cards have received, of `bytes` for each of them.
    pub(crate) fn share(&self, bytes: u64, peers: &[usize]) -> f64 {
        let of = |peer: &usize| self.samples.last().map_or(0, |last| last.received[1 + peer]);
        let received: u64 = peers.iter().map(of).sum();
        to_f64(received) / (to_f64(bytes) * to_f64(peers.len() as u64))
    }

    /// The clock stops: a last look, and how busy the processors were meanwhile.
    pub(crate) fn end(&mut self) -> anyhow::Result<Busy> {
        self.look()?;
        Ok(Processors::read()?.since(&self.processors))
    }
}

/// How busy the machine was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Busy {
    /// Processor seconds of everything that ran.
    pub(crate) seconds: f64,
    /// Of all processors, in hundredths.
    pub(crate) percent: f64,
}

/// The machine's clock ticks: busy ones, and all.
#[derive(Clone, Copy, Debug)]
struct Processors {
    busy: u64,
    all: u64,
}

impl Processors {
    fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Self::of(text.lines().next().unwrap_or_default()).context("`/proc/stat` begins with all processors")
    }

    /// user, nice, system, idle, iowait, irq, softirq, steal.
    fn of(line: &str) -> Option<Self> {
        let ticks: Vec<u64> = line
            .strip_prefix("cpu ")?
            .split_whitespace()
            .take(8)
            .map_while(|tick| tick.parse().ok())
            .collect();
        let all: u64 = ticks.iter().sum();
        Some(Self { busy: all - ticks.get(3)? - ticks.get(4)?, all })
    }

    fn since(self, before: &Self) -> Busy {
        let (busy, all) = (self.busy - before.busy, self.all - before.all);
        let ticks = to_f64(rustix::param::clock_ticks_per_second());
        Busy { seconds: to_f64(busy) / ticks, percent: 100.0 * to_f64(busy) / to_f64(all.max(1)) }
    }
}

/// The most anonymous memory that one of these processes or of their descendants has now, in bytes.
fn rss_anon_max(pids: &[u32]) -> u64 {
    let mut parents = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended since.
        let status = fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(name))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let parent = field("PPid:").and_then(|parent| u32::try_from(parent).ok()).unwrap_or_default();
        parents.insert(pid, (parent, field("RssAnon:").unwrap_or_default() * 1024));
    }
    let is_of_peers = |pid: u32| {
        let mut at = Some(pid);
        while let Some(pid) = at {
            if pids.contains(&pid) {
                return true;
            }
            at = parents.get(&pid).map(|(parent, _)| *parent);
        }
        false
    };
    parents
        .iter()
        .filter(|(pid, _)| is_of_peers(**pid))
        .map(|(_, (_, bytes))| *bytes)
        .max()
        .unwrap_or_default()
}

/// Counts of bytes and ticks are far below 2^52.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(crate) fn to_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_not_busy() {
        let before = Processors::of("cpu  100 0 50 800 50 0 0 0 0 0").unwrap();
        let after = Processors::of("cpu  150 10 70 880 60 5 15 0 0 0").unwrap();
        let busy = after.since(&before);
        assert!((busy.percent - 100.0 * 100.0 / 190.0).abs() < 1e-9, "{busy:?}");
    }

    #[test]
    fn memory_of_children_counts() {
        assert!(rss_anon_max(&[std::process::id()]) > 0);
        assert_eq!(rss_anon_max(&[]), 0);
    }
}
