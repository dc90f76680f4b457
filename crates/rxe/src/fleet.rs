//! The processes of one fleet: a scheduler, seeds, and pulls that take part in it.
//!
//! Owns: their command lines and starts, what pulls report, that nobody panicked. Does not own: when they are hit.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use testbed::{
    process::{LOOK_INTERVAL, Process, ending},
    program::{path, without_settings},
};

use crate::site::{Place, Site};

/// How long a pull may take, faults and all: an emulated machine moves the model in a few seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where a pull puts the model, in its peer's directory.
const OUTPUT: &str = "model";

/// Lines of each log that are shown when something went wrong.
const LAST_LINES: usize = 12;

/// Somebody without rights: user and group.
const NOBODY: u32 = 65534;

/// What everybody may lock in memory without an administrator's doing, in KiB.
const MEMLOCK_KIB: &str = "64";

/// Whose a peer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Root,
    /// Another user, who may lock next to nothing in memory.
    Nobody,
}

/// How a peer is told to read from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// Over RDMA, or not at all.
    Rdma,
    /// Over RDMA where that works, else over TCP.
    Auto,
}

/// Who takes part.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cast {
    pub(crate) seeds: usize,
    pub(crate) peers: usize,
    pub(crate) owner: Owner,
    pub(crate) transport: Transport,
}

/// What a pull reported at its end.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(crate) struct Pulled {
    pub(crate) bytes: u64,
    pub(crate) bytes_by_transport: ByTransport,
    pub(crate) bytes_by_landing: ByLanding,
    pub(crate) fallback_reason: Option<String>,
    verified: bool,
}

/// Bytes from peers, by how they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ByTransport {
    pub(crate) tcp: u64,
    pub(crate) rdma: u64,
}

/// Good bytes, by how they came to their place in the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct ByLanding {
    pub(crate) direct: u64,
    pub(crate) staged: u64,
}

/// A fleet that runs. Dropping it kills all of it.
#[derive(Debug)]
pub(crate) struct Fleet<'a> {
    site: &'a Site,
    place: &'a Place,
    cast: Cast,
    dir: PathBuf,
    url: String,
    pub(crate) scheduler: Process,
    pub(crate) seeds: Vec<Process>,
    pub(crate) peers: Vec<Process>,
    pulls: Vec<Process>,
}

impl<'a> Fleet<'a> {
    /// Starts all of it in a place, one after another, since all at once emulated processors take too long for each.
    pub(crate) fn start(site: &'a Site, place: &'a Place, cast: Cast) -> anyhow::Result<Self> {
        let dir = place.fresh()?;
        let mut command = Command::new(&site.modelctl);
        set_environment(&mut command, &dir);
        command.args(["scheduler", "--listen", "127.0.0.1:0", "--fleet-key", path(&site.key), "--json"]);
        let mut scheduler = Process::start(command, &dir.join("logs"), "scheduler")?;
        let ready = scheduler.ready()?;
        let address = ready["listening"].as_str().context("a scheduler says where it listens")?;
        let url = format!("http://{address}");
        let (seeds, peers, pulls) = (Vec::new(), Vec::new(), Vec::new());
        let mut fleet = Self { site, place, cast, dir, url, scheduler, seeds, peers, pulls };
        for number in 1..=cast.seeds {
            let seed = fleet.peer(&format!("seed{number}"), Owner::Root, &["--seed", &place.published])?;
            // Before that, nobody sends pulls to it.
            let joined = format!("joined peer={}", fleet.id_of(&seed.name)?);
            fleet.scheduler.logged(&joined)?;
            fleet.seeds.push(seed);
        }
        let transport = match cast.transport {
            Transport::Rdma => "rdma",
            Transport::Auto => "auto",
        };
        for number in 1..=cast.peers {
            let peer = fleet.peer(&format!("peer{number}"), cast.owner, &["--transport", transport])?;
            fleet.peers.push(peer);
        }
        Ok(fleet)
    }

    /// Starts a peer and waits until the scheduler knows it.
    fn peer(&mut self, name: &str, owner: Owner, more: &[&str]) -> anyhow::Result<Process> {
        let home = self.dir.join(name);
        fs::create_dir_all(&home)?;
        let key = home.join("fleet.key");
        fs::copy(&self.site.key, &key)?;
        if owner == Owner::Nobody {
            for owned in [&home, &key] {
                chown(owned, Some(NOBODY), Some(NOBODY))?;
            }
        }
        let mut command = self.modelctl(owner, &home);
        command.args(["peer", "--name", name, "--listen", "127.0.0.1:0", "--json"]).args(more);
        command.args(["--store", path(&home.join("store")), "--socket", path(&socket(&home))]);
        // Emulated processors take long to encrypt what changes to TCP. RDMA never is.
        command.args(["--scheduler", &self.url, "--fleet-key", path(&key), "--data-plain"]);
        let mut peer = Process::start(command, &self.logs(), name)?;
        peer.ready()?;
        peer.logged("connected to the scheduler")?;
        Ok(peer)
    }

    /// The program, as somebody's who may do what they may.
    fn modelctl(&self, owner: Owner, home: &Path) -> Command {
        let mut command = match owner {
            Owner::Root => Command::new(&self.site.modelctl),
            Owner::Nobody => {
                let mut command = Command::new("sh");
                command.args(["-c", "ulimit -l $1 && shift && exec \"$@\"", "sh", MEMLOCK_KIB]);
                command.arg(&self.site.modelctl).uid(NOBODY).gid(NOBODY);
                command
            }
        };
        set_environment(&mut command, home);
        command
    }

    /// The id under which the scheduler knows the peer of that name.
    pub(crate) fn id_of(&mut self, name: &str) -> anyhow::Result<String> {
        let named = format!("name=\"{name}\"");
        self.scheduler.logged(&named)?;
        let log = self.scheduler.log();
        let line = log.lines().find(|line| line.contains(&named) && line.contains(" connected "));
        let id = line.and_then(|line| line.split("peer=").nth(1)?.split(' ').next());
        id.map(str::to_owned).with_context(|| format!("the scheduler does not say who {name} is"))
    }

    /// Starts a pull through every peer.
    pub(crate) fn pull(&mut self) -> anyhow::Result<()> {
        for number in 1..=self.peers.len() {
            let home = self.dir.join(format!("peer{number}"));
            let at = format!("unix:{}", socket(&home).display());
            let mut command = self.modelctl(self.cast.owner, &home);
            let output = home.join(OUTPUT);
            command.args(["pull", &self.place.wanted, "-o", path(&output), "--peer", &at, "--json"]);
            self.pulls.push(Process::start(command, &self.logs(), &format!("pull{number}"))?);
        }
        Ok(())
    }

    /// Where what its processes say is kept.
    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Waits until some pull has so many hundredths of the model.
    pub(crate) fn wait_for_percent(&mut self, percent: u64) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let done = self.pulls.iter().filter_map(share).max().unwrap_or_default();
            ensure!(done < 90, "the broadcast was over before the fault");
            if done >= percent {
                return Ok(());
            }
            for pull in &mut self.pulls {
                if let Some((_, status)) = pull.end() {
                    bail!("{} ended with {}: {}", pull.name, ending(status), pull.last_words());
                }
            }
            ensure!(begin.elapsed() < PATIENCE, "the broadcast did not get to {percent} %");
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until every pull has ended well, and compares what it made with the source.
    pub(crate) fn finish(&mut self) -> anyhow::Result<Vec<Pulled>> {
        let deadline = Instant::now() + PATIENCE;
        let mut all = Vec::new();
        for (pull, number) in self.pulls.iter_mut().zip(1..) {
            let status = pull.wait(deadline.saturating_duration_since(Instant::now()))?;
            ensure!(status.success(), "{} ended with {}: {}", pull.name, ending(status), pull.last_words());
            let last = pull.last_line().context("a pull reports at its end")?;
            let pulled: Pulled =
                serde_json::from_value(last).context("what a pull reports is not understood")?;
            ensure!(pulled.verified, "{} does not say that it is verified", pull.name);
            let output = self.dir.join(format!("peer{number}")).join(OUTPUT);
            self.place.compare(&output).with_context(|| format!("the output of {}", pull.name))?;
            all.push(pulled);
        }
        self.nobody_panicked()?;
        Ok(all)
    }

    fn nobody_panicked(&self) -> anyhow::Result<()> {
        for process in self.processes() {
            let log = process.log();
            let panic = log.lines().find(|line| line.contains("panicked at"));
            ensure!(panic.is_none(), "{} panicked: {}", process.name, panic.unwrap_or_default());
        }
        Ok(())
    }

    fn processes(&self) -> impl Iterator<Item = &Process> {
        [&self.scheduler].into_iter().chain(&self.seeds).chain(&self.peers).chain(&self.pulls)
    }

    /// The ends of all logs, for when something went wrong: the machine is gone afterwards.
    pub(crate) fn last_words(&self) -> String {
        let mut said = Vec::new();
        for process in self.processes() {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
            said.extend(last.iter().map(|line| format!("  {}: {line}", process.name)));
        }
        said.join("\n")
    }

    /// Ends all that have a device open.
    pub(crate) fn end_peers(&mut self) {
        self.pulls.clear();
        self.peers.clear();
        self.seeds.clear();
    }
}

fn socket(home: &Path) -> PathBuf {
    home.join("peer.sock")
}

fn set_environment(command: &mut Command, home: &Path) {
    without_settings(command);
    command.env("MODELCTL_LOG", "info").env("HOME", home);
}

/// How many hundredths of the model a pull says it has.
fn share(pull: &Process) -> Option<u64> {
    let line = pull.last_line()?;
    // The result has neither.
    if line["verified"] == true {
        return Some(100);
    }
    Some(line["bytes_done"].as_u64()? * 100 / line["bytes_total"].as_u64()?.max(1))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_read_whatever_else_it_says() {
        let line = json!({
            "reference": "fleet:sha256:00", "bytes": 7, "bytes_by_transport": {"tcp": 1, "rdma": 6},
            "bytes_by_landing": {"direct": 5, "staged": 2}, "fallback_reason": null, "verified": true,
        });
        let pulled: Pulled = serde_json::from_value(line).unwrap();
        assert_eq!(pulled.bytes_by_transport, ByTransport { tcp: 1, rdma: 6 });
        assert_eq!(pulled.bytes_by_landing, ByLanding { direct: 5, staged: 2 });
        assert!(serde_json::from_value::<Pulled>(json!({"bytes_done": 1, "bytes_total": 2})).is_err());
    }
}
