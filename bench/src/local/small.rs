//! `bench small`: how long a tiny artifact takes in a fleet that is up, from command to files.
//!
//! Owns: the fleet on loopback, percentiles. Does not own: what a command costs (`meter`).

use std::{collections::BTreeSet, fmt, fs, path::PathBuf, process::Command, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;
use testbed::{
    artifact::{Artifact, Source},
    maker::Maker,
    process::Process,
    program::{are_installed, call, find, path, without_settings},
    stage,
};

use super::{
    contest::{Budget, Skipped},
    meter,
    pull::{curl_list, one_curl_script},
    site::{Registry, Site, fresh, hashes, holds},
};
use crate::{
    TOOL,
    broadcast::Dest,
    output::{OutputArgs, tell},
    statistics::{Latencies, Percentiles, median},
};

/// How many artifacts go before those that count, so that connections are open and programs in memory.
const WARM_UP: usize = 2;

/// What a pull may add to what curl takes, in milliseconds.
const OVER_CURL_MS: f64 = 50.0;

/// What is in memory at once: a repetition leaves its blobs in the registry and in the stores.
const COPIES: u64 = 6;

/// Pull tiny artifacts in a fleet that is up, beside curl
///
/// A scheduler, two peers and a registry run on loopback. Each repetition publishes another artifact; curl reads its
/// blobs, then a pull on the first node brings it from the registry, and one on the second from the first. Time is
/// taken from starting the command to its end, when the files are there.
#[derive(Clone, Debug, Args)]
pub(crate) struct SmallArgs {
    /// About how many bytes each artifact has
    #[arg(long, default_value = "1MB")]
    size: Size,
    /// How many artifacts
    #[arg(long, default_value_t = 50)]
    runs: usize,
    /// The program to measure
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// Latencies of one way to get it.
#[derive(Clone, Debug, Serialize)]
struct Row {
    name: &'static str,
    #[serde(flatten)]
    latencies: Percentiles,
}

/// What is known in the end.
#[derive(Clone, Debug, Serialize)]
struct Small {
    bench: &'static str,
    size: u64,
    runs: usize,
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
    budgets: Vec<Budget>,
}

impl fmt::Display for Small {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} artifacts of about {} bytes in a fleet that is up", self.runs, self.size)?;
        for Row { name, latencies } in &self.rows {
            writeln!(out, "{name:<16} {latencies}")?;
        }
        for Skipped { name, why } in &self.skipped {
            writeln!(out, "skipped: {name}: {why}")?;
        }
        for budget in &self.budgets {
            writeln!(out, "{budget}")?;
        }
        Ok(())
    }
}

/// Measures it.
pub(crate) fn run(args: SmallArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run is needed");
    are_installed(&["docker-registry", "setpriv"])?;
    stage::run(Maker::this(TOOL), move || measure(&args))
}

fn measure(args: &SmallArgs) -> anyhow::Result<()> {
    let rounds = args.runs + WARM_UP;
    let site = Site::new(Dest::Tmpfs, args.size.0 * COPIES * u64::try_from(rounds)?)?;
    tell("making the fleet");
    let fleet = Fleet::new(&site, find(&args.modelctl, "--modelctl")?)?;
    let curl = are_installed(&["curl"]);
    let mut ways: Vec<(&'static str, Vec<Duration>)> = vec![("origin", Vec::new()), ("fleet", Vec::new())];
    if curl.is_ok() {
        ways.insert(0, ("curl", Vec::new()));
    }
    for round in 0..rounds {
        let published = fleet.publish(args.size.0, round)?;
        for (name, seconds) in &mut ways {
            let took = fleet.get(name, &published).with_context(|| format!("{name}, artifact {round}"))?;
            if round >= WARM_UP {
                seconds.push(took);
            }
        }
        tell(&format!("artifact {} of {rounds}", round + 1));
    }
    let rows = ways.iter().map(|(name, all)| {
        let mut latencies = Latencies::new();
        for took in all {
            latencies.record(*took);
        }
        Row { name, latencies: latencies.summary() }
    });
    let (rows, budgets) = (rows.collect(), budgets(&ways));
    let skipped = curl.err().map(|why| Skipped { name: "curl", why: why.to_string() });
    let skipped = skipped.into_iter().collect();
    args.output.print(&Small { bench: "small", size: args.size.0, runs: args.runs, rows, skipped, budgets })
}

/// What each way takes longer than curl, artifact by artifact.
fn budgets(ways: &[(&'static str, Vec<Duration>)]) -> Vec<Budget> {
    let Some((_, curl)) = ways.iter().find(|(name, _)| *name == "curl") else { return Vec::new() };
    let over = |all: &[Duration]| {
        let more = all.iter().zip(curl).map(|(way, curl)| (way.as_secs_f64() - curl.as_secs_f64()) * 1e3);
        median(&more.collect::<Vec<_>>())
    };
    let others = ways.iter().filter(|(name, _)| *name != "curl");
    let budget = |(name, all): &(&str, Vec<Duration>)| {
        Some(Budget { what: format!("{name}: ms longer than curl"), is: over(all)?, at_most: OVER_CURL_MS })
    };
    others.filter_map(budget).collect()
}

/// An artifact in the registry.
struct Published {
    reference: String,
    urls: PathBuf,
    hashes: BTreeSet<[u8; 32]>,
}

/// A registry, a scheduler and two peers.
struct Fleet {
    site: Site,
    modelctl: PathBuf,
    registry: Registry,
    #[expect(dead_code, reason = "they run as long as the fleet")]
    processes: Vec<Process>,
}

impl Fleet {
    fn new(site: &Site, modelctl: PathBuf) -> anyhow::Result<Self> {
        let registry = site.registry("registry")?;
        let mut processes = Vec::new();
        let mut start = |args: &[&str], name: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig", "KILL", "--"]).arg(&modelctl).args(args);
            without_settings(&mut command);
            command.args(["--json", "--listen", "127.0.0.1:0"]);
            command.env("MODELCTL_LOG", "info").env("HOME", &site.memory);
            processes.push(Process::start(command, &site.memory, name)?);
            let process = processes.last_mut().context("it was just pushed")?;
            let ready = process.ready()?;
            if args[0] == "peer" {
                process.logged("connected to the scheduler")?;
            }
            ready["listening"].as_str().map(str::to_owned).context("it says where it listens")
        };
        let scheduler = format!("http://{}", start(&["scheduler"], "scheduler")?);
        for name in ["origin", "fleet"] {
            let (store, socket) = (site.memory.join(format!("{name}.store")), socket(site, name));
            let args = ["peer", "--name", name, "--store", path(&store), "--socket", path(&socket)];
            start(&[&args[..], &["--scheduler", &scheduler]].concat(), name)?;
        }
        Ok(Self { site: site.clone(), modelctl, registry, processes })
    }

    /// Another artifact.
    fn publish(&self, bytes: u64, round: usize) -> anyhow::Result<Published> {
        let dir = fresh(&self.site.memory.join("published"))?;
        let source = Source::write(&dir.join("model"), bytes, u64::try_from(round)?)?;
        let (layout, name) = (dir.join("layout"), format!("bench/small{round}"));
        let local = format!("oci:{}:v1", layout.display());
        let reference = format!("{}/{name}:v1", self.registry.address);
        call(&self.modelctl, &["build", path(&source.dir), "-t", &local])?;
        call(&self.modelctl, &["push", &local, &reference, "--plain-http"])?;
        let urls = dir.join("urls");
        let base = format!("http://{}/v2/{name}", self.registry.address);
        fs::write(&urls, curl_list(&Artifact::read(&layout, "v1")?, &base)?.0)?;
        Ok(Published { reference, urls, hashes: hashes(&source) })
    }

    /// Gets it that way, and says how long that took.
    fn get(&self, way: &str, published: &Published) -> anyhow::Result<Duration> {
        let dir = fresh(&self.site.memory.join("out"))?;
        let script = match way {
            "curl" => one_curl_script(&published.urls),
            node => format!(
                "exec '{}' pull '{}' -o model --plain-http --peer 'unix:{}'",
                path(&self.modelctl),
                published.reference,
                path(&socket(&self.site, node)),
            ),
        };
        let cost = meter::measure(&script, &dir, &self.site.memory)?;
        holds(&dir, &published.hashes)?;
        Ok(Duration::from_secs_f64(cost.seconds))
    }
}

fn socket(site: &Site, node: &str) -> PathBuf {
    site.memory.join(format!("{node}.sock"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_longer_is_so_for_the_same_artifact() {
        let millis =
            |all: &[u64]| all.iter().map(|millis| Duration::from_millis(*millis)).collect::<Vec<_>>();
        let ways = [("curl", millis(&[10, 200, 10])), ("fleet", millis(&[40, 230, 35]))];
        let budgets = budgets(&ways);
        assert_eq!(budgets.len(), 1);
        assert!((budgets[0].is - 30.0).abs() < 1e-9, "{budgets:?}");
    }
}
