//! Links whose other end leaves: no new read, but those that are out may end. Does not own when a read is late.

use planner::PeerId;

use crate::io::Output;
use crate::link::LinkState;
use crate::swarm::Swarm;

impl Swarm {
    /// The other end serves what is posted, and then nothing more. What it announced is no longer counted on.
    pub(crate) fn link_leaving(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer).filter(|link| link.is_up()) {
            link.state = LinkState::Leaving;
        }
    }

    /// Closes those on which nothing is out any more that is not read elsewhere: the other end waits for it.
    pub(crate) fn close_left(&mut self) {
        let is_live = |id| self.reads.get(id).is_some_and(|read| read.is_live);
        let left = self.links.iter().filter(|(_, link)| {
            link.state == LinkState::Leaving && !link.reads.iter().any(|id| is_live(*id))
        });
        let left: Vec<PeerId> = left.map(|(peer, _)| *peer).collect();
        for peer in left {
            self.outputs.push_back(Output::Disconnect { peer });
            self.link_down(peer);
        }
    }
}
