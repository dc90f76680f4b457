//! Links that break though both ends live: opened again at once, and until that has failed the origin is not read for what
//! the other end had.

use std::time::Duration;

use modelpack::{
    layout::{PIECE_BYTES, PieceIndex, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

const PIECES: u32 = 16;
/// What the other one has.
const HELD: Run = Run { start: PieceIndex(4), end: PieceIndex(10) };
const ME: PeerId = PeerId::new([1; 16]);
const OTHER: PeerId = PeerId::new([2; 16]);
const BACKUP: PeerId = PeerId::new([3; 16]);
const NOW: Duration = Duration::from_millis(5);

/// An entrant that is linked to somebody who has pieces of its stripe.
struct Scene {
    swarm: Swarm,
    now: Duration,
    connects: u32,
    /// How often a backup was linked that nobody needs while all is well.
    backups: u32,
    /// What is out at the origin, and all that was ever asked of it.
    out_at_origin: Vec<(ReadId, Run)>,
    first_hand: Vec<Run>,
    out_at_other: Vec<(ReadId, Run)>,
}

impl Scene {
    fn new() -> Self {
        Self::with(vec![StripePart {
            source: StripeSource::Origin,
            backups: vec![OTHER],
            before: Vec::new(),
        }])
    }

    fn with(stripes: Vec<StripePart>) -> Self {
        let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
        let swarm = Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO);
        let (out_at_origin, first_hand, out_at_other) = (Vec::new(), Vec::new(), Vec::new());
        let mut scene =
            Self { swarm, now: NOW, connects: 0, backups: 0, out_at_origin, first_hand, out_at_other };
        let member = |id| Member { id, contact: Contact::new("a:1", ""), is_seed: false, is_far: false };
        scene.tell(Input::OriginUp { ranges: true });
        scene.tell(Input::Plan(PeerPlan {
            epoch: 1,
            stripe_pieces: 1,
            stripes,
            members: vec![member(OTHER), member(BACKUP)],
            quarantined: Vec::new(),
            finish: None,
            bound: None,
            priority: planner::Priority::default(),
        }));
        assert_eq!(scene.connects, 1);
        scene.open();
        scene
    }

    fn tell(&mut self, input: Input) {
        self.swarm.handle(self.now, input);
        while let Some(output) = self.swarm.poll() {
            match output {
                Output::Connect { peer: OTHER, .. } => self.connects += 1,
                Output::Connect { peer: BACKUP, .. } => self.backups += 1,
                Output::Read { read, source: Source::Origin, run, .. } => {
                    self.out_at_origin.push((read, run));
                    self.first_hand.push(run);
                }
                Output::Read { read, run, .. } => self.out_at_other.push((read, run)),
                _ => {}
            }
        }
    }

    fn open(&mut self) {
        self.tell(Input::LinkUp { peer: OTHER, in_flight_max: 1 });
        self.tell(Input::Have { peer: OTHER, runs: vec![HELD] });
        self.tell(Input::Coming { peer: OTHER, epoch: 1, runs: Vec::new() });
    }

    /// The link breaks, with what is out on it.
    fn break_link(&mut self) {
        self.tell(Input::LinkDown { peer: OTHER });
        for (read, _) in std::mem::take(&mut self.out_at_other) {
            self.tell(Input::ReadEnded { read, outcome: ReadOutcome::SourceGone });
        }
    }

    /// The origin gives whatever it is asked for, as long as it is asked for more.
    fn serve_first_hand(&mut self) {
        while let Some((read, run)) = self.out_at_origin.pop() {
            for piece in run.pieces() {
                self.tell(Input::Piece { read, piece, outcome: PieceOutcome::Good });
            }
            self.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
        }
    }

    /// Whether the origin was asked for anything that the other one has.
    fn is_read_twice(&self) -> bool {
        self.first_hand.iter().flat_map(Run::pieces).any(|piece| HELD.contains(piece))
    }
}

#[test]
fn a_link_that_breaks_is_opened_at_once_and_nothing_is_read_twice() {
    let mut scene = Scene::new();
    scene.break_link();
    assert_eq!(scene.connects, 2, "nobody waits with it");
    scene.serve_first_hand();
    scene.tell(Input::LinkUp { peer: OTHER, in_flight_max: 1 });
    assert!(!scene.is_read_twice(), "it has not said yet what it has: {:?}", scene.first_hand);
    scene.open();
    assert!(!scene.out_at_other.is_empty(), "it is asked again");
    assert!(!scene.is_read_twice(), "{:?}", scene.first_hand);
}

#[test]
fn a_link_that_cannot_be_opened_again_is_not_waited_for() {
    let mut scene = Scene::new();
    scene.break_link();
    scene.tell(Input::LinkDown { peer: OTHER });
    assert_eq!(scene.connects, 2, "who cannot be reached is not tried again at once");
    scene.serve_first_hand();
    assert!(scene.is_read_twice(), "nobody else can give it: {:?}", scene.first_hand);
}

#[test]
fn a_link_that_does_not_come_up_is_waited_for_a_second_at_most() {
    let mut scene = Scene::new();
    scene.break_link();
    while !scene.is_read_twice() {
        scene.now = scene.swarm.next_wake().expect("it waits for something").max(scene.now);
        assert!(scene.now <= NOW + Duration::from_secs(1), "it waits for {:?}", scene.now);
        scene.tell(Input::Tick);
        scene.serve_first_hand();
    }
}

#[test]
fn a_link_that_breaks_again_without_a_good_piece_is_opened_later() {
    let mut scene = Scene::new();
    scene.break_link();
    scene.open();
    scene.break_link();
    assert_eq!(scene.connects, 2);

    let mut scene = Scene::new();
    scene.break_link();
    scene.open();
    let (read, run) = scene.out_at_other.remove(0);
    scene.tell(Input::Piece { read, piece: run.start, outcome: PieceOutcome::Good });
    scene.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    scene.break_link();
    assert_eq!(scene.connects, 3, "it was of use in between");
}

#[test]
fn backups_are_linked_without_waiting_for_a_parent_whose_link_broke() {
    let part = |backups| StripePart { source: StripeSource::Parent(OTHER), backups, before: Vec::new() };
    let mut stripes = vec![part(Vec::new()); 8];
    stripes[7] = part(vec![BACKUP]);
    let mut scene = Scene::with(stripes);
    assert_eq!(scene.backups, 0);
    scene.break_link();
    assert_eq!((scene.connects, scene.backups), (2, 1), "the parent may be gone");
}
