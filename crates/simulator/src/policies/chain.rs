//! The chain: each node sends all pieces, in order, to the one after it. Does not own what carries them.

use modelpack::layout::PieceIndex;

use super::Policy;
use super::fleet::Fleet;

/// The order of nodes is that of their numbers, the origin first. The dead are skipped.
#[derive(Debug)]
pub(super) struct Chain;

impl Policy for Chain {
    fn next(&mut self, from: u32, fleet: &Fleet) -> Option<(u32, PieceIndex)> {
        let first = if from == fleet.origin() { 0 } else { from + 1 };
        let to = fleet.peers().find(|peer| *peer >= first).filter(|to| !fleet.is_leaving(from, *to))?;
        let mut pieces = fleet.prefix(to)..fleet.prefix(from);
        pieces.find(|piece| fleet.wants(to, *piece)).map(|piece| (to, PieceIndex(piece)))
    }

    fn changed(&mut self, _: &Fleet) {}
}
