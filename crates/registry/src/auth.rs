//! Proving who asks: Basic, and Bearer tokens as in the distribution project's token specification.
//!
//! Owns: challenges, tokens and their expiry. Does not own: sending requests (`channel`), which decides that a header
//! made here goes to the registry itself and to no other host.

use std::{
    fmt,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{
    Method, Request, Url,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use serde::Deserialize;
use tokio::sync::Mutex;

use crate::{
    access::Credentials,
    address::{host_of, join},
    channel::Channel,
    error::{Exchange, RegistryError},
};

/// Tokens are some kilobytes even with many claims.
const TOKEN_ANSWER_BYTES_MAX: u64 = 1 << 20;
/// What the token specification says of tokens that do not state it.
const EXPIRES_IN_DEFAULT: Duration = Duration::from_mins(1);
/// A token that is about to expire is renewed first, so that a request does not arrive just too late.
const EXPIRY_SLACK_MAX: Duration = Duration::from_secs(10);

/// What a request does, and so which rights its token needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Pull,
    Push,
    /// Nothing: whether the credentials are good is the question.
    Login,
}

/// The proofs for one repository: one for each action. Many requests run at once; the lock makes them wait for one
/// token instead of asking for one each.
pub(crate) struct Auth {
    credentials: Credentials,
    /// Another repository of the registry that tokens for pushing are to open as well.
    other: Option<String>,
    pull: Mutex<Proof>,
    push: Mutex<Proof>,
}

#[derive(Default)]
struct Proof {
    challenge: Option<Challenge>,
    header: Option<Header>,
}

struct Header {
    value: HeaderValue,
    expires: Option<Instant>,
}

/// What the registry answered to a request that proved nothing.
enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String>, scope: Option<String> },
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").field("credentials", &self.credentials).finish_non_exhaustive()
    }
}

impl Auth {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self { credentials, other: None, pull: Mutex::default(), push: Mutex::default() }
    }

    /// With a token that is shown with every request; `None` if no header can carry it.
    pub(crate) fn bearer(token: Option<&str>) -> Option<Self> {
        let Some(token) = token else { return Some(Self::new(Credentials::Anonymous)) };
        let authorization = format!("Bearer {token}");
        HeaderValue::try_from(&authorization).ok()?;
        Some(Self::new(Credentials::Forwarded { authorization: Some(authorization) }))
    }

    /// The same, with nothing proved yet.
    pub(crate) fn afresh(&self) -> Self {
        Self::new(self.credentials.clone())
    }

    /// The same, but tokens for pushing open another repository for reading, too.
    pub(crate) fn also_reading(self, repository: &str) -> Self {
        Self { other: Some(repository.to_owned()), ..self }
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// The `Authorization` for a request, as far as the registry has said that it wants one.
    pub(crate) async fn header(
        &self,
        channel: &Channel,
        action: Action,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if let Credentials::Forwarded { authorization } = &self.credentials {
            return Ok(authorization.clone().and_then(sensitive));
        }
        let mut proof = self.proof(action).lock().await;
        if let Some(header) = proof.header.as_ref().filter(|header| header.is_fresh()) {
            return Ok(Some(header.value.clone()));
        }
        self.prove(channel, action, &mut proof).await
    }

    /// Another `Authorization` after the registry refused `refused` with `headers`; `None` if there is none to try.
    pub(crate) async fn renewed(
        &self,
        channel: &Channel,
        action: Action,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        if matches!(self.credentials, Credentials::Forwarded { .. }) {
            return Ok(None);
        }
        let mut proof = self.proof(action).lock().await;
        if let Some(header) = proof.header.as_ref().filter(|header| header.is_fresh()) {
            // Another request was faster.
            if Some(&header.value) != refused {
                return Ok(Some(header.value.clone()));
            }
        }
        if let Some(challenge) = challenge(headers, channel.base()) {
            proof.challenge = Some(challenge);
        }
        proof.header = None;
        let header = self.prove(channel, action, &mut proof).await?;
        Ok(header.filter(|value| Some(value) != refused))
    }

    /// Whether the registry has wanted a proof for this, and got one.
    pub(crate) async fn has_proved(&self, action: Action) -> bool {
        self.proof(action).lock().await.header.is_some() && self.credentials != Credentials::Anonymous
    }

    fn proof(&self, action: Action) -> &Mutex<Proof> {
        match action {
            Action::Pull | Action::Login => &self.pull,
            Action::Push => &self.push,
        }
    }

    async fn prove(
        &self,
        channel: &Channel,
        action: Action,
        proof: &mut Proof,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        proof.header = match &proof.challenge {
            None => None,
            Some(Challenge::Basic) => self.basic().map(|value| Header { value, expires: None }),
            Some(Challenge::Bearer { realm, service, scope }) => {
                let ours = match action {
                    Action::Pull => Some(format!("repository:{}:pull", channel.repository())),
                    Action::Push => Some(format!("repository:{}:pull,push", channel.repository())),
                    Action::Login => None,
                };
                let mut query = Vec::new();
                query.extend(service.iter().map(|service| ("service", service.as_str())));
                query.extend(scope.iter().chain(&ours).take(1).map(|scope| ("scope", scope.as_str())));
                // Two of them, as the token specification has it for an access to several resources.
                let other = self.other.as_ref().filter(|_| action == Action::Push);
                let other = other.map(|other| format!("repository:{other}:pull"));
                query.extend(other.iter().map(|other| ("scope", other.as_str())));
                let request = self.token_request(realm, &query);
                Some(self.token(channel, request).await?)
            }
        };
        Ok(proof.header.as_ref().map(|header| header.value.clone()))
    }

    fn basic(&self) -> Option<HeaderValue> {
        let Credentials::Basic { username, password } = &self.credentials else { return None };
        sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
    }

    /// A GET with the password, or a POST with the identity token (OAuth 2.0, RFC 6749 §6).
    fn token_request(&self, realm: &Url, query: &[(&str, &str)]) -> Request {
        let mut url = realm.clone();
        let mut request = if let Credentials::Identity { token } = &self.credentials {
            // Only to have it written as forms are.
            let mut form = Url::parse("http://form/").expect("a constant URL");
            let own = [("grant_type", "refresh_token"), ("client_id", "modelctl"), ("refresh_token", token)];
            form.query_pairs_mut().extend_pairs(own).extend_pairs(query);
            let mut request = Request::new(Method::POST, url);
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            request.headers_mut().insert(CONTENT_TYPE, form_type);
            *request.body_mut() = Some(form.query().unwrap_or_default().to_owned().into());
            request
        } else {
            url.query_pairs_mut().extend_pairs(query);
            let mut request = Request::new(Method::GET, url);
            if let Some(basic) = self.basic() {
                request.headers_mut().insert(AUTHORIZATION, basic);
            }
            request
        };
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static("application/json"));
        request
    }

    /// One attempt: whoever wanted the token has attempts of its own.
    async fn token(&self, channel: &Channel, request: Request) -> Result<Header, RegistryError> {
        let exchange = Exchange { operation: "get a token".to_owned(), host: host_of(request.url()) };
        let asked = Instant::now();
        let answer = channel.exchange(request, exchange.clone()).await?.success().await?;
        let raw = answer.bytes(TOKEN_ANSWER_BYTES_MAX).await?;
        let bad =
            |problem: &str| RegistryError::Answer { exchange: exchange.clone(), problem: problem.to_owned() };
        let answer: TokenAnswer =
            serde_json::from_slice(&raw).map_err(|_| bad("the answer is not a token"))?;
        let token = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
        let token = token.ok_or_else(|| bad("the answer holds no token"))?;
        let value = sensitive(format!("Bearer {token}")).ok_or_else(|| bad("the token is not printable"))?;
        let lifetime = answer.expires_in.map_or(EXPIRES_IN_DEFAULT, Duration::from_secs);
        // A lifetime beyond the clock's range is as good as one without end.
        let expires = asked.checked_add(lifetime.saturating_sub(EXPIRY_SLACK_MAX.min(lifetime / 4)));
        Ok(Header { value, expires })
    }
}

impl Header {
    fn is_fresh(&self) -> bool {
        self.expires.is_none_or(|expires| Instant::now() < expires)
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

fn sensitive(value: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The challenge to meet: a token if one is offered, since the password then goes to the token server only.
fn challenge(headers: &HeaderMap, base: &Url) -> Option<Challenge> {
    let mut basic = None;
    for header in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(challenges) = header.to_str().map(http_auth::parse_challenges) else { continue };
        for challenge in challenges.into_iter().flatten() {
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                // Not a realm over plain HTTP when the registry is not: it would be shown the password.
                let Some(realm) = parameter("realm").and_then(|realm| join(base, &realm).ok()) else {
                    continue;
                };
                return Some(Challenge::Bearer {
                    realm,
                    service: parameter("service"),
                    scope: parameter("scope"),
                });
            } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}
