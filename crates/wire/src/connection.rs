//! How control connections behave, the same on both ends: message sizes, keep-alive, dialling, serving, and the words
//! of their failures. Does not own who connects to whom, or what is said.

use std::{convert::Infallible, error::Error, time::Duration};

use tokio::{net::TcpListener, sync::oneshot, time::sleep};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    transport::{Endpoint, Server, server::TcpIncoming},
};

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

/// Streams on one connection, at most. Each side opens one.
const STREAMS_MAX: u32 = 16;

/// How long a server that shuts down waits for its streams to end.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// Most characters that are shown of what the other side gives as its reason.
const REASON_CHARS_MAX: usize = 256;

/// Where to connect: `http://HOST:PORT`.
///
/// # Errors
/// If that is not a URI.
pub fn endpoint(uri: String) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri)?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

/// Serves until `shutdown` is ready and the streams have ended, or have been given the time to.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve<S>(
    listener: TcpListener,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send,
{
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
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
    let serving = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_MAX)
        .serve_with_incoming_shutdown(service, incoming, shutdown);
    tokio::select! {
        served = serving => served,
        () = patience => Ok(()),
    }
}

/// A failure of a connection or call in one line, with its causes.
pub fn explain(error: &(dyn Error + 'static)) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = match error.downcast_ref::<Status>() {
            Some(status) => reason(status.message()),
            None => error.to_string(),
        };
        // Some errors repeat their cause.
        if !text.is_empty() && words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

/// What the other side gives as its reason, fit for a log or a terminal.
pub fn reason(text: &str) -> String {
    text.chars().filter(|char| !char.is_control()).take(REASON_CHARS_MAX).collect()
}
