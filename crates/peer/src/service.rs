//! The parent's end of links, and the description of what this peer shares.
//!
//! Owns: hellos, grants and their expiry, how many links there may be, that a data link ends with its grant, and that
//! reads under way may end when this peer leaves. Does not own: the files, which of their pieces are readable
//! (`Shares`), or the bytes (crate `transport`).

mod windows;

use std::{any::Any, future::pending, sync::Arc, time::Duration};

use identity::Security;
use modelpack::layout::{BlobIndex, PieceIndex, Run, runs_of};
use planner::{ArtifactId, PeerId};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use transport::{Level, tcp};
use transport_rdma::Endpoint;
use wire::{
    FEATURE_RATES, FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::{
        self, CONNECT_TIMEOUT, DESCRIPTION_BYTES_MAX, MESSAGE_BYTES_MAX, RUNS_PER_MESSAGE_MAX, explain,
    },
    control::{
        ChildToParent, Coming, DescribeReply, DescribeRequest, Farewell, Grant, HaveRuns, HubModel,
        LinkHello, LinkWelcome, ParentToChild, Refusal, TcpEndpoint, Window, child_to_parent::Kind as Heard,
        parent_to_child::Kind as Said, peer_server,
    },
    convert, rdma,
};

use self::windows::Windows;
use crate::{
    children::Children,
    describe::Description,
    have_feed::{Batch, HaveFeed, HaveNews},
    links::{RDMA, TCP},
    rdma_words,
    security::PeerSecurity,
    sources::Sources,
    transports::Transports,
    vouching::Vouching,
};

/// How long a grant lasts: a child that dies without a word holds a window no longer.
pub(crate) const GRANT_EXPIRY: Duration = Duration::from_secs(10);

/// Reads outstanding on a link: 16 of 1 to 4 MiB cover 100 Gbit/s over a round trip of 1 ms.
pub(crate) const IN_FLIGHT_MAX: u32 = 16;

/// Links at a time, over all artifacts. A plan gives a peer at most 16 children a stripe, and backups a few more.
const LINKS_MAX: usize = 256;

/// Messages that wait for the network, at most: the feed coalesces what waits longer.
const OUTGOING_MAX: usize = 4;

/// Why a child gets no queue pair here.
const QUARANTINED: &str = "the scheduler says that this child is quarantined";
const GIVES_WAY: &str =
    "this peer gives way to other traffic, and cannot tell that from what cards read here";
const NO_RATES: &str = "this peer has a limit, and the child cannot keep to a rate";

/// Vouchers in one message: some 150 bytes each, so about 1.2 MB.
const VOUCHERS_PER_MESSAGE_MAX: usize = 8192;

/// What this node lets others read.
pub(crate) trait Shares: Send + Sync + 'static {
    /// The share of an artifact, unless there is none. It must not block.
    fn share(&self, artifact: &ArtifactId) -> Option<Share>;

    /// What a name of a hub stands for, if that is known here.
    fn name(&self, _name: &ArtifactId) -> Option<HubModel> {
        None
    }
}

/// One artifact as others may read it. Cheap to make.
#[derive(Clone, Debug)]
pub(crate) struct Share {
    /// For each blob its handle among the data plane's exports, and its bytes.
    pub(crate) windows: Vec<(BlobIndex, u64, u64)>,
    /// The same files for cards, where there is one. Their readers are cut off when it is withdrawn.
    pub(crate) sources: Option<Sources>,
    /// Which pieces are readable. Closing it says farewell to every child.
    pub(crate) have: HaveFeed,
    /// Who vouches for pieces that the manifest does not prove one by one.
    pub(crate) vouching: Option<Arc<Vouching>>,
    /// Who reads it.
    pub(crate) children: Children,
    /// What the artifact is.
    pub(crate) description: Arc<Description>,
    /// What is there for as long as somebody reads it.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// What a [`serve`] needs to know.
#[derive(Clone)]
pub(crate) struct ServiceOptions {
    /// This peer.
    pub(crate) me: PeerId,
    /// The data plane over TCP, which somebody else runs.
    pub(crate) tcp: tcp::Server,
    /// What else there is.
    pub(crate) transports: Transports,
    /// How both connections are secured.
    pub(crate) security: PeerSecurity,
    /// HOST:PORT where others reach it; an unspecified host stands for that of the control service.
    pub(crate) data_address: String,
    /// How long a grant lasts without renewal.
    pub(crate) grant_expiry: Duration,
    /// Where those who hold a grant are counted.
    pub(crate) children: Children,
}

/// Serves children on `listener` until `shutdown` is ready; then each is told farewell.
pub(crate) async fn serve(
    listener: TcpListener,
    shares: Arc<dyn Shares>,
    options: ServiceOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let (stop, stopped) = watch::channel(());
    let security = options.security.control.clone();
    let service = Service { shares, options, links: Arc::new(Semaphore::new(LINKS_MAX)), stopped };
    let service = peer_server::PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(DESCRIPTION_BYTES_MAX);
    let shutdown = async {
        shutdown.await;
        drop(stop);
    };
    connection::serve(listener, &security, service, shutdown).await
}

struct Service {
    shares: Arc<dyn Shares>,
    options: ServiceOptions,
    links: Arc<Semaphore>,
    /// Its sender is dropped when the service stops.
    stopped: watch::Receiver<()>,
}

#[tonic::async_trait]
impl peer_server::Peer for Service {
    type LinkStream = ReceiverStream<Result<ParentToChild, Status>>;

    async fn link(
        &self,
        request: Request<Streaming<ChildToParent>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let parent = Parent {
            shares: Arc::clone(&self.shares),
            options: self.options.clone(),
            place: Arc::clone(&self.links).try_acquire_owned().ok(),
            stopped: self.stopped.clone(),
            inbound: request.into_inner(),
            outgoing,
        };
        tokio::spawn(parent.run());
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        let request = request.into_inner();
        let refused = |error: WireError| Status::invalid_argument(error.to_string());
        check_version(request.protocol_version).map_err(refused)?;
        let artifact = convert::artifact_id(&request.artifact).map_err(refused)?;
        if self.options.children.are_told() {
            return Err(Status::unavailable(LEAVES));
        }
        if let Some(share) = self.shares.share(&artifact) {
            return Ok(Response::new(DescribeReply::from(share.description.as_ref())));
        }
        let hub = self.shares.name(&artifact).ok_or_else(|| Status::not_found(NOT_SHARED))?;
        Ok(Response::new(DescribeReply { hub: Some(hub), ..DescribeReply::default() }))
    }
}

const NOT_SHARED: &str = "this peer does not share the artifact";
const STOPS: &str = "the peer stops";
const LEAVES: &str = "this peer leaves";

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
enum LinkEnd {
    /// The child is told so.
    #[error("refused: {0}")]
    Refused(String),
    /// The child is told so.
    #[error("this peer serves it no longer: {0}")]
    Farewell(String),
    #[error("the control stream failed: {}", explain(.0.as_ref()))]
    Stream(Box<Status>),
    #[error("the child ended it")]
    Ended,
    #[error("the grant expired without a renewal")]
    Expired,
}

impl From<Status> for LinkEnd {
    fn from(status: Status) -> Self {
        Self::Stream(Box::new(status))
    }
}

impl From<WireError> for LinkEnd {
    fn from(error: WireError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// The right to read over TCP. It ends with its drop, however the task that holds it ends.
struct DataLink {
    tcp: tcp::Server,
    link: u64,
}

impl Drop for DataLink {
    fn drop(&mut self) {
        self.tcp.revoke(self.link);
    }
}

/// The task behind one link.
struct Parent {
    shares: Arc<dyn Shares>,
    options: ServiceOptions,
    /// Its place among the links, if there was one.
    place: Option<OwnedSemaphorePermit>,
    stopped: watch::Receiver<()>,
    inbound: Streaming<ChildToParent>,
    outgoing: mpsc::Sender<Result<ParentToChild, Status>>,
}

impl Parent {
    async fn run(mut self) {
        let end = match self.serve().await {
            Ok(never) => match never {},
            Err(end) => end,
        };
        tracing::debug!(reason = %end, "a link ended");
        let last = match end {
            LinkEnd::Refused(reason) => Said::Refusal(Refusal { reason }),
            LinkEnd::Farewell(reason) => Said::Farewell(Farewell { reason }),
            LinkEnd::Expired => Said::Refusal(Refusal { reason: end.to_string() }),
            LinkEnd::Stream(_) | LinkEnd::Ended => return,
        };
        // A child that takes no message learns it from the end of the stream.
        let _ = self.outgoing.try_send(Ok(ParentToChild { kind: Some(last) }));
    }

    async fn serve(&mut self) -> Result<std::convert::Infallible, LinkEnd> {
        if self.place.is_none() {
            return Err(LinkEnd::Refused(format!("this peer has {LINKS_MAX} links already")));
        }
        let Asker { child, share, offer } = self.hear_hello().await?;
        // Until the end of this function, which is the end of the grant.
        let held = self.options.children.enter(child);
        let mut held = held.ok_or_else(|| LinkEnd::Refused(LEAVES.to_owned()))?;
        let _reads = share.children.enter(child);
        let mut expires = Instant::now() + self.options.grant_expiry;
        let (mut windows, _data) = self.welcome(child, offer, &share, expires).await?;
        let level = if windows.is_some() { Level::Nic } else { Level::Tcp };
        if level == Level::Nic {
            held.read_over_rdma();
        }
        expires = self.grant(&share, level, expires).await?;
        let mut news = share.have.subscribe();
        loop {
            let next = tokio::select! {
                next = self.next(&mut news, windows.as_mut(), expires) => next?,
                // With this function its queue pairs end. It may come back over TCP.
                () = share.children.quarantined(child), if windows.is_some() => {
                    return Err(LinkEnd::Refused(QUARANTINED.to_owned()));
                }
            };
            match next {
                Next::News(batch) => self.announce(batch, share.vouching.as_deref(), expires).await?,
                Next::Renewal => {
                    if let (Some(_), Some(sources)) = (&windows, &share.sources) {
                        // Nobody asks this peer before each read.
                        sources.check();
                    }
                    expires = self.grant(&share, level, expires).await?;
                }
                Next::Window(windows::Said::Grant(grant)) => self.say(Said::Window(grant), expires).await?,
                Next::Window(windows::Said::Refusal(refusal)) => {
                    self.say(Said::WindowRefusal(refusal), expires).await?;
                }
                Next::Heard(Some(Heard::Interest(interest))) => news.interest(interest.try_into()?),
                Next::Heard(heard) => about_windows(heard, windows.as_mut())?,
                Next::Farewell => return self.let_reads_end(expires).await,
            }
        }
    }

    /// Says how the child may read here; gives what it reads by, which ends with its drop.
    async fn welcome(
        &mut self,
        child: PeerId,
        offer: Option<Offer>,
        share: &Share,
        expires: Instant,
    ) -> Result<(Option<Windows>, Option<DataLink>), LinkEnd> {
        let transports = &self.options.transports;
        let is_offered = offer.is_some();
        let answered = match offer {
            Some(_) if share.children.is_quarantined(child) => Err(QUARANTINED.to_owned()),
            Some(Ok(offer)) => windows::answer(transports, offer, share).await,
            Some(Err(reason)) => Err(reason.to_owned()),
            None => Err("the child offers none".to_owned()),
        };
        let (answer, windows, refusal) = match answered {
            Ok((answer, windows)) => (Some(answer), Some(windows), String::new()),
            Err(reason) if !transports.allow_tcp() => {
                return Err(LinkEnd::Refused(format!("this peer serves over `rdma` only: {reason}")));
            }
            Err(reason) => (None, None, reason),
        };
        let data = transports.allow_tcp().then(|| {
            let (link, secret) = self.options.tcp.issue_link();
            (DataLink { tcp: self.options.tcp.clone(), link }, secret)
        });
        tracing::debug!(%child, is_rdma = windows.is_some(), "a link began");
        let endpoint = |(data, secret): &(DataLink, [u8; 32])| TcpEndpoint {
            address: self.options.data_address.clone(),
            link: data.link,
            secret: secret.to_vec(),
            encrypted: matches!(self.options.security.data, Security::Fleet(_)),
        };
        let welcome = LinkWelcome {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: self.options.me.bytes().to_vec(),
            tcp: data.as_ref().map(endpoint),
            rdma: answer,
            rdma_refusal: if is_offered { refusal } else { String::new() },
        };
        self.say(Said::Welcome(welcome), expires).await?;
        Ok((windows, data.map(|(data, _)| data)))
    }

    /// This peer leaves: the child is told so, and keeps the link until its reads have ended. Each of them ends before
    /// the grant does, so that this is not renewed any more.
    async fn let_reads_end(&mut self, expires: Instant) -> Result<std::convert::Infallible, LinkEnd> {
        let reason = STOPS.to_owned();
        self.say(Said::Farewell(Farewell { reason }), expires).await?;
        loop {
            tokio::select! {
                message = self.inbound.message() => drop(message?.ok_or(LinkEnd::Ended)?),
                () = sleep_until(expires) => return Err(LinkEnd::Expired),
                // Ends only with an error, when the service stops.
                _ = self.stopped.changed() => return Err(LinkEnd::Ended),
            }
        }
    }

    async fn hear_hello(&mut self) -> Result<Asker, LinkEnd> {
        let late = |_| LinkEnd::Refused("no hello came in time".to_owned());
        let first = timeout(CONNECT_TIMEOUT, self.inbound.message()).await.map_err(late)??;
        let first = first.ok_or(LinkEnd::Ended)?;
        let Some(Heard::Hello(hello)) = first.kind else {
            return Err(LinkEnd::Refused("the first message must be a hello".to_owned()));
        };
        let LinkHello { protocol_version, features, peer_id, artifact, transports, rdma: offer } = hello;
        check_version(protocol_version)?;
        let child = convert::peer_id(&peer_id)?;
        let artifact = convert::artifact_id(&artifact)?;
        let reads_over = |name: &str| transports.iter().any(|transport| transport == name);
        let offer: Vec<_> = rdma::endpoints(&offer)?.iter().map(rdma_words::endpoint_from).collect();
        let offer = Some(offer).filter(|offer| reads_over(RDMA) && !offer.is_empty());
        let may_rdma = offer.is_some() && self.options.transports.rdma().is_some();
        if !reads_over(TCP) && !may_rdma {
            return Err(LinkEnd::Refused("this peer serves over `tcp` only".to_owned()));
        }
        let share = self.shares.share(&artifact).ok_or_else(|| LinkEnd::Refused(NOT_SHARED.to_owned()))?;
        // What a card reads, nobody here can hold back.
        let refusal = self.options.transports.limit().and_then(|limit| match features & FEATURE_RATES {
            _ if limit.gives_way() => Some(GIVES_WAY),
            0 => Some(NO_RATES),
            _ => None,
        });
        let offer = offer.map(|offer| refusal.map_or(Ok(offer), Err));
        Ok(Asker { child, share, offer })
    }

    async fn next(
        &mut self,
        news: &mut HaveNews,
        windows: Option<&mut Windows>,
        expires: Instant,
    ) -> Result<Next, LinkEnd> {
        let window = async {
            match windows {
                Some(windows) => windows.next().await,
                None => pending().await,
            }
        };
        tokio::select! {
            batch = news.next() => match batch {
                Ok(batch) => Ok(Next::News(batch)),
                Err(closed) => Err(LinkEnd::Farewell(closed.0)),
            },
            message = self.inbound.message() => match message?.ok_or(LinkEnd::Ended)?.kind {
                Some(Heard::Renewal(_)) => Ok(Next::Renewal),
                Some(Heard::Hello(_)) => Err(LinkEnd::Refused("a second hello".to_owned())),
                // None is a kind of a later minor version.
                heard => Ok(Next::Heard(heard)),
            },
            said = window => Ok(Next::Window(said)),
            () = sleep_until(expires) => Err(LinkEnd::Expired),
            // Ends only with an error, when the service stops.
            _ = self.stopped.changed() => Err(LinkEnd::Farewell(STOPS.to_owned())),
            () = self.options.children.told() => Ok(Next::Farewell),
        }
    }

    /// Grants for a further expiry; returns when it ends, by this side's count.
    async fn grant(&mut self, share: &Share, level: Level, expires: Instant) -> Result<Instant, LinkEnd> {
        let limit = self.options.transports.limit();
        let rate = limit.map(|limit| limit.share(self.options.children.links_by_transport()));
        let window = |(blob, handle, bytes): &(BlobIndex, u64, u64)| Window {
            blob: blob.0,
            handle: *handle,
            bytes: *bytes,
        };
        let grant = Grant {
            windows: share.windows.iter().map(window).collect(),
            in_flight_max: IN_FLIGHT_MAX,
            // Over TCP it is this peer's server that keeps to it.
            bytes_per_second_max: rate.filter(|_| level == Level::Nic).unwrap_or(0),
            expires_ms: u32::try_from(self.options.grant_expiry.as_millis()).unwrap_or(u32::MAX),
        };
        self.say(Said::Grant(grant), expires).await?;
        Ok(Instant::now() + self.options.grant_expiry)
    }

    async fn announce(
        &mut self,
        batch: Batch,
        vouching: Option<&Vouching>,
        expires: Instant,
    ) -> Result<(), LinkEnd> {
        let messages = match vouching {
            None => batch.runs.chunks(RUNS_PER_MESSAGE_MAX).map(have_message).collect(),
            Some(vouching) => vouched_messages(&batch.runs, vouching),
        };
        for message in messages {
            self.say(Said::Have(message), expires).await?;
        }
        if let Some(coming) = batch.coming {
            let coming = Some(Coming { runs: convert::runs_message(&coming.runs), epoch: coming.epoch });
            self.say(Said::Have(HaveRuns { coming, ..HaveRuns::default() }), expires).await?;
        }
        Ok(())
    }

    /// A child that takes no messages until its grant has expired is not served any more.
    async fn say(&self, kind: Said, expires: Instant) -> Result<(), LinkEnd> {
        let message = Ok(ParentToChild { kind: Some(kind) });
        let sent = timeout_at(expires, self.outgoing.send(message)).await.map_err(|_| LinkEnd::Expired)?;
        sent.map_err(|_| LinkEnd::Ended)
    }
}

fn have_message(runs: &[Run]) -> HaveRuns {
    HaveRuns { runs: convert::runs_message(runs), ..HaveRuns::default() }
}

/// The same runs with whoever vouches for their pieces, in messages of a bounded size.
fn vouched_messages(runs: &[Run], vouching: &Vouching) -> Vec<HaveRuns> {
    let pieces: Vec<PieceIndex> = runs.iter().flat_map(Run::pieces).collect();
    let message = |pieces: &[PieceIndex]| {
        let voucher =
            |piece: &PieceIndex| Some(convert::voucher_message(*piece, &vouching.get(*piece)?.voucher));
        let vouchers = pieces.iter().filter_map(voucher).collect();
        HaveRuns { vouchers, ..have_message(&runs_of(pieces.iter().copied())) }
    };
    pieces.chunks(VOUCHERS_PER_MESSAGE_MAX).map(message).collect()
}

/// Who has said hello.
struct Asker {
    child: PeerId,
    /// What it reads.
    share: Share,
    /// Its ends of a link over RDMA, if it offers any; or why they are of no use.
    offer: Option<Offer>,
}

/// See [`Asker::offer`].
type Offer = Result<Vec<Endpoint>, &'static str>;

/// What happens next on a link.
enum Next {
    News(Batch),
    Renewal,
    Window(windows::Said),
    Heard(Option<Heard>),
    Farewell,
}

/// The child wants windows, or needs some no more.
fn about_windows(heard: Option<Heard>, windows: Option<&mut Windows>) -> Result<(), LinkEnd> {
    let no_such = || LinkEnd::Refused("there are no windows on this link".to_owned());
    match heard {
        Some(Heard::Windows(request)) => {
            let ids = rdma::window_ids(&request.windows)?;
            if windows.ok_or_else(no_such)?.ask(ids) {
                return Ok(());
            }
            Err(LinkEnd::Refused("more windows than may be asked for".to_owned()))
        }
        Some(Heard::Release(release)) => {
            windows.ok_or_else(no_such)?.release(&rdma::window_ids(&release.windows)?);
            Ok(())
        }
        _ => Ok(()),
    }
}
