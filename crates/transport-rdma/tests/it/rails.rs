//! Several rails: bytes spread, and a rail that is lost takes no link with it that has another.

use std::time::Duration;

use transport::{Link as _, ReadFault};
use transport_rdma::{Rdma, RdmaError};

use crate::site::{Ends, HANDLE, LONG, SLOT_BYTES, SLOTS, Site, channel, connect, content, until};

fn names(rdma: &Rdma) -> Vec<String> {
    rdma.rails().into_iter().map(|rail| rail.name).collect()
}

fn fetched(site: &Site) -> Vec<u64> {
    names(&site.child).iter().map(|name| site.fabric().bytes_fetched(name)).collect()
}

#[test]
fn bytes_spread_evenly_over_rails() {
    let site = Site::fake(4);
    let ends = Ends::new(&site, SLOT_BYTES);
    assert_eq!(ends.link().rails_up(), 4);
    // Held, so that no rail is faster than another.
    site.script.hold();
    ends.fill();
    site.script.release();
    assert_eq!(ends.count_down(SLOTS), 0);
    let shares = fetched(&site);
    let fair = (SLOTS * SLOT_BYTES / 4) as u64;
    for share in &shares {
        assert!(share.abs_diff(fair) <= fair / 10, "{shares:?} of {fair} each");
    }
}

#[test]
fn a_long_read_uses_every_rail() {
    let site = Site::fake(2);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.script.hold();
    ends.post(1, 0, SLOT_BYTES);
    site.script.release();
    ends.expect_good(0, SLOT_BYTES);
    for share in fetched(&site) {
        assert!(share >= SLOT_BYTES as u64 / 2, "each carries a half");
    }
}

/// What happens to a link over three rails when `strike` hits the first while reads are out.
fn check_survives(strike: impl Fn(&Site, &str)) {
    let site = Site::fake(3);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.script.hold();
    ends.fill();
    strike(&site, &names(&site.child)[0]);
    site.script.release();
    assert_eq!(ends.count_down(SLOTS), 0, "the others carried it all");
    until("one rail is lost", || ends.link().rails_up() == 2);
    for id in 0..20 {
        ends.post(id, 0, 1000);
        ends.expect_good(0, 1000);
    }
    assert!(!ends.link().is_closed());
    // Two queue pairs a rail and end; the child destroyed those of the lost one.
    until("its queue pairs are gone", || site.fabric().queue_pairs() == 10);
}

#[test]
fn a_port_that_goes_down_leaves_the_link_to_the_others() {
    check_survives(|site, rail| site.fabric().port_down(rail));
}

#[test]
fn a_device_that_is_taken_out_leaves_the_link_to_the_others() {
    check_survives(|site, rail| site.fabric().device_gone(rail));
}

#[test]
fn a_path_that_is_cut_leaves_the_link_to_the_others() {
    check_survives(|site, rail| site.fabric().cut(rail));
}

#[test]
fn the_link_ends_with_its_last_rail() {
    let site = Site::fake(2);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.script.hold();
    ends.fill();
    for name in names(&site.child) {
        site.fabric().port_down(&name);
    }
    assert_eq!(ends.count_down(SLOTS), SLOTS);
    assert!(ends.link().is_closed());
    assert!(ends.link().post(ends.read(1, 0, 10)).is_err(), "a closed link took a read");
    until("every lease comes back", || ends.pool.free() == SLOTS);
    // Nothing is offered on rails that are down, and something is again when one is up.
    let error = site.child.offer(1, channel().0).expect_err("no rail");
    assert!(matches!(error, RdmaError::NoCommonRail), "{error}");
    site.fabric().port_up(&names(&site.child)[1]);
    until("the rail is offered again", || site.child.offer(1, channel().0).is_ok());
    site.script.release();
    let (link, ..) = connect(&site.child, &site.parent, 1).expect("the rails of one place or not");
    assert_eq!(link.rails_up(), 1);
}

#[test]
fn a_broken_queue_pair_ends_the_link_of_one_rail() {
    let site = Site::fake(1);
    let (sink, completions) = channel();
    let offer = site.child.offer(1, sink).expect("queue pairs");
    let qpn = offer.endpoints()[0].qpn;
    let serving = site.parent.serve(&offer.endpoints()).expect("one network");
    let link = offer.connect(&serving.endpoints(), serving.probe()).expect("a path");
    site.fabric().queue_pair_failed(&names(&site.child)[0], qpn);
    until("the link ends", || link.is_closed());
    drop(link);
    completions.recv_timeout(LONG).expect_err("no read was out");
}

#[test]
fn ends_with_other_numbers_of_rails_meet_on_those_that_both_have() {
    let fabric = transport_rdma::fake::Fabric::new();
    for (ours, theirs, common) in [(3, 1, 1), (1, 3, 1), (2, 2, 2)] {
        let (child, parent) = (fabric.adapter(ours), fabric.adapter(theirs));
        let (link, serving, _completions) = connect(&child, &parent, 1).expect("a path");
        assert_eq!((link.rails_up(), serving.probe().rkeys.len()), (common, common));
    }
}

#[test]
fn a_rail_that_leads_nowhere_is_left_out_from_the_start() {
    let site = Site::fake(2);
    site.fabric().cut(&names(&site.parent)[1]);
    let ends = Ends::new(&site, SLOT_BYTES);
    assert_eq!(ends.link().rails_up(), 1);
    ends.fill();
    assert_eq!(ends.count_down(SLOTS), 0);
    assert_eq!(fetched(&site)[1], 0);
}

#[test]
fn one_late_read_ends_the_link_on_every_rail() {
    let site = Site::fake(3);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.script.hold();
    for id in 0..3 {
        ends.post(id, 0, SLOT_BYTES);
    }
    let deadline = std::time::Instant::now() + Duration::from_millis(50);
    let late = transport::ReadRequest { deadline, ..ends.read(3, 0, SLOT_BYTES) };
    ends.link().post(late).expect("room");
    for _ in 0..4 {
        let completion = ends.wait();
        match completion.result {
            Err(ReadFault::Deadline) => assert_eq!(completion.id, 3),
            Err(ReadFault::LinkDown(_)) => assert_ne!(completion.id, 3),
            other => panic!("{other:?}"),
        }
    }
    until("every lease comes back", || ends.pool.free() == SLOTS);
    // The parent's stay until it hears of it on the control stream.
    until("the child's queue pairs are gone", || site.fabric().queue_pairs() == 6);
}

#[test]
fn windows_are_read_over_their_edge() {
    use std::os::unix::fs::FileExt as _;
    let site = Site::fake(2);
    let ends = Ends::new(&site, SLOT_BYTES);
    // A file with a hole for most of its first window.
    let edge = transport_rdma::WINDOW_BYTES;
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(edge + 5000).expect("a hole");
    file.write_all_at(&content(edge - 3000, 8000), edge - 3000).expect("space");
    let source =
        transport_rdma::Source::new(&site.parent, std::sync::Arc::new(file), edge + 5000, HANDLE + 1);
    assert_eq!(source.windows(), 2);
    let read = |id| transport::ReadRequest { window: HANDLE + 1, ..ends.read(id, edge - 3000, 8000) };
    let first = ends.serving().window(&source, 0).expect("pinned");
    ends.link().grant(HANDLE + 1, first).expect("good");
    ends.link().post(read(1)).expect("room");
    let refused = ends.wait();
    assert!(matches!(refused.result, Err(ReadFault::Refused)), "{refused:?}");
    let second = ends.serving().window(&source, 1).expect("pinned");
    assert_eq!(second.bytes, 5000);
    ends.link().grant(HANDLE + 1, second).expect("good");
    ends.link().post(read(2)).expect("room");
    ends.expect_good(edge - 3000, 8000);
    assert!(matches!(ends.serving().window(&source, 2), Err(RdmaError::NoSuchWindow { index: 2 })));
}
