//! `bench link` over RDMA beside `ib_read_bw`: the same size, queue pairs and outstanding reads, in turns.
//!
//! Owns: what is asked of the bench, reading its result. Does not own: the runs, their ratios.

use std::{fmt, path::Path, process::Command, time::Duration};

use anyhow::{Context as _, bail};
use serde::Deserialize;
use testbed::{
    process::{Process, ending},
    program::{self, path},
};

/// How often each is measured without checks, and with them, where hashing is most of it.
const RUNS: u32 = 5;
const CHECKED_RUNS: u32 = 3;

/// What is moved in one run.
const SIZE: &str = "64MiB";

/// How long all runs of a kind may take: some ten times what they do.
const PATIENCE: Duration = Duration::from_mins(5);

/// What was measured, with checks and without.
#[derive(Debug)]
pub(crate) struct Bandwidth {
    plain: Pairs,
    checked: Pairs,
}

/// Speeds of runs that were made one after the other, in bytes per second, and the median of their ratios.
#[derive(Clone, Debug, PartialEq)]
struct Pairs {
    link: Vec<f64>,
    read_bw: Vec<f64>,
    ratio: f64,
}

/// What the bench says.
#[derive(Debug, Deserialize)]
struct LinkResult {
    rows: Vec<LinkRow>,
}

#[derive(Debug, Deserialize)]
struct LinkRow {
    name: String,
    runs_bytes_per_s: Vec<f64>,
    read_bw_ratio: Option<f64>,
}

impl Bandwidth {
    /// Measures both; logs are in `dir`.
    pub(crate) fn measure(bench: &Path, dir: &Path) -> anyhow::Result<Self> {
        let bench = program::find(bench, "--bench")?;
        let logs = tempfile::tempdir_in(dir)?;
        let plain = measure(&bench, "off", RUNS, logs.path())?;
        let checked = measure(&bench, "on", CHECKED_RUNS, logs.path()).context("with checks")?;
        Ok(Self { plain, checked })
    }

    /// The transport alone to `ib_read_bw`.
    pub(crate) fn read_bw_ratio(&self) -> f64 {
        self.plain.ratio
    }

    /// The same with checks.
    pub(crate) fn checked_ratio(&self) -> f64 {
        self.checked.ratio
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let speeds = |all: &[f64]| {
            let all: Vec<String> = all.iter().map(|speed| format!("{:.0}", speed / 1e6)).collect();
            all.join(" ")
        };
        let Self { plain, checked } = self;
        write!(f, "{:.2} × ib_read_bw, {:.2} with checks", plain.ratio, checked.ratio)?;
        write!(f, " ({} beside {} MB/s)", speeds(&plain.link), speeds(&plain.read_bw))
    }
}

fn measure(bench: &Path, check: &str, runs: u32, logs: &Path) -> anyhow::Result<Pairs> {
    let mut command = Command::new(bench);
    command.args(["link", "--transport", "rdma", "--dest", "tmpfs", "--read-bw", "--json"]);
    command.args(["--check", check, "--size", SIZE, "--runs", &runs.to_string()]).env("TMPDIR", path(logs));
    let mut bench = Process::start(command, logs, "bench")?;
    let status = bench.wait(PATIENCE)?;
    if !status.success() {
        bail!("`bench link` ended with {}: {}", ending(status), bench.last_words());
    }
    let last = bench.last_line().context("`bench link` said nothing")?;
    let result = serde_json::from_value(last).context("what `bench link` says is not understood")?;
    pairs(result, runs).with_context(|| format!("`bench link` did not measure both: {}", bench.last_words()))
}

/// As many runs of both as were asked for.
fn pairs(result: LinkResult, runs: u32) -> Option<Pairs> {
    let mut rows = result.rows.into_iter();
    let link = rows.find(|row| row.name == "rdma")?;
    let read_bw = rows.find(|row| row.name == "ib_read_bw")?.runs_bytes_per_s;
    let is_whole = |all: &[f64]| all.len() == runs as usize && all.iter().all(|speed| *speed > 0.0);
    let ratio = link.read_bw_ratio.filter(|_| is_whole(&link.runs_bytes_per_s) && is_whole(&read_bw))?;
    Some(Pairs { link: link.runs_bytes_per_s, read_bw, ratio })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parsed(rows: &Value) -> Option<Pairs> {
        pairs(serde_json::from_value(json!({"bench": "link", "rows": rows})).unwrap(), 2)
    }

    #[test]
    fn both_rows_are_read() {
        let link =
            json!({"name": "rdma", "runs_bytes_per_s": [9e6, 18e6], "read_bw_ratio": 0.9, "read": null});
        let ruler = json!({"name": "ib_read_bw", "runs_bytes_per_s": [1e7, 2e7], "read_bw_ratio": 1.0});
        let found = parsed(&json!([link, ruler])).unwrap();
        assert_eq!(found, Pairs { link: vec![9e6, 18e6], read_bw: vec![1e7, 2e7], ratio: 0.9 });
        assert_eq!(
            Bandwidth { plain: found.clone(), checked: Pairs { ratio: 0.25, ..found } }.to_string(),
            "0.90 × ib_read_bw, 0.25 with checks (9 18 beside 10 20 MB/s)"
        );
    }

    #[test]
    fn half_a_measurement_is_none() {
        let link = json!({"name": "rdma", "runs_bytes_per_s": [9e6, 18e6], "read_bw_ratio": null});
        assert_eq!(parsed(&json!([link])), None, "where `ib_read_bw` was skipped");
        let ruler = json!({"name": "ib_read_bw", "runs_bytes_per_s": [1e7], "read_bw_ratio": 1.0});
        let link = json!({"name": "rdma", "runs_bytes_per_s": [9e6, 18e6], "read_bw_ratio": 0.9});
        assert_eq!(parsed(&json!([link, ruler])), None, "a run is missing");
    }
}
