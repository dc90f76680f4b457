//! Reading records back. Does not own what a line is made of.

use std::collections::{BTreeMap, BTreeSet};

use modelpack::digest::Sha256Digest;
use serde_json::Value;

use crate::{Entry, Event, Header, Source, VERSION};

/// Everything that one scheduler wrote between its start and its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Whose it is.
    pub header: Header,
    /// What happened, in order.
    pub entries: Vec<Entry>,
}

/// A line that cannot be part of a record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{line}: {why}")]
pub struct BadLine {
    /// Its number, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub why: String,
}

/// Reads a file of records. A last line that has no end was cut off, and does not count.
///
/// # Errors
/// At the first line that is no part of a record, or contradicts those before it.
pub fn parse(text: &str) -> Result<Vec<Record>, BadLine> {
    let mut records: Vec<Record> = Vec::new();
    let mut story = Story::default();
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    for (line, text) in (1..).zip(whole.lines()) {
        let bad = |why: String| BadLine { line, why };
        let value: Value = serde_json::from_str(text).map_err(|error| bad(reason(&error)))?;
        if value.get("record").is_some() {
            let header: Header = serde_json::from_value(value).map_err(|error| bad(reason(&error)))?;
            if header.record != VERSION {
                let version = header.record;
                return Err(bad(format!("it is of version {version}, and this reads version {VERSION}")));
            }
            story = Story::default();
            records.push(Record { header, entries: Vec::new() });
            continue;
        }
        let entry: Entry = serde_json::from_value(value).map_err(|error| bad(reason(&error)))?;
        let record = records.last_mut().ok_or_else(|| bad("a record begins with its header".to_owned()))?;
        story.goes_on(&entry).map_err(bad)?;
        record.entries.push(entry);
    }
    Ok(records)
}

/// What is wrong, without the place in a line: the line is named already.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

/// What has been said so far, as far as later lines lean on it.
#[derive(Default)]
struct Story {
    seconds: f64,
    peers: BTreeSet<u32>,
    /// Pieces of each artifact.
    pieces: BTreeMap<String, u32>,
}

impl Story {
    fn goes_on(&mut self, entry: &Entry) -> Result<(), String> {
        if !entry.seconds.is_finite() || entry.seconds < self.seconds {
            return Err(format!("{} seconds come after {}", entry.seconds, self.seconds));
        }
        self.seconds = entry.seconds;
        match &entry.event {
            Event::Registered { peer, .. } => {
                if !self.peers.insert(*peer) {
                    return Err(format!("peer {peer} is there already"));
                }
            }
            Event::Gone { peer } => {
                self.peer(*peer)?;
                self.peers.remove(peer);
            }
            Event::Joined { peer, artifact, pieces, has, .. } => {
                self.peer(*peer)?;
                artifact.parse::<Sha256Digest>().map_err(|error| error.to_string())?;
                let known = *self.pieces.entry(artifact.clone()).or_insert(*pieces);
                if known != *pieces || has > pieces {
                    return Err(format!("{has} of {pieces} pieces, of an artifact that has {known}"));
                }
            }
            Event::Progress { peer, artifact, has } => {
                self.peer(*peer)?;
                let pieces = self.artifact(artifact)?;
                if *has > pieces {
                    return Err(format!("{has} pieces, of an artifact that has {pieces}"));
                }
            }
            Event::Finished { peer, artifact } | Event::Left { peer, artifact } => {
                self.peer(*peer)?;
                self.artifact(artifact)?;
            }
            Event::Load { peer, .. } => self.peer(*peer)?,
            Event::Accused { by, artifact, .. } => {
                // The accused may have left before.
                self.peer(*by)?;
                self.artifact(artifact)?;
            }
            Event::Planned { peer, artifact, sources, .. } => {
                self.peer(*peer)?;
                self.artifact(artifact)?;
                for source in sources.iter().flatten() {
                    if let Source::Peer(parent) = source {
                        self.peer(*parent)?;
                    }
                }
            }
            Event::Unknown => {}
        }
        Ok(())
    }

    fn peer(&self, peer: u32) -> Result<(), String> {
        if self.peers.contains(&peer) { Ok(()) } else { Err(format!("peer {peer} has not registered")) }
    }

    fn artifact(&self, artifact: &str) -> Result<u32, String> {
        self.pieces.get(artifact).copied().ok_or_else(|| format!("nobody has joined `{artifact}`"))
    }
}
