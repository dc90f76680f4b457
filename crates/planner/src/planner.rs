//! The planner of one scheduler: who is there, who wants what, and the plans that follow. Does not own the shape of a
//! single tree (`tree`), nor the streams that carry its inputs and outputs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::{PIECES_MAX, Run};

use crate::capacity::{Foreign, Learned};
use crate::cards::{Cards, Measured};
use crate::id::{ArtifactId, PeerId};
use crate::place::Place;
use crate::plan::{Contact, PeerPlan};
use crate::priority::Priority;
use crate::quarantine::{Alarm, Charge, HostAddr, Quarantine, Standing, Whereabouts};
use crate::swarm_state::{Joining, SwarmState};

/// Peers whose stream has ended that are remembered, so that a case can be filed about who left before it was heard.
const DEPARTED_MAX: usize = 1024;
/// Repairs of one artifact that are planned together, at most. Beyond, each member is on its own: whoever keeps the
/// pieces from adding up would otherwise keep a fleet busy for ever.
pub const ROUNDS_MAX: u32 = 4;

/// What the planner is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A peer opened its stream.
    Register {
        /// The peer.
        peer: PeerId,
        /// HOST:PORT of its control service.
        address: String,
        /// Its name for people.
        name: String,
        /// What its network card does in each direction, in bytes per second, if it knows.
        nic_rate: Option<u64>,
        /// Where it stands. It stays there in the swarms that it is in.
        place: Place,
        /// Where its stream comes from.
        host: HostAddr,
    },
    /// A peer's stream ended: it is out of every swarm.
    Gone {
        /// The peer.
        peer: PeerId,
    },
    /// A registered peer wants an artifact, or offers one it has. Said again, it replaces what was said before.
    Join {
        /// The peer.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
        /// The artifact's size in bytes.
        bytes: u64,
        /// How many pieces it has.
        piece_count: u32,
        /// Whether the peer has opened the artifact at the origin with its own credentials.
        origin_ok: bool,
        /// Whether it announces a local artifact: its bytes count as origin bytes.
        is_seed: bool,
        /// The pieces it has proved.
        have: Vec<Run>,
        /// What it is doing by a plan that it has, perhaps of another scheduler.
        progress: Progress,
    },
    /// A member proved more pieces.
    Have {
        /// The peer.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
        /// The new pieces.
        runs: Vec<Run>,
    },
    /// A member is no longer in the swarm.
    Leave {
        /// The peer.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
    },
    /// A peer's measured traffic, which is also its heartbeat.
    Load {
        /// The peer.
        peer: PeerId,
        /// Bytes per second.
        sent: u64,
        /// Bytes per second.
        received: u64,
        /// What it has found out about its card.
        measured: Measured,
    },
    /// A member got bytes that do not match the manifest.
    Complaint {
        /// Who complains.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
        /// Who sent them.
        about: PeerId,
        /// Which piece.
        piece: u32,
    },
    /// A member's parent has stalled, and not one byte comes from it: sooner than it can be called silent. It is no charge.
    Stall {
        /// Who noticed.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
        /// The parent.
        about: PeerId,
    },
    /// A member that is linked and announces pieces has given a reader nothing for a while.
    Silence {
        /// Who noticed.
        peer: PeerId,
        /// The artifact.
        artifact: ArtifactId,
        /// Who gives nothing.
        about: PeerId,
    },
    /// [`Planner::next_wake`] has come.
    Tick,
}

/// What a member was doing by its last plan when it joined, and how urgent that is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The epoch of that plan; 0 without one.
    pub epoch: u64,
    /// The pieces that it reads from the origin now.
    pub origin_in_flight: Vec<Run>,
    /// How often its pieces did not add up to the manifest's digest; at most [`ROUNDS_MAX`] counts.
    pub round: u32,
    /// How urgent the artifact is to it. It counts for as long as it lacks something.
    pub priority: Priority,
}

/// What the planner wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Tell a member its part.
    Plan {
        /// The member.
        to: PeerId,
        /// The swarm.
        artifact: ArtifactId,
        /// Its part.
        plan: PeerPlan,
    },
    /// Tell people that a peer's standing has changed.
    Standing(Alarm),
}

/// What a registered peer said about itself.
#[derive(Clone, Debug)]
pub(crate) struct Registered {
    pub(crate) contact: Arc<Contact>,
    pub(crate) nic_rate: Option<u64>,
    pub(crate) place: Place,
    /// What it is trusted with.
    pub(crate) standing: Standing,
    /// Who accuses it: they are not sent to it again.
    pub(crate) accusers: BTreeSet<PeerId>,
    /// That it says it has everything keeps nobody from the origin.
    pub(crate) is_doubted: bool,
    host: HostAddr,
}

impl Registered {
    fn whereabouts(&self, peer: PeerId) -> Whereabouts {
        let Contact { address, name } = &*self.contact;
        Whereabouts { peer, host: self.host, name: name.to_string(), address: address.to_string() }
    }
}

/// The planner of one scheduler. Soft state: everything in it can be told again.
///
/// Law: after each [`Self::handle`], [`Self::poll`] is called until it returns `None`.
#[derive(Debug, Default)]
pub struct Planner {
    peers: BTreeMap<PeerId, Arc<Registered>>,
    /// (sent, received) in bytes per second, as last reported.
    loads: BTreeMap<PeerId, (u64, u64)>,
    cards: Cards,
    swarms: BTreeMap<ArtifactId, SwarmState>,
    quarantine: Quarantine,
    /// The latest come last.
    departed: VecDeque<Whereabouts>,
    now: Duration,
    pending: VecDeque<Pending>,
}

/// What is to be done next.
#[derive(Debug)]
enum Pending {
    Output(Output),
    /// Members of this swarm are to be told their parts. Each is made when it is asked for: those of ten thousand are
    /// tens of megabytes.
    Plans(ArtifactId),
}

impl Planner {
    /// A planner that knows nobody.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes note of one input. What contradicts earlier inputs (an unknown peer, a piece out of range, another size
    /// of the same artifact) is ignored: it can only come from a peer that is wrong about itself.
    pub fn handle(&mut self, now: Duration, input: Input) {
        self.now = self.now.max(now);
        if self.quarantine.next_change().is_some_and(|at| at <= self.now) {
            let released = self.quarantine.fade(self.now);
            self.pending.extend(released.into_iter().map(Output::Standing).map(Pending::Output));
            let touched = self.update_standings();
            self.replan_where(|swarm| touched.iter().any(|peer| swarm.has(*peer)));
        }
        match input {
            Input::Register { peer, address, name, nic_rate, place, host } => {
                let contact = Contact::new(address, name);
                let (standing, accusers) = self.quarantine.standing(peer, host);
                let is_doubted = self.quarantine.is_doubted(peer, host);
                self.register(
                    peer,
                    Registered { contact, nic_rate, place, standing, accusers, is_doubted, host },
                );
            }
            Input::Gone { peer } => self.gone(peer),
            Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, have, progress } => {
                let joining = Joining { origin_ok, is_seed, have: &have, rate: None, progress: &progress };
                self.join(now, (peer, artifact), (bytes, piece_count), joining);
            }
            Input::Have { peer, artifact, runs } => {
                if let Some(swarm) = self.swarms.get_mut(&artifact) {
                    swarm.have(now, peer, &runs);
                    if swarm.is_otherwise_urgent() {
                        self.replan(artifact);
                    }
                }
            }
            Input::Leave { peer, artifact } => {
                if self.swarms.get_mut(&artifact).is_some_and(|swarm| swarm.leave(peer)) {
                    self.replan(artifact);
                }
            }
            Input::Load { peer, sent, received, measured } => {
                if self.peers.contains_key(&peer) {
                    self.loads.insert(peer, (sent, received));
                    self.measured(peer, measured);
                }
            }
            Input::Complaint { peer, artifact, about, .. } => {
                self.accused((peer, about), artifact, Charge::WrongBytes);
            }
            Input::Stall { peer, artifact, about } => {
                let swarm = self.swarms.get_mut(&artifact);
                if swarm.is_some_and(|swarm| swarm.stalled(self.now, peer, about)) {
                    self.replan(artifact);
                }
            }
            Input::Silence { peer, artifact, about } => {
                self.accused((peer, about), artifact, Charge::Silence);
            }
            Input::Tick => self.tick(now),
        }
    }

    fn join(
        &mut self,
        now: Duration,
        (peer, artifact): (PeerId, ArtifactId),
        (bytes, piece_count): (u64, u32),
        joining: Joining<'_>,
    ) {
        let Some(facts) = self.peers.get(&peer).filter(|_| u64::from(piece_count) <= PIECES_MAX) else {
            return;
        };
        let facts = Arc::clone(facts);
        let swarm = self.swarms.entry(artifact).or_insert_with(|| SwarmState::new(bytes, piece_count));
        if swarm.is_about(bytes, piece_count) {
            // Before it is asked what is left for it.
            if let Some(priority) = swarm.priority_with(&joining) {
                self.set_priority(artifact, priority);
            }
            let rate = self.cards.residue(self.now, peer, &artifact);
            if let Some(swarm) = self.swarms.get_mut(&artifact) {
                swarm.join(now, peer, &facts, Joining { rate, ..joining });
            }
            self.replan(artifact);
        }
    }

    fn tick(&mut self, now: Duration) {
        let mut due = Vec::new();
        for (artifact, swarm) in &mut self.swarms {
            if swarm.gathering().is_some_and(|until| until <= now) {
                swarm.gathered();
                due.push(*artifact);
            }
            let is_compared = swarm.pace_due().is_some_and(|at| at <= now) && swarm.compare_pace(now);
            let residue = |peer| self.cards.residue(now, peer, artifact);
            let is_reviewed = swarm.review_due().is_some_and(|at| at <= now) && swarm.review(now, residue);
            if is_compared || is_reviewed {
                due.push(*artifact);
            }
        }
        for artifact in due {
            self.replan(artifact);
        }
    }

    fn register(&mut self, peer: PeerId, registered: Registered) {
        let registered = Arc::new(registered);
        self.cards.register(peer, registered.nic_rate);
        for (artifact, swarm) in &mut self.swarms {
            swarm.update(peer, &registered);
            swarm.set_rate(peer, self.cards.residue(self.now, peer, artifact));
        }
        self.peers.insert(peer, registered);
        self.loads.remove(&peer);
    }

    /// A peer has found out something about its card.
    fn measured(&mut self, peer: PeerId, measured: Measured) {
        if self.cards.report(self.now, peer, measured) {
            self.swarms.values_mut().for_each(|swarm| swarm.rate_may_have_changed(self.now, peer));
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        while let Some(next) = self.pending.pop_front() {
            match next {
                Pending::Output(output) => return Some(output),
                Pending::Plans(artifact) => {
                    let Some(swarm) = self.swarms.get_mut(&artifact) else { continue };
                    if let Some((to, plan)) = swarm.next_part() {
                        self.pending.push_front(next);
                        return Some(Output::Plan { to, artifact, plan });
                    }
                }
            }
        }
        None
    }

    /// When a [`Input::Tick`] is due.
    pub fn next_wake(&self) -> Option<Duration> {
        let gathered = self.swarms.values().filter_map(SwarmState::gathering);
        let paces = self.swarms.values().filter_map(SwarmState::pace_due);
        // Where stripes get entrants after a pause, a comparison is overdue.
        let paces = paces.map(|at| at.max(self.now));
        let reviews = self.swarms.values().filter_map(SwarmState::review_due);
        gathered.chain(paces).chain(reviews).chain(self.quarantine.next_change()).min()
    }

    /// HOST:PORT of up to `max` members of a swarm other than the asker, those that have everything first.
    pub fn holders(&self, artifact: &ArtifactId, asker: Option<PeerId>, max: usize) -> Vec<String> {
        let Some(swarm) = self.swarms.get(artifact) else { return Vec::new() };
        // A description is proved by whoever asks for it, so that a suspect may give it, if nobody better does.
        let of = |standing: Standing| {
            swarm
                .fullest_first()
                .filter(|peer| Some(*peer) != asker)
                .filter_map(|peer| self.peers.get(&peer))
                .filter(move |registered| registered.standing == standing)
                .map(|registered| registered.contact.address.to_string())
        };
        of(Standing::Good).chain(of(Standing::Suspect)).take(max).collect()
    }

    /// Where a registered peer's control service is.
    pub fn address(&self, peer: PeerId) -> Option<&str> {
        self.peers.get(&peer).map(|registered| &*registered.contact.address)
    }

    /// The latest plan of an artifact that this planner knows of, whoever made it; 0 without one.
    pub fn epoch(&self, artifact: &ArtifactId) -> u64 {
        self.swarms.get(artifact).map_or(0, SwarmState::epoch)
    }

    /// How many peers have or want an artifact.
    pub fn member_count(&self, artifact: &ArtifactId) -> usize {
        self.swarms.get(artifact).map_or(0, SwarmState::member_count)
    }

    /// How many pieces of an artifact a member has.
    pub fn pieces_of(&self, artifact: &ArtifactId, member: PeerId) -> Option<u32> {
        self.swarms.get(artifact)?.pieces_of(member)
    }

    /// What this peer is trusted with.
    pub fn standing(&self, peer: PeerId) -> Standing {
        self.peers.get(&peer).map(|registered| registered.standing).unwrap_or_default()
    }

    /// Every peer that is not in good standing, also those that have left.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> + '_ {
        self.quarantine.alarms()
    }

    pub(crate) fn registered(&self) -> impl Iterator<Item = (&PeerId, &Registered)> {
        self.peers.iter().map(|(peer, registered)| (peer, registered.as_ref()))
    }

    pub(crate) fn swarm_states(&self) -> impl ExactSizeIterator<Item = (&ArtifactId, &SwarmState)> {
        self.swarms.iter()
    }

    pub(crate) fn swarm_state(&self, artifact: &ArtifactId) -> Option<&SwarmState> {
        self.swarms.get(artifact)
    }

    /// How many peers that are known, also of those that have left, are of that standing; not for good ones.
    pub fn count_of(&self, standing: Standing) -> usize {
        self.quarantine.standings().filter(|its| *its == standing).count()
    }

    /// Every case, and when time alone may change it.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (Alarm, Duration)> + '_ {
        self.quarantine.cases()
    }

    /// The (sent, received) bytes per second that this peer last reported.
    pub fn load(&self, peer: PeerId) -> Option<(u64, u64)> {
        self.peers.contains_key(&peer).then(|| self.loads.get(&peer).copied().unwrap_or_default())
    }

    /// What has been learned of a peer's card, and what others move there.
    pub(crate) fn measured_of(&self, peer: PeerId) -> (Option<Learned>, Option<Foreign>) {
        self.cards.measured(self.now, peer)
    }

    fn accused(&mut self, (by, about): (PeerId, PeerId), artifact: ArtifactId, charge: Charge) {
        let is_member = self.swarms.get(&artifact).is_some_and(|swarm| swarm.has(by));
        let Some(accuser) = self.peers.get(&by).filter(|_| is_member) else { return };
        let host = accuser.host;
        let present = self.peers.get(&about).map(|registered| registered.whereabouts(about));
        let has_left = present.is_none();
        let Some(about) = present.or_else(|| self.departed.iter().find(|at| at.peer == about).cloned())
        else {
            return;
        };
        let alarm = self.quarantine.accuse(self.now, (by, host), &about, charge);
        // Of one that has left, plans that were sent before may still speak.
        let is_news = has_left && alarm.is_some();
        self.pending.extend(alarm.map(Output::Standing).map(Pending::Output));
        let touched = self.update_standings();
        self.replan_where(|swarm| is_news || touched.iter().any(|peer| swarm.has(*peer)));
    }

    /// Says who is trusted with more or less than before, or by fewer.
    fn update_standings(&mut self) -> BTreeSet<PeerId> {
        let mut touched = BTreeSet::new();
        for (peer, registered) in &mut self.peers {
            let (standing, accusers) = self.quarantine.standing(*peer, registered.host);
            if registered.standing != standing || registered.accusers != accusers {
                touched.insert(*peer);
                let registered = Arc::make_mut(registered);
                (registered.standing, registered.accusers) = (standing, accusers);
                registered.is_doubted = self.quarantine.is_doubted(*peer, registered.host);
            }
        }
        for peer in &touched {
            let facts = &self.peers[peer];
            self.swarms.values_mut().for_each(|swarm| swarm.update(*peer, facts));
        }
        touched
    }

    /// Plans those swarms anew, and tells everybody in them.
    fn replan_where(&mut self, is_concerned: impl Fn(&SwarmState) -> bool) {
        let mut changed = Vec::new();
        for (artifact, swarm) in &mut self.swarms {
            if is_concerned(swarm) {
                swarm.tell_everybody();
                changed.push(*artifact);
            }
        }
        for artifact in changed {
            self.replan(artifact);
        }
    }

    fn gone(&mut self, peer: PeerId) {
        self.loads.remove(&peer);
        self.cards.gone(peer);
        if let Some(registered) = self.peers.remove(&peer) {
            self.departed.retain(|before| before.peer != peer);
            if self.departed.len() >= DEPARTED_MAX {
                self.departed.pop_front();
            }
            self.departed.push_back(registered.whereabouts(peer));
        }
        let touched: Vec<ArtifactId> = self
            .swarms
            .iter_mut()
            .filter_map(|(artifact, swarm)| swarm.leave(peer).then_some(*artifact))
            .collect();
        for artifact in touched {
            self.replan(artifact);
        }
    }

    fn replan(&mut self, artifact: ArtifactId) {
        let Some(swarm) = self.swarms.get_mut(&artifact) else { return };
        if swarm.is_empty() {
            self.swarms.remove(&artifact);
            self.cards.set_priority(artifact, Priority::default());
            return;
        }
        if swarm.gathering().is_some() {
            return;
        }
        swarm.replan();
        let priority = swarm.priority();
        self.pending.push_back(Pending::Plans(artifact));
        self.set_priority(artifact, priority);
    }

    /// A swarm that is more or less urgent than before has more or less of the cards that it shares.
    fn set_priority(&mut self, artifact: ArtifactId, priority: Priority) {
        if self.cards.set_priority(artifact, priority) {
            self.swarms.values_mut().for_each(|swarm| swarm.rates_may_have_changed(self.now));
        }
    }
}
