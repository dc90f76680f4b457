//! Who each stripe enters the swarm through. Does not own the trees below (`forest`).

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::roster::{Kind, MemberState, Part, ReadsOrigin};
use super::{BEFORE_MAX, SwarmState};
use crate::forest::Node;
use crate::id::PeerId;
use crate::plan::Before;

/// Racks in which an entrant is looked for, at most: several times as many as there are entrants.
const RACKS_MAX: usize = 64;

/// Who of those.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MayRead {
    All,
    /// In a repair, where nobody has everything: one alone, if there is one.
    Elected(Option<Node>),
}

/// Who a stripe may be given to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MayEnter {
    Anybody,
    /// Those that are entrants of others.
    Entrants,
}

/// Who may be entrants.
#[derive(Clone, Copy)]
struct Eligible<'a> {
    pool: Option<(usize, &'a Kind)>,
    may_read: MayRead,
    has_holders: bool,
    /// Whether those that have no source of their own are left out: not where nobody has.
    leaves_out: bool,
}

impl SwarmState {
    /// What a member reads from the origin when it joins, it is to go on reading: whoever reads more of a stripe than
    /// its entrant is its entrant.
    pub(super) fn keep_in_flight(&mut self, node: Node) {
        for stripe in 0..self.entrants.len() {
            let in_flight = |node: Node| self.roster.get(node).map_or(0, |at| at.in_flight(stripe));
            let entrant = self.entrants[stripe].filter(|entrant| *entrant != node);
            let (mine, theirs) = (in_flight(node), entrant.map_or(0, in_flight));
            let Some(peer) = self.roster.get(node).map(|member| member.peer) else { return };
            if mine > theirs {
                self.entrants[stripe] = Some(node);
                self.moved_from[stripe].retain(|before| before.peer != peer);
                if let Some(entrant) = entrant {
                    self.move_from(stripe, entrant, self.epoch + 1);
                }
            } else if mine > 0 {
                self.move_from(stripe, node, self.epoch + 1);
            }
        }
    }

    fn move_from(&mut self, stripe: usize, from: Node, epoch: u64) {
        let Some(peer) = self.roster.get(from).map(|member| member.peer) else { return };
        let moved_from = &mut self.moved_from[stripe];
        moved_from.retain(|before| before.peer != peer && self.roster.node(before.peer).is_some());
        moved_from.push(Before { peer, epoch });
        let surplus = moved_from.len().saturating_sub(BEFORE_MAX);
        moved_from.drain(..surplus);
    }

    /// In a repair one member alone reads the origin, so that whoever vouched for something else is found out; those
    /// who have everything from before may have it wrong.
    fn eligible(&self) -> Eligible<'_> {
        let has_holders = !self.holders.is_empty();
        if has_holders {
            let pool = self.roster.entering();
            let mut nodes = pool.into_iter().flat_map(|(_, kind)| kind.nodes());
            let leaves_out = nodes.any(|node| self.roster.get(node).is_some_and(|at| self.has_source(at)));
            return Eligible { pool, may_read: MayRead::All, has_holders, leaves_out };
        }
        let pool = self.roster.readers();
        let mut may_read = MayRead::All;
        if self.round > 0 {
            let is_reading = |node: &Node| self.entrants.contains(&Some(*node));
            let readers = || pool.into_iter().flat_map(|(_, kind)| kind.nodes());
            may_read = MayRead::Elected(readers().find(is_reading).or(readers().next()));
        }
        Eligible { pool, may_read, has_holders, leaves_out: true }
    }

    fn is_eligible(&self, node: Node, eligible: &Eligible<'_>) -> bool {
        let Some(member) = self.roster.get(node) else { return false };
        let Some(class) = member.class.filter(|class| class.part == Part::Wanting) else { return false };
        eligible.pool.is_some_and(|(rank, _)| rank == class.entry_rank)
            && (member.origin_ok || eligible.has_holders)
            && (!eligible.leaves_out || self.has_source(member))
            && [MayRead::All, MayRead::Elected(Some(node))].contains(&eligible.may_read)
    }

    /// Whoever accuses all holders and cannot read the origin gets nothing that it could give on.
    fn has_source(&self, member: &MemberState) -> bool {
        member.origin_ok || self.holders.iter().any(|holder| self.may_serve(*holder, member))
    }

    /// Whoever has come to have everything goes on giving it: to take it from others would only cost time.
    fn is_done(&self, node: Node) -> bool {
        let class = self.roster.get(node).and_then(|member| member.class);
        class.is_some_and(|class| class.part == Part::Holder && class.rank == 0)
    }

    /// Entrants stay while they can: a stripe that changes hands may be read from the origin twice. Only stripes that
    /// are hardly begun move to newcomers.
    pub(super) fn assign_entrants(&mut self) {
        // Nobody has a plan of this scheduler yet. Who holds most of a stripe was its entrant, if there was a plan.
        let is_first = self.roster.members().all(|member| member.told.is_none());
        let mut counts: BTreeMap<Node, u64> = BTreeMap::new();
        let mut were_slow = BTreeSet::new();
        let (stalled, mut heirs) = (self.stalls.take_found(), BTreeMap::new());
        for stripe in 0..self.entrants.len() {
            let Some(entrant) = self.entrants[stripe] else { continue };
            if self.is_eligible(entrant, &self.eligible()) {
                *counts.entry(entrant).or_default() += 1;
            } else if !self.is_done(entrant) {
                // Whatever took the stripe from it, it goes on serving what it has on its way, to whoever believes it.
                self.entrants[stripe] = None;
                if self.roster.get(entrant).is_some_and(|member| member.straggles.is_some()) {
                    were_slow.insert(stripe);
                }
                heirs.extend(stalled.get(&entrant).map(|by| (stripe, by)));
                self.move_from(stripe, entrant, self.epoch);
            }
        }
        for stripe in 0..self.entrants.len() {
            if self.entrants[stripe].is_some() {
                continue;
            }
            let furthest = is_first.then(|| self.furthest(stripe)).flatten();
            let begun = furthest.filter(|node| !self.is_movable(stripe, *node));
            let count = |node: Node| counts.get(&node).copied().unwrap_or(0) + 1;
            // Who is to be quick where another was slow is better one that has been.
            let was_slow = were_slow.contains(&stripe);
            let proven = || was_slow.then(|| self.cheapest_of(&counts, MayEnter::Entrants)).flatten();
            let begun = begun.map(|node| (node, count(node)));
            // Who has found out that one stalls need not wait to hear from it what it has on its way.
            let heir = heirs.get(&stripe).and_then(|by| self.cheapest_among(by, &counts));
            let chosen =
                heir.or(begun).or_else(proven).or_else(|| self.cheapest_of(&counts, MayEnter::Anybody));
            if let Some((node, count)) = chosen {
                if let Some(furthest) = furthest.filter(|furthest| *furthest != node) {
                    self.move_from(stripe, furthest, self.epoch);
                }
                self.entrants[stripe] = Some(node);
                counts.insert(node, count);
            }
        }
        self.share_with_newcomers(&mut counts);
    }

    fn share_with_newcomers(&mut self, counts: &mut BTreeMap<Node, u64>) {
        for stripe in (0..self.entrants.len()).rev() {
            let (Some(from), Some((to, count))) =
                (self.entrants[stripe], self.cheapest_of(counts, MayEnter::Anybody))
            else {
                continue;
            };
            // Those who have everything are no more to be relieved.
            let Some(load) = counts.get(&from).copied() else { continue };
            if self.is_movable(stripe, from)
                && (self.weight(from) < self.weight(to) || self.is_relief((from, load), (to, count)))
            {
                self.entrants[stripe] = Some(to);
                let peer = self.roster.get(to).map(|member| member.peer);
                self.moved_from[stripe].retain(|before| Some(before.peer) != peer);
                self.move_from(stripe, from, self.epoch);
                counts.insert(from, load - 1);
                counts.insert(to, count);
            }
        }
    }

    /// Whether one with so many stripes is better off if another has so many, one of them its own.
    fn is_relief(&self, from: (Node, u64), to: (Node, u64)) -> bool {
        match self.by_load(to, from) {
            Ordering::Less => true,
            Ordering::Equal => {
                let in_rack = self.entrants_near();
                in_rack(to.0) + 1 < in_rack(from.0)
            }
            Ordering::Greater => false,
        }
    }

    /// Whom one more stripe burdens least, and how many it has then.
    fn cheapest_of(&self, counts: &BTreeMap<Node, u64>, who: MayEnter) -> Option<(Node, u64)> {
        let eligible = self.eligible();
        let is_new = |node: &Node| {
            who == MayEnter::Anybody
                && counts.get(node).is_none_or(|count| *count == 0)
                && self.is_eligible(*node, &eligible)
        };
        // What comes in through a slower card is slow for everybody.
        let weight = eligible
            .pool
            .map_or(0, |(_, kind)| kind.fastest().max(if kind.has_unknown() { self.mean } else { 0 }));
        let kind = eligible.pool.map(|(_, kind)| kind);
        let fastest = kind.and_then(|kind| kind.nodes().find(is_new));
        let unknown = kind.and_then(|kind| kind.nodes_unknown().find(is_new));
        // One of each rack: entrants are in few of them.
        let reads_origin = if eligible.has_holders { ReadsOrigin::OrNot } else { ReadsOrigin::Yes };
        let racks = eligible.pool.into_iter().flat_map(|(rank, _)| self.roster.in_racks(rank, reads_origin));
        let in_racks = racks.take(RACKS_MAX).filter_map(|kind| kind.nodes().find(is_new));
        let in_rack = self.entrants_near();
        let begun = counts.iter().map(|(node, count)| (*node, *count + 1));
        let begun = begun.filter(|(node, _)| self.is_eligible(*node, &eligible));
        begun
            .chain(fastest.into_iter().chain(unknown).chain(in_racks).map(|node| (node, 1)))
            .filter(|(node, _)| self.weight(*node) >= weight)
            .min_by(|a, b| {
                let near = || in_rack(a.0).cmp(&in_rack(b.0));
                self.by_load(*a, *b).then_with(near).then(a.0.cmp(&b.0))
            })
    }

    /// The same of these alone.
    fn cheapest_among(&self, nodes: &BTreeSet<Node>, counts: &BTreeMap<Node, u64>) -> Option<(Node, u64)> {
        let eligible = self.eligible();
        let weight = eligible.pool.map_or(0, |(_, kind)| kind.fastest());
        let able = nodes.iter().filter(|node| self.is_eligible(**node, &eligible));
        let able = able.filter(|node| self.weight(**node) >= weight);
        let loads = able.map(|node| (*node, counts.get(node).copied().unwrap_or(0) + 1));
        loads.min_by(|a, b| self.by_load(*a, *b).then(a.0.cmp(&b.0)))
    }

    /// How many stripes come in through a member's rack. All of them together leave it by one uplink.
    fn entrants_near(&self) -> impl Fn(Node) -> usize + '_ {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for member in self.entrants.iter().flatten().filter_map(|node| self.roster.get(*node)) {
            *counts.entry(member.rack).or_default() += 1;
        }
        move |node| self.roster.get(node).and_then(|member| counts.get(&member.rack)).copied().unwrap_or(0)
    }

    /// Who holds most of a stripe, if anybody holds anything of it.
    fn furthest(&self, stripe: usize) -> Option<Node> {
        let eligible = self.eligible();
        let nodes = eligible.pool.into_iter().flat_map(|(_, kind)| kind.nodes());
        let held = nodes
            .filter(|node| self.is_eligible(*node, &eligible))
            .filter_map(|node| self.roster.get(node).map(|at| (at.held[stripe], at.peer, node)));
        held.max().filter(|(held, _, _)| *held > 0).map(|(_, _, node)| node)
    }

    fn is_movable(&self, stripe: usize, entrant: Node) -> bool {
        let is_begun = self.roster.get(entrant).is_some_and(|at| at.begun(stripe) > self.hardly_begun());
        let is_live = |before: &&Before| self.is_member(before.peer);
        !is_begun && self.moved_from[stripe].iter().filter(is_live).count() < BEFORE_MAX
    }

    fn is_member(&self, peer: PeerId) -> bool {
        self.roster.node(peer).is_some()
    }

    /// Compares `stripes / weight` of two members without dividing.
    fn by_load(&self, a: (Node, u64), b: (Node, u64)) -> Ordering {
        let weight = |node| u128::from(self.weight(node));
        (u128::from(a.1) * weight(b.0)).cmp(&(u128::from(b.1) * weight(a.0)))
    }
}
