//! Interior-disjoint trees: the plan that the product's planner makes at the start, and nothing else. Does not own the
//! plan (crate `planner`).

use modelpack::layout::PieceIndex;
use planner::StripeSource;

use super::Policy;
use super::fleet::Fleet;
use crate::options::{Fault, Options};
use crate::world::{first_plans, node_of};

/// A parent sends each piece that it holds to its children in the stripe, the lowest piece first, and of children first
/// those that have children. Children of the dead, and of those that have not come yet, go to the parent above.
#[derive(Debug)]
pub(super) struct Trees {
    /// The pieces of each stripe, ascending.
    stripes: Vec<Vec<u32>>,
    /// Parents by stripe and node; the origin is everybody's last ancestor.
    parents: Vec<Vec<u32>>,
    /// (stripe, child) by node.
    children: Vec<Vec<(u32, u32)>>,
}

impl Trees {
    pub(super) fn new(options: &Options) -> Self {
        // Who comes late has its place from the start.
        let mut planned = options.clone();
        planned.faults.retain(|fault| !matches!(fault, Fault::Late { .. }));
        let plans = first_plans(&planned);
        let first = plans.values().next().expect("nobody is without a plan");
        let mut stripes = vec![Vec::new(); first.stripes.len()];
        for piece in 0..options.pieces {
            stripes[first.stripe_of(PieceIndex(piece))].push(piece);
        }
        let origin = u32::try_from(options.nodes).expect("few nodes");
        let mut parents = vec![vec![origin; options.nodes]; stripes.len()];
        for (node, plan) in &plans {
            for (stripe, part) in plan.stripes.iter().enumerate() {
                if let StripeSource::Parent(parent) = part.source {
                    parents[stripe][*node as usize] = node_of(parent);
                }
            }
        }
        let mut all = Self { stripes, parents, children: vec![Vec::new(); options.nodes + 1] };
        all.turn_around(&(0..origin).collect::<Vec<_>>());
        all
    }

    /// Finds the children of everybody, of all the nodes that are there, ascending.
    fn turn_around(&mut self, peers: &[u32]) {
        self.children.iter_mut().for_each(Vec::clear);
        let origin = u32::try_from(self.children.len() - 1).expect("few nodes");
        for (stripe, parents) in (0..).zip(&self.parents) {
            let parent = |child: u32| {
                let mut above = parents[child as usize];
                while above != origin && peers.binary_search(&above).is_err() {
                    above = parents[above as usize];
                }
                above
            };
            let edges: Vec<(u32, u32)> = peers.iter().map(|child| (*child, parent(*child))).collect();
            let is_leaf = |child: u32| !edges.iter().any(|(_, parent)| *parent == child);
            let (leaves, interiors): (Vec<_>, Vec<_>) = edges.iter().partition(|(child, _)| is_leaf(*child));
            for (child, parent) in interiors.into_iter().chain(leaves) {
                self.children[parent as usize].push((stripe, child));
            }
        }
    }
}

impl Policy for Trees {
    fn next(&mut self, from: u32, fleet: &Fleet) -> Option<(u32, PieceIndex)> {
        let first = |&(stripe, child): &(u32, u32)| {
            let pieces = &self.stripes[stripe as usize];
            let begin = pieces.partition_point(|piece| *piece < fleet.prefix(child));
            let piece = pieces[begin..]
                .iter()
                .find(|piece| fleet.wants(child, **piece) && fleet.holds(from, **piece));
            piece.map(|piece| (child, PieceIndex(*piece)))
        };
        let children =
            self.children[from as usize].iter().filter(|(_, child)| !fleet.is_leaving(from, *child));
        children.filter_map(first).min_by_key(|(_, piece)| *piece)
    }

    fn changed(&mut self, fleet: &Fleet) {
        self.turn_around(&fleet.peers().collect::<Vec<_>>());
    }
}
