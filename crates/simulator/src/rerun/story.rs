//! Finds the broadcasts in a record. Does not own what becomes of them.

use std::collections::BTreeMap;
use std::time::Duration;

use record::{Entry, Event, Record};

use super::{Broadcast, Card, End, Member};

/// A pace counts from this part of an artifact on: of less, the first round trips say little.
const PACE_PART: u32 = 8;

/// The broadcasts in a record, in the order in which they began.
pub fn broadcasts(record: &Record) -> Vec<Broadcast> {
    let mut story = Story::default();
    for entry in &record.entries {
        story.tell(entry);
    }
    let artifacts: Vec<String> = story.swarms.keys().cloned().collect();
    for artifact in artifacts {
        story.close(&artifact);
    }
    story.over.sort_by_key(|broadcast| broadcast.begin);
    story.over
}

/// A peer, whatever its number was. It may come again.
#[derive(Default)]
struct Peer {
    name: String,
    declared: Option<u64>,
    /// The most that it was seen to send or receive, in bytes per second.
    seen: u64,
}

impl Peer {
    fn card(&self) -> Option<Card> {
        let seen = (self.seen > 0).then_some(Card::Seen(self.seen));
        self.declared.map(Card::Declared).or(seen)
    }
}

/// An artifact, who has or wants it, and the broadcast of it that is under way.
struct Swarm {
    bytes: u64,
    pieces: u32,
    /// The pieces that each has, by id.
    present: BTreeMap<String, u32>,
    now: Option<Now>,
}

/// A broadcast under way.
struct Now {
    begin: Duration,
    ids: Vec<String>,
    members: Vec<Member>,
    holders: Vec<String>,
    best_pace: u64,
    plans: u32,
}

impl Now {
    fn member(&mut self, id: &str) -> Option<&mut Member> {
        let at = self.ids.iter().position(|member| member == id)?;
        self.members.get_mut(at)
    }
}

#[derive(Default)]
struct Story {
    ids: BTreeMap<u32, String>,
    peers: BTreeMap<String, Peer>,
    swarms: BTreeMap<String, Swarm>,
    over: Vec<Broadcast>,
}

impl Story {
    fn tell(&mut self, entry: &Entry) {
        let at = entry.at();
        match &entry.event {
            Event::Registered { peer, id, name, nic_bytes_per_second } => {
                self.ids.insert(*peer, id.clone());
                let known = self.peers.entry(id.clone()).or_default();
                known.name.clone_from(name);
                known.declared = *nic_bytes_per_second;
            }
            Event::Gone { peer } => {
                let Some(id) = self.ids.remove(peer) else { return };
                let artifacts: Vec<String> = self.swarms.keys().cloned().collect();
                for artifact in artifacts {
                    self.left(at, &id, &artifact);
                }
            }
            Event::Joined { peer, artifact, bytes, pieces, has, .. } => {
                let Some(id) = self.ids.get(peer).cloned() else { return };
                self.swarms.entry(artifact.clone()).or_insert_with(|| Swarm {
                    bytes: *bytes,
                    pieces: *pieces,
                    present: BTreeMap::new(),
                    now: None,
                });
                self.joined(at, &id, artifact, *has);
            }
            Event::Progress { peer, artifact, has } => self.has(at, *peer, artifact, *has),
            Event::Finished { peer, artifact } => {
                let Some(swarm) = self.swarms.get(artifact) else { return };
                self.has(at, *peer, artifact, swarm.pieces);
            }
            Event::Left { peer, artifact } => {
                let Some(id) = self.ids.get(peer).cloned() else { return };
                self.left(at, &id, artifact);
            }
            Event::Load { peer, sent_bytes_per_second, received_bytes_per_second } => {
                let Some(known) = self.ids.get(peer).and_then(|id| self.peers.get_mut(id)) else { return };
                known.seen = known.seen.max(*sent_bytes_per_second).max(*received_bytes_per_second);
            }
            Event::Planned { artifact, .. } => {
                if let Some(now) = self.swarms.get_mut(artifact).and_then(|swarm| swarm.now.as_mut()) {
                    now.plans += 1;
                }
            }
            Event::Accused { .. } | Event::Unknown => {}
        }
    }

    fn joined(&mut self, at: Duration, id: &str, artifact: &str, has: u32) {
        let Some(swarm) = self.swarms.get_mut(artifact) else { return };
        swarm.present.insert(id.to_owned(), has);
        if has >= swarm.pieces {
            match &mut swarm.now {
                // It was here before, and its stream broke meanwhile.
                Some(now) if now.ids.iter().any(|member| member == id) => self.finished(at, id, artifact),
                Some(now) => now.holders.push(id.to_owned()),
                None => {}
            }
            return;
        }
        let now = swarm.now.get_or_insert_with(|| {
            let holders = swarm.present.iter().filter(|(_, has)| **has >= swarm.pieces);
            let holders = holders.map(|(id, _)| id.clone()).collect();
            Now { begin: at, ids: Vec::new(), members: Vec::new(), holders, best_pace: 0, plans: 0 }
        });
        if let Some(member) = now.member(id) {
            member.end = End::Open;
            return;
        }
        let name = self.peers.get(id).map(|peer| peer.name.clone()).unwrap_or_default();
        let joined = at.saturating_sub(now.begin);
        now.ids.push(id.to_owned());
        now.members.push(Member { name, joined, has, end: End::Open, card: None });
    }

    fn has(&mut self, at: Duration, peer: u32, artifact: &str, has: u32) {
        let Some(id) = self.ids.get(&peer).cloned() else { return };
        let Some(swarm) = self.swarms.get_mut(artifact) else { return };
        swarm.present.insert(id.clone(), has);
        let (bytes, pieces) = (swarm.bytes, swarm.pieces);
        let Some(now) = &mut swarm.now else { return };
        let since = at.saturating_sub(now.begin);
        let Some(member) = now.member(&id) else { return };
        let gained = has.saturating_sub(member.has);
        if gained >= pieces.div_ceil(PACE_PART) {
            let gained = u128::from(bytes) * u128::from(gained) / u128::from(pieces);
            let pace = |since: Duration| {
                let pace = (gained * 1_000_000_000).checked_div(since.as_nanos());
                pace.and_then(|pace| u64::try_from(pace).ok()).unwrap_or_default()
            };
            let own = pace(since.saturating_sub(member.joined));
            now.best_pace = now.best_pace.max(pace(since));
            if let Some(peer) = self.peers.get_mut(&id) {
                peer.seen = peer.seen.max(own);
            }
        }
        if has >= pieces {
            self.finished(at, &id, artifact);
        }
    }

    fn finished(&mut self, at: Duration, id: &str, artifact: &str) {
        self.end(id, artifact, |begin| End::Finished(at.saturating_sub(begin)));
    }

    fn left(&mut self, at: Duration, id: &str, artifact: &str) {
        if let Some(swarm) = self.swarms.get_mut(artifact) {
            swarm.present.remove(id);
        }
        self.end(id, artifact, |begin| End::Left(at.saturating_sub(begin)));
    }

    /// What became of a member, unless it is known; of the last one, what became of the broadcast.
    fn end(&mut self, id: &str, artifact: &str, end: impl Fn(Duration) -> End) {
        let Some(now) = self.swarms.get_mut(artifact).and_then(|swarm| swarm.now.as_mut()) else { return };
        let begin = now.begin;
        let Some(member) = now.member(id).filter(|member| !matches!(member.end, End::Finished(_))) else {
            return;
        };
        member.end = end(begin);
        if now.members.iter().all(|member| member.end != End::Open) {
            self.close(artifact);
        }
    }

    fn close(&mut self, artifact: &str) {
        let Some(swarm) = self.swarms.get_mut(artifact) else { return };
        let Some(mut now) = swarm.now.take() else { return };
        let card = |id: &String| self.peers.get(id).and_then(Peer::card);
        for (member, id) in now.members.iter_mut().zip(&now.ids) {
            member.card = card(id);
        }
        let rates = now.holders.iter().map(|id| card(id).map(Card::rate));
        let holders_rate = rates.collect::<Option<Vec<u64>>>().map(|rates| rates.iter().sum());
        self.over.push(Broadcast {
            artifact: artifact.to_owned(),
            bytes: swarm.bytes,
            pieces: swarm.pieces,
            begin: now.begin,
            members: now.members,
            holders: u32::try_from(now.holders.len()).unwrap_or(u32::MAX),
            holders_rate: holders_rate.filter(|rate| *rate > 0),
            best_pace: (now.best_pace > 0).then_some(now.best_pace),
            plans: now.plans,
        });
    }
}
