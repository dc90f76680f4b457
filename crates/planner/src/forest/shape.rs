//! How a forest comes back into shape after many small steps. Does not own the steps (`links`).

use std::cmp::Reverse;

use super::{FAVOURS_MAX, FEW, Forest, Inner, NOBODY, Node, Role, Seat};

impl Forest {
    /// Gives the loose member with the fewest children a home where enough children have a loose parent, or lets it rest
    /// where the other loose ones can do its work. Says whether it did.
    pub(super) fn tidy_loose(&mut self) -> bool {
        let is_root = |node: &Node| self.stripes.iter().any(|stripe| stripe.root == Some(*node));
        let loose = self.loose.iter().copied().filter(|node| !is_root(node));
        let Some(node) = loose.min_by_key(|node| (self.seats[*node as usize].used, *node)) else {
            return false;
        };
        let Seat { used, budget, .. } = self.seats[node as usize];
        let others = self.loose.iter().filter(|other| **other != node);
        let left: u32 = others.map(|other| self.to_lend(*other)).sum();
        let served = |at: &usize| {
            let stripe = &self.stripes[*at];
            stripe.loose_children - stripe.inner.get(&node).map_or(0, Inner::len)
        };
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

    /// Roots serve in their own trees as many as they may: what they lent elsewhere they take back.
    pub(super) fn favour_roots(&mut self) {
        let mut left = FAVOURS_MAX.max(FEW.saturating_sub(self.children) * FAVOURS_MAX);
        for stripe in 0..self.stripes.len() {
            let Some(root) = self.stripes[stripe].root else { continue };
            let most = self.root_slots(root).min(self.children.saturating_sub(1));
            loop {
                let has = self.stripes[stripe].inner.get(&root).map_or(0, Inner::len);
                let deepest = self.stripes[stripe].open.last().copied().filter(|(depth, _)| *depth > 0);
                let leaf = deepest.and_then(|(_, parent)| self.leaf_of(stripe, parent, NOBODY));
                let Some(leaf) = leaf.filter(|_| has < most && left > 0) else { break };
                left -= 1;
                self.unlink(stripe, leaf);
                self.link(stripe, root, leaf);
                self.shed_all(root);
            }
        }
    }

    /// Makes a slot of what members of other stripes have left: one of them gives up its home, and its children go to
    /// the others there.
    pub(super) fn loosen(&mut self, stripe: usize, child: Node) -> Option<Node> {
        let left = |at: usize| -> u32 {
            let spare = self.stripes[at].spare.iter();
            spare.map(|(_, node)| self.seats[*node as usize].spare()).sum()
        };
        let most = (0..self.stripes.len()).filter(|at| *at != stripe).max_by_key(|at| (left(*at), !*at))?;
        let spare = self.stripes[most].spare.iter().map(|(_, node)| *node);
        let home = spare.filter(|node| *node != child && self.seats[*node as usize].role == Role::Home(most));
        let node = home.max_by_key(|node| (self.seats[*node as usize].spare(), !*node))?;
        self.set_role(node, Role::Loose);
        while let Some(leaf) = self.leaf_of(most, node, NOBODY) {
            let mut others = self.stripes[most].spare.iter().map(|(_, other)| *other);
            let Some(other) = others.find(|other| *other != node) else { break };
            self.unlink_kept(most, leaf);
            self.link(most, other, leaf);
        }
        self.demote_empty(most, node);
        Some(node)
    }

    /// Grows a tree anew from its root, with the same members at home in it.
    pub(super) fn replant(&mut self, stripe: usize) {
        let serving: Vec<Node> = self.stripes[stripe].inner.keys().copied().collect();
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
        homes.sort_by_key(|node| (Reverse(self.seats[*node as usize].budget), *node));
        for node in homes {
            let root = self.stripes[stripe].root;
            let parent = self.stripes[stripe].spare.first().map(|(_, parent)| *parent).or(root);
            if let Some(parent) = parent.filter(|_| self.seats[node as usize].is_child) {
                self.link(stripe, parent, node);
            }
            self.promote(stripe, node);
        }
        for node in 0..self.seats.len() {
            self.hang(stripe, Node::try_from(node).unwrap_or(NOBODY));
        }
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
        loop {
            let Some(inner) = self.stripes[stripe].inner.get(&node) else { return };
            let is_root = self.stripes[stripe].root == Some(node);
            let seat = &self.seats[node as usize];
            let is_over = if is_root {
                inner.len() > 1 && (inner.len() > self.root_slots(node) || seat.used > seat.budget)
            } else {
                seat.used > seat.budget
            };
            let last = self.leaf_of(stripe, node, NOBODY).or_else(|| inner.children.last().copied());
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
