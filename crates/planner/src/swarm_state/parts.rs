//! What one member is told of a plan. Does not own what the plan is (`swarm_state`).

use std::iter;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::PIECE_BYTES;

use super::SwarmState;
use super::roster::{BACKUPS, Backups, MemberState, NOBODY, Part};
use crate::bound::{Bound, Rates, discrete_optimum};
use crate::forest::Node;
use crate::plan::{Before, Member, PeerPlan, StripePart, StripeSource};
use crate::quarantine::Standing;

/// Members named in a plan, if there are so many: for the case that parents and backups fail.
const NAMED_MIN: usize = 64;

impl SwarmState {
    /// A member's part of the plan, if it is another than it was told last.
    pub(super) fn part_of(
        &mut self,
        node: Node,
        (finish, bound): (Option<Duration>, Option<Duration>),
    ) -> Option<PeerPlan> {
        let mut named = Vec::with_capacity(2 * NAMED_MIN);
        let (stripes, backups) = self.stripes_of(node, &mut named)?;
        let print = fingerprint(&stripes);
        self.roster.set_backups(node, backups);
        let member = self.roster.get_kept(node)?;
        if member.told.replace(print) == Some(print) {
            return None;
        }
        let members = self.named(node, named);
        let quarantined = self.roster.quarantined().filter(|other| *other != node);
        let quarantined = quarantined.filter_map(|other| Some(self.roster.get(other)?.peer)).collect();
        let (epoch, stripe_pieces, priority) = (self.epoch, self.stripe_pieces, self.priority);
        Some(PeerPlan { epoch, stripe_pieces, stripes, members, quarantined, finish, bound, priority })
    }

    /// Where each member gets each stripe now, with what it has.
    pub(crate) fn sources(&self) -> impl Iterator<Item = (&MemberState, Vec<StripeSource>)> {
        self.roster.nodes().filter_map(|node| {
            let member = self.roster.get(node)?;
            let source = |stripe| match member.class.map(|class| class.part) {
                Some(Part::Wanting) => self.source_of(node, member, stripe).0,
                Some(Part::Unaware) => self.unaware(node, stripe, &mut Vec::new()).source,
                _ => StripeSource::None,
            };
            Some((member, (0..self.entrants.len()).map(source).collect()))
        })
    }

    fn stripes_of(&self, node: Node, named: &mut Vec<Node>) -> Option<(Vec<StripePart>, Backups)> {
        let member = self.roster.get(node)?;
        let part = member.class?.part;
        let mut backups = self.roster.backups(node);
        let stripes = (0..self.entrants.len())
            .map(|stripe| match part {
                Part::Wanting => {
                    let (part, new) = self.wanted((node, member), stripe, backups[stripe], named);
                    backups[stripe] = new;
                    part
                }
                Part::Unaware => self.unaware(node, stripe, named),
                Part::Holder | Part::Seed | Part::Apart => {
                    StripePart { source: StripeSource::None, backups: Vec::new(), before: Vec::new() }
                }
            })
            .collect();
        Some((stripes, backups))
    }

    fn wanted(
        &self,
        (node, member): (Node, &MemberState),
        stripe: usize,
        kept: [Node; BACKUPS],
        named: &mut Vec<Node>,
    ) -> (StripePart, [Node; BACKUPS]) {
        let (source, parent) = self.source_of(node, member, stripe);
        named.extend(parent);
        // A seed is an origin too: whoever reads it does so for everybody.
        let is_entrant = match parent {
            None => source == StripeSource::Origin,
            Some(parent) => self.is_seed(parent),
        };
        if is_entrant {
            let before: Vec<Before> = self.before(node, stripe).collect();
            let backups = self.holding(node, stripe, &before);
            named.extend(backups.iter().filter_map(|backup| self.roster.node(*backup)));
            return (StripePart { source, backups, before }, [NOBODY; BACKUPS]);
        }
        let new = self.backups_of(node, stripe, parent, kept);
        let mut backups = Vec::with_capacity(BACKUPS);
        for (backup, at) in new.iter().filter_map(|backup| Some((*backup, self.roster.brief(*backup)?))) {
            named.push(backup);
            backups.push(at.peer);
        }
        (StripePart { source, backups, before: Vec::new() }, new)
    }

    fn source_of(&self, node: Node, member: &MemberState, stripe: usize) -> (StripeSource, Option<Node>) {
        // Nobody may read from a quarantined member, which still reads by itself what nobody else gives it.
        let by_itself = || match self.holder_for(node, stripe) {
            Some(holder) => self.reads(holder),
            None if member.origin_ok => (StripeSource::Origin, None),
            None => self.seed_for(node, member).map_or((StripeSource::None, None), |seed| self.reads(seed)),
        };
        match self.entrants[stripe] {
            Some(entrant) if entrant != node => {
                let may_serve = |other: &Node| self.may_serve(*other, member);
                let others = || self.trees.serving(stripe, node);
                let parent = self.trees.parent(stripe, node).filter(may_serve);
                parent
                    .or_else(|| others().filter(|other| *other != node).find(may_serve))
                    .map_or_else(by_itself, |at| self.reads(at))
            }
            Some(_) => by_itself(),
            None if member.facts.standing == Standing::Quarantined => by_itself(),
            None => (StripeSource::None, None),
        }
    }

    fn reads(&self, parent: Node) -> (StripeSource, Option<Node>) {
        match self.roster.brief(parent) {
            Some(at) => (StripeSource::Parent(at.peer), Some(parent)),
            None => (StripeSource::None, None),
        }
    }

    fn unaware(&self, node: Node, stripe: usize, named: &mut Vec<Node>) -> StripePart {
        let member = self.roster.get(node);
        if let Some(member) = member.filter(|member| member.round > self.round) {
            // It is in a repair that nobody can read the origin for yet, or of its own, as nobody may read from it. What
            // others have counts for nothing there.
            let source = if member.origin_ok { StripeSource::Origin } else { StripeSource::None };
            return StripePart { source, backups: Vec::new(), before: Vec::new() };
        }
        let may_serve = |other: &Node| member.is_some_and(|member| self.may_serve(*other, member));
        let source = self.holder_for(node, stripe).or(self.entrants[stripe].filter(may_serve));
        named.extend(source);
        // Whoever may read from none of those who have everything would wait for good.
        let is_alone = source.is_none() && !self.holders.is_empty();
        let by_itself = match member {
            Some(member) if is_alone && member.origin_ok => StripeSource::Origin,
            _ => StripeSource::None,
        };
        let source = source.map_or(by_itself, |source| self.reads(source).0);
        StripePart { source, backups: Vec::new(), before: Vec::new() }
    }

    pub(super) fn may_serve(&self, source: Node, reader: &MemberState) -> bool {
        self.roster.may_serve(source, reader)
    }

    /// The holder that a member reads a stripe from, if it may read from any.
    fn holder_for(&self, node: Node, stripe: usize) -> Option<Node> {
        let member = self.roster.get(node)?;
        let at = stripe % self.holders.len().max(1);
        let mut holders = self.holders[at..].iter().chain(&self.holders[..at]).copied();
        holders.find(|holder| *holder != node && self.may_serve(*holder, member))
    }

    /// A seed that this member may read, the best first: an origin for whoever has no other.
    fn seed_for(&self, node: Node, member: &MemberState) -> Option<Node> {
        self.roster.seeds().find(|seed| *seed != node && self.may_serve(*seed, member))
    }

    /// Former entrants of a stripe that this member may ask what is on its way.
    fn before(&self, node: Node, stripe: usize) -> impl Iterator<Item = Before> + '_ {
        let counts = move |before: &&Before| {
            let (other, member) = (self.roster.node(before.peer), self.roster.get(node));
            other.zip(member).is_some_and(|(other, member)| other != node && self.may_serve(other, member))
        };
        self.moved_from[stripe].iter().filter(counts).copied()
    }

    /// For an entrant: who already holds pieces of the stripe, most first. Seeds are origins too, so they do not count.
    fn holding(&self, node: Node, stripe: usize, before: &[Before]) -> Vec<crate::PeerId> {
        let Some(member) = self.roster.get(node) else { return Vec::new() };
        let mut holding: Vec<(Standing, u32, crate::PeerId)> = self
            .roster
            .nodes()
            .filter_map(|other| Some((other, self.roster.get(other)?)))
            .filter(|(other, at)| *other != node && !at.is_seed && at.held[stripe] > 0)
            .filter(|(other, at)| self.may_serve(*other, member) && !at.facts.is_doubted)
            .map(|(_, at)| (at.facts.standing, u32::MAX - at.held[stripe], at.peer))
            .collect();
        let before: Vec<crate::PeerId> = before.iter().map(|before| before.peer).collect();
        let count = BACKUPS.max(before.len());
        holding.retain(|(_, _, other)| !before.contains(other));
        if holding.len() > count {
            holding.select_nth_unstable(count);
            holding.truncate(count);
        }
        holding.sort_unstable();
        let holding = holding.into_iter().map(|(_, _, other)| other);
        before.iter().copied().chain(holding).take(count).collect()
    }

    /// Others who hold a stripe or soon will: those named before, if they still can; else somebody who serves it, not
    /// the same ones for all.
    fn backups_of(
        &self,
        node: Node,
        stripe: usize,
        parent: Option<Node>,
        kept: [Node; BACKUPS],
    ) -> [Node; BACKUPS] {
        let mut backups = [NOBODY; BACKUPS];
        let Some(member) = self.roster.get(node) else { return backups };
        let (mut found, weight, salt) = (0, self.weight(node), spread(node, stripe));
        // Where a rack lets in what others have, one of each: the near one does while both are well.
        let is_let_in = self.trees.is_let_in(stripe, node);
        if kept == backups
            && !is_let_in
            && let Some(first) = self.first_backups((node, member), stripe, parent)
        {
            return first;
        }
        // Whoever lets a stripe in is above all of its rack: others of its parent's rack have it, too.
        let around = parent.filter(|parent| self.trees.are_apart(node, *parent)).unwrap_or(node);
        let is_above = |other: &Node| around == node || self.trees.are_apart(node, *other);
        for (standing, is_mixed) in
            [(Standing::Good, is_let_in), (Standing::Good, false), (Standing::Suspect, false)]
        {
            // Equals first: whoever hears of everything sooner than its card takes it asks too much of faster ones.
            let serving = || self.trees.serving_before(stripe, node, salt);
            let equals = serving().filter(|other| self.weight(*other) == weight);
            let kept_if = |is_equal: bool| {
                kept.into_iter()
                    .filter(|other| *other != NOBODY && is_above(other))
                    .filter(move |other| (self.weight(*other) == weight) == is_equal)
            };
            let holders = self.holders.iter().copied().filter(|holder| !self.is_seed(*holder));
            let wanting = || self.trees.wanting(around, salt);
            let others = || self.roster.seeds().chain(wanting());
            let equals_wanting = wanting().filter(|other| self.weight(*other) == weight);
            let alike = kept_if(true).chain(equals).chain(holders).chain(equals_wanting);
            // Mostly the first will do: the rest is looked for only when it is needed.
            let rest = iter::once_with(|| kept_if(false).chain(serving()).chain(others())).flatten();
            let candidates = alike.chain(rest);
            for other in candidates {
                if found == BACKUPS {
                    return backups;
                }
                let is_so = self.roster.brief(other).is_some_and(|at| at.standing == standing);
                let is_new = other != node && Some(other) != parent && !backups.contains(&other);
                let is_far = |other: Node| self.trees.are_apart(node, other);
                let is_other = !is_mixed || backups[..found].iter().all(|at| is_far(*at) != is_far(other));
                if is_so && is_new && is_other && self.may_serve(other, member) {
                    backups[found] = other;
                    found += 1;
                }
            }
        }
        backups
    }

    /// The same for whoever had none and finds enough of its equals among those who serve: most do, in a first plan, and
    /// nobody else is looked for.
    fn first_backups(
        &self,
        (node, member): (Node, &MemberState),
        stripe: usize,
        parent: Option<Node>,
    ) -> Option<[Node; BACKUPS]> {
        let (mut backups, mut found, weight) = ([NOBODY; BACKUPS], 0, self.weight(node));
        let mut serving = self.trees.serving_before(stripe, node, spread(node, stripe));
        let all_found = serving.try_for_each(|other| {
            let is_good = self.roster.brief(other).is_some_and(|at| at.standing == Standing::Good);
            let is_new = other != node && Some(other) != parent && !backups.contains(&other);
            if is_good && is_new && self.weight(other) == weight && self.may_serve(other, member) {
                backups[found] = other;
                found += 1;
            }
            if found == BACKUPS { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        all_found.is_break().then_some(backups)
    }

    fn is_seed(&self, node: Node) -> bool {
        self.roster.brief(node).is_some_and(|member| member.is_seed)
    }

    fn named(&self, node: Node, mut named: Vec<Node>) -> Vec<Member> {
        let Some(member) = self.roster.get(node) else { return Vec::new() };
        // Whoever reads the origin vouches for what it read, and must be known by name.
        let entrants = self.entrants.iter().flatten().copied();
        named.extend(entrants.filter(|other| *other != node && self.may_serve(*other, member)));
        named.sort_unstable();
        named.dedup();
        if named.len() < NAMED_MIN {
            let mut more = self.roster.from(member.peer).take(2 * NAMED_MIN);
            while named.len() < NAMED_MIN
                && let Some(other) = more.next()
            {
                if other != node && self.may_serve(other, member) && !named.contains(&other) {
                    named.push(other);
                }
            }
        }
        let mut members = Vec::with_capacity(named.len());
        members.extend(self.roster.contacts(&named).map(|(at, contact)| Member {
            id: at.peer,
            contact: Arc::clone(contact),
            is_seed: at.is_seed,
            is_far: at.rack as usize != member.rack,
        }));
        members
    }

    /// The bound, and the same with the pipeline's depth added, when every member's rate is known. The origin's rate
    /// is never known here, so it does not bind.
    pub(crate) fn predict(&self) -> (Option<Duration>, Option<Duration>) {
        let wanting = self.roster.wanting();
        if wanting.count == 0 || wanting.known < wanting.count {
            return (None, None);
        }
        let slowest = as_f64(wanting.slowest.into());
        let all = Rates { up: as_f64(wanting.sum), down: slowest };
        let bound = Bound::of_all(self.bytes, None, wanting.count, all).time();
        let receivers = u32::try_from(wanting.count).unwrap_or(u32::MAX);
        let depth = discrete_optimum(1, receivers, PIECE_BYTES, slowest);
        (Some(bound.saturating_add(depth)), Some(bound))
    }
}

/// Another place to begin for each member and stripe.
fn spread(node: Node, stripe: usize) -> u32 {
    let word = (u64::from(node) << 8 | stripe as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 32)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    u32::try_from(word >> 33).unwrap_or(0)
}

/// Two plans with the same number are the same: of so many bits, none are equal by chance.
fn fingerprint(stripes: &[StripePart]) -> u64 {
    let mut print = 0xcbf2_9ce4_8422_2325_u64;
    let mut fold = |word: u64| {
        print = (print ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        print ^= print >> 29;
    };
    let words = |peer: &crate::PeerId| {
        let (high, low) = peer.bytes().split_at(8);
        [high, low].map(|half| half.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)))
    };
    for part in stripes {
        match &part.source {
            StripeSource::Origin => fold(1),
            StripeSource::None => fold(2),
            StripeSource::Parent(parent) => words(parent).into_iter().for_each(&mut fold),
        }
        fold(part.backups.len() as u64);
        part.backups.iter().flat_map(words).for_each(&mut fold);
        fold(part.before.len() as u64);
        for before in &part.before {
            words(&before.peer).into_iter().chain([before.epoch]).for_each(&mut fold);
        }
    }
    print
}

#[expect(clippy::cast_precision_loss, reason = "an estimate of a rate; 53 bits are more than any card has")]
fn as_f64(rate: u128) -> f64 {
    rate as f64
}
