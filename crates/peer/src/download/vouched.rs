//! Which of the pieces that a peer announces may be read from it. Does not own what a voucher proves (`vouching`).

use std::sync::Arc;

use identity::Voucher;
use modelpack::layout::{PieceIndex, Run, runs_of};
use planner::PeerId;

use super::{Download, Herald};

impl<H: Herald> Download<H> {
    /// What of announced pieces may be read from this peer: those that the manifest proves, and those that somebody
    /// vouches for in this round.
    pub(super) fn vouched(
        &mut self,
        peer: PeerId,
        runs: Vec<Run>,
        vouchers: Vec<(PieceIndex, Voucher)>,
    ) -> Vec<Run> {
        let Some(vouching) = self.ground.vouching.clone() else { return runs };
        for (piece, voucher) in vouchers {
            if voucher.round < vouching.round() || self.swarm.have().contains(piece) {
                continue;
            }
            // Many peers announce the same voucher; one copy of it is enough.
            let same = self.links.values().filter_map(|link| link.vouchers.get(&piece));
            let same = same.filter(|other| ***other == voucher).map(Arc::clone).next();
            if let Some(link) = self.links.get_mut(&peer) {
                link.vouchers.insert(piece, same.unwrap_or_else(|| Arc::new(voucher)));
            }
        }
        let Some(link) = self.links.get(&peer) else { return Vec::new() };
        let is_usable = |piece: &PieceIndex| {
            self.ground.vouching_for(*piece).is_none()
                || link.vouchers.contains_key(piece)
                || self.swarm.have().contains(*piece)
        };
        runs_of(runs.iter().flat_map(Run::pieces).filter(is_usable))
    }
}
