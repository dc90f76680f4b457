//! Processes that run beside the program that starts them, their output in files.
//!
//! Owns: start, signals, end, and reading what they said. Does not own: where they run, or what they are.

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde_json::Value;

use crate::stage;

/// How often a file or process is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long a process may take until it says that it is ready.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// A process, killed at the latest with this value.
#[derive(Debug)]
pub struct Process {
    /// What it is called in messages and logs.
    pub name: String,
    child: Child,
    out: PathBuf,
    err: PathBuf,
    begin: Instant,
    end: Option<(Duration, ExitStatus)>,
}

impl Process {
    /// Starts it; its output goes to `logs/NAME.out` and `.err`.
    pub fn start(mut command: Command, logs: &Path, name: &str) -> anyhow::Result<Self> {
        command.stdin(Stdio::null());
        Self::spawn(command, logs, name)
    }

    /// The same, for one that is told more when it runs.
    pub fn start_listening(mut command: Command, logs: &Path, name: &str) -> anyhow::Result<Self> {
        command.stdin(Stdio::piped());
        Self::spawn(command, logs, name)
    }

    fn spawn(mut command: Command, logs: &Path, name: &str) -> anyhow::Result<Self> {
        let (out, err) = (logs.join(format!("{name}.out")), logs.join(format!("{name}.err")));
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        stage::goes_on()?;
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, out, err, begin: Instant::now(), end: None })
    }

    /// Says a line to one that was started listening.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().with_context(|| format!("{} does not listen", self.name))?;
        writeln!(input, "{line}").with_context(|| format!("{} has stopped listening", self.name))
    }

    /// Waits until it has said this line.
    pub fn said(&mut self, line: &str) -> anyhow::Result<()> {
        self.wait_for(line, |process| process.has_said(line).then_some(()))
    }

    /// Whether it has said this line.
    pub fn has_said(&self, line: &str) -> bool {
        self.output().lines().any(|said| said == line)
    }

    /// Waits for its first line of stdout, which is JSON.
    pub fn ready(&mut self) -> anyhow::Result<Value> {
        self.wait_for("its first line", |process| process.lines().into_iter().next())
    }

    /// Waits until it has logged something with these words.
    pub fn logged(&mut self, words: &str) -> anyhow::Result<()> {
        self.wait_for(words, |process| process.log().contains(words).then_some(()))
    }

    /// Waits until it has printed something with these words.
    pub fn printed(&mut self, words: &str) -> anyhow::Result<()> {
        self.wait_for(words, |process| process.output().contains(words).then_some(()))
    }

    fn wait_for<T>(&mut self, what: &str, found: impl Fn(&Self) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let has_ended = self.end().is_some();
            if let Some(found) = found(self) {
                return Ok(found);
            }
            if has_ended || Instant::now() > deadline {
                bail!("{} did not say {what}: {}", self.name, self.last_words());
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Its stdout.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// Its whole lines of stdout that are JSON.
    pub fn lines(&self) -> Vec<Value> {
        let text = self.output();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(json).collect()
    }

    /// The last of them.
    pub fn last_line(&self) -> Option<Value> {
        let text = self.output();
        text.split_inclusive('\n').rev().filter(|line| line.ends_with('\n')).find_map(json)
    }

    /// Its stderr.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.err).unwrap_or_default()
    }

    /// The last lines of its stderr, for a message.
    pub fn last_words(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(3)..].join(" | ")
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill_process(Pid::from_child(&self.child), signal)
            .with_context(|| format!("cannot signal {}", self.name))
    }

    /// How long it ran and how it ended, if it has.
    pub fn end(&mut self) -> Option<(Duration, ExitStatus)> {
        if self.end.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.end = Some((self.begin.elapsed(), status));
        }
        self.end
    }

    /// Waits for its end, of which this thread is told at once.
    pub fn wait(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        let handle = match self.end() {
            Some((_, status)) => return Ok(status),
            None => pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?,
        };
        loop {
            if let Some((_, status)) = self.end() {
                return Ok(status);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("{} did not end within {} s", self.name, limit.as_secs());
            }
            match poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&left.try_into()?)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// `kill -9`; it is gone when this returns.
    pub fn kill(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.end();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn json(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

/// How a process ended, in words.
pub fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "an unknown end".to_owned(),
    }
}
