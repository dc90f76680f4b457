//! Tests of the decisions of one link, without threads, memory or a clock.

use std::{collections::BTreeSet, time::Duration};

use super::*;

const MIB: usize = 1 << 20;

fn parts(bytes: usize) -> Vec<Part> {
    let part =
        |start| Part { range: start..bytes.min(start + MIB), address: start as u64, rkeys: Arc::from([1]) };
    (0..bytes).step_by(MIB).map(part).collect()
}

fn path() -> Failure {
    Failure::new(FailureKind::Path, "cut")
}

fn access() -> Failure {
    Failure::new(FailureKind::Access, "wrong key")
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

/// Everything that a lane would post now.
fn take_all(flow: &mut Flow<u64>, lane: usize) -> Vec<u64> {
    std::iter::from_fn(|| flow.take(lane).map(|taken| taken.work)).collect()
}

fn ended(flow: &mut Flow<u64>) -> Vec<(u64, &'static str)> {
    std::iter::from_fn(|| flow.next_ended())
        .map(|(read, ending)| {
            let ending = match ending {
                Ending::Done => "done",
                Ending::Refused => "refused",
                Ending::Late => "late",
                Ending::Down(_) => "down",
            };
            (read, ending)
        })
        .collect()
}

/// The lane's QP is destroyed with these works in it.
fn destroy(flow: &mut Flow<u64>, lane: usize, works: &[u64]) {
    let rail = flow.lanes[lane].rail;
    assert!(flow.take_doomed(rail).contains(&lane) || flow.lanes[lane].state == State::Dying);
    for work in works {
        flow.returned(lane, *work, Err(&path()));
    }
    flow.lane_gone(lane);
}

#[test]
fn parts_go_where_fewest_bytes_are() {
    let mut flow = Flow::new(&[0, 0, 1, 1], 16, 8);
    flow.post(1, parts(8 * MIB), later());
    assert_eq!(flow.lanes.iter().map(|lane| lane.queue.len()).collect::<Vec<_>>(), [2; 4]);
    // Small reads spread, too.
    for read in 2..6 {
        flow.post(read, parts(10), later());
    }
    assert_eq!(flow.lanes.iter().map(|lane| lane.queue.len()).collect::<Vec<_>>(), [3; 4]);
}

#[test]
fn a_lane_takes_no_more_than_it_carries_and_helps_who_is_behind() {
    let mut flow = Flow::new(&[0, 1], 4, 8);
    flow.post(1, parts(12 * MIB), later());
    let first = take_all(&mut flow, 0);
    assert_eq!(first.len(), 4);
    for work in first {
        flow.returned(0, work, Ok(()));
    }
    // What waits for a lane that has room is left to it.
    assert_eq!(take_all(&mut flow, 0).len(), 2);
    assert_eq!(take_all(&mut flow, 1).len(), 4);
    // Two wait for that one, which is full now.
    assert_eq!(take_all(&mut flow, 0).len(), 2);
    assert_eq!(take_all(&mut flow, 1), []);
    assert!(flow.has_nothing_for(1), "it is full");
}

#[test]
fn a_read_ends_once_when_its_last_part_has() {
    let mut flow = Flow::new(&[0, 1], 16, 2);
    flow.post(1, parts(2 * MIB), later());
    flow.post(2, parts(MIB), later());
    assert!(!flow.has_room());
    let (left, right) = (take_all(&mut flow, 0), take_all(&mut flow, 1));
    assert_eq!((left.len(), right.len()), (2, 1));
    assert_eq!(flow.returned(0, left[0], Ok(())), MIB as u64);
    assert_eq!(flow.returned(0, left[0], Ok(())), 0, "it is no work any more");
    assert_eq!(ended(&mut flow), []);
    flow.returned(1, right[0], Ok(()));
    assert_eq!(ended(&mut flow), [(1, "done")]);
    assert!(flow.has_room());
    flow.returned(0, left[1], Ok(()));
    assert_eq!(ended(&mut flow), [(2, "done")]);
    assert_eq!(flow.lanes.iter().map(|lane| lane.bytes).collect::<Vec<_>>(), [0, 0]);
}

#[test]
fn a_read_that_the_sender_forbids_ends_the_link_on_every_rail() {
    let mut flow = Flow::new(&[0, 1], 16, 4);
    flow.post(1, parts(2 * MIB), later());
    let (left, right) = (take_all(&mut flow, 0), take_all(&mut flow, 1));
    flow.returned(0, left[0], Err(&access()));
    assert!(flow.is_ended() && !flow.has_room());
    assert!(flow.take_stirred(), "the other rail must hear of it");
    assert_eq!(ended(&mut flow), [], "a part of it may still be written");
    destroy(&mut flow, 0, &[]);
    destroy(&mut flow, 1, &right);
    assert_eq!(ended(&mut flow), [(1, "down")]);
    assert!(flow.is_over());
}

#[test]
fn a_lost_rail_leaves_its_parts_to_the_others() {
    let mut flow = Flow::new(&[0, 0, 1, 1], 2, 4);
    flow.post(1, parts(12 * MIB), later());
    let (first, second) = (take_all(&mut flow, 0), take_all(&mut flow, 1));
    flow.returned(0, first[0], Err(&path()));
    assert!(!flow.is_ended());
    assert_eq!(flow.rails_up(), [1]);
    assert_eq!(flow.take(0).map(|taken| taken.work), None, "it carries nothing any more");
    let doomed = flow.take_doomed(0);
    assert_eq!(doomed, [0, 1]);
    assert_eq!(flow.take_doomed(0), [], "each is destroyed once");
    assert_eq!(flow.take_doomed(1), []);
    // What was out comes back, and goes over the other rail.
    destroy(&mut flow, 0, &first[1..]);
    destroy(&mut flow, 1, &second);
    let mut moved = 0;
    for lane in [2, 3].into_iter().cycle().take(20) {
        for work in take_all(&mut flow, lane) {
            flow.returned(lane, work, Ok(()));
            moved += 1;
        }
    }
    assert_eq!(moved, 12);
    assert_eq!(ended(&mut flow), [(1, "done")]);
}

#[test]
fn the_last_rail_takes_the_link_with_it() {
    let mut flow = Flow::new(&[0, 1], 16, 4);
    flow.post(1, parts(2 * MIB), later());
    flow.post(2, parts(10), later());
    flow.lose_rail(0, &path());
    flow.lose_rail(0, &path());
    assert!(!flow.is_ended());
    flow.lose_rail(1, &path());
    assert!(flow.is_ended());
    // Nothing was out, so that nothing is waited for.
    assert_eq!(ended(&mut flow), [(1, "down"), (2, "down")]);
    destroy(&mut flow, 0, &[]);
    assert!(!flow.is_over());
    destroy(&mut flow, 1, &[]);
    assert!(flow.is_over());
}

#[test]
fn a_late_read_ends_the_link_and_says_which_were_late() {
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let mut flow = Flow::new(&[0], 16, 4);
    assert_eq!(flow.next_deadline(), None);
    flow.post(1, parts(MIB), now + 3 * second);
    flow.post(2, parts(MIB), now + second);
    flow.post(3, parts(MIB), now + 2 * second);
    assert_eq!(flow.next_deadline(), Some(now + second));
    flow.tick(now + second / 2);
    assert!(!flow.is_ended());
    let works = take_all(&mut flow, 0);
    flow.tick(now + 2 * second);
    assert!(flow.is_ended());
    assert_eq!(ended(&mut flow), [], "they may still be written");
    // One arrived after all, before its QP was destroyed.
    flow.returned(0, works[0], Ok(()));
    assert_eq!(ended(&mut flow), [(1, "done")]);
    destroy(&mut flow, 0, &works[1..]);
    assert_eq!(ended(&mut flow), [(2, "late"), (3, "late")]);
    assert_eq!(flow.next_deadline(), None);
}

#[test]
fn a_probe_stays_on_its_lane_and_is_not_the_callers() {
    let mut flow = Flow::new(&[0, 1], 16, 1);
    flow.probe(0, 100, parts(32).remove(0), later());
    assert!(flow.has_room(), "it is none of the caller's reads");
    assert_eq!(take_all(&mut flow, 1), [], "nobody steals it");
    let work = take_all(&mut flow, 0);
    assert_eq!(flow.returned(0, work[0], Ok(())), 0, "nor are its bytes");
    assert_eq!(ended(&mut flow), [(100, "done")]);
    flow.probe(0, 101, parts(32).remove(0), later());
    flow.lose_rail(0, &path());
    assert_eq!(ended(&mut flow), [(101, "down")], "another lane proves nothing about it");
    assert!(!flow.is_ended());
}

#[test]
fn works_that_never_come_back_do_not_keep_their_reads() {
    let mut flow = Flow::new(&[0], 16, 4);
    flow.post(1, parts(MIB), later());
    take_all(&mut flow, 0);
    flow.finish(io::ErrorKind::ConnectionAborted.into());
    assert_eq!(flow.take_doomed(0), [0]);
    // The QP could not be destroyed: it keeps the sinks.
    flow.lane_gone(0);
    assert_eq!(ended(&mut flow), [(1, "down")]);
    assert!(flow.is_over());
}

/// Whatever happens in whatever order: each read ends once, none before its works are back, and the link gets over.
#[test]
fn each_read_ends_once_whatever_happens() {
    for seed in 0..2000_u64 {
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut draw = move |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let rails = [0, 0, 1, 1, 2, 2];
        let mut flow = Flow::new(&rails, 3, 6);
        let mut out: Vec<BTreeSet<u64>> = vec![BTreeSet::new(); rails.len()];
        let mut owner = BTreeMap::new();
        let (mut posted, mut seen) = (0_u64, BTreeSet::new());
        for step in 0..400 {
            let lane = usize::try_from(draw(6)).expect("small");
            match draw(if step < 200 { 60 } else { 12 }) {
                0..4 if flow.has_room() && step < 300 => {
                    posted += 1;
                    flow.post(posted, parts(usize::try_from(draw(5 << 20)).expect("small") + 1), later());
                }
                4..8 => {
                    while let Some(taken) = flow.take(lane) {
                        owner.insert(taken.work, *taken.payload);
                        let work = taken.work;
                        out[lane].insert(work);
                    }
                    assert!(out[lane].len() <= 3);
                }
                8..11 => {
                    if let Some(work) = out[lane].pop_first() {
                        flow.returned(lane, work, Ok(()));
                    }
                }
                11 if draw(8) == 0 => {
                    if let Some(work) = out[lane].pop_first() {
                        let failure = if draw(4) == 0 { access() } else { path() };
                        flow.returned(lane, work, Err(&failure));
                    }
                }
                _ => {}
            }
            if step == 320 {
                flow.finish(io::ErrorKind::ConnectionAborted.into());
            }
            // Also before lanes are destroyed: what ends too early is still out then.
            let mut look = |flow: &mut Flow<u64>, out: &[BTreeSet<u64>]| {
                while let Some((read, _)) = flow.next_ended() {
                    assert!(seen.insert(read), "seed {seed}: read {read} ended twice");
                    let is_out = out.iter().flatten().any(|work| owner.get(work) == Some(&read));
                    assert!(!is_out, "seed {seed}: read {read} ended while it could be written");
                }
            };
            look(&mut flow, &out);
            for rail in 0..3 {
                for lane in flow.take_doomed(rail) {
                    for work in std::mem::take(&mut out[lane]) {
                        flow.returned(lane, work, Err(&path()));
                    }
                    flow.lane_gone(lane);
                }
            }
            look(&mut flow, &out);
        }
        assert!(flow.is_over(), "seed {seed}");
        assert_eq!(seen.len() as u64, posted, "seed {seed}");
    }
}
