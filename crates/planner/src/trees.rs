//! The stripe trees of a swarm whose members stand in racks, and those in zones: a stripe comes into each of them once.
//!
//! Owns: through whom a stripe comes into a rack, and from which rack. Does not own: the trees within a rack (`forest`), who
//! reads the origin (`swarm_state::entrants`).
//!
//! Racks are members of a forest, that of their zone, and zones of another, that of the fleet. A rack counts there as one
//! card, its fastest, since it takes everything once and gives it on as often as the others do on average: that never asks
//! more of its machines than a copy each. Whoever is the root of a stripe in its rack takes the rack's place in the forest
//! above: it reads from the root of another rack, and serves those of others, for which it serves fewer in its own.

mod group;

use std::collections::BTreeSet;

use crate::forest::{Node, STRIPES};
use crate::place::Place;
use crate::swarm_state::{Rated, Shares, Work};
use group::Group;

/// The number of the fleet among the groups.
const FLEET: usize = 0;

/// Groups around a rack, and itself.
const LEVELS: usize = 3;

/// Members that are looked at as sources, at each level.
const LOOKED_AT_MAX: usize = 64;

/// The trees.
#[derive(Debug)]
pub(crate) struct Trees {
    stripes: usize,
    /// The first is the fleet.
    groups: Vec<Group>,
    /// The rack of each peer, and its number there.
    seats: Vec<Option<(usize, Node)>>,
    /// The entrant of each stripe.
    roots: Vec<Option<Node>>,
    /// By level: those in which anything has changed since the last plan.
    changed: [BTreeSet<usize>; LEVELS],
    touched: Vec<Node>,
    /// Whether somebody else may let a stripe into a rack, or from elsewhere, than when that was noted.
    are_sources_stale: bool,
}

impl Trees {
    pub(crate) fn new(stripes: usize) -> Self {
        Self {
            stripes,
            groups: vec![Group::new(FLEET, None, stripes)],
            seats: Vec::new(),
            roots: vec![None; stripes],
            changed: Default::default(),
            touched: Vec::new(),
            are_sources_stale: false,
        }
    }

    /// Gives a peer a place before it takes part in anything; says which rack that is.
    pub(crate) fn enter(&mut self, node: Node, place: &Place) -> usize {
        let zone = self.group(FLEET, &place.zone);
        let rack = self.group(zone, &place.rack);
        let local = self.groups[rack].enter(node);
        if self.seats.len() <= node as usize {
            self.seats.resize(node as usize + 1, None);
        }
        self.seats[node as usize] = Some((rack, local));
        rack
    }

    fn group(&mut self, around: usize, name: &str) -> usize {
        if let Some(group) = self.groups[around].by_name.get(name) {
            return *group;
        }
        let group = self.groups[around].vacant.pop().unwrap_or_else(|| {
            let (group, level) = (self.groups.len(), self.groups[around].level + 1);
            let local = self.groups[around].enter(u32::try_from(group).expect("fewer groups than members"));
            self.groups.push(Group::new(level, Some((around, local)), self.stripes));
            group
        });
        name.clone_into(&mut self.groups[group].name);
        self.groups[around].by_name.insert(name.to_owned(), group);
        group
    }

    /// A peer that left, and is in no tree any more, gives its place up.
    pub(crate) fn release(&mut self, node: Node) {
        let Some((rack, local)) = self.seats[node as usize].take() else { return };
        self.groups[rack].members[local as usize] = None;
        self.groups[rack].free.push(local);
        let mut group = rack;
        while let Some((around, _)) = self.groups[group].above {
            let is_unused = if self.groups[group].is_rack() {
                self.groups[group].is_empty()
            } else {
                self.groups[group].by_name.is_empty()
            };
            if !is_unused {
                return;
            }
            let name = std::mem::take(&mut self.groups[group].name);
            self.groups[around].by_name.remove(&name);
            self.groups[around].vacant.push(group);
            group = around;
        }
    }

    fn seat(&self, node: Node) -> Option<(usize, Node)> {
        self.seats.get(node as usize).copied().flatten()
    }

    fn seat_mut(&mut self, node: Node) -> (&mut Group, Node) {
        let (rack, local) = self.seat(node).expect("who takes part in anything has a place");
        self.changed[LEVELS - 1].insert(rack);
        (&mut self.groups[rack], local)
    }

    /// Takes in a peer that nobody serves yet.
    pub(crate) fn insert(&mut self, node: Node, is_child: bool, (weight, share): (u64, u64)) {
        let (group, local) = self.seat_mut(node);
        group.forest.insert(local, is_child, (weight, share));
        group.given[local as usize] = share;
        group.new.push(local);
    }

    pub(crate) fn set_child(&mut self, node: Node, is_child: bool) {
        let (group, local) = self.seat_mut(node);
        group.forest.set_child(local, is_child);
    }

    pub(crate) fn set_weight(&mut self, node: Node, weight: u64) {
        let (group, local) = self.seat_mut(node);
        group.forest.set_weight(local, weight);
    }

    /// Says what a peer may send.
    pub(crate) fn give(&mut self, node: Node, share: u64) {
        let (group, local) = self.seat_mut(node);
        group.give(local, share);
    }

    /// A peer is to be in no tree any more, once others have its place.
    pub(crate) fn retire(&mut self, node: Node) {
        if self.contains(node) {
            let (group, local) = self.seat_mut(node);
            group.forest.set_child(local, false);
            group.given[local as usize] = 0;
            group.leaving.push(local);
        }
    }

    /// Nobody is a root any more.
    pub(crate) fn uproot(&mut self) {
        self.roots.fill(None);
        for number in 0..self.groups.len() {
            let group = &mut self.groups[number];
            (0..self.stripes).for_each(|stripe| group.forest.set_root(stripe, None));
            self.changed[group.level].insert(number);
        }
    }

    /// Says who is the entrant of each stripe, and finds through whom it comes into the other racks: through those who let
    /// it in before, unless `is_begun` denies that a stripe has got far with them, and others have less to do. Those who
    /// were to go are gone then.
    pub(crate) fn root(&mut self, entrants: &[Option<Node>], is_begun: impl Fn(Node, usize) -> bool) {
        for (stripe, entrant) in entrants.iter().enumerate() {
            let before = std::mem::replace(&mut self.roots[stripe], *entrant);
            if before.is_some() != entrant.is_some() {
                (0..self.groups.len()).for_each(|group| self.change(group));
            } else if before != *entrant {
                for node in [before, *entrant].into_iter().flatten() {
                    if let Some((rack, _)) = self.seat(node) {
                        self.change_all(rack);
                    }
                }
            }
        }
        for level in (0..LEVELS).rev() {
            for group in self.changed[level].clone() {
                self.root_group(group, &is_begun);
            }
        }
        for level in 0..LEVELS - 1 {
            for group in self.changed[level].clone() {
                self.grow_around(group);
            }
        }
    }

    fn change(&mut self, group: usize) {
        self.changed[self.groups[group].level].insert(group);
    }

    fn change_all(&mut self, mut group: usize) {
        self.change(group);
        while let Some((around, _)) = self.groups[group].above {
            group = around;
            self.change(group);
        }
    }

    fn root_group(&mut self, number: usize, is_begun: &impl Fn(Node, usize) -> bool) {
        let (mut roots, fastest) = (self.groups[number].roots(), self.groups[number].fastest().unwrap_or(0));
        for stripe in 0..self.stripes {
            let root = self.root_in((number, stripe), (fastest, &roots), is_begun);
            let group = &mut self.groups[number];
            let before = group.forest.root(stripe);
            if before == root {
                continue;
            }
            group.is_first |= before.is_none();
            if let Some(root) = root.filter(|root| !group.forest.contains(*root)) {
                // A rack in which nobody may serve, but which the stripe comes into first.
                group.forest.insert(root, false, (1, 0));
            }
            group.forest.set_root(stripe, root);
            roots = group.roots();
            self.are_sources_stale = true;
            for local in before.into_iter().chain(root) {
                let share = group.given[local as usize];
                if share > 0 {
                    group.give(local, share);
                }
            }
        }
        let group = &mut self.groups[number];
        for local in std::mem::take(&mut group.leaving) {
            if group.forest.contains(local) {
                group.forest.remove(local);
            }
            group.new.retain(|new| *new != local);
        }
        let (fastest, Some((around, local))) = (group.fastest(), group.above) else { return };
        let above = &mut self.groups[around];
        let can = fastest.is_some();
        let was = above.given[local as usize] > 0;
        match fastest {
            Some(weight) if !above.forest.contains(local) => {
                above.forest.insert(local, true, (weight, weight));
                above.new.push(local);
            }
            Some(weight) if !was || above.forest.weight(local) != weight => {
                above.forest.set_weight(local, weight);
                above.forest.set_child(local, true);
            }
            None if was => above.forest.set_child(local, false),
            _ => return,
        }
        above.given[local as usize] = u64::from(can);
        self.change(around);
    }

    fn root_in(
        &self,
        (number, stripe): (usize, usize),
        (fastest, roots): (u64, &[u32]),
        is_begun: &impl Fn(Node, usize) -> bool,
    ) -> Option<Node> {
        let entrant = self.roots[stripe]?;
        let group = &self.groups[number];
        if let Some(local) = self.within(number, entrant) {
            return Some(local);
        }
        let cheapest = group.cheapest((fastest, roots))?;
        let root = group.forest.root(stripe).filter(|root| group.given[*root as usize] > 0);
        let stays = root.filter(|root| {
            let is_slower = group.forest.weight(*root) < fastest;
            let is_better = is_slower || roots[*root as usize] > roots[cheapest as usize] + 1;
            !is_better || self.leaf(stripe, number, *root).is_some_and(|leaf| is_begun(leaf, stripe))
        });
        stays.or(Some(cheapest))
    }

    /// The number in a group of a peer that is in it, or of the group in it that the peer is in.
    fn within(&self, group: usize, node: Node) -> Option<Node> {
        let (mut at, mut local) = self.seat(node)?;
        while at != group {
            (at, local) = self.groups[at].above?;
        }
        Some(local)
    }

    /// Makes the trees among racks, or zones, fit them; says to each what it sends out.
    fn grow_around(&mut self, number: usize) {
        let group = &mut self.groups[number];
        let weights: Vec<(Node, u64)> =
            group.serving().map(|local| (local, group.forest.weight(local))).collect();
        let rated = Rated::of(weights.iter().map(|(_, weight)| *weight));
        let outside = group.outside.iter().sum();
        let work = Work { stripes: self.stripes, wanting: &rated, sending: &rated, mean: 1, outside };
        group.shares.adapt(&work);
        for (local, weight) in weights {
            let share = group.shares.budget(weight);
            group.give(local, share);
        }
        for local in 0..group.forest.len() {
            if group.forest.contains(local) && group.given[local as usize] == 0 {
                group.forest.set_budget(local, 0);
            }
        }
        group.hang();
        group.forest.tidy();
        self.are_sources_stale = true;
        for local in 0..self.groups[number].forest.len() {
            let group = &self.groups[number];
            let Some(member) = group.members[local as usize] else { continue };
            let mut outside = [0; STRIPES];
            for (stripe, outside) in outside[..self.stripes].iter_mut().enumerate() {
                let is_root = group.forest.root(stripe) == Some(local);
                *outside = group.forest.load(stripe, local) + if is_root { group.outside[stripe] } else { 0 };
            }
            let member = member as usize;
            if std::mem::replace(&mut self.groups[member].outside, outside) != outside {
                self.groups[member].is_moved = true;
                self.change(member);
            }
        }
    }

    /// The racks in which anything has changed since the last plan.
    pub(crate) fn changed(&self) -> Vec<usize> {
        self.changed[LEVELS - 1].iter().copied().collect()
    }

    /// The peers of a rack that are in its trees.
    pub(crate) fn peers_of(&self, rack: usize) -> Vec<Node> {
        let group = &self.groups[rack];
        let is_in = |(local, member): (Node, &Option<Node>)| member.filter(|_| group.forest.contains(local));
        (0..).zip(&group.members).filter_map(is_in).collect()
    }

    /// How much each peer of a rack is worth.
    pub(crate) fn shares(&self, rack: usize) -> &Shares {
        &self.groups[rack].shares
    }

    /// The same, with what the rack sends to others.
    pub(crate) fn shares_mut(&mut self, rack: usize) -> (&mut Shares, u64) {
        let group = &mut self.groups[rack];
        (&mut group.shares, group.outside.iter().sum())
    }

    /// Whether what a rack sends to others is not what it was when this was asked last.
    pub(crate) fn sends_otherwise(&mut self, rack: usize) -> bool {
        std::mem::take(&mut self.groups[rack].is_moved)
    }

    /// Whether all shares together are less than what the peers of a rack take.
    pub(crate) fn is_short(&self, rack: usize) -> bool {
        self.groups[rack].forest.is_short()
    }

    /// What a peer may send, as it was last said.
    pub(crate) fn given(&self, node: Node) -> u64 {
        self.seat(node).map_or(0, |(rack, local)| self.groups[rack].given[local as usize])
    }

    /// Gives everybody a parent who has none.
    pub(crate) fn hang(&mut self) {
        for rack in self.changed() {
            self.groups[rack].hang();
        }
    }

    /// Undoes what many small steps leave behind, at the end of all that a plan changes.
    pub(crate) fn tidy(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        for rack in &changed[LEVELS - 1] {
            self.groups[*rack].forest.tidy();
        }
        if std::mem::take(&mut self.are_sources_stale) && self.groups.len() > LEVELS {
            self.note_sources();
        }
    }

    /// Notes which of those who let a stripe into their rack have it from somebody else than before.
    fn note_sources(&mut self) {
        for number in 0..self.groups.len() {
            let stripes = if self.groups[number].is_rack() { self.stripes } else { 0 };
            for stripe in 0..stripes {
                let root = self.leaf_of(stripe, number);
                let source = root.and_then(|root| self.parent(stripe, root));
                if self.groups[number].sources[stripe] != source {
                    self.groups[number].sources[stripe] = source;
                    self.touched.extend(root);
                }
            }
        }
    }

    /// Those who got another parent, or became or ceased to be a root, since this was asked last.
    pub(crate) fn take_touched(&mut self) -> Vec<Node> {
        let mut touched = std::mem::take(&mut self.touched);
        for group in self.groups.iter_mut().filter(|group| group.is_rack()) {
            let locals = group.forest.take_touched();
            touched.extend(locals.into_iter().filter_map(|local| group.members[local as usize]));
        }
        touched
    }

    pub(crate) fn contains(&self, node: Node) -> bool {
        self.seat(node).is_some_and(|(rack, local)| self.groups[rack].forest.contains(local))
    }

    /// Whether two peers stand in different racks.
    pub(crate) fn are_apart(&self, a: Node, b: Node) -> bool {
        self.seat(a).map(|(rack, _)| rack) != self.seat(b).map(|(rack, _)| rack)
    }

    /// Whether a stripe comes from another rack, and to this peer through somebody of its own.
    pub(crate) fn is_let_in(&self, stripe: usize, node: Node) -> bool {
        let root = self.seat(node).and_then(|(rack, _)| self.leaf_of(stripe, rack));
        root.is_some() && root != Some(node) && root != self.roots[stripe]
    }

    pub(crate) fn parent(&self, stripe: usize, node: Node) -> Option<Node> {
        let (mut at, mut local) = self.seat(node)?;
        loop {
            let group = &self.groups[at];
            if let Some(parent) = group.forest.parent(stripe, local) {
                return self.leaf(stripe, at, parent);
            }
            if group.forest.root(stripe) != Some(local) {
                return None;
            }
            (at, local) = group.above?;
        }
    }

    /// The peer that a member of a group is, or through whom a stripe comes into it.
    fn leaf(&self, stripe: usize, group: usize, local: Node) -> Option<Node> {
        let member = self.groups[group].members[local as usize]?;
        if self.groups[group].is_rack() { Some(member) } else { self.leaf_of(stripe, member as usize) }
    }

    fn leaf_of(&self, stripe: usize, group: usize) -> Option<Node> {
        self.leaf(stripe, group, self.groups[group].forest.root(stripe)?)
    }

    /// The groups that a peer is in, its rack first, and its number or theirs there.
    fn around(&self, node: Node) -> impl Iterator<Item = (usize, Node)> + '_ {
        std::iter::successors(self.seat(node), |(group, _)| self.groups[*group].above)
    }

    /// The groups in which others serve a stripe for a peer, its rack first: not one of which it is the root.
    fn served_in(&self, stripe: usize, node: Node) -> impl Iterator<Item = (&Group, usize, Node)> + '_ {
        let groups = self.around(node).map(|(number, local)| (&self.groups[number], number, local));
        groups.filter(move |(group, _, local)| {
            let has_several = group.is_rack() || group.members.len() > 1;
            has_several && group.forest.root(stripe) != Some(*local)
        })
    }

    /// Those who serve a stripe, from another one for each peer: those of its rack first, then those who let it into others.
    pub(crate) fn serving(&self, stripe: usize, node: Node) -> impl Iterator<Item = Node> + '_ {
        self.served_in(stripe, node).flat_map(move |(group, number, local)| {
            group.forest.serving(stripe, local).filter_map(move |(other, _)| self.leaf(stripe, number, other))
        })
    }

    /// The same from another one for each `salt`, without those that are further from the origin than the peer, as far as
    /// that is looked for.
    pub(crate) fn serving_before(
        &self,
        stripe: usize,
        node: Node,
        salt: Node,
    ) -> impl Iterator<Item = Node> + '_ {
        self.served_in(stripe, node).flat_map(move |(group, number, local)| {
            let below = group.forest.depth(stripe, local).unwrap_or(u32::MAX);
            let serving = group.forest.serving(stripe, salt % group.forest.len().max(1)).take(LOOKED_AT_MAX);
            let before = serving.filter(move |(_, depth)| *depth <= below);
            before.filter_map(move |(other, _)| self.leaf(stripe, number, other))
        })
    }

    /// Those of a peer's rack who want pieces, from another one for each `salt`, as far as is looked.
    pub(crate) fn wanting(&self, node: Node, salt: Node) -> impl Iterator<Item = Node> + '_ {
        self.around(node).take(1).flat_map(move |(rack, _)| {
            let group = &self.groups[rack];
            let from = salt % group.forest.len().max(1);
            let all = (from..group.forest.len()).chain(0..from);
            let wanting = all.filter(|local| group.forest.is_child(*local)).take(LOOKED_AT_MAX);
            wanting.filter_map(|local| group.members[local as usize])
        })
    }
}

impl Group {
    fn hang(&mut self) {
        let new = std::mem::take(&mut self.new);
        if std::mem::take(&mut self.is_first) {
            self.forest.plant();
        } else {
            for local in new {
                self.forest.hang_all(local);
            }
        }
    }
}
