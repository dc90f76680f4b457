//! The stripe trees of one group of members, kept while members come and go.
//!
//! Owns: who is whose parent in each stripe, and that nobody sends more than its share. Does not own: who is a root, what
//! a share is worth (`swarm_state`), or the steps by
//! which a tree changes (`forest::links`), comes back into shape (`forest::shape`, `forest::gather`) or is grown anew (`forest::plant`).
//!
//! Loads are in bytes per second of the artifact: whoever takes a stripe costs its parent its own rate, and can be parent
//! of those only that take no more: nobody waits for a slower card. The fastest come first, nearest to the roots, and a
//! newcomer takes the place of slower leaves where there is no other. What cards of one rate send covers what they take
//! but for one copy, which is what comes from above; so every rate finds its parents among the faster and its own.
//!
//! A member with something to send is *home* in one stripe, where it serves all its children, and a leaf in the others:
//! every upload is used once, and a member that dies costs the others one stripe. Shares and needs never divide evenly,
//! so that a few members, the *loose* ones, serve single children of several stripes; when a stripe has enough of those
//! for one member, an idle member takes them over and is at home there.
//!
//! Each step moves a few children only, so that a plan changes for the few that it must change for.

mod gather;
mod inner;
mod links;
mod plant;
mod shape;
mod spread;

use std::collections::{BTreeMap, BTreeSet};

use inner::{Inner, Inners};

/// Stripes of an artifact, at most. They are constant, so that stripes keep their pieces when members come and go: the
/// origin would otherwise be read again at each join. 16 keeps trees shallow (16 children under each member) and the
/// last pieces few.
pub(crate) const STRIPES: usize = 16;

/// The number of a member in its forest.
pub(crate) type Node = u32;

/// How deep a tree may become for each kind of card in it, beyond half the binary logarithm of the members.
const DEPTH_EXTRA: u32 = 4;

/// Kinds of cards that count for it.
const KINDS_MAX: u32 = 4;

/// Children that come nearer to their root after each step, at most, where there are many.
const FAVOURS_MAX: u32 = 64;

/// Where there are fewer members, so many more children may move: all of them sooner than none.
const FEW: u32 = 65;

/// Loose members that cease to be it after each step, at most: every one of them moves some children.
const TIDY_MAX: usize = 4;

/// Branches that come up in each stripe after each step, at most: each is told to two.
const LIFTS_MAX: usize = 16;

const NOBODY: Node = Node::MAX;

/// Where a member with something to send serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Nowhere.
    Idle,
    /// In this stripe.
    Home(usize),
    /// In several, or as the root of some.
    Loose,
}

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "facts of a member, none of which follows from another")]
struct Seat {
    is_here: bool,
    /// Whether it wants the stripes. Others serve what they have.
    is_child: bool,
    /// Its card: what it costs as a child, and what a child of it costs at most.
    weight: u64,
    /// What all its children may cost, over all stripes.
    budget: u64,
    /// What they do cost.
    used: u64,
    role: Role,
    /// Whether it takes everything from faster cards, and passes it on to its equals, a child in each stripe.
    is_herald: bool,
    parents: [Node; STRIPES],
    /// Bit `s`: it serves in stripe `s`, or is its root.
    serves: u16,
    is_touched: bool,
}

impl Seat {
    const EMPTY: Self = Self {
        is_here: false,
        is_child: false,
        weight: 0,
        budget: 0,
        used: 0,
        role: Role::Idle,
        is_herald: false,
        parents: [NOBODY; STRIPES],
        serves: 0,
        is_touched: false,
    };

    fn spare(&self) -> u64 {
        self.budget.saturating_sub(self.used)
    }

    fn serves(&self, stripe: usize) -> bool {
        self.serves >> stripe & 1 == 1
    }
}

#[derive(Clone, Debug, Default)]
struct Stripe {
    root: Option<Node>,
    inner: Inners,
    /// (depth, member): those who have a child without children.
    open: BTreeSet<(u32, Node)>,
    /// (depth, member): those who may have one more child in this stripe.
    spare: BTreeSet<(u32, Node)>,
    /// What the children of loose members other than the root cost.
    loose_load: u64,
    /// How much deeper it was than it may be when it was last grown anew: it does not get any lower.
    beyond: u32,
}

/// The trees of one group.
#[derive(Clone, Debug)]
pub(crate) struct Forest {
    stripes: Vec<Stripe>,
    seats: Vec<Seat>,
    /// (budget, member): those who could serve and do not.
    idle: BTreeSet<(u64, Node)>,
    loose: BTreeSet<Node>,
    touched: Vec<Node>,
    /// How many want the stripes.
    children: u32,
    /// What they take together.
    demand: u64,
    /// All shares together.
    budgets: u64,
    /// Those who want the stripes, by what they take.
    weights: BTreeMap<u64, u32>,
    /// Children of a slower card, but for those of roots.
    inverted: u32,
    /// How bad it was at its best since all was grown anew.
    strain_ever: u64,
    /// Somebody came since the last step.
    has_new: bool,
}

impl Forest {
    pub(crate) fn new(stripes: usize) -> Self {
        Self {
            stripes: vec![Stripe::default(); stripes.clamp(1, STRIPES)],
            seats: Vec::new(),
            idle: BTreeSet::new(),
            loose: BTreeSet::new(),
            touched: Vec::new(),
            children: 0,
            demand: 0,
            budgets: 0,
            weights: BTreeMap::new(),
            inverted: 0,
            strain_ever: 0,
            has_new: false,
        }
    }

    /// Takes in a member that nobody serves yet.
    pub(crate) fn insert(&mut self, node: Node, is_child: bool, (weight, budget): (u64, u64)) {
        let at = node as usize;
        if self.seats.len() <= at {
            self.seats.resize(at + 1, Seat::EMPTY);
        }
        let Seat { is_touched, serves, .. } = self.seats[at];
        self.seats[at] = Seat { is_here: true, is_child, weight, budget, is_touched, serves, ..Seat::EMPTY };
        if is_child {
            self.count_child(weight, true);
        }
        self.budgets += budget;
        if budget > 0 {
            self.idle.insert((budget, node));
        }
        self.has_new = true;
        self.touch(node);
    }

    fn count_child(&mut self, weight: u64, is_more: bool) {
        let count = self.weights.entry(weight).or_default();
        if is_more {
            (*count, self.children, self.demand) = (*count + 1, self.children + 1, self.demand + weight);
        } else {
            (*count, self.children, self.demand) = (*count - 1, self.children - 1, self.demand - weight);
            if *count == 0 {
                self.weights.remove(&weight);
            }
        }
    }

    /// Gives a member a parent in every stripe where it wants one.
    pub(crate) fn hang_all(&mut self, node: Node) {
        self.employ(node);
        for stripe in 0..self.stripes.len() {
            self.hang(stripe, node);
        }
    }

    /// Says what a member's card does. If that is something else, its neighbours may change.
    pub(crate) fn set_weight(&mut self, node: Node, weight: u64) {
        let seat = &self.seats[node as usize];
        let (before, is_child) = (seat.weight, seat.is_child);
        if before == weight {
            return;
        }
        let orphans: Vec<Vec<Node>> = (0..self.stripes.len())
            .map(|stripe| {
                self.unlink(stripe, node);
                self.orphan(stripe, node)
            })
            .collect();
        self.seats[node as usize].weight = weight;
        self.seats[node as usize].is_herald = false;
        if is_child {
            self.count_child(before, false);
            self.count_child(weight, true);
        }
        for (stripe, mut orphans) in orphans.into_iter().enumerate() {
            self.demote_empty(stripe, node);
            orphans.push(node);
            self.hang_orphans(stripe, orphans);
        }
    }

    /// Takes a member out. It is the root of nothing.
    pub(crate) fn remove(&mut self, node: Node) {
        self.set_child(node, false);
        self.set_budget(node, 0);
        self.seats[node as usize].is_here = false;
    }

    /// Says how many children a member may have. If that is fewer than it has, the others go elsewhere.
    pub(crate) fn set_budget(&mut self, node: Node, budget: u64) {
        let seat = &mut self.seats[node as usize];
        let before = std::mem::replace(&mut seat.budget, budget);
        self.budgets = self.budgets + budget - before;
        if before == budget {
            return;
        }
        if seat.role == Role::Idle {
            self.idle.remove(&(before, node));
            if budget > 0 {
                self.idle.insert((budget, node));
            }
            return;
        }
        self.refresh(node);
        for stripe in 0..self.stripes.len() {
            let is_root = self.stripes[stripe].root == Some(node);
            if budget == 0 && !is_root && self.stripes[stripe].inner.contains(node) {
                self.vacate(stripe, node);
            }
        }
        self.shed_all(node);
    }

    /// Says whether a member wants the stripes.
    pub(crate) fn set_child(&mut self, node: Node, is_child: bool) {
        let seat = &mut self.seats[node as usize];
        if std::mem::replace(&mut seat.is_child, is_child) == is_child {
            return;
        }
        let weight = seat.weight;
        self.count_child(weight, is_child);
        self.touch(node);
        for stripe in 0..self.stripes.len() {
            if is_child {
                self.hang(stripe, node);
            } else {
                self.unlink(stripe, node);
                self.set_depth(stripe, node, 0);
            }
        }
    }

    /// Makes a member the root of a stripe: it takes the place of the one before. A stripe that had none has nobody
    /// else in it, until they are hung.
    pub(crate) fn set_root(&mut self, stripe: usize, root: Option<Node>) {
        let before = self.stripes[stripe].root;
        if before == root {
            return;
        }
        if let Some(root) = root {
            self.free_for_root(root);
        }
        match (before, root) {
            (Some(before), Some(root)) => self.succeed(stripe, before, root),
            (None, Some(root)) => self.crown(stripe, root),
            (_, None) => self.clear(stripe),
        }
        [before, root].into_iter().flatten().for_each(|node| self.settle_role(node));
        // Who is the root of another number of stripes has another share for each.
        [before, root].into_iter().flatten().for_each(|node| self.shed_all(node));
    }

    /// Undoes what many small steps leave behind: more loose members than it takes, and trees with long branches.
    pub(crate) fn tidy(&mut self) {
        let _ = (0..TIDY_MAX).take_while(|_| self.tidy_loose()).count();
        self.favour_roots();
        self.gather();
        let over = |node: &Node| self.seats[*node as usize].used > self.seats[*node as usize].budget;
        let over: Vec<Node> = self.loose.iter().copied().filter(over).collect();
        for node in over {
            self.shed_all(node);
        }
        let has_new = std::mem::take(&mut self.has_new) && self.children < FEW;
        self.relax(has_new);
        if has_new {
            self.spread();
        }
        for stripe in 0..self.stripes.len() {
            let kinds = u32::try_from(self.weights.len()).unwrap_or(u32::MAX).clamp(1, KINDS_MAX);
            let limit = DEPTH_EXTRA * kinds + self.children.max(1).ilog2() / 2;
            self.lift(stripe, limit, LIFTS_MAX);
            let beyond = self.stripes[stripe].beyond;
            if self.deepest(stripe) > limit + beyond {
                self.replant(stripe);
                self.lift(stripe, limit, usize::MAX);
                self.stripes[stripe].beyond = self.deepest(stripe).saturating_sub(limit);
            }
        }
    }

    /// How many steps it takes at most to come to a member in a stripe.
    pub(crate) fn deepest(&self, stripe: usize) -> u32 {
        self.stripes[stripe].open.last().map_or(0, |(depth, _)| depth + 1)
    }

    pub(crate) fn contains(&self, node: Node) -> bool {
        self.seats.get(node as usize).is_some_and(|seat| seat.is_here)
    }

    pub(crate) fn is_child(&self, node: Node) -> bool {
        self.seats.get(node as usize).is_some_and(|seat| seat.is_here && seat.is_child)
    }

    /// Whether all shares together are less than what the children take.
    pub(crate) fn is_short(&self) -> bool {
        let fastest = self.weights.last_key_value().map_or(0, |(weight, _)| *weight);
        self.budgets < self.stripes.len() as u64 * self.demand.saturating_sub(fastest)
    }

    /// How many stripes there are.
    pub(crate) fn stripe_count(&self) -> usize {
        self.stripes.len()
    }

    pub(crate) fn root(&self, stripe: usize) -> Option<Node> {
        self.stripes[stripe].root
    }

    pub(crate) fn parent(&self, stripe: usize, node: Node) -> Option<Node> {
        let parent = self.seats.get(node as usize)?.parents[stripe];
        (parent != NOBODY).then_some(parent)
    }

    /// Those who serve children in a stripe, and how deep they are, from a number on and then from the start.
    pub(crate) fn serving(&self, stripe: usize, from: Node) -> impl Iterator<Item = (Node, u32)> + '_ {
        let inner = &self.stripes[stripe].inner;
        let (before, after) = inner.listed().split_at(inner.rank(from));
        after.iter().chain(before).copied()
    }

    /// One more than the largest number that a member ever had.
    pub(crate) fn len(&self) -> Node {
        Node::try_from(self.seats.len()).unwrap_or(NOBODY)
    }

    /// How far a member that serves children is from where its tree begins.
    pub(crate) fn depth(&self, stripe: usize, node: Node) -> Option<u32> {
        self.seats.get(node as usize).filter(|seat| seat.serves(stripe))?;
        self.stripes[stripe].inner.get(node).map(Inner::depth)
    }

    /// Those who got another parent, or became or ceased to be a root, since this was asked last.
    pub(crate) fn take_touched(&mut self) -> Vec<Node> {
        let mut touched = std::mem::take(&mut self.touched);
        for node in &touched {
            self.seats[*node as usize].is_touched = false;
        }
        touched.sort_unstable();
        touched
    }

    fn touch(&mut self, node: Node) {
        let is_touched = &mut self.seats[node as usize].is_touched;
        if !std::mem::replace(is_touched, true) {
            self.touched.push(node);
        }
    }

    /// What the children of a root of several stripes may cost in each.
    fn root_slots(&self, root: Node) -> u64 {
        let stripes = self.stripes.iter().filter(|stripe| stripe.root == Some(root)).count();
        self.seats[root as usize].budget / stripes.max(1) as u64
    }

    /// What more a member can send in a stripe. A root takes one child whatever it costs, or a stripe would end with it.
    fn room(&self, stripe: usize, node: Node) -> u64 {
        let Seat { is_herald, weight, .. } = self.seats[node as usize];
        let spare = self.seats[node as usize].spare();
        if self.stripes[stripe].root != Some(node) {
            return if is_herald { spare.min(weight.saturating_sub(self.load(stripe, node))) } else { spare };
        }
        match self.load(stripe, node) {
            0 => u64::MAX,
            load => spare.min(self.root_slots(node).saturating_sub(load)),
        }
    }

    /// What the children of a member take of a stripe.
    pub(crate) fn load(&self, stripe: usize, node: Node) -> u64 {
        if !self.serves(stripe, node) {
            return 0;
        }
        self.stripes[stripe].inner.get(node).map_or(0, |inner| inner.load)
    }

    /// Whether a member serves children in a stripe, or is its root.
    fn serves(&self, stripe: usize, node: Node) -> bool {
        self.seats[node as usize].serves(stripe)
    }

    /// What its card does.
    pub(crate) fn weight(&self, node: Node) -> u64 {
        self.seats[node as usize].weight
    }

    /// Whether a member may be parent of another, if `freed` of what it sends ends.
    fn suits(&self, stripe: usize, parent: Node, freed: u64, child: Node) -> bool {
        let weight = self.weight(child);
        self.weight(parent) >= weight && self.room(stripe, parent).saturating_add(freed) >= weight
    }

    /// What the slowest takes who wants the stripes.
    fn least(&self) -> u64 {
        self.weights.first_key_value().map_or(1, |(weight, _)| *weight)
    }
}

#[cfg(test)]
mod tests;
