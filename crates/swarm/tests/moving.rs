//! A link that ends in order to be opened anew in another way: at once, and without a word about the other end.

use std::{collections::BTreeMap, time::Duration};

use modelpack::{
    layout::{PIECE_BYTES, PieceLayout, Run},
    piece_map::PieceMap,
};
use planner::{Contact, Member, PeerId, PeerPlan, StripePart, StripeSource};
use swarm::{Config, Input, Output, PieceOutcome, ReadId, ReadOutcome, Source, Swarm};

const PIECES: u32 = 24;
const ME: PeerId = PeerId::new([1; 16]);
const PARENT: PeerId = PeerId::new([2; 16]);

#[derive(Default)]
struct Said {
    connects: u32,
    disconnects: u32,
    reads: BTreeMap<ReadId, Run>,
}

fn swarm() -> Swarm {
    let layout = PieceLayout::new(vec![u64::from(PIECES) * PIECE_BYTES]).expect("a small artifact");
    Swarm::new(Config::new(ME, 7), layout, PieceMap::empty(PIECES), Duration::ZERO)
}

fn plan() -> PeerPlan {
    let contact = Contact::new("a:1", "");
    let source = StripeSource::Parent(PARENT);
    PeerPlan {
        epoch: 1,
        stripe_pieces: 4,
        stripes: vec![StripePart { source, backups: Vec::new(), before: Vec::new() }],
        members: vec![Member { id: PARENT, contact, is_seed: false, is_far: false }],
        quarantined: Vec::new(),
        finish: None,
        bound: None,
        priority: planner::Priority::default(),
    }
}

/// What comes of an input at the beginning of time, where it always is.
fn tell(swarm: &mut Swarm, input: Input) -> Said {
    let mut said = Said::default();
    swarm.handle(Duration::ZERO, input);
    while let Some(output) = swarm.poll() {
        match output {
            Output::Connect { peer: PARENT, .. } => said.connects += 1,
            Output::Disconnect { peer: PARENT } => said.disconnects += 1,
            Output::Read { read, source, run, .. } => {
                assert_eq!(source, Source::Peer(PARENT), "the origin is not this peer's share");
                said.reads.insert(read, run);
            }
            _ => {}
        }
    }
    said
}

fn come_up(swarm: &mut Swarm) -> Said {
    tell(swarm, Input::LinkUp { peer: PARENT, in_flight_max: 16 });
    tell(swarm, Input::Have { peer: PARENT, runs: vec![Run::new(0, PIECES)] })
}

#[test]
fn a_link_that_moves_is_opened_at_once_and_everything_is_read_there() {
    let mut swarm = swarm();
    tell(&mut swarm, Input::OriginUp { ranges: true });
    assert_eq!(tell(&mut swarm, Input::Plan(plan())).connects, 1);
    let old = come_up(&mut swarm).reads;
    assert!(!old.is_empty());
    assert_eq!(tell(&mut swarm, Input::LinkMoved { peer: PARENT }).connects, 1, "no time has passed");
    // How the old reads end is no news of the new link.
    for read in old.keys() {
        let said = tell(&mut swarm, Input::ReadEnded { read: *read, outcome: ReadOutcome::Ok });
        assert_eq!((said.connects, said.disconnects), (0, 0));
    }
    let mut reads = come_up(&mut swarm).reads;
    while let Some((read, run)) = reads.pop_first() {
        for piece in run.pieces() {
            reads.extend(tell(&mut swarm, Input::Piece { read, piece, outcome: PieceOutcome::Good }).reads);
        }
        reads.extend(tell(&mut swarm, Input::ReadEnded { read, outcome: ReadOutcome::Ok }).reads);
    }
    assert!(swarm.have().is_full());
}

#[test]
fn a_link_that_never_comes_up_does_not_move_for_ever() {
    let mut swarm = swarm();
    tell(&mut swarm, Input::OriginUp { ranges: true });
    assert_eq!(tell(&mut swarm, Input::Plan(plan())).connects, 1);
    assert_eq!(
        tell(&mut swarm, Input::LinkMoved { peer: PARENT }).connects,
        0,
        "it waits like one that failed"
    );
    assert!(swarm.next_wake().is_some_and(|at| at > Duration::ZERO));
    assert_eq!(tell(&mut swarm, Input::LinkMoved { peer: PARENT }).connects, 0, "said twice");
}
