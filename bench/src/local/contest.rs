//! Contenders that do the same, in turns, and what they come to.
//!
//! Owns: the order of runs, rows of medians, how they are shown. Does not own: what a run costs (`meter`), what the
//! contenders do.

use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::Context as _;
use serde::Serialize;
use testbed::{program::are_installed, stage};

use super::meter::{self, Cost};
use crate::{
    output::tell,
    statistics::{median, ratio},
};

/// One way to do it.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    /// What must be installed.
    pub(crate) tools: &'static [&'static str],
    /// What `sh` runs.
    pub(crate) script: String,
}

/// What surrounds each run of a contender, outside of its time.
pub(crate) trait Ground {
    /// Makes everything as before the first run.
    fn reset(&mut self) -> anyhow::Result<()>;

    /// Where the script runs.
    fn dir(&self) -> &Path;

    /// Where its output goes.
    fn logs(&self) -> &Path;

    /// Fails unless it has done what it was to do.
    fn check(&self) -> anyhow::Result<()>;
}

/// A contender that was not measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Skipped {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// Medians over the runs of one contender, and the most memory that any of them had.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) seconds: f64,
    /// The fastest and the slowest run.
    pub(crate) seconds_min: f64,
    pub(crate) seconds_max: f64,
    pub(crate) cpu_s: f64,
    pub(crate) disk_bytes: u64,
    pub(crate) rss_anon_max: u64,
    /// `ratio_to_NAME`: the median of the ratios of its time to that contender's in the same turn.
    #[serde(flatten)]
    pub(crate) ratios: BTreeMap<String, f64>,
}

/// What a contest comes to.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Table {
    pub(crate) rows: Vec<Row>,
    pub(crate) skipped: Vec<Skipped>,
    pub(crate) budgets: Vec<Budget>,
}

/// A number beside what it should be at most.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Budget {
    pub(crate) what: String,
    pub(crate) is: f64,
    pub(crate) at_most: f64,
}

/// Lets each contender run so often, in turns, so that whatever else the machine does hits all; `bases` are those that
/// the others are compared with.
pub(crate) fn hold(
    contenders: &[Contender],
    bases: &[&str],
    runs: usize,
    mut ground: impl FnMut(&Contender) -> anyhow::Result<Box<dyn Ground>>,
) -> anyhow::Result<Table> {
    let mut skipped = Vec::new();
    let mut present: Vec<(&Contender, Vec<Cost>)> = Vec::new();
    for contender in contenders {
        match are_installed(contender.tools) {
            Ok(()) => present.push((contender, Vec::new())),
            Err(why) => {
                tell(&format!("skipped: {}: {why}", contender.name));
                skipped.push(Skipped { name: contender.name, why: why.to_string() });
            }
        }
    }
    for run in 1..=runs {
        for (contender, costs) in &mut present {
            stage::goes_on()?;
            let cost = ground(contender)
                .and_then(|mut ground| {
                    ground.reset()?;
                    let cost = meter::measure(&contender.script, ground.dir(), ground.logs())?;
                    ground.check()?;
                    Ok(cost)
                })
                .with_context(|| format!("run {run} of {}", contender.name))?;
            tell(&format!("{} run {run}: {:.3} s", contender.name, cost.seconds));
            costs.push(cost);
        }
    }
    let rows = present.iter().filter_map(|(contender, costs)| row(contender.name, costs, bases, &present));
    Ok(Table { rows: rows.collect(), skipped, budgets: Vec::new() })
}

fn row(name: &'static str, costs: &[Cost], bases: &[&str], all: &[(&Contender, Vec<Cost>)]) -> Option<Row> {
    let seconds: Vec<f64> = costs.iter().map(|cost| cost.seconds).collect();
    let mut disk: Vec<u64> = costs.iter().map(|cost| cost.disk_bytes).collect();
    disk.sort_unstable();
    let mut ratios = BTreeMap::new();
    for (base, of_base) in all.iter().filter(|(base, _)| bases.contains(&base.name)) {
        let paired = costs.iter().zip(of_base).filter_map(|(cost, base)| ratio(cost.seconds, base.seconds));
        let key = format!("ratio_to_{}", base.name.replace([' ', '-'], "_"));
        ratios.extend(median(&paired.collect::<Vec<_>>()).map(|ratio| (key, ratio)));
    }
    Some(Row {
        name,
        seconds: median(&seconds)?,
        seconds_min: seconds.iter().copied().reduce(f64::min)?,
        seconds_max: seconds.iter().copied().reduce(f64::max)?,
        cpu_s: median(&costs.iter().map(|cost| cost.cpu_s).collect::<Vec<_>>())?,
        disk_bytes: disk[disk.len() / 2],
        rss_anon_max: costs.iter().map(|cost| cost.rss_anon_max).max()?,
        ratios,
    })
}

impl Table {
    /// The row of that contender.
    pub(crate) fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// Puts a number that there is beside its budget.
    pub(crate) fn budget(&mut self, what: &str, is: Option<f64>, at_most: f64) {
        self.budgets.extend(is.map(|is| Budget { what: what.to_owned(), is, at_most }));
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, is, at_most } = self;
        let verdict = if is <= at_most { "within" } else { "over" };
        write!(out, "{what}: {is:.3}, {verdict} its budget of {at_most:.3}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:<16} {:>9} {:>19} {:>9} {:>14} {:>13}",
            "", "seconds", "(min – max)", "cpu_s", "disk_bytes", "rss_anon_max"
        )?;
        for row in &self.rows {
            let range = format!("({:.3} – {:.3})", row.seconds_min, row.seconds_max);
            write!(
                out,
                "{:<16} {:>9.3} {range:>19} {:>9.2} {:>14} {:>13}",
                row.name, row.seconds, row.cpu_s, row.disk_bytes, row.rss_anon_max
            )?;
            for (key, ratio) in &row.ratios {
                write!(out, "  {key} {ratio:.2}")?;
            }
            writeln!(out)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &'static str) -> Contender {
        Contender { name, tools: &[], script: String::new() }
    }

    fn costs(seconds: &[f64]) -> Vec<Cost> {
        let cost = |seconds: &f64| Cost { seconds: *seconds, rss_anon_max: 7, ..Cost::default() };
        seconds.iter().map(cost).collect()
    }

    #[test]
    fn ratios_are_within_a_turn() {
        let (base, other) = (contender("curl-b3sum"), contender("modelctl"));
        // The machine is ten times as slow in the second turn, for both.
        let all = [(&base, costs(&[1.0, 10.0, 1.0])), (&other, costs(&[2.0, 20.0, 2.5]))];
        let row = row("modelctl", &all[1].1, &["curl-b3sum"], &all).unwrap();
        assert_eq!(row.ratios, BTreeMap::from([("ratio_to_curl_b3sum".to_owned(), 2.0)]));
        assert!((row.seconds - 2.5).abs() < 1e-9 && (row.seconds_max - 20.0).abs() < 1e-9, "{row:?}");
    }

    #[test]
    fn a_row_has_its_ratios_beside_its_numbers() {
        let base = contender("curl");
        let all = [(&base, costs(&[1.0]))];
        let json = serde_json::to_value(row("curl", &all[0].1, &["curl"], &all).unwrap()).unwrap();
        assert_eq!(json["ratio_to_curl"], 1.0);
        assert_eq!(json["rss_anon_max"], 7);
    }
}
