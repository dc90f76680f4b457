//! The few words of HTTP that inference servers beside this process are told.
//!
//! Owns: one request a connection, its limits, and when to try again. Does not own: what is asked.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request,
    body::Bytes,
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, time::timeout};

use crate::error::SidecarError;

/// Bytes of an answer that are read: errors and lists of models.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long a server beside this process may take to accept a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How long a question may take that takes no work.
pub(super) const QUESTION_MAX: Duration = Duration::from_secs(10);

/// Tries of one step before it is given up, and the first pause between them, which doubles: a second and a half in
/// all, for a server that is being restarted there is the next round.
const TRIES_MAX: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Characters of an answer that are repeated.
const REASON_CHARS_MAX: usize = 300;

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nobody answers, or not in time: it is not known whether it was done.
    Silent(String),
    /// The answer is an error.
    Said(u16, String),
}

impl Fault {
    fn reason(&self) -> String {
        match self {
            Self::Silent(why) => why.clone(),
            Self::Said(status, what) if what.is_empty() => format!("it answers {status}"),
            Self::Said(status, what) => format!("it answers {status}: {what}"),
        }
    }
}

/// A server beside this process.
#[derive(Clone, Debug)]
pub(super) struct Http {
    /// Its kind, for people.
    kind: &'static str,
    /// `http://HOST[:PORT]`, and perhaps a path.
    url: String,
}

impl Http {
    pub(super) fn new(kind: &'static str, url: &str) -> Self {
        Self { kind, url: url.to_owned() }
    }

    /// What `fault` means to people, when it was asked to do this.
    pub(super) fn error(&self, operation: &str, fault: &Fault) -> SidecarError {
        let (operation, reason) = (operation.to_owned(), fault.reason());
        SidecarError::Server { server: self.kind, url: self.url.clone(), operation, reason }
    }

    /// The same, tried again if nothing comes of it.
    pub(super) async fn patiently(
        &self,
        path: &str,
        body: Option<&Value>,
        at_most: Duration,
    ) -> Result<Bytes, Fault> {
        let mut pause = FIRST_PAUSE;
        for _ in 1..TRIES_MAX {
            match self.post(path, body, at_most).await {
                Ok(answer) => return Ok(answer),
                Err(fault) => tracing::debug!(server = self.kind, path, ?fault, "tried again"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        self.post(path, body, at_most).await
    }

    pub(super) async fn post(
        &self,
        path: &str,
        body: Option<&Value>,
        at_most: Duration,
    ) -> Result<Bytes, Fault> {
        self.ask(Method::POST, path, body, at_most).await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Bytes, Fault> {
        self.ask(Method::GET, path, None, QUESTION_MAX).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        at_most: Duration,
    ) -> Result<Bytes, Fault> {
        match timeout(at_most, self.exchange(method, path, body)).await {
            Ok(answered) => answered,
            Err(_) => Err(Fault::Silent(format!("no answer within {} s", at_most.as_secs_f64()))),
        }
    }

    async fn exchange(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Bytes, Fault> {
        let silent = |error: &dyn std::error::Error| Fault::Silent(crate::error::line(error));
        let at = self.url.strip_prefix("http://").unwrap_or(&self.url);
        let (authority, base) =
            at.split_once('/').map_or((at, String::new()), |(at, base)| (at, format!("/{base}")));
        let address = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
        let connecting = timeout(CONNECT_MAX, TcpStream::connect(&address)).await;
        let stream = connecting.map_err(|late| silent(&late))?.map_err(|error| silent(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| silent(&error))?;
        let text = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(format!("{base}{path}"))
            .header(HOST, authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))
            .map_err(|error| silent(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| silent(&error))?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = read.map_err(|error| Fault::Silent(error.to_string()))?.to_bytes();
            if status.is_success() { Ok(bytes) } else { Err(Fault::Said(status.as_u16(), said(&bytes))) }
        };
        // The connection does nothing by itself, and ends with this exchange.
        tokio::pin!(exchange);
        tokio::select! {
            answered = &mut exchange => answered,
            ended = connection => match ended {
                // It may end first, with the answer in hand.
                Ok(()) => exchange.await,
                Err(error) => Err(silent(&error)),
            },
        }
    }
}

/// What an error says, in one line.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let parsed: Option<Value> = serde_json::from_str(&text).ok();
    let field = |name: &str| Some(parsed.as_ref()?.get(name)?.as_str()?.to_owned());
    let text = field("error").or_else(|| field("message")).unwrap_or_else(|| text.into_owned());
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() > REASON_CHARS_MAX {
        return line.chars().take(REASON_CHARS_MAX).chain(['…']).collect();
    }
    line
}
