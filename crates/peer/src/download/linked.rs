//! The links of a download: opening them, and what is heard on them. Does not own reads over them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use planner::PeerId;
use swarm::Input;

use super::{Download, Event, Herald, OpenLink};
use crate::{
    have_feed::Coming,
    links::{LinkEvent, LinkRequest, open_link},
    metrics::LinkCount,
};

/// How often it is looked for reads that wait for this process: some times within what a silence takes.
const EXCUSE_INTERVAL: Duration = Duration::from_millis(100);

impl<H: Herald> Download<H> {
    /// Of whom nothing is asked, nobody is silent: what is missing waits for a buffer, a thread or a disk of this process.
    pub(super) fn excuse_unasked(&mut self) {
        if self.excused.elapsed() < EXCUSE_INTERVAL {
            return;
        }
        self.excused = Instant::now();
        let asked = self.transfers.values().filter(|transfer| transfer.right.is_some());
        let asked: BTreeSet<PeerId> = asked.map(|transfer| transfer.peer).collect();
        for peer in self.links.keys().filter(|peer| !asked.contains(*peer)) {
            self.inputs.push_front(Input::Progress { peer: *peer });
        }
    }

    pub(super) fn connect(&mut self, peer: PeerId, address: String) {
        self.last_generation += 1;
        let generation = self.last_generation;
        let artifact = self.ground.artifact.id();
        let layout = self.ground.artifact.layout().clone();
        let (means, here) = (self.ground.means.clone(), self.swarm.have().clone());
        let metrics = Arc::clone(&self.ground.counters.metrics);
        let request =
            LinkRequest { me: self.me, peer, address, artifact, layout, here, generation, means, metrics };
        let events = self.events.clone();
        // A driver that is gone needs no answer.
        let sink = Arc::new(move |completion| {
            let _ = events.send(Event::Transferred(completion));
        });
        let handle = open_link(request, sink, self.link_events.clone());
        let (counted, vouchers) = (LinkCount::new(&self.ground.counters.metrics), BTreeMap::new());
        self.links.insert(peer, OpenLink { generation, granted: None, counted, vouchers, handle });
    }

    pub(super) fn link_event(&mut self, event: LinkEvent) {
        let is_current = |links: &BTreeMap<PeerId, OpenLink>, peer: &PeerId, generation: u64| {
            links.get(peer).is_some_and(|link| link.generation == generation)
        };
        match event {
            LinkEvent::Up { peer, generation, grant } if is_current(&self.links, &peer, generation) => {
                let in_flight_max = grant.in_flight_max;
                if let Some(reason) = &grant.fallback {
                    self.ground.counters.fell_back(reason.clone());
                }
                if let Some(link) = self.links.get_mut(&peer) {
                    link.counted.up(grant.link.level());
                    link.granted = Some(grant);
                }
                self.inputs.push_back(Input::LinkUp { peer, in_flight_max });
            }
            LinkEvent::Have { peer, generation, runs, vouchers }
                if is_current(&self.links, &peer, generation) =>
            {
                let runs = self.vouched(peer, runs, vouchers);
                self.inputs.push_back(Input::Have { peer, runs });
            }
            LinkEvent::Coming { peer, generation, coming } if is_current(&self.links, &peer, generation) => {
                let Coming { epoch, runs } = coming;
                // In a repair one peer alone reads the origin; what others read was begun before.
                let is_repair = self.ground.vouching.as_ref().is_some_and(|vouching| vouching.round() > 0);
                let runs = if is_repair { Vec::new() } else { runs };
                self.inputs.push_back(Input::Coming { peer, epoch, runs });
            }
            LinkEvent::Progress { peer, generation } if is_current(&self.links, &peer, generation) => {
                self.inputs.push_back(Input::Progress { peer });
            }
            LinkEvent::Leaving { peer, generation } if is_current(&self.links, &peer, generation) => {
                // What has no buffer yet goes elsewhere; what was posted ends by itself.
                if let Some(link) = self.links.get_mut(&peer) {
                    link.granted = None;
                }
                self.inputs.push_back(Input::LinkLeaving { peer });
            }
            LinkEvent::Moved { peer, generation, reason } if is_current(&self.links, &peer, generation) => {
                self.moved(peer, reason);
            }
            LinkEvent::Down { peer, generation, reason } if is_current(&self.links, &peer, generation) => {
                tracing::debug!(%peer, reason, "a link ended");
                self.links.remove(&peer);
                self.inputs.push_back(Input::LinkDown { peer });
            }
            // Of a link that was given up since.
            LinkEvent::Up { .. }
            | LinkEvent::Have { .. }
            | LinkEvent::Coming { .. }
            | LinkEvent::Progress { .. }
            | LinkEvent::Leaving { .. }
            | LinkEvent::Moved { .. }
            | LinkEvent::Down { .. } => {}
        }
    }
}
