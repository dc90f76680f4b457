//! What the drill says: a table for people, one line for programs. Does not own what is in them.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::faults::Reads;

/// How one fault went.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) name: &'static str,
    /// What happened, or why it failed.
    pub(crate) verdict: Result<String, String>,
    /// Until the last healthy pull was done.
    pub(crate) seconds: Option<f64>,
    /// The same in the broadcast without a fault.
    pub(crate) seconds_without: Option<f64>,
    /// Origin bytes in artifacts, and how often the origin had to be read.
    pub(crate) origin: Option<(Reads, f64)>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |value: Option<f64>, sign: bool| match value {
            Some(value) if sign => format!("{value:+.1} s"),
            Some(value) => format!("{value:.1} s"),
            None => String::new(),
        };
        let extra = self.seconds.zip(self.seconds_without).map(|(with, without)| with - without);
        let origin = self.origin.map(|(_, x)| format!("{x:.3}")).unwrap_or_default();
        let what = match &self.verdict {
            Ok(what) if what.is_empty() => "passed".to_owned(),
            Ok(what) => format!("passed: {what}"),
            Err(why) => format!("FAILED: {why}"),
        };
        let (seconds, extra) = (number(self.seconds, false), number(extra, true));
        write!(f, "{:<20} {seconds:>8} {extra:>8} {origin:>7}  {what}", self.name)
    }
}

/// The table's head.
pub(crate) const HEAD: &str = "fault                    time    extra  origin  what happened";

/// The last line of `--json`.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    faults: BTreeMap<&'static str, String>,
    /// The worst of all faults but those in which what was read first was wrong.
    origin_x: Option<f64>,
    /// The worst of those.
    origin_x_reread: Option<f64>,
    verified: bool,
}

impl Summary {
    pub(crate) fn of(rows: &[Row]) -> Self {
        let verdict = |row: &Row| match &row.verdict {
            Ok(_) => (row.name, "passed".to_owned()),
            Err(why) => (row.name, format!("failed: {why}")),
        };
        let worst = |which: Reads| {
            let origin = rows.iter().filter_map(|row| row.origin);
            origin.filter(|(reads, _)| *reads == which).map(|(_, x)| x).reduce(f64::max)
        };
        Self {
            faults: rows.iter().map(verdict).collect(),
            origin_x: worst(Reads::Once),
            origin_x_reread: worst(Reads::Again),
            verified: Self::is_passed(rows),
        }
    }

    /// Whether something was played, and all of it passed.
    pub(crate) fn is_passed(rows: &[Row]) -> bool {
        !rows.is_empty() && rows.iter().all(|row| row.verdict.is_ok())
    }
}
