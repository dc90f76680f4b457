//! How a forest comes back into shape after many small steps. Does not own the steps (`links`).

use super::{FAVOURS_MAX, FEW, Forest, NOBODY, Node, Role, Seat};

/// Members that are looked at for a place, at most.
const LOOKED_AT_MAX: usize = 64;

impl Forest {
    /// Gives the loose member with the fewest children a home where enough children have a loose parent, or lets it rest
    /// where the other loose ones can do its work. Says whether it did.
    pub(super) fn tidy_loose(&mut self) -> bool {
        let is_root = |node: &Node| self.stripes.iter().any(|stripe| stripe.root == Some(*node));
        let loose = self.loose.iter().copied().filter(|node| !is_root(node));
        let Some(node) = loose.min_by_key(|node| (self.seats[*node as usize].used, *node)) else {
            return false;
        };
        let Seat { used, budget, weight, .. } = self.seats[node as usize];
        let others = self.loose.iter().filter(|other| **other != node && self.weight(**other) >= weight);
        let left: u64 = others.map(|other| self.to_lend(*other)).sum();
        let served = |at: &usize| self.to_take_over(*at, node);
        let most = (0..self.stripes.len()).max_by_key(|at| (served(at), !*at));
        let most = most.filter(|at| served(at) >= budget);
        if most.is_none() && left < used {
            return false;
        }
        let orphans: Vec<Vec<Node>> = (0..self.stripes.len())
            .map(|stripe| {
                let children = self.orphan(stripe, node);
                self.demote_empty(stripe, node);
                children
            })
            .collect();
        // It is idle now. If it has no home, it is not to take them back.
        let budget = std::mem::take(&mut self.seats[node as usize].budget);
        self.idle.remove(&(budget, node));
        if let Some(most) = most {
            self.seats[node as usize].budget = budget;
            self.settle(node, most);
            self.take_over(node, most);
        }
        for (stripe, orphans) in orphans.into_iter().enumerate() {
            self.hang_orphans(stripe, orphans);
        }
        if most.is_none() {
            self.seats[node as usize].budget = budget;
            self.set_role(node, Role::Idle);
        }
        self.settle_role(node);
        true
    }

    /// What the children cost that a member could take over from loose ones in a stripe.
    fn to_take_over(&self, stripe: usize, node: Node) -> u64 {
        let (at, weight) = (&self.stripes[stripe], self.weight(node));
        let all = at.loose_load - self.load(stripe, node);
        if weight >= self.weights.last_key_value().map_or(0, |(fastest, _)| *fastest) {
            return all;
        }
        let loose = self.loose.iter().filter(|from| **from != node && at.root != Some(**from));
        let children = loose.flat_map(|from| at.inner.children(*from));
        children.map(|child| self.weight(*child)).filter(|its| *its <= weight).sum()
    }

    /// Roots serve in their own trees as many as they may: what they lent elsewhere they take back.
    pub(super) fn favour_roots(&mut self) {
        let mut left = FAVOURS_MAX.max(FEW.saturating_sub(self.children) * FAVOURS_MAX);
        for stripe in 0..self.stripes.len() {
            let Some(root) = self.stripes[stripe].root else { continue };
            let most = self.root_slots(root);
            loop {
                let has = self.load(stripe, root);
                let deepest = self.stripes[stripe].open.last().copied().filter(|(depth, _)| *depth > 0);
                let leaf = deepest.and_then(|(_, parent)| self.leaf_of(stripe, parent, NOBODY));
                let fits =
                    |leaf: &Node| self.weight(*leaf) <= self.weight(root) && has + self.weight(*leaf) <= most;
                let Some(leaf) = leaf.filter(fits).filter(|_| left > 0) else { break };
                left -= 1;
                self.unlink(stripe, leaf);
                self.link(stripe, root, leaf);
                self.shed_all(root);
                if self.load(stripe, root) <= has {
                    // It gave another for it.
                    break;
                }
            }
        }
    }

    /// Brings branches up that hang too deep, the deepest first: whoever is at the head of one changes places with a leaf
    /// nearer to the root, and both are told. Everybody keeps its children, and serves as much as before. What falls each
    /// time is the sum of all depths, since a branch has more members than a leaf, so that it ends.
    pub(super) fn lift(&mut self, stripe: usize, limit: u32, most: usize) {
        for _ in 0..most {
            let Some((depth, lowest)) = self.stripes[stripe].open.last().copied() else { return };
            if depth < limit || !self.lift_branch(stripe, (depth, lowest), limit) {
                return;
            }
        }
    }

    /// Of those above a member that serves, and itself, the highest that is deep enough comes up: the more comes with it
    /// the better. Says whether anybody did.
    fn lift_branch(&mut self, stripe: usize, (depth, lowest): (u32, Node), limit: u32) -> bool {
        let open = self.stripes[stripe].open.iter().copied().take(LOOKED_AT_MAX);
        let open = open.take_while(|(above, _)| above + 1 < depth);
        let exchange = open.into_iter().find_map(|(above, to)| {
            let least = (depth + above + 2).saturating_sub(limit).clamp(above + 2, depth);
            let (head, from) = self.ancestor(stripe, lowest, least)?;
            if self.seats[head as usize].is_herald {
                return None;
            }
            Some((to, self.leaf_to_exchange(stripe, (to, from), head)?, from, head))
        });
        let Some((to, leaf, from, head)) = exchange else { return false };
        self.unlink_kept(stripe, leaf);
        self.unlink_kept(stripe, head);
        self.link(stripe, to, head);
        self.link(stripe, from, leaf);
        true
    }

    /// A child of `to` without children that may hang under `from`, if the other may hang under `to` in its place.
    fn leaf_to_exchange(&self, stripe: usize, (to, from): (Node, Node), head: Node) -> Option<Node> {
        let is_leaf = |child: &Node| !self.serves(stripe, *child);
        let fits = |leaf: &Node| {
            self.suits(stripe, to, self.weight(*leaf), head)
                && self.suits(stripe, from, self.weight(head), *leaf)
        };
        let children = self.stripes[stripe].inner.children(to).iter().rev().copied();
        children.into_iter().find(|child| is_leaf(child) && fits(child))
    }

    /// Whoever is above a member, as near to the root as `least`, or it itself; and its parent.
    fn ancestor(&self, stripe: usize, mut node: Node, least: u32) -> Option<(Node, Node)> {
        let mut parent = self.parent(stripe, node)?;
        while self.depth(stripe, parent)? >= least {
            (node, parent) = (parent, self.parent(stripe, parent)?);
        }
        Some((node, parent))
    }

    /// Makes a slot of what members of other stripes have left: one of them gives up its home, and its children go to
    /// the others there.
    pub(super) fn loosen(&mut self, stripe: usize, child: Node) -> Option<Node> {
        let weight = self.weight(child);
        let able = |at: usize| -> Vec<Node> {
            let spare = self.stripes[at].spare.iter().map(|(_, node)| *node);
            spare.filter(|node| self.weight(*node) >= weight).collect()
        };
        let left = |at: usize| able(at).iter().map(|node| self.seats[*node as usize].spare()).sum::<u64>();
        let most = (0..self.stripes.len()).filter(|at| *at != stripe).max_by_key(|at| (left(*at), !*at))?;
        let is_home = |node: &Node| {
            let seat = &self.seats[*node as usize];
            *node != child && seat.role == Role::Home(most) && seat.spare() >= weight
        };
        let home = able(most).into_iter().filter(is_home);
        let node = home.max_by_key(|node| (self.seats[*node as usize].spare(), !*node))?;
        self.set_role(node, Role::Loose);
        while let Some(leaf) = self.leaf_of(most, node, NOBODY) {
            let mut others = self.stripes[most].spare.iter().map(|(_, other)| *other);
            let is_able = |other: &Node| *other != node && self.suits(most, *other, 0, leaf);
            let Some(other) = others.find(is_able) else { break };
            self.unlink_kept(most, leaf);
            self.link(most, other, leaf);
        }
        self.demote_empty(most, node);
        Some(node)
    }

    /// Gives children to others while there are too many of them, those of stripes that it is the root of last.
    pub(super) fn shed_all(&mut self, node: Node) {
        for is_root in [false, true] {
            for stripe in 0..self.stripes.len() {
                if (self.stripes[stripe].root == Some(node)) == is_root {
                    self.shed(stripe, node);
                }
            }
        }
    }

    /// Gives children to others while there are too many of them.
    pub(super) fn shed(&mut self, stripe: usize, node: Node) {
        // No more often than that: for one that goes another may come.
        for _ in 0..self.stripes[stripe].inner.children(node).len() {
            let Some(inner) = self.stripes[stripe].inner.get(node) else { return };
            let is_root = self.stripes[stripe].root == Some(node);
            let seat = &self.seats[node as usize];
            let is_over = if is_root {
                let slots = self.root_slots(node);
                // A tree of its own that has less than its part gives nothing while another has more.
                let has_more = |at: usize| self.stripes[at].root == Some(node) && self.load(at, node) > slots;
                let is_even = || !(0..self.stripes.len()).any(has_more);
                inner.children.len() > 1 && (inner.load > slots || seat.used > seat.budget && is_even())
            } else {
                seat.used > seat.budget
            };
            let leaves =
                inner.children.iter().rev().filter(|child| !self.stripes[stripe].inner.contains(**child));
            let last = leaves.min_by_key(|child| self.weight(**child)).or(inner.children.last()).copied();
            let Some(child) = last.filter(|_| is_over) else { return };
            self.unlink(stripe, child);
            self.hang(stripe, child);
            if self.seats[child as usize].parents[stripe] == node {
                // Nobody else can.
                return;
            }
        }
    }
}
