//! How a swarm without peers asks the origin.

use std::{collections::VecDeque, time::Duration};

use modelpack::{
    layout::{BlobIndex, PIECE_BYTES, PieceLayout},
    piece_map::PieceMap,
};
use planner::PeerId;
use swarm::{Config, Input, Output, PieceOutcome, ReadOutcome, Swarm};

/// Pulls blobs of so many pieces, reads ending in the order in which they began; gives how many pieces each read had, of
/// which blob, and how many reads were out at once.
fn reads(blobs: &[u32], blobs_max: u32) -> (Vec<(u32, BlobIndex)>, usize) {
    let layout = PieceLayout::new(blobs.iter().map(|pieces| u64::from(*pieces) * PIECE_BYTES).collect());
    let layout = layout.expect("a small artifact");
    let have = PieceMap::empty(layout.piece_count());
    let config = Config::new(PeerId::new([1; 16]), 7);
    let config = Config { standalone: true, origin_blobs_max: blobs_max, ..config };
    let mut swarm = Swarm::new(config, layout.clone(), have, Duration::ZERO);
    swarm.handle(Duration::ZERO, Input::OriginUp { ranges: true });
    let (mut all, mut at_once, mut reads) = (Vec::new(), 0, VecDeque::new());
    for _ in 0..10_000 {
        while let Some(output) = swarm.poll() {
            match output {
                Output::Read { read, run, .. } => {
                    all.push((run.len(), layout.span(run.start).blob));
                    reads.push_back((read, run));
                }
                Output::Complete => return (all, at_once),
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

fn lengths(blobs: &[u32]) -> (Vec<u32>, usize) {
    let (reads, at_once) = reads(blobs, 4);
    (reads.iter().map(|(len, _)| *len).collect(), at_once)
}

/// The blobs that reads are of.
fn order(blobs: &[u32], blobs_max: u32) -> Vec<u32> {
    reads(blobs, blobs_max).0.iter().map(|(_, blob)| blob.0).collect()
}

#[test]
fn much_is_asked_for_at_once_and_less_towards_the_end() {
    let (lengths, at_once) = lengths(&[256; 4]);
    assert_eq!(lengths.iter().sum::<u32>(), 1024, "each piece once");
    assert_eq!((lengths[0], at_once), (64, 4));
    assert!(lengths.len() <= 40, "a request costs a registry more than its bytes: {lengths:?}");
    assert!(lengths.iter().rev().take(4).all(|len| *len <= 4), "the last end together: {lengths:?}");
}

#[test]
fn a_small_artifact_is_read_side_by_side() {
    assert_eq!(lengths(&[16]), (vec![4; 4], 4));
}

#[test]
fn files_are_read_side_by_side() {
    let order = order(&[64; 4], 4);
    for side_by_side in order.chunks(4).take(4) {
        let mut blobs = side_by_side.to_vec();
        blobs.sort_unstable();
        assert_eq!(blobs, [0, 1, 2, 3], "{order:?}");
    }
}

#[test]
fn no_more_files_are_begun_than_are_to_be_read_at_once() {
    let one_by_one = order(&[64; 4], 1);
    assert!(one_by_one.is_sorted(), "{one_by_one:?}");
    let by_twos = order(&[64; 4], 2);
    let first_of = |blob| by_twos.iter().position(|of| *of == blob).expect("each is read");
    let last_of = |blob| by_twos.iter().rposition(|of| *of == blob).expect("each is read");
    assert_eq!((&by_twos[..4], first_of(1)), (&[0, 1, 0, 1][..], 1), "{by_twos:?}");
    assert!(first_of(2) > last_of(0).min(last_of(1)), "{by_twos:?}");
}

#[test]
fn a_large_file_gets_all_reads_when_the_others_are_done() {
    let order = order(&[8, 8, 256], 4);
    assert_eq!(order[..3], [0, 1, 2], "{order:?}");
    assert!(order[4..].iter().all(|blob| *blob == 2), "{order:?}");
}
