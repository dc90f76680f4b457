//! Frames and descriptors over the local socket.

use std::{
    fs::File,
    future::Future,
    io::{IoSlice, Read as _, Seek as _, Write as _},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd},
    time::Duration,
};

use rustix::{
    io::{FdFlags, fcntl_getfd},
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tokio::{io::AsyncWriteExt as _, net::UnixStream};
use wire::{
    WireError,
    local::{Accepted, Blobs, DaemonFrame, FDS_MAX, FRAME_BYTES_MAX, Hello, LocalStream, daemon_frame::Kind},
};

async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), what).await.expect("in time")
}

fn pair() -> (LocalStream, LocalStream) {
    let (one, other) = UnixStream::pair().expect("a socket pair");
    (LocalStream::new(one), LocalStream::new(other))
}

fn raw_pair() -> (UnixStream, LocalStream) {
    let (raw, other) = UnixStream::pair().expect("a socket pair");
    (raw, LocalStream::new(other))
}

fn hello() -> DaemonFrame {
    DaemonFrame { kind: Some(Kind::Hello(Hello { protocol_version: 1, ..Hello::default() })) }
}

fn accepted(bytes: usize) -> DaemonFrame {
    DaemonFrame { kind: Some(Kind::Accepted(Accepted { manifest: vec![5; bytes], ..Accepted::default() })) }
}

fn blobs(count: usize) -> DaemonFrame {
    let blobs = (0..u32::try_from(count).expect("small")).collect();
    DaemonFrame { kind: Some(Kind::Blobs(Blobs { blobs })) }
}

fn file_of(text: &str) -> File {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(text.as_bytes()).expect("space");
    file.rewind().expect("seekable");
    file
}

/// Lets the runtime see what the socket holds; how often it must be asked is its own affair.
async fn yields(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

type Received = Result<Option<(DaemonFrame, Vec<std::os::fd::OwnedFd>)>, WireError>;

async fn recv(stream: &mut LocalStream) -> Received {
    in_time(stream.recv()).await
}

#[tokio::test]
async fn descriptors_arrive_with_their_own_frame_and_close_on_exec() {
    let (mut sender, mut receiver) = pair();
    let files = [file_of("first"), file_of("second")];
    let fds: Vec<BorrowedFd<'_>> = files.iter().map(File::as_fd).collect();
    // All are in the socket before the first is read, so a careless reader would mix them up.
    in_time(async {
        sender.send(&hello()).await?;
        sender.send_with_fds(&blobs(2), &fds).await?;
        sender.send(&hello()).await?;
        sender.send_with_fds(&blobs(1), &fds[1..]).await
    })
    .await
    .expect("sent");
    drop(sender);

    let mut texts = Vec::new();
    for _ in 0..4 {
        let (frame, fds) = recv(&mut receiver).await.expect("good").expect("four frames");
        let expected = if let Some(Kind::Blobs(named)) = &frame.kind { named.blobs.len() } else { 0 };
        assert_eq!(fds.len(), expected, "{frame:?}");
        for fd in fds {
            assert!(fcntl_getfd(&fd).expect("open").contains(FdFlags::CLOEXEC));
            let mut file = File::from(fd);
            file.rewind().expect("seekable");
            let mut text = String::new();
            file.read_to_string(&mut text).expect("readable");
            texts.push(text);
        }
    }
    assert_eq!(texts, ["first", "second", "second"]);
    assert!(recv(&mut receiver).await.expect("a clean end").is_none());
}

#[tokio::test]
async fn as_many_descriptors_as_may_be_and_no_more() {
    let (mut sender, mut receiver) = pair();
    let file = file_of("x");
    let fds = vec![file.as_fd(); FDS_MAX + 1];
    let error = in_time(sender.send_with_fds(&blobs(FDS_MAX + 1), &fds)).await.expect_err("one too many");
    assert!(matches!(error, WireError::TooMany { .. }), "{error:?}");
    in_time(sender.send_with_fds(&blobs(FDS_MAX), &fds[1..])).await.expect("sent");
    let (_, came) = recv(&mut receiver).await.expect("good").expect("a frame");
    assert_eq!(came.len(), FDS_MAX);
}

#[tokio::test]
async fn descriptors_that_the_kernel_had_to_drop_are_an_error() {
    let (raw, mut receiver) = raw_pair();
    let file = file_of("x");
    let fds = vec![file.as_fd(); FDS_MAX + 40];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX + 40))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let bytes = [IoSlice::new(&[0; 4])];
    sendmsg(raw.as_fd(), &bytes, &mut control, SendFlags::NOSIGNAL).expect("the kernel takes 253");
    let error = recv(&mut receiver).await.expect_err("truncated");
    assert!(matches!(error, WireError::TooManyDescriptors { .. }), "{error:?}");
}

#[tokio::test]
async fn a_frame_longer_than_any_is_refused_before_it_is_made_room_for() {
    let (mut raw, mut receiver) = raw_pair();
    for bytes in [u32::MAX, u32::try_from(FRAME_BYTES_MAX).expect("fits") + 1] {
        raw.write_all(&bytes.to_le_bytes()).await.expect("sent");
        let error = recv(&mut receiver).await.expect_err("too long");
        assert!(matches!(error, WireError::FrameTooLong { .. }), "{error:?}");
        (raw, receiver) = raw_pair();
    }
    let (mut sender, _receiver) = pair();
    let error = in_time(sender.send(&accepted(FRAME_BYTES_MAX))).await.expect_err("too long");
    assert!(matches!(error, WireError::FrameTooLong { .. }), "{error:?}");
}

#[tokio::test]
async fn an_end_within_a_frame_is_an_error() {
    for bytes in [&[9][..], &[9, 0, 0, 0], &[9, 0, 0, 0, 1, 2]] {
        let (mut raw, mut receiver) = raw_pair();
        raw.write_all(bytes).await.expect("sent");
        drop(raw);
        let error = recv(&mut receiver).await.expect_err("cut off");
        assert!(matches!(error, WireError::Io(_)), "{error:?}");
    }
}

#[tokio::test]
async fn a_frame_that_is_no_message_is_an_error_and_the_next_is_read() {
    let (mut raw, mut receiver) = raw_pair();
    raw.write_all(&[2, 0, 0, 0, 0xff, 0xff]).await.expect("sent");
    // An empty frame is a message without a kind: protobuf's default, for the caller to refuse.
    raw.write_all(&[0, 0, 0, 0]).await.expect("sent");
    let error = recv(&mut receiver).await.expect_err("not a message");
    assert!(matches!(error, WireError::Decode(_)), "{error:?}");
    let (frame, _) = recv(&mut receiver).await.expect("good").expect("a frame");
    assert_eq!(frame, DaemonFrame::default());
}

#[tokio::test]
async fn given_up_sends_and_receives_lose_and_tear_nothing() {
    let (one, other) = UnixStream::pair().expect("a socket pair");
    // Known to be writable, so that the send's first poll writes.
    in_time(one.writable()).await.expect("open");
    let (mut sender, mut receiver) = (LocalStream::new(one), LocalStream::new(other));
    let big = accepted(3 << 20);
    let file = file_of("x");
    let fds = [file.as_fd()];
    // More than the socket holds: it is given up once part of it has left.
    tokio::select! {
        biased;
        result = sender.send_with_fds(&big, &fds) => panic!("the socket took 3 MiB: {result:?}"),
        () = tokio::task::yield_now() => {}
    }
    // Part of it is read, and that is given up too.
    tokio::select! {
        biased;
        result = receiver.recv::<DaemonFrame>() => panic!("a whole frame: {result:?}"),
        () = yields(20) => {}
    }
    let sending = in_time(async { sender.send(&hello()).await.expect("sent") });
    let receiving = async {
        let (first, fds) = recv(&mut receiver).await.expect("good").expect("a frame");
        assert!(first == big && fds.len() == 1, "the frame that was given up, whole");
        let (second, fds) = recv(&mut receiver).await.expect("good").expect("a frame");
        assert_eq!((second, fds.len()), (hello(), 0));
    };
    tokio::join!(sending, receiving);
}
