//! Whether a peer that reads a stripe from the origin waits for the others' stripes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, PieceLayout, Run};
use modelpack::piece_map::PieceMap;
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

const STRIPES: u32 = 4;
const PIECES: u32 = 240;
const ME: PeerId = PeerId::new([1; 16]);
const PARENT: PeerId = PeerId::new([2; 16]);

/// How long each read at the origin takes.
const TOOK: Duration = Duration::from_millis(400);

/// So many stripes, of which the first is read from the origin and the others from these parents in turn.
fn plan(stripes: u32, parents: &[PeerId]) -> PeerPlan {
    let part = |source| StripePart { source, backups: Vec::new(), before: Vec::new() };
    let member =
        |id: &PeerId| Member { id: *id, contact: Contact::new("peer:1", ""), is_seed: false, is_far: false };
    let source = |stripe: u32| match stripe.checked_sub(1) {
        None => StripeSource::Origin,
        Some(other) => StripeSource::Parent(parents[other as usize % parents.len()]),
    };
    PeerPlan {
        epoch: 1,
        stripe_pieces: 1,
        stripes: (0..stripes).map(source).map(part).collect(),
        members: parents.iter().map(member).collect(),
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

struct Play {
    swarm: Swarm,
    now: Duration,
    took: Duration,
    /// What is out at the origin.
    read: Option<(ReadId, Run)>,
    /// What is out at peers.
    asked: BTreeMap<ReadId, (PeerId, Run)>,
}

impl Play {
    fn new(stripes: u32) -> Self {
        Self::with(stripes, &[PARENT])
    }

    fn with(stripes: u32, parents: &[PeerId]) -> Self {
        let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
        let swarm = Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO);
        let mut play = Self { swarm, now: Duration::ZERO, took: TOOK, read: None, asked: BTreeMap::new() };
        play.tell(Input::OriginUp { ranges: true });
        play.tell(Input::Plan(plan(stripes, parents)));
        for peer in parents {
            play.tell(Input::LinkUp { peer: *peer, in_flight_max: 16 });
        }
        play
    }

    fn tell(&mut self, input: Input) {
        self.swarm.handle(self.now, input);
        while let Some(output) = self.swarm.poll() {
            match output {
                Output::Read { read, source: Source::Origin, run, .. } => {
                    assert_eq!(self.read.replace((read, run)), None, "one at a time");
                }
                Output::Read { read, source: Source::Peer(peer), run, .. } => {
                    self.asked.insert(read, (peer, run));
                }
                _ => {}
            }
        }
    }

    /// The origin gives what it is asked for; says how long nothing was asked before.
    fn read(&mut self) -> Duration {
        let before = self.now;
        while self.read.is_none() {
            self.now = self.swarm.next_wake().expect("somebody is to read").max(self.now);
            self.tell(Input::Tick);
        }
        let waited = self.now.saturating_sub(before);
        self.now += self.took;
        let (read, run) = self.read.take().expect("asked for");
        self.give(read, run);
        waited
    }

    fn give(&mut self, read: ReadId, run: Run) {
        for piece in run.pieces() {
            self.tell(Input::Piece { read, piece, outcome: PieceOutcome::Good });
        }
        self.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    }

    /// How many links are asked.
    fn busy(&self) -> usize {
        self.asked.values().map(|(peer, _)| peer).collect::<BTreeSet<_>>().len()
    }

    /// What links are asked for comes, one after another; says how many are asked in the end.
    fn links_give(&mut self) -> usize {
        for _ in 0..self.asked.len() {
            let (read, (_, run)) = self.asked.pop_first().expect("something is out");
            self.give(read, run);
        }
        self.busy()
    }

    /// The parent has the first so many pieces of each stripe but the first.
    fn others_have(&mut self, count: u32) {
        let pieces = (0..PIECES).filter(|piece| piece % STRIPES > 0 && piece / STRIPES < count);
        let runs = pieces.map(|piece| Run::one(PieceIndex(piece))).collect();
        self.tell(Input::Have { peer: PARENT, runs });
    }
}

#[test]
fn whoever_is_ahead_reads_half_the_time_and_not_less() {
    let mut play = Play::new(STRIPES);
    let waits: Vec<Duration> = (0..8).map(|_| play.read()).collect();
    let (none, half) = (Duration::ZERO, TOOK / 2);
    assert_eq!(waits[..5], [none, none, half, TOOK, TOOK], "one piece is free, each further one costs");
    assert_eq!(waits[5..], [TOOK; 3], "what others cannot read would be lost");
}

#[test]
fn what_comes_faster_than_news_is_no_lead() {
    let mut play = Play::new(STRIPES);
    play.took = Duration::from_micros(500);
    let waits: Vec<Duration> = (0..6).map(|_| play.read()).collect();
    assert_eq!(waits[..5], [Duration::ZERO; 5], "news of four pieces may be on their way");
    assert!(waits[5] > Duration::ZERO, "{waits:?}");
}

#[test]
fn whoever_gets_ever_further_ahead_though_it_waits_stops_waiting() {
    let mut play = Play::new(STRIPES);
    let waits: Vec<Duration> = (0..20).map(|_| play.read()).collect();
    assert_eq!(waits[12], TOOK);
    assert_eq!(waits[13..], [Duration::ZERO; 7], "they cannot read faster");
}

#[test]
fn whoever_was_ahead_goes_on_when_the_others_have_come() {
    let mut play = Play::new(STRIPES);
    for _ in 0..5 {
        play.read();
    }
    play.others_have(20);
    assert_eq!(play.read(), TOOK, "as it was told");
    assert!((0..12).all(|_| play.read() == Duration::ZERO));
}

#[test]
fn whoever_is_abreast_or_has_nobody_to_compare_with_never_waits() {
    let mut play = Play::new(STRIPES);
    for count in 1..20 {
        play.others_have(count);
        assert_eq!(play.read(), Duration::ZERO, "piece {count}");
    }
    let mut play = Play::new(3);
    assert!((0..20).all(|_| play.read() == Duration::ZERO), "two others are too few");
}

#[test]
fn whoever_is_behind_asks_fewer_links_until_it_has_caught_up() {
    let parents: Vec<PeerId> = (2..10).map(|id| PeerId::new([id; 16])).collect();
    let mut play = Play::with(9, &parents);
    for (number, peer) in (1..).zip(&parents) {
        let theirs = (0..PIECES).filter(|piece| piece % 9 == number).take(20);
        play.tell(Input::Have {
            peer: *peer,
            runs: theirs.map(|piece| Run::one(PieceIndex(piece))).collect(),
        });
    }
    assert_eq!(play.busy(), 8, "nobody knows yet how fast the origin is");
    assert_eq!(play.links_give(), 8);
    play.read();
    assert_eq!(play.links_give(), 6, "others have twenty pieces of each stripe");
    assert_eq!(play.links_give(), 6);
    for piece in 2..20 {
        play.read();
        assert_eq!(play.busy(), 6, "piece {piece}");
    }
    play.read();
    assert_eq!(play.busy(), 8, "it has caught up");
}
