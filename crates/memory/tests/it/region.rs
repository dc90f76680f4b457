//! A range has one writer at a time, and none once it is sealed.

use std::{
    fs::File,
    io::Write as _,
    ops::Range,
    os::unix::fs::FileExt as _,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use memory::{Access, NotLeased, Region};
use proptest::prelude::*;

fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(content).expect("there is space");
    file
}

#[test]
fn what_is_written_through_a_lease_is_in_the_file() {
    let file = file(&[7; 10_000]);
    let region = Region::map(&file, 10_000, Access::ReadWrite).unwrap();
    let mut lease = region.lease(4000..9000).unwrap();
    lease.as_mut_slice().fill(9);
    let filled = lease.filled();
    assert_eq!(filled.len(), 5000);
    let mut bytes = vec![0; 10_000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let mut want = vec![7; 10_000];
    want[4000..9000].fill(9);
    assert!(bytes == want);
    let mut some = [0; 2];
    region.read_at(3999, &mut some);
    assert_eq!(some, [7, 9]);
}

#[test]
fn a_region_that_is_only_read_lends_nothing() {
    let region = Region::map(&file(&[7; 100]), 100, Access::Read).unwrap();
    assert!(region.lease(0..1).is_none());
}

#[test]
fn a_file_that_is_too_short_is_not_mapped() {
    let error = Region::map(&file(&[7; 100]), 101, Access::Read).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    assert!(Region::map(&file(&[]), 0, Access::Read).is_err());
}

#[test]
fn a_lease_keeps_its_region() {
    let region = Region::anonymous(5000).unwrap();
    let mut lease = region.lease(0..5000).unwrap();
    drop(region);
    lease.as_mut_slice().fill(1);
    assert!(lease.filled().iter().all(|byte| *byte == 1));
}

const LONG: Duration = Duration::from_secs(30);

/// What a thread gets that waits for the first ten bytes; whether they come back or are sealed is `then`'s choice.
fn waits_while(region: &Arc<Region>, then: impl FnOnce(memory::Lease)) -> Result<(), NotLeased> {
    let lease = region.lease(0..10).expect("nobody has it");
    let (report, result) = mpsc::channel();
    let waiting = Arc::clone(region);
    thread::spawn(move || {
        let leased = waiting.lease_by(5..15, Instant::now() + LONG);
        report.send(leased.map(drop)).expect("somebody listens");
    });
    assert!(result.recv_timeout(Duration::from_millis(20)).is_err(), "it waits");
    then(lease);
    result.recv_timeout(LONG).expect("it is woken")
}

#[test]
fn who_waits_for_a_range_gets_it_when_it_comes_back_and_not_when_it_is_sealed() {
    let region = Region::anonymous(100).unwrap();
    assert_eq!(waits_while(&region, drop), Ok(()));
    assert_eq!(waits_while(&region, memory::Lease::seal), Err(NotLeased::Never));
    let lease = region.lease(20..30).unwrap();
    assert_eq!(region.lease_by(29..31, Instant::now()).map(drop), Err(NotLeased::Out));
    assert_eq!(region.lease_by(99..101, Instant::now()).map(drop), Err(NotLeased::Never));
    assert!(region.lease_by(25..25, Instant::now()).unwrap().is_empty());
    drop(lease);
}

#[test]
fn what_is_unsealed_is_lent_again_but_not_what_is_out() {
    let region = Region::anonymous(100).unwrap();
    let out = region.lease(50..100).unwrap();
    region.lease(0..50).unwrap().seal();
    assert!(!region.is_sealed());
    region.unseal();
    assert!(region.lease(40..60).is_none(), "half of it is out");
    region.lease(0..50).expect("it was unsealed").seal();
    out.seal();
    assert!(region.is_sealed());
}

proptest! {
    /// Against the plainest model there is: one state a byte.
    #[test]
    fn leases_never_overlap(steps in prop::collection::vec((0..64_usize, 0..16_usize, 0..4), 1..200)) {
        let region = Region::anonymous(64).unwrap();
        let mut is_taken = [false; 64];
        let mut out: Vec<(Range<usize>, memory::Lease)> = Vec::new();
        for (start, len, then) in steps {
            let range = start..start + len;
            let may = range.end <= 64 && !is_taken[range.clone()].contains(&true);
            match region.lease(range.clone()) {
                Some(lease) => {
                    prop_assert!(may, "{range:?} was lent twice");
                    is_taken[range.clone()].fill(true);
                    out.push((range, lease));
                }
                None => prop_assert!(!may, "{range:?} is free"),
            }
            match (then, out.is_empty()) {
                (1, false) => {
                    let (range, lease) = out.swap_remove(0);
                    drop(lease);
                    is_taken[range].fill(false);
                }
                (2, false) => out.swap_remove(0).1.seal(),
                _ => {}
            }
        }
    }
}
