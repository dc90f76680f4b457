//! What a scheduler writes down of its broadcasts: one JSON object a line, of which each is written once.
//!
//! Owns: the format, making a line of what happened, reading lines back and checking that they tell one story. Does not
//! own: files, what is worth a line (crate `scheduler`), what a story is good for (crate `simulator`).

mod read;

use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use read::{BadLine, Record, parse};

/// The version of the format that is written here, and the latest that is read. Within a version, events and fields
/// may be added: readers skip those that they do not know.
pub const VERSION: u32 = 1;

/// The first line of a record. A file may hold several, one after another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`VERSION`].
    pub record: u32,
    /// The fleet's name: 16 hexadecimal digits, or `local` without a key.
    pub fleet: String,
    /// When it began, in RFC 3339.
    pub start: String,
}

/// Any other line: what happened, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Since the record began, in whole microseconds.
    pub seconds: f64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// What happened. A peer is a number that its registration gives it, an artifact is its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A peer opened its stream.
    Registered {
        /// Its number from here on.
        peer: u32,
        /// The peer, which is the same if it comes again.
        id: String,
        /// Its name for people.
        name: String,
        /// What its network card does in each direction, if it knows.
        nic_bytes_per_second: Option<u64>,
    },
    /// Its stream ended: it is out of every swarm, and its number means nothing any more.
    Gone {
        /// The peer.
        peer: u32,
    },
    /// A peer wants an artifact or offers it; said again, it replaces what was said before.
    Joined {
        /// The peer.
        peer: u32,
        /// The artifact.
        artifact: String,
        /// The artifact's size.
        bytes: u64,
        /// How many pieces it has.
        pieces: u32,
        /// How many of them the peer has proved.
        has: u32,
        /// Whether it may read the origin.
        origin_ok: bool,
        /// Whether its bytes count as the origin's.
        seed: bool,
    },
    /// A member has proved more pieces: said for each 64th of an artifact.
    Progress {
        /// The member.
        peer: u32,
        /// The artifact.
        artifact: String,
        /// How many pieces it has.
        has: u32,
    },
    /// A member has proved the last piece.
    Finished {
        /// The member.
        peer: u32,
        /// The artifact.
        artifact: String,
    },
    /// A member is no longer in the swarm.
    Left {
        /// The member.
        peer: u32,
        /// The artifact.
        artifact: String,
    },
    /// A peer's traffic, as it measured it, has changed by more than a tenth.
    Load {
        /// The peer.
        peer: u32,
        /// What it sends.
        sent_bytes_per_second: u64,
        /// What it receives.
        received_bytes_per_second: u64,
    },
    /// A member accuses another one.
    Accused {
        /// The accused.
        peer: u32,
        /// The artifact.
        artifact: String,
        /// Who accuses it.
        by: u32,
        /// Of what.
        charge: Charge,
    },
    /// A member was told its part of a plan.
    Planned {
        /// The member.
        peer: u32,
        /// The artifact.
        artifact: String,
        /// The plan's number.
        epoch: u64,
        /// What happened since plans were made last.
        because: Vec<Cause>,
        /// Where it gets each stripe; `None` if nobody has it.
        sources: Vec<Option<Source>>,
    },
    /// Of a later writer.
    #[serde(other)]
    Unknown,
}

/// What somebody is accused of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Charge {
    /// Bytes that do not match the manifest.
    WrongBytes,
    /// It gives nothing of what it announces.
    Silence,
}

/// Why plans are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// [`Event::Joined`].
    Joined,
    /// [`Event::Left`].
    Left,
    /// [`Event::Gone`].
    Gone,
    /// [`Event::Accused`].
    Accused,
    /// Time has passed: a member is much slower than the others, or a pause for those who join together is over.
    Time,
}

/// Where a member gets a stripe: the word `origin`, or the number of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// That peer.
    Peer(u32),
    /// The origin.
    Origin(Origin),
}

/// The word `origin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The one there is.
    Origin,
}

impl Header {
    /// Its line, with the end of it.
    pub fn line(&self) -> String {
        line(self)
    }
}

impl Entry {
    /// That this happened so long after the record began.
    pub fn new(at: Duration, event: Event) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds of a process, far below 2^53")]
        let seconds = at.as_micros() as f64 / 1e6;
        Self { seconds, event }
    }

    /// When it happened, since the record began.
    pub fn at(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds).unwrap_or_default()
    }

    /// Its line, with the end of it.
    pub fn line(&self) -> String {
        line(self)
    }
}

fn line(what: &impl Serialize) -> String {
    let mut line = serde_json::to_string(what).expect("plain data, with words as keys");
    line.push('\n');
    line
}
