//! What is served: which windows stay pinned, and how a file gets into memory that the system pins.

use std::{os::unix::fs::FileExt as _, sync::Arc};

use transport::{Link as _, ReadFault, ReadRequest};
use transport_rdma::{RdmaError, Source, fake::Fabric};

use crate::site::{Ends, HANDLE, SLOT_BYTES, Site, connect, content, file, memfd, until};

/// One rail each, and a parent that pins so many bytes at most.
fn site(pinned_bytes_max: u64) -> Site {
    let fabric = Fabric::new();
    let (child, parent) = (fabric.adapter(1), fabric.adapter_with(1, pinned_bytes_max));
    Site { child, parent, script: fabric.script().clone(), fabric: Some(fabric) }
}

const FILE_BYTES: u64 = 1 << 20;

fn sources(site: &Site, count: u64) -> Vec<Arc<Source>> {
    let source = |handle| Source::new(&site.parent, memfd(1 << 20), FILE_BYTES, handle);
    (1..=count).map(source).collect()
}

#[test]
fn windows_in_use_are_refused_room_and_idle_ones_give_theirs() {
    let site = site(2 * FILE_BYTES + FILE_BYTES / 2);
    let (_link, serving, _completions) = connect(&site.child, &site.parent, 1).expect("a path");
    let (_other_link, other, _more) = connect(&site.child, &site.parent, 1).expect("a path");
    let sources = sources(&site, 3);
    let first = serving.window(&sources[0], 0).expect("room");
    serving.window(&sources[1], 0).expect("room");
    let error = serving.window(&sources[2], 0).expect_err("both are in use");
    assert!(matches!(error, RdmaError::PinnedMax { wanted: FILE_BYTES, .. }), "{error}");
    assert!(error.hint().is_some());
    // Another reader of the same shares the pin.
    assert_eq!(other.window(&sources[0], 0).expect("it is there").address, first.address);
    serving.release(1, 0);
    serving.window(&sources[2], 0).expect_err("the other reader still has it");
    other.release(1, 0);
    assert_eq!(serving.window(&sources[2], 0).expect("room now").bytes, FILE_BYTES);
    assert_eq!((serving.windows_held(), other.windows_held()), (2, 0));
    // A reader that goes away gives up all of its windows.
    drop(serving);
    for source in &sources[..2] {
        other.window(source, 0).expect("room");
    }
}

#[test]
fn the_least_recently_used_window_goes_first() {
    let site = site(2 * FILE_BYTES + FILE_BYTES / 2);
    let (_link, serving, _completions) = connect(&site.child, &site.parent, 1).expect("a path");
    let sources = sources(&site, 3);
    let use_once = |number: usize| {
        let window = serving.window(&sources[number], 0).expect("room");
        serving.release(sources[number].handle(), 0);
        window.rkeys
    };
    let (first, second) = (use_once(0), use_once(1));
    assert_eq!(use_once(0), first, "it stayed pinned");
    use_once(2);
    assert_eq!(use_once(0), first, "used after the other");
    assert_ne!(use_once(1), second, "the one that had to go");
}

#[test]
fn a_source_that_is_dropped_unpins_what_nobody_reads() {
    let site = site(8 * FILE_BYTES);
    let (_link, serving, _completions) = connect(&site.child, &site.parent, 1).expect("a path");
    let before = site.parent.pinned_bytes();
    let mut sources = sources(&site, 2);
    for source in &sources {
        serving.window(source, 0).expect("room");
    }
    serving.release(1, 0);
    assert_eq!(site.parent.pinned_bytes() - before, 2 * FILE_BYTES, "kept for whoever asks next");
    sources.remove(0);
    assert_eq!(site.parent.pinned_bytes() - before, FILE_BYTES);
    sources.clear();
    assert_eq!(site.parent.pinned_bytes() - before, FILE_BYTES, "somebody reads it");
    drop(serving);
    until("it goes with its reader", || site.parent.pinned_bytes() == before);
}

#[test]
fn registrations_count_too_and_take_the_room_of_idle_windows() {
    let site = site(2 * FILE_BYTES);
    let (_link, serving, _completions) = connect(&site.child, &site.parent, 1).expect("a path");
    let source = &sources(&site, 1)[0];
    serving.window(source, 0).expect("room");
    let region = memory::Region::anonymous(2 << 20).expect("memory");
    let half = site.parent.register(&region, 0..(1 << 20) - 4096).expect("the other half");
    site.parent.register(&region, 1 << 20..2 << 20).expect_err("in use");
    serving.release(1, 0);
    let other = site.parent.register(&region, 1 << 20..2 << 20).expect("an idle window gave way");
    drop((half, other));
    serving.window(source, 0).expect("room again");
    let error = site.parent.register(&region, 0..0).map(drop);
    error.expect_err("nothing is no memory");
}

#[test]
fn one_window_asked_for_by_many_at_once_is_pinned_once() {
    let site = site(64 * FILE_BYTES);
    let source = &sources(&site, 1)[0];
    let links: Vec<_> = (0..8).map(|_| connect(&site.child, &site.parent, 1).expect("a path")).collect();
    let before = site.parent.pinned_bytes();
    let rkeys: Vec<_> = std::thread::scope(|scope| {
        let ask = |serving| {
            scope.spawn(move || transport_rdma::Serving::window(serving, source, 0).expect("room").rkeys)
        };
        let asked: Vec<_> = links.iter().map(|(_, serving, _)| ask(serving)).collect();
        asked.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(rkeys.windows(2).all(|pair| pair[0] == pair[1]), "{rkeys:?}");
    assert_eq!(site.parent.pinned_bytes() - before, FILE_BYTES);
}

/// Reads through a window of the file.
fn check_reads(site: &Site, ends: &Ends, source: &Arc<Source>) {
    let window = ends.serving().window(source, 0).expect("pinned");
    ends.link().grant(source.handle(), window).expect("good");
    let read = ReadRequest { window: source.handle(), ..ends.read(1, 100, 600_000) };
    ends.link().post(read).expect("room");
    ends.expect_good(100, 600_000);
    assert!(site.parent.pinned_bytes() >= FILE_BYTES);
}

#[test]
fn where_pins_are_for_writing_files_are_left_alone_and_mirrored_as_they_become_readable() {
    let site = Site::fake(1);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.fabric().pin_for_writing_only();
    let file = memfd(1 << 20);
    let modified = || file.metadata().expect("open").modified().expect("Linux has it");
    let before = modified();
    let source = Source::new(&site.parent, Arc::clone(&file), FILE_BYTES, HANDLE + 1);
    source.readable(0..300_000).expect("no mirror yet");
    let window = ends.serving().window(&source, 0).expect("a mirror");
    ends.link().grant(HANDLE + 1, window).expect("good");
    let post = |id, offset, len| {
        let read = ReadRequest { window: HANDLE + 1, ..ends.read(id, offset, len) };
        ends.link().post(read).expect("room");
    };
    post(1, 0, 300_000);
    ends.expect_good(0, 300_000);
    post(2, 300_000, 100);
    assert!(
        ends.wait().result.expect("moved").iter().all(|byte| *byte == 0),
        "what was not checked is not there"
    );
    source.readable(250_000..FILE_BYTES).expect("copied");
    post(3, 200_000, 800_000);
    ends.expect_good(200_000, 800_000);
    assert_eq!(modified(), before, "a file that is served has not changed");
}

#[test]
fn a_mirror_that_cannot_be_filled_says_so_and_can_be_tried_again() {
    let site = Site::fake(1);
    let ends = Ends::new(&site, SLOT_BYTES);
    site.fabric().pin_for_writing_only();
    let file = file(1 << 20);
    let source = Source::new(&site.parent, Arc::clone(&file), FILE_BYTES, HANDLE + 1);
    let window = ends.serving().window(&source, 0).expect("a mirror");
    ends.link().grant(HANDLE + 1, window).expect("good");
    file.set_len(10).expect("cut short");
    source.readable(0..FILE_BYTES).expect_err("it is not there");
    file.write_all_at(&content(0, 1 << 20), 0).expect("space");
    source.readable(0..FILE_BYTES).expect("it is there again");
    check_reads(&site, &ends, &source);
}

#[test]
fn released_windows_are_refused_here() {
    let site = Site::fake(1);
    let ends = Ends::new(&site, SLOT_BYTES);
    ends.post(1, 0, 100);
    ends.expect_good(0, 100);
    ends.link().forget(HANDLE, 0);
    ends.post(2, 0, 100);
    let completion = ends.wait();
    assert!(matches!(completion.result, Err(ReadFault::Refused)), "{completion:?}");
    assert!(!ends.link().is_closed());
}

#[test]
fn memory_that_is_no_longer_registered_is_refused_but_stays_pinned_for_what_is_out() {
    let site = Site::fake(1);
    let ends = Ends::new(&site, SLOT_BYTES);
    let before = site.child.pinned_bytes();
    let region = memory::Region::anonymous(8192).expect("memory");
    let registration = site.child.register(&region, 0..8192).expect("pinned");
    let read = |id, range: std::ops::Range<usize>| {
        let lease = region.lease(range.clone()).expect("free");
        ReadRequest { lease, ..ends.read(id, range.start as u64, 1) }
    };
    site.script.hold();
    ends.link().post(read(1, 0..4096)).expect("room");
    drop(registration);
    assert_eq!(site.child.pinned_bytes() - before, 8192, "a read is out");
    site.script.release();
    ends.expect_good(0, 4096);
    until("unpinned", || site.child.pinned_bytes() == before);
    ends.link().post(read(2, 4096..8192)).expect("room");
    let completion = ends.wait();
    assert!(matches!(completion.result, Err(ReadFault::Refused)), "{completion:?}");
}
