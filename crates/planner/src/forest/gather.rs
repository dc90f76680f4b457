//! How loose members come to serve in few stripes, many children in each. Does not own who is loose (`links`, `shape`).
//!
//! A newcomer that finds no slot puts itself above one leaf of each stripe. Sixteen of those hang on one another by many
//! stripes at a time, and what one of them lacks, the next one lacks in all of them.

use super::{FEW, Forest, Node, STRIPES};

/// Loose members that are looked at.
const LOOKED_AT_MAX: usize = 32;

/// Exchanges after one step, at most; among more than [`MANY`] members fewer, as each has to be told to both.
const EXCHANGES_MAX: usize = 32;
const EXCHANGES_OF_MANY: usize = 4;
const MANY: u32 = 2048;

/// One that serves children, and how many in each stripe.
type Served = (Node, [u32; STRIPES]);

/// One gives a child of its stripe `from` to another, for one of `to`, if that one has nothing left.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    giver: usize,
    from: usize,
    taker: usize,
    to: Option<usize>,
}

impl Forest {
    /// Lets loose members of equal cards exchange children, until each serves in few stripes or enough of them moved. Among
    /// few members it would take more from those whose card turns out slow than it gives to all when none does.
    pub(super) fn gather(&mut self) {
        if self.children < FEW {
            return;
        }
        let most = if self.children > MANY { EXCHANGES_OF_MANY } else { EXCHANGES_MAX };
        let mut loose = self.gathered();
        let mut stuck = [0_u16; LOOKED_AT_MAX];
        for _ in 0..most {
            let Some((giver, from)) = fewest(&loose, &stuck) else { return };
            let exchange = self.best_exchange(&loose, (giver, from));
            if !exchange.is_some_and(|exchange| self.exchange(&mut loose, exchange)) {
                stuck[giver] |= 1 << from;
            }
        }
    }

    fn gathered(&self) -> Vec<Served> {
        let is_root = |node: Node| self.stripes.iter().any(|stripe| stripe.root == Some(node));
        let able = |node: &Node| !self.seats[*node as usize].is_herald && !is_root(*node);
        let served = |node: Node| {
            let mut counts = [0; STRIPES];
            for (count, stripe) in counts.iter_mut().zip(&self.stripes) {
                *count = u32::try_from(stripe.inner.children(node).len()).unwrap_or(u32::MAX);
            }
            (node, counts)
        };
        self.loose.iter().copied().filter(able).take(LOOKED_AT_MAX).map(served).collect()
    }

    /// What brings together the most: the sum of the squares of all counts grows by it.
    fn best_exchange(&self, loose: &[Served], (giver, from): (usize, usize)) -> Option<Exchange> {
        let (node, mine) = &loose[giver];
        let weight = self.weight(*node);
        let count = |counts: &[u32; STRIPES], at: usize| i64::from(counts[at]);
        let mut best: Option<(i64, Exchange)> = None;
        for (taker, (other, theirs)) in loose.iter().enumerate() {
            if taker == giver || theirs[from] == 0 || self.weight(*other) != weight {
                continue;
            }
            let gain = count(theirs, from) - count(mine, from) + 1;
            let to = if self.seats[*other as usize].spare() >= weight {
                Some((gain, None))
            } else {
                let back =
                    (0..self.stripes.len()).filter(|at| *at != from && theirs[*at] > 0 && mine[*at] > 0);
                let back = back.map(|at| (gain + count(mine, at) - count(theirs, at) + 1, at));
                back.max_by_key(|(gain, at)| (*gain, usize::MAX - at)).map(|(gain, at)| (gain, Some(at)))
            };
            if let Some((gain, to)) = to.filter(|(gain, _)| *gain > best.map_or(0, |(best, _)| best)) {
                best = Some((gain, Exchange { giver, from, taker, to }));
            }
        }
        best.map(|(_, exchange)| exchange)
    }

    /// Says whether there were children to exchange.
    fn exchange(&mut self, loose: &mut [Served], Exchange { giver, from, taker, to }: Exchange) -> bool {
        let (a, b) = (loose[giver].0, loose[taker].0);
        let Some(given) = self.child_for(from, (a, b)) else { return false };
        let back = to.map(|to| (to, self.child_for(to, (b, a))));
        if back.is_some_and(|(_, child)| child.is_none()) {
            return false;
        }
        self.unlink_kept(from, given);
        if let Some((to, Some(child))) = back {
            self.unlink_kept(to, child);
            self.link(to, a, child);
            (loose[giver].1[to], loose[taker].1[to]) = (loose[giver].1[to] + 1, loose[taker].1[to] - 1);
            self.demote_empty(to, b);
        }
        self.link(from, b, given);
        (loose[giver].1[from], loose[taker].1[from]) = (loose[giver].1[from] - 1, loose[taker].1[from] + 1);
        self.demote_empty(from, a);
        true
    }

    /// A child of one member in a stripe that may be another's, which is as fast: best one without children, and none
    /// that is a root elsewhere, as those are told much at each change. Nobody comes to hang under itself.
    fn child_for(&self, stripe: usize, (parent, to): (Node, Node)) -> Option<Node> {
        let at = &self.stripes[stripe];
        let weight = self.weight(to);
        let is_root = |node: Node| self.stripes.iter().any(|stripe| stripe.root == Some(node));
        let fits = |child: &Node| *child != to && self.weight(*child) == weight;
        let children = || at.inner.children(parent).iter().copied();
        let leaves = || children().filter(|child| fits(child) && !self.serves(stripe, *child));
        let leaf = leaves().find(|child| !is_root(*child)).or_else(|| leaves().next());
        leaf.or_else(|| children().find(|child| fits(child) && !self.is_under(stripe, to, *child)))
    }
}

/// Who serves the fewest children of a stripe, of those who serve in others, too.
fn fewest(loose: &[Served], stuck: &[u16; LOOKED_AT_MAX]) -> Option<(usize, usize)> {
    let of = |(giver, (_, counts)): (usize, &Served)| {
        let stripes = counts.iter().filter(|count| **count > 0).count();
        let is_free = move |at: &usize| counts[*at] > 0 && stuck[giver] >> at & 1 == 0;
        (0..STRIPES)
            .filter(is_free)
            .map(move |at| (counts[at], usize::MAX - stripes, giver, at))
            .filter(move |_| stripes > 1)
            .min()
    };
    loose.iter().enumerate().filter_map(of).min().map(|(_, _, giver, at)| (giver, at))
}
