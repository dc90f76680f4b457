//! What fake cards do: registrations, queue pairs, reads. Does not own faults by script (`script`).

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use memory::{Access, Region};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, read, write},
};
use verbs::{Rights, VerbsError};

use crate::{
    Endpoint, Network, RailInfo,
    rail::{Done, Failure, FailureKind, Memory, Purpose, QueuePair, Rail, RailEvent, Unposted, Work},
};

/// How much is copied at once.
const COPY_BYTES: usize = 64 << 10;

/// Works that one card's completion queue holds.
const WORKS_MAX: usize = 4096;

/// The network that cards of one fabric share.
#[derive(Default)]
pub(crate) struct Net {
    state: Mutex<State>,
    registered_bytes: AtomicU64,
}

#[derive(Default)]
struct State {
    processes: u32,
    /// Queue pairs and keys are numbered from one count, so that no two are alike.
    last: u32,
    qps: BTreeMap<u32, QpState>,
    pins: BTreeMap<u32, Pinned>,
    ports: BTreeMap<String, Arc<PortInner>>,
    cut: Vec<String>,
    pins_for_writing_only: bool,
}

struct QpState {
    port: String,
    purpose: Purpose,
    peer: Option<u32>,
    is_broken: bool,
}

/// What the card knows of a registration: a key is worth nothing in the hands of another card or domain.
#[derive(Clone)]
struct Pinned {
    port: String,
    purpose: Purpose,
    region: Arc<Region>,
    range: Range<usize>,
}

impl Net {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn next_process(&self) -> u32 {
        let mut state = self.lock();
        state.processes += 1;
        state.processes
    }

    pub(crate) fn pin_for_writing_only(&self) {
        self.lock().pins_for_writing_only = true;
    }

    pub(crate) fn set_cut(&self, rail: &str) {
        self.lock().cut.push(rail.to_owned());
    }

    fn port(&self, rail: &str) -> Arc<PortInner> {
        let port = self.lock().ports.get(rail).cloned();
        port.unwrap_or_else(|| panic!("the fabric has no card `{rail}`"))
    }

    pub(crate) fn port_down(&self, rail: &str) {
        self.set_cut(rail);
        self.port(rail).say(RailEvent::Down);
    }

    pub(crate) fn device_gone(&self, rail: &str) {
        self.set_cut(rail);
        self.port(rail).say(RailEvent::Gone);
    }

    pub(crate) fn queue_pair_failed(&self, rail: &str, qpn: u32) {
        if let Some(qp) = self.lock().qps.get_mut(&qpn) {
            qp.is_broken = true;
        }
        self.port(rail).say(RailEvent::QueuePairFailed(qpn));
    }

    pub(crate) fn port_up(&self, rail: &str) {
        self.lock().cut.retain(|cut| cut != rail);
        self.port(rail).say(RailEvent::Up);
    }

    pub(crate) fn bytes_fetched(&self, rail: &str) -> u64 {
        self.port(rail).fetched.load(Ordering::Relaxed)
    }

    pub(crate) fn queue_pairs(&self) -> usize {
        self.lock().qps.len()
    }

    pub(crate) fn registered_bytes(&self) -> u64 {
        self.registered_bytes.load(Ordering::Relaxed)
    }

    /// Breaks the queue pair whose work this is, unless the bytes may be read; says from where.
    fn source_of(&self, qp: u32, work: &Work) -> Result<(Arc<Region>, usize), Failure> {
        let mut state = self.lock();
        let found = state.find_source(qp, work);
        if found.is_err()
            && let Some(qp) = state.qps.get_mut(&qp)
        {
            qp.is_broken = true;
        }
        found
    }
}

impl State {
    fn next(&mut self) -> u32 {
        self.last += 1;
        self.last
    }

    fn find_source(&self, qp: u32, work: &Work) -> Result<(Arc<Region>, usize), Failure> {
        let path = |text: &str| Failure::new(FailureKind::Path, text);
        let access = || Failure::new(FailureKind::Access, "remote access error");
        let own = self.qps.get(&qp).filter(|own| !own.is_broken).ok_or_else(|| path("flushed"))?;
        let silence = || path("transport retry counter exceeded");
        let number = own.peer.ok_or_else(|| path("not connected"))?;
        let peer = self.qps.get(&number).ok_or_else(silence)?;
        if self.cut.contains(&own.port) || self.cut.contains(&peer.port) || peer.peer != Some(qp) {
            return Err(silence());
        }
        let pin = self.pins.get(&work.rkey).ok_or_else(access)?;
        if pin.port != peer.port || pin.purpose != Purpose::Serve || peer.purpose != Purpose::Serve {
            return Err(access());
        }
        let start =
            work.address.checked_sub(pin.region.address()).and_then(|start| usize::try_from(start).ok());
        let start = start.ok_or_else(access)?;
        let end = start.checked_add(work.range.len()).ok_or_else(access)?;
        if start < pin.range.start || end > pin.range.end {
            return Err(access());
        }
        Ok((Arc::clone(&pin.region), start))
    }
}

/// A registration.
pub(crate) struct Pin {
    net: Arc<Net>,
    key: u32,
    pinned: Pinned,
}

impl Pin {
    pub(crate) fn rkey(&self) -> u32 {
        self.key
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.net.registered_bytes.fetch_sub(self.pinned.range.len() as u64, Ordering::Relaxed);
        self.net.lock().pins.remove(&self.key);
    }
}

/// A card.
pub(crate) struct Port {
    net: Arc<Net>,
    info: RailInfo,
    inner: Arc<PortInner>,
}

struct PortInner {
    queue: Mutex<Queue>,
    completions: OwnedFd,
    happenings: Mutex<Vec<RailEvent>>,
    events: OwnedFd,
    fetched: AtomicU64,
    /// This process's memory, as a card sees it.
    memory: File,
}

#[derive(Default)]
struct Queue {
    done: Vec<Done>,
    is_armed: bool,
}

impl PortInner {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complete(&self, done: Done) {
        let mut queue = self.queue();
        queue.done.push(done);
        if std::mem::take(&mut queue.is_armed) {
            ring(&self.completions);
        }
    }

    fn say(&self, event: RailEvent) {
        self.happenings.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        ring(&self.events);
    }

    /// Moves the bytes of a work.
    fn fetch(&self, work: &Work, source: &Region, from: usize) -> io::Result<()> {
        let Memory::Fake(local) = &work.local else { return Err(Errno::INVAL.into()) };
        let start = work.start + work.range.start;
        let target = start..start + work.range.len();
        if local.pinned.purpose != Purpose::Fetch
            || target.start < local.pinned.range.start
            || target.end > local.pinned.range.end
        {
            return Err(Errno::ACCESS.into());
        }
        let address = local.pinned.region.address() + start as u64;
        let mut buffer = vec![0; COPY_BYTES.min(work.range.len())];
        let mut at = 0;
        while at < work.range.len() {
            let bytes = COPY_BYTES.min(work.range.len() - at);
            source.read_at(from + at, &mut buffer[..bytes]);
            self.memory.write_all_at(&buffer[..bytes], address + at as u64)?;
            at += bytes;
        }
        self.fetched.fetch_add(work.range.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn ring(fd: &OwnedFd) {
    // It fails only when the count is full, and then it is readable anyway.
    let _ = write(fd, &1_u64.to_ne_bytes());
}

fn quiet(fd: &OwnedFd) {
    // Fails when it did not ring.
    let _ = read(fd, &mut [0_u8; 8]);
}

impl Port {
    pub(crate) fn new(net: &Arc<Net>, process: u32, number: usize) -> io::Result<Self> {
        let fd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let inner = Arc::new(PortInner {
            queue: Mutex::default(),
            completions: fd()?,
            happenings: Mutex::default(),
            events: fd()?,
            fetched: AtomicU64::new(0),
            memory: File::options().write(true).open("/proc/self/mem")?,
        });
        let name = format!("fake{process}_{number:02}");
        let mut gid = [0; 16];
        gid[10..12].fill(0xff);
        gid[12..].copy_from_slice(&process.to_be_bytes());
        let info = RailInfo {
            name: name.clone(),
            port: 1,
            gid,
            lid: 0,
            mtu_bytes: 4096,
            network: Network::RoceIpv4,
            netdev: None,
            reads_in_flight_max: 16,
        };
        net.lock().ports.insert(name, Arc::clone(&inner));
        Ok(Self { net: Arc::clone(net), info, inner })
    }
}

impl Rail for Port {
    fn info(&self) -> &RailInfo {
        &self.info
    }

    fn works_max(&self) -> usize {
        WORKS_MAX
    }

    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
        purpose: Purpose,
    ) -> Result<Memory, VerbsError> {
        if range.is_empty() || range.end > region.len() {
            return Err(VerbsError::Refused("a registration is a range of its region"));
        }
        let mut state = self.net.lock();
        let writes = purpose == Purpose::Fetch || state.pins_for_writing_only;
        if writes && region.access() == Access::Read {
            let rights = if purpose == Purpose::Fetch { Rights::LocalWrite } else { Rights::RemoteRead };
            let (device, bytes) = (self.info.name.clone(), range.len());
            return Err(VerbsError::Register { device, bytes, rights, source: Errno::FAULT.into() });
        }
        let key = state.next();
        let bytes = range.len() as u64;
        let pinned = Pinned { port: self.info.name.clone(), purpose, region: Arc::clone(region), range };
        state.pins.insert(key, pinned.clone());
        self.net.registered_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(Memory::Fake(Arc::new(Pin { net: Arc::clone(&self.net), key, pinned })))
    }

    fn queue_pair(&self, purpose: Purpose) -> Result<Box<dyn QueuePair>, VerbsError> {
        let mut state = self.net.lock();
        let number = state.next();
        let port = self.info.name.clone();
        state.qps.insert(number, QpState { port, purpose, peer: None, is_broken: false });
        Ok(Box::new(Qp { net: Arc::clone(&self.net), port: Arc::clone(&self.inner), number }))
    }

    fn poll(&self, done: &mut Vec<Done>) -> Result<(), VerbsError> {
        done.append(&mut self.inner.queue().done);
        Ok(())
    }

    fn arm(&self) -> Result<(), VerbsError> {
        self.inner.queue().is_armed = true;
        Ok(())
    }

    fn clear(&self) {
        quiet(&self.inner.completions);
    }

    fn completions(&self) -> BorrowedFd<'_> {
        self.inner.completions.as_fd()
    }

    fn events(&self) -> BorrowedFd<'_> {
        self.inner.events.as_fd()
    }

    fn next_event(&self) -> Option<RailEvent> {
        let mut happenings = self.inner.happenings.lock().unwrap_or_else(PoisonError::into_inner);
        if happenings.is_empty() {
            quiet(&self.inner.events);
            return None;
        }
        Some(happenings.remove(0))
    }
}

struct Qp {
    net: Arc<Net>,
    port: Arc<PortInner>,
    number: u32,
}

impl QueuePair for Qp {
    fn number(&self) -> u32 {
        self.number
    }

    fn connect(&mut self, peer: &Endpoint, _: &Endpoint) -> Result<(), VerbsError> {
        let mut state = self.net.lock();
        let own = state.qps.get_mut(&self.number).ok_or(VerbsError::Refused("a queue pair is there"))?;
        own.peer = Some(peer.qpn);
        Ok(())
    }

    fn post(&mut self, works: Vec<Work>) -> Result<(), Unposted> {
        for work in works {
            let source = self.net.source_of(self.number, &work);
            let result = source.and_then(|(source, from)| {
                let fetched = self.port.fetch(&work, &source, from);
                fetched.map_err(|error| {
                    Failure::new(FailureKind::Path, format!("local protection error: {error}"))
                })
            });
            let Work { id, sink, .. } = work;
            self.port.complete(Done { id, qp: self.number, sink, result });
        }
        Ok(())
    }

    fn destroy(self: Box<Self>) -> Vec<Done> {
        let mut queue = self.port.queue();
        let done = std::mem::take(&mut queue.done);
        let (own, others): (Vec<Done>, Vec<Done>) = done.into_iter().partition(|done| done.qp == self.number);
        queue.done = others;
        drop(queue);
        let destroyed = || Err(Failure::new(FailureKind::Path, "the queue pair was destroyed"));
        own.into_iter().map(|done| Done { result: destroyed(), ..done }).collect()
    }
}

impl Drop for Qp {
    fn drop(&mut self) {
        self.net.lock().qps.remove(&self.number);
    }
}
