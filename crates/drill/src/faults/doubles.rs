//! Faults of peers that misbehave, played by doubles. Does not own the doubles.

use std::collections::BTreeSet;

use anyhow::ensure;

use super::{Fault, NONE, Publisher, Reads, Scene, lines_with, word_after};
use testbed::process::Process;

use crate::{
    doubles::Behaviour,
    fleet::{Cast, Origin},
};

/// Accusers that the scheduler needs to quarantine somebody; here each has an address of its own.
const ACCUSERS_MIN: usize = 2;

/// How schedulers say that somebody was accused, and what became of that.
const ACCUSED: &str = "wrong bytes peer=";
const QUARANTINED: &str = "a peer is quarantined";

/// How pulls say who sent wrong bytes, and who vouched for them.
const SENT: &str = "wrong bytes";
const VOUCHED: &str = "vouched for wrong bytes";

pub(crate) fn faults() -> Vec<Fault> {
    let with = |behaviour| Cast { double: Some(behaviour), ..NONE.cast };
    let (lies, wrong, silent) = (Behaviour::LiesHave, Behaviour::WrongBytes, Behaviour::Silent);
    vec![
        Fault { name: "peer-lies-have", cast: with(lies), check: Some(was_asked_in_vain), ..NONE },
        Fault { name: "peer-wrong-bytes", cast: with(wrong), check: Some(was_named), ..NONE },
        Fault { name: "peer-silent", cast: with(silent), check: Some(was_asked_in_vain), ..NONE },
        Fault { name: "old-peer", cast: with(Behaviour::Old), check: Some(has_served), ..NONE },
        Fault { name: "accuser-lies", cast: with(Behaviour::Accuser), check: Some(has_accused), ..NONE },
        Fault {
            name: "origin-reader-lies",
            cast: Cast { origin: Origin::Registry, ..with(Behaviour::LyingReader) },
            publisher: Publisher::OtherTool,
            reads: Reads::Again,
            check: Some(reader_was_blamed),
            ..NONE
        },
    ]
}

impl Scene<'_> {
    /// The double as logs write it.
    fn double_name(&self) -> anyhow::Result<String> {
        Ok(self.fleet.double_id()?.chars().take(8).collect())
    }

    /// The lines with these words in the logs of all schedulers.
    fn said_by_schedulers(&self, words: &str) -> Vec<String> {
        let logs = self.fleet.schedulers.iter().map(Process::log);
        logs.flat_map(|log| lines_with(&log, words)).collect()
    }

    /// How many peers have logged a line with these words about the double.
    fn peers_that_say(&self, words: &str, double: &str) -> usize {
        let says = |log: &str| lines_with(log, words).iter().any(|line| line.contains(double));
        self.fleet.peers.iter().filter(|peer| says(&peer.log())).count()
    }

    /// What schedulers say of the double that peers accuse: they name it and nobody else, and quarantine it if there
    /// are enough accusers.
    fn verdict_of_schedulers(&self, double: &str) -> anyhow::Result<String> {
        let is_known = |scene: &Self| !scene.said_by_schedulers(ACCUSED).is_empty();
        ensure!(self.until_logged(is_known), "nobody named it: no scheduler says who sent wrong bytes");
        let accusations = self.said_by_schedulers(ACCUSED);
        let about = format!("about={double}");
        let other = accusations.iter().find(|line| !line.contains(&about));
        ensure!(other.is_none(), "an honest peer was accused: {}", other.map_or("", String::as_str));
        let accusers: BTreeSet<&str> =
            accusations.iter().filter_map(|line| word_after(line, "peer=")).collect();
        if accusers.len() < ACCUSERS_MIN {
            return Ok("one accuser, no quarantine".to_owned());
        }
        let is_quarantined =
            |scene: &Self| scene.said_by_schedulers(QUARANTINED).iter().any(|line| line.contains(double));
        ensure!(self.until_logged(is_quarantined), "{} accuse it and it is not quarantined", accusers.len());
        let others = self.said_by_schedulers(QUARANTINED).into_iter().find(|line| !line.contains(double));
        ensure!(others.is_none(), "an honest peer is quarantined: {}", others.unwrap_or_default());
        Ok(format!("{} accusers, quarantined", accusers.len()))
    }
}

/// Without this the fault was not played.
fn was_asked_in_vain(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    ensure!(scene.reported("asked") > 0, "nobody asked the double for anything");
    ensure!(scene.reported("sent_bytes") == 0, "the double sent something");
    Ok(format!("asked {} times in vain", scene.reported("asked")))
}

/// The logs of those who got wrong bytes and the scheduler name who sent them.
fn was_named(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let double = scene.double_name()?;
    ensure!(scene.reported("asked") > 0, "nobody asked the double for anything");
    let accusers = scene.peers_that_say(SENT, &double);
    ensure!(accusers > 0, "nobody named it: no peer says who sent wrong bytes");
    let verdict = scene.verdict_of_schedulers(&double)?;
    Ok(format!("refused; {accusers} peers name it; {verdict}"))
}

fn has_served(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let sent = scene.reported("sent_bytes");
    ensure!(sent > 0, "the old peer served nobody");
    Ok(format!("the old peer served {} MiB", sent >> 20))
}

/// The accused go on serving: an accusation by one address exiles nobody.
fn has_accused(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let complaints = scene.reported("complaints");
    ensure!(complaints > 0, "it accused nobody");
    ensure!(!scene.said_by_schedulers(ACCUSED).is_empty(), "no scheduler heard its accusations");
    let exiled = scene.said_by_schedulers(QUARANTINED);
    ensure!(exiled.is_empty(), "one accuser exiled somebody: {}", exiled.join(" | "));
    let from_peers: u64 = (0..scene.broadcast.pulls.len())
        .filter_map(|peer| scene.broadcast.result(peer))
        .filter_map(|result| result["peer_bytes"].as_u64())
        .sum();
    let from_double = scene.reported("sent_bytes");
    ensure!(from_peers > 2 * from_double, "the accused were exiled: most bytes came from their accuser");
    Ok(format!("{complaints} complaints, nobody quarantined"))
}

/// Its word was taken, nothing came of it, and it alone is blamed.
fn reader_was_blamed(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let double = scene.double_name()?;
    ensure!(scene.reported("vouched_bytes") > 0, "the double was never to read the origin");
    ensure!(scene.reported("sent_bytes") > 0, "nobody took anything of what the double vouched for");
    let blaming = scene.peers_that_say(VOUCHED, &double);
    ensure!(blaming > 0, "no peer says who vouched for wrong bytes");
    let verdict = scene.verdict_of_schedulers(&double)?;
    let vouched = scene.reported("vouched_bytes") >> 20;
    Ok(format!("it vouched for {vouched} MiB; {blaming} peers blame it; {verdict}"))
}
