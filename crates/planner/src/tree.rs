//! The tree of one stripe, and the sending that each member has left to give. Does not own who the entrant is.

use std::collections::{BTreeMap, BTreeSet};

use crate::id::PeerId;

/// How many children each member may still serve, over all stripes. A member sends one stripe to one child at
/// 1/K of the artifact's rate, so K·(N − 1) children in all, shared by weight, use every upload once.
#[derive(Debug)]
pub(crate) struct Budgets {
    entrant_slots: BTreeMap<PeerId, u32>,
    /// (children left, member): the member with the most to give comes last.
    spare: BTreeSet<(u32, PeerId)>,
}

impl Budgets {
    /// `weights` are of those who may have children, among `wanting` members.
    pub(crate) fn new(weights: &BTreeMap<PeerId, u64>, wanting: usize, entrants: &[Option<PeerId>]) -> Self {
        let sum: u128 = weights.values().map(|weight| u128::from(*weight)).sum();
        let children_max = wanting.saturating_sub(1) as u128;
        let edges = entrants.len() as u128 * children_max;
        let (mut entrant_slots, mut spare) = (BTreeMap::new(), BTreeSet::new());
        for (peer, weight) in weights {
            let budget = (edges * u128::from(*weight)).div_ceil(sum.max(1));
            let stripes = entrants.iter().filter(|entrant| **entrant == Some(*peer)).count() as u128;
            // An entrant serves one child at least, or its stripe would end with it.
            let each = budget.checked_div(stripes).map_or(0, |slots| slots.clamp(1, children_max.max(1)));
            entrant_slots.insert(*peer, u32::try_from(each).unwrap_or(u32::MAX));
            let left = budget.saturating_sub(each * stripes);
            spare.insert((u32::try_from(left).unwrap_or(u32::MAX), *peer));
        }
        Self { entrant_slots, spare }
    }

    pub(crate) fn entrant_slots(&self, peer: PeerId) -> u32 {
        self.entrant_slots.get(&peer).copied().unwrap_or(1)
    }

    /// Takes up to `need` children from the member with the most left that is not excluded.
    fn take_helper(&mut self, need: u32, exclude: &BTreeMap<PeerId, u32>) -> Option<(PeerId, u32)> {
        let (left, peer) = *self
            .spare
            .iter()
            .rev()
            .take_while(|(left, _)| *left > 0)
            .find(|(_, peer)| !exclude.contains_key(peer))?;
        let taken = left.min(need);
        self.spare.remove(&(left, peer));
        self.spare.insert((left - taken, peer));
        Some((peer, taken))
    }
}

/// One stripe's tree: everybody but the entrant has a parent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    interiors: Vec<PeerId>,
    parents: BTreeMap<PeerId, PeerId>,
}

impl Tree {
    pub(crate) fn parent(&self, peer: PeerId) -> Option<PeerId> {
        self.parents.get(&peer).copied()
    }

    /// Those who serve children, the entrant first.
    pub(crate) fn interiors(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.interiors.iter().copied()
    }

    /// Grows the tree from its entrant over all `wanting`, keeping parents of `before` where it can.
    pub(crate) fn grow(
        root: PeerId,
        slots: u32,
        wanting: &[PeerId],
        budgets: &mut Budgets,
        before: &Self,
    ) -> Self {
        let mut need = u32::try_from(wanting.len().saturating_sub(1)).unwrap_or(u32::MAX);
        let mut interiors = vec![root];
        let mut free = BTreeMap::from([(root, slots.min(need))]);
        need -= slots.min(need);
        while need > 0 {
            let Some((helper, taken)) = budgets.take_helper(need, &free) else { break };
            interiors.push(helper);
            free.insert(helper, taken);
            need -= taken;
        }
        // Rounding may leave a few children without anybody's budget; the entrant serves them.
        *free.entry(root).or_default() += need;

        let mut tree = Self { interiors, parents: BTreeMap::new() };
        let mut at = 0;
        for helper in 1..tree.interiors.len() {
            at = tree.adopt(tree.interiors[helper], at, &mut free);
        }
        for peer in wanting {
            if let Some(parent) = before.parent(*peer)
                && !free.contains_key(peer)
                && let Some(slots) = free.get_mut(&parent).filter(|slots| **slots > 0)
            {
                *slots -= 1;
                tree.parents.insert(*peer, parent);
            }
        }
        for peer in wanting {
            if !free.contains_key(peer) && !tree.parents.contains_key(peer) {
                at = tree.adopt(*peer, at, &mut free);
            }
        }
        tree
    }

    /// Puts `child` under the first interior, from number `at` on, that has a slot; returns where that was.
    fn adopt(&mut self, child: PeerId, mut at: usize, free: &mut BTreeMap<PeerId, u32>) -> usize {
        while at < self.interiors.len() - 1 && free.get(&self.interiors[at]).is_none_or(|slots| *slots == 0) {
            at += 1;
        }
        let parent = self.interiors[at];
        if let Some(slots) = free.get_mut(&parent) {
            *slots = slots.saturating_sub(1);
        }
        self.parents.insert(child, parent);
        at
    }
}
