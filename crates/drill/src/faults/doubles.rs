//! Faults of peers that misbehave, played by doubles. Does not own the doubles.

use anyhow::ensure;
use serde_json::Value;

use super::{Fault, NONE, Scene};
use crate::{doubles::Behaviour, fleet::Cast};

pub(crate) fn faults() -> Vec<Fault> {
    let with = |behaviour| Cast { double: Some(behaviour), ..NONE.cast };
    let (lies, wrong, silent) = (Behaviour::LiesHave, Behaviour::WrongBytes, Behaviour::Silent);
    vec![
        Fault { name: "peer-lies-have", cast: with(lies), check: Some(was_asked_in_vain), ..NONE },
        Fault { name: "peer-wrong-bytes", cast: with(wrong), check: Some(was_named), ..NONE },
        Fault { name: "peer-silent", cast: with(silent), check: Some(was_asked_in_vain), ..NONE },
        Fault { name: "old-peer", cast: with(Behaviour::Old), check: Some(has_served), ..NONE },
        Fault { name: "accuser-lies", cast: with(Behaviour::Accuser), check: Some(has_accused), ..NONE },
    ]
}

fn count(report: &Value, name: &str) -> u64 {
    report[name].as_u64().unwrap_or_default()
}

/// Without this the fault was not played.
fn was_asked_in_vain(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let report = scene.fleet.double_report()?;
    ensure!(count(&report, "asked") > 0, "nobody asked the double for anything");
    ensure!(count(&report, "sent_bytes") == 0, "the double sent something");
    Ok(format!("asked {} times in vain", count(&report, "asked")))
}

/// The reports of those who got wrong bytes and the scheduler name who sent them.
fn was_named(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let id = scene.fleet.double_id()?;
    // As logs write it.
    let name = id.get(..8).unwrap_or_default().to_owned();
    let report = scene.fleet.double_report()?;
    ensure!(count(&report, "asked") > 0, "nobody asked the double for anything");
    let names = |log: &str, words: &str| log.lines().any(|line| line.contains(words) && line.contains(&name));
    let accusers = scene.fleet.peers.iter().filter(|peer| names(&peer.log(), "wrong bytes")).count();
    ensure!(accusers > 0, "nobody named it: no peer says who sent wrong bytes");
    let is_known = scene.fleet.schedulers.iter().any(|scheduler| names(&scheduler.log(), "wrong bytes"));
    ensure!(is_known, "nobody named it: the scheduler does not say who sent wrong bytes");
    Ok(format!("refused; {accusers} peers and the scheduler name it"))
}

fn has_served(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let report = scene.fleet.double_report()?;
    let sent = count(&report, "sent_bytes");
    ensure!(sent > 0, "the old peer served nobody");
    Ok(format!("the old peer served {} MiB", sent >> 20))
}

/// The accused go on serving: an accusation by one address exiles nobody.
fn has_accused(scene: &mut Scene<'_>) -> anyhow::Result<String> {
    let report = scene.fleet.double_report()?;
    let complaints = count(&report, "complaints");
    ensure!(complaints > 0, "it accused nobody");
    let from_peers: u64 = (0..scene.broadcast.pulls.len())
        .filter_map(|peer| scene.broadcast.result(peer))
        .map(|result| count(&result, "peer_bytes"))
        .sum();
    let from_double = count(&report, "sent_bytes");
    ensure!(from_peers > 2 * from_double, "the accused were exiled: most bytes came from their accuser");
    Ok(format!("{complaints} complaints, nobody exiled"))
}
