//! The device tests of the crates, which are ignored where there is no device: run by their own binaries.
//!
//! Owns: running them, reading what they say, which of them plays which fault. Does not own: the tests.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use testbed::{
    process::{Process, ending},
    program,
};

use crate::report::{Row, Verdict};

/// How long one binary may run.
const PATIENCE: Duration = Duration::from_mins(2);

/// The faults that tests play, and what one of is in the names of those tests.
const FAULTS: &[(&str, &[&str])] = &[
    ("wrong-rkey", &["wrong_rkey", "wrong_key"]),
    ("read-past-end", &["past_the_end"]),
    ("deregistered", &["deregistered_while"]),
    ("futures-dropped", &["dropped_with_poisoned_memory", "no_read_hits_memory_after"]),
    ("completions-withheld", &["completions_withheld"]),
];

/// What the binaries said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Suite {
    /// Whether each test passed, by name, with the binary before it.
    tests: BTreeMap<String, bool>,
    /// Why a binary did not come to its end as it should, or that there is none.
    broken: Vec<String>,
}

impl Suite {
    /// Runs the ignored tests of these binaries one after another.
    pub(crate) fn run(binaries: &[PathBuf]) -> Self {
        let mut suite = Self::default();
        if binaries.is_empty() {
            suite.broken.push("no test binary was named: give `--suite`".to_owned());
        }
        for binary in binaries {
            if let Err(error) = suite.add(binary) {
                suite.broken.push(format!("{error:#}"));
            }
        }
        suite
    }

    fn add(&mut self, binary: &Path) -> anyhow::Result<()> {
        let binary = program::find(binary, "--suite")?;
        let name = binary.file_name().and_then(|name| name.to_str()).context("a binary has a name")?;
        let logs = tempfile::tempdir()?;
        let mut command = Command::new(&binary);
        command.args(["--ignored", "--test-threads=1"]);
        let mut process = Process::start(command, logs.path(), name)?;
        let status = process.wait(PATIENCE);
        let output = process.output();
        let (tests, ran) = (tests_in(&output), self.tests.len());
        let last = tests.last().map_or("the first", |(test, _)| test.as_str()).to_owned();
        self.tests.extend(tests.into_iter().map(|(test, passed)| (format!("{name}: {test}"), passed)));
        let status = status.with_context(|| format!("after test {last}"))?;
        ensure!(self.tests.len() > ran, "{name} has no test for a device ({})", ending(status));
        if !status.success() {
            eprint_failures(name, &output);
            ensure!(self.tests.values().any(|passed| !passed), "{name} ended with {}", ending(status));
        }
        Ok(())
    }

    /// Whether all passed, and there were some.
    pub(crate) fn verdict(&self) -> Verdict {
        let failed: Vec<&str> = self.failed().collect();
        let mut wrong = self.broken.clone();
        if !failed.is_empty() {
            wrong.push(format!(
                "{} of {} tests failed: {}",
                failed.len(),
                self.tests.len(),
                failed.join(", ")
            ));
        }
        if wrong.is_empty() { Ok(format!("{} tests", self.tests.len())) } else { Err(wrong.join("; ")) }
    }

    fn failed(&self) -> impl Iterator<Item = &str> {
        self.tests.iter().filter(|(_, passed)| !**passed).map(|(test, _)| test.as_str())
    }

    /// Each fault that tests play. One that no test plays has failed.
    pub(crate) fn faults(&self) -> Vec<Row> {
        FAULTS.iter().map(|(fault, words)| Row::new(fault, self.fault(words))).collect()
    }

    fn fault(&self, words: &[&str]) -> Verdict {
        let plays = |test: &str| words.iter().any(|words| test.contains(words));
        let played: Vec<_> = self.tests.iter().filter(|(test, _)| plays(test)).collect();
        if played.is_empty() {
            return Err(format!("no test plays it: none has `{}` in its name", words.join("` or `")));
        }
        match played.iter().find(|(_, passed)| !**passed) {
            Some((test, _)) => Err(format!("test {test}")),
            None => Ok(played.iter().map(|(test, _)| test.as_str()).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// Shows what the failed tests said; indented, so that nobody counts its last line as a result of their own.
fn eprint_failures(name: &str, output: &str) {
    use std::io::Write as _;
    let said = output.split_once("\nfailures:\n").map_or(output, |(_, said)| said);
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr().lock(), "{name} said:\n  {}", said.trim().replace('\n', "\n  "));
}

/// Whether each test passed, in the order of the output of Rust's test runner: `test NAME ... ok`, where what a test
/// prints itself may stand between name and verdict.
fn tests_in(output: &str) -> Vec<(String, bool)> {
    let mut found: Vec<(String, bool)> = Vec::new();
    for line in output.lines() {
        let Some((name, rest)) = line.strip_prefix("test ").and_then(|line| line.split_once(" ... ")) else {
            continue;
        };
        if !rest.starts_with("ignored") {
            // One that does not say `ok` did not pass, also if it says nothing any more.
            let name = name.split(" - should panic").next().unwrap_or(name);
            found.push((name.to_owned(), rest == "ok" || rest.starts_with("ok <")));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 5 tests
test device::a_read_arrives ... ok
test device::wrong_rkey_is_refused ... FAILED
test device::completions_withheld_hit_the_deadline ... ok
test device::needs_more ... ignored, needs two devices
test device::hangs ... 
";

    fn suite(output: &str) -> Suite {
        let tests = tests_in(output).into_iter().map(|(test, passed)| (format!("verbs: {test}"), passed));
        Suite { tests: tests.collect(), broken: Vec::new() }
    }

    #[test]
    fn only_ok_is_passed() {
        let passed: Vec<_> = tests_in(OUTPUT).into_iter().map(|(_, passed)| passed).collect();
        assert_eq!(passed, [true, false, true, false]);
        let why = suite(OUTPUT).verdict().unwrap_err();
        assert_eq!(why, "2 of 4 tests failed: verbs: device::hangs, verbs: device::wrong_rkey_is_refused");
        assert_eq!(suite("test device::a_read_arrives ... ok\n").verdict(), Ok("1 tests".to_owned()));
    }

    #[test]
    fn a_fault_that_nobody_plays_has_failed() {
        let suite = suite(OUTPUT);
        let verdicts: BTreeMap<_, _> =
            FAULTS.iter().map(|(fault, words)| (*fault, suite.fault(words))).collect();
        assert!(verdicts["completions-withheld"].is_ok());
        assert_eq!(verdicts["wrong-rkey"], Err("test verbs: device::wrong_rkey_is_refused".to_owned()));
        assert!(verdicts["deregistered"].as_ref().unwrap_err().contains("no test plays it"));
    }

    #[test]
    fn no_binary_is_no_pass() {
        assert!(Suite::run(&[]).verdict().is_err());
        assert!(Suite::run(&["/nonexistent/it".into()]).verdict().is_err());
    }
}
