//! How control connections behave, the same on both ends: message sizes, keep-alive, dialling, serving, securing, and
//! the words of their failures. Does not own who connects to whom, or what is said.

mod member;
mod refusals;

use std::{
    convert::Infallible,
    error::Error,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use identity::{Identity, Security};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};

use member::Member;
use refusals::Refusals;

/// Most bytes of a message, but for the description of an artifact. What grows with an artifact is sent in parts.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Most bytes of a description: the manifest, the config, and trees of up to 1.7 million pieces (1.7 TB).
pub const DESCRIPTION_BYTES_MAX: usize = 64 << 20;

/// Most runs in one message: at most 14 bytes each, so under 1 MiB.
pub const RUNS_PER_MESSAGE_MAX: usize = 1 << 16;

/// How long making a connection may take, until the first message.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a connection is probed. A process that dies closes its sockets; only a machine that dies is found so.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// How long a probe may go unanswered: longer than a busy machine keeps its runtime from running.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// The same for a peer's connection to its scheduler, where another one may be waiting: a process that hangs is found
/// within two seconds. A peer that was itself kept from running finds the same scheduler again, and loses nothing.
const SCHEDULER_KEEPALIVE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_millis(1200));

/// Streams on one connection, at most: one that lasts, and questions beside it.
const STREAMS_MAX: u32 = 16;

/// Connections that have yet to prove that they are of the fleet, at most; beyond, they wait in the backlog.
const HANDSHAKES_MAX: usize = 256;

/// How long no connection is accepted after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long a server that shuts down waits for its streams to end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Most characters that are shown of what the other side gives as its reason.
const REASON_CHARS_MAX: usize = 256;

/// Connects to `http://HOST:PORT`. The scheme says nothing of how it is secured.
///
/// # Errors
/// If that is not a URI, nobody answers there, or both ends do not trust each other.
pub async fn dial(uri: String, security: &Security) -> Result<Channel, tonic::transport::Error> {
    dial_with(uri, security, (KEEPALIVE_INTERVAL, KEEPALIVE_TIMEOUT)).await
}

/// The same for the scheduler at HOST:PORT, which is found sooner to hang.
///
/// # Errors
/// As [`dial`].
pub async fn dial_scheduler(address: &str, security: &Security) -> Result<Channel, tonic::transport::Error> {
    dial_with(format!("http://{address}"), security, SCHEDULER_KEEPALIVE).await
}

async fn dial_with(
    uri: String,
    security: &Security,
    (interval, patience): (Duration, Duration),
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true);
    let Security::Fleet(identity) = security else { return endpoint.connect().await };
    let identity = identity.clone();
    let connector = tower::service_fn(move |uri: http::Uri| {
        let identity = identity.clone();
        async move {
            let missing = || io::Error::new(io::ErrorKind::InvalidInput, "not HOST:PORT");
            let (host, port) = (uri.host().ok_or_else(missing)?, uri.port_u16().ok_or_else(missing)?);
            // As in a URI, an IPv6 address stands in brackets.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let socket = TcpStream::connect((host, port)).await?;
            socket.set_nodelay(true)?;
            identity.connect(socket).await.map(TokioIo::new)
        }
    });
    endpoint.connect_with_connector(connector).await
}

/// Serves members of the fleet, or anybody if nothing is secured, until `shutdown` is ready and the streams have ended,
/// or have been given the time to.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve<S>(
    listener: TcpListener,
    security: &Security,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let (begin_drain, drain) = oneshot::channel();
    let shutdown = async {
        shutdown.await;
        // Nobody waits for it only once the server has ended.
        let _ = begin_drain.send(());
    };
    let patience = async {
        let _ = drain.await;
        sleep(DRAIN_MAX).await;
    };
    let builder = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX);
    let serving = async {
        match security {
            Security::Plain => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                builder.serve_with_incoming_shutdown(service, incoming, shutdown).await
            }
            Security::Fleet(identity) => {
                let incoming = accept_members(listener, identity.clone());
                builder.serve_with_incoming_shutdown(service, incoming, shutdown).await
            }
        }
    };
    tokio::select! {
        served = serving => served,
        () = patience => Ok(()),
    }
}

/// Connections whose other end has proved to be a member. Each proves it by itself: a stranger who says nothing holds
/// up nobody.
fn accept_members(listener: TcpListener, identity: Identity) -> ReceiverStream<io::Result<Member>> {
    let (members, incoming) = mpsc::channel(1);
    let (places, refusals) = (Arc::new(Semaphore::new(HANDSHAKES_MAX)), Arc::<Refusals>::default());
    tokio::spawn(async move {
        loop {
            let place = Arc::clone(&places).acquire_owned().await;
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = members.closed() => return,
            };
            let Ok((socket, from)) = accepted else {
                // Such failures (no descriptors left) pass only with time.
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (identity, members, refusals) = (identity.clone(), members.clone(), Arc::clone(&refusals));
            tokio::spawn(async move {
                let secured = async {
                    socket.set_nodelay(true)?;
                    identity.accept(socket).await
                };
                match timeout(CONNECT_TIMEOUT, secured).await {
                    Ok(Ok(member)) => drop(members.send(Ok(Member::new(member))).await),
                    Ok(Err(error)) => {
                        let why = identity::explain(&error).unwrap_or("the handshake failed");
                        if refusals.is_news(from.ip(), why, Instant::now()) {
                            tracing::warn!(%from, %error, why, "a connection was refused");
                        } else {
                            tracing::debug!(%from, %error, why, "a connection was refused");
                        }
                    }
                    Err(_) => tracing::debug!(%from, "a connection said nothing"),
                }
                drop(place);
            });
        }
    });
    ReceiverStream::new(incoming)
}

/// A failure of a connection or call in one line, with its causes.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let why = error.downcast_ref::<io::Error>().and_then(identity::explain);
        let text = match (error.downcast_ref::<Status>(), why) {
            (Some(status), _) => reason(status.message()),
            (None, Some(why)) => why.to_owned(),
            (None, None) if is_tls(error) => {
                "the other side does not speak in plain text: it has a fleet key".to_owned()
            }
            (None, None) => error.to_string(),
        };
        // Some errors repeat their cause.
        if !text.is_empty() && words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

/// What may be done about a failure of a connection, if it can be told.
pub fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| {
        let plain = || is_tls(error).then_some(identity::HINT_NO_KEY);
        error.downcast_ref::<io::Error>().and_then(identity::hint).or_else(plain)
    })
}

/// What the first bytes of TLS look like to HTTP/2; no error says so by its type.
fn is_tls(error: &dyn Error) -> bool {
    error.to_string().contains("frame with invalid size")
}

/// What the other side gives as its reason, fit for a log or a terminal.
pub fn reason(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect()
}
