//! The child's end of links: a control stream to a parent, the grant that it keeps alive, and the data link under it.
//!
//! Owns: opening, what a grant must look like, renewal, and that a link ends exactly once. Does not own: what is read
//! over it.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc, time::Duration};

use identity::{Security, Voucher};
use modelpack::{
    layout::{BlobIndex, PieceIndex, PieceLayout, Run, runs_of},
    piece_map::PieceMap,
};
use planner::{ArtifactId, PeerId};
use tokio::{
    sync::{mpsc, mpsc::UnboundedSender, watch},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use transport::{
    CompletionSink, Link, Window,
    tcp::{self, Target},
};
use wire::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::{CONNECT_TIMEOUT, MESSAGE_BYTES_MAX, dial, explain, reason},
    control::{
        self, ChildToParent, GrantRenewal, LinkHello, LinkWelcome, ParentToChild, TcpEndpoint,
        child_to_parent::Kind as Said, parent_to_child::Kind as Heard, peer_client::PeerClient,
    },
    convert,
};

use crate::{have_feed::Coming, security::PeerSecurity};

/// The name of the only transport so far, in [`LinkHello`].
pub(crate) const TCP: &str = "tcp";

/// Messages that wait for the network, at most: a hello, and one renewal at a time.
const OUTGOING_MAX: usize = 2;

/// Reads outstanding on a link, at most, whatever the parent grants: their memory is this peer's.
const IN_FLIGHT_MAX: u32 = 64;

/// Longest grant that is believed. A parent that dies without a word is noticed by keep-alive, not by this.
const EXPIRY_MAX: Duration = Duration::from_hours(1);

/// Renewals within one expiry: two may be lost or late before the grant ends.
const RENEWALS_PER_EXPIRY: u32 = 3;

/// How soon it is noticed that bytes come over a data link, and the end of an idle one; reads that are out on it end at
/// once.
const DATA_POLL: Duration = Duration::from_millis(100);

/// What happens to one link.
pub(crate) enum LinkEvent {
    /// It may be read from. First, once, unless it could not be opened.
    Up {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// What is granted.
        grant: GrantedLink,
    },
    /// Pieces that the parent has. None is said twice.
    Have {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// The pieces.
        runs: Vec<Run>,
        /// For those that the manifest does not prove one by one: who vouches for them. Nothing is checked yet.
        vouchers: Vec<(PieceIndex, Voucher)>,
    },
    /// The pieces that it reads from the origin have changed; first after its first pieces.
    Coming {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// What it reads from the origin now.
        coming: Coming,
    },
    /// The parent leaves: what was posted may end, and then the owner is to drop the handle. Nothing more is to be posted.
    Leaving {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
    },
    /// Bytes have come over it since it was last said.
    Progress {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
    },
    /// It ended, or could not be opened. Last, once, unless the handle was dropped.
    Down {
        /// The parent.
        peer: PeerId,
        /// [`LinkRequest::generation`].
        generation: u64,
        /// Why.
        reason: String,
    },
}

/// A link that may be read from.
pub(crate) struct GrantedLink {
    /// The data link.
    pub(crate) link: Arc<dyn Link>,
    /// The parent's files. A blob without a window cannot be read here.
    pub(crate) windows: BTreeMap<BlobIndex, Window>,
    /// Reads outstanding, at most.
    pub(crate) in_flight_max: u32,
    /// When the grant ends unless it is renewed, which moves it. No read's deadline may lie beyond.
    pub(crate) expires: watch::Receiver<Instant>,
}

/// A link to open.
#[derive(Clone, Debug)]
pub(crate) struct LinkRequest {
    /// This peer.
    pub(crate) me: PeerId,
    /// The parent.
    pub(crate) peer: PeerId,
    /// HOST:PORT of its control service.
    pub(crate) address: String,
    /// What to read.
    pub(crate) artifact: ArtifactId,
    /// Its geometry, which the grant must agree with.
    pub(crate) layout: PieceLayout,
    /// The caller's name for this attempt: events of an earlier one may still be on their way.
    pub(crate) generation: u64,
    /// How both connections are secured.
    pub(crate) security: PeerSecurity,
}

/// A link, open or opening. Dropping it ends the control stream and closes the data link, without an event.
#[derive(Debug)]
pub(crate) struct LinkHandle(JoinHandle<()>);

impl Drop for LinkHandle {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Opens a link. Must be called within a tokio runtime.
pub(crate) fn open_link(
    request: LinkRequest,
    sink: CompletionSink,
    events: UnboundedSender<LinkEvent>,
) -> LinkHandle {
    let child = Child { request, events };
    LinkHandle(tokio::spawn(async move {
        let end = child.run(sink).await;
        let (peer, generation) = (child.request.peer, child.request.generation);
        child.emit(LinkEvent::Down { peer, generation, reason: end.to_string() });
    }))
}

/// Why a link is down.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    #[error("cannot reach the peer: {}", explain(.0))]
    Connect(tonic::transport::Error),
    #[error("the peer did not open the link within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout,
    #[error("the control stream failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    #[error("the peer ended the link")]
    Ended,
    #[error("the peer refused: {0}")]
    Refused(String),
    #[error("the peer leaves: {0}")]
    Farewell(String),
    #[error("the peer sent a message that cannot be taken: {0}")]
    Message(#[from] WireError),
    #[error("the data link failed: {}", explain(.0))]
    Data(tcp::ConnectError),
    #[error("the data link ended")]
    DataEnded,
    #[error("the grant expired")]
    Expired,
}

impl From<Status> for LinkEnd {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

fn invalid(field: &'static str, why: &'static str) -> LinkEnd {
    LinkEnd::Message(WireError::Invalid { field, why })
}

/// A checked grant, but for when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Terms {
    windows: BTreeMap<BlobIndex, Window>,
    in_flight_max: u32,
    lasts: Duration,
}

/// Both directions of the control stream.
struct Control {
    inbound: Streaming<ParentToChild>,
    outgoing: mpsc::Sender<ChildToParent>,
    /// When the request that the next grant answers was sent: the child's count begins there.
    asked: Option<Instant>,
}

impl Control {
    async fn next(&mut self) -> Result<Heard, LinkEnd> {
        loop {
            let message = self.inbound.message().await?.ok_or(LinkEnd::Ended)?;
            match message.kind {
                Some(Heard::Refusal(refusal)) => return Err(LinkEnd::Refused(reason(&refusal.reason))),
                Some(Heard::Farewell(farewell)) => return Err(LinkEnd::Farewell(reason(&farewell.reason))),
                Some(kind) => return Ok(kind),
                // A kind of a later minor version.
                None => {}
            }
        }
    }

    /// Asks for more time, unless that was asked and not answered yet.
    fn renew(&mut self) {
        let renewal = ChildToParent { kind: Some(Said::Renewal(GrantRenewal {})) };
        if self.asked.is_none() && self.outgoing.try_send(renewal).is_ok() {
            self.asked = Some(Instant::now());
        }
    }

    /// When a grant that came now ends.
    fn end_of(&mut self, terms: &Terms) -> Result<Instant, LinkEnd> {
        let asked = self.asked.take().ok_or_else(|| invalid("grant", "nobody asked for it"))?;
        Ok(asked + terms.lasts)
    }
}

/// A link that is up.
struct Open {
    control: Control,
    terms: Terms,
    data: DataLink,
    expires: watch::Sender<Instant>,
}

/// Closes the data link with the task that keeps its grant, also when that is aborted.
struct DataLink(Arc<dyn Link>);

impl Drop for DataLink {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The task behind a [`LinkHandle`].
struct Child {
    request: LinkRequest,
    events: UnboundedSender<LinkEvent>,
}

impl Child {
    async fn run(&self, sink: CompletionSink) -> LinkEnd {
        match timeout(CONNECT_TIMEOUT, self.open(sink)).await {
            Ok(Ok(open)) => match self.keep(open).await {
                Ok(never) => match never {},
                Err(end) => end,
            },
            Ok(Err(end)) => end,
            Err(_) => LinkEnd::Timeout,
        }
    }

    async fn open(&self, sink: CompletionSink) -> Result<Open, LinkEnd> {
        let mut control = self.open_control().await?;
        let Heard::Welcome(welcome) = control.next().await? else {
            return Err(invalid("kind", "the first message must be a welcome"));
        };
        let tcp = self.check_welcome(welcome)?;
        let Heard::Grant(grant) = control.next().await? else {
            return Err(invalid("kind", "the second message must be a grant"));
        };
        let terms = self.check_grant(&grant)?;
        let (expires, _) = watch::channel(control.end_of(&terms)?);
        let address = self.data_address(convert::address(tcp.address)?);
        let secret = convert::secret(&tcp.secret)?;
        let in_flight_max = terms.in_flight_max as usize;
        let security = self.data_security(tcp.encrypted)?;
        let target = Target { address: &address, link: tcp.link, secret: &secret, security };
        let link = tcp::connect(target, in_flight_max, sink).await;
        Ok(Open { control, terms, data: DataLink(link.map_err(LinkEnd::Data)?), expires })
    }

    async fn open_control(&self) -> Result<Control, LinkEnd> {
        let channel = dial(format!("http://{}", self.request.address), &self.request.security.control);
        let channel = channel.await.map_err(LinkEnd::Connect)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let hello = LinkHello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: self.request.me.bytes().to_vec(),
            artifact: self.request.artifact.0.to_vec(),
            transports: vec![TCP.to_owned()],
        };
        let hello = ChildToParent { kind: Some(Said::Hello(hello)) };
        outgoing.try_send(hello).expect("the channel is new");
        let asked = Some(Instant::now());
        let inbound = client.link(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Control { inbound, outgoing, asked })
    }

    fn check_welcome(&self, welcome: LinkWelcome) -> Result<TcpEndpoint, LinkEnd> {
        check_version(welcome.protocol_version)?;
        if convert::peer_id(&welcome.peer_id)? != self.request.peer {
            // Its address was taken by another process since the plan was made.
            return Err(invalid("peer_id", "another peer answers at this address"));
        }
        welcome.tcp.ok_or_else(|| invalid("tcp", "there is no other transport"))
    }

    fn check_grant(&self, grant: &control::Grant) -> Result<Terms, LinkEnd> {
        let layout = &self.request.layout;
        let mut windows = BTreeMap::new();
        for window in &grant.windows {
            let blob = BlobIndex(window.blob);
            if blob.0 >= layout.blob_count() || layout.blob_bytes(blob) != window.bytes {
                return Err(invalid("windows", "a window is not the size of its blob"));
            }
            let window = Window { handle: window.handle, bytes: window.bytes };
            if windows.insert(blob, window).is_some() {
                return Err(invalid("windows", "a blob has two windows"));
            }
        }
        if grant.bytes_per_second_max != 0 {
            return Err(invalid("bytes_per_second_max", "this version cannot keep to a rate"));
        }
        let lasts = Duration::from_millis(grant.expires_ms.into());
        if grant.in_flight_max == 0 || lasts.is_zero() || lasts > EXPIRY_MAX {
            return Err(invalid("grant", "it grants nothing, or for ever"));
        }
        Ok(Terms { windows, in_flight_max: grant.in_flight_max.min(IN_FLIGHT_MAX), lasts })
    }

    /// The parent says how it sends; whether that is enough is this peer's to say.
    fn data_security(&self, is_encrypted: bool) -> Result<&Security, LinkEnd> {
        let PeerSecurity { control, data } = &self.request.security;
        match (is_encrypted, control, data) {
            (true, Security::Plain, _) => Err(invalid("encrypted", "this peer has no fleet key")),
            (true, Security::Fleet(_), _) => Ok(control),
            (false, _, Security::Plain) => Ok(data),
            (false, _, Security::Fleet(_)) => {
                Err(invalid("encrypted", "it sends in plain text, which needs `--data-plain` here too"))
            }
        }
    }

    /// A parent that listens on every address is reached at the one that its control service has.
    fn data_address(&self, address: String) -> String {
        let Some((host, port)) = address.rsplit_once(':') else { return address };
        let is_any = host.trim_matches(['[', ']']).parse().is_ok_and(|host: IpAddr| host.is_unspecified());
        match self.request.address.rsplit_once(':') {
            Some((control_host, _)) if is_any => format!("{control_host}:{port}"),
            _ => address,
        }
    }

    /// Keeps an open link until it ends.
    async fn keep(&self, open: Open) -> Result<std::convert::Infallible, LinkEnd> {
        let Open { mut control, terms, data, expires } = open;
        let (peer, generation) = (self.request.peer, self.request.generation);
        self.emit(LinkEvent::Up {
            peer,
            generation,
            grant: GrantedLink {
                link: Arc::clone(&data.0),
                windows: terms.windows.clone(),
                in_flight_max: terms.in_flight_max,
                expires: expires.subscribe(),
            },
        });
        let mut have = PieceMap::empty(self.request.layout.piece_count());
        let mut renewal = interval(terms.lasts / RENEWALS_PER_EXPIRY);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renewal.tick().await; // The first tick is now.
        let (mut poll, mut received) = (interval(DATA_POLL), 0);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let expiry = *expires.borrow();
            let heard = tokio::select! {
                heard = control.next() => match heard {
                    Err(LinkEnd::Farewell(reason)) => {
                        self.emit(LinkEvent::Leaving { peer, generation });
                        return Err(self.left((control, data), expiry, reason).await);
                    }
                    heard => heard?,
                },
                _ = renewal.tick() => {
                    control.renew();
                    continue;
                }
                _ = poll.tick() => {
                    if data.0.is_closed() {
                        return Err(LinkEnd::DataEnded);
                    }
                    if std::mem::replace(&mut received, data.0.bytes_received()) != received {
                        self.emit(LinkEvent::Progress { peer, generation });
                    }
                    continue;
                }
                () = sleep_until(expiry) => return Err(LinkEnd::Expired),
            };
            match heard {
                Heard::Have(message) => {
                    let runs = convert::runs(&message.runs, have.piece_count())?;
                    let vouchers = convert::vouchers(message.vouchers, have.piece_count())?;
                    let runs = fresh(&mut have, &runs);
                    if !runs.is_empty() {
                        self.emit(LinkEvent::Have { peer, generation, runs, vouchers });
                    }
                    if let Some(coming) = message.coming {
                        let runs = convert::runs(&coming.runs, have.piece_count())?;
                        let coming = Coming { epoch: coming.epoch, runs };
                        self.emit(LinkEvent::Coming { peer, generation, coming });
                    }
                }
                Heard::Grant(grant) => {
                    if self.check_grant(&grant)? != terms {
                        return Err(invalid("grant", "a renewal changes it"));
                    }
                    expires.send_replace(control.end_of(&terms)?);
                }
                Heard::Welcome(_) | Heard::Refusal(_) | Heard::Farewell(_) => {
                    return Err(invalid("kind", "a second welcome"));
                }
            }
        }
    }

    /// How a link to a parent that leaves ends, unless its owner drops it before: the grant is not renewed any more.
    async fn left(
        &self,
        (mut control, data): (Control, DataLink),
        expiry: Instant,
        reason: String,
    ) -> LinkEnd {
        let (peer, generation) = (self.request.peer, self.request.generation);
        let (mut poll, mut received) = (interval(DATA_POLL), 0);
        loop {
            tokio::select! {
                heard = control.next() => if heard.is_err() {
                    return LinkEnd::Farewell(reason);
                },
                _ = poll.tick() => {
                    if data.0.is_closed() {
                        return LinkEnd::Farewell(reason);
                    }
                    if std::mem::replace(&mut received, data.0.bytes_received()) != received {
                        self.emit(LinkEvent::Progress { peer, generation });
                    }
                }
                () = sleep_until(expiry) => return LinkEnd::Expired,
            }
        }
    }

    /// An owner that no longer listens has dropped the handle, or is about to.
    fn emit(&self, event: LinkEvent) {
        let _ = self.events.send(event);
    }
}

/// What of `runs` is new: however often a parent says the same, its child's work is bounded.
fn fresh(have: &mut PieceMap, runs: &[Run]) -> Vec<Run> {
    runs_of(runs.iter().flat_map(Run::pieces).filter(|piece| have.insert(*piece)))
}

#[cfg(test)]
mod tests;
