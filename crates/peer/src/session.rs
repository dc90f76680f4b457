//! The stream to the scheduler: made, kept and made again for as long as the peer lives.
//!
//! Owns: what travels on it. Does not own: which scheduler it leads to (`keeper`), or what is said again after a
//! reconnection: the node does, which knows what it wants and has.

mod keeper;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use identity::Security;
use modelpack::layout::{PieceIndex, Run};
use planner::{ArtifactId, Measured, PeerId, PeerPlan, Place, Priority};
use tokio::{
    sync::mpsc::{self, UnboundedSender, error::TrySendError},
    task::JoinHandle,
};
use tonic::transport::Channel;
use wire::{
    connection::RUNS_PER_MESSAGE_MAX,
    control::{self, PeerToScheduler, peer_to_scheduler::Kind as Said},
    convert, measured,
    schedulers::Schedulers,
};

use self::keeper::Keeper;
use crate::have_feed::Coming;

/// Messages that wait for the network, at most. A node says a few a second; when this many wait the stream is worth
/// nothing any more, and a new one begins with the whole state instead of its history.
const OUTGOING_MAX: usize = 1024;

/// Who this peer is, and where its scheduler is.
#[derive(Clone, Debug)]
pub(crate) struct SessionOptions {
    /// Where schedulers are.
    pub(crate) schedulers: Schedulers,
    /// This peer.
    pub(crate) me: PeerId,
    /// HOST:PORT of its control service, as others reach it.
    pub(crate) control_address: String,
    /// Its name for people.
    pub(crate) name: String,
    /// What its network card does in each direction, in bytes per second, if known.
    pub(crate) nic_rate: Option<u64>,
    /// Where it stands.
    pub(crate) place: Place,
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
        /// HOST:PORT of it.
        scheduler: String,
    },
    /// The part of this peer in the plan of one swarm.
    Plan(ArtifactId, PeerPlan),
    /// There is no scheduler. Said once a loss, and once if there was none at the start.
    Lost {
        /// Why.
        reason: String,
        /// What may be done about it.
        hint: Option<&'static str>,
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
        /// How urgent it is to those who wait for it here.
        priority: Priority,
        /// Whether this peer announces a local artifact.
        is_seed: bool,
        /// How often its pieces did not add up to the manifest's digest.
        round: u32,
        /// The proved pieces, ascending and apart.
        have: Vec<Run>,
        /// What it reads from the origin by its last plan.
        coming: Coming,
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
        /// What it has found out about its card.
        measured: Measured,
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
    /// Nothing comes from a parent for now.
    Stall {
        /// The artifact.
        artifact: ArtifactId,
        /// That peer.
        about: PeerId,
    },
    /// A peer gives nothing of what it announces.
    Silence {
        /// The artifact.
        artifact: ArtifactId,
        /// That peer.
        about: PeerId,
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
        let keeper = Keeper::new(options, events, outgoing.clone());
        Self { outgoing, task: tokio::spawn(keeper.run()) }
    }

    /// The connection to the scheduler that it is at, and where that is.
    pub(crate) fn scheduler(&self) -> Option<(Channel, String)> {
        self.outgoing.scheduler()
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
struct Outgoing(Arc<Mutex<Option<Open>>>);

/// A stream that is open.
#[derive(Debug)]
struct Open {
    sender: mpsc::Sender<PeerToScheduler>,
    channel: Channel,
    address: String,
}

impl Outgoing {
    fn set(&self, open: Option<Open>) {
        *self.lock() = open;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scheduler(&self) -> Option<(Channel, String)> {
        self.lock().as_ref().map(|open| (open.channel.clone(), open.address.clone()))
    }

    /// What does not fit ends the stream: the scheduler would be wrong about this peer from then on.
    fn send(&self, kind: Said) {
        let mut open = self.lock();
        let message = PeerToScheduler { kind: Some(kind) };
        if let Some(stream) = &*open
            && let Err(TrySendError::Full(_)) = stream.sender.try_send(message)
        {
            *open = None;
        }
    }
}

/// A command as it travels. Runs that do not fit one message follow in more.
fn messages(command: SessionCommand) -> Vec<Said> {
    match command {
        SessionCommand::Join {
            artifact,
            bytes,
            piece_count,
            origin_ok,
            priority,
            is_seed,
            round,
            mut have,
            coming,
        } => {
            let rest = have.split_off(have.len().min(RUNS_PER_MESSAGE_MAX));
            let join = control::Join {
                artifact: artifact.0.to_vec(),
                artifact_bytes: bytes,
                piece_count,
                origin_ok,
                seed: is_seed,
                have: convert::runs_message(&have),
                origin_in_flight: convert::runs_message(&coming.runs),
                epoch: coming.epoch,
                repair_round: round,
                priority: control::Priority::from(priority).into(),
            };
            [Said::Join(join)].into_iter().chain(have_messages(artifact, &rest)).collect()
        }
        SessionCommand::Have { artifact, runs } => have_messages(artifact, &runs).collect(),
        SessionCommand::Leave { artifact } => {
            vec![Said::Leave(control::Leave { artifact: artifact.0.to_vec() })]
        }
        SessionCommand::Load { sent, received, measured } => {
            vec![Said::Load(measured::load_message((sent, received), &measured))]
        }
        SessionCommand::Complaint { artifact, about, piece } => {
            vec![Said::Complaint(control::Complaint {
                artifact: artifact.0.to_vec(),
                about: about.bytes().to_vec(),
                piece: piece.0,
            })]
        }
        SessionCommand::Stall { artifact, about } => {
            let (artifact, about) = (artifact.0.to_vec(), about.bytes().to_vec());
            vec![Said::Stall(control::Stall { artifact, about })]
        }
        SessionCommand::Silence { artifact, about } => {
            let (artifact, about) = (artifact.0.to_vec(), about.bytes().to_vec());
            vec![Said::Silence(control::Silence { artifact, about })]
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
