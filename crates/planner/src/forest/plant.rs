//! How trees are grown anew. Does not own when (`forest`), nor the single steps (`links`).

use std::cmp::Reverse;

use super::{Forest, NOBODY, Node, Role, Seat};

/// Of so many members one may have a bad place before everybody may get another.
const STRAINED_SHARE: u64 = 64;

impl Forest {
    /// Gives everybody a parent who wants a stripe and has none, the fastest first. It is for many newcomers at a time;
    /// [`Self::hang_all`] does for one.
    pub(crate) fn plant(&mut self) {
        let is_here = |node: &Node| self.seats[*node as usize].is_here;
        let mut nodes: Vec<Node> = (0..self.len()).filter(is_here).collect();
        nodes.sort_by_key(|node| (Reverse(self.weight(*node)), *node));
        let weight = |node: &Node| self.seats[*node as usize].weight;
        let bounds: Vec<usize> = nodes.chunk_by(|a, b| weight(a) == weight(b)).map(<[Node]>::len).collect();
        let mut kinds: Vec<&[Node]> = Vec::new();
        let mut rest = &nodes[..];
        for len in bounds {
            let (equals, slower) = rest.split_at(len);
            kinds.push(equals);
            rest = slower;
        }
        for (at, equals) in kinds.iter().enumerate() {
            let heralds = if at > 0 { self.heralds_among(equals) } else { 0 };
            equals[..heralds].iter().for_each(|node| self.hang_herald(*node));
            if at == 0 && kinds.len() > 1 {
                self.hang_under_roots(&kinds[1][..self.heralds_among(kinds[1])]);
            }
            self.settle_equals(&equals[heralds..]);
            for stripe in 0..self.stripes.len() {
                self.hang_equals(stripe, &equals[heralds..]);
            }
        }
    }

    /// How many of these take everything from faster cards, the first of them: as many as those have anything left for.
    /// Whoever takes one stripe only from a faster card takes it as fast as it comes, and waits for the others.
    fn heralds_among(&self, equals: &[Node]) -> usize {
        let (weight, stripes) = (self.weight(equals[0]), self.stripes.len());
        let faster =
            || self.seats.iter().enumerate().filter(|(_, seat)| seat.is_here && seat.weight > weight);
        let has = faster().map(|(_, seat)| seat.spare()).sum::<u64>();
        let lacks = |(node, seat): (usize, &Seat)| -> u64 {
            let is_without = |stripe: &usize| {
                let root = self.stripes[*stripe].root;
                seat.is_child
                    && seat.parents[*stripe] == NOBODY
                    && root.is_some_and(|root| root as usize != node)
            };
            seat.weight * (0..stripes).filter(is_without).count() as u64
        };
        let left = has.saturating_sub(faster().map(lacks).sum());
        let of_those = equals.iter().take_while(|node| {
            let seat = &self.seats[**node as usize];
            seat.is_child && seat.role == Role::Idle
        });
        let begun =
            |node: &&Node| self.seats[**node as usize].parents[..stripes].iter().any(|at| *at != NOBODY);
        let begun = equals.iter().take_while(begun).count();
        let most = usize::try_from(left / (weight * stripes as u64).max(1)).unwrap_or(usize::MAX);
        of_those.take(most.max(begun).max(1)).count()
    }

    /// Roots serve heralds themselves where that costs none of their equals more than it takes.
    fn hang_under_roots(&mut self, heralds: &[Node]) {
        let takes: u64 = heralds.iter().map(|node| self.weight(*node)).sum();
        for stripe in 0..self.stripes.len() {
            let Some(root) = self.stripes[stripe].root else { continue };
            let (weight, slots) = (self.weight(root), self.root_slots(root));
            if slots >= takes && (slots - takes).is_multiple_of(weight) {
                for node in heralds {
                    self.link(stripe, root, *node);
                }
            }
        }
    }

    /// Gives a member faster parents in all stripes where it has none, each in as many: cards are shared by those who
    /// ask, whatever each is asked for.
    fn hang_herald(&mut self, node: Node) {
        let weight = self.weight(node);
        let bare: Vec<usize> = (0..self.stripes.len())
            .filter(|at| self.seats[node as usize].parents[*at] == NOBODY && self.stripes[*at].root.is_some())
            .collect();
        let idle = self.idle.iter().map(|(_, at)| *at);
        let mut faster: Vec<(u64, Node)> = idle
            .chain(self.loose.iter().copied())
            .filter(|at| self.weight(*at) > weight)
            .map(|at| (self.to_lend(at), at))
            .collect();
        faster.sort_by_key(|(lends, at)| (Reverse(*lends), *at));
        let suits = |parents: &usize| {
            let each = (bare.len() / parents) as u64;
            bare.len().is_multiple_of(*parents)
                && faster.get(parents - 1).is_some_and(|(lends, _)| *lends >= each * weight)
        };
        let parents = (1..=bare.len()).find(suits);
        for (number, stripe) in bare.into_iter().enumerate() {
            let parent = match parents {
                Some(parents) => Some(faster[number % parents].1),
                None => self.least_asked(node, faster.iter().map(|(_, at)| *at)),
            };
            if let Some(parent) = parent {
                self.link(stripe, parent, node);
                self.hang(stripe, parent);
            }
            self.hang(stripe, node);
        }
        if self.seats[node as usize].budget > 0 {
            self.seats[node as usize].is_herald = true;
            self.set_role(node, Role::Loose);
            (0..self.stripes.len()).for_each(|stripe| self.promote(stripe, node));
        }
    }

    /// Of those who have something left, the one who serves a member in the fewest stripes.
    fn least_asked(&self, node: Node, others: impl Iterator<Item = Node>) -> Option<Node> {
        let weight = self.weight(node);
        let asked =
            |at: &Node| self.seats[node as usize].parents.iter().filter(|parent| *parent == at).count();
        let able = others.filter(|at| self.to_lend(*at) >= weight);
        able.min_by_key(|at| (asked(at), Reverse(self.to_lend(*at)), *at))
    }

    /// The one with the most to send comes first in a stripe, and serves the others there.
    fn hang_equals(&mut self, stripe: usize, equals: &[Node]) {
        let is_free = |node: &&Node| {
            let seat = &self.seats[**node as usize];
            seat.is_child && seat.role != Role::Home(stripe) && !matches!(seat.role, Role::Home(_))
        };
        let spare = |node: &&Node| (self.to_lend(**node), usize::MAX - **node as usize);
        let first = equals.iter().filter(is_free).max_by_key(spare).copied();
        if let Some(first) = first.filter(|_| self.weights.len() > 1) {
            self.hang(stripe, first);
            let seat = &self.seats[first as usize];
            if seat.spare() >= seat.weight && seat.parents[stripe] != NOBODY {
                if seat.role == Role::Idle {
                    self.set_role(first, Role::Loose);
                }
                self.promote(stripe, first);
            }
        }
        for node in equals {
            self.hang(stripe, *node);
        }
        if let Some(first) = first {
            self.demote_empty(stripe, first);
        }
    }

    /// Gives idle ones of equal cards a home where all that they send is needed by their equals.
    fn settle_equals(&mut self, equals: &[Node]) {
        let mut lacks: Vec<u64> = (0..self.stripes.len()).map(|stripe| self.lack(stripe, equals)).collect();
        for node in equals {
            let (role, budget) = (self.seats[*node as usize].role, self.seats[*node as usize].budget);
            if role != Role::Idle || budget == 0 {
                continue;
            }
            let neediest = (0..lacks.len()).max_by_key(|at| (lacks[*at], usize::MAX - at));
            let Some(stripe) = neediest.filter(|at| lacks[*at] >= budget) else { break };
            lacks[stripe] -= budget;
            self.settle(*node, stripe);
        }
    }

    /// What these take of a stripe beyond what those can send who serve it.
    fn lack(&self, stripe: usize, nodes: &[Node]) -> u64 {
        let Some(root) = self.stripes[stripe].root else { return 0 };
        let lacks = |node: &&Node| {
            let seat = &self.seats[**node as usize];
            seat.is_child && seat.parents[stripe] == NOBODY && **node != root
        };
        let takes: u64 = nodes.iter().filter(lacks).map(|node| self.weight(*node)).sum();
        let spare = self.stripes[stripe].spare.iter().map(|(_, node)| *node);
        let free = spare.map(|node| self.room(stripe, node).min(self.root_slots(node)));
        takes.saturating_sub(free.sum())
    }

    /// Grows everything anew where too many have got a slower card above them, or roots more children than they can
    /// serve: small steps alone do not always find the way back. Among few, also when somebody has come.
    pub(super) fn relax(&mut self, has_new: bool) {
        if self.weights.len() < 2 {
            return;
        }
        let strain = self.strain();
        if has_new || strain > self.strain_ever + u64::from(self.children) / STRAINED_SHARE {
            self.plant_anew();
            self.strain_ever = self.strain();
        } else {
            self.strain_ever = self.strain_ever.min(strain);
        }
    }

    /// How many children are in a bad place.
    fn strain(&self) -> u64 {
        let over = self.seats.iter().filter(|seat| seat.used > seat.budget);
        let over = over.map(|seat| (seat.used - seat.budget).div_ceil(seat.weight.max(1)));
        u64::from(self.inverted) + over.sum::<u64>()
    }

    fn plant_anew(&mut self) {
        for stripe in 0..self.stripes.len() {
            let serving: Vec<Node> = self.stripes[stripe].inner.nodes().collect();
            for node in &serving {
                self.orphan(stripe, *node);
            }
            for node in serving {
                self.leave_empty(stripe, node);
            }
        }
        for node in 0..self.len() {
            self.seats[node as usize].is_herald = false;
            self.settle_role(node);
        }
        self.plant();
    }

    /// Grows a tree anew from its root, with the same members at home in it.
    pub(super) fn replant(&mut self, stripe: usize) {
        let serving: Vec<Node> = self.stripes[stripe].inner.nodes().collect();
        for node in &serving {
            self.orphan(stripe, *node);
        }
        let (mut homes, others): (Vec<Node>, Vec<Node>) =
            serving.into_iter().partition(|node| self.seats[*node as usize].role == Role::Home(stripe));
        for node in &homes {
            self.leave_empty(stripe, *node);
        }
        for node in others {
            self.demote_empty(stripe, node);
        }
        homes.sort_by_key(|node| (Reverse(self.weight(*node)), *node));
        for node in homes {
            let parent = self.with_room(stripe, node).or(self.stripes[stripe].root);
            if let Some(parent) = parent.filter(|_| self.seats[node as usize].is_child) {
                self.link(stripe, parent, node);
            }
            self.promote(stripe, node);
        }
        let mut nodes: Vec<Node> = (0..self.len()).collect();
        nodes.sort_by_key(|node| Reverse(self.weight(*node)));
        for node in nodes {
            self.hang(stripe, node);
        }
    }
}
