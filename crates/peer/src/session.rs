//! The stream to the scheduler: made, kept and made again for as long as the peer lives.
//!
//! Owns: hello and welcome, back-off, and what travels while it is connected. Does not own: what is said again after a
//! reconnection: the node does, which knows what it wants and has.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use identity::Security;
use modelpack::layout::{PieceIndex, Run};
use planner::{ArtifactId, PeerId, PeerPlan};
use tokio::{
    sync::mpsc::{self, UnboundedSender, error::TrySendError},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use wire::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::{CONNECT_TIMEOUT, MESSAGE_BYTES_MAX, RUNS_PER_MESSAGE_MAX, dial, explain, reason},
    control::{
        self, PeerHello, PeerToScheduler, SchedulerToPeer, SchedulerWelcome, peer_to_scheduler::Kind as Said,
        scheduler_client::SchedulerClient, scheduler_to_peer::Kind as Heard,
    },
    convert,
};

/// Messages that wait for the network, at most. A node says a few a second; when this many wait the stream is worth
/// nothing any more, and a new one begins with the whole state instead of its history.
const OUTGOING_MAX: usize = 1024;

/// First wait after a loss: a scheduler that restarts is back within seconds, and 10,000 peers must not storm it.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest wait, and how long a connection must have lived to begin at the shortest again.
const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Wait after a refusal: only an operator changes its cause.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// Shortest and longest interval that a scheduler may ask for.
const LOAD_INTERVAL_MS: (u32, u32) = (10, 60_000);

/// Who this peer is, and where its scheduler is.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    /// `http://HOST:PORT`.
    pub(crate) scheduler: String,
    /// This peer.
    pub(crate) me: PeerId,
    /// HOST:PORT of its control service, as others reach it.
    pub(crate) control_address: String,
    /// Its name for people.
    pub(crate) name: String,
    /// What its network card does in each direction, in bytes per second, if known.
    pub(crate) nic_rate: Option<u64>,
    /// How the stream is secured.
    pub(crate) security: Security,
}

/// What happens on the stream.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SessionEvent {
    /// The scheduler took this peer in, and knows nothing about it: say every join again.
    Connected {
        /// How often it wants a [`SessionCommand::Load`]; after five intervals of silence it drops the stream.
        load_interval: Duration,
    },
    /// The part of this peer in the plan of one swarm.
    Plan(ArtifactId, PeerPlan),
    /// There is no scheduler. Said once a loss, and once if there was none at the start.
    Lost {
        /// Why.
        reason: String,
    },
}

/// What the node tells the scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionCommand {
    /// It wants or offers an artifact.
    Join {
        /// The artifact.
        artifact: ArtifactId,
        /// Its size in bytes.
        bytes: u64,
        /// How many pieces it has.
        piece_count: u32,
        /// Whether this peer can read it at the origin.
        origin_ok: bool,
        /// Whether this peer announces a local artifact.
        is_seed: bool,
        /// How often its pieces did not add up to the manifest's digest.
        round: u32,
        /// The proved pieces, ascending and apart.
        have: Vec<Run>,
    },
    /// More pieces are proved; the runs are ascending and apart.
    Have {
        /// The artifact.
        artifact: ArtifactId,
        /// The pieces.
        runs: Vec<Run>,
    },
    /// It neither wants nor offers it any longer.
    Leave {
        /// The artifact.
        artifact: ArtifactId,
    },
    /// Its traffic, in bytes per second; also the heartbeat.
    Load {
        /// Sent.
        sent: u64,
        /// Received.
        received: u64,
    },
    /// A peer sent bytes that do not match the manifest.
    Complaint {
        /// The artifact.
        artifact: ArtifactId,
        /// That peer.
        about: PeerId,
        /// The piece.
        piece: PieceIndex,
    },
}

/// The stream to the scheduler. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Session {
    outgoing: Outgoing,
    task: JoinHandle<()>,
}

impl Session {
    /// Connects, and keeps connecting. Must be called within a tokio runtime.
    pub(crate) fn spawn(options: SessionOptions, events: UnboundedSender<SessionEvent>) -> Self {
        let outgoing = Outgoing::default();
        let keeper = Keeper { options, events, outgoing: outgoing.clone(), is_lost: false, since: None };
        Self { outgoing, task: tokio::spawn(keeper.run()) }
    }

    /// Says it if there is a scheduler; else nothing: [`SessionEvent::Connected`] asks for the whole state.
    pub(crate) fn send(&self, command: SessionCommand) {
        for message in messages(command) {
            self.outgoing.send(message);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The sending half of the stream, while there is one.
#[derive(Clone, Debug, Default)]
struct Outgoing(Arc<Mutex<Option<mpsc::Sender<PeerToScheduler>>>>);

impl Outgoing {
    fn set(&self, sender: Option<mpsc::Sender<PeerToScheduler>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = sender;
    }

    /// What does not fit ends the stream: the scheduler would be wrong about this peer from then on.
    fn send(&self, kind: Said) {
        let mut sender = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let message = PeerToScheduler { kind: Some(kind) };
        if let Some(open) = &*sender
            && let Err(TrySendError::Full(_)) = open.try_send(message)
        {
            *sender = None;
        }
    }
}

/// Why there is no stream (any more).
#[derive(Debug, thiserror::Error)]
enum Loss {
    #[error("cannot reach the scheduler: {}", explain(.0))]
    Connect(tonic::transport::Error),
    #[error("the scheduler did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("the stream to the scheduler failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    #[error("the scheduler ended the stream")]
    Ended,
    #[error("the scheduler refused this peer: {0}")]
    Refused(String),
    #[error("the scheduler closed the stream: {0}")]
    Closed(String),
    #[error("the scheduler sent a message that cannot be taken: {0}")]
    Message(WireError),
    #[error("the scheduler sent a message out of order")]
    Order,
}

impl From<Status> for Loss {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

impl Loss {
    /// Whether trying again soon is of no use.
    fn is_lasting(&self) -> bool {
        matches!(self, Self::Refused(_) | Self::Message(WireError::Version { .. }))
    }
}

/// A stream that the scheduler welcomed.
struct Welcomed {
    inbound: Streaming<SchedulerToPeer>,
    outgoing: mpsc::Sender<PeerToScheduler>,
    load_interval: Duration,
}

/// The task behind a [`Session`].
struct Keeper {
    options: SessionOptions,
    events: UnboundedSender<SessionEvent>,
    outgoing: Outgoing,
    /// Whether the node knows that there is no scheduler.
    is_lost: bool,
    /// When the present stream was welcomed.
    since: Option<Instant>,
}

impl Keeper {
    /// Until the node no longer listens.
    async fn run(mut self) {
        let mut attempt = 0;
        while !self.events.is_closed() {
            let loss = self.connect_once().await;
            self.outgoing.set(None);
            if !self.is_lost {
                self.is_lost = true;
                self.emit(SessionEvent::Lost { reason: loss.to_string() });
            }
            tracing::debug!(scheduler = self.options.scheduler, reason = %loss, "no stream to the scheduler");
            if self.since.take().is_some_and(|since| since.elapsed() >= BACKOFF_MAX) {
                attempt = 0;
            }
            sleep(if loss.is_lasting() { REFUSED_WAIT } else { backoff(self.options.me, attempt) }).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn connect_once(&mut self) -> Loss {
        let Welcomed { mut inbound, outgoing, load_interval } =
            match timeout(CONNECT_TIMEOUT, self.open()).await {
                Ok(Ok(welcomed)) => welcomed,
                Ok(Err(loss)) => return loss,
                Err(_) => return Loss::Timeout,
            };
        self.outgoing.set(Some(outgoing));
        self.since = Some(Instant::now());
        self.is_lost = false;
        self.emit(SessionEvent::Connected { load_interval });
        loop {
            match self.listen(&mut inbound).await {
                Ok((artifact, plan)) => self.emit(SessionEvent::Plan(artifact, plan)),
                Err(loss) => return loss,
            }
        }
    }

    async fn open(&self) -> Result<Welcomed, Loss> {
        let channel = dial(self.options.scheduler.clone(), &self.options.security);
        let channel = channel.await.map_err(Loss::Connect)?;
        let mut client = SchedulerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let hello = PeerToScheduler { kind: Some(Said::Hello(self.hello())) };
        outgoing.try_send(hello).expect("the channel is new");
        let mut inbound = client.session(ReceiverStream::new(messages)).await?.into_inner();
        let first = inbound.message().await?.ok_or(Loss::Ended)?;
        match first.kind {
            Some(Heard::Welcome(welcome)) => {
                let load_interval = check_welcome(&welcome).map_err(Loss::Message)?;
                Ok(Welcomed { inbound, outgoing, load_interval })
            }
            Some(Heard::Refusal(refusal)) => Err(Loss::Refused(reason(&refusal.reason))),
            _ => Err(Loss::Order),
        }
    }

    async fn listen(&self, inbound: &mut Streaming<SchedulerToPeer>) -> Result<(ArtifactId, PeerPlan), Loss> {
        loop {
            let message = inbound.message().await?.ok_or(Loss::Ended)?;
            match message.kind {
                Some(Heard::Plan(plan)) => return convert::plan(plan).map_err(Loss::Message),
                Some(Heard::Refusal(refusal)) => return Err(Loss::Closed(reason(&refusal.reason))),
                Some(Heard::Welcome(_)) => return Err(Loss::Order),
                // A kind of a later minor version.
                None => {}
            }
        }
    }

    fn hello(&self) -> PeerHello {
        PeerHello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: self.options.me.bytes().to_vec(),
            control_address: self.options.control_address.clone(),
            nic_bytes_per_second: self.options.nic_rate.unwrap_or(0),
            labels: std::iter::empty().collect(),
            name: self.options.name.clone(),
        }
    }

    /// A node that no longer listens is noticed by [`Self::run`].
    fn emit(&self, event: SessionEvent) {
        let _ = self.events.send(event);
    }
}

fn check_welcome(welcome: &SchedulerWelcome) -> Result<Duration, WireError> {
    check_version(welcome.protocol_version)?;
    let (min, max) = LOAD_INTERVAL_MS;
    if !(min..=max).contains(&welcome.load_interval_ms) {
        return Err(WireError::Invalid { field: "load_interval_ms", why: "not between 10 ms and 60 s" });
    }
    Ok(Duration::from_millis(welcome.load_interval_ms.into()))
}

/// Between half and all of a wait that doubles with each attempt. Which part, the peer's own random name says, so that
/// peers that lost the same scheduler do not come back in step.
fn backoff(me: PeerId, attempt: u32) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
    let bytes = me.bytes();
    let jitter = u32::from(bytes[attempt as usize % bytes.len()]);
    whole / 2 + whole / 2 * jitter / 255
}

/// A command as it travels. Runs that do not fit one message follow in more.
fn messages(command: SessionCommand) -> Vec<Said> {
    match command {
        SessionCommand::Join { artifact, bytes, piece_count, origin_ok, is_seed, round, mut have } => {
            let rest = have.split_off(have.len().min(RUNS_PER_MESSAGE_MAX));
            let join = control::Join {
                artifact: artifact.0.to_vec(),
                artifact_bytes: bytes,
                piece_count,
                origin_ok,
                seed: is_seed,
                have: convert::runs_message(&have),
                origin_in_flight: Vec::new(),
                repair_round: round,
            };
            [Said::Join(join)].into_iter().chain(have_messages(artifact, &rest)).collect()
        }
        SessionCommand::Have { artifact, runs } => have_messages(artifact, &runs).collect(),
        SessionCommand::Leave { artifact } => {
            vec![Said::Leave(control::Leave { artifact: artifact.0.to_vec() })]
        }
        SessionCommand::Load { sent, received } => {
            vec![Said::Load(control::Load {
                sent_bytes_per_second: sent,
                received_bytes_per_second: received,
            })]
        }
        SessionCommand::Complaint { artifact, about, piece } => {
            vec![Said::Complaint(control::Complaint {
                artifact: artifact.0.to_vec(),
                about: about.bytes().to_vec(),
                piece: piece.0,
            })]
        }
    }
}

fn have_messages(artifact: ArtifactId, runs: &[Run]) -> impl Iterator<Item = Said> {
    runs.chunks(RUNS_PER_MESSAGE_MAX).map(move |runs| {
        let added = convert::runs_message(runs);
        Said::Have(control::HaveUpdate { artifact: artifact.0.to_vec(), added })
    })
}

#[cfg(test)]
mod tests;
