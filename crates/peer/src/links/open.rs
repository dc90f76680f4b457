//! Opening a link: what each side can, what is granted, and the data link that both reach each other by.
//!
//! Owns: the order of that, and what a grant must look like. Does not own: the link afterwards (`keep`).

use std::{collections::BTreeMap, mem, net::IpAddr, sync::Arc, time::Duration};

use identity::Security;
use modelpack::layout::BlobIndex;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use transport::{
    CompletionSink, Link, Window,
    tcp::{self, Target},
};
use transport_rdma::{Endpoint, Offer, RdmaError};
use wire::{
    FEATURES, PROTOCOL_VERSION, check_version,
    connection::{MESSAGE_BYTES_MAX, dial, explain, reason},
    control::{
        self, ChildToParent, LinkHello, LinkWelcome, RdmaAnswer, TcpEndpoint, child_to_parent::Kind as Said,
        parent_to_child::Kind as Heard, peer_client::PeerClient,
    },
    convert, rdma,
};

use super::{
    Child, LinkEnd, RDMA, TCP,
    control::{Control, OUTGOING_MAX, Terms},
    invalid,
    outstanding::{Outstanding, Watched},
};
use crate::{fill::blocking, link_test::ANYBODY, metrics::Metrics, rdma_words, security::PeerSecurity};

/// Reads outstanding on a link, at most, whatever the parent grants: their memory is this peer's.
const IN_FLIGHT_MAX: u32 = 64;

/// Longest grant that is believed. A parent that dies without a word is noticed by keep-alive, not by this.
const EXPIRY_MAX: Duration = Duration::from_hours(1);

/// A link that is up.
pub(super) struct Open {
    pub(super) control: Control,
    pub(super) terms: Terms,
    pub(super) data: DataLink,
    pub(super) expires: watch::Sender<Instant>,
    /// Why it is one over TCP, where RDMA might have been.
    pub(super) fallback: Option<String>,
}

/// Closes the data link with the task that keeps its grant, also when that is aborted.
pub(super) struct DataLink {
    pub(super) link: Arc<dyn Link>,
    /// The same, if it is one over RDMA.
    pub(super) rdma: Option<Watched>,
    pub(super) metrics: Arc<Metrics>,
    /// What of its bytes is counted there.
    pub(super) counted: u64,
}

impl DataLink {
    /// Counts what has come; says whether that is more than before.
    pub(super) fn count(&mut self) -> bool {
        let received = self.link.bytes_received();
        let before = mem::replace(&mut self.counted, received);
        self.metrics.arrived(received - before);
        received > before
    }
}

impl Drop for DataLink {
    fn drop(&mut self) {
        self.link.close();
        self.count();
    }
}

/// This peer's ends of a link over RDMA, and what will be out on it.
struct Offered {
    offer: Offer,
    outstanding: Outstanding,
}

/// What a parent has to say to an offer.
struct Answer {
    rdma: Option<RdmaAnswer>,
    refusal: String,
}

impl Child {
    pub(super) async fn open(&self, sink: CompletionSink) -> Result<Open, LinkEnd> {
        let (offered, mut fallback) = match self.offer(&sink).await {
            Ok(offered) => (Some(offered), None),
            Err(reason) => (None, reason),
        };
        let endpoints = offered.as_ref().map(|offered| offered.offer.endpoints()).unwrap_or_default();
        let mut control = self.open_control(&endpoints).await?;
        let Heard::Welcome(welcome) = control.next().await? else {
            return Err(invalid("kind", "the first message must be a welcome"));
        };
        let (tcp, answer) = self.check_welcome(welcome)?;
        let Heard::Grant(grant) = control.next().await? else {
            return Err(invalid("kind", "the second message must be a grant"));
        };
        let terms = self.check_grant(&grant)?;
        let (expires, _) = watch::channel(control.end_of(&terms)?);
        let rdma = match offered {
            Some(offered) => match self.connect_rdma(offered, answer).await {
                Ok(link) => Some(link),
                Err(reason) => {
                    fallback = Some(reason);
                    None
                }
            },
            None => None,
        };
        let link = match &rdma {
            Some(watched) => Arc::new(watched.clone()) as Arc<dyn Link>,
            None if self.request.means.transports.allow_tcp() => self.connect_tcp(tcp, &terms, sink).await?,
            None => return Err(LinkEnd::NoRdma(fallback.unwrap_or_else(|| "no device".to_owned()))),
        };
        Ok(Open {
            control,
            terms,
            data: DataLink { link, rdma, metrics: Arc::clone(&self.request.metrics), counted: 0 },
            expires,
            fallback,
        })
    }

    /// This peer's ends, if it has any for that parent; or why not, if that is to be told.
    async fn offer(&self, sink: &CompletionSink) -> Result<Offered, Option<String>> {
        let rdma = self.request.means.transports.rdma_to(self.request.peer)?.clone();
        let outstanding = Outstanding::default();
        let sink = outstanding.noting(Arc::clone(sink));
        match blocking(move || rdma.offer(IN_FLIGHT_MAX as usize, sink)).await {
            Ok(offer) => Ok(Offered { offer, outstanding }),
            Err(error) => Err(Some(explain(&error))),
        }
    }

    async fn connect_rdma(&self, offered: Offered, answer: Answer) -> Result<Watched, String> {
        let Some(message) = answer.rdma else {
            let refusal = reason(&answer.refusal);
            let refusal = if refusal.is_empty() { "it does not know how" } else { &refusal };
            return Err(format!("the peer does not serve over RDMA: {refusal}"));
        };
        let failed = |why: String| {
            let reason = format!("RDMA does not reach the peer: {why}");
            self.request.means.transports.demote(self.request.peer, reason.clone());
            reason
        };
        let (endpoints, probe) = rdma::answer(&message).map_err(|error| failed(explain(&error)))?;
        let Offered { offer, outstanding } = offered;
        let endpoints: Vec<_> = endpoints.iter().map(rdma_words::endpoint_from).collect();
        let probe = rdma_words::probe_from(&probe);
        let connected: Result<_, RdmaError> = blocking(move || offer.connect(&endpoints, &probe)).await;
        connected.map(|link| outstanding.watch(link)).map_err(|error| failed(explain(&error)))
    }

    async fn connect_tcp(
        &self,
        tcp: Option<TcpEndpoint>,
        terms: &Terms,
        sink: CompletionSink,
    ) -> Result<Arc<dyn Link>, LinkEnd> {
        let tcp = tcp.ok_or_else(|| invalid("tcp", "there is no other transport"))?;
        let address = self.data_address(convert::address(tcp.address)?);
        let secret = convert::secret(&tcp.secret)?;
        let security = self.data_security(tcp.encrypted)?;
        let target = Target { address: &address, link: tcp.link, secret: &secret, security };
        tcp::connect(target, terms.in_flight_max as usize, sink).await.map_err(LinkEnd::Data)
    }

    /// Says hello, with the ends of a link over RDMA if there are any.
    async fn open_control(&self, offered: &[Endpoint]) -> Result<Control, LinkEnd> {
        let channel = dial(format!("http://{}", self.request.address), &self.request.means.security.control);
        let channel = channel.await.map_err(LinkEnd::Connect)?;
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let tcp = self.request.means.transports.allow_tcp().then_some(TCP);
        let by_rdma = (!offered.is_empty()).then_some(RDMA);
        let endpoints: Vec<_> = offered.iter().map(rdma_words::endpoint).collect();
        let hello = LinkHello {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            peer_id: self.request.me.bytes().to_vec(),
            artifact: self.request.artifact.0.to_vec(),
            transports: tcp.into_iter().chain(by_rdma).map(str::to_owned).collect(),
            rdma: rdma::endpoint_messages(&endpoints),
        };
        let hello = ChildToParent { kind: Some(Said::Hello(hello)) };
        outgoing.try_send(hello).expect("the channel is new");
        let asked = Instant::now();
        let inbound = client.link(ReceiverStream::new(messages)).await?.into_inner();
        Ok(Control::new(inbound, outgoing, asked))
    }

    fn check_welcome(&self, welcome: LinkWelcome) -> Result<(Option<TcpEndpoint>, Answer), LinkEnd> {
        let LinkWelcome { protocol_version, features: _, peer_id, tcp, rdma, rdma_refusal } = welcome;
        check_version(protocol_version)?;
        let peer = convert::peer_id(&peer_id)?;
        if peer != self.request.peer && self.request.peer != ANYBODY {
            // Its address was taken by another process since the plan was made.
            return Err(invalid("peer_id", "another peer answers at this address"));
        }
        Ok((tcp, Answer { rdma, refusal: rdma_refusal }))
    }

    pub(super) fn check_grant(&self, grant: &control::Grant) -> Result<Terms, LinkEnd> {
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
        let lasts = Duration::from_millis(grant.expires_ms.into());
        if grant.in_flight_max == 0 || lasts.is_zero() || lasts > EXPIRY_MAX {
            return Err(invalid("grant", "it grants nothing, or for ever"));
        }
        let rate = (grant.bytes_per_second_max > 0).then_some(grant.bytes_per_second_max);
        Ok(Terms { windows, in_flight_max: grant.in_flight_max.min(IN_FLIGHT_MAX), lasts, rate })
    }

    /// The parent says how it sends; whether that is enough is this peer's to say.
    fn data_security(&self, is_encrypted: bool) -> Result<&Security, LinkEnd> {
        let PeerSecurity { control, data } = &self.request.means.security;
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
}
