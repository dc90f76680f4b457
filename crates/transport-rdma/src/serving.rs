//! The sending end of a link: QPs that may be read through and nothing else, and the windows that they reach.
//!
//! Owns: which windows one reader holds. Does not own: how many stay pinned (`pinned`), or who may ask (the control
//! plane). The sender takes no part in a read, so that there is no engine here.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use memory::{Access, Region};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::{
    Endpoint, Network, Probe, QPS_A_RAIL_MAX, Rdma, RdmaError, RemoteWindow, Source, choose,
    endpoint::PROBE_BYTES,
    offer::own_endpoint,
    pinned::Window,
    rail::{Memory, Purpose, QueuePair},
    rdma::Inner,
};

/// More rails than any machine has; who offers more is not to be answered.
const RAILS_MAX: usize = 32;

/// What one reader may read. Dropping it destroys its QPs and gives its windows up.
pub struct Serving {
    inner: Arc<Inner>,
    /// Destroyed first.
    qps: Mutex<Vec<Box<dyn QueuePair>>>,
    endpoints: Vec<Endpoint>,
    /// The rails of the endpoints, in their order.
    rails: Vec<usize>,
    held: Mutex<BTreeMap<(u64, u32), Arc<Window>>>,
    probe: Probe,
    _probe_memory: Vec<Option<Memory>>,
}

impl Rdma {
    /// Connects QPs to those that a reader offers. May block for some milliseconds.
    ///
    /// # Errors
    /// If no rail here goes with one there, or the system makes or connects no QP.
    pub fn serve(&self, offered: &[Endpoint]) -> Result<Serving, RdmaError> {
        let inner = Arc::clone(self.inner());
        let mut by_rail: BTreeMap<u32, Vec<&Endpoint>> = BTreeMap::new();
        for endpoint in offered {
            by_rail.entry(endpoint.rail).or_default().push(endpoint);
        }
        if by_rail.len() > RAILS_MAX || by_rail.values().any(|of_rail| of_rail.len() > QPS_A_RAIL_MAX) {
            return Err(RdmaError::BadPeer { what: "more queue pairs than a link has" });
        }
        let up: Vec<usize> =
            (0..inner.rails().len()).filter(|rail| inner.rails()[*rail].engine.is_up()).collect();
        let networks = |rail: &usize| inner.rails()[*rail].rail.info().network;
        let ours: Vec<Network> = up.iter().map(networks).collect();
        let theirs: Vec<Network> = by_rail.values().map(|of_rail| of_rail[0].network).collect();
        let mut qps = Vec::new();
        let mut endpoints = Vec::new();
        let mut rails = Vec::new();
        let mut reason = RdmaError::NoCommonRail;
        for (of_rail, place) in by_rail.values().zip(choose::match_rails(&theirs, &ours)) {
            let Some(rail) = place.map(|place| up[place]) else { continue };
            match of_rail.iter().map(|peer| serve_lane(&inner, rail, peer)).collect::<Result<Vec<_>, _>>() {
                Ok(lanes) => {
                    rails.push(rail);
                    for (endpoint, qp) in lanes {
                        endpoints.push(endpoint);
                        qps.push(qp);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a rail is left out");
                    reason = error;
                }
            }
        }
        if qps.is_empty() {
            return Err(reason);
        }
        let (probe, memory) = make_probe(&inner, &rails)?;
        let qps = Mutex::new(qps);
        Ok(Serving { inner, qps, endpoints, rails, held: Mutex::default(), probe, _probe_memory: memory })
    }
}

fn serve_lane(
    inner: &Inner,
    rail: usize,
    peer: &Endpoint,
) -> Result<(Endpoint, Box<dyn QueuePair>), RdmaError> {
    let unit = &inner.rails()[rail].rail;
    let info = unit.info();
    let failed = |source| RdmaError::QueuePair { rail: info.name.clone(), source };
    let mut qp = unit.queue_pair(Purpose::Serve).map_err(failed)?;
    let own = own_endpoint(peer.rail, info, qp.number())?;
    qp.connect(peer, &own).map_err(failed)?;
    Ok((own, qp))
}

fn make_probe(inner: &Inner, rails: &[usize]) -> Result<(Probe, Vec<Option<Memory>>), RdmaError> {
    let value = identity::random_bytes::<PROBE_BYTES>().map_err(RdmaError::System)?;
    let file = memfd_create("modelcast probe", MemfdFlags::CLOEXEC)
        .map_err(|errno| RdmaError::System(errno.into()))?;
    let file = std::fs::File::from(file);
    file.set_len(PROBE_BYTES as u64).map_err(RdmaError::System)?;
    // For writing, so that every kernel pins it.
    let region = Region::map(&file, PROBE_BYTES, Access::ReadWrite).map_err(RdmaError::System)?;
    region.lease(0..PROBE_BYTES).expect("a new region").as_mut_slice().copy_from_slice(&value);
    let memories = inner.register_with_rails(&region, &(0..PROBE_BYTES), Purpose::Serve)?;
    let rkeys = rkeys(inner, rails, |rail| memories[rail].as_ref().map(Memory::rkey))?;
    Ok((Probe { address: region.address(), rkeys, value }, memories))
}

/// The keys for a reader's rails, in its order.
fn rkeys(inner: &Inner, rails: &[usize], rkey: impl Fn(usize) -> Option<u32>) -> Result<Vec<u32>, RdmaError> {
    let of = |rail: &usize| {
        rkey(*rail).ok_or_else(|| RdmaError::Gone { rail: inner.rails()[*rail].rail.info().name.clone() })
    };
    rails.iter().map(of).collect()
}

impl Serving {
    /// The answer to the reader.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.clone()
    }

    /// What the reader reads first.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// Pins a window of a file for the reader, until [`Self::release`] or until this is dropped. Blocks while the
    /// system pins it, about 0.1 s for a window that is in memory.
    ///
    /// # Errors
    /// [`RdmaError::PinnedMax`] while other windows are in use, which the reader may meanwhile read another way; or if
    /// there is no such window, or the system does not pin it.
    pub fn window(&self, source: &Arc<Source>, index: u32) -> Result<RemoteWindow, RdmaError> {
        let range = source.window_range(index)?;
        let cost = self.inner.cost(range.end - range.start);
        let make = |charge| source.make_window(&self.inner, index, charge);
        let window = self.inner.windows().obtain(source.key(index), cost, make)?;
        let rkeys = rkeys(&self.inner, &self.rails, |rail| window.rkey(rail))?;
        let remote = RemoteWindow { index, address: window.address(), bytes: window.bytes(), rkeys };
        self.lock().insert((source.handle(), index), window);
        Ok(remote)
    }

    /// The reader reads this window no more. It stays pinned for others as long as there is room.
    pub fn release(&self, handle: u64, index: u32) {
        // Its own statement: the lock is free again before memory may be unpinned.
        let released = self.lock().remove(&(handle, index));
        drop(released);
    }

    /// Destroys its QPs, though others still hold it: the reader reads nothing from now on.
    pub fn cut(&self) {
        let qps = std::mem::take(&mut *self.qps.lock().unwrap_or_else(PoisonError::into_inner));
        drop(qps);
    }

    /// How many windows the reader holds.
    pub fn windows_held(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<(u64, u32), Arc<Window>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // Before any window may go: no read can reach one through a QP that is not there.
        self.qps.get_mut().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serving({} queue pairs, {} windows)", self.endpoints.len(), self.windows_held())
    }
}
