//! The serving side: answers reads of exported files, one connection a task.
//!
//! Owns: accepting, proving, sending, and revocation. Does not own: who is issued a link, or what is exported.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use identity::Security;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    frame::{REQUEST_BYTES, Request, Response},
    handshake::{ANSWER_BYTES, Role, decode_answer, encode_hello},
    socket::{Follows, PlainSocket, Socket, TlsSocket},
};
use crate::{Export, Exports, Pacer};

/// Longest time for a receiver to prove its link: its answer takes one round trip.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most connections that have not proved a link yet. Beyond, they wait in the listener's backlog: strangers can slow
/// new links down but cannot use up this process's descriptors.
const HANDSHAKES_MAX: usize = 64;

/// Most connections of one link: one, and one more while a receiver that lost it comes back before we notice.
const CONNECTIONS_PER_LINK_MAX: usize = 2;

/// Most bytes sent at a time: a fraction of a millisecond from the page cache, so that links on one thread share it.
const SEND_CALL_BYTES_MAX: usize = 256 << 10;

/// Under a limit no more is sent at a time than this part of what may be sent in a second, so that many links get their
/// turn, and at least so many bytes.
const PACED_PART: u64 = 64;
const PACED_BYTES_MIN: usize = 16 << 10;

/// How long no connection is accepted after accepting failed: such failures (no descriptors left) pass only with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves exported files to the links it issued. Clones are the same server.
#[derive(Clone)]
pub struct Server(Arc<Inner>);

struct Inner {
    listener: TcpListener,
    local_addr: SocketAddr,
    exports: Exports,
    security: Security,
    /// The random root of secrets and nonces. Drawn once, so that issuing a link cannot fail.
    key: [u8; 32],
    drawn: AtomicU64,
    links: Mutex<Links>,
    sent_bytes: AtomicU64,
    /// What all links together keep to.
    pacer: OnceLock<Arc<Pacer>>,
}

#[derive(Default)]
struct Links {
    last: u64,
    live: BTreeMap<u64, IssuedLink>,
}

struct IssuedLink {
    secret: [u8; 32],
    /// Dropped on revocation, which every connection of the link sees.
    alive: watch::Sender<()>,
}

impl Server {
    /// Listens on `address`; port 0 takes a free one. Nothing is served before [`Server::run`].
    pub async fn bind(address: SocketAddr, exports: Exports, security: Security) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let inner = Inner {
            local_addr: listener.local_addr()?,
            listener,
            exports,
            security,
            key: identity::random_bytes()?,
            drawn: AtomicU64::new(0),
            links: Mutex::default(),
            sent_bytes: AtomicU64::new(0),
            pacer: OnceLock::new(),
        };
        Ok(Self(Arc::new(inner)))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr
    }

    /// A new link: its number and the secret that proves it. Both travel to the receiver on the control plane only.
    pub fn issue_link(&self) -> (u64, [u8; 32]) {
        let secret = self.0.draw(b"secret");
        let mut links = self.0.links();
        links.last += 1;
        let link = links.last;
        links.live.insert(link, IssuedLink { secret, alive: watch::Sender::new(()) });
        (link, secret)
    }

    /// Ends a link: its connections close and its secret proves nothing any more.
    pub fn revoke(&self, link: u64) {
        self.0.links().live.remove(&link);
    }

    /// How many bytes of files were handed to the kernel to send, over all links. Counted after they left, so a
    /// receiver may have the last of them already.
    pub fn sent_bytes(&self) -> u64 {
        self.0.sent_bytes.load(Ordering::Relaxed)
    }

    /// All links together send no more than this lets them, from now on. It counts once.
    pub fn keep_to(&self, pacer: Arc<Pacer>) {
        let _ = self.0.pacer.set(pacer);
    }

    /// Serves until `shutdown` is ready; then every connection is closed.
    pub async fn run(&self, shutdown: impl Future<Output = ()> + Send) {
        let mut connections = JoinSet::new();
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        tokio::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                accepted = self.0.accept(&handshakes) => match accepted {
                    Ok((socket, permit)) => {
                        let inner = Arc::clone(&self.0);
                        connections.spawn(async move {
                            if let Err(error) = inner.serve(socket, permit).await {
                                tracing::debug!(error = &error as &dyn std::error::Error, "a data link ended");
                            }
                        });
                    }
                    Err(error) => {
                        tracing::warn!(error = &error as &dyn std::error::Error, "accepting a data link failed");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.shutdown().await;
    }
}

/// A place among the connections that have yet to prove their link.
type HandshakePermit = tokio::sync::OwnedSemaphorePermit;

impl Inner {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// 32 bytes that nobody without the key can foresee, never the same twice.
    fn draw(&self, purpose: &[u8]) -> [u8; 32] {
        let number = self.drawn.fetch_add(1, Ordering::Relaxed);
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(&number.to_le_bytes());
        hasher.update(purpose);
        *hasher.finalize().as_bytes()
    }

    async fn accept(&self, handshakes: &Arc<Semaphore>) -> io::Result<(TcpStream, HandshakePermit)> {
        let permit = Arc::clone(handshakes).acquire_owned().await.expect("nobody closes the semaphore");
        let (socket, _) = self.listener.accept().await?;
        Ok((socket, permit))
    }

    async fn serve(&self, mut socket: TcpStream, permit: HandshakePermit) -> io::Result<()> {
        socket.set_nodelay(true)?;
        match &self.security {
            Security::Plain => {
                let alive = timeout(HANDSHAKE_TIMEOUT, self.shake_hands(&mut socket)).await??;
                drop(permit);
                self.serve_link(PlainSocket(socket), alive).await
            }
            Security::Fleet(identity) => {
                let open = async {
                    let mut socket = identity.accept(socket).await?;
                    let alive = self.shake_hands(&mut socket).await?;
                    Ok::<_, io::Error>((socket, alive))
                };
                let (socket, alive) = timeout(HANDSHAKE_TIMEOUT, open).await??;
                drop(permit);
                self.serve_link(TlsSocket::new(socket), alive).await
            }
        }
    }

    async fn serve_link(&self, mut socket: impl Socket, mut alive: watch::Receiver<()>) -> io::Result<()> {
        tokio::select! {
            result = self.answer_requests(&mut socket) => result,
            // Ends only with an error, when the sender of the link's entry is dropped.
            _ = alive.changed() => Ok(()),
        }
    }

    async fn shake_hands(
        &self,
        socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> io::Result<watch::Receiver<()>> {
        let refused = |why| io::Error::new(io::ErrorKind::PermissionDenied, why);
        let nonce = self.draw(b"nonce");
        socket.write_all(&encode_hello(&nonce)).await?;
        socket.flush().await?;
        let mut answer = [0; ANSWER_BYTES];
        socket.read_exact(&mut answer).await?;
        let (session, theirs) =
            decode_answer(&answer, nonce).map_err(|_| refused("not a receiver of this version"))?;
        let (secret, alive) = {
            let links = self.links();
            let link = links.live.get(&session.link).ok_or_else(|| refused("no such link"))?;
            if session.proof(Role::Receiver, &link.secret) != theirs {
                return Err(refused("the receiver does not hold the link's secret"));
            }
            if link.alive.receiver_count() >= CONNECTIONS_PER_LINK_MAX {
                return Err(refused("the link is connected already"));
            }
            (link.secret, link.alive.subscribe())
        };
        socket.write_all(session.proof(Role::Sender, &secret).as_bytes()).await?;
        socket.flush().await?;
        Ok(alive)
    }

    /// Requests are answered one by one. While a body is sent none is read, so the socket holds a receiver back.
    async fn answer_requests(&self, socket: &mut impl Socket) -> io::Result<()> {
        loop {
            let mut bytes = [0; REQUEST_BYTES];
            match socket.read_exact(&mut bytes).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                result => result?,
            }
            let request = Request::decode(&bytes);
            match self.exports.open(request.handle, request.offset, request.len) {
                Ok(export) => {
                    let header = Response { id: request.id, body: Ok(request.len) }.encode();
                    socket.send(&header, Follows::Body).await?;
                    self.send_body(socket, &request, export.as_ref()).await?;
                }
                Err(denial) => {
                    let header = Response { id: request.id, body: Err(denial) }.encode();
                    socket.send(&header, Follows::Nothing).await?;
                }
            }
        }
    }

    async fn send_body(
        &self,
        socket: &mut impl Socket,
        request: &Request,
        export: &dyn Export,
    ) -> io::Result<()> {
        let mut offset = request.offset;
        let end = request.offset + u64::from(request.len);
        while offset < end {
            let own = export.pacer();
            let pacers = || own.iter().chain(self.pacer.get());
            let slowest = pacers().map(|pacer| paced_bytes(pacer.rate())).min();
            let most = slowest.unwrap_or(SEND_CALL_BYTES_MAX);
            let count = usize::try_from(end - offset).map_or(most, |n| n.min(most));
            for pacer in pacers() {
                pacer.take(count as u64).await;
            }
            let sent = socket.send_file(export.file(), offset, count).await?;
            if sent == 0 {
                // The header promised more than the file has: only hanging up tells the receiver.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset += sent as u64;
            self.sent_bytes.fetch_add(sent as u64, Ordering::Relaxed);
            export.sent(sent as u64);
        }
        socket.flush().await
    }
}

/// How much is sent at a time under a limit.
fn paced_bytes(rate: u64) -> usize {
    let part = usize::try_from(rate / PACED_PART).unwrap_or(SEND_CALL_BYTES_MAX);
    part.clamp(PACED_BYTES_MIN, SEND_CALL_BYTES_MAX)
}
