//! One swarm as the planner sees it: its members, its entrants, its trees, and who is to hear of what changed.
//!
//! Owns: what a change of the members makes of a plan. Does not own: how a tree grows (`forest`), who can play which part
//! (`roster`), who is an entrant (`entrants`), what one member is told (`parts`).
//!
//! A join, a leave or a piece costs what it changes, and not what there is: a swarm may have ten thousand members.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::Run;
use modelpack::piece_map::PieceMap;

use crate::forest::{Node, STRIPES};
use crate::id::PeerId;
use crate::pace::{ENTRANTS_INTERVAL, MEMBERS_INTERVAL, Pace};
use crate::plan::{Before, PeerPlan};
use crate::planner::{Progress, ROUNDS_MAX, Registered};
use crate::priority::{Priority, Wishes};
use crate::quarantine::Standing;
use crate::trees::Trees;

mod briefs;
mod entrants;
mod parts;
mod residues;
mod roster;
mod shares;
mod stalls;
mod stragglers;

use roster::{BACKUPS, Part, Roster, Straggles, rounded, slowed};
pub(crate) use roster::{MemberState, Rated};
pub(crate) use shares::{Shares, Work};

/// Consecutive pieces in one stripe, at most: a 4 MiB read is long enough for any transport.
const STRIPE_PIECES_MAX: u32 = 4;

/// Times a stripe may move from a live entrant: each further one has to be asked which pieces are on their way.
const BEFORE_MAX: usize = 8;

/// Where members come with the plan of another scheduler, the first plan waits this long for the next of them: without
/// it, stripes that somebody is reading would be given to others. Nobody is held up, as all go on by their last plan. Who
/// finds out that a scheduler hangs does so by probes of its own, 400 ms apart.
const GATHER_PAUSE: Duration = Duration::from_millis(450);

/// It waits no longer than this.
const GATHER_MAX: Duration = Duration::from_millis(1500);

/// Epochs of other schedulers that are believed: far more plans than are ever made, and far from the end of numbers.
const EPOCH_MAX: u64 = 1 << 62;

/// What a member says of itself when it joins.
#[derive(Clone, Copy)]
pub(crate) struct Joining<'a> {
    pub(crate) origin_ok: bool,
    pub(crate) is_seed: bool,
    pub(crate) have: &'a [Run],
    /// What is left of its card, if that is known.
    pub(crate) rate: Option<u64>,
    pub(crate) progress: &'a Progress,
}

impl MemberState {
    /// How urgently it wants what it lacks, if anything.
    fn wish(&self) -> Option<Priority> {
        (!self.have.is_full()).then_some(self.priority)
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
    /// How many members are in a repair: while none is, nobody is asked in which.
    repairing: usize,
    /// Of those who lack something.
    wishes: Wishes,
    /// As of the last plan.
    priority: Priority,
    roster: Roster,
    trees: Trees,
    /// What those count as who do not know the rate of their card.
    mean: u64,
    /// The member that each stripe enters the swarm through.
    entrants: Vec<Option<Node>>,
    /// Who was the entrant of each stripe before it moved: they may have pieces of it on their way.
    moved_from: Vec<Vec<Before>>,
    /// Some of those who have everything, as of the last plan.
    holders: Vec<Node>,
    /// Those who have left since the last plan.
    left: Vec<Node>,
    /// Those who are to hear of the next plan, whatever changes for them.
    concerned: BTreeSet<Node>,
    is_for_all: bool,
    /// Those who are to be told their parts of the last plan, and what was predicted of it: how long it takes, and the bound.
    telling: BTreeSet<Node>,
    predicted: (Option<Duration>, Option<Duration>),
    /// Until when nobody waits for them.
    straggling: BTreeMap<Node, Straggles>,
    /// While members come from another scheduler: since when, and until when no plan is made.
    gathering: Option<(Duration, Duration)>,
    /// Of entrants, in what they read for others.
    pace: Pace<stragglers::Who>,
    /// Of all who want anything, in all that they get.
    gains: Pace<stragglers::Who>,
    stalls: stalls::Stalls,
    review: residues::Review,
    /// Everybody counts as something else since the last plan.
    is_reweighed: bool,
}

impl SwarmState {
    pub(crate) fn new(bytes: u64, piece_count: u32) -> Self {
        let most = u32::try_from(STRIPES).expect("a small number");
        let stripes = most.min(piece_count).max(1);
        Self {
            bytes,
            piece_count,
            stripe_pieces: (piece_count / (stripes * 16)).clamp(1, STRIPE_PIECES_MAX),
            epoch: 0,
            round: 0,
            repairing: 0,
            wishes: Wishes::default(),
            priority: Priority::default(),
            roster: Roster::default(),
            trees: Trees::new(stripes as usize),
            mean: 1,
            entrants: vec![None; stripes as usize],
            moved_from: vec![Vec::new(); stripes as usize],
            holders: Vec::new(),
            left: Vec::new(),
            concerned: BTreeSet::new(),
            is_for_all: false,
            telling: BTreeSet::new(),
            predicted: (None, None),
            straggling: BTreeMap::new(),
            gathering: None,
            pace: Pace::of_sharers(ENTRANTS_INTERVAL),
            gains: Pace::new(MEMBERS_INTERVAL),
            stalls: stalls::Stalls::new(piece_count),
            review: residues::Review::default(),
            is_reweighed: false,
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

    pub(crate) fn stripe_pieces(&self) -> u32 {
        self.stripe_pieces
    }

    pub(crate) fn stripe_count(&self) -> u32 {
        u32::try_from(self.entrants.len()).expect("at most STRIPES")
    }

    /// What each member has, and whether it is a seed.
    pub(crate) fn holdings(&self) -> impl Iterator<Item = (&PieceMap, bool)> {
        self.roster.members().map(|member| (&member.have, member.is_seed))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.roster.len() == 0
    }

    fn stripe_of(&self, piece: u32) -> usize {
        (piece / self.stripe_pieces) as usize % self.entrants.len()
    }

    /// Takes a member in.
    pub(crate) fn join(
        &mut self,
        now: Duration,
        peer: PeerId,
        facts: &Arc<Registered>,
        joining: Joining<'_>,
    ) {
        self.stalls.joined(now);
        let epoch = joining.progress.epoch;
        if epoch > self.epoch && epoch <= EPOCH_MAX {
            // Another scheduler's plan. The next one comes after it, so that no epoch means two plans.
            self.epoch = epoch;
            self.gathering.get_or_insert((now, now));
        }
        if let Some((since, until)) = &mut self.gathering {
            *until = (now + GATHER_PAUSE).min(*since + GATHER_MAX);
        }
        let mut member = self.member(peer, facts, joining);
        let held = member.held;
        self.repairing += usize::from(member.round > 0);
        member.wish().into_iter().for_each(|wish| self.wishes.add(wish));
        let node = if let Some(node) = self.roster.node(peer) {
            self.straggling.remove(&node);
            if let Some(before) = self.roster.get_mut(node) {
                self.repairing -= usize::from(before.round > 0);
                before.wish().into_iter().for_each(|wish| self.wishes.remove(wish));
                (member.class, member.rack) = (before.class, before.rack);
                *before = member;
            }
            node
        } else {
            let node = self.roster.insert(member);
            let rack = self.trees.enter(node, &facts.place);
            if let Some(member) = self.roster.get_mut(node) {
                member.rack = rack;
            }
            self.keep_in_flight(node);
            node
        };
        // It asked, so it is told, even if nothing changed for it. Whoever reads what it has is told where that is.
        self.concerned.insert(node);
        let reading = self.entrants.iter().zip(held).filter(|(_, held)| *held > 0);
        self.concerned.extend(reading.filter_map(|(entrant, _)| *entrant));
    }

    fn member(&self, peer: PeerId, facts: &Arc<Registered>, joining: Joining<'_>) -> MemberState {
        let Joining { origin_ok, is_seed, have, rate, progress } = joining;
        let mut member = MemberState {
            peer,
            facts: Arc::clone(facts),
            origin_ok,
            is_seed,
            priority: progress.priority,
            rate: rounded(rate.unwrap_or(0)),
            round: progress.round.min(ROUNDS_MAX),
            have: PieceMap::empty(self.piece_count),
            held: [0; STRIPES],
            in_flight: None,
            straggles: None,
            class: None,
            rack: 0,
            told: None,
        };
        member.add((self.stripe_pieces, self.entrants.len()), have, |_, _| {});
        for run in &progress.origin_in_flight {
            let end = run.end.0.min(self.piece_count);
            for piece in Run::new(run.start.0.min(end), end).pieces() {
                if !member.have.contains(piece) {
                    member.in_flight.get_or_insert_default()[self.stripe_of(piece.0)] += 1;
                }
            }
        }
        member
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

    pub(crate) fn leave(&mut self, peer: PeerId) -> bool {
        let Some(node) = self.roster.node(peer) else { return false };
        if let Some(member) = self.roster.remove(node) {
            self.repairing -= usize::from(member.round > 0);
            member.wish().into_iter().for_each(|wish| self.wishes.remove(wish));
        }
        self.concerned.remove(&node);
        self.straggling.remove(&node);
        self.stalls.left(node);
        for entrant in self.entrants.iter_mut().filter(|entrant| **entrant == Some(node)) {
            *entrant = None;
        }
        self.left.push(node);
        true
    }

    /// A member said something else about itself, or is trusted with something else.
    pub(crate) fn update(&mut self, peer: PeerId, facts: &Arc<Registered>) {
        if let Some(member) = self.roster.node(peer).and_then(|node| self.roster.get_mut(node)) {
            member.facts = Arc::clone(facts);
        }
    }

    /// A member that is here already has come again.
    pub(crate) fn set_rate(&mut self, peer: PeerId, rate: Option<u64>) {
        if let Some(member) = self.roster.node(peer).and_then(|node| self.roster.get_mut(node)) {
            member.rate = rounded(rate.unwrap_or(0));
        }
    }

    /// The next plan goes to everybody: also whoever keeps its sources has to hear who is no longer named.
    pub(crate) fn tell_everybody(&mut self) {
        self.is_for_all = true;
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn member_count(&self) -> usize {
        self.roster.len()
    }

    pub(crate) fn has(&self, peer: PeerId) -> bool {
        self.roster.node(peer).is_some()
    }

    pub(crate) fn pieces_of(&self, peer: PeerId) -> Option<u32> {
        Some(self.roster.get(self.roster.node(peer)?)?.have.len())
    }

    pub(crate) fn have(&mut self, now: Duration, peer: PeerId, runs: &[Run]) {
        let Some(node) = self.roster.node(peer) else { return };
        let shape = (self.stripe_pieces, self.entrants.len());
        let stalls = &mut self.stalls;
        let Some(member) = self.roster.get_kept(node) else { return };
        let (was_full, wish) = (member.have.is_full(), member.wish());
        member.add(shape, runs, |stripe, piece| stalls.got(now, stripe, piece));
        if member.have.is_full() != was_full {
            self.roster.get_mut(node);
            if let Some(wish) = wish {
                self.wishes.remove(wish);
            }
        }
    }

    /// How urgent it is, as of the last plan.
    pub(crate) fn priority(&self) -> Priority {
        self.priority
    }

    /// How urgent it is once such a member has joined, if it is to anybody.
    pub(crate) fn priority_with(&self, joining: &Joining<'_>) -> Option<Priority> {
        let held: u64 = joining.have.iter().map(|run| u64::from(run.len())).sum();
        let wish = (held < u64::from(self.piece_count)).then_some(joining.progress.priority);
        self.wishes.most_urgent().max(wish)
    }

    /// Whether the next plan says that it is more or less urgent. Nobody has to hear that it is to nobody.
    pub(crate) fn is_otherwise_urgent(&self) -> bool {
        self.wishes.most_urgent().is_some_and(|wish| wish != self.priority)
    }

    /// All members, those that have everything first.
    pub(crate) fn fullest_first(&self) -> impl Iterator<Item = PeerId> + '_ {
        let of = |is_full: bool| self.roster.members().filter(move |member| member.have.is_full() == is_full);
        of(true).chain(of(false)).map(|member| member.peer)
    }

    /// Makes the next plan.
    pub(crate) fn replan(&mut self) {
        self.epoch += 1;
        if self.is_otherwise_urgent() {
            self.priority = self.wishes.most_urgent().unwrap_or_default();
            self.is_for_all = true;
        }
        self.note_round();
        let serving_before = self.roster.serving_rank();
        let mut sorted = self.roster.sort(self.round);
        if self.roster.serving_rank() != serving_before || std::mem::take(&mut self.is_reweighed) {
            sorted.extend(self.roster.nodes());
        }
        let holders = self.roster.holders();
        if holders != self.holders {
            self.holders = holders;
            self.concerned.extend(self.entrants.iter().flatten());
            self.concerned.extend(self.roster.unaware());
        }
        self.mean = rounded(self.roster.sending().mean());
        self.assign_entrants();
        self.grow(&sorted);
        self.forget_left();
        self.trees.tidy();
        self.tell(&sorted);
    }

    /// What the next member is told of the last plan, of those for whom anything changed.
    pub(crate) fn next_part(&mut self) -> Option<(PeerId, PeerPlan)> {
        while let Some(node) = self.telling.pop_first() {
            let Some(peer) = self.roster.get(node).map(|member| member.peer) else { continue };
            if let Some(plan) = self.part_of(node, self.predicted) {
                return Some((peer, plan));
            }
        }
        None
    }

    /// Makes the trees fit the members, of whom these have changed.
    fn grow(&mut self, sorted: &BTreeSet<Node>) {
        for node in &self.left {
            self.trees.retire(*node);
        }
        let racks = sorted.iter().filter_map(|node| Some(self.roster.get(*node)?.rack));
        let racks: BTreeSet<usize> = racks.chain(self.trees.changed()).collect();
        let anew: BTreeSet<usize> = racks.into_iter().filter(|rack| self.adapt_shares(*rack)).collect();
        for node in sorted {
            let Some((is_child, share)) = self.seat(*node) else {
                if self.trees.contains(*node) && !self.entrants.contains(&Some(*node)) {
                    self.trees.retire(*node);
                    self.left.push(*node);
                }
                continue;
            };
            if self.trees.contains(*node) {
                self.trees.set_child(*node, is_child);
                self.trees.set_weight(*node, self.weight(*node));
                self.trees.give(*node, share);
            } else {
                self.trees.insert(*node, is_child, (self.weight(*node), share));
            }
        }
        let (roster, most) = (&self.roster, self.hardly_begun());
        let is_begun =
            |node: Node, stripe: usize| roster.get(node).is_some_and(|member| member.begun(stripe) > most);
        self.trees.root(&self.entrants, is_begun);
        for rack in self.trees.changed() {
            let is_moved = self.trees.sends_otherwise(rack);
            if is_moved {
                self.adapt_shares(rack);
            }
            if is_moved || anew.contains(&rack) || self.trees.is_short(rack) {
                self.share_anew(rack);
            }
        }
        self.trees.hang();
    }

    /// What a member may send.
    fn share_of(&self, node: Node) -> u64 {
        let shares = self.roster.get(node).map(|member| self.trees.shares(member.rack));
        shares.map_or(0, |shares| shares.budget(self.weight(node)))
    }

    /// So many pieces of a stripe somebody may have from whom it still moves to another.
    fn hardly_begun(&self) -> u32 {
        self.piece_count / self.stripe_count() / 4
    }

    /// Whether a member wants the stripes, and how many children it may have; none where it has no place in the trees.
    fn seat(&self, node: Node) -> Option<(bool, u64)> {
        let member = self.roster.get(node)?;
        let class = member.class?;
        match class.part {
            Part::Wanting if Some(class.rank) == self.roster.serving_rank() => {
                Some((true, self.share_of(node)))
            }
            Part::Wanting => Some((true, 0)),
            Part::Holder if class.rank == 0 => Some((false, self.share_of(node))),
            Part::Holder | Part::Seed | Part::Unaware | Part::Apart => None,
        }
    }

    /// What a card does; peers that do not know theirs count as the mean of those that do.
    fn weight(&self, node: Node) -> u64 {
        let brief = self.roster.brief(node);
        let known = brief.map(|brief| brief.rate).filter(|rate| *rate > 0);
        known.unwrap_or_else(|| slowed(self.mean, brief.is_some_and(|brief| brief.is_slow_card)))
    }

    /// Those who left are nobody's backup.
    fn forget_left(&mut self) {
        let left: BTreeSet<Node> = std::mem::take(&mut self.left).into_iter().collect();
        if left.is_empty() {
            return;
        }
        for node in &left {
            self.concerned.extend(self.roster.forget_backup(*node));
        }
        for node in left {
            if self.roster.release(node) {
                self.trees.release(node);
            }
        }
    }

    /// Begins a repair, or goes back to the last one that somebody is still in who can read the origin or has everything:
    /// from whom else could the others get it? Whom nobody may read from begins none: they would wait for what it reads.
    fn note_round(&mut self) {
        let is_repair = self.repairing > 0;
        let counts = |member: &&MemberState| member.facts.standing != Standing::Quarantined;
        let members = || self.roster.members().filter(|member| is_repair && counts(member));
        let can_give = |member: &&MemberState| member.origin_ok || member.have.is_full();
        let latest = |round: Option<u32>, member: &MemberState| round.max(Some(member.round));
        let round = members().filter(can_give).fold(None, latest).or_else(|| members().fold(None, latest));
        let round = round.unwrap_or(0);
        if self.round != round {
            self.round = round;
            // What was read before is in doubt: nobody takes over from those who read it.
            self.entrants.fill(None);
            self.moved_from.fill(Vec::new());
            self.roster.unsort_all();
            self.trees.uproot();
            // Also who is as unaware of this one as of the last has other sources now.
            self.concerned.extend(self.roster.nodes());
        }
    }

    /// Finds those for whom anything may have changed.
    fn tell(&mut self, sorted: &BTreeSet<Node>) {
        let asked = std::mem::take(&mut self.concerned);
        let mut concerned: BTreeSet<Node> = self.trees.take_touched().into_iter().collect();
        concerned.extend(sorted);
        // Whoever has everything needs no plan, and hears of one only if it asked.
        let needs = |node: &Node| {
            let member = self.roster.get(*node);
            member.is_some_and(|member| member.told.is_none() || !member.have.is_full())
        };
        concerned.retain(needs);
        concerned.extend(asked);
        let is_small = self.roster.len() <= BACKUPS + 2 || self.round > 0;
        let is_for_all = std::mem::take(&mut self.is_for_all);
        if is_for_all {
            self.roster.forget_told();
        }
        if is_for_all || is_small {
            concerned.extend(self.roster.nodes());
        }
        self.telling.append(&mut concerned);
        self.predicted = self.predict();
    }
}
