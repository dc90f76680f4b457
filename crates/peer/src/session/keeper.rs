//! The task that keeps a stream to a scheduler: which one, and what when it is lost or another is to be preferred.
//!
//! Owns: the order in which schedulers are tried, patience, and that a peer never goes to and fro between two that it
//! is sent to by one another. Does not own: what is said on the stream.
//!
//! A peer uses the first scheduler in rank that answers. One that was lost or does not answer is passed over, and the
//! next is told so (`unreachable`), so that it does not send the peer back there. While the peer is at a lower one it
//! looks at the higher ones from time to time, and goes where it is redirected: it ends the stream that it has only when
//! it is welcome at the other, so that nothing is lost by trying.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use identity::Security;
use planner::{ArtifactId, PeerId, PeerPlan};
use tokio::{
    sync::mpsc::{self, UnboundedSender},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};
use wire::{
    FEATURE_SCHEDULERS, FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::{CONNECT_TIMEOUT, MESSAGE_BYTES_MAX, dial_scheduler, explain, hint, reason},
    control::{
        PeerHello, PeerToScheduler, SchedulerToPeer, SchedulerWelcome, peer_to_scheduler::Kind as Said,
        scheduler_client::SchedulerClient, scheduler_to_peer::Kind as Heard,
    },
    convert,
    schedulers::SCHEDULERS_MAX,
};

use super::{OUTGOING_MAX, Open, Outgoing, SessionEvent, SessionOptions};

/// First wait after a loss: a scheduler that restarts is back within seconds, and 10,000 peers must not storm it.
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// Longest wait, and how long a connection must have lived to begin at the shortest again.
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(3);

/// Wait after a refusal: only an operator changes its cause.
const REFUSED_WAIT: Duration = Duration::from_secs(30);

/// How long a scheduler may take to welcome a peer that knows another. It doubles with each round in which none did.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for one that has just failed: it was perhaps this peer that did not run.
const PATIENCE_FAILED: Duration = Duration::from_millis(400);

/// How long a failure is held against a scheduler.
const FAILED_FOR: Duration = Duration::from_secs(30);

/// How often a peer at a lower scheduler looks at the higher ones. They also send it a word when one comes back.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Shortest and longest interval that a scheduler may ask for.
const LOAD_INTERVAL_MS: (u32, u32) = (10, 60_000);

const HINT_ABSENT: &str = "look whether `modelctl scheduler` runs there, and at the address in `--scheduler`";

/// Why there is no stream (any more).
#[derive(Debug, thiserror::Error)]
pub(super) enum Loss {
    #[error("cannot reach the scheduler: {}", explain(.0))]
    Connect(tonic::transport::Error),
    #[error("the scheduler did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("the stream to the scheduler failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    /// Before any welcome. Whether the other side's last words arrive when it hangs up is a matter of luck.
    #[error("the scheduler hung up on this peer: {}", explain(.0.as_ref()))]
    HungUp(Box<Status>, &'static str),
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
    #[error("the name in `{0}` does not resolve: {1}")]
    Name(String, std::io::Error),
    /// The only one that there is.
    #[error("{1} (at `{0}`)")]
    Only(String, Box<Self>),
    #[error("none of the schedulers can be used: {}", all(.0))]
    None(Vec<(String, Self)>),
    #[error("the schedulers only send this peer to one another")]
    Circle,
}

fn all(losses: &[(String, Loss)]) -> String {
    let words: Vec<String> = losses.iter().map(|(address, loss)| format!("`{address}`: {loss}")).collect();
    words.join("; ")
}

impl From<Status> for Loss {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

impl Loss {
    /// What may be done about it.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect(error) => Some(hint(error).unwrap_or(HINT_ABSENT)),
            Self::Timeout(_) => Some(HINT_ABSENT),
            Self::Only(_, loss) => loss.hint(),
            Self::Stream(status) => hint(status.as_ref()),
            Self::HungUp(status, otherwise) => Some(hint(status.as_ref()).unwrap_or(otherwise)),
            Self::None(losses) => losses.iter().find_map(|(_, loss)| loss.hint()),
            Self::Name(..) => {
                Some("look at the name in `--scheduler`, and at the name service of this machine")
            }
            Self::Message(WireError::Version { .. }) => Some("run the same version of modelctl everywhere"),
            _ => None,
        }
    }

    /// Whether trying again soon is of no use.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Only(_, loss) => loss.is_lasting(),
            loss => matches!(loss, Self::Refused(_) | Self::Message(WireError::Version { .. })),
        }
    }
}

/// A stream that a scheduler welcomed.
struct Welcomed {
    address: String,
    inbound: Streaming<SchedulerToPeer>,
    outgoing: mpsc::Sender<PeerToScheduler>,
    channel: Channel,
    load_interval: Duration,
    features: u64,
}

/// What a scheduler answered to a hello.
enum Answer {
    Welcomed(Box<Welcomed>),
    Redirected(String),
}

/// What a scheduler says later.
enum News {
    Plan(ArtifactId, PeerPlan),
    Redirect(String),
}

/// An attempt to get to another scheduler than the present one.
type Attempt = Pin<Box<dyn Future<Output = (String, Result<Answer, Loss>)> + Send>>;

/// The task behind a session.
pub(super) struct Keeper {
    options: Arc<SessionOptions>,
    events: UnboundedSender<SessionEvent>,
    outgoing: Outgoing,
    /// Whether the node knows that there is no scheduler.
    is_lost: bool,
    /// Schedulers that failed, and when.
    failed: BTreeMap<String, Instant>,
}

impl Keeper {
    pub(super) fn new(
        options: SessionOptions,
        events: UnboundedSender<SessionEvent>,
        outgoing: Outgoing,
    ) -> Self {
        Self { options: Arc::new(options), events, outgoing, is_lost: false, failed: BTreeMap::new() }
    }

    /// Until the node no longer listens.
    pub(super) async fn run(mut self) {
        let mut attempt = 0;
        while !self.events.is_closed() {
            let (loss, since) = match self.find(attempt).await {
                Ok(welcomed) => {
                    let since = Instant::now();
                    let loss = self.stay(*welcomed).await;
                    self.outgoing.set(None);
                    (loss, Some(since))
                }
                Err(loss) => (loss, None),
            };
            tracing::debug!(reason = %loss, "no stream to a scheduler");
            if since.is_some_and(|since| since.elapsed() >= BACKOFF_MAX) {
                attempt = 0;
            }
            if since.is_some() && self.has_choice().await {
                // The next takes over before anybody has to know: who hears of a loss may read the origin again.
                if attempt > 0 {
                    sleep(backoff(self.options.me, attempt)).await;
                }
                attempt = attempt.saturating_add(1);
                continue;
            }
            self.lost(&loss);
            sleep(if loss.is_lasting() { REFUSED_WAIT } else { backoff(self.options.me, attempt) }).await;
            attempt = attempt.saturating_add(1);
        }
    }

    async fn has_choice(&self) -> bool {
        self.options.schedulers.ranked().await.is_ok_and(|ranked| ranked.len() > 1)
    }

    /// The first scheduler that welcomes this peer.
    async fn find(&mut self, attempt: u32) -> Result<Box<Welcomed>, Loss> {
        let schedulers = &self.options.schedulers;
        let ranked = schedulers.ranked().await;
        let ranked = ranked.map_err(|error| Loss::Name(schedulers.given().join(","), error));
        let mut waiting = VecDeque::from(ranked?);
        let (mut tried, mut losses) = (BTreeSet::new(), Vec::new());
        // Each is tried, each may send this peer to another, and is asked once more if that is of no use.
        let mut turns = 3 * waiting.len() + 3;
        let is_only = waiting.len() < 2;
        while let Some(address) = waiting.pop_front().filter(|_| turns > 0) {
            turns -= 1;
            tried.insert(address.clone());
            let patience = if is_only {
                CONNECT_TIMEOUT
            } else if self.unreachable().contains(&address) {
                PATIENCE_FAILED
            } else {
                PATIENCE.saturating_mul(1 << attempt.min(8)).min(CONNECT_TIMEOUT)
            };
            match self.open(&address, patience).await.1 {
                Ok(Answer::Welcomed(welcomed)) => {
                    self.failed.remove(&address);
                    return Ok(welcomed);
                }
                Ok(Answer::Redirected(to)) => {
                    waiting.push_front(address);
                    if tried.contains(&to) {
                        self.note_failed(&to);
                    } else {
                        waiting.push_front(to);
                    }
                }
                Err(loss) => {
                    self.note_failed(&address);
                    losses.push((address, loss));
                }
            }
        }
        if losses.len() < 2 {
            let only = losses.pop();
            return Err(only.map_or(Loss::Circle, |(address, loss)| Loss::Only(address, Box::new(loss))));
        }
        Err(Loss::None(losses))
    }

    /// At that scheduler, and at others that this peer goes on to from there, until one is lost.
    async fn stay(&mut self, welcomed: Welcomed) -> Loss {
        let (mut address, mut inbound) = self.enter(welcomed);
        let mut attempt: Option<Attempt> = None;
        // Where it was sent while it tried to get somewhere: that may have come back since.
        let mut sent_to = None;
        let mut look = Instant::now() + LOOK_INTERVAL;
        loop {
            tokio::select! {
                news = listen(&mut inbound) => match news {
                    Ok(News::Plan(artifact, plan)) => self.emit(SessionEvent::Plan(artifact, plan)),
                    Ok(News::Redirect(to)) if to != address && attempt.is_none() => {
                        attempt = Some(self.open(&to, PATIENCE));
                    }
                    Ok(News::Redirect(to)) => sent_to = Some(to),
                    Err(loss) => {
                        self.note_failed(&address);
                        return loss;
                    }
                },
                (to, answer) = attempted(&mut attempt) => {
                    attempt = None;
                    match answer {
                        Ok(Answer::Welcomed(welcomed)) => {
                            tracing::debug!(from = address, to, "another scheduler comes first");
                            self.failed.remove(&to);
                            (address, inbound) = self.enter(*welcomed);
                        }
                        // It is looked for again later; this one serves meanwhile.
                        Ok(Answer::Redirected(_)) => self.note_failed(&to),
                        Err(loss) => {
                            tracing::debug!(to, reason = %loss, "a scheduler that comes first is of no use");
                            self.note_failed(&to);
                        }
                    }
                }
                () = std::future::ready(()), if attempt.is_none() && sent_to.is_some() => {
                    let to = sent_to.take().filter(|to| *to != address);
                    attempt = to.map(|to| self.open(&to, PATIENCE));
                }
                () = sleep_until(look), if attempt.is_none() => {
                    look = Instant::now() + LOOK_INTERVAL;
                    attempt = self.higher(&address).await.map(|to| self.open(&to, PATIENCE));
                }
            }
        }
    }

    /// The best in rank that comes before the present one; of several another one each time.
    async fn higher(&self, present: &str) -> Option<String> {
        let ranked = self.options.schedulers.ranked().await.ok()?;
        let fleet = self.options.schedulers.fleet();
        let higher = ranked.into_iter().filter(|address| fleet.prefers(address, present));
        higher.min_by_key(|address| self.failed.get(address).copied())
    }

    /// The present stream is this one from now on.
    fn enter(&mut self, welcomed: Welcomed) -> (String, Streaming<SchedulerToPeer>) {
        let Welcomed { address, inbound, outgoing, channel, load_interval, features } = welcomed;
        if features & FEATURE_SCHEDULERS == 0 {
            // It counts its plans from 1, so that they mean nothing to whoever still goes by another's.
            self.lost(&Loss::Ended);
        }
        self.outgoing.set(Some(Open { sender: outgoing, channel, address: address.clone() }));
        self.is_lost = false;
        self.emit(SessionEvent::Connected { load_interval, scheduler: address.clone() });
        (address, inbound)
    }

    /// Says hello to a scheduler and hears what it answers.
    fn open(&self, address: &str, patience: Duration) -> Attempt {
        let (options, address) = (Arc::clone(&self.options), address.to_owned());
        let mut unreachable = self.unreachable();
        unreachable.retain(|other| *other != address);
        Box::pin(async move {
            let answer = timeout(patience, open(&options, &address, unreachable)).await;
            let answer = answer.unwrap_or(Err(Loss::Timeout(patience)));
            (address, answer)
        })
    }

    fn note_failed(&mut self, address: &str) {
        let now = Instant::now();
        self.failed.retain(|_, at| *at + FAILED_FOR > now);
        self.failed.insert(address.to_owned(), now);
    }

    fn unreachable(&self) -> Vec<String> {
        let now = Instant::now();
        let failed = self.failed.iter().filter(|(_, at)| **at + FAILED_FOR > now);
        failed.map(|(address, _)| address.clone()).take(SCHEDULERS_MAX).collect()
    }

    fn lost(&mut self, loss: &Loss) {
        if !self.is_lost {
            self.is_lost = true;
            self.emit(SessionEvent::Lost { reason: loss.to_string(), hint: loss.hint() });
        }
    }

    /// A node that no longer listens is noticed by [`Self::run`].
    fn emit(&self, event: SessionEvent) {
        let _ = self.events.send(event);
    }
}

/// Never ready while there is no attempt.
async fn attempted(attempt: &mut Option<Attempt>) -> (String, Result<Answer, Loss>) {
    match attempt {
        Some(attempt) => attempt.await,
        None => std::future::pending().await,
    }
}

async fn open(options: &SessionOptions, address: &str, unreachable: Vec<String>) -> Result<Answer, Loss> {
    let channel = dial_scheduler(address, &options.security).await.map_err(Loss::Connect)?;
    let mut client = SchedulerClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
    let hello = PeerToScheduler { kind: Some(Said::Hello(hello(options, unreachable))) };
    outgoing.try_send(hello).expect("the channel is new");
    let hint = match options.security {
        Security::Plain => identity::HINT_NO_KEY,
        Security::Fleet(_) => {
            "compare `date -u` and the key files of both machines; the log of the scheduler says which it is"
        }
    };
    let hung_up = |status| Loss::HungUp(Box::new(status), hint);
    let session = client.session(ReceiverStream::new(messages)).await;
    let mut inbound = session.map_err(hung_up)?.into_inner();
    let first = inbound.message().await.map_err(hung_up)?.ok_or(Loss::Ended)?;
    match first.kind {
        Some(Heard::Welcome(welcome)) => {
            let load_interval = check_welcome(&welcome).map_err(Loss::Message)?;
            let (address, features) = (address.to_owned(), welcome.features);
            Ok(Answer::Welcomed(Box::new(Welcomed {
                address,
                inbound,
                outgoing,
                channel,
                load_interval,
                features,
            })))
        }
        Some(Heard::Redirect(redirect)) => {
            Ok(Answer::Redirected(convert::address(redirect.address).map_err(Loss::Message)?))
        }
        Some(Heard::Refusal(refusal)) => Err(Loss::Refused(reason(&refusal.reason))),
        Some(Heard::Plan(_)) | None => Err(Loss::Order),
    }
}

async fn listen(inbound: &mut Streaming<SchedulerToPeer>) -> Result<News, Loss> {
    loop {
        let message = inbound.message().await?.ok_or(Loss::Ended)?;
        match message.kind {
            Some(Heard::Plan(plan)) => {
                let (artifact, plan) = convert::plan(plan).map_err(Loss::Message)?;
                return Ok(News::Plan(artifact, plan));
            }
            Some(Heard::Redirect(redirect)) => {
                return convert::address(redirect.address).map(News::Redirect).map_err(Loss::Message);
            }
            Some(Heard::Refusal(refusal)) => return Err(Loss::Closed(reason(&refusal.reason))),
            Some(Heard::Welcome(_)) => return Err(Loss::Order),
            // A kind of a later minor version.
            None => {}
        }
    }
}

fn hello(options: &SessionOptions, unreachable: Vec<String>) -> PeerHello {
    PeerHello {
        protocol_version: PROTOCOL_VERSION,
        features: FEATURES,
        peer_id: options.me.bytes().to_vec(),
        control_address: options.control_address.clone(),
        nic_bytes_per_second: options.nic_rate.unwrap_or(0),
        labels: convert::labels(&options.place),
        name: options.name.clone(),
        unreachable,
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
pub(super) fn backoff(me: PeerId, attempt: u32) -> Duration {
    let whole = BACKOFF_MIN.saturating_mul(1 << attempt.min(16)).min(BACKOFF_MAX);
    let bytes = me.bytes();
    let jitter = u32::from(bytes[attempt as usize % bytes.len()]);
    whole / 2 + whole / 2 * jitter / 255
}
