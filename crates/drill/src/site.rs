//! Where a drill runs: its directory, its hosts, its key, its models, the program it tries.
//!
//! Owns: making all of that once, and removing what an earlier, killed drill left. Does not own: processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::Ordering,
    thread::sleep,
};

use anyhow::{Context as _, bail, ensure};

use crate::{
    model::Model,
    netns::{self, Host, Mbit, Network},
    process::{IS_OVER, LOOK_INTERVAL},
};

/// What a drill's directory is called; the process id of its maker follows.
const DIR_PREFIX: &str = "modelcast-drill-";

/// Where memory is a file system.
const MEMORY: &str = "/dev/shm";

/// Copies of the model on disk at a time: the source, its layout and its registry; a store and an output a peer, with
/// some room.
const COPIES: u64 = 24;

/// How often a directory is removed that somebody still writes to.
const REMOVALS_MAX: usize = 500;

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
    for tool in TOOLS {
        let found = Command::new("sh")
            .args(["-c", "command -v \"$1\"", "sh", tool])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        ensure!(found, "`{tool}` is not installed: run scripts/setup");
    }
    netns::probe()
}

/// Removes what drills left that were killed.
pub(crate) fn sweep_leftovers() {
    let mut makers = netns::makers();
    for base in bases() {
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        makers.extend(
            entries.filter_map(|entry| {
                entry.file_name().to_str()?.strip_prefix(DIR_PREFIX)?.parse::<u32>().ok()
            }),
        );
    }
    for maker in makers {
        if maker == std::process::id() || !netns::is_running_drill(maker) {
            sweep(maker);
        }
    }
}

/// Removes everything that the drill of that process id made.
pub(crate) fn sweep(maker: u32) {
    netns::sweep(maker);
    for base in bases() {
        let dir = base.join(format!("{DIR_PREFIX}{maker}"));
        remove_clocks(&dir);
        for _ in 0..REMOVALS_MAX {
            // Absent where the drill did not put it; and what was under way may still have put something there.
            let _ = fs::remove_dir_all(&dir);
            if !dir.exists() {
                break;
            }
            sleep(LOOK_INTERVAL);
        }
    }
}

/// Where a drill notes the process ids of those whose clock it fakes, one a line.
pub(crate) const CLOCKED: &str = "clocked";

/// Removes what libfaketime leaves in memory for each process that is killed.
fn remove_clocks(dir: &Path) {
    for pid in fs::read_to_string(dir.join(CLOCKED)).unwrap_or_default().lines() {
        for name in [format!("faketime_shm_{pid}"), format!("sem.faketime_sem_{pid}")] {
            // Absent where it ended well.
            let _ = fs::remove_file(Path::new(MEMORY).join(name));
        }
    }
}

fn bases() -> [PathBuf; 2] {
    [MEMORY.into(), std::env::temp_dir()]
}

/// In memory if there is room for it, else on disk.
fn choose_base(model_bytes: u64) -> anyhow::Result<PathBuf> {
    let info = fs::read_to_string("/proc/meminfo")?;
    let available = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 =
        available.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default();
    let [memory, disk] = bases();
    let Ok(room) = rustix::fs::statvfs(&memory) else { return Ok(disk) };
    let room = (room.f_bavail * room.f_frsize).min(kib * 1024);
    Ok(if room > model_bytes * COPIES { memory } else { disk })
}

impl Site {
    /// Makes the directory, the hosts, the key and a model of about `bytes`.
    pub(crate) fn new(modelctl: &Path, bytes: u64, rate: Mbit) -> anyhow::Result<Self> {
        let modelctl = fs::canonicalize(modelctl)
            .with_context(|| format!("there is no modelctl at `{}`", modelctl.display()))?;
        let dir = choose_base(bytes)?.join(format!("{DIR_PREFIX}{}", std::process::id()));
        fs::create_dir_all(dir.join("logs"))?;
        let mut network = Network::new()?;
        let hosts = Hosts::new(&mut network, rate)?;
        let key = dir.join("fleet.key");
        call(&modelctl, &["fleet-key", "new", path(&key)])?;
        let model = Model::new(&modelctl, &dir, "model", bytes)?;
        let foreign = model.foreign()?;
        Ok(Self { modelctl, dir, key, rate, network, hosts, model, foreign })
    }

    /// A directory for one process, made anew.
    pub(crate) fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        ensure!(!IS_OVER.load(Ordering::Relaxed), "the drill was told to end");
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

/// Runs modelctl to its end, with nobody's settings.
pub(crate) fn call(modelctl: &Path, args: &[&str]) -> anyhow::Result<()> {
    let mut command = Command::new(modelctl);
    without_settings(&mut command);
    let output = command.args(args).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("`modelctl {}` failed: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Nobody's settings of modelctl reach what the drill starts.
pub(crate) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MODELCTL_") {
            command.env_remove(name);
        }
    }
}

/// Paths of a drill are its own, and plain text.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}
