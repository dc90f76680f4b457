//! Connections of clients.
//!
//! Owns: how many there are, how long one may do nothing, and their end. Does not own: what is answered.

use std::{
    convert::Infallible,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::BoxFuture;
use hyper::{
    Request, Response, body::Incoming, http::request::Parts, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, Sleep, sleep},
};

use crate::reply::Body;

/// Connections at once. Each holds a descriptor and, while a blob is read, a chunk of it and what is on its way to the
/// socket; more wait in the backlog.
const CONNECTIONS_MAX: usize = 256;

/// How long a request's head may take to arrive, counted from the end of the answer before it: whoever says nothing keeps
/// no place. Clients of registries open a new connection without a word when an old one was closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a request's head, and of an answer that wait for the socket.
const BUFFER_BYTES_MAX: usize = 64 << 10;

/// How long a client may take nothing of what is there for it. It holds a transfer, which holds its place in a fleet.
const STALL_MAX: Duration = Duration::from_mins(1);

/// How long no connection is accepted after accepting failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The answer to a request with this head; its body is not read.
    fn answer(self: Arc<Self>, head: Parts) -> BoxFuture<'static, Response<Body>>;
}

/// Answers on `listener` until `stopped`, which ends every connection.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    handler: Arc<H>,
    stopped: impl Future<Output = ()> + Send,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut stopped = pin!(stopped);
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = &mut stopped => return,
            Some(_) = connections.join_next() => {}
            (accepted, place) = accepted => match accepted {
                Ok((socket, _)) => {
                    let handler = Arc::clone(&handler);
                    connections.spawn(async move {
                        converse(socket, handler).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a client");
                    // Such failures (no descriptors left) pass only with time.
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

async fn converse<H: Handler>(socket: TcpStream, handler: Arc<H>) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%error, "a client's small answers may wait for more");
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let (head, _body) = request.into_parts();
        let answer = Arc::clone(&handler).answer(head);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(BUFFER_BYTES_MAX)
        .serve_connection(TokioIo::new(Patient::new(socket)), service);
    if let Err(error) = connection.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "a client's connection failed");
    }
}

/// A socket that fails when its other end takes nothing for [`STALL_MAX`].
struct Patient<S> {
    socket: S,
    /// Set while something waits to be taken.
    deadline: Pin<Box<Sleep>>,
    is_waiting: bool,
}

impl<S> Patient<S> {
    fn new(socket: S) -> Self {
        Self { socket, deadline: Box::pin(sleep(STALL_MAX)), is_waiting: false }
    }

    /// What a write came to, unless it has waited for too long.
    fn judge<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_waiting = false;
            return written;
        }
        if !self.is_waiting {
            self.is_waiting = true;
            self.deadline.as_mut().reset(Instant::now() + STALL_MAX);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, buf);
        self.judge(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.socket).poll_flush(cx);
        self.judge(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = Pin::new(&mut self.socket).poll_shutdown(cx);
        self.judge(cx, ended)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, bufs);
        self.judge(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut ours = Patient::new(ours);
        let began = Instant::now();
        let writes = async { ours.write_all(b"abc").await };
        let reads = async {
            for _ in 0..2 {
                sleep(STALL_MAX * 9 / 10).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(writes, reads);
        written.expect("slow is not silent");
        let stalled = ours.write_all(b"d").await.unwrap_err();
        assert_eq!(stalled.kind(), io::ErrorKind::TimedOut);
        assert!(began.elapsed() >= STALL_MAX * 27 / 10);
    }
}
