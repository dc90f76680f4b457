//! A link: what its owner and the engines of its rails share, and how a read becomes works.
//!
//! Owns: the table of windows that the sender granted, and the caller's face. Does not own: decisions (`flow`) or QPs
//! (`engine`).

use std::{
    collections::BTreeMap,
    fmt, io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use transport::{Completion, CompletionSink, Level, Link, READ_BYTES_MAX, ReadFault, ReadRequest};
use verbs::Sink;

use crate::{
    RdmaError, RemoteWindow, WINDOW_BYTES,
    engine::{Bell, Command},
    flow::{Ending, Flow, Part},
    rail::{Failure, FailureKind, Work},
    rdma::{Inner, Registered},
};

/// A read that the link has taken. Dropped without an answer it completes with [`ReadFault::LinkDown`].
pub(crate) struct Pending {
    id: u64,
    completions: CompletionSink,
    /// The lease, until the read has ended; and where it begins in its region.
    memory: Option<(Sink, usize)>,
    /// What keeps the memory registered; a read that is refused has none.
    registered: Option<Arc<Registered>>,
}

impl Pending {
    pub(crate) fn new(id: u64, lease: memory::Lease, completions: &CompletionSink) -> Self {
        let start = lease.range().start;
        let memory = Some((Sink::new(lease), start));
        Self { id, completions: Arc::clone(completions), memory, registered: None }
    }

    pub(crate) fn registered_by(mut self, registered: Arc<Registered>) -> Self {
        self.registered = Some(registered);
        self
    }

    fn end(mut self, ending: Ending) {
        self.end_once(ending);
    }

    fn end_once(&mut self, ending: Ending) {
        let Some((sink, _)) = self.memory.take() else { return };
        let result = match ending {
            Ending::Done => sink.into_lease().map(memory::Lease::filled).ok_or_else(|| {
                // The device could not be kept from writing, so that this memory is never given to anybody again.
                ReadFault::LinkDown(Arc::new(io::Error::other("the memory is lost to the device")))
            }),
            // The lease is back before its owner hears of the fault.
            Ending::Refused => drop_then(sink, ReadFault::Refused),
            Ending::Late => drop_then(sink, ReadFault::Deadline),
            Ending::Down(reason) => drop_then(sink, ReadFault::LinkDown(reason)),
        };
        (self.completions)(Completion { id: self.id, result });
    }
}

fn drop_then<T>(sink: Sink, fault: ReadFault) -> Result<T, ReadFault> {
    drop(sink);
    Err(fault)
}

impl Drop for Pending {
    fn drop(&mut self) {
        let reason = io::Error::new(io::ErrorKind::ConnectionAborted, "the transport was shut down");
        self.end_once(Ending::Down(Arc::new(reason)));
    }
}

/// A rail of a link.
pub(crate) struct LinkRail {
    /// Its place among this process's rails.
    pub(crate) rail: usize,
    /// Its engine.
    pub(crate) bell: Bell,
    /// It was told and has not looked yet.
    pub(crate) is_kicked: AtomicBool,
}

/// What the owner of a link and its engines share.
pub(crate) struct Shared {
    id: u64,
    flow: Mutex<Flow<Pending>>,
    windows: Mutex<BTreeMap<(u64, u32), Granted>>,
    /// In the order of the answer, which is the order of keys in grants.
    rails: Vec<LinkRail>,
    /// For each lane, which of `rails` it is on.
    slots: Vec<usize>,
    in_flight_max: usize,
    received: AtomicU64,
    completions: CompletionSink,
}

struct Granted {
    address: u64,
    bytes: u64,
    rkeys: Arc<[u32]>,
}

impl Shared {
    /// A link whose lane number `i` is on `rails[slots[i]]`.
    pub(crate) fn new(
        id: u64,
        rails: Vec<LinkRail>,
        slots: Vec<usize>,
        works_max: usize,
        (in_flight_max, completions): (usize, CompletionSink),
    ) -> Self {
        let lanes: Vec<usize> = slots.iter().map(|slot| rails[*slot].rail).collect();
        Self {
            id,
            flow: Mutex::new(Flow::new(&lanes, works_max, in_flight_max)),
            windows: Mutex::default(),
            rails,
            slots,
            in_flight_max,
            received: AtomicU64::new(0),
            completions,
        }
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn rails(&self) -> &[LinkRail] {
        &self.rails
    }

    pub(crate) fn flow(&self) -> MutexGuard<'_, Flow<Pending>> {
        // Every change of it is whole before anything that might panic.
        self.flow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The works that the lane posts now.
    pub(crate) fn take_works(&self, lane: usize) -> Vec<Work> {
        let slot = self.slots[lane];
        let rail = self.rails[slot].rail;
        let mut works = Vec::new();
        let mut impossible = Vec::new();
        let mut flow = self.flow();
        while let Some(taken) = flow.take(lane) {
            let Pending { memory, registered, .. } = taken.payload;
            let local = registered.as_ref().and_then(|registered| registered.memory(rail));
            match (memory, local, taken.part.rkeys.get(slot)) {
                (Some((sink, start)), Some(local), Some(rkey)) => works.push(Work {
                    id: taken.work,
                    sink: sink.clone(),
                    start: *start,
                    range: taken.part.range.clone(),
                    local,
                    address: taken.part.address,
                    rkey: *rkey,
                }),
                _ => impossible.push(taken.work),
            }
        }
        let failure = Failure::new(FailureKind::Path, "the memory is not registered with the rail");
        for work in impossible {
            flow.returned(lane, work, Err(&failure));
        }
        works
    }

    /// A work of the lane came back; its sink was dropped.
    pub(crate) fn returned(&self, lane: usize, work: u64, result: &Result<(), Failure>) {
        let bytes = self.flow().returned(lane, work, result.as_ref().copied());
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Hands out what has ended; says whether anything had.
    pub(crate) fn deliver(&self) -> bool {
        let mut any = false;
        loop {
            // Its own statement, so that the lock is not held while the sink is called, which may post.
            let ended = self.flow().next_ended();
            let Some((pending, ending)) = ended else { return any };
            pending.end(ending);
            any = true;
        }
    }

    /// Tells the engine of a rail that there is something to do.
    fn kick(&self, rail: &LinkRail) {
        if !rail.is_kicked.swap(true, Ordering::AcqRel) {
            rail.bell.send(Command::Kick(self.id));
        }
    }

    pub(crate) fn kick_all(&self) {
        self.rails.iter().for_each(|rail| self.kick(rail));
    }

    /// Tells the engines of all rails but one.
    pub(crate) fn kick_others(&self, index: usize) {
        self.rails.iter().filter(|rail| rail.rail != index).for_each(|rail| self.kick(rail));
    }

    /// The engine of that rail looks now; what comes later needs another kick.
    pub(crate) fn answer_kick(&self, index: usize) {
        for rail in self.rails.iter().filter(|rail| rail.rail == index) {
            rail.is_kicked.store(false, Ordering::Release);
        }
    }

    /// The parts of a read, or `None` if some of it is not in a granted window.
    fn plan(&self, window: u64, offset: u64, len: usize, work_bytes_max: usize) -> Option<Vec<Part>> {
        if len == 0 || len > READ_BYTES_MAX as usize {
            return None;
        }
        let end = offset.checked_add(len as u64)?;
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let mut parts = Vec::with_capacity(len.div_ceil(work_bytes_max));
        let mut at = offset;
        while at < end {
            let index = u32::try_from(at / WINDOW_BYTES).ok()?;
            let granted = windows.get(&(window, index))?;
            let within = at % WINDOW_BYTES;
            let bytes = (end - at).min(work_bytes_max as u64).min(WINDOW_BYTES - within);
            if within + bytes > granted.bytes {
                return None;
            }
            let start = usize::try_from(at - offset).ok()?;
            let range = start..start + usize::try_from(bytes).ok()?;
            parts.push(Part { range, address: granted.address + within, rkeys: Arc::clone(&granted.rkeys) });
            at += bytes;
        }
        Some(parts)
    }
}

/// A link to one sender, over every rail that both have.
///
/// The sender is passive, so that the link itself keeps reads within the windows that it was granted: any other read
/// completes with [`ReadFault::Refused`], and so does one into memory that is not registered.
pub struct RdmaLink {
    shared: Arc<Shared>,
    /// Keeps the engines.
    inner: Arc<Inner>,
}

impl RdmaLink {
    pub(crate) fn new(shared: Arc<Shared>, inner: Arc<Inner>) -> Self {
        Self { shared, inner }
    }

    /// The sender lets a window of the file `window` (its [`transport::Window::handle`]) be read.
    ///
    /// # Errors
    /// If the grant makes no sense: the link would break by using it.
    pub fn grant(&self, window: u64, remote: RemoteWindow) -> Result<(), RdmaError> {
        let RemoteWindow { index, address, bytes, rkeys } = remote;
        let fits = (1..=WINDOW_BYTES).contains(&bytes) && address.checked_add(bytes).is_some();
        if !fits || rkeys.len() != self.shared.rails.len() {
            return Err(RdmaError::BadPeer { what: "a window that cannot be" });
        }
        let granted = Granted { address, bytes, rkeys: rkeys.into() };
        let mut windows = self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner);
        windows.insert((window, index), granted);
        Ok(())
    }

    /// Reads of the window are refused from now on: before the sender is told that it is no longer needed, and after
    /// those that are outstanding have ended.
    pub fn forget(&self, window: u64, index: u32) {
        self.shared.windows.lock().unwrap_or_else(PoisonError::into_inner).remove(&(window, index));
    }

    /// How many rails carry it now.
    pub fn rails_up(&self) -> usize {
        self.shared.flow().rails_up().len()
    }
}

impl Link for RdmaLink {
    fn level(&self) -> Level {
        Level::Nic
    }

    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest> {
        let shared = &self.shared;
        let mut flow = shared.flow();
        if !flow.has_room() {
            return Err(read);
        }
        let ReadRequest { id, window, offset, lease, deadline } = read;
        let parts = shared.plan(window, offset, lease.len(), self.inner.shape().work_bytes());
        let registered = self.inner.registered(&lease);
        let pending = Pending::new(id, lease, &shared.completions);
        match (parts, registered) {
            (Some(parts), Some(registered)) => flow.post(pending.registered_by(registered), parts, deadline),
            _ => flow.refuse(pending),
        }
        let waiting = flow.rails_waiting();
        drop(flow);
        shared.rails.iter().filter(|rail| waiting.contains(&rail.rail)).for_each(|rail| shared.kick(rail));
        Ok(())
    }

    fn in_flight_max(&self) -> usize {
        self.shared.in_flight_max
    }

    fn bytes_received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.shared
            .flow()
            .finish(io::Error::new(io::ErrorKind::ConnectionAborted, "the link was closed here"));
        self.shared.kick_all();
    }

    fn is_closed(&self) -> bool {
        self.shared.flow().is_ended()
    }
}

impl Drop for RdmaLink {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for RdmaLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RdmaLink({} rails, {} up)", self.shared.rails.len(), self.rails_up())
    }
}

/// A read of the link itself, for this very lane.
pub(crate) fn probe(shared: &Shared, lane: usize, pending: Pending, part: Part, deadline: Instant) {
    shared.flow().probe(lane, pending, part, deadline);
}
