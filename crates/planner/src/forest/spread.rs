//! How a member comes to have several parents where it had one in many stripes. Does not own who serves (`links`, `gather`).
//!
//! Shares never divide evenly, so that one loose member serves what is left of several stripes, and it is the same child
//! that was left in many of them. It waits for the others in that card's queue at each burst, and is the last to be done.

use super::{Forest, Node};

/// Stripes that a member may have from one parent.
const PAIR_MAX: i64 = 3;

/// Exchanges after one step, at most: two are told of each.
const EXCHANGES_MAX: usize = 32;

/// In a stripe, two leaves change places.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    stripe: usize,
    one: Node,
    other: Node,
}

impl Forest {
    /// Lets leaves exchange their parents in a stripe while somebody has more than [`PAIR_MAX`] stripes from one loose
    /// member. What falls is the sum of the squares of what each has from each, so that it ends. It is for few members;
    /// among many [`Self::gather`] does as much.
    pub(super) fn spread(&mut self) {
        for _ in 0..EXCHANGES_MAX {
            let Some(Exchange { stripe, one, other }) = self.best_spread() else { return };
            let parents = (self.unlink_kept(stripe, one), self.unlink_kept(stripe, other));
            let (Some(of_one), Some(of_other)) = parents else { unreachable!("both are children") };
            self.link(stripe, of_other, one);
            self.link(stripe, of_one, other);
        }
    }

    /// Of all exchanges the one by which that sum falls most.
    fn best_spread(&self) -> Option<Exchange> {
        let mut best: Option<(i64, Exchange)> = None;
        for parent in self.loose.iter().filter(|node| !self.seats[**node as usize].is_herald) {
            for stripe in 0..self.stripes.len() {
                for one in self.leaves(stripe, *parent).filter(|one| self.pair(*parent, *one) > PAIR_MAX) {
                    for (growth, other) in self.exchanges(stripe, (*parent, one)) {
                        if growth < best.map_or(0, |(least, _)| least) {
                            best = Some((growth, Exchange { stripe, one, other }));
                        }
                    }
                }
            }
        }
        best.map(|(_, exchange)| exchange)
    }

    /// With which leaves that child of `parent` may change places, and by how much the sum grows then.
    fn exchanges(
        &self,
        stripe: usize,
        (parent, one): (Node, Node),
    ) -> impl Iterator<Item = (i64, Node)> + '_ {
        let others = self.stripes[stripe].inner.nodes().filter(move |node| *node != parent && *node != one);
        others.flat_map(move |from| {
            let fits = move |other: &Node| *other != parent && self.weight(*other) == self.weight(one);
            self.leaves(stripe, from).filter(fits).map(move |other| {
                let before = self.pair(parent, one) + self.pair(from, other);
                let after = self.pair(parent, other) + self.pair(from, one);
                // (a - 1)² + (b - 1)² + (c + 1)² + (d + 1)² - a² - b² - c² - d²
                (2 * (after - before) + 4, other)
            })
        })
    }

    fn leaves(&self, stripe: usize, parent: Node) -> impl Iterator<Item = Node> + '_ {
        let children = self.stripes[stripe].inner.children(parent).iter().copied();
        children.filter(move |child| !self.serves(stripe, *child))
    }

    /// How many stripes one has from the other.
    fn pair(&self, parent: Node, child: Node) -> i64 {
        self.seats[child as usize].parents.iter().fold(0, |count, at| count + i64::from(*at == parent))
    }
}
