//! Those who serve children in one stripe: found by their numbers at once, since each link asks several times, and listed
//! in the order of those. Does not own who serves whom (`links`).

use super::Node;

/// A member that serves children in a stripe.
#[derive(Clone, Debug, Default)]
pub(super) struct Inner {
    depth: u32,
    pub(super) children: Vec<Node>,
    /// How many of those have no children themselves.
    pub(super) leaves: u32,
    /// What all of them cost.
    pub(super) load: u64,
    /// Whether it may have one more.
    pub(super) has_spare: bool,
}

impl Inner {
    /// How far it is from where its tree begins.
    pub(super) fn depth(&self) -> u32 {
        self.depth
    }
}

/// No place.
const NOWHERE: u32 = u32::MAX;

/// Places around the one where a member is thought to be in the list.
const NEAR: usize = 4;

/// All of them.
#[derive(Clone, Debug, Default)]
pub(super) struct Inners {
    /// By the number of a member: its place.
    places: Vec<u32>,
    by_place: Vec<Inner>,
    vacant: Vec<u32>,
    /// (member, depth), in order.
    listed: Vec<(Node, u32)>,
}

impl Inners {
    fn place(&self, node: Node) -> Option<usize> {
        self.places.get(node as usize).filter(|place| **place != NOWHERE).map(|place| *place as usize)
    }

    pub(super) fn contains(&self, node: Node) -> bool {
        self.place(node).is_some()
    }

    pub(super) fn get(&self, node: Node) -> Option<&Inner> {
        self.place(node).map(|place| &self.by_place[place])
    }

    pub(super) fn get_mut(&mut self, node: Node) -> Option<&mut Inner> {
        self.place(node).map(|place| &mut self.by_place[place])
    }

    pub(super) fn children(&self, node: Node) -> &[Node] {
        self.get(node).map_or(&[], |inner| &inner.children)
    }

    /// One that serves from now on, unless it does already.
    pub(super) fn insert(&mut self, node: Node, depth: u32) {
        if self.contains(node) {
            return;
        }
        let at = node as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, NOWHERE);
        }
        let place = self.vacant.pop().unwrap_or_else(|| {
            self.by_place.push(Inner::default());
            u32::try_from(self.by_place.len() - 1).expect("fewer than members")
        });
        self.places[at] = place;
        self.by_place[place as usize].depth = depth;
        self.listed.insert(self.rank(node), (node, depth));
    }

    pub(super) fn remove(&mut self, node: Node) -> Option<Inner> {
        let place = self.place(node)?;
        self.places[node as usize] = NOWHERE;
        self.vacant.push(u32::try_from(place).expect("it was one"));
        self.listed.remove(self.rank(node));
        Some(std::mem::take(&mut self.by_place[place]))
    }

    /// Gives the depth before.
    pub(super) fn set_depth(&mut self, node: Node, depth: u32) -> Option<u32> {
        let before = std::mem::replace(&mut self.get_mut(node)?.depth, depth);
        if before != depth {
            let rank = self.rank(node);
            self.listed[rank].1 = depth;
        }
        Some(before)
    }

    /// How many of them have lower numbers. Mostly that is about where it is if all are spread evenly.
    pub(super) fn rank(&self, node: Node) -> usize {
        let is_before = |at: usize| self.listed[at].0 < node;
        let (len, all) = (self.listed.len(), self.places.len().max(1));
        let guess = len * (node as usize).min(all) / all;
        let (from, to) = (guess.saturating_sub(NEAR), (guess + NEAR).min(len));
        if (from == 0 || is_before(from - 1)) && (to == len || !is_before(to)) {
            return from + self.listed[from..to].partition_point(|(other, _)| *other < node);
        }
        self.listed.partition_point(|(other, _)| *other < node)
    }

    /// (member, depth), in the order of their numbers.
    pub(super) fn listed(&self) -> &[(Node, u32)] {
        &self.listed
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        self.listed.iter().map(|(node, _)| *node)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn they_are_found_and_listed_as_in_a_map(steps in vec((0_u32..200, 0_u32..9, 0..3), 1..300)) {
            let (mut inners, mut map) = (Inners::default(), BTreeMap::new());
            for (node, depth, what) in steps {
                match what {
                    0 => {
                        inners.insert(node, depth);
                        map.entry(node).or_insert(depth);
                    }
                    1 => prop_assert_eq!(inners.remove(node).map(|inner| inner.depth()), map.remove(&node)),
                    _ => {
                        let before = map.get_mut(&node).map(|at| std::mem::replace(at, depth));
                        prop_assert_eq!(inners.set_depth(node, depth), before);
                    }
                }
                prop_assert_eq!(inners.listed(), map.iter().map(|(at, depth)| (*at, *depth)).collect::<Vec<_>>());
                for at in 0..210 {
                    prop_assert_eq!(inners.rank(at), map.range(..at).count());
                    prop_assert_eq!(inners.get(at).map(Inner::depth), map.get(&at).copied());
                }
            }
        }
    }
}
