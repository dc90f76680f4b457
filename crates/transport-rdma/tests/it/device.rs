//! The laws and the faults on a real device, SoftRoCE at the least. `MODELCAST_RDMA_DEVICE` names it;
//! `MODELCAST_DISK_DIR` is a directory on an ordinary file system.

use std::{sync::Arc, time::Instant};

use transport::{Link as _, ReadFault, ReadRequest};
use transport_rdma::{Options, Rdma, RdmaError, Source, Unavailable};

use crate::{
    faults, laws,
    site::{Ends, HANDLE, SLOT_BYTES, SLOTS, Site, connect, file, memfd, until},
};

#[test]
#[ignore = "needs an RDMA device"]
fn a_link_over_a_device_keeps_every_law() {
    for (name, law, harness) in laws::of(Site::device) {
        println!("law: {name}");
        law(&harness());
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn futures_dropped_with_poisoned_memory() {
    faults::receiver_and_link_dropped(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn completions_withheld_end_by_deadline_and_leave_memory_alone() {
    faults::completions_withheld(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn peer_queue_pairs_destroyed_while_reading() {
    faults::peer_queue_pairs_destroyed(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn deregistered_while_reading() {
    faults::deregistered(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn wrong_rkey_ends_the_link() {
    faults::wrong_rkey(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn read_past_the_end_ends_the_link() {
    faults::read_past_the_end(&Site::device());
}

#[test]
#[ignore = "needs an RDMA device"]
fn files_on_disk_and_in_memory_are_served() {
    let site = Site::device();
    let ends = Ends::new(&site, SLOT_BYTES);
    let bytes = (3 << 20) + 17;
    for (handle, file) in [(HANDLE + 1, file(bytes)), (HANDLE + 2, memfd(bytes))] {
        let modified = || file.metadata().expect("open").modified().expect("Linux has it");
        let before = modified();
        let source = Source::new(&site.parent, Arc::clone(&file), bytes as u64, handle);
        // Half before the window is pinned, half after it: where the kernel takes a mirror, it gets both.
        source.readable(0..2 << 20).expect("readable");
        ends.link().grant(handle, ends.serving().window(&source, 0).expect("pinned")).expect("good");
        source.readable(2 << 20..bytes as u64).expect("readable");
        for offset in [0, 1 << 20, (1 << 20) + 17] {
            let read = ReadRequest { window: handle, ..ends.read(1, offset, SLOT_BYTES) };
            ends.link().post(read).expect("room");
            ends.expect_good(offset, SLOT_BYTES);
        }
        assert_eq!(modified(), before, "a file that is served has not changed");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn many_reads_are_fast_and_right() {
    let site = Site::device();
    let ends = Ends::new(&site, SLOT_BYTES);
    let start = Instant::now();
    let rounds = 4;
    for _ in 0..rounds {
        ends.fill();
        assert_eq!(ends.count_down(SLOTS), 0);
    }
    let bytes = u128::try_from(rounds * SLOTS * SLOT_BYTES).expect("small");
    println!("{} kB/s", bytes / start.elapsed().as_millis().max(1));
    assert_eq!(ends.link().bytes_received(), (rounds * SLOTS * SLOT_BYTES) as u64);
}

#[test]
#[ignore = "needs an RDMA device"]
fn links_come_and_go() {
    let site = Site::device();
    for _ in 0..10 {
        let ends = Ends::new(&site, SLOT_BYTES);
        ends.fetch(0, SLOT_BYTES);
    }
    assert_eq!(site.child.rails().len(), 1);
    until("the child pins nothing any more", || site.child.pinned_bytes() == 0);
    until("the parent pins nothing any more", || site.parent.pinned_bytes() == 0);
}

#[test]
#[ignore = "needs an RDMA device"]
fn an_end_that_is_not_there_fails_the_first_read() {
    let site = Site::device();
    let offer = site.child.offer(1, crate::site::channel().0).expect("queue pairs");
    let serving = site.parent.serve(&offer.endpoints()).expect("one network");
    let (answer, probe) = (serving.endpoints(), serving.probe().clone());
    drop(serving);
    let start = Instant::now();
    let error = offer.connect(&answer, &probe).expect_err("nobody answers");
    assert!(matches!(error, RdmaError::Probe(_)), "{error}");
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    connect(&site.child, &site.parent, 1).map(drop).expect("the device is well");
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_read_into_a_file_in_memory_lands_there() {
    let site = Site::device();
    let ends = Ends::new(&site, SLOT_BYTES);
    let target = memfd(SLOT_BYTES);
    target.set_len(0).and_then(|()| target.set_len(SLOT_BYTES as u64)).expect("empty");
    let region = memory::Region::map(&target, SLOT_BYTES, memory::Access::ReadWrite).expect("mapped");
    let _registration = site.child.register(&region, 0..SLOT_BYTES).expect("pinned");
    let lease = region.lease(0..SLOT_BYTES).expect("free");
    ends.link().post(ReadRequest { lease, ..ends.read(1, 0, 1) }).expect("room");
    ends.expect_good(0, SLOT_BYTES);
    let mut landed = vec![0; SLOT_BYTES];
    std::os::unix::fs::FileExt::read_exact_at(&*target, &mut landed, 0).expect("readable");
    assert!(landed == crate::site::content(0, SLOT_BYTES), "the file holds what was read");
}

#[test]
#[ignore = "needs an RDMA device"]
fn what_is_no_device_is_named() {
    let options = Options { devices: vec!["nothing0".to_owned()], pinned_bytes_max: 1 << 20 };
    let error = Rdma::open(&options).map(drop).expect_err("there is none");
    assert!(matches!(&error, Unavailable::NotUsable { name, .. } if name == "nothing0"), "{error}");
    assert!(error.hint().is_some());
    // A network interface names its device, too.
    let rails = Site::device().child.rails();
    let netdev = rails[0].netdev.clone().expect("SoftRoCE has an interface");
    let options = Options { devices: vec![netdev], pinned_bytes_max: 1 << 20 };
    assert_eq!(Rdma::open(&options).expect("the same").rails(), rails);
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_closed_link_hands_reads_back() {
    let site = Site::device();
    let ends = Ends::new(&site, SLOT_BYTES);
    ends.fill();
    ends.link().close();
    let ended = (0..SLOTS).map(|_| ends.wait()).filter(|completion| {
        assert!(matches!(completion.result, Ok(_) | Err(ReadFault::LinkDown(_))), "{completion:?}");
        completion.result.is_err()
    });
    assert!(ended.count() > 0, "too fast: nothing was outstanding");
    assert!(ends.link().post(ends.read(1, 0, 1)).is_err());
    let _kept = Arc::clone(ends.link());
}
