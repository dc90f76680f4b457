//! Systems that a small script adapts, as `bench/systems/README.md` says. Does not own the scripts.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{bail, ensure};
use testbed::{netns::Host, process::Process};

use super::{
    lab::Lab,
    system::{Moved, Standing, System},
};

/// How long preparing may take: hashing and pushing a large model.
const PREPARE_PATIENCE: Duration = Duration::from_mins(10);

/// The lines that an adapter and the race say to one another.
const READY: &str = "ready";
const GO: &str = "go";
const DONE: &str = "done";

/// One adapter.
#[derive(Debug)]
pub(crate) struct Script {
    name: String,
    path: PathBuf,
}

impl Script {
    /// The adapter at that path; its name is the system's.
    pub(crate) fn new(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, path: path.to_path_buf() }
    }

    /// The adapter's command, `index` being 0 for the origin.
    fn command(&self, lab: &Lab, index: usize, verb: &str) -> anyhow::Result<Command> {
        let host = if index == 0 { &lab.origin } else { &lab.peers[index - 1] };
        let mut command = host.command(&self.path);
        let addresses: Vec<String> =
            [&lab.origin].into_iter().chain(&lab.peers).map(|host: &Host| host.address.to_string()).collect();
        command.arg(verb).env("BENCH_N", lab.peers.len().to_string()).env("BENCH_INDEX", index.to_string());
        command.env("BENCH_ADDRESSES", addresses.join(" ")).env("BENCH_RATE_MBIT", lab.rate.0.to_string());
        command.env("BENCH_SCRATCH", lab.fresh(&format!("scratch-{index}"))?);
        command.env("BENCH_SHARED", self.shared(lab));
        if index == 0 {
            command.env("BENCH_MODEL", &lab.model.source.dir);
        } else {
            command.env("BENCH_OUTPUT", lab.output(index - 1));
        }
        Ok(command)
    }

    fn shared(&self, lab: &Lab) -> PathBuf {
        lab.dir.join(format!("shared-{}", self.name))
    }
}

impl System for Script {
    fn name(&self) -> &str {
        &self.name
    }

    fn missing(&self, _lab: &Lab) -> Option<String> {
        let output = Command::new(&self.path).arg("missing").stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => None,
            Ok(output) => Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
            Err(error) => Some(format!("cannot run `{}`: {error}", self.path.display())),
        }
    }

    fn prepare(&self, lab: &Lab) -> anyhow::Result<()> {
        lab.fresh(&format!("shared-{}", self.name))?;
        let command = self.command(lab, 0, "prepare")?;
        let mut prepare = Process::start(command, &lab.logs(), &format!("{}-prepare", self.name))?;
        let status = prepare.wait(PREPARE_PATIENCE)?;
        ensure!(status.success(), "{} cannot be prepared: {}", self.name, prepare.last_words());
        Ok(())
    }

    fn stand<'a>(&'a self, lab: &'a Lab) -> anyhow::Result<Box<dyn Standing + 'a>> {
        let start = |index: usize, verb: &str| {
            let command = self.command(lab, index, verb)?;
            Process::start_listening(command, &lab.logs(), &format!("{}-{verb}{index}", self.name))
        };
        let mut origin = start(0, "origin")?;
        origin.said(READY)?;
        let mut peers = Vec::new();
        for index in 1..=lab.peers.len() {
            peers.push(start(index, "peer")?);
        }
        for peer in &mut peers {
            peer.said(READY)?;
        }
        Ok(Box::new(Running { lab, origin, peers }))
    }

    fn is_encrypted(&self) -> bool {
        false
    }
}

/// An adapter's processes.
#[derive(Debug)]
struct Running<'a> {
    lab: &'a Lab,
    origin: Process,
    peers: Vec<Process>,
}

impl Standing for Running<'_> {
    fn go(&mut self) -> anyhow::Result<()> {
        self.origin.tell(GO)
    }

    fn start(&mut self, peer: usize) -> anyhow::Result<()> {
        self.peers[peer].tell(GO)
    }

    fn is_done(&mut self, peer: usize) -> anyhow::Result<bool> {
        let process = &mut self.peers[peer];
        let end = process.end();
        if process.has_said(DONE) {
            return Ok(true);
        }
        if let Some((_, status)) = end {
            bail!("{} ended without being done ({status}): {}", process.name, process.last_words());
        }
        Ok(false)
    }

    fn kill(&mut self, peer: usize) {
        self.peers[peer].kill();
        self.lab.peers[peer].kill_all();
    }

    fn peer_pids(&self) -> Vec<u32> {
        self.peers.iter().map(Process::pid).collect()
    }

    fn moved(&self) -> Option<Moved> {
        None
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // What a script has started itself does not end with it.
        for host in [&self.lab.origin].into_iter().chain(&self.lab.peers) {
            host.kill_all();
        }
    }
}
