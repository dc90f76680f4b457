//! What pictures are made from: lines of results and traces, checked. Does not own what is drawn of them.

use std::{fs, path::Path};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

/// The lines of a file of results: objects that say which benchmark they are of.
pub(crate) fn results(path: &Path) -> anyhow::Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    lines(&text)
        .map(|(number, line)| result(line).with_context(|| format!("{}:{number}", path.display())))
        .collect()
}

fn result(line: &str) -> anyhow::Result<Value> {
    let value: Value = serde_json::from_str(line).context("not a line of JSON")?;
    ensure!(value["bench"].is_string(), "no result: it has no `bench`");
    // A system that could not be measured says why instead.
    if value["bench"] == "broadcast" && !value["skipped"].is_string() {
        Broadcast::deserialize(&value).context("no result of a broadcast")?;
    }
    Ok(value)
}

/// What pictures need of a broadcast.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Broadcast {
    pub(crate) system: String,
    pub(crate) n: u32,
    pub(crate) rate_mbit: f64,
    pub(crate) size: f64,
    pub(crate) last_s: f64,
    pub(crate) bound_s: f64,
}

/// One broadcast as the network cards saw it.
#[derive(Debug)]
pub(crate) struct Trace {
    pub(crate) system: String,
    pub(crate) n: u32,
    pub(crate) rate_mbit: f64,
    pub(crate) goodput_mbit: f64,
    pub(crate) size: f64,
    pub(crate) bound_s: f64,
    pub(crate) hosts: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// The counters at one moment, a number for each host.
#[derive(Debug, Deserialize)]
pub(crate) struct Sample {
    pub(crate) t: f64,
    pub(crate) rx: Vec<f64>,
    pub(crate) tx: Vec<f64>,
}

#[derive(Deserialize)]
struct Head {
    trace: String,
    system: String,
    n: u32,
    rate_mbit: f64,
    goodput_mbit: f64,
    size: f64,
    bound_s: f64,
    hosts: Vec<String>,
}

/// Reads a trace: the first line says of what, each other line is a sample.
pub(crate) fn trace(path: &Path) -> anyhow::Result<Trace> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    let mut lines = lines(&text);
    let Some((number, first)) = lines.next() else { bail!("{}: an empty trace", path.display()) };
    let head = head(first).with_context(|| format!("{}:{number}", path.display()))?;
    let mut samples: Vec<Sample> = Vec::new();
    for (number, line) in lines {
        let sample = sample(line, head.hosts.len(), samples.last())
            .with_context(|| format!("{}:{number}", path.display()))?;
        samples.push(sample);
    }
    ensure!(samples.len() >= 2, "{}: a trace of fewer than two samples", path.display());
    let Head { system, n, rate_mbit, goodput_mbit, size, bound_s, hosts, .. } = head;
    Ok(Trace { system, n, rate_mbit, goodput_mbit, size, bound_s, hosts, samples })
}

fn head(line: &str) -> anyhow::Result<Head> {
    let head: Head = serde_json::from_str(line).context("not the first line of a trace")?;
    ensure!(head.trace == "broadcast", "a trace of `{}`, not of a broadcast", head.trace);
    ensure!(head.hosts.len() >= 2, "fewer than two hosts");
    ensure!(
        head.size > 0.0 && head.bound_s > 0.0 && head.goodput_mbit > 0.0,
        "size, bound and goodput are above 0"
    );
    Ok(head)
}

fn sample(line: &str, hosts: usize, before: Option<&Sample>) -> anyhow::Result<Sample> {
    let sample: Sample = serde_json::from_str(line).context("not a sample")?;
    ensure!(sample.rx.len() == hosts && sample.tx.len() == hosts, "not one number for each of {hosts} hosts");
    ensure!(before.is_none_or(|before| before.t < sample.t), "not later than the line before");
    Ok(sample)
}

/// The lines that hold something, numbered from 1.
fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
}

/// A system's name as part of a file's: a result may say anything, so it may not name another directory.
pub(crate) fn file_name(system: &str) -> String {
    system.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
}

/// A number of bytes for people.
pub(crate) fn bytes(size: f64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    if size < 1024.0 * MIB {
        format!("{:.0} MiB", size / MIB)
    } else {
        format!("{:.1} GiB", size / MIB / 1024.0)
    }
}
