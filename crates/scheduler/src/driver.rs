//! The event loop: the only owner of the planner. Does not own a connection, and never waits for one.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use planner::{Alarm, ArtifactId, Input, Output, PeerId, Planner, Standing};
use tokio::{
    sync::{mpsc::Receiver, oneshot},
    time::sleep_until,
};

use crate::outbox::Outbox;

/// Peers at a time. Ten thousand are the design's aim; more than this is not a fleet but a fault.
const PEERS_MAX: usize = 32_768;

/// Events taken at once before plans are sent: a plan made in between is replaced anyway.
const BATCH_MAX: usize = 256;

/// Members named to somebody who asks for an artifact: enough that one of them answers.
const HOLDERS_MAX: usize = 8;

/// The number of a stream. A peer that connects again has another one.
pub(crate) type StreamId = u64;

/// What streams tell the event loop.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer said hello.
    Opened {
        stream: StreamId,
        peer: PeerId,
        /// [`Input::Register`].
        register: Input,
        outbox: Arc<Outbox>,
    },
    /// A peer said something else.
    Said { stream: StreamId, peer: PeerId, input: Input },
    /// Somebody wants to know who can describe an artifact.
    Asked { artifact: ArtifactId, reply: oneshot::Sender<Vec<String>> },
    /// A stream that was opened has ended.
    Ended { stream: StreamId, peer: PeerId },
}

/// The present stream of one peer.
struct Live {
    stream: StreamId,
    name: String,
    outbox: Arc<Outbox>,
}

/// The planner and the peers that it plans for.
pub(crate) struct Driver {
    start: Instant,
    planner: Planner,
    live: BTreeMap<PeerId, Live>,
}

impl Driver {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), planner: Planner::new(), live: BTreeMap::new() }
    }

    /// Until nobody can send events any more.
    pub(crate) async fn run(mut self, mut events: Receiver<Event>) {
        let mut batch = Vec::new();
        loop {
            let wake = self.planner.next_wake().map(|at| self.start + at);
            let woken = async {
                match wake {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = events.recv_many(&mut batch, BATCH_MAX) => if count == 0 { return },
                () = woken => self.tell(Input::Tick),
            }
            let begin = Instant::now();
            for event in batch.drain(..) {
                self.handle(event);
            }
            self.deliver(begin);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Opened { stream, peer, register, outbox } => self.open(stream, peer, register, outbox),
            Event::Said { stream, peer, input } => {
                let Some(live) = self.live.get(&peer).filter(|live| live.stream == stream) else { return };
                match &input {
                    Input::Join { artifact, bytes, origin_ok, is_seed, .. } => {
                        tracing::info!(%peer, name = live.name, %artifact, bytes, origin_ok, is_seed, "joined");
                    }
                    Input::Leave { artifact, .. } => {
                        live.outbox.forget(artifact);
                        tracing::info!(%peer, name = live.name, %artifact, "left");
                    }
                    Input::Complaint { about, artifact, piece, .. } => {
                        tracing::warn!(%peer, %about, %artifact, piece, "wrong bytes");
                    }
                    _ => {}
                }
                self.tell(input);
            }
            Event::Asked { artifact, reply } => {
                // Whoever asked may have given up.
                let _ = reply.send(self.planner.holders(&artifact, HOLDERS_MAX));
            }
            Event::Ended { stream, peer } => {
                // A newer stream of the same peer is not touched by the end of an older one.
                if self.live.get(&peer).is_some_and(|live| live.stream == stream)
                    && let Some(live) = self.live.remove(&peer)
                {
                    tracing::info!(%peer, name = live.name, peers = self.live.len(), "gone");
                    self.tell(Input::Gone { peer });
                }
            }
        }
    }

    fn open(&mut self, stream: StreamId, peer: PeerId, register: Input, outbox: Arc<Outbox>) {
        let Input::Register { name, address, .. } = &register else { return };
        if self.live.len() >= PEERS_MAX && !self.live.contains_key(&peer) {
            outbox.close(Some(format!("the scheduler has {PEERS_MAX} peers already")));
            return;
        }
        let live = Live { stream, name: name.clone(), outbox };
        tracing::info!(%peer, name, address, peers = self.live.len() + 1, "connected");
        if let Some(older) = self.live.insert(peer, live) {
            older.outbox.close(Some("a newer stream of the same peer took its place".to_owned()));
            // The newer stream tells everything again.
            self.tell(Input::Gone { peer });
        }
        self.tell(register);
    }

    fn tell(&mut self, input: Input) {
        self.planner.handle(self.start.elapsed(), input);
    }

    fn deliver(&mut self, begin: Instant) {
        let mut counts = BTreeMap::new();
        while let Some(output) = self.planner.poll() {
            let Output::Plan { to, artifact, plan } = output else {
                if let Output::Standing(alarm) = output {
                    warn_of(&alarm);
                }
                continue;
            };
            if let Some(live) = self.live.get(&to) {
                let (members, epoch) = counts.entry(artifact).or_insert((0_usize, 0));
                (*members, *epoch) = (*members + 1, plan.epoch);
                live.outbox.put(artifact, plan);
            }
        }
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        for (artifact, (plans, epoch)) in counts {
            tracing::info!(%artifact, epoch, plans, ms, "planned");
        }
    }
}

/// Says who it is that an operator has to look at.
fn warn_of(alarm: &Alarm) {
    let Alarm { peer, name, address, standing, accusers, .. } = alarm;
    let what = match standing {
        Standing::Good => "a peer is trusted again",
        Standing::Suspect => "a peer is suspected of sending wrong bytes: it is read from last",
        Standing::Quarantined => "a peer is quarantined for sending wrong bytes: nobody is sent to it",
    };
    tracing::warn!(%peer, name, address, accusers, "{what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_older_stream_does_not_end_the_newer() {
        let peer = PeerId::new([1; 16]);
        let outboxes = [Outbox::new(), Outbox::new()];
        let mut driver = Driver::new();
        for (stream, outbox) in (0..).zip(&outboxes) {
            let (name, address) = (String::new(), "host:1".to_owned());
            let host = planner::HostAddr::new(std::net::Ipv4Addr::LOCALHOST.into());
            let register = Input::Register { peer, address, name, nic_rate: None, host };
            driver.handle(Event::Opened { stream, peer, register, outbox: Arc::clone(outbox) });
        }
        driver.handle(Event::Ended { stream: 0, peer });
        assert!(driver.planner.load(peer).is_some(), "the planner knows the peer");
        let load = |sent| Input::Load { peer, sent, received: 0 };
        driver.handle(Event::Said { stream: 1, peer, input: load(5) });
        driver.handle(Event::Said { stream: 0, peer, input: load(6) });
        assert_eq!(driver.planner.load(peer), Some((5, 0)), "the older stream says nothing any more");
        driver.handle(Event::Ended { stream: 1, peer });
        assert_eq!(driver.planner.load(peer), None);
    }
}
