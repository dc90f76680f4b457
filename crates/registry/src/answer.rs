//! The registry's answer to one request: its head, then its body under limits.
//!
//! Owns: reading bodies and refusals, where redirects lead. Does not own: what a good answer says.

use std::{fmt, time::SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::{
    Response, StatusCode, Url,
    header::{AsHeaderName, CONTENT_ENCODING, HeaderMap, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::time::timeout;

use crate::{
    address::join,
    error::{ConnectionError, Exchange, Refusal, RegistryError},
    patience::{Patience, parse_rate_limit, parse_retry_after},
};

/// Bodies of refusals and redirects that are read: an OCI error list is some hundred bytes.
const REFUSAL_BYTES_MAX: u64 = 64 << 10;
/// Challenges of one answer that are passed on: registries have one, or one for each of two schemes.
const CHALLENGES_MAX: usize = 4;
/// What of an error message is passed on.
const DETAIL_CHARS_MAX: usize = 300;

/// A response whose head has come.
pub(crate) struct Answer {
    response: Response,
    url: Url,
    exchange: Exchange,
    patience: Patience,
    /// Whether it comes from another host than the registry.
    pub(crate) is_redirected: bool,
    /// What a hub said of the bytes that it redirected to.
    pub(crate) linked: Linked,
}

/// What a hub's redirect says of what it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Linked {
    pub(crate) etag: Option<String>,
    pub(crate) size: Option<u64>,
}

impl Linked {
    /// The first that says something counts.
    pub(crate) fn hear(&mut self, answer: &Answer) {
        let etag = || answer.header("x-linked-etag").map(unquoted);
        self.etag = self.etag.take().or_else(etag);
        self.size = self.size.or_else(|| answer.header("x-linked-size")?.parse().ok());
    }
}

/// An entity tag's text, be it a weak one.
fn unquoted(etag: &str) -> String {
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"').to_owned()
}

impl Answer {
    pub(crate) fn new(
        response: Result<Response, ConnectionError>,
        url: Url,
        exchange: Exchange,
        patience: Patience,
    ) -> Result<Self, RegistryError> {
        match response {
            Ok(response) => Ok(Self {
                response,
                url,
                exchange,
                patience,
                is_redirected: false,
                linked: Linked::default(),
            }),
            Err(source) => Err(RegistryError::Connection { exchange, source }),
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub(crate) const fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) const fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// The value of a header that occurs once and is readable.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The answer is not what it should be.
    pub(crate) fn problem(&self, problem: impl Into<String>) -> RegistryError {
        RegistryError::Answer { exchange: self.exchange.clone(), problem: problem.into() }
    }

    /// Where the answer's `Location` leads.
    pub(crate) fn location(&self) -> Result<Url, RegistryError> {
        let location = self.header(LOCATION).ok_or_else(|| self.problem("the answer has no `Location`"))?;
        self.join(location)
    }

    /// Where a URL reference in the answer leads.
    pub(crate) fn join(&self, reference: &str) -> Result<Url, RegistryError> {
        let exchange = self.exchange.clone();
        join(&self.url, reference).map_err(|problem| RegistryError::Redirect { exchange, problem })
    }

    /// The next bytes of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let silence = self.patience.silence_max;
        let source = match timeout(silence, self.response.chunk()).await {
            Ok(Ok(chunk)) => return Ok(chunk),
            Ok(Err(error)) => ConnectionError::from(error),
            Err(_) => ConnectionError::Silence(silence),
        };
        Err(RegistryError::Connection { exchange: self.exchange.clone(), source })
    }

    /// The whole body, which is small.
    pub(crate) async fn bytes(mut self, bytes_max: u64) -> Result<Vec<u8>, RegistryError> {
        self.require_identity()?;
        let limit = self.patience.small_answer_max;
        let exchange = self.exchange.clone();
        let body = async {
            let mut body = BytesMut::new();
            while let Some(chunk) = self.chunk().await? {
                if body.len() as u64 + chunk.len() as u64 > bytes_max {
                    return Err(RegistryError::TooLarge { exchange: self.exchange.clone(), bytes_max });
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body.into())
        };
        match timeout(limit, body).await {
            Ok(body) => body,
            Err(_) => Err(RegistryError::Connection { exchange, source: ConnectionError::Slow(limit) }),
        }
    }

    /// The answer if it is a success, else the error that it is.
    pub(crate) async fn success(self) -> Result<Self, RegistryError> {
        if self.status().is_success() {
            return Ok(self);
        }
        let retry_after =
            self.header(RETRY_AFTER).and_then(|value| parse_retry_after(value, SystemTime::now()));
        let challenges = self.headers().get_all(WWW_AUTHENTICATE).iter().take(CHALLENGES_MAX);
        let challenges = challenges.filter_map(|value| value.to_str().ok().map(ToOwned::to_owned));
        let mut refusal = Refusal {
            status: self.status().as_u16(),
            code: self.header("x-error-code").map(printable).unwrap_or_default(),
            detail: self.header("x-error-message").map(printable).unwrap_or_default(),
            challenges: if self.is_redirected { Vec::new() } else { challenges.collect() },
            retry_after: retry_after.or_else(|| parse_rate_limit(self.header("ratelimit")?)),
            is_redirected: self.is_redirected,
        };
        let exchange = self.exchange.clone();
        if let Ok(body) = self.bytes(REFUSAL_BYTES_MAX).await
            && refusal.detail.is_empty()
        {
            refusal.detail = detail(&body);
        }
        Err(RegistryError::Refused { exchange, refusal: Box::new(refusal) })
    }

    /// Reads a body that does not matter, so that the connection can be used again.
    pub(crate) async fn settle(self) {
        let is_small = self.response.content_length().is_some_and(|length| length <= REFUSAL_BYTES_MAX);
        if is_small && let Err(error) = self.bytes(REFUSAL_BYTES_MAX).await {
            tracing::trace!(%error, "a connection is not used again");
        }
    }

    /// This client asks for bytes as they are and never decodes any.
    pub(crate) fn require_identity(&self) -> Result<(), RegistryError> {
        match self.header(CONTENT_ENCODING) {
            None | Some("identity") => Ok(()),
            Some(_) => Err(self.problem("the answer is compressed though that was not asked for")),
        }
    }
}

impl fmt::Debug for Answer {
    /// Without the URL, which may be signed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Answer");
        debug.field("exchange", &self.exchange).field("status", &self.status()).finish_non_exhaustive()
    }
}

/// The first error of an OCI error body, or the one of a hub's. It comes from anywhere, so nothing in it may move a terminal's cursor.
fn detail(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Errors {
        Registry { errors: Vec<First> },
        Hub { error: String },
    }
    #[derive(Deserialize)]
    struct First {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let errors = match serde_json::from_slice(body) {
        Ok(Errors::Registry { errors }) => errors,
        Ok(Errors::Hub { error }) => return printable(&error),
        Err(_) => return String::new(),
    };
    let Some(First { code, message }) = errors.into_iter().next() else { return String::new() };
    let separator = if code.is_empty() || message.is_empty() { "" } else { ": " };
    printable(&format!("{code}{separator}{message}"))
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(DETAIL_CHARS_MAX).collect()
}
