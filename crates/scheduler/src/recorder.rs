//! What of a scheduler's inputs and plans is worth a line of its record. Does not own the lines' form (crate `record`),
//! nor where they go (`record_file`).
//!
//! A member's progress is a line for each 64th of the artifact, a peer's load one when it has changed by a tenth: enough
//! to see rates, and no more the longer things take.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use modelpack::digest::Sha256Digest;
use planner::{ArtifactId, Input, PeerId, PeerPlan, Planner, StripeSource};
use record::{Cause, Charge, Entry, Event, Origin, Source};

use crate::record_file::{Lines, RecordFile};

/// Lines of one member's progress, at most, but for the last.
const PROGRESS_LINES: u32 = 64;

/// A load is said again when it differs by more than this part of itself.
const LOAD_PART: u64 = 10;

/// Writes down what happens.
pub(crate) struct Recorder {
    /// Until they can no longer be written.
    lines: Option<Lines>,
    numbers: BTreeMap<PeerId, u32>,
    next_number: u32,
    members: BTreeMap<(PeerId, ArtifactId), Member>,
    /// (sent, received) as last said.
    loads: BTreeMap<PeerId, (u64, u64)>,
    because: BTreeSet<Cause>,
    plans: BTreeMap<(ArtifactId, PeerId), PeerPlan>,
}

/// What was last said of a member.
struct Member {
    pieces: u32,
    has: u32,
}

/// What can be said once the planner has taken an input in.
pub(crate) enum Noted {
    Joined { peer: PeerId, artifact: ArtifactId, pieces: u32, event: Event },
    Have { peer: PeerId, artifact: ArtifactId },
}

impl Recorder {
    pub(crate) fn new(file: &RecordFile) -> Self {
        Self {
            lines: Some(file.start()),
            numbers: BTreeMap::new(),
            next_number: 0,
            members: BTreeMap::new(),
            loads: BTreeMap::new(),
            because: BTreeSet::new(),
            plans: BTreeMap::new(),
        }
    }

    /// Takes note of what the planner is about to be told.
    pub(crate) fn note(&mut self, now: Duration, input: &Input) -> Option<Noted> {
        match input {
            Input::Register { peer, name, nic_rate, .. } => self.registered(now, (*peer, name), *nic_rate),
            Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, .. } => {
                let number = self.number(*peer)?;
                let (pieces, has) = (*piece_count, 0);
                let (bytes, origin_ok, seed) = (*bytes, *origin_ok, *is_seed);
                let digest = digest(artifact);
                let event =
                    Event::Joined { peer: number, artifact: digest, bytes, pieces, has, origin_ok, seed };
                return Some(Noted::Joined { peer: *peer, artifact: *artifact, pieces, event });
            }
            Input::Have { peer, artifact, .. } => {
                return Some(Noted::Have { peer: *peer, artifact: *artifact });
            }
            Input::Leave { peer, artifact } => {
                if self.members.remove(&(*peer, *artifact)).is_some() {
                    let number = self.number(*peer)?;
                    self.because.insert(Cause::Left);
                    self.put(now, Event::Left { peer: number, artifact: digest(artifact) });
                }
            }
            Input::Gone { peer } => {
                let number = self.numbers.remove(peer)?;
                self.members.retain(|(member, _), _| member != peer);
                self.loads.remove(peer);
                self.because.insert(Cause::Gone);
                self.put(now, Event::Gone { peer: number });
            }
            Input::Load { peer, sent, received, .. } => self.load(now, *peer, (*sent, *received)),
            Input::Complaint { peer, artifact, about, .. } => {
                self.accused(now, (*peer, *about), artifact, Charge::WrongBytes);
            }
            Input::Silence { peer, artifact, about } => {
                self.accused(now, (*peer, *about), artifact, Charge::Silence);
            }
            Input::Stall { .. } | Input::Tick => {
                self.because.insert(Cause::Time);
            }
        }
        None
    }

    /// Says what had to wait until the planner knew it.
    pub(crate) fn after(&mut self, now: Duration, noted: Noted, planner: &Planner) {
        match noted {
            Noted::Joined { peer, artifact, pieces, mut event } => {
                // What the planner refuses makes nobody a member.
                let Some(had) = planner.pieces_of(&artifact, peer) else { return };
                if let Event::Joined { has, .. } = &mut event {
                    *has = had;
                }
                self.members.insert((peer, artifact), Member { pieces, has: had });
                self.because.insert(Cause::Joined);
                self.put(now, event);
            }
            Noted::Have { peer, artifact } => {
                let (Some(number), Some(has)) = (self.number(peer), planner.pieces_of(&artifact, peer))
                else {
                    return;
                };
                let Some(member) = self.members.get_mut(&(peer, artifact)) else { return };
                let step = (member.pieces / PROGRESS_LINES).max(1);
                let is_last = has == member.pieces && member.has < has;
                if is_last || has >= member.has + step {
                    member.has = has;
                    let artifact = digest(&artifact);
                    let event = if is_last {
                        Event::Finished { peer: number, artifact }
                    } else {
                        Event::Progress { peer: number, artifact, has }
                    };
                    self.put(now, event);
                }
            }
        }
    }

    /// Takes note of a plan for a member; of several before [`Self::planned`], only the last is sent.
    pub(crate) fn plan(&mut self, to: PeerId, artifact: ArtifactId, plan: &PeerPlan) {
        self.plans.insert((artifact, to), plan.clone());
    }

    /// All plans are made that follow from what was noted.
    pub(crate) fn planned(&mut self, now: Duration) {
        let because: Vec<Cause> = std::mem::take(&mut self.because).into_iter().collect();
        for ((artifact, to), plan) in std::mem::take(&mut self.plans) {
            let Some(peer) = self.number(to) else { continue };
            let source = |source: StripeSource| match source {
                StripeSource::Origin => Some(Source::Origin(Origin::Origin)),
                StripeSource::Parent(parent) => self.number(parent).map(Source::Peer),
                StripeSource::None => None,
            };
            let sources = plan.stripes.iter().map(|part| source(part.source)).collect();
            let (artifact, epoch, because) = (digest(&artifact), plan.epoch, because.clone());
            self.put(now, Event::Planned { peer, artifact, epoch, because, sources });
        }
    }

    fn registered(&mut self, now: Duration, (peer, name): (PeerId, &str), nic_rate: Option<u64>) {
        let number = self.next_number;
        self.next_number += 1;
        self.numbers.insert(peer, number);
        let id = format!("{:032x}", u128::from_be_bytes(*peer.bytes()));
        let (name, nic_bytes_per_second) = (name.to_owned(), nic_rate);
        self.put(now, Event::Registered { peer: number, id, name, nic_bytes_per_second });
    }

    fn load(&mut self, now: Duration, peer: PeerId, load: (u64, u64)) {
        let Some(number) = self.number(peer) else { return };
        let last = self.loads.entry(peer).or_default();
        let differs = |last: u64, new: u64| last.abs_diff(new) > last.max(new) / LOAD_PART;
        if differs(last.0, load.0) || differs(last.1, load.1) {
            *last = load;
            let (sent_bytes_per_second, received_bytes_per_second) = load;
            self.put(now, Event::Load { peer: number, sent_bytes_per_second, received_bytes_per_second });
        }
    }

    fn accused(
        &mut self,
        now: Duration,
        (by, about): (PeerId, PeerId),
        artifact: &ArtifactId,
        charge: Charge,
    ) {
        let is_member = self.members.contains_key(&(by, *artifact));
        let (Some(by), Some(peer)) = (self.number(by), self.number(about)) else { return };
        if is_member {
            self.because.insert(Cause::Accused);
            self.put(now, Event::Accused { peer, artifact: digest(artifact), by, charge });
        }
    }

    fn number(&self, peer: PeerId) -> Option<u32> {
        self.numbers.get(&peer).copied()
    }

    fn put(&mut self, now: Duration, event: Event) {
        if self.lines.as_ref().is_some_and(|lines| !lines.put(Entry::new(now, event).line())) {
            self.lines = None;
        }
    }
}

fn digest(artifact: &ArtifactId) -> String {
    Sha256Digest::new(artifact.0).to_string()
}
