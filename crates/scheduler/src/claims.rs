//! Who reads the description of an artifact at the origin, so that a fleet asks for it once.
//!
//! Owns: the election of one among those who can, who waits for what that one learns, and who knows what a name of a hub
//! stands for. Does not own: who is a member of a swarm (`planner`), or what a description is.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use planner::{ArtifactId, PeerId};
use tokio::sync::oneshot;

/// How long an elected peer may take until it joins: a manifest, a config and trees, over a slow line. Then the next is
/// elected as well.
const CLAIM_EXPIRES: Duration = Duration::from_secs(2);

/// How long anybody waits: beyond, it reads the origin by itself.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Peers that are sent to each new member for its description: they become members and serve others in turn.
const ASKERS_PER_MEMBER: usize = 4;

/// Artifacts that are waited for at a time.
const ARTIFACTS_MAX: usize = 1024;

/// Names of hubs that somebody knows: two for each model that the fleet is loading, and those of a day besides.
const NAMES_MAX: usize = 4096;

/// Peers that are remembered for a name: enough to find one that still lives.
const KNOWING_MAX: usize = 16;

/// The longest that a peer's word is handed on: a commit of a hub stays what it is.
const HOLDS_MAX: Duration = Duration::from_hours(24);

/// What a peer that offers to read the origin is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Ask these members; none: nobody is known.
    Holders(Vec<String>),
    /// It is the one that reads it there.
    ReadOrigin,
}

/// Where an answer goes.
pub(crate) type Reply = oneshot::Sender<Found>;

/// One artifact.
#[derive(Debug, Default)]
struct Claim {
    elected: Option<(PeerId, Instant)>,
    waiting: VecDeque<(PeerId, Instant, Reply)>,
}

impl Claim {
    fn elect(&mut self, now: Instant) {
        self.elected = None;
        while let Some((peer, _, reply)) = self.waiting.pop_front() {
            // Who has given up waiting is passed over.
            if reply.send(Found::ReadOrigin).is_ok() {
                self.elected = Some((peer, now));
                return;
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.elected.is_none() && self.waiting.is_empty()
    }

    fn wake(&self) -> Option<Instant> {
        let expires =
            self.elected.filter(|_| !self.waiting.is_empty()).map(|(_, since)| since + CLAIM_EXPIRES);
        let given_up = self.waiting.front().map(|(_, since, _)| *since + WAIT_MAX);
        expires.into_iter().chain(given_up).min()
    }
}

/// Who knows what a name of a hub stands for.
#[derive(Debug)]
struct Known {
    until: Instant,
    peers: VecDeque<PeerId>,
}

/// All names of hubs that somebody knows.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<ArtifactId, Known>);

impl Names {
    /// A peer knows what a name stands for. For how long, the first says who asked the hub: the others have it from that
    /// one.
    pub(crate) fn known(&mut self, now: Instant, name: ArtifactId, (peer, holds): (PeerId, Duration)) {
        self.0.retain(|_, known| now < known.until);
        if self.0.len() >= NAMES_MAX && !self.0.contains_key(&name) {
            let first = self.0.iter().min_by_key(|(_, known)| known.until).map(|(name, _)| *name);
            first.and_then(|first| self.0.remove(&first));
        }
        let until = now + holds.min(HOLDS_MAX);
        let known = self.0.entry(name).or_insert_with(|| Known { until, peers: VecDeque::new() });
        known.peers.retain(|other| *other != peer);
        // The latest is asked first, and is likely to be idle.
        known.peers.push_front(peer);
        known.peers.truncate(KNOWING_MAX);
    }

    /// Who knows it, but the asker.
    pub(crate) fn knowing(
        &self,
        now: Instant,
        name: &ArtifactId,
        asker: Option<PeerId>,
    ) -> impl Iterator<Item = PeerId> {
        let known = self.0.get(name).filter(|known| now < known.until);
        let peers = known.into_iter().flat_map(|known| &known.peers).copied();
        peers.filter(move |peer| Some(*peer) != asker)
    }

    /// A peer's stream has ended.
    pub(crate) fn gone(&mut self, peer: PeerId) {
        for known in self.0.values_mut() {
            known.peers.retain(|other| *other != peer);
        }
        self.0.retain(|_, known| !known.peers.is_empty());
    }
}

/// All artifacts whose description is being read for others.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<ArtifactId, Claim>);

impl Claims {
    /// A peer could read an artifact that no member can describe: it is elected, or waits.
    pub(crate) fn offer(&mut self, now: Instant, artifact: ArtifactId, (peer, reply): (PeerId, Reply)) {
        if self.0.len() >= ARTIFACTS_MAX && !self.0.contains_key(&artifact) {
            let _ = reply.send(Found::ReadOrigin);
            return;
        }
        let claim = self.0.entry(artifact).or_default();
        claim.waiting.push_back((peer, now, reply));
        if claim.elected.is_none_or(|(_, since)| now >= since + CLAIM_EXPIRES) {
            claim.elect(now);
        }
    }

    /// The elected peer could not read it.
    pub(crate) fn failed(&mut self, now: Instant, artifact: ArtifactId, peer: PeerId) {
        if let Some(claim) =
            self.0.get_mut(&artifact).filter(|at| at.elected.is_some_and(|(by, _)| by == peer))
        {
            claim.elect(now);
        }
        self.0.retain(|_, claim| !claim.is_idle());
    }

    /// A peer joined: some of those who wait may ask it.
    pub(crate) fn joined(&mut self, artifact: ArtifactId, peer: PeerId) -> Vec<Reply> {
        let Some(claim) = self.0.get_mut(&artifact) else { return Vec::new() };
        claim.elected = claim.elected.filter(|(by, _)| *by != peer);
        let count = claim.waiting.len().min(ASKERS_PER_MEMBER);
        let replies = claim.waiting.drain(..count).map(|(_, _, reply)| reply).collect();
        self.0.retain(|_, claim| !claim.is_idle());
        replies
    }

    /// A peer's stream has ended.
    pub(crate) fn gone(&mut self, now: Instant, peer: PeerId) {
        let theirs: Vec<ArtifactId> = self.0.keys().copied().collect();
        for artifact in theirs {
            self.failed(now, artifact, peer);
        }
    }

    /// Time passes: those who have waited long enough are given back.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<(ArtifactId, Reply)> {
        let mut given_up = Vec::new();
        for (artifact, claim) in &mut self.0 {
            while claim.waiting.front().is_some_and(|(_, since, _)| now >= *since + WAIT_MAX) {
                given_up.extend(claim.waiting.pop_front().map(|(_, _, reply)| (*artifact, reply)));
            }
            if claim.elected.is_some_and(|(_, since)| now >= since + CLAIM_EXPIRES) {
                claim.elect(now);
            }
        }
        self.0.retain(|_, claim| !claim.is_idle());
        given_up
    }

    /// When [`Self::tick`] is due.
    pub(crate) fn next_wake(&self) -> Option<Instant> {
        self.0.values().filter_map(Claim::wake).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

    fn id(number: u8) -> PeerId {
        PeerId::new([number; 16])
    }

    fn offer(claims: &mut Claims, now: Instant, number: u8) -> oneshot::Receiver<Found> {
        let (reply, answer) = oneshot::channel();
        claims.offer(now, ARTIFACT, (id(number), reply));
        answer
    }

    fn is_elected(answer: &mut oneshot::Receiver<Found>) -> bool {
        answer.try_recv().is_ok_and(|found| found == Found::ReadOrigin)
    }

    #[test]
    fn a_name_is_known_for_as_long_as_the_first_says_and_while_somebody_lives() {
        let (mut names, now) = (Names::default(), Instant::now());
        let (second, minute) = (Duration::from_secs(1), Duration::from_mins(1));
        let knowing = |names: &Names, after: Duration, asker: Option<u8>| {
            names.knowing(now + after, &ARTIFACT, asker.map(id)).collect::<Vec<_>>()
        };
        assert_eq!(knowing(&names, Duration::ZERO, None), []);
        names.known(now, ARTIFACT, (id(1), minute));
        names.known(now + 30 * second, ARTIFACT, (id(2), minute));
        assert_eq!(knowing(&names, 59 * second, None), [id(2), id(1)]);
        assert_eq!(knowing(&names, 59 * second, Some(2)), [id(1)]);
        assert_eq!(knowing(&names, minute, None), [], "the second has it from the first");
        names.known(now + minute, ARTIFACT, (id(3), minute));
        assert_eq!(knowing(&names, minute, None), [id(3)]);
        names.gone(id(3));
        assert!(names.0.is_empty());
        for number in 0..=NAMES_MAX {
            let mut name = [0; 32];
            name[..8].copy_from_slice(&number.to_le_bytes());
            names.known(now, ArtifactId(name), (id(1), second));
        }
        assert_eq!(names.0.len(), NAMES_MAX);
    }

    #[test]
    fn one_is_elected_and_its_joining_frees_some_who_wait() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        let mut answers: Vec<_> = (0..10).map(|number| offer(&mut claims, now, number)).collect();
        assert!(is_elected(&mut answers[0]));
        assert!(answers[1..].iter_mut().all(|answer| answer.try_recv().is_err()));
        assert_eq!(claims.joined(ARTIFACT, id(0)).len(), ASKERS_PER_MEMBER);
        assert_eq!(claims.joined(ARTIFACT, id(1)).len(), ASKERS_PER_MEMBER);
        assert_eq!(claims.joined(ARTIFACT, id(2)).len(), 1);
        assert!(claims.0.is_empty());
    }

    #[test]
    fn the_next_is_elected_when_one_fails_goes_or_takes_too_long() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        let mut answers: Vec<_> = (0..5).map(|number| offer(&mut claims, now, number)).collect();
        drop(answers.remove(1));
        assert!(is_elected(&mut answers[0]));
        claims.failed(now, ARTIFACT, id(3));
        assert!(!is_elected(&mut answers[1]), "only the elected one can fail");
        claims.failed(now, ARTIFACT, id(0));
        assert!(is_elected(&mut answers[1]), "who has given up is passed over");
        claims.gone(now, id(2));
        assert!(is_elected(&mut answers[2]));
        assert_eq!(claims.next_wake(), Some(now + CLAIM_EXPIRES));
        assert!(claims.tick(now + CLAIM_EXPIRES).is_empty());
        assert!(is_elected(&mut answers[3]));
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (mut claims, now) = (Claims::default(), Instant::now());
        let mut elected = offer(&mut claims, now, 0);
        let _waits = [offer(&mut claims, now, 1), offer(&mut claims, now, 2), offer(&mut claims, now, 3)];
        assert!(is_elected(&mut elected));
        assert_eq!(claims.tick(now + WAIT_MAX).len(), 3);
    }
}
