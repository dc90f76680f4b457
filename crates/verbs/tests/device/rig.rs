//! Two connected queue pairs on one device, and how to wait for them. Does not own: what is shown with them.

use std::{
    fs::File,
    io::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use memory::{Access, Region};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{MemfdFlags, memfd_create},
};
use verbs::{
    CompletionQueue, Context, Gid, GidKind, MemoryRegion, OwnEnd, Path, Port, ProtectionDomain, QpAddress,
    QueuePair, Read, ReadDone, Rights, Role, Sink, Status,
};

/// How long anything may take on an emulated processor.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const MIB: usize = 1 << 20;

/// One end: each side has a domain and a queue of its own, as transports have.
pub(crate) struct End {
    pub(crate) domain: Arc<ProtectionDomain>,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) pair: QueuePair,
}

/// Who reads, and who is read from.
pub(crate) struct Rig {
    pub(crate) context: Arc<Context>,
    pub(crate) fetch: End,
    pub(crate) serve: End,
}

/// The device to try, which must be there: a test that finds none has shown nothing.
pub(crate) fn context() -> Arc<Context> {
    let name = std::env::var("MODELCAST_RDMA_DEVICE").expect("MODELCAST_RDMA_DEVICE names an RDMA device");
    Context::open(&name).unwrap_or_else(|error| panic!("{name}: {error}: {:?}", error.hint()))
}

pub(crate) fn port(context: &Context) -> Port {
    let port = context.ports().next().expect("a device has a port");
    context.port(port).expect("its state")
}

/// An address that can be routed if there is one, on IPv4 first.
pub(crate) fn gid(context: &Context) -> Gid {
    let mut gids = context.gids().expect("addresses");
    let is_v4 = |gid: &Gid| gid.raw[..10] == [0; 10] && gid.raw[10..12] == [0xff; 2];
    gids.sort_by_key(|gid| (gid.kind == GidKind::RoceV1, !is_v4(gid)));
    gids.into_iter().next().expect("a port has an address")
}

impl End {
    pub(crate) fn new(context: &Arc<Context>, depth: u32, sends_max: u32) -> Self {
        let domain = ProtectionDomain::new(context).expect("a domain");
        let queue = CompletionQueue::new(context, depth).expect("a completion queue");
        let pair = QueuePair::create(&domain, &queue, sends_max).expect("a queue pair");
        Self { domain, queue, pair }
    }
}

/// From one queue pair of the device to another.
pub(crate) fn path(context: &Context, qpn: u32, psn: (u32, u32)) -> Path {
    let (port, gid) = (port(context), gid(context));
    let peer = QpAddress { qpn, psn: psn.1, gid: gid.raw, lid: port.lid, mtu_bytes: port.mtu_bytes };
    let own = OwnEnd { psn: psn.0, gid_index: gid.index, port: port.number };
    Path { peer, own, reads_in_flight: context.limits().reads_in_flight_max.min(16) }
}

impl Rig {
    pub(crate) fn new() -> Self {
        Self::on(&context(), 64)
    }

    pub(crate) fn on(context: &Arc<Context>, sends_max: u32) -> Self {
        let (mut fetch, mut serve) = (End::new(context, 256, sends_max), End::new(context, 16, 1));
        let (asks, answers) = (0x00ab_cdef, 0x0012_3456);
        let to_serve = path(context, serve.pair.number(), (asks, answers));
        let to_fetch = path(context, fetch.pair.number(), (answers, asks));
        serve.pair.connect(&to_fetch, Role::Serve).expect("the serving end");
        fetch.pair.connect(&to_serve, Role::Fetch).expect("the fetching end");
        Self { context: Arc::clone(context), fetch, serve }
    }

    /// Registers all of a region for this rig's peer to read.
    pub(crate) fn served(&self, region: &Arc<Region>) -> Arc<MemoryRegion> {
        MemoryRegion::register(&self.serve.domain, region, 0..region.len(), Rights::RemoteRead)
            .unwrap_or_else(|error| {
                panic!("{error}: {:?}: {:?}", std::error::Error::source(&error), error.hint())
            })
    }

    /// Memory to read into, registered for it.
    pub(crate) fn sink(&self, bytes: usize) -> (Arc<Region>, Arc<MemoryRegion>) {
        let region = Region::anonymous(bytes).expect("memory");
        let local = MemoryRegion::register(&self.fetch.domain, &region, 0..bytes, Rights::LocalWrite);
        (region, local.expect("registered memory"))
    }

    /// Waits until so many reads have ended.
    pub(crate) fn ended(&self, count: usize) -> Vec<ReadDone> {
        ended(&self.fetch.queue, count)
    }
}

/// Waits until so many reads have ended, and no more.
fn ended(queue: &CompletionQueue, count: usize) -> Vec<ReadDone> {
    let done = at_least(queue, count);
    assert_eq!(done.len(), count, "no read ends twice");
    done
}

/// Waits until at least so many reads have ended, by the queue's descriptor.
pub(crate) fn at_least(queue: &CompletionQueue, count: usize) -> Vec<ReadDone> {
    let (mut done, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while done.len() < count {
        queue.arm().expect("armed");
        if queue.poll(&mut done).expect("polled") > 0 {
            continue;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "{} of {count} reads have ended", done.len());
        let timeout = Timespec::try_from(left).expect("seconds");
        poll(&mut [PollFd::new(queue, PollFlags::IN)], Some(&timeout)).expect("waited");
        queue.clear_events().expect("cleared");
    }
    done
}

/// Reads of `MIB` bytes each, which fill a region from a served one of the same length.
pub(crate) fn reads(sink: &Sink, local: &Arc<MemoryRegion>, source: &MemoryRegion) -> Vec<Read> {
    let starts = (0..sink.len()).step_by(MIB);
    let read = |start: usize| Read {
        id: start as u64,
        sink: sink.clone(),
        range: start..sink.len().min(start + MIB),
        local: Arc::clone(local),
        address: source.address() + start as u64,
        rkey: source.rkey(),
    };
    starts.map(read).collect()
}

/// What reads that ended say, in the order in which they did.
pub(crate) fn statuses(done: &[ReadDone]) -> Vec<Option<Status>> {
    done.iter().map(|done| done.status.err().map(|error| error.status)).collect()
}

/// Bytes that nothing else holds by chance: a counter in each eight, so that none is like another.
pub(crate) fn noise(bytes: usize, seed: u8) -> Vec<u8> {
    let mut noise = vec![seed; bytes];
    for (index, word) in noise.chunks_exact_mut(8).enumerate() {
        word[..7].copy_from_slice(&index.to_le_bytes()[..7]);
    }
    noise
}

/// A file in memory that holds these bytes, mapped so that this kernel can register it for peers to read.
pub(crate) fn file(bytes: &[u8]) -> Arc<Region> {
    let mut file =
        File::from(memfd_create("modelcast-verbs", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("written");
    let kernel = verbs::findings().kernel.expect("a version");
    let access = if kernel.registers_read_only() { Access::Read } else { Access::ReadWrite };
    Region::map(&file, bytes.len(), access).expect("mapped")
}

/// All bytes of a region.
pub(crate) fn bytes(region: &Region) -> Vec<u8> {
    let mut bytes = vec![0; region.len()];
    region.read_at(0, &mut bytes);
    bytes
}
