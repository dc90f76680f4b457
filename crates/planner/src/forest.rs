//! The stripe trees of one group of members, kept while members come and go.
//!
//! Owns: who is whose parent in each stripe, and that nobody sends more than its share. Does not own: who is a root, what
//! a share is worth (`swarm_state`), or the steps by which a tree changes (`forest::links`) and comes back into shape (`forest::shape`).
//!
//! A member with something to send is *home* in one stripe, where it serves all its children, and a leaf in the others:
//! every upload is used once, and a member that dies costs the others one stripe. Shares and needs never divide evenly,
//! so that a few members, the *loose* ones, serve single children of several stripes; when a stripe has enough of those
//! for one member, an idle member takes them over and is at home there.
//!
//! Each step moves a few children only, so that a plan changes for the few that it must change for.

mod links;
mod shape;

use std::collections::{BTreeMap, BTreeSet};

/// Stripes of an artifact, at most. They are constant, so that stripes keep their pieces when members come and go: the
/// origin would otherwise be read again at each join. 16 keeps trees shallow (16 children under each member) and the
/// last pieces few.
pub(crate) const STRIPES: usize = 16;

/// The number of a member in its forest.
pub(crate) type Node = u32;

/// How deep a tree may become, beyond half the binary logarithm of the members.
const DEPTH_EXTRA: u32 = 4;

/// Children that come nearer to their root after each step, at most, where there are many.
const FAVOURS_MAX: u32 = 64;

/// Where there are fewer members, so many more children may move: all of them sooner than none.
const FEW: u32 = 65;

/// Loose members that cease to be it after each step, at most: every one of them moves some children.
const TIDY_MAX: usize = 4;

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
struct Seat {
    is_here: bool,
    /// Whether it wants the stripes. Others serve what they have.
    is_child: bool,
    /// How many children it may have, over all stripes.
    budget: u32,
    /// How many it has.
    used: u32,
    role: Role,
    parents: [Node; STRIPES],
    is_touched: bool,
}

impl Seat {
    const EMPTY: Self = Self {
        is_here: false,
        is_child: false,
        budget: 0,
        used: 0,
        role: Role::Idle,
        parents: [NOBODY; STRIPES],
        is_touched: false,
    };

    fn spare(&self) -> u32 {
        self.budget.saturating_sub(self.used)
    }
}

/// A member that serves children in a stripe.
#[derive(Clone, Debug, Default)]
struct Inner {
    depth: u32,
    children: Vec<Node>,
    /// How many of those have no children themselves.
    leaves: u32,
    /// Children in other groups.
    outside: u32,
}

impl Inner {
    fn len(&self) -> u32 {
        u32::try_from(self.children.len()).unwrap_or(u32::MAX).saturating_add(self.outside)
    }
}

#[derive(Clone, Debug, Default)]
struct Stripe {
    root: Option<Node>,
    inner: BTreeMap<Node, Inner>,
    /// (depth, member): those who have a child without children.
    open: BTreeSet<(u32, Node)>,
    /// (depth, member): those who may have one more child in this stripe.
    spare: BTreeSet<(u32, Node)>,
    /// How many children are served by loose members other than the root.
    loose_children: u32,
    /// How deep it was when it was last grown anew: it does not get any lower.
    deepest_ever: u32,
}

/// The trees of one group.
#[derive(Clone, Debug)]
pub(crate) struct Forest {
    stripes: Vec<Stripe>,
    seats: Vec<Seat>,
    /// (budget, member): those who could serve and do not.
    idle: BTreeSet<(u32, Node)>,
    loose: BTreeSet<Node>,
    touched: Vec<Node>,
    /// How many want the stripes.
    children: u32,
    /// All shares together.
    budgets: u64,
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
            budgets: 0,
        }
    }

    /// Takes in a member that nobody serves yet.
    pub(crate) fn insert(&mut self, node: Node, is_child: bool, budget: u32) {
        let at = node as usize;
        if self.seats.len() <= at {
            self.seats.resize(at + 1, Seat::EMPTY);
        }
        let is_touched = self.seats[at].is_touched;
        self.seats[at] = Seat { is_here: true, is_child, budget, is_touched, ..Seat::EMPTY };
        self.children += u32::from(is_child);
        self.budgets += u64::from(budget);
        if budget > 0 {
            self.idle.insert((budget, node));
        }
        self.touch(node);
    }

    /// Gives everybody a parent who wants a stripe and has none: `strongest` are those who may serve, the one with the
    /// most to send first. It is for many newcomers at a time; [`Self::hang_all`] does for one.
    pub(crate) fn plant(&mut self, strongest: &[Node]) {
        let served = |stripe: &Stripe| stripe.inner.values().map(Inner::len).sum::<u32>();
        let mut lacks: Vec<u32> = (0..self.stripes.len())
            .map(|at| {
                let stripe = &self.stripes[at];
                let Some(root) = stripe.root else { return 0 };
                let has = served(stripe).max(self.root_slots(root));
                self.children.saturating_sub(1).saturating_sub(has)
            })
            .collect();
        for node in strongest {
            let seat = &self.seats[*node as usize];
            if !seat.is_here || seat.role != Role::Idle {
                continue;
            }
            let neediest = (0..lacks.len()).max_by_key(|at| (lacks[*at], usize::MAX - at));
            let Some(stripe) = neediest.filter(|at| lacks[*at] >= seat.budget) else { break };
            lacks[stripe] -= seat.budget;
            self.settle(*node, stripe);
        }
        for node in 0..self.seats.len() {
            if self.seats[node].is_here {
                self.hang_all(Node::try_from(node).unwrap_or(NOBODY));
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

    /// Takes a member out. It is the root of nothing.
    pub(crate) fn remove(&mut self, node: Node) {
        self.set_child(node, false);
        self.set_budget(node, 0);
        self.seats[node as usize].is_here = false;
    }

    /// Says how many children a member may have. If that is fewer than it has, the others go elsewhere.
    pub(crate) fn set_budget(&mut self, node: Node, budget: u32) {
        let seat = &mut self.seats[node as usize];
        let before = std::mem::replace(&mut seat.budget, budget);
        self.budgets = self.budgets + u64::from(budget) - u64::from(before);
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
            if budget == 0 && !is_root && self.stripes[stripe].inner.contains_key(&node) {
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
        self.children = if is_child { self.children + 1 } else { self.children.saturating_sub(1) };
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
        let over = |node: &Node| self.seats[*node as usize].used > self.seats[*node as usize].budget;
        let over: Vec<Node> = self.loose.iter().copied().filter(over).collect();
        for node in over {
            self.shed_all(node);
        }
        for stripe in 0..self.stripes.len() {
            let limit = DEPTH_EXTRA + self.children.max(1).ilog2() / 2;
            if self.deepest(stripe) > limit.max(self.stripes[stripe].deepest_ever) {
                self.replant(stripe);
                self.stripes[stripe].deepest_ever = self.deepest(stripe);
            }
        }
    }

    /// How many steps it takes at most to come to a member in a stripe.
    pub(crate) fn deepest(&self, stripe: usize) -> u32 {
        self.stripes[stripe].open.last().map_or(0, |(depth, _)| depth + 1)
    }

    /// Says how many children in other groups a root has.
    pub(crate) fn set_outside(&mut self, stripe: usize, root: Node, outside: u32) {
        let Some(inner) = self.stripes[stripe].inner.get_mut(&root) else { return };
        let before = std::mem::replace(&mut inner.outside, outside);
        if before != outside {
            let used = &mut self.seats[root as usize].used;
            *used = (*used + outside).saturating_sub(before);
            self.refresh(root);
            self.shed(stripe, root);
        }
    }

    pub(crate) fn contains(&self, node: Node) -> bool {
        self.seats.get(node as usize).is_some_and(|seat| seat.is_here)
    }

    pub(crate) fn is_child(&self, node: Node) -> bool {
        self.seats.get(node as usize).is_some_and(|seat| seat.is_here && seat.is_child)
    }

    pub(crate) fn budget(&self, node: Node) -> u32 {
        self.seats.get(node as usize).map_or(0, |seat| seat.budget)
    }

    /// Whether all shares together are fewer than the children.
    pub(crate) fn is_short(&self) -> bool {
        self.budgets < self.stripes.len() as u64 * u64::from(self.children.saturating_sub(1))
    }

    pub(crate) fn root(&self, stripe: usize) -> Option<Node> {
        self.stripes[stripe].root
    }

    pub(crate) fn parent(&self, stripe: usize, node: Node) -> Option<Node> {
        let parent = self.seats.get(node as usize)?.parents[stripe];
        (parent != NOBODY).then_some(parent)
    }

    /// Those who serve children in a stripe, from a number on and then from the start.
    pub(crate) fn serving(&self, stripe: usize, from: Node) -> impl Iterator<Item = Node> + '_ {
        let inner = &self.stripes[stripe].inner;
        inner.range(from..).chain(inner.range(..from)).map(|(node, _)| *node)
    }

    /// One more than the largest number that a member ever had.
    pub(crate) fn len(&self) -> Node {
        Node::try_from(self.seats.len()).unwrap_or(NOBODY)
    }

    /// How far a member that serves children is from where its tree begins.
    pub(crate) fn depth(&self, stripe: usize, node: Node) -> Option<u32> {
        self.stripes[stripe].inner.get(&node).map(|inner| inner.depth)
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

    /// How many children the root of several stripes may have in each: one at least, or a stripe would end with it.
    fn root_slots(&self, root: Node) -> u32 {
        let stripes = self.stripes.iter().filter(|stripe| stripe.root == Some(root)).count();
        let stripes = u32::try_from(stripes).unwrap_or(u32::MAX).max(1);
        (self.seats[root as usize].budget / stripes).max(1)
    }
}

#[cfg(test)]
mod tests;
