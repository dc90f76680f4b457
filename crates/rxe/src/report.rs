//! What the proof says: a line a part for people, one object for programs; and whether it holds.
//!
//! Owns: the form of both, the verdict. Does not own: what is in them.

use std::{
    collections::BTreeMap,
    io::Write as _,
    time::{Duration, Instant},
};

use serde::Serialize;

/// What the transport alone must reach of `ib_read_bw` (DESIGN §9).
pub(crate) const READ_BW_RATIO_MIN: f64 = 0.9;

/// What a verdict is in JSON where nothing went wrong.
const PASSED: &str = "passed";

/// How one part went: what happened, or why it failed.
pub(crate) type Verdict = Result<String, String>;

/// What a part came to, with its error in one line.
pub(crate) fn verdict(result: anyhow::Result<String>) -> Verdict {
    result.map_err(|error| format!("{error:#}"))
}

/// One part in the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    verdict: Verdict,
    /// What it took, where it was run by itself.
    time: Option<Duration>,
}

impl Row {
    /// What `part` came to, and what it took.
    pub(crate) fn of(name: &'static str, part: impl FnOnce() -> Verdict) -> Self {
        let begin = Instant::now();
        let verdict = part();
        Self { name, verdict, time: Some(begin.elapsed()) }
    }

    /// One that was run together with others.
    pub(crate) fn new(name: &'static str, verdict: Verdict) -> Self {
        Self { name, verdict, time: None }
    }

    /// The verdict as a program reads it.
    pub(crate) fn word(&self) -> String {
        match &self.verdict {
            Ok(_) => PASSED.to_owned(),
            Err(why) => format!("failed: {why}"),
        }
    }

    pub(crate) fn is_passed(&self) -> bool {
        self.verdict.is_ok()
    }

    fn line(&self) -> String {
        let time = self.time.map(|time| format!("{:.0} s", time.as_secs_f64())).unwrap_or_default();
        let what = match &self.verdict {
            Ok(what) => format!("passed: {what}"),
            Err(why) => format!("FAILED: {why}"),
        };
        format!("{:<20} {time:>6}  {what}", self.name)
    }
}

/// What a broadcast came to. `peers`, `bytes` and `rdma_bytes` describe the one into memory, `tcp_bytes` both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BroadcastProof {
    pub(crate) peers: u64,
    pub(crate) bytes: u64,
    pub(crate) rdma_bytes: u64,
    pub(crate) tcp_bytes: u64,
    pub(crate) direct_verified: bool,
    pub(crate) staged_verified: bool,
}

impl BroadcastProof {
    /// Whether every byte came over RDMA and was right, in both.
    fn holds(&self) -> bool {
        self.peers > 0
            && self.bytes > 0
            && self.rdma_bytes >= self.peers * self.bytes
            && self.tcp_bytes == 0
            && self.direct_verified
            && self.staged_verified
    }
}

/// The last line of `--json`. What was not run is null, or absent among the faults.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Proof {
    pub(crate) kernel: String,
    pub(crate) conformance: Option<String>,
    pub(crate) broadcast: Option<BroadcastProof>,
    /// The transport without checking, and with it, to `ib_read_bw`: medians of what ran one after the other.
    pub(crate) read_bw_ratio: Option<f64>,
    pub(crate) checked_ratio: Option<f64>,
    pub(crate) faults: BTreeMap<&'static str, String>,
    /// Whether it was tried to measure them in vain.
    #[serde(skip)]
    pub(crate) bandwidth_failed: bool,
}

impl Proof {
    /// Takes note of a fault, and tells it.
    pub(crate) fn fault(&mut self, row: &Row, report: Report) {
        report.row(row);
        self.faults.insert(row.name, row.word());
    }

    /// Whether all that ran holds. How fast the link is counts only if that is asked for.
    fn holds(&self, strict: bool) -> bool {
        let is_fast = self.read_bw_ratio.is_none_or(|ratio| ratio >= READ_BW_RATIO_MIN);
        self.conformance.as_ref().is_none_or(|word| word == PASSED)
            && self.broadcast.as_ref().is_none_or(BroadcastProof::holds)
            && self.faults.values().all(|word| word == PASSED)
            && !self.bandwidth_failed
            && (is_fast || !strict)
    }
}

/// Where the words go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Report {
    is_json: bool,
}

impl Report {
    pub(crate) fn new(is_json: bool) -> Self {
        Self { is_json }
    }

    /// Says a line to people.
    pub(crate) fn tell(self, line: &str) {
        // Nobody is left to tell if this fails.
        let _ = if self.is_json {
            writeln!(std::io::stderr().lock(), "{line}")
        } else {
            writeln!(std::io::stdout().lock(), "{line}")
        };
    }

    pub(crate) fn head(self, kernel: &str) {
        self.tell(&format!("RDMA on Linux {kernel}"));
    }

    pub(crate) fn row(self, row: &Row) {
        self.tell(&row.line());
    }

    /// Says what it all comes to, and whether it holds.
    pub(crate) fn end(self, proof: &Proof, strict: bool) -> anyhow::Result<bool> {
        if let Some(ratio) = proof.read_bw_ratio.filter(|ratio| *ratio < READ_BW_RATIO_MIN) {
            self.tell(&format!(
                "the link is slower than it must be: {ratio:.2} < {READ_BW_RATIO_MIN} of ib_read_bw"
            ));
        }
        let holds = proof.holds(strict);
        self.tell(if holds { "all of it holds" } else { "it does not hold" });
        if self.is_json {
            writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(proof)?)?;
        }
        Ok(holds)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn passed() -> String {
        Row::new("it", Ok("9 tests".to_owned())).word()
    }

    fn failed() -> String {
        Row::new("it", Err("it hung".to_owned())).word()
    }

    fn proof() -> Proof {
        Proof {
            kernel: "6.12.1".to_owned(),
            conformance: Some(passed()),
            broadcast: Some(BroadcastProof {
                peers: 3,
                bytes: 100,
                rdma_bytes: 300,
                tcp_bytes: 0,
                direct_verified: true,
                staged_verified: true,
            }),
            read_bw_ratio: Some(0.95),
            checked_ratio: Some(0.5),
            faults: BTreeMap::from([("wrong-rkey", passed())]),
            bandwidth_failed: false,
        }
    }

    /// Whether it holds after one change.
    fn holds_with(change: impl FnOnce(&mut Proof)) -> bool {
        let mut proof = proof();
        change(&mut proof);
        proof.holds(true)
    }

    fn broadcast_with(change: impl FnOnce(&mut BroadcastProof)) -> bool {
        holds_with(|proof| change(proof.broadcast.as_mut().unwrap()))
    }

    #[test]
    fn the_line_for_programs_is_as_promised() {
        let line = serde_json::to_value(proof()).unwrap();
        let expected = json!({
            "kernel": "6.12.1", "conformance": "passed",
            "broadcast": {
                "peers": 3, "bytes": 100, "rdma_bytes": 300, "tcp_bytes": 0,
                "direct_verified": true, "staged_verified": true,
            },
            "read_bw_ratio": 0.95, "checked_ratio": 0.5, "faults": {"wrong-rkey": "passed"},
        });
        assert_eq!(line, expected);
    }

    #[test]
    fn one_wrong_thing_is_enough() {
        assert!(holds_with(|_| ()));
        assert!(!holds_with(|it| it.conformance = Some(failed())));
        assert!(!holds_with(|it| {
            it.faults.insert("memlock", failed());
        }));
        assert!(!holds_with(|it| it.bandwidth_failed = true));
        assert!(!broadcast_with(|it| it.rdma_bytes = 299));
        assert!(!broadcast_with(|it| it.tcp_bytes = 1));
        assert!(!broadcast_with(|it| it.direct_verified = false));
        assert!(!broadcast_with(|it| it.staged_verified = false));
        assert!(!broadcast_with(|it| (it.peers, it.rdma_bytes) = (0, 0)));
    }

    #[test]
    fn speed_counts_when_it_is_asked_for() {
        let slow = Proof { read_bw_ratio: Some(0.89), ..proof() };
        assert!(slow.holds(false));
        assert!(!slow.holds(true));
    }

    #[test]
    fn what_did_not_run_is_not_judged() {
        let some = Proof { kernel: "6.1".to_owned(), ..Proof::default() };
        assert!(some.holds(true));
        assert!(serde_json::to_value(&some).unwrap()["broadcast"].is_null());
    }
}
