//! The steps by which a tree changes: a child is hung under somebody, a member begins to serve or ceases to. Does not
//! own when that is done (`forest`).

use super::{Forest, NOBODY, Node, Role};

/// Members that are looked at for a parent, of each kind, at most.
const LOOKED_AT_MAX: usize = 64;

impl Forest {
    /// Gives a member a parent, if it wants one and has none.
    pub(super) fn hang(&mut self, stripe: usize, node: Node) {
        let seat = &self.seats[node as usize];
        let is_rooted = self.stripes[stripe].root.is_some_and(|root| root != node);
        if !seat.is_here || !seat.is_child || !is_rooted || seat.parents[stripe] != NOBODY {
            return;
        }
        if self.serves(stripe, node) {
            return self.hang_inner(stripe, node);
        }
        if let Some(parent) = self.provider(stripe, node) {
            self.link(stripe, parent, node);
        } else if !self.preempt(stripe, node) && !self.displace(stripe, node) {
            let parent = self.loosen(stripe, node).or_else(|| self.any_parent(stripe, node));
            if let Some(parent) = parent {
                self.link(stripe, parent, node);
            }
        }
    }

    /// Whoever has a slot for one more child of a stripe: the nearest to the root; else one who is loose, or becomes it.
    fn provider(&mut self, stripe: usize, child: Node) -> Option<Node> {
        loop {
            if let Some(node) = self.with_room(stripe, child) {
                return Some(node);
            }
            if let Some(node) = self.loose_with_spare(child) {
                return Some(node);
            }
            let weight = self.weight(child);
            let idle = self.idle.iter().rev().map(|(_, node)| *node).take(LOOKED_AT_MAX);
            let able = idle.filter(|node| *node != child && self.weight(*node) >= weight);
            let node = able.min_by_key(|node| self.weight(*node) > weight)?;
            if !self.employ(node) {
                return Some(node);
            }
        }
    }

    /// The nearest to the root that has room for a child: one of its equals, if any has. What is asked of a faster card
    /// may come sooner than it can be used, and keeps others waiting.
    pub(super) fn with_room(&self, stripe: usize, child: Node) -> Option<Node> {
        let weight = self.weight(child);
        let spare = || self.stripes[stripe].spare.iter().map(|(_, node)| *node).take(LOOKED_AT_MAX);
        let mut able = spare().filter(|node| *node != child && self.suits(stripe, *node, 0, child));
        if self.weights.len() < 2 { able.next() } else { able.min_by_key(|node| self.weight(*node) > weight) }
    }

    /// Gives a member the place of slower leaves, nearest to the root; those go elsewhere.
    fn preempt(&mut self, stripe: usize, node: Node) -> bool {
        let weight = self.weight(node);
        if self.least() >= weight {
            return false;
        }
        let slower = |parent: Node| -> Option<(Node, Vec<Node>)> {
            let at = &self.stripes[stripe];
            let (mut freed, mut gone) = (0, Vec::new());
            for leaf in at.inner.children(parent).iter().rev().copied() {
                if self.weight(leaf) < weight && !at.inner.contains(leaf) {
                    freed += self.weight(leaf);
                    gone.push(leaf);
                    if self.suits(stripe, parent, freed, node) {
                        return Some((parent, gone));
                    }
                }
            }
            None
        };
        let open = self.stripes[stripe].open.iter().map(|(_, parent)| *parent).take(LOOKED_AT_MAX);
        let able = open.into_iter().filter(|parent| *parent != node && self.weight(*parent) >= weight);
        let Some((parent, gone)) = able.into_iter().find_map(slower) else { return false };
        for leaf in &gone {
            self.unlink_kept(stripe, *leaf);
        }
        self.link(stripe, parent, node);
        for leaf in gone {
            self.hang(stripe, leaf);
        }
        true
    }

    /// Makes an idle member at home where the most children have a loose parent, if there are enough for it; says
    /// whether it did.
    pub(super) fn employ(&mut self, node: Node) -> bool {
        let seat = &self.seats[node as usize];
        let most = (0..self.stripes.len()).max_by_key(|at| (self.stripes[*at].loose_load, !*at));
        let is_enough = |at: &usize| self.stripes[*at].loose_load >= seat.budget;
        let Some(most) = most.filter(|at| seat.role == Role::Idle && seat.budget > 0 && is_enough(at)) else {
            return false;
        };
        self.settle(node, most);
        self.take_over(node, most);
        if self.seats[node as usize].used == 0 {
            self.settle_role(node);
        }
        self.seats[node as usize].role != Role::Idle
    }

    pub(super) fn loose_with_spare(&self, child: Node) -> Option<Node> {
        let weight = self.weight(child);
        let spare = |node: &Node| self.to_lend(*node);
        let is_able = |node: &Node| self.weight(*node) >= weight && spare(node) >= weight;
        let loose = self.loose.iter().copied().filter(|node| *node != child && is_able(node));
        loose.max_by_key(|node| (self.weight(*node) == weight, spare(node), !*node))
    }

    /// What a loose member may send beyond what it is kept for as a root.
    pub(super) fn to_lend(&self, node: Node) -> u64 {
        let spare = self.seats[node as usize].spare();
        if spare == 0 || self.seats[node as usize].is_herald {
            return 0;
        }
        // It is kept for cards like its own; slower ones find their like sooner.
        let weight = self.weight(node);
        let equals = u64::from(self.weights.get(&weight).copied().unwrap_or(0));
        let most = self.root_slots(node).min(weight * equals.saturating_sub(1));
        let kept = self
            .stripes
            .iter()
            .filter(|stripe| stripe.root == Some(node))
            .map(|stripe| most.saturating_sub(stripe.inner.get(node).map_or(0, |inner| inner.load)));
        spare.saturating_sub(kept.sum())
    }

    /// Nobody has a slot, so that a root gives one that it is kept for elsewhere, or somebody gets one too many: the
    /// root, if there is one.
    fn any_parent(&self, stripe: usize, child: Node) -> Option<Node> {
        let weight = self.weight(child);
        let spare = |node: &Node| self.seats[*node as usize].spare();
        let is_able = |node: &Node| self.weight(*node) >= weight && spare(node) >= weight;
        let kept = self.loose.iter().copied().filter(|node| *node != child && is_able(node));
        if let Some(node) = kept.max_by_key(|node| (spare(node), !*node)) {
            return Some(node);
        }
        let stripe = &self.stripes[stripe];
        stripe.root.or_else(|| stripe.inner.nodes().find(|node| *node != child))
    }

    /// An idle member is at home in a stripe from now on.
    pub(super) fn settle(&mut self, node: Node, stripe: usize) {
        self.set_role(node, Role::Home(stripe));
        self.promote(stripe, node);
        let (seat, is_inner) = (&self.seats[node as usize], self.stripes[stripe].inner.contains(node));
        if seat.is_child && seat.parents[stripe] == NOBODY && is_inner {
            match self.with_room(stripe, node) {
                Some(parent) => self.link(stripe, parent, node),
                None => self.hang_inner(stripe, node),
            }
        }
    }

    /// It serves those who have a loose parent, as many as it may.
    pub(super) fn take_over(&mut self, node: Node, stripe: usize) {
        let root = self.stripes[stripe].root;
        let mut loose: Vec<Node> = self.loose.iter().copied().filter(|from| root != Some(*from)).collect();
        // Roots first: their own trees are the lower, the more they serve there.
        loose.sort_by_key(|from| !self.stripes.iter().any(|stripe| stripe.root == Some(*from)));
        for from in loose {
            while self.seats[node as usize].spare() > 0 {
                let Some(child) = self.leaf_for(stripe, (from, node), node) else { break };
                self.unlink(stripe, child);
                self.link(stripe, node, child);
            }
        }
    }

    /// A child without children, other than `except`.
    pub(super) fn leaf_of(&self, stripe: usize, parent: Node, except: Node) -> Option<Node> {
        let stripe = &self.stripes[stripe];
        let children = stripe.inner.get(parent).filter(|inner| inner.leaves > 0)?.children.iter().rev();
        children.copied().find(|child| *child != except && !stripe.inner.contains(*child))
    }

    /// The same that another may have as its child.
    pub(super) fn leaf_for(&self, stripe: usize, (parent, to): (Node, Node), except: Node) -> Option<Node> {
        let at = &self.stripes[stripe];
        let children = at.inner.get(parent).filter(|inner| inner.leaves > 0)?.children.iter().rev();
        let is_leaf = |child: &Node| *child != except && !at.inner.contains(*child);
        children.copied().find(|child| is_leaf(child) && self.suits(stripe, to, 0, *child))
    }

    /// Puts a member without children where another leaf hangs, nearest to the root, and that one under it, if it can
    /// serve it.
    fn displace(&mut self, stripe: usize, node: Node) -> bool {
        let seat = &self.seats[node as usize];
        if seat.spare() == 0 || matches!(seat.role, Role::Home(_)) {
            return false;
        }
        let fits = |(parent, leaf): &(Node, Node)| {
            let freed = self.weight(*leaf);
            self.suits(stripe, *parent, freed, node) && self.suits(stripe, node, 0, *leaf)
        };
        let open = self.stripes[stripe].open.iter().map(|(_, parent)| *parent).take(LOOKED_AT_MAX);
        let mut open = open.filter_map(|parent| Some((parent, self.leaf_of(stripe, parent, node)?)));
        let Some((parent, leaf)) = open.find(fits) else { return false };
        self.unlink_kept(stripe, leaf);
        self.link(stripe, parent, node);
        self.link(stripe, node, leaf);
        true
    }

    /// Gives a member that has children a parent who does not hang under it.
    fn hang_inner(&mut self, stripe: usize, node: Node) {
        let open = self.stripes[stripe].open.iter().map(|(_, parent)| *parent).find_map(|parent| {
            if self.is_under(stripe, parent, node) {
                return None;
            }
            let leaf = self.leaf_of(stripe, parent, node)?;
            self.suits(stripe, parent, self.weight(leaf), node).then_some((parent, leaf))
        });
        if let Some((parent, leaf)) = open {
            self.unlink_kept(stripe, leaf);
            self.link(stripe, parent, node);
            return self.hang(stripe, leaf);
        }
        let spare = self.stripes[stripe].spare.iter().map(|(_, at)| *at);
        let able = spare.filter(|at| self.suits(stripe, *at, 0, node));
        let apart = able.chain(self.stripes[stripe].root).find(|at| !self.is_under(stripe, *at, node));
        if let Some(parent) = apart {
            self.link(stripe, parent, node);
        }
    }

    pub(super) fn is_under(&self, stripe: usize, mut node: Node, above: Node) -> bool {
        while node != above {
            node = self.seats[node as usize].parents[stripe];
            if node == NOBODY {
                return false;
            }
        }
        true
    }

    /// A member without children in a stripe begins to serve there, as near to the root as it can be.
    pub(super) fn promote(&mut self, stripe: usize, node: Node) {
        if self.serves(stripe, node) {
            return;
        }
        self.seats[node as usize].serves |= 1 << stripe;
        let parent = self.seats[node as usize].parents[stripe];
        let depth = self.stripes[stripe].inner.get(parent).map_or(0, |inner| inner.depth() + 1);
        self.stripes[stripe].inner.insert(node, depth);
        if parent != NOBODY {
            self.count_leaf(stripe, parent, false);
            let higher = self.stripes[stripe].open.first().copied().filter(|(above, _)| above + 1 < depth);
            if let Some((_, above)) = higher
                && let Some(leaf) = self.leaf_of(stripe, above, node)
                && self.suits(stripe, above, self.weight(leaf), node)
                && self.suits(stripe, parent, self.weight(node), leaf)
            {
                self.unlink_kept(stripe, leaf);
                self.unlink_kept(stripe, node);
                self.link(stripe, above, node);
                self.link(stripe, parent, leaf);
            }
        }
        self.refresh(node);
    }

    /// A member that serves nobody in a stripe is a leaf there, but for its root.
    pub(super) fn demote_empty(&mut self, stripe: usize, node: Node) {
        if self.leave_empty(stripe, node) {
            self.settle_role(node);
        }
    }

    pub(super) fn leave_empty(&mut self, stripe: usize, node: Node) -> bool {
        if !self.serves(stripe, node) {
            return false;
        }
        let at = &mut self.stripes[stripe];
        if at.root == Some(node) || at.inner.get(node).is_none_or(|inner| !inner.children.is_empty()) {
            return false;
        }
        self.seats[node as usize].serves &= !(1 << stripe);
        if let Some(inner) = at.inner.remove(node) {
            at.spare.remove(&(inner.depth(), node));
        }
        let parent = self.seats[node as usize].parents[stripe];
        if parent != NOBODY {
            self.count_leaf(stripe, parent, true);
        }
        true
    }

    /// What a member is, now that it has other children than before.
    pub(super) fn settle_role(&mut self, node: Node) {
        let is_root = self.stripes.iter().any(|stripe| stripe.root == Some(node));
        let (used, role) = (self.seats[node as usize].used, self.seats[node as usize].role);
        if is_root {
            self.set_role(node, Role::Loose);
        } else if used == 0 && role != Role::Idle {
            (0..self.stripes.len()).for_each(|stripe| {
                self.leave_empty(stripe, node);
            });
            self.set_role(node, Role::Idle);
        }
        self.refresh(node);
    }

    pub(super) fn set_role(&mut self, node: Node, role: Role) {
        let seat = &mut self.seats[node as usize];
        let before = std::mem::replace(&mut seat.role, role);
        let budget = seat.budget;
        self.idle.remove(&(budget, node));
        self.loose.remove(&node);
        match role {
            Role::Idle if budget > 0 => drop(self.idle.insert((budget, node))),
            Role::Idle | Role::Home(_) => {}
            Role::Loose => drop(self.loose.insert(node)),
        }
        if before != role {
            let is_loose = |role: Role| role == Role::Loose;
            let seat = &self.seats[node as usize];
            let serves = self.stripes.iter_mut().enumerate().filter(|(at, _)| seat.serves(*at));
            for (_, stripe) in serves.filter(|(_, stripe)| stripe.root != Some(node)) {
                let load = stripe.inner.get(node).map_or(0, |inner| inner.load);
                match (is_loose(before), is_loose(role)) {
                    (false, true) => stripe.loose_load += load,
                    (true, false) => stripe.loose_load -= load,
                    _ => {}
                }
            }
        }
        self.refresh(node);
    }

    pub(super) fn link(&mut self, stripe: usize, parent: Node, child: Node) {
        if self.seats[parent as usize].role == Role::Idle {
            self.set_role(parent, Role::Loose);
        }
        self.promote(stripe, parent);
        let weight = self.weight(child);
        self.seats[parent as usize].used += weight;
        self.seats[child as usize].parents[stripe] = parent;
        let is_loose = self.seats[parent as usize].role == Role::Loose;
        let is_slower = self.weight(parent) < weight;
        let at = &mut self.stripes[stripe];
        if at.root != Some(parent) {
            at.loose_load += if is_loose { weight } else { 0 };
            self.inverted += u32::from(is_slower);
        }
        let inner = at.inner.get_mut(parent).expect("it serves now");
        inner.children.push(child);
        inner.load += weight;
        let depth = inner.depth() + 1;
        if self.seats[child as usize].serves(stripe) {
            self.set_depth(stripe, child, depth);
        } else {
            self.count_leaf(stripe, parent, true);
        }
        self.touch(child);
        self.refresh(parent);
    }

    /// Takes a member from its parent, which may cease to serve.
    pub(super) fn unlink(&mut self, stripe: usize, child: Node) {
        if let Some(parent) = self.unlink_kept(stripe, child) {
            self.demote_empty(stripe, parent);
        }
    }

    /// The same, where the parent gets another child at once.
    pub(super) fn unlink_kept(&mut self, stripe: usize, child: Node) -> Option<Node> {
        let parent = std::mem::replace(&mut self.seats[child as usize].parents[stripe], NOBODY);
        if parent == NOBODY {
            return None;
        }
        let weight = self.weight(child);
        let seat = &mut self.seats[parent as usize];
        seat.used -= weight;
        let (is_loose, is_slower) = (seat.role == Role::Loose, seat.weight < weight);
        let at = &mut self.stripes[stripe];
        if at.root != Some(parent) {
            at.loose_load -= if is_loose { weight } else { 0 };
            self.inverted -= u32::from(is_slower);
        }
        if let Some(inner) = at.inner.get_mut(parent) {
            inner.children.retain(|other| *other != child);
            inner.load -= weight;
        }
        if !self.seats[child as usize].serves(stripe) {
            self.count_leaf(stripe, parent, false);
        }
        self.touch(child);
        self.refresh(parent);
        Some(parent)
    }

    /// A member serves nobody in a stripe any more: somebody idle takes its place, or its children go elsewhere.
    pub(super) fn vacate(&mut self, stripe: usize, node: Node) {
        let (above, load) = (self.seats[node as usize].parents[stripe], self.load(stripe, node));
        let children = self.stripes[stripe].inner.children(node);
        let heaviest = children.iter().map(|child| self.weight(*child)).max().unwrap_or(0);
        let most = if above == NOBODY { u64::MAX } else { self.weight(above) };
        let idle = self.idle.iter().rev().take(LOOKED_AT_MAX).filter(|(budget, _)| *budget >= load);
        let is_able = |other: &Node| *other != node && (heaviest..=most).contains(&self.weight(*other));
        let successor = idle.map(|(_, other)| *other).find(is_able);
        if let Some(successor) = successor {
            let role = self.seats[node as usize].role;
            return match role {
                Role::Home(home) => self.replace(stripe, node, (successor, Role::Home(home))),
                Role::Idle | Role::Loose => self.replace(stripe, node, (successor, Role::Loose)),
            };
        }
        let children = self.orphan(stripe, node);
        self.demote_empty(stripe, node);
        self.hang_orphans(stripe, children);
    }

    /// Takes all children from a member.
    pub(super) fn orphan(&mut self, stripe: usize, node: Node) -> Vec<Node> {
        let children = self.stripes[stripe].inner.children(node).to_vec();
        for child in &children {
            self.unlink_kept(stripe, *child);
        }
        children
    }

    /// Those who serve others first: they come nearest to the root.
    pub(super) fn hang_orphans(&mut self, stripe: usize, children: Vec<Node>) {
        let is_inner = |node: &Node| self.stripes[stripe].inner.contains(*node);
        let (inner, leaves): (Vec<Node>, Vec<Node>) = children.into_iter().partition(is_inner);
        let mut all = [inner, leaves].concat();
        all.sort_by_key(|node| std::cmp::Reverse(self.weight(*node)));
        for child in all {
            self.hang(stripe, child);
        }
    }

    /// Another member takes over the place and the children of one. It is none of those above it.
    fn replace(&mut self, stripe: usize, old: Node, (new, role): (Node, Role)) {
        let children = self.orphan(stripe, old);
        let above = self.seats[old as usize].parents[stripe];
        self.unlink(stripe, new);
        self.set_role(new, role);
        self.promote(stripe, new);
        self.unlink_kept(stripe, old);
        if above != NOBODY && self.seats[new as usize].is_child && self.suits(stripe, above, 0, new) {
            self.link(stripe, above, new);
        }
        for child in children.into_iter().filter(|child| *child != new) {
            self.link(stripe, new, child);
        }
        if above != NOBODY {
            self.demote_empty(stripe, above);
        }
        self.demote_empty(stripe, old);
        self.demote_empty(stripe, new);
        self.hang(stripe, old);
        self.hang(stripe, new);
        self.shed(stripe, new);
    }

    /// A member that is to be a root serves nobody elsewhere, unless it is one already.
    pub(super) fn free_for_root(&mut self, node: Node) {
        if self.stripes.iter().any(|stripe| stripe.root == Some(node)) {
            return;
        }
        for stripe in 0..self.stripes.len() {
            if self.stripes[stripe].inner.contains(node) {
                self.vacate(stripe, node);
            }
        }
    }

    /// A root in the place of another.
    pub(super) fn succeed(&mut self, stripe: usize, before: Node, root: Node) {
        let children = self.orphan(stripe, before);
        self.stripes[stripe].root = None;
        self.unlink(stripe, root);
        self.crown(stripe, root);
        let weight = self.weight(root);
        let children = children.into_iter().filter(|child| *child != root);
        let (faster, others): (Vec<Node>, Vec<Node>) =
            children.partition(|child| self.weight(*child) > weight);
        for child in others {
            self.link(stripe, root, child);
        }
        self.demote_empty(stripe, before);
        self.touch(before);
        self.hang_orphans(stripe, faster);
        self.hang(stripe, before);
    }

    pub(super) fn crown(&mut self, stripe: usize, root: Node) {
        // What it serves there already, it serves as the root.
        let weight = self.weight(root);
        if let Some(inner) = self.stripes[stripe].inner.get(root) {
            let faster = inner.children.iter().filter(|child| self.weight(**child) > weight).count();
            self.inverted -= u32::try_from(faster).unwrap_or(u32::MAX);
            if self.seats[root as usize].role == Role::Loose {
                self.stripes[stripe].loose_load -= inner.load;
            }
        }
        self.unlink(stripe, root);
        self.stripes[stripe].root = Some(root);
        self.stripes[stripe].inner.insert(root, 0);
        self.seats[root as usize].serves |= 1 << stripe;
        self.set_depth(stripe, root, 0);
        self.set_role(root, Role::Loose);
        self.touch(root);
    }

    /// Nobody has a parent in a stripe any more.
    pub(super) fn clear(&mut self, stripe: usize) {
        let serving: Vec<Node> = self.stripes[stripe].inner.nodes().collect();
        for node in &serving {
            self.orphan(stripe, *node);
        }
        let gone = std::mem::take(&mut self.stripes[stripe]);
        for node in gone.inner.nodes() {
            self.seats[node as usize].serves &= !(1 << stripe);
            self.touch(node);
            self.settle_role(node);
        }
    }

    pub(super) fn set_depth(&mut self, stripe: usize, node: Node, depth: u32) {
        if !self.serves(stripe, node) {
            return;
        }
        let at = &mut self.stripes[stripe];
        let Some(before) = at.inner.set_depth(node, depth).filter(|before| *before != depth) else { return };
        if at.open.remove(&(before, node)) {
            at.open.insert((depth, node));
        }
        if at.spare.remove(&(before, node)) {
            at.spare.insert((depth, node));
        }
        let below: Vec<Node> =
            at.inner.children(node).iter().copied().filter(|child| at.inner.contains(*child)).collect();
        for child in below {
            self.set_depth(stripe, child, depth + 1);
        }
    }

    fn count_leaf(&mut self, stripe: usize, parent: Node, is_more: bool) {
        let at = &mut self.stripes[stripe];
        let Some(inner) = at.inner.get_mut(parent) else { return };
        let before = inner.leaves;
        inner.leaves = if is_more { before + 1 } else { before.saturating_sub(1) };
        match (before, inner.leaves) {
            (0, 1) => drop(at.open.insert((inner.depth(), parent))),
            (1, 0) => drop(at.open.remove(&(inner.depth(), parent))),
            _ => {}
        }
    }

    /// Notes where a member may have one more child.
    pub(super) fn refresh(&mut self, node: Node) {
        match self.seats[node as usize].role {
            Role::Home(stripe) => self.refresh_in(stripe, node),
            Role::Idle | Role::Loose => (0..self.stripes.len()).for_each(|at| self.refresh_in(at, node)),
        }
    }

    fn refresh_in(&mut self, stripe: usize, node: Node) {
        if !self.serves(stripe, node) {
            return;
        }
        let Some(before) = self.stripes[stripe].inner.get(node).map(|inner| inner.has_spare) else { return };
        let can = self.room(stripe, node) >= self.least().max(1);
        let at = &mut self.stripes[stripe];
        let Some(inner) = at.inner.get_mut(node).filter(|_| before != can) else { return };
        inner.has_spare = can;
        if can {
            at.spare.insert((inner.depth(), node));
        } else {
            at.spare.remove(&(inner.depth(), node));
        }
    }
}
