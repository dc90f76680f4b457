//! What goes wrong ends what it must and nothing else, and memory that came back is written by nobody. The scenarios run
//! on the fake fabric here, and on a device in `device`.

use std::{
    sync::mpsc,
    time::{Duration, Instant},
};

use transport::{Link as _, ReadFault, ReadRequest};
use transport_rdma::{RdmaError, RemoteWindow};

use crate::site::{Ends, HANDLE, SLOT_BYTES, SLOTS, Site, channel, connect, expect_poison, until};

pub(crate) fn receiver_and_link_dropped(site: &Site) {
    let mut ends = Ends::new(site, SLOT_BYTES);
    site.slow_down();
    ends.fill();
    ends.completions = mpsc::channel().1;
    assert!(ends.pool.free() < SLOTS, "too fast: nothing was outstanding");
    ends.link = None;
    let poisoned = ends.poison();
    expect_poison(site, poisoned);
}

pub(crate) fn completions_withheld(site: &Site) {
    let ends = Ends::new(site, SLOT_BYTES);
    site.script.withhold_completions();
    let deadline = Instant::now() + Duration::from_millis(300);
    for id in 0..SLOTS {
        let read = ReadRequest { deadline, ..ends.read(id as u64, 0, SLOT_BYTES) };
        ends.link().post(read).expect("room");
    }
    for _ in 0..SLOTS {
        let completion = ends.wait();
        assert!(matches!(completion.result, Err(ReadFault::Deadline)), "{completion:?}");
        assert!(Instant::now() >= deadline, "not before it");
    }
    assert!(ends.link().is_closed());
    let poisoned = ends.poison();
    expect_poison(site, poisoned);
}

pub(crate) fn peer_queue_pairs_destroyed(site: &Site) {
    let mut ends = Ends::new(site, SLOT_BYTES);
    site.slow_down();
    ends.fill();
    ends.serving = None;
    site.script.release();
    assert!(ends.count_down(SLOTS) > 0, "too fast: nothing was outstanding");
    assert!(ends.link().is_closed());
    let poisoned = ends.poison();
    expect_poison(site, poisoned);
}

pub(crate) fn deregistered(site: &Site) {
    let mut ends = Ends::new(site, SLOT_BYTES);
    site.slow_down();
    ends.fill();
    ends.serving().release(HANDLE, 0);
    ends.source = None;
    site.script.release();
    assert!(ends.count_down(SLOTS) > 0, "too fast: nothing was outstanding");
    assert!(ends.link().is_closed());
    let poisoned = ends.poison();
    expect_poison(site, poisoned);
}

/// A grant that promises what the sender does not let be read.
fn check_bad_grant(site: &Site, change: impl Fn(&mut RemoteWindow), offset: u64) {
    let ends = Ends::new(site, SLOT_BYTES);
    let source = ends.source.as_ref().expect("not dropped");
    let mut window = ends.serving().window(source, 0).expect("pinned");
    change(&mut window);
    ends.link().grant(HANDLE, window).expect("it could be right");
    ends.post(1, offset, 4096);
    assert_eq!(ends.count_down(1), 1);
    until("the link ends", || ends.link().is_closed());
    let poisoned = ends.poison();
    expect_poison(site, poisoned);
}

pub(crate) fn wrong_rkey(site: &Site) {
    check_bad_grant(site, |window| window.rkeys.iter_mut().for_each(|rkey| *rkey ^= 0x5a), 0);
}

pub(crate) fn read_past_the_end(site: &Site) {
    check_bad_grant(site, |window| window.bytes += 1 << 20, SLOT_BYTES as u64 - 100);
}

#[test]
fn a_dropped_receiver_and_link_leave_memory_alone() {
    receiver_and_link_dropped(&Site::fake(2));
}

#[test]
fn withheld_completions_end_by_deadline_and_leave_memory_alone() {
    completions_withheld(&Site::fake(2));
}

#[test]
fn destroyed_queue_pairs_of_the_peer_end_the_link() {
    peer_queue_pairs_destroyed(&Site::fake(2));
}

#[test]
fn deregistered_memory_of_the_peer_ends_the_link() {
    deregistered(&Site::fake(2));
}

#[test]
fn a_wrong_key_ends_the_link() {
    wrong_rkey(&Site::fake(2));
}

#[test]
fn a_window_that_is_shorter_than_promised_ends_the_link() {
    read_past_the_end(&Site::fake(2));
}

#[test]
fn a_grant_that_cannot_be_is_refused() {
    let site = Site::fake(1);
    let ends = Ends::new(&site, SLOT_BYTES);
    let good = ends.serving().window(ends.source.as_ref().expect("there"), 0).expect("pinned");
    let check = |change: &dyn Fn(&mut RemoteWindow)| {
        let mut window = good.clone();
        change(&mut window);
        let refused = ends.link().grant(HANDLE, window);
        assert!(matches!(refused, Err(RdmaError::BadPeer { .. })), "{refused:?}");
    };
    check(&|window| window.bytes = 0);
    check(&|window| window.bytes = transport_rdma::WINDOW_BYTES + 1);
    check(&|window| window.address = u64::MAX - 5);
    check(&|window| window.rkeys.clear());
    check(&|window| window.rkeys.push(1));
    ends.link().grant(HANDLE, good).expect("a good one");
}

#[test]
fn an_answer_that_cannot_be_makes_no_link() {
    let site = Site::fake(1);
    let check = |change: &dyn Fn(&mut Vec<transport_rdma::Endpoint>, &mut transport_rdma::Probe)| {
        let offer = site.child.offer(1, channel().0).expect("queue pairs");
        let serving = site.parent.serve(&offer.endpoints()).expect("one network");
        let (mut answer, mut probe) = (serving.endpoints(), serving.probe().clone());
        change(&mut answer, &mut probe);
        offer.connect(&answer, &probe).expect_err("no sense")
    };
    let error = check(&|answer, _| answer[0].rail = 9);
    assert!(matches!(error, RdmaError::BadPeer { .. }), "{error}");
    let error = check(&|answer, _| answer[0].network = transport_rdma::Network::InfiniBand);
    assert!(matches!(error, RdmaError::BadPeer { .. }), "{error}");
    let error = check(&|_, probe| probe.rkeys.push(1));
    assert!(matches!(error, RdmaError::BadPeer { .. }), "{error}");
    let error = check(&|_, probe| probe.value[3] ^= 1);
    assert!(matches!(error, RdmaError::BadPeer { .. }), "{error}");
    let error = check(&|answer, _| answer.clear());
    assert!(matches!(error, RdmaError::BadPeer { .. } | RdmaError::NoCommonRail), "{error}");
    let error = check(&|_, probe| probe.rkeys[0] ^= 1);
    assert!(matches!(error, RdmaError::Probe(_)), "{error}");
    assert!(error.hint().is_some(), "it says what to look at");
    // Whatever was made for them is gone again.
    until("no queue pair stays", || site.fabric().queue_pairs() == 0);
    until("nothing stays pinned", || site.fabric().registered_bytes() == 0);
    let flood: Vec<_> =
        (0..40).flat_map(|_| site.child.offer(1, channel().0).expect("room").endpoints()).collect();
    let error = site.parent.serve(&flood).expect_err("more than a link has");
    assert!(matches!(error, RdmaError::BadPeer { .. }), "{error}");
}

#[test]
fn a_cut_path_is_found_by_the_first_read() {
    let site = Site::fake(1);
    site.fabric().cut(&site.parent.rails()[0].name);
    let error = connect(&site.child, &site.parent, 1).map(drop).expect_err("no path");
    assert!(matches!(error, RdmaError::Probe(_)), "{error}");
    until("no queue pair stays", || site.fabric().queue_pairs() == 0);
}

#[test]
fn a_silent_path_is_given_up_after_a_time() {
    let site = Site::fake(1);
    site.script.withhold_completions();
    let start = Instant::now();
    let error = connect(&site.child, &site.parent, 1).map(drop).expect_err("no answer");
    assert!(matches!(error, RdmaError::Probe(_)), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    until("no queue pair stays", || site.fabric().queue_pairs() == 0);
    until("nothing stays pinned", || site.fabric().registered_bytes() == 0);
}

#[test]
fn a_rail_carries_only_as_many_links_as_its_completion_queue_holds() {
    let site = Site::fake(1);
    let mut offers = Vec::new();
    let error = loop {
        match site.child.offer(1, channel().0) {
            Ok(offer) => offers.push(offer),
            Err(error) => break error,
        }
        assert!(offers.len() < 10_000, "without end");
    };
    assert!(matches!(error, RdmaError::Busy { .. }), "{error}");
    offers.pop();
    site.child.offer(1, channel().0).expect("room for one again");
}

#[test]
fn the_end_of_the_process_ends_every_read() {
    let Site { child, parent, script, fabric } = Site::fake(2);
    let site = Site { child, parent, script, fabric };
    let ends = Ends::new(&site, SLOT_BYTES);
    site.script.hold();
    ends.fill();
    let Ends { link, serving, source, completions, pool, registration } = ends;
    let Site { child, parent, fabric, .. } = site;
    // The link is the last that holds the engines.
    drop((child, parent, serving, source, registration));
    drop(link);
    for _ in 0..SLOTS {
        let completion = completions.recv_timeout(crate::site::LONG).expect("each ends");
        assert!(matches!(completion.result, Err(ReadFault::LinkDown(_))), "{completion:?}");
    }
    until("every lease comes back", || pool.free() == SLOTS);
    let fabric = fabric.expect("fake");
    until("no queue pair stays", || fabric.queue_pairs() == 0);
    until("nothing stays pinned", || fabric.registered_bytes() == 0);
}
