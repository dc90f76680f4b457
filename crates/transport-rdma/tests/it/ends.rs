//! The two ends of a link for the tests. Owns no test.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use memory::Pool;
use transport::{Completion, CompletionSink, Link as _, ReadFault, ReadRequest};
use transport_rdma::{Rdma, RdmaError, RdmaLink, Registration, Serving, Source, fake::Fabric};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What the files of these tests hold at a place.
pub(crate) fn content(offset: u64, len: usize) -> Vec<u8> {
    (offset..).take(len).map(|at| (at * 7 + at / 251 + at / 65_537) as u8).collect()
}

/// A link between two processes of a fabric.
pub(crate) struct Ends {
    pub(crate) child: Rdma,
    pub(crate) parent: Rdma,
    pub(crate) link: Option<Arc<RdmaLink>>,
    pub(crate) serving: Option<Serving>,
    pub(crate) source: Arc<Source>,
    pub(crate) completions: Receiver<Completion>,
    pub(crate) pool: Arc<Pool>,
    _registration: Registration,
}

/// The handle of the file.
pub(crate) const HANDLE: u64 = 7;

pub(crate) const SLOTS: usize = 16;
pub(crate) const SLOT_BYTES: usize = 4 << 20;

pub(crate) fn channel() -> (CompletionSink, Receiver<Completion>) {
    let (sender, completions) = mpsc::channel();
    // Tests that have seen enough listen no more.
    let sink: CompletionSink = Arc::new(move |completion| drop(sender.send(completion)));
    (sink, completions)
}

/// A file of so many bytes on an ordinary file system.
pub(crate) fn file(bytes: usize) -> Arc<File> {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(&content(0, bytes)).expect("space");
    Arc::new(file)
}

pub(crate) fn connect(
    child: &Rdma,
    parent: &Rdma,
    in_flight_max: usize,
) -> Result<(Arc<RdmaLink>, Serving, Receiver<Completion>), RdmaError> {
    let (sink, completions) = channel();
    let offer = child.offer(in_flight_max, sink)?;
    let serving = parent.serve(&offer.endpoints())?;
    let link = offer.connect(&serving.endpoints(), serving.probe())?;
    Ok((link, serving, completions))
}

impl Ends {
    /// A link over so many rails, to a file of so many bytes whose first window is granted.
    pub(crate) fn new(fabric: &Fabric, rails: usize, bytes: usize) -> Self {
        Self::between(fabric.adapter(rails), fabric.adapter(rails), bytes)
    }

    pub(crate) fn between(child: Rdma, parent: Rdma, bytes: usize) -> Self {
        let (link, serving, completions) = connect(&child, &parent, SLOTS).expect("they reach each other");
        let source = Source::new(&parent, file(bytes), bytes as u64, HANDLE);
        source.readable(0..bytes as u64).expect("no mirror");
        let window = serving.window(&source, 0).expect("pinned");
        link.grant(HANDLE, window).expect("a good grant");
        let pool = Pool::new(SLOTS, SLOT_BYTES).expect("memory");
        let region = pool.region();
        let registration = child.register(region, 0..region.len()).expect("pinned");
        Self {
            child,
            parent,
            link: Some(link),
            serving: Some(serving),
            source,
            completions,
            pool,
            _registration: registration,
        }
    }

    pub(crate) fn link(&self) -> &Arc<RdmaLink> {
        self.link.as_ref().expect("not dropped yet")
    }

    pub(crate) fn read(&self, id: u64, offset: u64, len: usize) -> ReadRequest {
        let lease = self.pool.try_lease(len).expect("free");
        ReadRequest { id, window: HANDLE, offset, lease, deadline: Instant::now() + LONG }
    }

    pub(crate) fn post(&self, id: u64, offset: u64, len: usize) {
        self.link().post(self.read(id, offset, len)).expect("room");
    }

    pub(crate) fn wait(&self) -> Completion {
        self.completions.recv_timeout(LONG).expect("a posted read ends")
    }

    /// Posts a read and expects its bytes.
    pub(crate) fn fetch(&self, offset: u64, len: usize) {
        self.post(99, offset, len);
        self.expect_good(offset, len);
    }

    pub(crate) fn expect_good(&self, offset: u64, len: usize) {
        let filled = self.wait().result.expect("a good read");
        assert!(*filled == content(offset, len)[..], "wrong bytes at {offset}");
    }

    pub(crate) fn expect_down(&self) {
        let completion = self.wait();
        assert!(matches!(completion.result, Err(ReadFault::LinkDown(_))), "{completion:?}");
    }

    /// A wait for what no completion tells.
    pub(crate) fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < LONG, "{what}");
            std::thread::yield_now();
        }
    }
}
