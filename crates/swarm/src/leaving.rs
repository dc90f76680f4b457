//! Links whose other end leaves: no new read, but those that are out may end. Does not own when a read is late.

use std::collections::BTreeSet;

use planner::{PeerId, StripeSource};

use crate::io::Output;
use crate::link::{Link, LinkState};
use crate::swarm::Swarm;

impl Swarm {
    /// The other end serves what is posted, and then nothing more. What it announced is no longer counted on.
    pub(crate) fn link_leaving(&mut self, peer: PeerId) {
        if let Some(link) = self.links.get_mut(&peer).filter(|link| link.is_up()) {
            link.state = LinkState::Leaving;
            self.edges.are_stale = true;
        }
    }

    /// A link has broken: whoever is at the other end is not known to be gone.
    pub(crate) fn link_broken(&mut self, peer: PeerId) {
        self.abandon_link(peer);
        self.edges.are_stale = true;
        if let Some(link) =
            self.links.get_mut(&peer).filter(|link| !matches!(link.state, LinkState::Down { .. }))
        {
            link.broken(self.now);
        }
    }

    /// Closes links that were good and that no plan names any more: each costs both ends a message for every few pieces.
    pub(crate) fn leave_unplanned(&mut self) {
        let mut planned: BTreeSet<PeerId> = self.seeds.clone();
        for stripe in self.stripes.all() {
            planned.extend(stripe.backups.iter().copied());
            planned.extend(
                stripe.handover.iter().flat_map(|handover| &handover.before).map(|before| before.peer),
            );
            if let StripeSource::Parent(parent) = stripe.source {
                planned.insert(parent);
            }
        }
        let is_left = |peer: &PeerId, link: &Link| {
            let is_good = link.is_usable() || link.state == LinkState::Connecting;
            is_good && link.failures == 0 && link.reads.is_empty() && !planned.contains(peer)
        };
        let left: Vec<PeerId> =
            self.links.iter().filter(|(peer, link)| is_left(peer, link)).map(|(peer, _)| *peer).collect();
        for peer in left {
            self.links.remove(&peer);
            self.outputs.push_back(Output::Disconnect { peer });
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
