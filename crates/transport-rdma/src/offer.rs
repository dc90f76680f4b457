//! The reading end's way to a link: QPs first, then what the sender answers, then a first read that proves the path.
//!
//! Owns: the order of that. Does not own: what travels between the two messages, or the link afterwards.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, unbounded};
use memory::Region;
use transport::{Completion, CompletionSink};
use verbs::VerbsError;

use crate::{
    Endpoint, Probe, RailInfo, Rdma, RdmaError, RdmaLink, WORKS_A_QP_MAX, choose,
    endpoint::PROBE_BYTES,
    engine::{Command, Lane},
    flow::Part,
    link::{self, LinkRail, Pending, Shared},
    rail::{Done, Failure, FailureKind, Purpose, QueuePair, Unposted, Work},
    rdma::{Inner, RailUnit},
};

/// Longest time for the first read. A card gives up on a peer that does not answer after about 0.5 s; some take longer.
const PROBE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Places for probed bytes are apart so that no two share a cache line.
const PROBE_STRIDE: usize = 64;

/// QPs that wait for the sender's answer. Dropped, they are destroyed.
pub struct Offer {
    inner: Arc<Inner>,
    in_flight_max: usize,
    completions: CompletionSink,
    lanes: Vec<OfferedLane>,
}

struct OfferedLane {
    rail: usize,
    endpoint: Endpoint,
    qp: Box<dyn QueuePair>,
}

/// A QP that fetches, and counts while it lives: what all of them have out must fit the completion queue.
struct Counted {
    qp: Box<dyn QueuePair>,
    _count: Count,
}

struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl QueuePair for Counted {
    fn number(&self) -> u32 {
        self.qp.number()
    }

    fn connect(&mut self, peer: &Endpoint, own: &Endpoint) -> Result<(), VerbsError> {
        self.qp.connect(peer, own)
    }

    fn post(&mut self, works: Vec<Work>) -> Result<(), Unposted> {
        self.qp.post(works)
    }

    fn destroy(self: Box<Self>) -> Vec<Done> {
        self.qp.destroy()
    }
}

/// This end of a QP.
pub(crate) fn own_endpoint(rail: u32, info: &RailInfo, qpn: u32) -> Result<Endpoint, RdmaError> {
    let [_, psn @ ..] = identity::random_bytes::<4>().map_err(RdmaError::System)?;
    Ok(Endpoint {
        rail,
        qpn,
        psn: u32::from_be_bytes([0, psn[0], psn[1], psn[2]]),
        gid: info.gid,
        lid: info.lid,
        mtu_bytes: info.mtu_bytes,
        network: info.network,
        reads_in_flight_max: info.reads_in_flight_max,
    })
}

impl Rdma {
    /// Makes the QPs of a link on every rail that is up, of which at most `in_flight_max` reads will be outstanding.
    ///
    /// # Errors
    /// If no rail is up, the rails carry too many links, or the system makes no QP.
    ///
    /// # Panics
    /// If no read could ever be posted.
    pub fn offer(&self, in_flight_max: usize, completions: CompletionSink) -> Result<Offer, RdmaError> {
        assert!(in_flight_max > 0, "a link carries something");
        let inner = Arc::clone(self.inner());
        let mut lanes = Vec::new();
        for (rail, unit) in inner.rails().iter().enumerate().filter(|(_, unit)| unit.engine.is_up()) {
            for _ in 0..inner.shape().qps() {
                lanes.push(offer_lane(rail, unit)?);
            }
        }
        if lanes.is_empty() {
            return Err(RdmaError::NoCommonRail);
        }
        Ok(Offer { inner, in_flight_max, completions, lanes })
    }
}

fn offer_lane(rail: usize, unit: &RailUnit) -> Result<OfferedLane, RdmaError> {
    let info = unit.rail.info();
    let count = Count(Arc::clone(&unit.lanes));
    if (count.0.fetch_add(1, Ordering::Relaxed) + 1) * usize::from(WORKS_A_QP_MAX) > unit.rail.works_max() {
        return Err(RdmaError::Busy { rail: info.name.clone() });
    }
    let qp = unit.rail.queue_pair(Purpose::Fetch);
    let qp = qp.map_err(|source| RdmaError::QueuePair { rail: info.name.clone(), source })?;
    let endpoint = own_endpoint(u32::try_from(rail).unwrap_or(u32::MAX), info, qp.number())?;
    Ok(OfferedLane { rail, endpoint, qp: Box::new(Counted { qp, _count: count }) })
}

impl Offer {
    /// What the sender needs to answer.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.lanes.iter().map(|lane| lane.endpoint.clone()).collect()
    }

    /// Connects to the QPs of the sender's answer and reads the probe through each. Blocks for up to about 1.5 s.
    ///
    /// Rails through which it does not come back are left out.
    ///
    /// # Errors
    /// If the answer makes no sense, or no rail leads there.
    pub fn connect(self, answer: &[Endpoint], probe: &Probe) -> Result<Arc<RdmaLink>, RdmaError> {
        let Self { inner, in_flight_max, completions, lanes } = self;
        let lanes = connect_lanes(&inner, lanes, answer)?;
        if probe.rkeys.len() != lanes.rails.len() {
            return Err(RdmaError::BadPeer { what: "a probe that cannot be" });
        }
        let Connected { rails, qps, works_max } = lanes;
        let slots: Vec<usize> = qps.iter().map(|(slot, _)| *slot).collect();
        let link_rail = |rail: &usize| LinkRail {
            rail: *rail,
            bell: inner.rails()[*rail].engine.bell().clone(),
            is_kicked: AtomicBool::new(false),
        };
        let link_rails = rails.iter().map(link_rail).collect();
        let callers = (in_flight_max, completions);
        let shared = Arc::new(Shared::new(inner.next_link(), link_rails, slots.clone(), works_max, callers));
        // From here on the link ends when this is dropped.
        let link = Arc::new(RdmaLink::new(Arc::clone(&shared), Arc::clone(&inner)));
        let answers = post_probes(&inner, &shared, slots.len(), probe)?;
        let mut by_slot: BTreeMap<usize, Vec<Lane>> = BTreeMap::new();
        for (lane, (slot, qp)) in qps.into_iter().enumerate() {
            by_slot.entry(slot).or_default().push((lane, qp));
        }
        for (slot, lanes) in by_slot {
            shared.rails()[slot].bell.send(Command::Attach(Arc::clone(&shared), lanes));
        }
        keep_proved_rails(&shared, &slots, &answers, probe)?;
        Ok(link)
    }
}

struct Connected {
    /// In the order of the answer.
    rails: Vec<usize>,
    /// Each with its place in `rails`, in whose order they are.
    qps: Vec<(usize, Box<dyn QueuePair>)>,
    works_max: usize,
}

/// Connects each offered lane to the endpoint that answers it: the first of a rail to the first of that rail.
fn connect_lanes(
    inner: &Inner,
    lanes: Vec<OfferedLane>,
    answer: &[Endpoint],
) -> Result<Connected, RdmaError> {
    let mut rails: Vec<usize> = Vec::new();
    let mut answers: BTreeMap<usize, VecDeque<&Endpoint>> = BTreeMap::new();
    for endpoint in answer {
        let is_offered = |lane: &&OfferedLane| lane.endpoint.rail == endpoint.rail;
        let Some(lane) = lanes.iter().find(is_offered) else {
            return Err(RdmaError::BadPeer { what: "an endpoint that answers none" });
        };
        if !rails.contains(&lane.rail) {
            rails.push(lane.rail);
        }
        answers.entry(lane.rail).or_default().push_back(endpoint);
    }
    let mut qps: Vec<(usize, Box<dyn QueuePair>)> = Vec::new();
    let most = inner.shape().works();
    let mut works_max = most;
    let mut reason = RdmaError::NoCommonRail;
    let mut lost = None;
    for OfferedLane { rail, endpoint, mut qp } in lanes {
        let Some(peer) = answers.get_mut(&rail).and_then(VecDeque::pop_front) else { continue };
        if lost == Some(rail) {
            continue;
        }
        if peer.network != endpoint.network {
            return Err(RdmaError::BadPeer { what: "an endpoint of another network" });
        }
        let slot = rails.iter().position(|known| *known == rail).unwrap_or_default();
        if let Err(source) = qp.connect(peer, &endpoint) {
            let name = inner.rails()[rail].rail.info().name.clone();
            reason = RdmaError::QueuePair { rail: name, source };
            tracing::warn!(error = %reason, "a rail is left out");
            // The others may lead there.
            qps.retain(|(other, _)| *other != slot);
            lost = Some(rail);
            continue;
        }
        works_max = works_max.min(choose::reads_in_flight(&endpoint, peer, most));
        qps.push((slot, qp));
    }
    if qps.is_empty() {
        return Err(reason);
    }
    qps.sort_by_key(|(slot, _)| *slot);
    Ok(Connected { rails, qps, works_max: works_max.into() })
}

/// One read of the probe a lane; they end in the channel, by lane.
fn post_probes(
    inner: &Arc<Inner>,
    shared: &Shared,
    lanes: usize,
    probe: &Probe,
) -> Result<Receiver<Completion>, RdmaError> {
    let region = Region::anonymous(lanes * PROBE_STRIDE).map_err(RdmaError::System)?;
    let range = 0..lanes * PROBE_STRIDE;
    let (answers, receiver) = unbounded();
    let completions: CompletionSink = Arc::new(move |completion| {
        // Nobody listens after the time is up.
        let _ = answers.send(completion);
    });
    // The works hold what they need of it. A page for a moment counts as nothing, or a process that serves all it may
    // could not read.
    let registration = Rdma::of(inner).register_at_cost(&region, range, 0)?;
    let rkeys: Arc<[u32]> = probe.rkeys.as_slice().into();
    let deadline = Instant::now() + 2 * PROBE_TIMEOUT;
    for lane in 0..lanes {
        let start = lane * PROBE_STRIDE;
        let lease = region.lease(start..start + PROBE_BYTES).expect("a new region, and one place a lane");
        let registered = registration.registered().expect("held until dropped");
        let pending = Pending::new(lane as u64, lease, &completions).registered_by(registered);
        let part = Part { range: 0..PROBE_BYTES, address: probe.address, rkeys: Arc::clone(&rkeys) };
        link::probe(shared, lane, pending, part, deadline);
    }
    Ok(receiver)
}

/// Waits for the probes; leaves out each rail through which not all came back.
fn keep_proved_rails(
    shared: &Shared,
    slots: &[usize],
    answers: &Receiver<Completion>,
    probe: &Probe,
) -> Result<(), RdmaError> {
    let deadline = Instant::now() + PROBE_TIMEOUT;
    let mut is_proved = vec![false; slots.len()];
    let mut reason = io::Error::from(io::ErrorKind::TimedOut);
    for _ in slots {
        let Ok(Completion { id, result }) = answers.recv_deadline(deadline) else { break };
        match result {
            Ok(filled) if *filled == probe.value => {
                if let Some(proved) = usize::try_from(id).ok().and_then(|lane| is_proved.get_mut(lane)) {
                    *proved = true;
                }
            }
            Ok(_) => return Err(RdmaError::BadPeer { what: "the key of other memory than it said" }),
            Err(fault) => reason = io::Error::other(fault),
        }
    }
    let failure = Failure::new(FailureKind::Path, format!("the first read failed: {reason}"));
    for (lane, _) in is_proved.iter().enumerate().filter(|(_, is_proved)| !**is_proved) {
        let rail = shared.rails()[slots[lane]].rail;
        tracing::warn!(rail, "{failure}");
        shared.flow().lose_rail(rail, &failure);
    }
    shared.kick_all();
    if shared.flow().is_ended() { Err(RdmaError::Probe(reason)) } else { Ok(()) }
}

impl fmt::Debug for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Offer").field(&self.endpoints()).finish()
    }
}
