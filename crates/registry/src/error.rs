//! What can go wrong between this process and a registry.
//!
//! Owns: the error type, its classes and hints. Does not own: deciding how often to try again (`patience`).

use std::{fmt, io, path::PathBuf, time::Duration};

use modelpack::digest::Sha256Digest;
use reqwest::StatusCode;

use crate::hub::HubFailure;

/// What was asked of which host. Neither part ever holds a query string or a credential.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// The operation as a verb phrase, such as ``read blob `sha256:…` ``.
    pub operation: String,
    /// The host that answered or did not, with its port if it is not the scheme's own.
    pub host: String,
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} at `{}`", self.operation, self.host)
    }
}

/// A status other than the expected ones, and what the host said about it.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status code.
    pub status: u16,
    /// What a hub calls it (`X-Error-Code`), made printable and short; empty if it does not say.
    pub code: String,
    /// The first error of an OCI error body, made printable and short; empty if there was none.
    pub detail: String,
    /// How long the host asked to be left alone.
    pub retry_after: Option<Duration>,
    /// What the registry wants to be proved, as its `WWW-Authenticate` headers say it; empty of another host.
    pub challenges: Vec<String>,
    /// Whether a redirect led here. Its URL may have expired, and then the registry gives out another.
    pub is_redirected: bool,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = StatusCode::from_u16(self.status).ok().and_then(|code| code.canonical_reason());
        write!(f, "status {} {}", self.status, name.unwrap_or("without a name"))?;
        if self.detail.is_empty() { Ok(()) } else { write!(f, ": {}", self.detail) }
    }
}

/// What a caller can do about a [`RegistryError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// Asking again may help: a lost connection, an overloaded or misbehaving server.
    Retry,
    /// Asking again cannot help.
    Fatal,
    /// The registry does not have it.
    NotFound,
    /// The registry wants other credentials.
    Unauthorized,
    /// The registry keeps sending bytes that are not those that the digest names.
    Integrity,
}

/// A registry could not be asked, refused, or answered something unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry or repository name makes no URL.
    #[error("`{0}` is not the address of a repository")]
    Address(String),
    /// The HTTP client could not be set up: the extra certificates or the system's are unusable.
    #[error("cannot prepare connections to `{registry}`")]
    Setup {
        /// The registry.
        registry: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// No whole answer came: no connection, or one that broke or went silent.
    #[error("{exchange}")]
    Connection {
        /// What was asked of whom.
        exchange: Exchange,
        /// Why. Never holds a URL.
        #[source]
        source: ConnectionError,
    },
    /// The host answered with a status that ends the operation.
    #[error("{exchange}: {refusal}")]
    Refused {
        /// What was asked of whom.
        exchange: Exchange,
        /// The answer.
        refusal: Box<Refusal>,
    },
    /// The host's answer contradicts the protocol or what was asked for.
    #[error("{exchange}: {problem}")]
    Answer {
        /// What was asked of whom.
        exchange: Exchange,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The answer is larger than anything that belongs there.
    #[error("{exchange}: the answer is larger than {bytes_max} bytes")]
    TooLarge {
        /// What was asked of whom.
        exchange: Exchange,
        /// The limit.
        bytes_max: u64,
    },
    /// The host redirects to where this client does not go.
    #[error("{exchange}: {problem}")]
    Redirect {
        /// What was asked of whom.
        exchange: Exchange,
        /// Why the redirect is not followed.
        problem: &'static str,
    },
    /// The tag that would list a referrer names something that is no index.
    #[error("{exchange}: the tag names something else")]
    Occupied {
        /// What was asked of whom.
        exchange: Exchange,
    },
    /// The bytes are not those that the digest names.
    #[error("{exchange}: expected `{expected}` but the bytes have `{found}`")]
    Digest {
        /// What was asked of whom.
        exchange: Exchange,
        /// The digest that was asked for.
        expected: Sha256Digest,
        /// What came.
        found: Sha256Digest,
    },
    /// The file with stored credentials cannot be used.
    #[error("cannot read credentials from `{}`", path.display())]
    Credentials {
        /// The file.
        path: PathBuf,
        /// Why. Never quotes the file.
        #[source]
        source: io::Error,
    },
    /// A model of a hub cannot be had.
    #[error(transparent)]
    Hub(#[from] HubFailure),
    /// The file that says which registries have mirrors cannot be used.
    #[error("cannot use the settings of `{}`", path.display())]
    Settings {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The local file could not be read while it was sent.
    #[error("cannot read the bytes to send for `{digest}`")]
    File {
        /// The blob.
        digest: Sha256Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why no whole answer came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The HTTP client's reason, without its URL.
    #[error(transparent)]
    Http(reqwest::Error),
    /// Nothing moved for this long.
    #[error("nothing came for {0:?}")]
    Silence(Duration),
    /// The whole answer, which is small, took longer than this.
    #[error("the answer was not complete after {0:?}")]
    Slow(Duration),
}

impl From<reqwest::Error> for ConnectionError {
    fn from(error: reqwest::Error) -> Self {
        // A URL may be signed, which makes its query a credential.
        Self::Http(error.without_url())
    }
}

impl RegistryError {
    /// What a caller can do about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Connection { .. } if self.tls_problem().is_some() => Class::Fatal,
            Self::Connection { .. } | Self::Answer { .. } => Class::Retry,
            Self::Refused { refusal, .. } => refusal.class(),
            Self::Hub(failure) => failure.class(),
            Self::Digest { .. } => Class::Integrity,
            Self::Address(_)
            | Self::Setup { .. }
            | Self::TooLarge { .. }
            | Self::Redirect { .. }
            | Self::Occupied { .. }
            | Self::Credentials { .. }
            | Self::Settings { .. }
            | Self::File { .. } => Class::Fatal,
        }
    }

    /// What the user can try, if there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Connection { .. } => match self.tls_problem()? {
                TlsProblem::NotTls => "if this registry speaks plain HTTP, add `--plain-http`",
                TlsProblem::Certificate => "if this registry has its own authority, add `--ca-cert FILE`",
            },
            Self::Refused { refusal, .. } => match (refusal.status, refusal.class()) {
                (401, Class::Unauthorized) => "check the credentials; `modelctl login HOST` stores them",
                (403, Class::Unauthorized) => "these credentials do not allow it; use others",
                (413, _) => {
                    "the registry, or a proxy before it, limits the size of uploads; raise that limit"
                }
                (429, _) => "the registry limits requests; try again later or log in",
                (_, Class::NotFound) => {
                    "check the repository, the tag or digest, and whether it needs a login"
                }
                _ => return None,
            },
            Self::Redirect { .. } => {
                "behind a proxy that adds TLS, docker-registry needs `http.relativeurls: true` or `http.host`"
            }
            Self::Setup { .. } => {
                "install the system's certificates (`ca-certificates`), or check the files of `--ca-cert`, `--client-cert` and `--client-key`"
            }
            Self::Hub(failure) => return failure.hint(),
            Self::Settings { .. } => {
                "`containers-registries.conf(5)` says what may stand in it; CONTAINERS_REGISTRIES_CONF names another"
            }
            Self::Digest { .. } => "the registry's copy is damaged; push it again or use another registry",
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// How long the host asked to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { refusal, .. } => refusal.retry_after,
            Self::Hub(failure) => failure.retry_after(),
            _ => None,
        }
    }

    fn tls_problem(&self) -> Option<TlsProblem> {
        let Self::Connection { source: ConnectionError::Http(error), .. } = self else { return None };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(found) = tls_error(error) {
                return match found {
                    rustls::Error::InvalidMessage(_) => Some(TlsProblem::NotTls),
                    rustls::Error::InvalidCertificate(_) => Some(TlsProblem::Certificate),
                    _ => None,
                };
            }
            cause = error.source();
        }
        None
    }
}

enum TlsProblem {
    NotTls,
    Certificate,
}

/// The TLS error that `error` is or wraps. An `io::Error` shows what it wraps only to `get_ref`, not as its source.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    error.downcast_ref::<rustls::Error>().or_else(|| {
        let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
        inner.downcast_ref::<rustls::Error>().or_else(|| tls_error(inner))
    })
}

impl Refusal {
    pub(crate) fn class(&self) -> Class {
        match self.status {
            // Storage answers so when the URL that the registry signed has expired: the registry signs a new one.
            400 | 401 | 403 | 404 | 410 if self.is_redirected => Class::Retry,
            401 | 403 => Class::Unauthorized,
            404 | 410 => Class::NotFound,
            // 416: an upload or read went out of step with the server, and starts afresh.
            408 | 416 | 429 | 500 | 502 | 503 | 504 => Class::Retry,
            _ => Class::Fatal,
        }
    }
}
