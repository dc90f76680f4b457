//! The receiving engine: one task a link owns the socket and every lease that is out on it.
//!
//! Owns: order, deadlines, and that each read ends once. Does not own: reconnecting.

use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use identity::Security;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    sync::Notify,
    time::{sleep_until, timeout},
};

use super::{
    frame::{RESPONSE_BYTES, Request, Response},
    handshake::{BadHello, HELLO_BYTES, PROOF_BYTES, Role, Session, VERSION, decode_hello, encode_answer},
};
use crate::{CompletionSink, Level, Link, ReadRequest, link::Outstanding};

/// Longest time from the first packet to the end of the handshake. Three round trips on any network that a fleet can
/// use take less; a peer that needs more is not one to wait for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A data link could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// Nobody answers there.
    #[error("connecting to `{address}` failed")]
    Connect {
        /// HOST:PORT.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("`{address}` did not finish the handshake within {} s", CONNECT_TIMEOUT.as_secs())]
    Timeout {
        /// HOST:PORT.
        address: String,
    },
    /// The connection broke during the handshake: most often the sender does not know the link or its secret.
    #[error("`{address}` hung up during the handshake")]
    Refused {
        /// HOST:PORT.
        address: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It is no member of the fleet, or does not take this process for one.
    #[error("`{address}` and this process do not trust each other")]
    Stranger {
        /// HOST:PORT.
        address: String,
        /// What TLS said.
        #[source]
        source: io::Error,
    },
    /// It speaks another version.
    #[error("`{address}` speaks data link version {theirs}, this one speaks {VERSION}")]
    Version {
        /// HOST:PORT.
        address: String,
        /// What it said.
        theirs: u32,
    },
    /// It is no Modelcast sender, or does not hold the link's secret.
    #[error("`{address}` did not prove to be the sender that granted the link")]
    NotTheSender {
        /// HOST:PORT.
        address: String,
    },
}

/// Where a sender is, and what proves the right to read there.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// HOST:PORT.
    pub address: &'a str,
    /// The link's number, from the grant.
    pub link: u64,
    /// The link's secret, from the grant.
    pub secret: &'a [u8; 32],
    /// As the sender's server is.
    pub security: &'a Security,
}

/// Connects to a sender and proves the link's secret to it, as it must to us. Must be called within a tokio runtime,
/// which then drives the link.
///
/// # Panics
/// If no read could ever be posted.
pub async fn connect(
    target: Target<'_>,
    in_flight_max: usize,
    sink: CompletionSink,
) -> Result<Arc<dyn Link>, ConnectError> {
    assert!(in_flight_max > 0, "a link carries something");
    let late = |_| ConnectError::Timeout { address: target.address.to_owned() };
    let (reader, writer) = timeout(CONNECT_TIMEOUT, open(target)).await.map_err(late)??;
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        in_flight_max,
        received: AtomicU64::new(0),
        sink,
        requests: Notify::new(),
        deadlines: Notify::new(),
        closing: Notify::new(),
    });
    // The engine is made before the task, so that even a runtime that never polls it ends the link.
    let engine = Engine { shared: Arc::clone(&shared), current: None };
    tokio::spawn(engine.run(reader, writer));
    Ok(Arc::new(TcpLink(shared)))
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

async fn open(target: Target<'_>) -> Result<(Reader, Writer), ConnectError> {
    let failed = |source| ConnectError::Connect { address: target.address.to_owned(), source };
    let mut socket = TcpStream::connect(target.address).await.map_err(failed)?;
    // A request is 28 bytes and nothing follows it: waiting to fill a packet would cost a round trip.
    socket.set_nodelay(true).map_err(failed)?;
    match target.security {
        Security::Plain => {
            shake_hands(&mut socket, target).await?;
            let (reader, writer) = socket.into_split();
            Ok((Box::new(reader), Box::new(writer)))
        }
        Security::Fleet(identity) => {
            let address = || target.address.to_owned();
            let stranger = |source| ConnectError::Stranger { address: address(), source };
            let mut socket = identity.connect(socket).await.map_err(stranger)?;
            shake_hands(&mut socket, target).await?;
            let (reader, writer) = tokio::io::split(socket);
            Ok((Box::new(reader), Box::new(writer)))
        }
    }
}

async fn shake_hands(
    socket: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: Target<'_>,
) -> Result<(), ConnectError> {
    let Target { address, link, secret, .. } = target;
    let failed = |source| ConnectError::Connect { address: address.to_owned(), source };
    let refused = |source| ConnectError::Refused { address: address.to_owned(), source };
    let not_the_sender = || ConnectError::NotTheSender { address: address.to_owned() };

    let mut hello = [0; HELLO_BYTES];
    socket.read_exact(&mut hello).await.map_err(refused)?;
    let sender_nonce = decode_hello(&hello).map_err(|bad| match bad {
        BadHello::Magic => not_the_sender(),
        BadHello::Version(theirs) => ConnectError::Version { address: address.to_owned(), theirs },
    })?;
    let session = Session { link, sender_nonce, receiver_nonce: identity::random_bytes().map_err(failed)? };
    let answer = encode_answer(&session, session.proof(Role::Receiver, secret));
    socket.write_all(&answer).await.map_err(refused)?;
    socket.flush().await.map_err(refused)?;
    let mut proof = [0; PROOF_BYTES];
    socket.read_exact(&mut proof).await.map_err(refused)?;
    if blake3::Hash::from_bytes(proof) != session.proof(Role::Sender, secret) {
        return Err(not_the_sender());
    }
    Ok(())
}

/// The caller's side of a link.
struct TcpLink(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    in_flight_max: usize,
    received: AtomicU64,
    sink: CompletionSink,
    /// There are requests to write.
    requests: Notify,
    /// There may be an earlier deadline.
    deadlines: Notify,
    /// The caller wants no more.
    closing: Notify,
}

#[derive(Default)]
struct State {
    /// Reads that wait for their response, in the order of their requests.
    queue: VecDeque<Outstanding>,
    /// The deadline of the read whose body is arriving; it counts as outstanding.
    current: Option<Instant>,
    /// Encoded requests that the engine has not taken yet: bounded, because reads outstanding are.
    outgoing: Vec<u8>,
    is_closed: bool,
}

impl State {
    fn outstanding(&self) -> usize {
        self.queue.len() + usize::from(self.current.is_some())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends with an error when the first read is past its deadline.
    async fn reap(&self) -> io::Error {
        loop {
            let next = {
                let state = self.lock();
                state.queue.iter().map(|read| read.deadline).chain(state.current).min()
            };
            let Some(next) = next else {
                self.deadlines.notified().await;
                continue;
            };
            tokio::select! {
                () = self.deadlines.notified() => {}
                () = sleep_until(next.into()) => {
                    // The read may have ended meanwhile: only one that is still out is late.
                    let state = self.lock();
                    let now = Instant::now();
                    if state.queue.iter().map(|read| read.deadline).chain(state.current).any(|at| at <= now) {
                        return io::ErrorKind::TimedOut.into();
                    }
                }
            }
        }
    }

    async fn write_requests(&self, socket: &mut Writer) -> io::Error {
        loop {
            let bytes = std::mem::take(&mut self.lock().outgoing);
            if bytes.is_empty() {
                self.requests.notified().await;
            } else if let Err(error) = write_through(socket, &bytes).await {
                return error;
            }
        }
    }
}

/// Fills `target`, counting what has come as it comes.
async fn fill(socket: &mut Reader, target: &mut [u8], received: &AtomicU64) -> io::Result<()> {
    let mut filled = 0;
    while filled < target.len() {
        let count = socket.read(&mut target[filled..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// TLS keeps what was written until it is flushed.
async fn write_through(socket: &mut Writer, bytes: &[u8]) -> io::Result<()> {
    socket.write_all(bytes).await?;
    socket.flush().await
}

impl Link for TcpLink {
    fn level(&self) -> Level {
        Level::Tcp
    }

    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest> {
        let shared = &self.0;
        let mut state = shared.lock();
        if state.is_closed || state.outstanding() >= shared.in_flight_max {
            return Err(read);
        }
        let request = Request {
            id: read.id,
            handle: read.window,
            offset: read.offset,
            // A longer lease than fits is more than READ_BYTES_MAX too, so the sender refuses it.
            len: u32::try_from(read.lease.len()).unwrap_or(u32::MAX),
        };
        state.outgoing.extend_from_slice(&request.encode());
        state.queue.push_back(Outstanding::new(read, &shared.sink));
        drop(state);
        shared.requests.notify_one();
        shared.deadlines.notify_one();
        Ok(())
    }

    fn in_flight_max(&self) -> usize {
        self.0.in_flight_max
    }

    fn bytes_received(&self) -> u64 {
        self.0.received.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.0.lock().is_closed = true;
        self.0.closing.notify_one();
    }

    fn is_closed(&self) -> bool {
        self.0.lock().is_closed
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.close();
    }
}

/// The task's side of a link. Dropping it, at its end or with its runtime, ends every read.
struct Engine {
    shared: Arc<Shared>,
    /// The read whose body is arriving. Here, and not in the future that fills it, so that it outlives that.
    current: Option<Outstanding>,
}

impl Engine {
    async fn run(mut self, mut reader: Reader, mut writer: Writer) {
        let shared = Arc::clone(&self.shared);
        let reason = tokio::select! {
            error = self.read_responses(&mut reader) => error,
            error = shared.write_requests(&mut writer) => error,
            error = shared.reap() => error,
            () = shared.closing.notified() => {
                io::Error::new(io::ErrorKind::ConnectionAborted, "the link was closed here")
            }
        };
        // Closed before any completion is delivered: the sender must see the end even if a sink is slow.
        drop((reader, writer));
        self.end(reason);
    }

    async fn read_responses(&mut self, socket: &mut Reader) -> io::Error {
        loop {
            if let Err(error) = self.read_response(socket).await {
                return error;
            }
        }
    }

    async fn read_response(&mut self, socket: &mut Reader) -> io::Result<()> {
        let mut header = [0; RESPONSE_BYTES];
        socket.read_exact(&mut header).await?;
        let nonsense = || io::Error::new(io::ErrorKind::InvalidData, "a response answers no request");
        let response = Response::decode(&header).ok_or_else(nonsense)?;
        let read = self.take_front(response.id).ok_or_else(nonsense)?;
        let read = self.current.insert(read);
        match response.body {
            Ok(len) if usize::try_from(len).is_ok_and(|len| len == read.len()) => {
                fill(socket, read.target(), &self.shared.received).await?;
                if let Some(read) = self.take_current() {
                    read.succeed();
                }
            }
            Ok(_) => return Err(nonsense()),
            Err(denial) => {
                if let Some(read) = self.take_current() {
                    read.fail(denial.into());
                }
            }
        }
        Ok(())
    }

    /// The oldest read, if it is the one that is answered.
    fn take_front(&self, id: u64) -> Option<Outstanding> {
        let mut state = self.shared.lock();
        if state.queue.front()?.id != id {
            return None;
        }
        let read = state.queue.pop_front()?;
        state.current = Some(read.deadline);
        Some(read)
    }

    /// The current read, which no longer counts: its sink may post the next at once.
    fn take_current(&mut self) -> Option<Outstanding> {
        self.shared.lock().current = None;
        self.current.take()
    }

    fn end(&mut self, reason: io::Error) {
        let queue = {
            let mut state = self.shared.lock();
            state.is_closed = true;
            state.current = None;
            std::mem::take(&mut state.queue)
        };
        let reason = Arc::new(reason);
        let now = Instant::now();
        for read in self.current.take().into_iter().chain(queue) {
            read.fail_with_link(&reason, now);
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.end(io::Error::new(io::ErrorKind::ConnectionAborted, "the transport was shut down"));
    }
}
