//! The HTTP face: two pages and what a role adds, for anybody who can reach the port.
//!
//! Owns: what is answered to whom, and how much one side may cost. Does not own: the pages' numbers.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};

/// Connections at once: a few scrapers and probes. More wait in the backlog.
const CONNECTIONS_MAX: usize = 32;

/// How long a request's head may take to arrive, so that whoever says nothing keeps no place.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one connection may last in all: scrapers connect again.
const CONNECTION_MAX: Duration = Duration::from_mins(10);

/// Bytes of a request's head, at most.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// How long no connection is accepted after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Whether a process does its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It serves; and how, in one line.
    Serving(&'static str),
    /// It does not, yet or any more; and why, in one line.
    Unready(&'static str),
}

/// A process as it shows itself.
pub trait Watched: Send + Sync + 'static {
    /// Its numbers, in the text format of Prometheus.
    fn metrics(&self) -> String;
    /// Whether it serves.
    fn health(&self) -> Health;
    /// A page that only this role has.
    fn page(&self, _path: &str) -> Option<Reply> {
        None
    }
    /// What there is, for whoever asks for something else.
    fn pages(&self) -> &'static str {
        "/metrics and /healthz"
    }
}

/// A page that a role has beside its numbers and its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// All is well; in one line.
    Well(String),
    /// Something is not, yet or any more; and what, in one line.
    NotYet(String),
    /// A JSON document.
    Json(String),
}

/// Answers on `listener` until the future is dropped, which ends every connection.
pub async fn serve(listener: TcpListener, watched: Arc<dyn Watched>) -> Infallible {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let place = Arc::clone(&places).acquire_owned().await;
        match listener.accept().await {
            Ok((socket, _)) => {
                let watched = Arc::clone(&watched);
                connections.spawn(async move {
                    converse(socket, watched).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                // Such failures (no descriptors left) pass only with time.
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(socket: TcpStream, watched: Arc<dyn Watched>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&request, watched.as_ref());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(socket), service);
    // One that lasts too long is closed, which is no failure.
    if let Ok(Err(error)) = timeout(CONNECTION_MAX, connection).await {
        tracing::debug!(%error, "a connection for metrics failed");
    }
}

fn answer(request: &Request<Incoming>, watched: &dyn Watched) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = page(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match request.uri().path() {
        "/metrics" => page(StatusCode::OK, watched.metrics()),
        "/healthz" => match watched.health() {
            Health::Serving(how) => page(StatusCode::OK, format!("{how}\n")),
            Health::Unready(why) => page(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        },
        path => match watched.page(path) {
            Some(Reply::Well(how)) => page(StatusCode::OK, format!("{how}\n")),
            Some(Reply::NotYet(why)) => page(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
            Some(Reply::Json(text)) => {
                let mut json = page(StatusCode::OK, format!("{text}\n"));
                json.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                json
            }
            None => page(StatusCode::NOT_FOUND, format!("there are {}\n", watched.pages())),
        },
    }
}

fn page(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
