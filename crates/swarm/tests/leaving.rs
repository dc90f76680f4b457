//! A parent that says farewell in the middle: what is on its way arrives, everything else is had elsewhere, and nothing
//! is read twice.

use std::{collections::BTreeMap, time::Duration};

use modelpack::{
    layout::{PIECE_BYTES, PieceIndex, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

const PIECES: u32 = 64;
const ME: PeerId = PeerId::new([1; 16]);
const PARENT: PeerId = PeerId::new([2; 16]);

fn plan(epoch: u64, source: StripeSource, members: &[PeerId]) -> PeerPlan {
    let member =
        |id: &PeerId| Member { id: *id, contact: Contact::new("a:1", ""), is_seed: false, is_far: false };
    PeerPlan {
        epoch,
        stripe_pieces: 4,
        stripes: vec![StripePart { source, backups: Vec::new(), before: Vec::new() }; 2],
        members: members.iter().map(member).collect(),
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

/// A swarm at a moment of its clock, and the reads that are out.
struct Scene {
    swarm: Swarm,
    now: Duration,
    out: BTreeMap<ReadId, (Source, Run)>,
    is_linked: bool,
    /// How often each piece was asked of anybody.
    asked: Vec<u32>,
}

impl Scene {
    /// One whose parent has everything, and whose reads are out there.
    fn reading() -> Self {
        let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
        let swarm = Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO);
        let asked = vec![0; PIECES as usize];
        let mut scene = Self { swarm, now: Duration::ZERO, out: BTreeMap::new(), is_linked: false, asked };
        scene.tell(Input::OriginUp { ranges: true });
        scene.tell(Input::Plan(plan(1, StripeSource::Parent(PARENT), &[PARENT])));
        scene.tell(Input::LinkUp { peer: PARENT, in_flight_max: 16 });
        scene.tell(Input::Have { peer: PARENT, runs: vec![Run::new(0, PIECES)] });
        assert!(scene.is_linked && !scene.out.is_empty());
        scene
    }

    fn tell(&mut self, input: Input) {
        self.swarm.handle(self.now, input);
        while let Some(output) = self.swarm.poll() {
            match output {
                Output::Connect { peer: PARENT, .. } => self.is_linked = true,
                Output::Disconnect { peer: PARENT } => self.is_linked = false,
                Output::Read { read, source, run, .. } => {
                    for piece in run.pieces() {
                        self.asked[piece.0 as usize] += 1;
                    }
                    self.out.insert(read, (source, run));
                }
                _ => {}
            }
        }
    }

    fn out_at(&self, source: Source) -> Vec<ReadId> {
        self.out.iter().filter(|(_, (at, _))| *at == source).map(|(read, _)| *read).collect()
    }

    fn arrive(&mut self, read: ReadId) {
        let (_, run) = self.out.remove(&read).expect("it is out");
        for piece in run.pieces() {
            self.tell(Input::Piece { read, piece, outcome: PieceOutcome::Good });
        }
        self.tell(Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    }

    fn has(&self, run: Run) -> bool {
        self.swarm.have().contains_run(run)
    }
}

#[test]
fn what_was_asked_of_a_parent_that_leaves_arrives_and_nothing_is_read_twice() {
    let mut scene = Scene::reading();
    let before = scene.out_at(Source::Peer(PARENT));
    scene.tell(Input::LinkLeaving { peer: PARENT });
    scene.tell(Input::Have { peer: PARENT, runs: vec![Run::new(0, PIECES)] });
    assert!(scene.is_linked, "it is waited for");
    // The scheduler has heard it too: from now on this peer reads the origin.
    scene.tell(Input::Plan(plan(2, StripeSource::Origin, &[])));
    while let Some(read) = scene.out_at(Source::Origin).first() {
        scene.arrive(*read);
    }
    assert_eq!(scene.out_at(Source::Peer(PARENT)), before, "it is asked for nothing more");
    for (number, read) in (1..).zip(&before) {
        assert!(scene.is_linked, "until read {number} of {}", before.len());
        scene.arrive(*read);
    }
    assert!(!scene.is_linked, "the parent need not wait any longer");
    assert!(scene.has(Run::new(0, PIECES)));
    assert!(scene.asked.iter().all(|count| *count == 1), "{:?}", scene.asked);
}

#[test]
fn a_parent_that_leaves_and_stalls_is_not_waited_for() {
    let mut scene = Scene::reading();
    scene.tell(Input::LinkLeaving { peer: PARENT });
    let late: Vec<(ReadId, Run)> = scene.out.iter().map(|(read, (_, run))| (*read, *run)).collect();
    scene.tell(Input::Plan(plan(2, StripeSource::Origin, &[])));
    while scene.is_linked {
        scene.now = scene.swarm.next_wake().expect("a stalled link is noticed by its time");
        assert!(scene.now < Duration::from_secs(5), "{:?}", scene.now);
        scene.tell(Input::Tick);
    }
    for (read, _) in &late {
        scene.out.remove(read);
        scene.tell(Input::ReadEnded { read: *read, outcome: ReadOutcome::SourceGone });
    }
    while let Some(read) = scene.out_at(Source::Origin).first() {
        scene.arrive(*read);
    }
    assert!(late.iter().all(|(_, run)| scene.has(*run)) && scene.has(Run::one(PieceIndex(PIECES - 1))));
}
