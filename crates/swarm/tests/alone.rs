//! How a swarm without peers asks the origin.

use std::{collections::VecDeque, time::Duration};

use modelpack::{
    layout::{PIECE_BYTES, PieceLayout},
    piece_map::PieceMap,
};
use planner::PeerId;
use swarm::{Config, Input, Output, PieceOutcome, ReadOutcome, Swarm};

/// Pulls blobs of so many pieces, reads ending in the order in which they began; gives how many pieces each read had,
/// and how many reads were out at once.
fn lengths(blobs: &[u32]) -> (Vec<u32>, usize) {
    let layout = PieceLayout::new(blobs.iter().map(|pieces| u64::from(*pieces) * PIECE_BYTES).collect());
    let layout = layout.expect("a small artifact");
    let have = PieceMap::empty(layout.piece_count());
    let config = Config { standalone: true, ..Config::new(PeerId::new([1; 16]), 7) };
    let mut swarm = Swarm::new(config, layout, have, Duration::ZERO);
    swarm.handle(Duration::ZERO, Input::OriginUp { ranges: true });
    let (mut lengths, mut at_once, mut reads) = (Vec::new(), 0, VecDeque::new());
    for _ in 0..10_000 {
        while let Some(output) = swarm.poll() {
            match output {
                Output::Read { read, run, .. } => {
                    lengths.push(run.len());
                    reads.push_back((read, run));
                }
                Output::Complete => return (lengths, at_once),
                _ => {}
            }
        }
        at_once = at_once.max(reads.len());
        let (read, run) = reads.pop_front().expect("what is not complete has a read");
        for piece in run.pieces() {
            swarm.handle(Duration::ZERO, Input::Piece { read, piece, outcome: PieceOutcome::Good });
        }
        swarm.handle(Duration::ZERO, Input::ReadEnded { read, outcome: ReadOutcome::Ok });
    }
    panic!("it does not end");
}

#[test]
fn much_is_asked_for_at_once_and_less_towards_the_end() {
    let (lengths, at_once) = lengths(&[64; 4]);
    assert_eq!(lengths.iter().sum::<u32>(), 256, "each piece once");
    assert_eq!((lengths[0], at_once), (16, 4));
    assert!(lengths.len() <= 28, "a request costs a registry more than its bytes: {lengths:?}");
    assert!(lengths.iter().rev().take(4).all(|len| *len <= 4), "the last end together: {lengths:?}");
}

#[test]
fn a_small_artifact_is_read_side_by_side() {
    assert_eq!(lengths(&[16]), (vec![4; 4], 4));
}
