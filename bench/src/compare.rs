//! `bench compare`: broadcasts now against those of a baseline. Does not own how lines are read (`plot::input`).

use std::{collections::BTreeMap, fmt, path::PathBuf};

use clap::Args;
use serde::Serialize;
use serde_json::Value;

use crate::{output::OutputArgs, plot::input, statistics::median};

/// Compare broadcasts with a baseline: ratios to the bound, now against then
///
/// Says what differs by more than noise; judging is the reader's, so the exit code says nothing about speed.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Results of then
    baseline: PathBuf,
    /// Results of now
    results: PathBuf,
    /// What is not called a difference, in percent
    #[arg(long, default_value_t = 5.0, value_name = "PERCENT")]
    noise: f64,
    #[command(flatten)]
    output: OutputArgs,
}

/// All that both have, and how many only one of them has.
#[derive(Debug, Serialize)]
struct Compared {
    bench: &'static str,
    rows: Vec<Row>,
    only_then: Vec<String>,
    only_now: Vec<String>,
}

/// One system in one setting.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    ratio_then: f64,
    ratio_now: f64,
    change_pct: f64,
    verdict: &'static str,
}

impl fmt::Display for Compared {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:44} {:>7} {:>7} {:>8}", "broadcast", "then", "now", "change")?;
        for Row { name, ratio_then, ratio_now, change_pct, verdict } in &self.rows {
            write!(out, "\n{name:44} {ratio_then:7.3} {ratio_now:7.3} {change_pct:+7.1} % {verdict}")?;
        }
        for (names, when) in [(&self.only_then, "then"), (&self.only_now, "now")] {
            for name in names {
                write!(out, "\n{name:44} only {when}")?;
            }
        }
        Ok(())
    }
}

/// Reads both and compares.
pub(crate) fn run(args: &CompareArgs) -> anyhow::Result<()> {
    let (then, now) = (ratios(&input::results(&args.baseline)?), ratios(&input::results(&args.results)?));
    args.output.print(&compare(&then, &now, args.noise))
}

/// The median ratio to the bound of each system in each setting.
fn ratios(results: &[Value]) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for result in results.iter().filter(|result| result["bench"] == "broadcast") {
        if let Some(ratio) = result["ratio_last"].as_f64() {
            let plain = if result["encrypted"] == false { " plain" } else { "" };
            let faults = match &result["faults"] {
                Value::Null => String::new(),
                faults => format!(" {faults}"),
            };
            let system = result["system"].as_str().unwrap_or_default();
            let (n, rate, size) = (&result["n"], &result["rate_mbit"], &result["size"]);
            all.entry(format!("{system}{plain}{faults} n={n} {rate} mbit {size} B")).or_default().push(ratio);
        }
    }
    all.into_iter().filter_map(|(name, ratios)| Some((name, median(&ratios)?))).collect()
}

fn compare(then: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>, noise: f64) -> Compared {
    let row = |(name, ratio_now): (&String, &f64)| {
        let ratio_then = *then.get(name)?;
        let change_pct = 100.0 * (ratio_now / ratio_then - 1.0);
        let verdict = match change_pct {
            change if change.abs() <= noise => "within noise",
            change if change < 0.0 => "faster",
            _ => "slower",
        };
        Some(Row { name: name.clone(), ratio_then, ratio_now: *ratio_now, change_pct, verdict })
    };
    let only = |of: &BTreeMap<String, f64>, other: &BTreeMap<String, f64>| {
        of.keys().filter(|name| !other.contains_key(*name)).cloned().collect()
    };
    let rows = now.iter().filter_map(row).collect();
    Compared { bench: "compare", rows, only_then: only(then, now), only_now: only(now, then) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_more_than_noise_is_a_difference_and_nothing_is_left_out() {
        let line =
            |n: u32, ratio: f64| json!({"bench": "broadcast", "system": "x", "n": n, "ratio_last": ratio});
        let then = ratios(&[line(2, 1.0), line(4, 1.0), line(8, 1.0), line(3, 1.0)]);
        let now = ratios(&[line(2, 1.04), line(4, 1.2), line(8, 0.8), line(16, 1.0)]);
        let compared = compare(&then, &now, 5.0);
        let verdict = |n: u32| {
            let row = compared.rows.iter().find(|row| row.name.contains(&format!("n={n} ")));
            row.map(|row| row.verdict)
        };
        assert_eq!([2, 4, 8].map(verdict), [Some("within noise"), Some("slower"), Some("faster")]);
        assert!(compared.only_then[0].contains("n=3 ") && compared.only_now[0].contains("n=16 "));
    }
}
