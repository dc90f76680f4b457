//! By which rates a download reads from a peer. Does not own where rates come from.

use std::{sync::Arc, time::Instant};

use planner::PeerId;
use transport::Pacer;

use super::{Download, Herald};
use crate::lanes::Direction;

/// What a read waits for before it is posted: nobody else can hold back what a card reads by itself.
pub(super) struct Pace {
    /// This process's limit, if it has one.
    own: Option<Arc<Pacer>>,
    /// What more urgent artifacts leave, if there are any.
    lane: Option<Arc<Pacer>>,
    /// The parent's grant, if that has one.
    granted: Option<Arc<Pacer>>,
}

impl Pace {
    /// Whether there is nothing to wait for.
    pub(super) fn is_free(&self) -> bool {
        self.own.is_none() && self.lane.is_none() && self.granted.is_none()
    }

    /// Waits until so many bytes may be read; says whether that is in time, and if not, at once.
    pub(super) async fn take_by(&self, deadline: Instant, bytes: u64) -> bool {
        for pacer in self.granted.iter().chain(&self.lane).chain(&self.own) {
            if !pacer.take_by(deadline.into(), bytes).await {
                return false;
            }
        }
        true
    }
}

impl<H: Herald> Download<H> {
    /// By which rates that peer is read.
    pub(super) fn pace_of(&self, peer: PeerId) -> Pace {
        let own = self.ground.means.transports.limit().map(|limit| Arc::clone(limit.received()));
        let granted = self.links.get(&peer).and_then(|link| link.granted.as_ref());
        let lane = self.herald.traffic().and_then(|traffic| traffic.pacer(Direction::Received));
        Pace { own, lane, granted: granted.and_then(|granted| granted.pacer.clone()) }
    }
}
