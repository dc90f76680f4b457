//! The random mesh: a random graph, and the rarest piece within a window first. Does not own what carries pieces.

use modelpack::layout::PieceIndex;

use super::Policy;
use super::fleet::Fleet;
use crate::options::Options;

/// Links of a node, on average: as many as Kraken's and the product's peers have.
const DEGREE: u32 = 10;
/// Of so many of its first missing pieces a node takes the rarest.
const WINDOW: usize = 32;
/// Pieces that come to a node at once, at most: a few, so that one slow sender does not hold it up.
const COMING_MAX: u32 = 4;

/// A node whose card is free gives the neighbour that gets the least what it lacks most. The origin gives only
/// what no peer has, as its budget wants. Who loses a neighbour has one less.
#[derive(Debug)]
pub(super) struct Mesh {
    neighbours: Vec<Vec<u32>>,
    dice: Dice,
}

impl Mesh {
    pub(super) fn new(options: &Options) -> Self {
        let nodes = u32::try_from(options.nodes + 1).expect("few nodes");
        let mut dice = Dice(options.seed);
        let mut linked = vec![std::collections::BTreeSet::new(); nodes as usize];
        for node in 0..nodes {
            // Each draws half of its links; the other half is drawn by others.
            let mut others: Vec<u32> = (0..nodes).filter(|other| *other != node).collect();
            others.sort_by_cached_key(|_| dice.roll());
            others.truncate(if nodes <= DEGREE + 1 { nodes as usize } else { (DEGREE / 2) as usize });
            for other in others {
                linked[node as usize].insert(other);
                linked[other as usize].insert(node);
            }
        }
        Self { neighbours: linked.into_iter().map(|links| links.into_iter().collect()).collect(), dice }
    }

    /// The rarest piece in the window of `to` that `from` may give.
    fn rarest(&mut self, from: u32, to: u32, fleet: &Fleet) -> Option<u32> {
        let is_origin = from == fleet.origin();
        let missing = (fleet.prefix(to)..fleet.pieces()).filter(|piece| !fleet.holds(to, *piece));
        let fit = missing.take(WINDOW).filter(|piece| {
            fleet.wants(to, *piece) && fleet.holds(from, *piece) && !(is_origin && fleet.is_known(*piece))
        });
        let (neighbours, dice) = (&self.neighbours[to as usize], &mut self.dice);
        fit.min_by_key(|piece| {
            let holds = |node: &&u32| fleet.is_there(**node) && fleet.holds(**node, *piece);
            (neighbours.iter().filter(holds).count(), dice.roll())
        })
    }
}

impl Policy for Mesh {
    fn next(&mut self, from: u32, fleet: &Fleet) -> Option<(u32, PieceIndex)> {
        let mut takers: Vec<(u32, u64, u32)> = self.neighbours[from as usize]
            .iter()
            .filter(|to| **to != fleet.origin() && fleet.is_there(**to) && fleet.coming(**to) < COMING_MAX)
            .map(|to| (fleet.coming(*to), self.dice.roll(), *to))
            .collect();
        takers.sort_unstable();
        takers.into_iter().find_map(|(_, _, to)| Some((to, PieceIndex(self.rarest(from, to, fleet)?))))
    }

    fn changed(&mut self, _: &Fleet) {}
}

/// Splitmix64.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}
