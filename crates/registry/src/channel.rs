//! Requests to one registry and the answers to them.
//!
//! Owns: the HTTP client, authorisation and redirects of one attempt, limits on silence and size. Does not own: trying
//! again, and what requests mean (`repository`, `blob`, `push`, `referrers`).

use std::{
    collections::BTreeMap,
    fmt,
    pin::pin,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use modelpack::digest::Sha256Digest;
use reqwest::{
    Certificate, Client, ClientBuilder, Identity, Method, Request, StatusCode, Url,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue},
    redirect,
};
use tokio::time::timeout;

use crate::{
    access::{Access, Credentials},
    address::{base_url, host_of, hub_url, is_loopback},
    answer::{Answer, Linked},
    auth::{Action, Auth},
    error::{ConnectionError, Exchange, RegistryError},
    patience::Patience,
    upload::Upload,
};

/// A registry redirects to its storage, that perhaps to another zone. More is a loop.
const REDIRECTS_MAX: u32 = 5;
/// Three lost SYNs; whoever does not answer by then is not there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// More connections than any pull uses at once would only be kept idle.
const IDLE_CONNECTIONS_MAX: usize = 64;
/// Blobs whose storage URL is remembered. Signed URLs have a kilobyte or two.
const LOCATIONS_MAX: usize = 1024;

/// One repository of one registry, as HTTP sees it.
pub(crate) struct Channel {
    client: Client,
    base: Url,
    auth: Auth,
    patience: Patience,
    /// Where the registry's storage serves blobs, until it refuses: saves a question for each read.
    locations: Mutex<BTreeMap<Sha256Digest, Url>>,
}

/// One request, to be sent as often as it takes.
pub(crate) struct Ask<'a> {
    pub(crate) action: Action,
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) operation: String,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload<'a>,
}

/// What a request carries.
pub(crate) enum Payload<'a> {
    None,
    Bytes(Bytes),
    /// A blob from a byte on.
    Upload(&'a Upload, u64, &'a (dyn Fn(u64) + Send + Sync)),
}

impl Channel {
    pub(crate) fn new(registry: &str, repository: &str, access: Access) -> Result<Self, RegistryError> {
        let base = base_url(registry, repository, access.plain_http)?;
        let client = client(&base, &access).map_err(|source| RegistryError::Setup {
            registry: registry.to_owned(),
            source: source.without_url(),
        })?;
        Ok(Self {
            client,
            base,
            auth: Auth::new(access.credentials),
            patience: Patience::default(),
            locations: Mutex::default(),
        })
    }

    /// A hub, whose base URL is given as users write it; `None` if that makes no URL, or the token no header.
    pub(crate) fn to_hub(
        endpoint: &str,
        token: Option<&str>,
        ca_pem: Option<Vec<u8>>,
    ) -> Option<Result<Self, RegistryError>> {
        let base = hub_url(endpoint)?;
        let auth = Auth::bearer(token)?;
        let access = Access { plain_http: base.scheme() == "http", ca_pem, ..Access::default() };
        let client = client(&base, &access).map_err(|source| RegistryError::Setup {
            registry: host_of(&base),
            source: source.without_url(),
        });
        Some(client.map(|client| Self {
            client,
            base,
            auth,
            patience: Patience::default(),
            locations: Mutex::default(),
        }))
    }

    pub(crate) fn with_patience(&self, patience: Patience) -> Self {
        self.with(self.auth.afresh(), patience)
    }

    /// The same channel, whose tokens for pushing also allow to read `repository` of the same registry.
    pub(crate) fn also_reading(&self, repository: &str) -> Self {
        let auth = Auth::new(self.auth.credentials().clone()).also_reading(repository);
        self.with(auth, self.patience)
    }

    /// Another repository of the same registry, over the same connections, for somebody else.
    pub(crate) fn sibling(&self, repository: &str, credentials: Credentials) -> Result<Self, RegistryError> {
        let base = base_url(&host_of(&self.base), repository, self.base.scheme() == "http")?;
        Ok(Self { base, ..self.with(Auth::new(credentials), self.patience) })
    }

    /// The same hub over the same connections, for whoever has that token; `None` if no header can carry it.
    pub(crate) fn with_token(&self, token: Option<&str>) -> Option<Self> {
        Some(self.with(Auth::bearer(token)?, self.patience))
    }

    fn with(&self, auth: Auth, patience: Patience) -> Self {
        let (client, base) = (self.client.clone(), self.base.clone());
        Self { client, base, auth, patience, locations: Mutex::default() }
    }

    /// Whether both are repositories of one registry.
    pub(crate) fn shares_registry(&self, other: &Self) -> bool {
        self.is_own(&other.base)
    }

    /// Whether the registry has asked who asks, and was told.
    pub(crate) async fn was_asked_for_proof(&self, action: Action) -> bool {
        self.auth.has_proved(action).await
    }

    pub(crate) const fn base(&self) -> &Url {
        &self.base
    }

    pub(crate) const fn patience(&self) -> Patience {
        self.patience
    }

    /// The repository's name as the registry knows it.
    pub(crate) fn repository(&self) -> &str {
        self.base.path().trim_start_matches("/v2/").trim_end_matches('/')
    }

    /// A request below the base URL.
    pub(crate) fn ask(&self, method: Method, path: &[&str], operation: String) -> Ask<'static> {
        let mut url = self.base.clone();
        // Segment by segment, so that none can change what the URL names.
        url.path_segments_mut().expect("HTTP URLs have paths").pop_if_empty().extend(path);
        Ask {
            action: Action::Pull,
            method,
            url,
            operation,
            headers: HeaderMap::new(),
            payload: Payload::None,
        }
    }

    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }

    /// Sends `ask` once: with redirects followed, and again if the registry wants (other) authorisation. An answer is
    /// a success.
    pub(crate) async fn send(&self, ask: &Ask<'_>) -> Result<Answer, RegistryError> {
        // Storage takes its signed URL for a proof.
        let header = if self.is_own(&ask.url) { self.auth.header(self, ask.action).await? } else { None };
        let answer = self.follow(ask, header.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || answer.is_redirected {
            return answer.success().await;
        }
        let renewed = self.auth.renewed(self, ask.action, answer.headers(), header.as_ref()).await?;
        let Some(header) = renewed else { return answer.success().await };
        answer.settle().await;
        self.follow(ask, Some(&header)).await?.success().await
    }

    /// Like [`Self::send`] for a blob: starts where the registry's storage served it before.
    pub(crate) async fn send_for_blob(
        &self,
        mut ask: Ask<'_>,
        digest: &Sha256Digest,
    ) -> Result<Answer, RegistryError> {
        let remembered = self.locations().get(digest).cloned();
        if let Some(url) = remembered {
            ask.url = url;
        }
        let answer = self.send(&ask).await;
        let mut locations = self.locations();
        match &answer {
            Ok(answer) if answer.is_redirected => {
                if locations.len() == LOCATIONS_MAX {
                    locations.clear();
                }
                locations.insert(*digest, answer.url().clone());
            }
            Ok(_) | Err(_) => drop(locations.remove(digest)),
        }
        answer
    }

    /// What came from where the registry's storage served this blob was wrong: the registry is asked again.
    pub(crate) fn forget_location(&self, digest: &Sha256Digest) {
        self.locations().remove(digest);
    }

    fn locations(&self) -> MutexGuard<'_, BTreeMap<Sha256Digest, Url>> {
        self.locations.lock().expect("nobody panics while holding the locations")
    }

    async fn follow(
        &self,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = ask.url.clone();
        let mut linked = Linked::default();
        for _ in 0..=REDIRECTS_MAX {
            let exchange = Exchange { operation: ask.operation.clone(), host: host_of(&url) };
            // The registry's own scheme, host and port, and nobody else, are shown who asks.
            let is_own = self.is_own(&url);
            let request = ask.request(url, authorization.filter(|_| is_own));
            // On the heap: the client's futures have kilobytes, and callers hold many of ours.
            let mut answer = match ask.payload {
                Payload::Upload(upload, _, progress) => {
                    Box::pin(self.exchange_upload(request, exchange, upload, progress)).await?
                }
                Payload::None | Payload::Bytes(_) => Box::pin(self.exchange(request, exchange)).await?,
            };
            answer.is_redirected = !is_own;
            if !is_redirect(&ask.method, answer.status()) {
                answer.linked = linked;
                return Ok(answer);
            }
            // Storage elsewhere could say anything.
            if is_own {
                linked.hear(&answer);
            }
            url = answer.location()?;
            answer.settle().await;
        }
        let exchange = Exchange { operation: ask.operation.clone(), host: host_of(&url) };
        Err(RegistryError::Redirect { exchange, problem: "the answers only lead to one another" })
    }

    /// One request and the head of its response, whatever its status.
    pub(crate) async fn exchange(
        &self,
        request: Request,
        exchange: Exchange,
    ) -> Result<Answer, RegistryError> {
        let url = request.url().clone();
        let response = match timeout(self.patience.silence_max, self.client.execute(request)).await {
            Ok(response) => response.map_err(ConnectionError::from),
            Err(_) => Err(ConnectionError::Silence(self.patience.silence_max)),
        };
        Answer::new(response, url, exchange, self.patience)
    }

    /// Like [`Self::exchange`] for a body that takes its time: silence counts while nothing of it moves.
    async fn exchange_upload(
        &self,
        request: Request,
        exchange: Exchange,
        upload: &Upload,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Answer, RegistryError> {
        let url = request.url().clone();
        let mut sent = upload.sent();
        let mut response = pin!(self.client.execute(request));
        progress(*sent.borrow());
        let response = loop {
            let is_complete = *sent.borrow_and_update() == upload.size();
            let wait = if is_complete { self.patience.upload_commit_max } else { self.patience.silence_max };
            tokio::select! {
                response = &mut response => break response.map_err(ConnectionError::from),
                moved = timeout(wait, sent.changed()) => match moved {
                    Ok(_) => progress(*sent.borrow()),
                    Err(_) => break Err(ConnectionError::Silence(wait)),
                },
            }
        };
        upload.check()?;
        Answer::new(response, url, exchange, self.patience)
    }
}

fn client(base: &Url, access: &Access) -> reqwest::Result<Client> {
    let certificates = Certificate::from_pem_bundle(access.ca_pem.as_deref().unwrap_or_default())?;
    let identity = access.client_pem.as_deref().map(Identity::from_pem).transpose()?;
    let builder = || -> ClientBuilder {
        let builder = Client::builder()
            .http1_only()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .user_agent(concat!("modelctl/", env!("CARGO_PKG_VERSION")))
            .tls_certs_merge(certificates.clone());
        let builder = identity.iter().fold(builder, |builder, own| builder.identity(own.clone()));
        if is_loopback(base) { builder.no_proxy() } else { builder }
    };
    match builder().build() {
        // A machine without certificates can use plain HTTP: it only cannot follow redirects to HTTPS.
        Err(_) if access.plain_http => builder().tls_certs_only([]).build(),
        built => built,
    }
}

fn is_redirect(method: &Method, status: StatusCode) -> bool {
    let keeps_method = matches!(status, StatusCode::TEMPORARY_REDIRECT | StatusCode::PERMANENT_REDIRECT);
    let only_for_reads =
        matches!(status, StatusCode::MOVED_PERMANENTLY | StatusCode::FOUND | StatusCode::SEE_OTHER);
    keeps_method || only_for_reads && (method == Method::GET || method == Method::HEAD)
}

impl fmt::Debug for Channel {
    /// Without the locations, which are signed, and so credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Channel");
        debug.field("base", &self.base.as_str()).field("auth", &self.auth).field("patience", &self.patience);
        debug.finish_non_exhaustive()
    }
}

impl Ask<'_> {
    fn request(&self, url: Url, authorization: Option<&HeaderValue>) -> Request {
        let mut request = Request::new(self.method.clone(), url);
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let bytes = match &self.payload {
            Payload::None => 0,
            Payload::Bytes(bytes) => bytes.len() as u64,
            Payload::Upload(upload, offset, _) => upload.size() - offset,
        };
        // Also where it is 0: some registries answer 411 otherwise.
        if self.method == Method::POST || self.method == Method::PUT {
            headers.insert(CONTENT_LENGTH, bytes.into());
        }
        match &self.payload {
            Payload::None => {}
            Payload::Bytes(bytes) => *request.body_mut() = Some(bytes.clone().into()),
            Payload::Upload(upload, offset, _) => *request.body_mut() = Some(upload.body(*offset)),
        }
        request
    }
}
