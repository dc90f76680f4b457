//! The laws of [`Link`], as checks that every transport's tests run.
//!
//! Owns: the sender's files for them, and how long is long enough. Does not own: how a transport makes a link, which
//! its tests say by a [`Harness`]. A law that does not hold panics; the caller prints which one it was.

use std::{
    collections::BTreeSet,
    fs::File,
    io::Write as _,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError, Weak,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use ::memory::{Filled, Lease, Pool, Region};
use rustix::fs::MemfdFlags;

use crate::{Completion, CompletionSink, Export, Exports, Link, ReadFault, ReadRequest};

/// How one transport makes links to test.
pub trait Harness {
    /// A link that reads `exports`, which a sender serves for as long as the harness lives. Over a one-sided transport
    /// it is granted every window of every export.
    fn connect(&self, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<dyn Link>;

    /// Drives an engine that has no thread of its own until nothing more can happen.
    fn pump(&self) {}

    /// How much of a one-sided transport it is, if it is one: its sender is passive, so that nobody asks it whether
    /// bytes are readable or holds a read back.
    fn one_sided(&self) -> Option<&dyn OneSided> {
        None
    }
}

/// What only transports have whose sender is passive.
pub trait OneSided {
    /// Lets reads write this memory for as long as the harness lives.
    fn register(&self, region: &Arc<Region>);

    /// Takes the windows of an export back from the last link.
    fn forget(&self, window: u64);

    /// From now on reads stay outstanding.
    fn hold(&self);

    /// Lets go what was held.
    fn release(&self);
}

/// A check of one law; it panics where the law does not hold.
pub type Law = fn(&dyn Harness);

/// The laws that the harness's transport keeps, by name.
pub fn laws(harness: &dyn Harness) -> impl Iterator<Item = &'static (&'static str, Law)> + use<> {
    let others = if harness.one_sided().is_some() { ONE_SIDED_LAWS } else { SENDER_LAWS };
    LAWS.iter().chain(others)
}

/// What every transport keeps.
const LAWS: &[(&str, Law)] = &[
    ("right bytes from any place", right_bytes),
    ("many reads outstanding each end once", many_outstanding),
    ("a range outside the window is refused", outside_is_refused),
    ("a full link hands the read back", full_hands_back),
    ("closing ends every read", closing_ends_reads),
    ("dropping the link ends every read", dropping_ends_reads),
    ("a late read ends the link", late_read_ends_link),
    ("a sink may post", sink_may_post),
    ("giving up on reads frees no memory that is written", giving_up_frees_nothing),
];

/// What a sender decides that answers each read.
const SENDER_LAWS: &[(&str, Law)] = &[
    ("bytes not checked yet are not sent", unchecked_is_not_here),
    ("a sender that cannot finish a body ends the link", short_body_ends_link),
];

/// What the reading end decides where the sender is passive.
const ONE_SIDED_LAWS: &[(&str, Law)] =
    &[("a read into memory that is not registered is refused", unregistered_is_refused)];

/// No law takes this long on any machine; what does has hung.
const LONG: Duration = Duration::from_secs(30);

const FILE_BYTES: usize = 3 << 20;
const SLOTS: usize = 20;

/// A file in memory whose readiness the law decides.
struct TestFile {
    file: File,
    bytes: u64,
    readable: Mutex<u64>,
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Export for TestFile {
    fn file(&self) -> &File {
        &self.file
    }

    /// Waits for the gate: a law holds the sender back so, and thereby knows which reads are outstanding.
    fn is_readable(&self, range: Range<u64>) -> bool {
        let gate = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_timeout_while(gate, LONG, |is_open| !*is_open);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        range.end <= *self.readable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl TestFile {
    fn set_gate(&self, is_open: bool) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = is_open;
        self.opened.notify_all();
    }

    fn set_readable(&self, bytes: u64) {
        *self.readable.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }
}

/// Made once: unoptimised, a loop over every byte would be most of what a law does.
fn content() -> &'static [u8] {
    static CONTENT: OnceLock<Vec<u8>> = OnceLock::new();
    CONTENT.get_or_init(make_content)
}

fn make_content() -> Vec<u8> {
    // No two places within the file look alike: the state of a generator with a period beyond its length.
    let mut state = 0x2545_F491_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..FILE_BYTES).map(|_| next()).collect()
}

/// One link to one file, and what came of its reads.
struct Bench<'a> {
    harness: &'a dyn Harness,
    link: Option<Arc<dyn Link>>,
    completions: Receiver<Completion>,
    pool: Arc<Pool>,
    exports: Exports,
    export: Arc<TestFile>,
    handle: u64,
    content: &'static [u8],
}

impl<'a> Bench<'a> {
    fn new(harness: &'a dyn Harness, in_flight_max: usize) -> Self {
        let (sender, completions) = mpsc::channel();
        let sink: CompletionSink = Arc::new(move |completion| {
            // A law that has failed listens no more.
            let _ = sender.send(completion);
        });
        Self::with_sink(harness, in_flight_max, sink, completions)
    }

    fn with_sink(
        harness: &'a dyn Harness,
        in_flight_max: usize,
        sink: CompletionSink,
        completions: Receiver<Completion>,
    ) -> Self {
        let content = content();
        let fd = rustix::fs::memfd_create("conformance", MemfdFlags::CLOEXEC).expect("Linux has memfd");
        let mut file = File::from(fd);
        file.write_all(content).expect("there is memory");
        let export = Arc::new(TestFile {
            file,
            bytes: FILE_BYTES as u64,
            readable: Mutex::new(u64::MAX),
            is_open: Mutex::new(true),
            opened: Condvar::new(),
        });
        let exports = Exports::new();
        let handle = exports.register(Arc::clone(&export) as Arc<dyn Export>);
        let link = Some(harness.connect(exports.clone(), in_flight_max, sink));
        let pool = Pool::new(SLOTS, FILE_BYTES).expect("there is memory");
        if let Some(one_sided) = harness.one_sided() {
            one_sided.register(pool.region());
        }
        Self { harness, link, completions, pool, exports, export, handle, content }
    }

    fn link(&self) -> &Arc<dyn Link> {
        self.link.as_ref().expect("only the end of a law takes it")
    }

    fn read(&self, id: u64, offset: u64, len: usize) -> ReadRequest {
        let lease = self.pool.try_lease(len).expect("laws stay within the pool");
        ReadRequest { id, window: self.handle, offset, lease, deadline: Instant::now() + LONG }
    }

    /// From now on reads stay outstanding.
    fn hold(&self) {
        match self.harness.one_sided() {
            Some(one_sided) => one_sided.hold(),
            None => self.export.set_gate(false),
        }
    }

    fn release(&self) {
        match self.harness.one_sided() {
            Some(one_sided) => one_sided.release(),
            None => self.export.set_gate(true),
        }
    }

    /// Lets no new read of the file begin.
    fn withdraw(&self) {
        self.exports.withdraw(self.handle);
        if let Some(one_sided) = self.harness.one_sided() {
            one_sided.forget(self.handle);
        }
    }

    fn post(&self, read: ReadRequest) {
        let id = read.id;
        assert!(self.link().post(read).is_ok(), "read {id} was handed back by a link with room");
    }

    /// The next completion.
    fn wait(&self) -> Completion {
        self.harness.pump();
        self.completions.recv_timeout(LONG).expect("a posted read ends")
    }

    fn expect_bytes(&self, offset: usize, filled: &Filled) {
        let want = &self.content[offset..offset + filled.len()];
        // Not assert_eq: a difference must not print megabytes.
        assert!(**filled == *want, "wrong bytes at {offset}");
    }

    /// After the last law's read: nothing else ends, and every lease came back.
    fn finish(mut self) {
        self.release();
        self.link = None;
        self.harness.pump();
        match self.completions.recv_timeout(LONG) {
            Err(RecvTimeoutError::Disconnected) => {}
            Err(RecvTimeoutError::Timeout) => panic!("a dropped link keeps its sink"),
            Ok(completion) => panic!("one more completion: {completion:?}"),
        }
        assert_eq!(self.pool.free(), SLOTS, "every lease came back");
    }
}

fn expect_down(completion: &Completion) {
    assert!(matches!(completion.result, Err(ReadFault::LinkDown(_))), "not LinkDown: {completion:?}");
}

fn right_bytes(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    assert_eq!(bench.link().in_flight_max(), 4);
    let places = [(0, 1), (FILE_BYTES - 1, 1), (4095, 4098), (1 << 20, 1 << 20), (0, FILE_BYTES)];
    for (id, (offset, len)) in (0..).zip(places) {
        bench.post(bench.read(id, offset as u64, len));
        let Completion { id: ended, result } = bench.wait();
        let filled = result.expect("a good read");
        assert_eq!((ended, filled.len()), (id, len));
        bench.expect_bytes(offset, &filled);
    }
    bench.finish();
}

fn many_outstanding(harness: &dyn Harness) {
    const READS: u64 = 300;
    const LEN: usize = 40_000;
    let bench = Bench::new(harness, 16);
    let offset_of = |id: u64| usize::try_from(id * 7919 % 2_000_000).expect("small");
    let mut ended = BTreeSet::new();
    let mut take = |completion: Completion| {
        let filled = completion.result.expect("a good read");
        bench.expect_bytes(offset_of(completion.id), &filled);
        assert!(ended.insert(completion.id), "read {} ended twice", completion.id);
    };
    let mut outstanding = 0;
    for id in 0..READS {
        // Reads that have ended hold their leases until they are taken.
        while outstanding >= SLOTS {
            take(bench.wait());
            outstanding -= 1;
        }
        let mut read = bench.read(id, offset_of(id) as u64, LEN);
        while let Err(back) = bench.link().post(read) {
            read = back;
            take(bench.wait());
            outstanding -= 1;
        }
        outstanding += 1;
    }
    for _ in 0..outstanding {
        take(bench.wait());
    }
    assert_eq!(ended.len() as u64, READS);
    bench.finish();
}

fn outside_is_refused(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    let refused = |read: ReadRequest| {
        let id = read.id;
        bench.post(read);
        let completion = bench.wait();
        assert_eq!(completion.id, id);
        assert!(matches!(completion.result, Err(ReadFault::Refused)), "not Refused: {completion:?}");
    };
    refused(bench.read(1, FILE_BYTES as u64, 1));
    refused(bench.read(2, FILE_BYTES as u64 - 1, 2));
    refused(bench.read(3, u64::MAX, 2));
    refused(bench.read(4, 0, 0));
    refused(ReadRequest { window: bench.handle + 1, ..bench.read(5, 0, 1) });
    // The link outlives a refusal.
    bench.post(bench.read(6, 0, 9));
    bench.expect_bytes(0, &bench.wait().result.expect("a good read"));
    bench.withdraw();
    refused(bench.read(7, 0, 1));
    bench.finish();
}

fn unregistered_is_refused(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    let other = Pool::new(1, FILE_BYTES).expect("there is memory");
    let lease = other.try_lease(10).expect("a new pool");
    bench.post(ReadRequest { lease, ..bench.read(1, 0, 1) });
    let completion = bench.wait();
    assert!(matches!(completion.result, Err(ReadFault::Refused)), "not Refused: {completion:?}");
    assert_eq!(other.free(), 1);
    bench.post(bench.read(2, 0, 9));
    bench.expect_bytes(0, &bench.wait().result.expect("a good read"));
    bench.finish();
}

fn unchecked_is_not_here(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    bench.export.set_readable(1000);
    bench.post(bench.read(1, 900, 101));
    let completion = bench.wait();
    assert!(matches!(completion.result, Err(ReadFault::NotHere)), "not NotHere: {completion:?}");
    bench.export.set_readable(1001);
    bench.post(bench.read(2, 900, 101));
    bench.expect_bytes(900, &bench.wait().result.expect("a good read"));
    bench.finish();
}

fn full_hands_back(harness: &dyn Harness) {
    let bench = Bench::new(harness, 3);
    bench.hold();
    for id in 0..3 {
        bench.post(bench.read(id, 0, 10));
    }
    let back = bench.link().post(bench.read(3, 0, 11)).expect_err("the link is full");
    assert_eq!((back.id, back.lease.len()), (3, 11));
    assert!(!bench.link().is_closed());
    assert_eq!(bench.link().bytes_received(), 0);
    bench.release();
    for _ in 0..3 {
        bench.wait().result.expect("a good read");
    }
    assert_eq!(bench.link().bytes_received(), 30);
    bench.post(back);
    assert_eq!(bench.wait().id, 3);
    bench.finish();
}

fn closing_ends_reads(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    bench.hold();
    for id in 0..4 {
        bench.post(bench.read(id, 0, 10));
    }
    bench.link().close();
    bench.link().close();
    assert!(bench.link().is_closed());
    assert!(bench.link().post(bench.read(9, 0, 10)).is_err(), "a closed link took a read");
    let ended: BTreeSet<u64> = (0..4)
        .map(|_| {
            let completion = bench.wait();
            expect_down(&completion);
            completion.id
        })
        .collect();
    assert_eq!(ended.len(), 4);
    bench.finish();
}

fn dropping_ends_reads(harness: &dyn Harness) {
    let mut bench = Bench::new(harness, 4);
    bench.hold();
    for id in 0..4 {
        bench.post(bench.read(id, 0, 10));
    }
    bench.link = None;
    for _ in 0..4 {
        expect_down(&bench.wait());
    }
    bench.finish();
}

fn late_read_ends_link(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    bench.hold();
    bench.post(bench.read(1, 0, 10));
    bench.post(ReadRequest { deadline: Instant::now(), ..bench.read(2, 0, 10) });
    for _ in 0..2 {
        let completion = bench.wait();
        match completion.id {
            1 => expect_down(&completion),
            _ => assert!(matches!(completion.result, Err(ReadFault::Deadline)), "{completion:?}"),
        }
    }
    assert!(bench.link().is_closed());
    bench.finish();
}

fn short_body_ends_link(harness: &dyn Harness) {
    let bench = Bench::new(harness, 4);
    bench.hold();
    bench.post(bench.read(0, 0, 10));
    bench.post(bench.read(1, 0, FILE_BYTES));
    bench.post(bench.read(2, 0, 10));
    // Half of what the sender believes to have is gone when it sends.
    bench.export.file.set_len(FILE_BYTES as u64 / 2).expect("a memfd shrinks");
    bench.release();
    bench.wait().result.expect("these bytes are still there");
    for id in 1..3 {
        let completion = bench.wait();
        assert_eq!(completion.id, id);
        expect_down(&completion);
    }
    assert!(bench.link().is_closed());
    bench.finish();
}

fn giving_up_frees_nothing(harness: &dyn Harness) {
    const READS: usize = 4;
    const POISON: u8 = 0xa5;
    let mut bench = Bench::new(harness, READS);
    bench.hold();
    for id in 0..READS {
        bench.post(bench.read(id as u64, 0, FILE_BYTES));
    }
    // Nobody waits for them any more, but they are still to be written.
    bench.completions = mpsc::channel().1;
    assert_eq!(bench.pool.free(), SLOTS - READS, "memory came back while it could be written");
    bench.link = None;
    let start = Instant::now();
    while bench.pool.free() < SLOTS {
        bench.harness.pump();
        assert!(start.elapsed() < LONG, "a link that is gone gives its leases back");
        std::thread::yield_now();
    }
    // Whoever gets the memory next keeps what it writes there.
    let mut next: Vec<Lease> = (0..SLOTS).map(|_| bench.pool.try_lease(FILE_BYTES).expect("free")).collect();
    for lease in &mut next {
        lease.as_mut_slice().fill(POISON);
    }
    bench.release();
    // What was let go has come and gone when another link's read has.
    right_bytes(harness);
    let poison = vec![POISON; FILE_BYTES];
    for lease in &mut next {
        assert!(*lease.as_mut_slice() == poison[..], "memory was written after it came back");
    }
}

fn sink_may_post(harness: &dyn Harness) {
    const READS: u64 = 20;
    let link: Arc<OnceLock<Weak<dyn Link>>> = Arc::default();
    let (sender, completions) = mpsc::channel();
    let sink: CompletionSink = {
        let link = Arc::clone(&link);
        Arc::new(move |completion| {
            let Completion { id, result } = completion;
            let live = link.get().and_then(Weak::upgrade);
            match (result, live) {
                (Ok(filled), Some(live)) if id + 1 < READS => {
                    let lease = filled.into_lease();
                    let deadline = Instant::now() + LONG;
                    // The same window each time; the harness has registered it first.
                    let next = ReadRequest { id: id + 1, window: 1, offset: id, lease, deadline };
                    assert!(live.post(next).is_ok(), "the read that just ended left room");
                }
                (result, _) => {
                    let _ = sender.send(Completion { id, result });
                }
            }
        })
    };
    let bench = Bench::with_sink(harness, 1, sink, completions);
    assert_eq!(bench.handle, 1);
    link.set(Arc::downgrade(bench.link())).expect("set once");
    bench.post(bench.read(0, 0, 100));
    let last = bench.wait();
    assert_eq!(last.id, READS - 1);
    drop(last);
    bench.finish();
}
