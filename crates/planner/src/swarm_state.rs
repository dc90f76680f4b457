//! One swarm as the planner sees it: its members, its entrants, and the plans that were last sent. Does not own the
//! shape of a tree (`tree`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, Run};
use modelpack::piece_map::PieceMap;

use crate::bound::{Bound, Rates, discrete_optimum};
use crate::cast::{Cast, Trust};
use crate::id::PeerId;
use crate::pace::Pace;
use crate::plan::{Before, Member, PeerPlan, StripePart, StripeSource};
use crate::planner::{Progress, ROUNDS_MAX, Registered};
use crate::quarantine::Standing;
use crate::tree::{Budgets, Tree};

/// Stripes of an artifact. Constant, so that stripes keep their pieces when members come and go: the origin would
/// otherwise be read again at each join. 16 keeps trees shallow (16 children under each peer) and the last pieces few.
const STRIPES: u32 = 16;

/// Consecutive pieces in one stripe, at most: a 4 MiB read is long enough for any transport.
const STRIPE_PIECES_MAX: u32 = 4;

/// Backups named for each stripe: with a parent, three sources must fail together before a peer has to look around.
const BACKUPS: usize = 2;

/// Times a stripe may move from a live entrant: each further one has to be asked which pieces are on their way.
const BEFORE_MAX: usize = 8;

/// Where members come with the plan of another scheduler, the first plan waits this long for the next of them: without
/// it, stripes that somebody is reading would be given to others. Nobody is held up, as all go on by their last plan.
const GATHER_PAUSE: Duration = Duration::from_millis(50);

/// It waits no longer than this.
const GATHER_MAX: Duration = Duration::from_millis(500);

/// Epochs of other schedulers that are believed: far more plans than are ever made, and far from the end of numbers.
const EPOCH_MAX: u64 = 1 << 62;

/// Members named in a plan beyond parents and backups, for the case that those fail.
const MEMBERS_EXTRA: usize = 64;

mod stragglers;

#[derive(Debug)]
pub(crate) struct MemberState {
    origin_ok: bool,
    is_seed: bool,
    /// How often its pieces did not add up to the manifest's digest.
    round: u32,
    have: PieceMap,
    /// How many pieces of each stripe it has.
    held: Vec<u32>,
    /// How many pieces of each stripe it was reading from the origin when it joined.
    in_flight: Vec<u32>,
    /// Until when nobody waits for it: it was much slower than the others.
    straggles_until: Option<Duration>,
}

impl MemberState {
    pub(crate) fn new(
        swarm: &SwarmState,
        origin_ok: bool,
        is_seed: bool,
        (have, progress): (&[Run], &Progress),
    ) -> Self {
        let mut member = Self {
            origin_ok,
            is_seed,
            round: progress.round.min(ROUNDS_MAX),
            have: PieceMap::empty(swarm.piece_count),
            held: vec![0; swarm.entrants.len()],
            in_flight: vec![0; swarm.entrants.len()],
            straggles_until: None,
        };
        member.add(swarm.stripe_pieces, have);
        for run in &progress.origin_in_flight {
            let end = run.end.0.min(swarm.piece_count);
            for piece in Run::new(run.start.0.min(end), end).pieces() {
                if !member.have.contains(piece) {
                    member.in_flight[swarm.stripe_of(piece.0)] += 1;
                }
            }
        }
        member
    }

    fn add(&mut self, stripe_pieces: u32, runs: &[Run]) {
        for run in runs {
            let end = run.end.0.min(self.have.piece_count());
            for piece in Run::new(run.start.0.min(end), end).pieces() {
                if self.have.insert(piece) {
                    let stripe = (piece.0 / stripe_pieces) as usize % self.held.len();
                    self.held[stripe] += 1;
                }
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct SwarmState {
    bytes: u64,
    piece_count: u32,
    stripe_pieces: u32,
    epoch: u64,
    /// The latest repair that a member has begun; 0 while everything adds up.
    round: u32,
    members: BTreeMap<PeerId, MemberState>,
    /// The member that each stripe enters the swarm through.
    entrants: Vec<Option<PeerId>>,
    /// Who was the entrant of each stripe before it moved: they may have pieces of it on their way.
    moved_from: Vec<Vec<Before>>,
    trees: Vec<Tree>,
    sent: BTreeMap<PeerId, Vec<StripePart>>,
    /// While members come from another scheduler: since when, and until when no plan is made.
    gathering: Option<(Duration, Duration)>,
    pace: Pace,
}

impl SwarmState {
    pub(crate) fn new(bytes: u64, piece_count: u32) -> Self {
        let stripes = STRIPES.min(piece_count).max(1);
        Self {
            bytes,
            piece_count,
            stripe_pieces: (piece_count / (stripes * 16)).clamp(1, STRIPE_PIECES_MAX),
            epoch: 0,
            round: 0,
            members: BTreeMap::new(),
            entrants: vec![None; stripes as usize],
            moved_from: vec![Vec::new(); stripes as usize],
            trees: vec![Tree::default(); stripes as usize],
            sent: BTreeMap::new(),
            gathering: None,
            pace: Pace::default(),
        }
    }

    pub(crate) fn is_about(&self, bytes: u64, piece_count: u32) -> bool {
        self.bytes == bytes && self.piece_count == piece_count
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn piece_count(&self) -> u32 {
        self.piece_count
    }

    /// What each member has, and whether it is a seed.
    pub(crate) fn holdings(&self) -> impl ExactSizeIterator<Item = (&PieceMap, bool)> {
        self.members.values().map(|member| (&member.have, member.is_seed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    fn stripe_of(&self, piece: u32) -> usize {
        (piece / self.stripe_pieces) as usize % self.entrants.len()
    }

    /// Takes a member in, who acts by the plan of `epoch`.
    pub(crate) fn join(&mut self, now: Duration, peer: PeerId, member: MemberState, epoch: u64) {
        if epoch > self.epoch && epoch <= EPOCH_MAX {
            // Another scheduler's plan. The next one comes after it, so that no epoch means two plans.
            self.epoch = epoch;
            self.gathering.get_or_insert((now, now));
        }
        if let Some((since, until)) = &mut self.gathering {
            *until = (now + GATHER_PAUSE).min(*since + GATHER_MAX);
        }
        if self.members.insert(peer, member).is_none() {
            self.keep_in_flight(peer);
        }
        // It asked, so it is told, even if nothing changed for it.
        self.sent.remove(&peer);
    }

    /// Until when no plan is made.
    pub(crate) fn gathering(&self) -> Option<Duration> {
        self.gathering.map(|(_, until)| until)
    }

    /// They have come.
    pub(crate) fn gathered(&mut self) {
        self.gathering = None;
        // The next plan is the first by which they give up stripes, whatever was counted while they came.
        for before in self.moved_from.iter_mut().flatten() {
            before.epoch = self.epoch + 1;
        }
    }

    /// What a member reads from the origin when it joins, it is to go on reading: whoever reads more of a stripe than
    /// its entrant is its entrant.
    fn keep_in_flight(&mut self, peer: PeerId) {
        for stripe in 0..self.entrants.len() {
            let in_flight = |peer: &PeerId| self.members.get(peer).map_or(0, |at| at.in_flight[stripe]);
            let entrant = self.entrants[stripe].filter(|entrant| *entrant != peer);
            let (mine, theirs) = (in_flight(&peer), entrant.as_ref().map_or(0, in_flight));
            if mine > theirs {
                self.entrants[stripe] = Some(peer);
                self.moved_from[stripe].retain(|before| before.peer != peer);
                if let Some(entrant) = entrant {
                    self.move_from(stripe, entrant, self.epoch + 1);
                }
            } else if mine > 0 {
                self.move_from(stripe, peer, self.epoch + 1);
            }
        }
    }

    fn move_from(&mut self, stripe: usize, from: PeerId, epoch: u64) {
        let moved_from = &mut self.moved_from[stripe];
        moved_from.retain(|before| before.peer != from && self.members.contains_key(&before.peer));
        moved_from.push(Before { peer: from, epoch });
        let surplus = moved_from.len().saturating_sub(BEFORE_MAX);
        moved_from.drain(..surplus);
    }

    pub(crate) fn leave(&mut self, peer: PeerId) -> bool {
        self.sent.remove(&peer);
        self.members.remove(&peer).is_some()
    }

    /// The next plan goes to everybody: also whoever keeps its sources has to hear who is no longer named.
    pub(crate) fn tell_everybody(&mut self) {
        self.sent.clear();
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn member_count(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn has(&self, peer: PeerId) -> bool {
        self.members.contains_key(&peer)
    }

    pub(crate) fn have(&mut self, peer: PeerId, runs: &[Run]) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.add(self.stripe_pieces, runs);
        }
    }

    /// All members, those that have everything first.
    pub(crate) fn fullest_first(&self) -> impl Iterator<Item = PeerId> + '_ {
        let of =
            |is_full: bool| self.members.iter().filter(move |(_, member)| member.have.is_full() == is_full);
        of(true).chain(of(false)).map(|(peer, _)| *peer)
    }

    /// Makes the next plan; returns the parts that changed.
    pub(crate) fn replan(&mut self, peers: &BTreeMap<PeerId, Registered>) -> Vec<(PeerId, PeerPlan)> {
        self.epoch += 1;
        self.note_round();
        let cast = self.cast(peers);
        let weights = weights(&cast.serving, peers);
        self.assign_entrants(&cast, &weights);
        let mut budgets = Budgets::new(&weights, cast.wanting.len(), &self.entrants);
        for (stripe, entrant) in self.entrants.iter().enumerate() {
            let root = entrant.map(|root| (root, budgets.entrant_slots(root)));
            let before = std::mem::take(&mut self.trees[stripe]);
            self.trees[stripe] = root.map_or_else(Tree::default, |(root, slots)| {
                Tree::grow(root, slots, &cast.wanting, &mut budgets, &before)
            });
        }
        let (finish, bound) = self.predict(&cast, peers);
        let is_quarantined = |peer: &&PeerId| cast.trust.standing(**peer) == Standing::Quarantined;
        let quarantined: Vec<PeerId> = self.members.keys().filter(is_quarantined).copied().collect();
        let mut changed = Vec::new();
        for peer in self.members.keys() {
            let stripes = self.parts_of(*peer, &cast);
            if self.sent.get(peer) == Some(&stripes) {
                continue;
            }
            self.sent.insert(*peer, stripes.clone());
            let members = self.named(*peer, &stripes, &cast.trust);
            let quarantined = quarantined.iter().copied().filter(|other| other != peer).collect();
            let plan = PeerPlan {
                epoch: self.epoch,
                stripe_pieces: self.stripe_pieces,
                stripes,
                members,
                quarantined,
                finish,
                bound,
            };
            changed.push((*peer, plan));
        }
        changed
    }

    /// In a repair one member alone reads the origin, so that whoever vouched for something else is found out; those
    /// who have everything from before may have it wrong.
    fn cast<'a>(&self, peers: &'a BTreeMap<PeerId, Registered>) -> Cast<'a> {
        let trust = Trust(peers);
        let of = |pick: &dyn Fn(&MemberState) -> bool| -> Vec<PeerId> {
            self.members.iter().filter(|(_, member)| pick(member)).map(|(peer, _)| *peer).collect()
        };
        let is_aware = |member: &MemberState| member.round == self.round;
        let wanting = of(&|member| !member.have.is_full() && is_aware(member));
        let unaware = of(&|member| !member.have.is_full() && !is_aware(member));
        let reading = of(&|member| !member.have.is_full() && member.origin_ok && is_aware(member));
        let mut readers = self.not_straggling(trust.best(&reading));
        let full = |is_seed: bool| {
            trust.best(&of(&|member| member.have.is_full() && member.is_seed == is_seed && is_aware(member)))
        };
        let mut holders = full(false);
        // Where nobody can read the origin, seeds are it; a suspect alone must not keep anybody from them.
        if readers.is_empty() && holders.iter().all(|holder| trust.standing(*holder) != Standing::Good) {
            holders.extend(full(true));
        }
        if self.round > 0 {
            let is_reading = |peer: &PeerId| self.entrants.contains(&Some(*peer));
            let elected = readers.iter().find(|peer| is_reading(peer)).or(readers.first()).copied();
            readers = elected.into_iter().collect();
        }
        let serving = self.not_straggling(trust.best(&wanting));
        let supplied = trust.supplied(&serving, &holders, &reading);
        let eligible = if holders.is_empty() { readers } else { supplied };
        let seeds = of(&|member| member.is_seed);
        Cast { trust, wanting, unaware, serving, holders, seeds, eligible: eligible.into_iter().collect() }
    }

    /// Begins a repair, or goes back to the last one that somebody is still in.
    fn note_round(&mut self) {
        let round = self.members.values().map(|member| member.round).max().unwrap_or(0);
        if self.round != round {
            self.round = round;
            // What was read before is in doubt: nobody takes over from those who read it.
            self.entrants.fill(None);
            self.moved_from.fill(Vec::new());
        }
    }

    /// Entrants stay while they can: a stripe that changes hands may be read from the origin twice. Only stripes that
    /// are hardly begun move to newcomers.
    fn assign_entrants(&mut self, cast: &Cast<'_>, weights: &BTreeMap<PeerId, u64>) {
        // Nobody has a plan of this scheduler yet. Who holds most of a stripe was its entrant, if there was a plan.
        let is_first = self.sent.is_empty();
        let mut counts: BTreeMap<PeerId, u64> = cast.eligible.iter().map(|peer| (*peer, 0)).collect();
        for stripe in 0..self.entrants.len() {
            let Some(entrant) = self.entrants[stripe] else { continue };
            if let Some(count) = counts.get_mut(&entrant) {
                *count += 1;
                continue;
            }
            self.entrants[stripe] = None;
            if cast.trust.standing(entrant) == Standing::Suspect || self.straggles(entrant) {
                // It goes on serving what it has on its way, to whoever believes it.
                self.move_from(stripe, entrant, self.epoch);
            }
        }
        let cheapest = |counts: &BTreeMap<PeerId, u64>| {
            counts.iter().map(|(peer, count)| (*peer, *count + 1)).min_by(|a, b| by_load(weights, *a, *b))
        };
        for stripe in 0..self.entrants.len() {
            if self.entrants[stripe].is_some() {
                continue;
            }
            let furthest = is_first.then(|| self.furthest(stripe, &cast.eligible)).flatten();
            let begun = furthest.filter(|peer| !self.is_movable(stripe, *peer));
            if let Some((peer, count)) =
                begun.map(|peer| (peer, counts[&peer] + 1)).or_else(|| cheapest(&counts))
            {
                if let Some(furthest) = furthest.filter(|furthest| *furthest != peer) {
                    self.move_from(stripe, furthest, self.epoch);
                }
                self.entrants[stripe] = Some(peer);
                counts.insert(peer, count);
            }
        }
        for stripe in (0..self.entrants.len()).rev() {
            let (Some(from), Some((to, count))) = (self.entrants[stripe], cheapest(&counts)) else {
                continue;
            };
            let load = counts[&from];
            if self.is_movable(stripe, from) && by_load(weights, (to, count), (from, load)).is_lt() {
                self.entrants[stripe] = Some(to);
                self.moved_from[stripe].retain(|before| before.peer != to);
                self.move_from(stripe, from, self.epoch);
                counts.insert(from, load - 1);
                counts.insert(to, count);
            }
        }
    }

    /// Who holds most of a stripe, if anybody holds anything of it.
    fn furthest(&self, stripe: usize, eligible: &BTreeSet<PeerId>) -> Option<PeerId> {
        let held = |peer: &PeerId| self.members.get(peer).map_or(0, |member| member.held[stripe]);
        let furthest = eligible.iter().map(|peer| (held(peer), *peer)).max();
        furthest.filter(|(held, _)| *held > 0).map(|(_, peer)| peer)
    }

    fn is_movable(&self, stripe: usize, entrant: PeerId) -> bool {
        let size = self.piece_count / u32::try_from(self.entrants.len()).expect("at most STRIPES");
        let is_begun =
            self.members.get(&entrant).is_some_and(|at| at.held[stripe] + at.in_flight[stripe] > size / 4);
        let is_live = |before: &&Before| self.members.contains_key(&before.peer);
        !is_begun && self.moved_from[stripe].iter().filter(is_live).count() < BEFORE_MAX
    }

    fn parts_of(&self, peer: PeerId, cast: &Cast<'_>) -> Vec<StripePart> {
        let is_wanting = cast.wanting.binary_search(&peer).is_ok();
        if cast.unaware.binary_search(&peer).is_ok() {
            let part = |stripe| self.part_of_unaware(peer, stripe, cast);
            return (0..self.entrants.len()).map(part).collect();
        }
        (0..self.entrants.len())
            .map(|stripe| {
                let source = if is_wanting { self.source_of(peer, stripe, cast) } else { StripeSource::None };
                // A seed is an origin too: whoever reads it does so for everybody.
                let is_entrant = match source {
                    StripeSource::Origin => true,
                    StripeSource::Parent(parent) => self.members.get(&parent).is_some_and(|at| at.is_seed),
                    StripeSource::None => false,
                };
                let backups = match is_wanting {
                    false => Vec::new(),
                    true if is_entrant => self.holding(peer, stripe, &cast.trust),
                    true => self.backups_of(peer, stripe, source, cast),
                };
                let before =
                    if is_entrant { self.before(peer, stripe, &cast.trust).collect() } else { Vec::new() };
                StripePart { source, backups, before }
            })
            .collect()
    }

    fn source_of(&self, peer: PeerId, stripe: usize, cast: &Cast<'_>) -> StripeSource {
        let may_serve = |source: &PeerId| cast.trust.may_serve(*source, peer);
        // Nobody may read from a quarantined member, which still reads by itself what nobody else gives it.
        let by_itself = match cast.holder_for(peer, stripe) {
            Some(holder) => StripeSource::Parent(holder),
            None if self.members.get(&peer).is_some_and(|member| member.origin_ok) => StripeSource::Origin,
            None => StripeSource::None,
        };
        match self.entrants[stripe] {
            Some(entrant) if entrant != peer => {
                let tree = &self.trees[stripe];
                let others = tree.interiors().filter(|other| *other != peer);
                match tree.parent(peer).into_iter().chain(others).find(may_serve) {
                    Some(parent) => StripeSource::Parent(parent),
                    None => by_itself,
                }
            }
            Some(_) => by_itself,
            None if cast.trust.standing(peer) == Standing::Quarantined => by_itself,
            None => StripeSource::None,
        }
    }

    fn part_of_unaware(&self, peer: PeerId, stripe: usize, cast: &Cast<'_>) -> StripePart {
        let entrant = self.entrants[stripe].filter(|entrant| cast.trust.may_serve(*entrant, peer));
        let source = cast.holder_for(peer, stripe).or(entrant);
        let source = source.map_or(StripeSource::None, StripeSource::Parent);
        StripePart { source, backups: Vec::new(), before: Vec::new() }
    }

    /// Former entrants of a stripe that this member may ask what is on its way.
    fn before<'a>(
        &'a self,
        peer: PeerId,
        stripe: usize,
        trust: &'a Trust<'_>,
    ) -> impl Iterator<Item = Before> + 'a {
        let counts = move |before: &&Before| {
            before.peer != peer
                && self.members.contains_key(&before.peer)
                && trust.may_serve(before.peer, peer)
        };
        self.moved_from[stripe].iter().filter(counts).copied()
    }

    /// For an entrant: who already holds pieces of the stripe, most first. Seeds are origins too, so they do not count.
    fn holding(&self, peer: PeerId, stripe: usize, trust: &Trust<'_>) -> Vec<PeerId> {
        let mut holding: Vec<(Standing, u32, PeerId)> = self
            .members
            .iter()
            .filter(|(other, member)| **other != peer && !member.is_seed && member.held[stripe] > 0)
            .filter(|(other, _)| trust.may_serve(**other, peer))
            .map(|(other, member)| (trust.standing(*other), u32::MAX - member.held[stripe], *other))
            .collect();
        holding.sort_unstable();
        let before: Vec<PeerId> = self.before(peer, stripe, trust).map(|before| before.peer).collect();
        let holding = holding.into_iter().map(|(_, _, other)| other).filter(|other| !before.contains(other));
        let count = BACKUPS.max(before.len());
        before.iter().copied().chain(holding).take(count).collect()
    }

    fn backups_of<'a>(
        &'a self,
        peer: PeerId,
        stripe: usize,
        source: StripeSource,
        cast: &'a Cast<'_>,
    ) -> Vec<PeerId> {
        let rotated = |all: &'a [PeerId]| {
            let (head, tail) = all.split_at(stripe % all.len().max(1));
            tail.iter().chain(head).copied()
        };
        // Only as many are looked at as it takes: everybody asks this for every stripe.
        let candidates = || {
            let serving = rotated(&cast.holders).chain(self.trees[stripe].interiors());
            serving.chain(cast.seeds.iter().copied()).chain(rotated(&cast.wanting))
        };
        let mut backups = Vec::new();
        for standing in [Standing::Good, Standing::Suspect] {
            for other in candidates().filter(|other| cast.trust.standing(*other) == standing) {
                let is_new = other != peer && source != StripeSource::Parent(other);
                if is_new && !backups.contains(&other) && cast.trust.may_serve(other, peer) {
                    backups.push(other);
                }
                if backups.len() == BACKUPS {
                    return backups;
                }
            }
        }
        backups
    }

    fn named(&self, peer: PeerId, stripes: &[StripePart], trust: &Trust<'_>) -> Vec<Member> {
        let parents = stripes.iter().filter_map(|part| match part.source {
            StripeSource::Parent(parent) => Some(parent),
            StripeSource::Origin | StripeSource::None => None,
        });
        let mut named: BTreeSet<PeerId> =
            stripes.iter().flat_map(|part| part.backups.iter().copied()).chain(parents).collect();
        // Whoever reads the origin vouches for what it read, and must be known by name.
        named.extend(
            self.entrants
                .iter()
                .flatten()
                .filter(|entrant| **entrant != peer && trust.may_serve(**entrant, peer)),
        );
        let extra = self.members.keys().copied().filter(|other| *other != peer);
        named.extend(extra.filter(|other| trust.may_serve(*other, peer)).take(MEMBERS_EXTRA));
        named
            .into_iter()
            .filter_map(|id| {
                let (registered, member) = (trust.0.get(&id)?, self.members.get(&id)?);
                let (address, name) = (registered.address.clone(), registered.name.clone());
                Some(Member { id, address, name, is_seed: member.is_seed })
            })
            .collect()
    }

    /// The bound, and the same with the pipeline's depth added, when every member's rate is known. The origin's rate
    /// is never known here, so it does not bind.
    fn predict(
        &self,
        cast: &Cast<'_>,
        peers: &BTreeMap<PeerId, Registered>,
    ) -> (Option<Duration>, Option<Duration>) {
        let rates: Option<Vec<Rates>> = cast
            .wanting
            .iter()
            .map(|peer| peers.get(peer)?.nic_rate.filter(|rate| *rate > 0))
            .map(|rate| rate.map(|rate| Rates { up: as_f64(rate), down: as_f64(rate) }))
            .collect();
        let Some(rates) = rates.filter(|rates| !rates.is_empty()) else { return (None, None) };
        let bound = Bound::new(self.bytes, None, &rates).time();
        let slowest = rates.iter().map(|rates| rates.down).fold(f64::INFINITY, f64::min);
        let receivers = u32::try_from(rates.len()).unwrap_or(u32::MAX);
        let depth = discrete_optimum(1, receivers, PIECE_BYTES, slowest);
        (Some(bound.saturating_add(depth)), Some(bound))
    }
}

/// Relative sending power; peers that do not know theirs count as the mean of those that do.
fn weights(wanting: &[PeerId], peers: &BTreeMap<PeerId, Registered>) -> BTreeMap<PeerId, u64> {
    let rate =
        |peer: &PeerId| peers.get(peer).and_then(|registered| registered.nic_rate).filter(|rate| *rate > 0);
    let known: Vec<u64> = wanting.iter().filter_map(rate).collect();
    let sum: u128 = known.iter().map(|rate| u128::from(*rate)).sum();
    let mean = u64::try_from(sum / (known.len() as u128).max(1)).unwrap_or(u64::MAX).max(1);
    wanting.iter().map(|peer| (*peer, rate(peer).unwrap_or(mean))).collect()
}

/// Compares `stripes / weight` of two peers without dividing.
fn by_load(weights: &BTreeMap<PeerId, u64>, a: (PeerId, u64), b: (PeerId, u64)) -> Ordering {
    let weight = |peer| u128::from(weights.get(&peer).copied().unwrap_or(1));
    (u128::from(a.1) * weight(b.0)).cmp(&(u128::from(b.1) * weight(a.0)))
}

#[expect(clippy::cast_precision_loss, reason = "an estimate of a rate; 53 bits are more than any card has")]
fn as_f64(rate: u64) -> f64 {
    rate as f64
}
