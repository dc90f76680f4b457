//! The sender's end of a connection: plain, where the kernel sends files by itself, or TLS, where each byte passes
//! through this process to be encrypted.
//!
//! Owns: getting bytes out, and giving up on a receiver that takes none. Does not own: what is sent.

use std::{
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::FileExt as _},
    time::Duration,
};

use rustix::net::SendFlags;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::server::TlsStream;

/// Longest time in which a receiver takes no byte of a response. Its own reads have shorter deadlines than this.
const SEND_STALL_MAX: Duration = Duration::from_secs(30);

/// What comes after some bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Follows {
    /// A body, at once: no packet need carry these bytes alone.
    Body,
    Nothing,
}

/// What answering requests needs of a connection.
pub(super) trait Socket: Send {
    async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()>;
    async fn send(&mut self, bytes: &[u8], follows: Follows) -> io::Result<()>;
    /// Sends up to `count` bytes from `offset` of `file`; says how many, 0 at the file's end.
    async fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<usize>;
    /// Whatever was sent is on its way when this is done.
    async fn flush(&mut self) -> io::Result<()>;
}

/// A connection without encryption.
pub(super) struct PlainSocket(pub(super) TcpStream);

impl Socket for PlainSocket {
    async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.0.read_exact(bytes).await.map(drop)
    }

    async fn send(&mut self, mut bytes: &[u8], follows: Follows) -> io::Result<()> {
        let more = if follows == Follows::Body { SendFlags::MORE } else { SendFlags::empty() };
        while !bytes.is_empty() {
            let attempt = || Ok(rustix::net::send(self.0.as_fd(), bytes, more | SendFlags::NOSIGNAL)?);
            let sent = when_writable(&self.0, attempt).await?;
            bytes = &bytes[sent..];
        }
        Ok(())
    }

    async fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<usize> {
        let attempt = || {
            let mut offset = offset;
            Ok(rustix::fs::sendfile(self.0.as_fd(), file.as_fd(), Some(&mut offset), count)?)
        };
        when_writable(&self.0, attempt).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Does `attempt` when the socket takes bytes, again if a signal came, and gives up on a receiver that takes none.
async fn when_writable(
    socket: &TcpStream,
    mut attempt: impl FnMut() -> io::Result<usize>,
) -> io::Result<usize> {
    loop {
        match timeout(SEND_STALL_MAX, socket.async_io(Interest::WRITABLE, &mut attempt)).await? {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// An encrypted connection.
pub(super) struct TlsSocket {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
}

impl TlsSocket {
    pub(super) fn new(stream: TlsStream<TcpStream>) -> Self {
        Self { stream, buffer: Vec::new() }
    }
}

impl Socket for TlsSocket {
    async fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes).await.map(drop)
    }

    async fn send(&mut self, bytes: &[u8], follows: Follows) -> io::Result<()> {
        timeout(SEND_STALL_MAX, self.stream.write_all(bytes)).await??;
        if follows == Follows::Nothing { self.flush().await } else { Ok(()) }
    }

    async fn send_file(&mut self, file: &File, offset: u64, count: usize) -> io::Result<usize> {
        self.buffer.resize(count, 0);
        // From the page cache, as `sendfile` does it; a page that is not there makes either wait.
        let count = file.read_at(&mut self.buffer, offset)?;
        timeout(SEND_STALL_MAX, self.stream.write_all(&self.buffer[..count])).await??;
        Ok(count)
    }

    async fn flush(&mut self) -> io::Result<()> {
        timeout(SEND_STALL_MAX, self.stream.flush()).await?
    }
}
