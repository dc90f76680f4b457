//! The trees of a plan, whoever made it.
//!
//! Owns: who is below whom in each stripe, and what can be counted there. Does not own: how trees are drawn, or where
//! they come from.

use std::collections::{BTreeMap, VecDeque};

use planner::{PeerId, Place, StripeSource};

/// One peer of a plan.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    /// What its network card does in each direction, in bytes per second, if that is known.
    pub(super) nic_rate: Option<u64>,
    /// Where it stands.
    pub(super) place: Place,
    pub(super) is_seed: bool,
    /// What it has of the artifact, from 0 to 1; `None` where nothing moves.
    pub(super) done: Option<f64>,
}

/// The tree of one stripe, over the peers of the plan by their numbers.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    /// Who reads the stripe from the origin.
    pub(super) entrant: Option<usize>,
    /// Where each peer gets it, if from another peer.
    pub(super) parents: Vec<Option<usize>>,
    children: Vec<Vec<usize>>,
    /// Everybody who gets it or has it to give, each after its parent.
    order: Vec<usize>,
    /// How many peers are above each, itself included; 0 for those who are not in the order.
    levels: Vec<u32>,
    /// How many peers are below each.
    below: Vec<usize>,
}

/// What trees of different stripes have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    /// Peers on the longest way.
    pub(super) depth: u32,
    /// Peers that give it to others.
    pub(super) interior: usize,
    /// Peers that only get it.
    pub(super) leaves: usize,
    /// Children of the peer that has most.
    pub(super) children_max: usize,
}

/// The trees of so many stripes, from where each peer gets each.
pub(super) fn of(
    ids: &[PeerId],
    stripes: usize,
    source: impl Fn(usize, usize) -> Option<StripeSource>,
) -> Vec<Tree> {
    let numbers: BTreeMap<PeerId, usize> = ids.iter().copied().zip(0..).collect();
    let tree = |stripe| {
        let mut all = 0..ids.len();
        let entrant = all.find(|peer| source(*peer, stripe) == Some(StripeSource::Origin));
        let parent = |peer| match source(peer, stripe) {
            Some(StripeSource::Parent(parent)) => numbers.get(&parent).copied(),
            _ => None,
        };
        Tree::new(entrant, (0..ids.len()).map(parent).collect())
    };
    (0..stripes).map(tree).collect()
}

impl Tree {
    /// A parent that is no peer of the plan counts as none, and a circle is nobody's tree.
    pub(super) fn new(entrant: Option<usize>, parents: Vec<Option<usize>>) -> Self {
        let count = parents.len();
        let mut children = vec![Vec::new(); count];
        for (peer, parent) in parents.iter().enumerate() {
            if let Some(children) = parent.and_then(|parent| children.get_mut(parent)) {
                children.push(peer);
            }
        }
        let is_root = |peer: &usize| {
            parents[*peer].is_none() && (entrant == Some(*peer) || !children[*peer].is_empty())
        };
        let mut levels = vec![0; count];
        let mut queue: VecDeque<usize> = (0..count).filter(is_root).collect();
        for root in &queue {
            levels[*root] = 1;
        }
        let mut order = Vec::with_capacity(count);
        while let Some(peer) = queue.pop_front() {
            order.push(peer);
            for child in &children[peer] {
                levels[*child] = levels[peer] + 1;
                queue.push_back(*child);
            }
        }
        let mut below = vec![0; count];
        for peer in order.iter().rev() {
            if let Some(parent) = parents[*peer] {
                below[parent] += below[*peer] + 1;
            }
        }
        for children in &mut children {
            children.sort_by_key(|child| (std::cmp::Reverse(below[*child]), *child));
        }
        Self { entrant, parents, children, order, levels, below }
    }

    /// Those with nobody above them.
    pub(super) fn roots(&self) -> impl Iterator<Item = usize> + '_ {
        self.order.iter().copied().take_while(|peer| self.levels[*peer] == 1)
    }

    /// Those below a peer, the ones with most below them first.
    pub(super) fn children(&self, peer: usize) -> &[usize] {
        &self.children[peer]
    }

    /// Everybody in the tree, level by level.
    pub(super) fn order(&self) -> &[usize] {
        &self.order
    }

    /// On which level a peer is; 1 for those with nobody above them.
    pub(super) fn level(&self, peer: usize) -> u32 {
        self.levels[peer]
    }

    /// How many are below a peer, on all levels.
    pub(super) fn below(&self, peer: usize) -> usize {
        self.below[peer]
    }

    /// Whether a peer gives the stripe to others.
    pub(super) fn is_interior(&self, peer: usize) -> bool {
        !self.children[peer].is_empty()
    }

    /// Those whose parent stands elsewhere.
    pub(super) fn crossings(&self, peers: &[Peer]) -> impl Iterator<Item = usize> {
        let is_far =
            |peer: &usize| self.parents[*peer].is_some_and(|at| peers[at].place != peers[*peer].place);
        self.order.iter().copied().filter(is_far)
    }

    /// What it is like.
    pub(super) fn shape(&self) -> Shape {
        let interior = self.order.iter().filter(|peer| self.is_interior(**peer)).count();
        Shape {
            depth: self.order.last().map_or(0, |peer| self.levels[*peer]),
            interior,
            leaves: self.order.len() - interior,
            children_max: self.children.iter().map(Vec::len).max().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_from_its_roots() {
        // 3 reads the origin; 1 is below it, 0 and 2 below 1; 4 is in no tree.
        let tree = Tree::new(Some(3), vec![Some(1), Some(3), Some(1), None, None]);
        assert_eq!(tree.order(), [3, 1, 0, 2]);
        assert_eq!(tree.roots().collect::<Vec<_>>(), [3]);
        assert_eq!(
            [3, 1, 0, 4].map(|peer| (tree.level(peer), tree.below(peer))),
            [(1, 3), (2, 2), (3, 0), (0, 0)]
        );
        assert_eq!(tree.shape(), Shape { depth: 3, interior: 2, leaves: 2, children_max: 2 });
    }

    #[test]
    fn a_circle_and_a_stranger_are_left_out() {
        let tree = Tree::new(Some(0), vec![None, Some(2), Some(1), Some(9), Some(0)]);
        assert_eq!(tree.order(), [0, 4]);
    }

    #[test]
    fn the_busiest_children_come_first() {
        let tree = Tree::new(Some(0), vec![None, Some(0), Some(0), Some(2)]);
        assert_eq!(tree.children(0), [2, 1]);
    }
}
