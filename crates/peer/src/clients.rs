//! Clients on this machine: one conversation a connection.
//!
//! Owns: the order of frames, and that clients who want the same artifact share one transfer. Does not own: the
//! transfer itself, or anything a client names on disk: it hands out descriptors and opens no path.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use identity::Security;
use modelpack::{digest::Sha256Digest, reference::Reference};
use planner::ArtifactId;
use registry::{Access, Credentials, HubAccess, Mirror, Serves};
use store::Store;
use tokio::{
    net::UnixListener,
    sync::{Semaphore, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};
use wire::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    local::{
        Accepted, Blobs, ClientFrame, DaemonFrame, Done, FDS_MAX, Failure, Hello, LocalStream, Mirrored,
        Pull, client_frame::Kind as Said, daemon_frame::Kind as Told,
    },
    priority,
};

use crate::{
    artifact::Artifact,
    delta::Delta,
    error::{ErrorClass, HINT_VERSION, PeerError},
    fill::blocking,
    lookup::{self, lookup},
    node::Node,
    origin::Origin,
    progress::{Stage, transport_of},
    sinks::LandingMode,
    transfer::{Brought, Transfer},
};

/// Clients at once. Each holds a descriptor and at most one frame; more wait to be accepted.
const CLIENTS_MAX: usize = 256;

/// How often a client hears how far its pull is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// How long a client may take to say what it wants. A silent one would keep its place for ever.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client may take to read one frame, as one that is stopped (Ctrl-Z) does. While it lasts, what it pulls is
/// kept from being collected, and its place is taken; people come back within minutes, or not.
const READ_PATIENCE: Duration = Duration::from_mins(10);

/// How long accepting pauses after it failed: such failures (no descriptors left) pass only with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long clients of a peer that stops may take to hear it: one frame each, which only a client that does not read
/// takes longer for.
const GOODBYE: Duration = Duration::from_secs(1);

/// What all conversations share.
pub(crate) struct Clients {
    node: Arc<Node>,
    store: Arc<Store>,
    /// HOST:PORT of each, as pulls that land the bytes themselves are told.
    schedulers: Vec<String>,
    /// How bytes of other peers land in the store.
    landing: LandingMode,
    delta: Delta,
    transfers: Mutex<BTreeMap<ArtifactId, Weak<Transfer>>>,
    is_stopping: watch::Sender<bool>,
}

/// An artifact that a client may have: it has opened it with its own credentials.
pub(crate) struct Wanted {
    pub(crate) artifact: Arc<Artifact>,
    /// None if the artifact is with other peers only.
    pub(crate) origin: Option<Origin>,
    /// Under which it is to be found in the store, if it was named by more than its digest.
    pub(crate) name: Option<String>,
}

/// Why a conversation ended early.
enum Ended {
    /// The client went away, or does not speak the protocol.
    Gone(WireError),
    /// What it asked for failed; it is told.
    Failed(Arc<PeerError>),
}

impl From<WireError> for Ended {
    fn from(error: WireError) -> Self {
        Self::Gone(error)
    }
}

impl From<PeerError> for Ended {
    fn from(error: PeerError) -> Self {
        Self::Failed(Arc::new(error))
    }
}

impl Clients {
    pub(crate) fn new(
        node: Arc<Node>,
        store: Arc<Store>,
        schedulers: Vec<String>,
        (landing, delta): (LandingMode, Delta),
    ) -> Arc<Self> {
        let is_stopping = watch::Sender::new(false);
        Arc::new(Self { node, store, schedulers, landing, delta, transfers: Mutex::default(), is_stopping })
    }

    pub(crate) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Serves clients until `stopped`; those who still wait for something are told then.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener, stopped: impl Future<Output = ()>) {
        let places = Arc::new(Semaphore::new(CLIENTS_MAX));
        let mut conversations = JoinSet::new();
        tokio::pin!(stopped);
        loop {
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (listener.accept().await, place)
            };
            tokio::select! {
                () = &mut stopped => break,
                Some(_) = conversations.join_next() => {}
                (accepted, place) = accepted => match accepted {
                    Ok((socket, _)) => {
                        let clients = Arc::clone(&self);
                        conversations.spawn(async move {
                            clients.converse(LocalStream::new(socket)).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accepting a client failed");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        self.is_stopping.send_replace(true);
        let all = async { while conversations.join_next().await.is_some() {} };
        // Whoever is left is not waited for.
        let _ = tokio::time::timeout(GOODBYE, all).await;
        conversations.shutdown().await;
    }

    async fn converse(&self, mut stream: LocalStream) {
        let result = self.answer(&mut stream).await;
        let gone = match result {
            Ok(()) => return,
            Err(Ended::Failed(error)) => {
                tracing::info!(error = &*error as &dyn std::error::Error, "a client's pull failed");
                tell(&mut stream, Told::Failure(failure(&error))).await.err()
            }
            Err(Ended::Gone(WireError::Version { theirs, ours })) => {
                let message = format!("the local peer speaks protocol version {ours}, this client {theirs}");
                let hint = HINT_VERSION.to_owned();
                let failure = Failure { message, hint, exit_code: 1, ..Failure::default() };
                tell(&mut stream, Told::Failure(failure)).await.err()
            }
            Err(Ended::Gone(error)) => Some(error),
        };
        if let Some(error) = gone {
            tracing::debug!(error = &error as &dyn std::error::Error, "a client went away");
        }
    }

    async fn answer(&self, stream: &mut LocalStream) -> Result<(), Ended> {
        let mut is_stopping = self.is_stopping.subscribe();
        let (wanted, transfer, brought) = tokio::select! {
            brought = self.bring(stream) => brought?,
            // Its sender is this very value.
            _ = is_stopping.wait_for(|is_so| *is_so) => return Err(PeerError::Stopping.into()),
        };
        hand_over(stream, &brought.blobs).await?;
        if let Some(name) = wanted.name.clone() {
            self.keep_name(wanted.artifact.manifest.digest(), name).await;
        }
        let done = done(&transfer, &brought);
        // Before the client goes on: its next pull may need the room that this one's blobs take.
        drop((transfer, brought));
        tell(stream, Told::Done(done)).await?;
        Ok(())
    }

    /// Hears what a client wants, and brings it into the store.
    async fn bring(&self, stream: &mut LocalStream) -> Result<(Wanted, Arc<Transfer>, Arc<Brought>), Ended> {
        let Said::Hello(hello) = receive(stream).await? else {
            return Err(WireError::Invalid { field: "kind", why: "the first frame is a hello" }.into());
        };
        check_version(hello.protocol_version)?;
        let hello = Hello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            schedulers: self.schedulers.clone(),
            has_fleet_key: matches!(self.node.security().control, Security::Fleet(_)),
        };
        tell(stream, Told::Hello(hello)).await?;
        let Said::Pull(pull) = receive(stream).await? else {
            return Err(WireError::Invalid { field: "kind", why: "the second frame is a pull" }.into());
        };
        tracing::info!(reference = %pull.reference, "a client pulls");
        let priority = priority::of_number(pull.priority);
        let wanted = self.open(pull).await?;
        let artifact = &wanted.artifact;
        let _wish = self.node.wish(artifact.id(), priority);
        let (manifest, config) = (artifact.manifest.raw().to_vec(), artifact.config.clone());
        let index = artifact.index.clone().unwrap_or_default();
        tell(stream, Told::Accepted(Accepted { manifest, config, index })).await?;
        let (mut transfer, is_joined) = self.join(&wanted);
        let brought = match self.watch(stream, &transfer).await {
            // Whoever began it may have had credentials or an origin of less use than this client's own.
            Err(Ended::Failed(_)) if is_joined => {
                transfer = self.join(&wanted).0;
                self.watch(stream, &transfer).await?
            }
            brought => brought?,
        };
        Ok((wanted, transfer, brought))
    }

    async fn open(&self, pull: Pull) -> Result<Wanted, PeerError> {
        let refused = |reason| PeerError::Reference { reference: pull.reference.clone(), reason };
        let (origin, artifact, name) = match pull.reference.parse() {
            Ok(reference @ (Reference::Registry(_) | Reference::Hub(_))) => {
                let (origin, artifact) = lookup::open(&self.node, &reference, access_of(pull)).await?;
                let is_tag = match &reference {
                    Reference::Registry(at) => at.digest.is_none(),
                    _ => true,
                };
                (Some(origin), artifact, is_tag.then(|| reference.to_string()))
            }
            Ok(Reference::Fleet(digest)) => (None, lookup(&self.node, &digest).await?, None),
            Ok(Reference::Layout(_) | Reference::Directory(_)) | Err(_) => {
                return Err(refused("the local peer opens no path: pull with `--peer none`"));
            }
        };
        Ok(Wanted { artifact: Arc::new(artifact), origin, name })
    }

    /// A name that is not kept only means that whoever looks for it in the store has to say the digest.
    pub(crate) async fn keep_name(&self, digest: Sha256Digest, name: String) {
        let store = Arc::clone(&self.store);
        if let Err(error) = blocking(move || store.name(&digest, &name)).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "a name is not kept");
        }
    }

    /// The transfer of what a client wants: the one that is under way, or a new one. Says whether it was under way.
    pub(crate) fn join(&self, wanted: &Wanted) -> (Arc<Transfer>, bool) {
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        transfers.retain(|_, transfer| transfer.strong_count() > 0);
        let id = wanted.artifact.id();
        let running = transfers.get(&id).and_then(Weak::upgrade).filter(|running| !running.has_failed());
        if let Some(running) = running {
            return (running, true);
        }
        let wanted = (Arc::clone(&wanted.artifact), wanted.origin.clone());
        let started = Transfer::start(&self.node, &self.store, wanted, (self.landing, self.delta));
        transfers.insert(id, Arc::downgrade(&started));
        (started, false)
    }

    /// Tells the client how far the transfer is until it has ended. A client that goes away ends it for itself.
    async fn watch(&self, stream: &mut LocalStream, transfer: &Transfer) -> Result<Arc<Brought>, Ended> {
        let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let ended = transfer.ended();
        tokio::pin!(ended);
        loop {
            tokio::select! {
                result = &mut ended => return result.map_err(Ended::Failed),
                _ = ticks.tick() => {
                    tell(stream, Told::Progress(transfer.counters.progress().into())).await?;
                }
                frame = stream.recv::<ClientFrame>() => {
                    frame?;
                    let why = "the client went away or said more than it may";
                    return Err(WireError::Invalid { field: "kind", why }.into());
                }
            }
        }
    }
}

async fn receive(stream: &mut LocalStream) -> Result<Said, WireError> {
    let frame = tokio::time::timeout(REQUEST_TIMEOUT, stream.recv::<ClientFrame>()).await;
    let frame = frame.map_err(|_| WireError::Io(std::io::ErrorKind::TimedOut.into()))??;
    let (frame, _descriptors) =
        frame.ok_or_else(|| WireError::Io(std::io::ErrorKind::UnexpectedEof.into()))?;
    frame.kind.ok_or(WireError::Invalid { field: "kind", why: "a frame of an unknown kind" })
}

/// Gives the client read-only descriptors of all blobs, in batches that one message can carry.
async fn hand_over(stream: &mut LocalStream, blobs: &[impl AsFd]) -> Result<(), WireError> {
    let numbers: Vec<u32> = (0..).take(blobs.len()).collect();
    for (numbers, files) in numbers.chunks(FDS_MAX).zip(blobs.chunks(FDS_MAX)) {
        let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        tell_with(stream, Told::Blobs(Blobs { blobs: numbers.to_vec() }), &descriptors).await?;
    }
    Ok(())
}

async fn tell(stream: &mut LocalStream, kind: Told) -> Result<(), WireError> {
    tell_with(stream, kind, &[]).await
}

/// Sends one frame. A client that does not read it within [`READ_PATIENCE`] counts as gone.
async fn tell_with(stream: &mut LocalStream, kind: Told, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
    let frame = DaemonFrame { kind: Some(kind) };
    let sent = tokio::time::timeout(READ_PATIENCE, stream.send_with_fds(&frame, fds)).await;
    sent.map_err(|_| WireError::Io(std::io::ErrorKind::TimedOut.into()))?
}

/// How the client's registry is reached. The request is used up: nothing of it is kept.
fn access_of(pull: Pull) -> Access {
    let Pull { plain_http, username, password, ca_certificates_pem, client_certificate_pem, mirrors, .. } =
        pull;
    let hub = HubAccess::default();
    let hub = HubAccess {
        endpoint: Some(pull.hub_endpoint).filter(|url| !url.is_empty()).unwrap_or(hub.endpoint),
        token: Some(pull.hub_token).filter(|token| !token.is_empty()),
        ..hub
    };
    Access {
        plain_http,
        ca_pem: pem(ca_certificates_pem),
        client_pem: pem(client_certificate_pem),
        credentials: Credentials::from_pair(username, password),
        hub,
        mirrors: mirrors.into_iter().map(mirror_of).collect(),
    }
}

fn mirror_of(told: wire::local::Mirror) -> Mirror {
    let serves = match (told.only_digests, told.only_tags) {
        (true, _) => Serves::Digests,
        (false, true) => Serves::Tags,
        (false, false) => Serves::All,
    };
    let access = Access {
        plain_http: told.plain_http,
        ca_pem: pem(told.ca_certificates_pem),
        client_pem: pem(told.client_certificate_pem),
        credentials: Credentials::from_pair(told.username, told.password),
        ..Access::default()
    };
    Mirror { registry: told.registry, repository: told.repository, serves, access }
}

fn pem(text: String) -> Option<Vec<u8>> {
    Some(text.into_bytes()).filter(|pem| !pem.is_empty())
}

fn done(transfer: &Transfer, brought: &Brought) -> Done {
    let (tcp_bytes, rdma_bytes) = (transfer.counters.tcp_bytes(), transfer.counters.rdma_bytes());
    let first = transfer.counters.first_piece();
    Done {
        totals: Some(transfer.counters.progress().into()),
        seconds: brought.elapsed.as_secs_f64(),
        first_piece_seconds: first.map_or(0.0, |time| time.as_secs_f64()),
        transport: transport_of(tcp_bytes, rdma_bytes).to_owned(),
        tcp_bytes,
        rdma_bytes,
        fallback_reason: transfer.counters.fallback().unwrap_or_default().to_owned(),
        landing: transfer.counters.landing().to_owned(),
        direct_bytes: transfer.counters.direct_bytes(),
        staged_bytes: transfer.counters.staged_bytes(),
        bound_seconds: brought.bound.map_or(0.0, |time| time.as_secs_f64()),
        mirrored: transfer
            .mirror_bytes()
            .into_iter()
            .map(|from| Mirrored { registry: from.registry, bytes: from.bytes })
            .collect(),
        blamed: transfer.counters.blames.all().into_iter().map(Into::into).collect(),
        bounded_by: brought.bounded_by.map_or("", Stage::name).to_owned(),
    }
}

fn failure(error: &PeerError) -> Failure {
    let causes = std::iter::successors(std::error::Error::source(error), |error| error.source());
    Failure {
        message: error.to_string(),
        causes: causes.map(ToString::to_string).collect(),
        hint: error.hint().unwrap_or_default(),
        exit_code: match error.class() {
            ErrorClass::Failed => 1,
            ErrorClass::Usage => 2,
            ErrorClass::Integrity => 3,
        },
    }
}

/// Where the local peer's socket is by default.
pub fn default_socket() -> PathBuf {
    PathBuf::from("/run/modelctl/peer.sock")
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use tokio::{
        net::UnixStream,
        time::{Instant, timeout},
    };

    use super::*;

    /// A day, on a clock that runs ahead when nobody has anything to do.
    const DAY: Duration = Duration::from_hours(24);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_counts_as_gone() {
        let blobs: Vec<_> = (0..FDS_MAX).map(|_| File::open("/dev/null").unwrap()).collect();
        let pair = || UnixStream::pair().map(|(ours, theirs)| (LocalStream::new(ours), theirs)).unwrap();
        let ((mut handing, _deaf), (mut telling, _stopped)) = (pair(), pair());
        let hands_over = async { while hand_over(&mut handing, &blobs).await.is_ok() {} };
        let tells = async { while tell(&mut telling, Told::Done(Done::default())).await.is_ok() {} };
        let began = Instant::now();
        let both = async { tokio::join!(hands_over, tells) };
        timeout(DAY, both).await.expect("nobody waits for a client for ever");
        assert!(began.elapsed() >= READ_PATIENCE);
    }
}
