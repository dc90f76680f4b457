//! Two processes and a link between them, for the tests. Owns no test.

use std::{
    fs::File,
    io::Write as _,
    sync::{
        Arc, OnceLock,
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use memory::{Lease, Pool};
use transport::{Completion, CompletionSink, Link as _, ReadFault, ReadRequest};
use transport_rdma::{
    Options, Rdma, RdmaError, RdmaLink, Registration, Serving, Source,
    fake::{self, Fabric, Script},
};

/// No test takes this long on any machine; what does has hung.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// The handle of the file.
pub(crate) const HANDLE: u64 = 7;

pub(crate) const SLOTS: usize = 16;
pub(crate) const SLOT_BYTES: usize = 2 << 20;

/// Two processes that reach each other.
pub(crate) struct Site {
    pub(crate) child: Rdma,
    pub(crate) parent: Rdma,
    pub(crate) script: Script,
    /// None if the rails are of a real device.
    pub(crate) fabric: Option<Fabric>,
}

impl Site {
    /// On the fake fabric, with so many rails each.
    pub(crate) fn fake(rails: usize) -> Self {
        let fabric = Fabric::new();
        let (child, parent) = (fabric.adapter(rails), fabric.adapter(rails));
        Self { child, parent, script: fabric.script().clone(), fabric: Some(fabric) }
    }

    /// On the device that `MODELCAST_RDMA_DEVICE` names.
    pub(crate) fn device() -> Self {
        let device = std::env::var("MODELCAST_RDMA_DEVICE").expect("MODELCAST_RDMA_DEVICE names a device");
        let options = Options { devices: vec![device], pinned_bytes_max: 1 << 30 };
        let script = Script::default();
        let child = fake::scripted(&options, &script).expect("a device that can be used");
        let parent = Rdma::open(&options).expect("a device that can be used");
        Self { child, parent, script, fabric: None }
    }

    pub(crate) fn fabric(&self) -> &Fabric {
        self.fabric.as_ref().expect("this test is of the fake fabric")
    }

    /// Makes reads take long enough that something can happen to them. Those of a device do by themselves.
    pub(crate) fn slow_down(&self) {
        if self.fabric.is_some() {
            self.script.hold();
        }
    }
}

/// How long what is in the files is before it comes again: a prime, so that no two places of a read's length look alike.
const PERIOD: usize = 1_048_583;

/// What the files of these tests hold at a place. Made once and copied: unoptimised loops over every byte would be most
/// of what a test does.
pub(crate) fn content(offset: u64, len: usize) -> Vec<u8> {
    static ONCE: OnceLock<Vec<u8>> = OnceLock::new();
    let once = ONCE
        .get_or_init(|| (0..PERIOD).map(|at| (at * 7 + at / 251 + at / 65_537).to_le_bytes()[0]).collect());
    let start = usize::try_from(offset % PERIOD as u64).expect("small");
    let mut content: Vec<u8> = Vec::with_capacity(len + PERIOD);
    content.extend_from_slice(&once[start..]);
    while content.len() < len {
        content.extend_from_slice(once);
    }
    content.truncate(len);
    content
}

pub(crate) fn channel() -> (CompletionSink, Receiver<Completion>) {
    let (sender, completions) = mpsc::channel();
    // Tests that have seen enough listen no more.
    let sink: CompletionSink = Arc::new(move |completion| drop(sender.send(completion)));
    (sink, completions)
}

/// A file of so many bytes on an ordinary file system, where there is one.
pub(crate) fn file(bytes: usize) -> Arc<File> {
    let dir = std::env::var_os("MODELCAST_DISK_DIR").map_or_else(std::env::temp_dir, Into::into);
    let mut file = tempfile::tempfile_in(dir).expect("a temporary file");
    file.write_all(&content(0, bytes)).expect("space");
    Arc::new(file)
}

/// A file of so many bytes in memory.
pub(crate) fn memfd(bytes: usize) -> Arc<File> {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).expect("Linux has memfd");
    let mut file = File::from(fd);
    file.write_all(&content(0, bytes)).expect("memory");
    Arc::new(file)
}

pub(crate) type Connected = (Arc<RdmaLink>, Serving, Receiver<Completion>);

pub(crate) fn connect(child: &Rdma, parent: &Rdma, in_flight_max: usize) -> Result<Connected, RdmaError> {
    let (sink, completions) = channel();
    let offer = child.offer(in_flight_max, sink)?;
    let serving = parent.serve(&offer.endpoints())?;
    let link = offer.connect(&serving.endpoints(), serving.probe())?;
    Ok((link, serving, completions))
}

/// A link, what it reads, and where.
pub(crate) struct Ends {
    pub(crate) link: Option<Arc<RdmaLink>>,
    pub(crate) serving: Option<Serving>,
    pub(crate) source: Option<Arc<Source>>,
    pub(crate) completions: Receiver<Completion>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) registration: Registration,
}

impl Ends {
    /// A link to a file of so many bytes whose first window is granted.
    pub(crate) fn new(site: &Site, bytes: usize) -> Self {
        let (link, serving, completions) = connect(&site.child, &site.parent, SLOTS).expect("a path");
        let source = Source::new(&site.parent, memfd(bytes), bytes as u64, HANDLE);
        source.readable(0..bytes as u64).expect("no mirror");
        let window = serving.window(&source, 0).expect("pinned");
        link.grant(HANDLE, window).expect("a good grant");
        let pool = Pool::new(SLOTS, SLOT_BYTES).expect("memory");
        let region = pool.region();
        let registration = site.child.register(region, 0..region.len()).expect("pinned");
        let (link, serving, source) = (Some(link), Some(serving), Some(source));
        Self { link, serving, source, completions, pool, registration }
    }

    pub(crate) fn link(&self) -> &Arc<RdmaLink> {
        self.link.as_ref().expect("not dropped yet")
    }

    pub(crate) fn serving(&self) -> &Serving {
        self.serving.as_ref().expect("not dropped yet")
    }

    pub(crate) fn read(&self, id: u64, offset: u64, len: usize) -> ReadRequest {
        let lease = self.pool.try_lease(len).expect("free");
        ReadRequest { id, window: HANDLE, offset, lease, deadline: Instant::now() + LONG }
    }

    pub(crate) fn post(&self, id: u64, offset: u64, len: usize) {
        self.link().post(self.read(id, offset, len)).expect("room");
    }

    /// Posts as many long reads as the link takes.
    pub(crate) fn fill(&self) {
        for id in 0..SLOTS {
            self.post(id as u64, 0, SLOT_BYTES);
        }
    }

    pub(crate) fn wait(&self) -> Completion {
        self.completions.recv_timeout(LONG).expect("a posted read ends")
    }

    pub(crate) fn expect_good(&self, offset: u64, len: usize) {
        let filled = self.wait().result.expect("a good read");
        assert!(*filled == content(offset, len)[..], "wrong bytes at {offset}");
    }

    /// Posts a read and expects its bytes.
    pub(crate) fn fetch(&self, offset: u64, len: usize) {
        self.post(99, offset, len);
        self.expect_good(offset, len);
    }

    /// Of so many reads that are out, says how many ended because the link did; the others were good.
    pub(crate) fn count_down(&self, reads: usize) -> usize {
        let is_down = |completion: Completion| match completion.result {
            Ok(filled) => {
                assert!(*filled == content(0, filled.len())[..], "wrong bytes");
                false
            }
            Err(ReadFault::LinkDown(_)) => true,
            Err(fault) => panic!("neither good nor LinkDown: {fault:?}"),
        };
        (0..reads).filter(|_| is_down(self.wait())).count()
    }

    /// Takes all of the pool's memory, as its next user, and writes to it.
    pub(crate) fn poison(&self) -> Vec<Lease> {
        until("every lease comes back", || self.pool.free() == SLOTS);
        let mut leases: Vec<Lease> =
            (0..SLOTS).map(|_| self.pool.try_lease(SLOT_BYTES).expect("free")).collect();
        for lease in &mut leases {
            lease.as_mut_slice().fill(POISON);
        }
        leases
    }
}

const POISON: u8 = 0xa5;

/// Nobody wrote since [`Ends::poison`], although everything that was on its way has arrived.
pub(crate) fn expect_poison(site: &Site, mut leases: Vec<Lease>) {
    site.script.release();
    let ends = Ends::new(site, SLOT_BYTES);
    ends.fill();
    assert_eq!(ends.count_down(SLOTS), 0, "another link is well");
    let poison = vec![POISON; SLOT_BYTES];
    for lease in &mut leases {
        assert!(*lease.as_mut_slice() == poison[..], "written after the lease came back");
    }
}

/// A wait for what no completion tells.
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "{what}");
        std::thread::yield_now();
    }
}
