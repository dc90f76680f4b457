//! What becomes of a peer that the swarm blames. Does not own when it does.

use modelpack::layout::PieceIndex;
use planner::PeerId;

use super::{Download, Herald};
use crate::blame::Blamed;

impl<H: Herald> Download<H> {
    pub(super) fn blame(&self, peer: PeerId, piece: PieceIndex) {
        tracing::warn!(%peer, %piece, "a peer sent wrong bytes and is not used any more");
        let artifact = &self.ground.artifact;
        let path = artifact.path_of(artifact.layout().span(piece).blob);
        let (peer_name, reason) = (self.members.name(&peer), format!("it sent wrong bytes of `{path}`"));
        self.ground.counters.blames.add(Blamed { peer: peer_name, reason });
        self.herald.complain(peer, piece);
    }
}
