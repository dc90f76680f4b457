//! Frames over the local socket, and the descriptors that travel beside them.
//!
//! Owns: framing, bounds, cancel safety. Does not own: the order of messages, or what the descriptors are.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use prost::Message;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::{io::Interest, net::UnixStream};

use crate::WireError;

/// Longest frame in bytes: the largest message carries a manifest of at most 4 MiB and as large a config, and they
/// share this, so an artifact at both limits is refused rather than let a client make the daemon hold more.
pub const FRAME_BYTES_MAX: usize = 8 << 20;

/// Most descriptors beside one frame. The kernel takes 253 a message; a quarter of that keeps a process with the usual
/// 1,024 descriptors from running out because of one frame.
pub const FDS_MAX: usize = 64;

const HEADER_BYTES: usize = size_of::<u32>();
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(FDS_MAX));

/// One side of a local connection.
///
/// Both directions are cancel-safe. A `recv` that is dropped goes on with the next `recv`. A `send` that is dropped
/// before its first byte left is as if it had not been called; later, its rest leaves with the next `send`.
#[derive(Debug)]
pub struct LocalStream {
    socket: UnixStream,
    /// What has arrived of the next frame.
    incoming: Incoming,
    /// What of the last frame has not left yet.
    unsent: Vec<u8>,
    /// How many bytes of `unsent` have left.
    sent: usize,
}

#[derive(Debug, Default)]
struct Incoming {
    header: [u8; HEADER_BYTES],
    /// Allocated once the header is complete and its length was found to be within bounds.
    body: Option<Vec<u8>>,
    /// Bytes there of the header, or of the body once that is allocated.
    have: usize,
    fds: Vec<OwnedFd>,
}

/// A whole frame: its bytes and the descriptors beside it.
type Complete = (Vec<u8>, Vec<OwnedFd>);

impl LocalStream {
    /// Frames over a connected socket.
    pub fn new(socket: UnixStream) -> Self {
        Self { socket, incoming: Incoming::default(), unsent: Vec::new(), sent: 0 }
    }

    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// [`WireError::Io`] if nobody listens there or it may not be opened.
    pub async fn connect(path: &Path) -> Result<Self, WireError> {
        UnixStream::connect(path).await.map(Self::new).map_err(WireError::Io)
    }

    /// Sends one frame.
    pub async fn send(&mut self, frame: &impl Message) -> Result<(), WireError> {
        self.send_with_fds(frame, &[]).await
    }

    /// Sends one frame and, beside its first byte, descriptors.
    ///
    /// # Errors
    /// [`WireError::FrameTooLong`] and [`WireError::TooMany`] before anything is sent.
    pub async fn send_with_fds(
        &mut self,
        frame: &impl Message,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        let body_bytes = frame.encoded_len();
        if body_bytes > FRAME_BYTES_MAX {
            return Err(WireError::FrameTooLong { bytes: body_bytes, max: FRAME_BYTES_MAX });
        }
        if fds.len() > FDS_MAX {
            return Err(WireError::TooMany { field: "descriptors", got: fds.len(), max: FDS_MAX });
        }
        let length = u32::try_from(body_bytes).expect("FRAME_BYTES_MAX fits");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body_bytes);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&frame.encode_to_vec());

        self.flush().await?;
        let sent = self.write(&bytes, fds).await?;
        // No await between the write and this: from here on the frame is the stream's, whoever waits for it.
        (self.unsent, self.sent) = (bytes, sent);
        self.flush().await
    }

    /// The next frame and the descriptors beside it, or `None` if the other side closed the connection between two.
    ///
    /// # Errors
    /// After any error but [`WireError::Decode`] the connection is of no further use.
    pub async fn recv<M: Message + Default>(&mut self) -> Result<Option<(M, Vec<OwnedFd>)>, WireError> {
        loop {
            if let Some((body, fds)) = self.incoming.take_complete()? {
                let frame = M::decode(body.as_slice()).map_err(WireError::Decode)?;
                return Ok(Some((frame, fds)));
            }
            if self.read_some().await? == 0 {
                return if self.incoming.is_between_frames() {
                    Ok(None)
                } else {
                    Err(WireError::Io(io::ErrorKind::UnexpectedEof.into()))
                };
            }
        }
    }

    async fn flush(&mut self) -> Result<(), WireError> {
        while self.sent < self.unsent.len() {
            self.sent += self.write(&self.unsent[self.sent..], &[]).await?;
        }
        self.unsent = Vec::new();
        self.sent = 0;
        Ok(())
    }

    /// Writes some of `bytes`, the descriptors beside the first of them.
    async fn write(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, WireError> {
        let attempt = || {
            let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "CONTROL_BYTES hold FDS_MAX");
            }
            let slices = [IoSlice::new(bytes)];
            Ok(sendmsg(self.socket.as_fd(), &slices, &mut control, SendFlags::NOSIGNAL)?)
        };
        retry_interrupted(&self.socket, Interest::WRITABLE, attempt).await
    }

    /// Reads some bytes of this frame and never any of the next, so that descriptors stay with theirs.
    async fn read_some(&mut self) -> Result<usize, WireError> {
        let Self { socket, incoming, .. } = self;
        let attempt = || incoming.read_from(socket);
        let (bytes, control) = retry_interrupted(socket, Interest::READABLE, attempt).await?;
        control?;
        Ok(bytes)
    }
}

/// Does `attempt` when the socket is ready, again if it was not or a signal came.
async fn retry_interrupted<T>(
    socket: &UnixStream,
    interest: Interest,
    mut attempt: impl FnMut() -> io::Result<T>,
) -> Result<T, WireError> {
    loop {
        match socket.async_io(interest, &mut attempt).await {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result.map_err(WireError::Io),
        }
    }
}

impl Incoming {
    fn is_between_frames(&self) -> bool {
        self.body.is_none() && self.have == 0
    }

    /// One `recvmsg`. The bytes and descriptors that came are kept; the inner result is about the descriptors.
    fn read_from(&mut self, socket: &UnixStream) -> io::Result<(usize, Result<(), WireError>)> {
        let target = match &mut self.body {
            Some(body) => &mut body[self.have..],
            None => &mut self.header[self.have..],
        };
        let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(target)];
        let received = recvmsg(socket.as_fd(), &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        self.have += received.bytes;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        let is_truncated = received.flags.contains(ReturnFlags::CTRUNC);
        let checked = if is_truncated || self.fds.len() > FDS_MAX {
            self.fds.clear();
            Err(WireError::TooManyDescriptors { max: FDS_MAX })
        } else {
            Ok(())
        };
        Ok((received.bytes, checked))
    }

    /// Moves on from a complete header; hands out a complete frame and starts the next.
    fn take_complete(&mut self) -> Result<Option<Complete>, WireError> {
        if self.body.is_none() {
            if self.have < HEADER_BYTES {
                return Ok(None);
            }
            let bytes = u32::from_le_bytes(self.header) as usize;
            if bytes > FRAME_BYTES_MAX {
                return Err(WireError::FrameTooLong { bytes, max: FRAME_BYTES_MAX });
            }
            self.body = Some(vec![0; bytes]);
            self.have = 0;
        }
        if self.body.as_ref().is_none_or(|body| self.have < body.len()) {
            return Ok(None);
        }
        let done = std::mem::take(self);
        Ok(done.body.map(|body| (body, done.fds)))
    }
}
