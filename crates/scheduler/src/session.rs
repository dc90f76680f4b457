//! One peer's stream, as far as it is heard: hello, then messages, each checked and turned into a planner's input.
//!
//! Owns: the checks that need to know what this peer said before, and how long it may be silent. Does not own: what is
//! sent to it (`outbox`).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use planner::{ArtifactId, HostAddr, Input, PeerId, Progress};
use tokio::{
    sync::{mpsc::Sender, watch},
    time::timeout,
};
use tonic::{Status, Streaming};
use wire::{
    FEATURE_SCHEDULERS, WireError, check_version,
    connection::{CONNECT_TIMEOUT, explain},
    control::{self, PeerToScheduler, peer_to_scheduler::Kind},
    convert,
    measured::measured,
    priority,
};

use crate::{
    driver::{Event, StreamId},
    outbox::Outbox,
};

/// Artifacts that one peer is in the swarms of, at a time: more than any store holds models of a size worth a swarm.
const ARTIFACTS_MAX: usize = 1024;

/// Load intervals without any message after which a peer counts as gone. Long before, keep-alive ends the connection
/// of a machine that died; this finds a process that hangs.
const SILENT_INTERVALS: u32 = 5;

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum End {
    /// The peer is told so.
    #[error(transparent)]
    Message(#[from] WireError),
    /// The peer is told so.
    #[error("{0}")]
    Refused(&'static str),
    /// The peer is told so.
    #[error("nothing was heard for {} ms", .0.as_millis())]
    Silent(Duration),
    #[error("the stream failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    #[error("the peer ended it")]
    Ended,
    #[error("it was closed here")]
    Closed,
}

/// One peer's stream.
pub(crate) struct Session {
    pub(crate) stream: StreamId,
    /// Where it comes from.
    pub(crate) host: HostAddr,
    pub(crate) inbound: Streaming<PeerToScheduler>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) events: Sender<Event>,
    /// Its sender is dropped when the scheduler stops.
    pub(crate) stopped: watch::Receiver<()>,
    pub(crate) load_interval: Duration,
}

/// What one peer says of itself when it comes.
#[derive(Debug)]
pub(crate) struct Guest {
    /// [`Input::Register`].
    pub(crate) register: Input,
    /// Whether it understands a redirect.
    pub(crate) may_redirect: bool,
    /// Schedulers that it cannot reach.
    pub(crate) unreachable: Vec<String>,
}

impl Session {
    /// Hears the peer until one side ends the stream.
    pub(crate) async fn run(mut self) {
        let end = match self.open().await {
            Ok(peer) => {
                let end = match self.listen(peer).await {
                    Ok(never) => match never {},
                    Err(end) => end,
                };
                let ended = Event::Ended { stream: self.stream, peer };
                // It fails only when the scheduler has stopped, and nobody plans any more.
                let _ = self.events.send(ended).await;
                end
            }
            Err(end) => end,
        };
        tracing::debug!(stream = self.stream, reason = %end, "a stream ended");
        self.outbox.close(match end {
            End::Message(_) | End::Refused(_) | End::Silent(_) => Some(end.to_string()),
            End::Stream(_) | End::Ended | End::Closed => None,
        });
    }

    async fn open(&mut self) -> Result<PeerId, End> {
        let Some(Kind::Hello(hello)) = self.hear(CONNECT_TIMEOUT).await? else {
            return Err(End::Refused("the first message must be a hello"));
        };
        check_version(hello.protocol_version)?;
        let peer = convert::peer_id(&hello.peer_id)?;
        let rate = hello.nic_bytes_per_second;
        let register = Input::Register {
            peer,
            address: convert::address(hello.control_address)?,
            name: convert::name(hello.name)?,
            nic_rate: (rate > 0).then_some(rate),
            place: convert::place(hello.labels)?,
            host: self.host,
        };
        let guest = Guest {
            register,
            may_redirect: hello.features & FEATURE_SCHEDULERS != 0,
            unreachable: convert::unreachable(hello.unreachable)?,
        };
        let outbox = Arc::clone(&self.outbox);
        self.tell(Event::Opened { stream: self.stream, peer, guest, outbox }).await?;
        Ok(peer)
    }

    async fn listen(&mut self, peer: PeerId) -> Result<std::convert::Infallible, End> {
        let mut joined = Joined { peer, piece_counts: BTreeMap::new() };
        loop {
            let Some(kind) = self.hear(self.load_interval * SILENT_INTERVALS).await? else {
                // A kind of a later minor version.
                continue;
            };
            if let Some(input) = joined.input(kind)? {
                self.tell(Event::Said { stream: self.stream, peer, input }).await?;
            }
        }
    }

    async fn hear(&mut self, silence_max: Duration) -> Result<Option<Kind>, End> {
        tokio::select! {
            message = timeout(silence_max, self.inbound.message()) => {
                let message = message.map_err(|_| End::Silent(silence_max))?;
                let message = message.map_err(|status| End::Stream(Box::new(status)))?;
                Ok(message.ok_or(End::Ended)?.kind)
            }
            () = self.outbox.closed() => Err(End::Closed),
            // Ends only with an error, when the scheduler stops.
            _ = self.stopped.changed() => Err(End::Closed),
        }
    }

    async fn tell(&self, event: Event) -> Result<(), End> {
        self.events.send(event).await.map_err(|_| End::Closed)
    }
}

/// What a peer is in, as it said itself: later messages are about that.
struct Joined {
    peer: PeerId,
    piece_counts: BTreeMap<ArtifactId, u32>,
}

impl Joined {
    /// What a message tells the planner. What is about a swarm that the peer is not in tells nothing: it may have been
    /// on its way when the peer left.
    fn input(&mut self, kind: Kind) -> Result<Option<Input>, End> {
        let peer = self.peer;
        Ok(match kind {
            Kind::Hello(_) => return Err(End::Refused("a second hello")),
            Kind::Join(join) => Some(self.join(&join)?),
            Kind::Have(have) => {
                let artifact = convert::artifact_id(&have.artifact)?;
                let Some(piece_count) = self.piece_counts.get(&artifact) else { return Ok(None) };
                let runs = convert::runs(&have.added, *piece_count)?;
                Some(Input::Have { peer, artifact, runs })
            }
            Kind::Leave(leave) => {
                let artifact = convert::artifact_id(&leave.artifact)?;
                self.piece_counts.remove(&artifact).map(|_| Input::Leave { peer, artifact })
            }
            Kind::Load(load) => {
                let (sent, received) = (load.sent_bytes_per_second, load.received_bytes_per_second);
                Some(Input::Load { peer, sent, received, measured: measured(load)? })
            }
            Kind::Complaint(complaint) => {
                let artifact = convert::artifact_id(&complaint.artifact)?;
                let about = convert::peer_id(&complaint.about)?;
                let Some(piece_count) = self.piece_counts.get(&artifact) else { return Ok(None) };
                let piece = complaint.piece;
                if piece >= *piece_count {
                    return Err(
                        WireError::Invalid { field: "piece", why: "the artifact has no such piece" }.into()
                    );
                }
                Some(Input::Complaint { peer, artifact, about, piece })
            }
            Kind::Stall(stall) => {
                let artifact = convert::artifact_id(&stall.artifact)?;
                let about = convert::peer_id(&stall.about)?;
                self.piece_counts.get(&artifact).map(|_| Input::Stall { peer, artifact, about })
            }
            Kind::Silence(silence) => {
                let artifact = convert::artifact_id(&silence.artifact)?;
                let about = convert::peer_id(&silence.about)?;
                self.piece_counts.get(&artifact).map(|_| Input::Silence { peer, artifact, about })
            }
        })
    }

    fn join(&mut self, join: &control::Join) -> Result<Input, End> {
        let artifact = convert::artifact_id(&join.artifact)?;
        let piece_count = convert::piece_count(join.piece_count)?;
        let have = convert::runs(&join.have, piece_count)?;
        let origin_in_flight = convert::runs(&join.origin_in_flight, piece_count)?;
        if self.piece_counts.len() >= ARTIFACTS_MAX && !self.piece_counts.contains_key(&artifact) {
            return Err(End::Refused("the peer is in too many swarms"));
        }
        self.piece_counts.insert(artifact, piece_count);
        let (epoch, round, priority) = (join.epoch, join.repair_round, priority::of_number(join.priority));
        let progress = Progress { epoch, origin_in_flight, round, priority };
        Ok(Input::Join {
            peer: self.peer,
            artifact,
            bytes: join.artifact_bytes,
            piece_count,
            origin_ok: join.origin_ok,
            is_seed: join.seed,
            have,
            progress,
        })
    }
}
