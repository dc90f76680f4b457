//! What one command costs: time, processor, bytes written, memory.
//!
//! Owns: running it and asking the kernel. Does not own: what it does.
//!
//! The kernel adds what a reaped child used to its parent: processor time and bytes written are read as this process's
//! own counters before and after, so that nothing short-lived is missed. What goes on running, such as a registry, does
//! not count.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use testbed::{process::Process, program::without_settings};

/// How long one command may take.
const PATIENCE: Duration = Duration::from_mins(30);

/// How often memory is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What one run cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) cpu_s: f64,
    /// What went to a disk, now or later: always 0 on tmpfs.
    pub(crate) disk_bytes: u64,
    /// The most anonymous memory that all its processes had at once; of what ends sooner than a look it may be 0.
    pub(crate) rss_anon_max: u64,
}

/// Runs `script` with `sh` in `dir` to its end; `home` is where it finds nobody's settings, and where its output goes.
pub(crate) fn measure(script: &str, dir: &Path, home: &Path) -> anyhow::Result<Cost> {
    // It must not go on when this process is killed.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", "sh", "-e", "-c", script]);
    command.current_dir(dir).env("HOME", home);
    without_settings(&mut command);
    let before = Used::now()?;
    let begin = Instant::now();
    let mut process = Process::start(command, home, "measured")?;
    let sampler = Sampler::start(process.pid());
    let status = process.wait(PATIENCE)?;
    let seconds = begin.elapsed().as_secs_f64();
    let rss_anon_max = sampler.end()?;
    let after = Used::now()?;
    ensure!(status.success(), "`{script}` failed ({status}): {}", process.last_words());
    #[expect(clippy::cast_precision_loss, reason = "a run has far fewer ticks than 2^52")]
    let cpu_s =
        after.ticks.saturating_sub(before.ticks) as f64 / rustix::param::clock_ticks_per_second() as f64;
    let disk_bytes = after.written.saturating_sub(before.written);
    Ok(Cost { seconds, cpu_s, disk_bytes, rss_anon_max })
}

/// What this process's reaped children have used until now.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Used {
    ticks: u64,
    written: u64,
}

impl Used {
    fn now() -> anyhow::Result<Self> {
        let ticks = child_ticks(&fs::read_to_string("/proc/self/stat")?).context("a stat counts ticks")?;
        let io = fs::read_to_string("/proc/self/io")?;
        let count = |key| number_after(&io, key).with_context(|| format!("io counts {key}"));
        // What was removed before it was written does not count.
        let written = count("write_bytes:")?.saturating_sub(count("cancelled_write_bytes:")?);
        Ok(Self { ticks, written })
    }
}

/// The fields `cutime` and `cstime` of a line of `/proc/PID/stat`.
fn child_ticks(stat: &str) -> Option<u64> {
    // The name may hold blanks and brackets; what follows it begins with the third field.
    let (_, rest) = stat.rsplit_once(") ")?;
    let field = |number: usize| rest.split(' ').nth(number - 3)?.parse::<u64>().ok();
    Some(field(16)? + field(17)?)
}

/// The number on the line that begins with `key`.
fn number_after(text: &str, key: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// A thread that looks at the memory of a process and its descendants.
#[derive(Debug)]
struct Sampler {
    is_over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Sampler {
    fn start(root: u32) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut most = 0;
            while !over.load(Ordering::Relaxed) {
                most = most.max(rss_anon(root));
                thread::park_timeout(LOOK_INTERVAL);
            }
            most
        });
        Self { is_over, thread }
    }

    fn end(self) -> anyhow::Result<u64> {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.thread().unpark();
        self.thread.join().map_err(|_| anyhow::anyhow!("looking at memory panicked"))
    }
}

/// Anonymous memory of a process and its descendants now, in bytes; any of them may end meanwhile.
fn rss_anon(root: u32) -> u64 {
    let (mut bytes, mut open, mut seen) = (0, vec![root], BTreeSet::new());
    while let Some(pid) = open.pop() {
        if !seen.insert(pid) {
            continue;
        }
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        bytes += number_after(&status, "RssAnon:").unwrap_or_default() * 1024;
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            open.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_hide_ticks() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 2 3 0 0 11 12 13 14 20 0 1 0";
        assert_eq!(child_ticks(stat), Some(27));
        assert_eq!(child_ticks("7 (sh) S 1"), None);
    }

    #[test]
    fn a_number_stands_after_its_key() {
        let io = "wchar: 5\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n";
        assert_eq!(number_after(io, "write_bytes:"), Some(4096));
        assert_eq!(number_after(io, "cancelled_write_bytes:"), Some(7));
        assert_eq!(number_after(io, "read_bytes:"), None);
    }

    #[test]
    fn a_command_costs_what_its_children_use() {
        let dir = tempfile::tempdir().unwrap();
        let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i + 1)); done'";
        let cost = measure(script, dir.path(), dir.path()).unwrap();
        assert!(cost.cpu_s > 0.0 && cost.seconds > 0.0, "{cost:?}");
        assert!(rss_anon(std::process::id()) > 0);
    }

    #[test]
    fn what_fails_is_no_cost() {
        let dir = tempfile::tempdir().unwrap();
        let error = measure("echo gone >&2; false; true", dir.path(), dir.path()).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
