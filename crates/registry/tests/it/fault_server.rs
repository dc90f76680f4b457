//! A small HTTP/1.1 server that does what a script says, wrong things too.
//!
//! Owns: framing, and the faults that only the bytes on a socket can have. Does not own: what is right or wrong, which
//! the script decides for each request. It depends on nothing but tokio, so that other crates' tests can include it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

/// Larger bodies are not read, and the connection ends with the answer: what proxies do with uploads over their limit.
const BODY_BYTES_MAX: usize = 4 << 20;

/// One request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The method.
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    /// The body, empty if it was too large to be read.
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The bytes that a `Range` header asks for.
    pub(crate) fn range(&self) -> Option<Range<usize>> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some(start.parse().unwrap()..last.parse::<usize>().unwrap() + 1)
    }
}

/// How an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// As it should; the connection stays.
    Whole,
    /// The connection is closed in order after the body, whatever length was stated.
    Close,
    /// The connection is reset after the body.
    Reset,
    /// The body is sent again and again.
    Endless,
    /// Nothing follows the body, and the connection stays.
    Silence,
    /// The connection is reset before the answer.
    HangUp,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    end: End,
}

impl Reply {
    /// An answer without a body.
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), end: End::Whole }
    }

    /// No answer: the connection is reset.
    pub(crate) fn hang_up() -> Self {
        Self { end: End::HangUp, ..Self::status(0) }
    }

    /// An answer with a body.
    pub(crate) fn body(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::status(status) }
    }

    /// What an honest server answers to a GET of `blob`: the range if one was asked for, else all.
    pub(crate) fn blob(seen: &Seen, blob: &[u8]) -> Self {
        let Some(range) = seen.range() else { return Self::body(200, blob) };
        let stated = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.len());
        Self::body(206, &blob[range]).header("Content-Range", &stated)
    }

    /// Sets a header in place of what was there.
    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps `bytes` of the body but states the length of all of it.
    fn cut(self, bytes: usize, end: End) -> Self {
        let mut cut = Self { end, ..self.stating_length() };
        cut.body.truncate(bytes);
        cut
    }

    fn stating_length(self) -> Self {
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// Closes the connection after `bytes` of the body.
    pub(crate) fn short(self, bytes: usize) -> Self {
        self.cut(bytes, End::Close)
    }

    /// Resets the connection after `bytes` of the body.
    pub(crate) fn reset(self, bytes: usize) -> Self {
        self.cut(bytes, End::Reset)
    }

    /// Says nothing more after `bytes` of the body.
    pub(crate) fn silent(self, bytes: usize) -> Self {
        self.cut(bytes, End::Silence)
    }

    /// Sends the body again and again, with no length stated.
    pub(crate) fn endless(self) -> Self {
        Self { end: End::Endless, ..self.header("Connection", "close") }
    }

    /// States no length: the body ends with the connection.
    pub(crate) fn unframed(self) -> Self {
        Self { end: End::Close, ..self.header("Connection", "close") }
    }
}

/// The server; dropping it closes its port.
pub(crate) struct FaultServer {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl FaultServer {
    /// Answers each request as `script` says.
    pub(crate) async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::default();
        let (script, log) = (Arc::new(script), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, Arc::clone(&script), Arc::clone(&log)));
            }
        });
        Self { address, seen, task }
    }

    /// Answers one request after another with `replies`, and all that follow with the last.
    pub(crate) async fn replay(replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies = Mutex::new(VecDeque::from_iter(replies));
        Self::start(move |_| {
            let mut replies = replies.lock().unwrap();
            if replies.len() > 1 { replies.pop_front().unwrap() } else { replies[0].clone() }
        })
        .await
    }

    /// `HOST:PORT`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Errors end the connection and are nobody's business: half of the faults make the client hang up.
async fn serve<S: Fn(&Seen) -> Reply>(mut stream: TcpStream, script: Arc<S>, log: Arc<Mutex<Vec<Seen>>>) {
    let mut buffer = Vec::new();
    loop {
        let Some((seen, is_whole)) = read_request(&mut stream, &mut buffer).await else { return };
        log.lock().unwrap().push(seen.clone());
        let mut reply = script(&seen);
        if reply.end == End::HangUp {
            return stream.set_zero_linger().unwrap();
        }
        let states_length = |reply: &Reply| reply.headers.iter().any(|(key, _)| key == "Content-Length");
        if reply.end == End::Whole && !states_length(&reply) {
            reply = reply.stating_length();
        }
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", reply.status);
        reply.headers.iter().for_each(|(name, value)| head.extend([name, ": ", value, "\r\n"]));
        let body = if seen.method == "HEAD" { &[][..] } else { &reply.body };
        let sent = stream.write_all(&[head.as_bytes(), b"\r\n", body].concat()).await;
        if sent.is_err() {
            return;
        }
        match reply.end {
            End::Whole if is_whole => {}
            End::Whole | End::Close => {
                // What is still coming is read, or the system would reset the connection before the answer got through.
                let _ = stream.shutdown().await;
                return drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
            }
            End::Reset | End::HangUp => return stream.set_zero_linger().unwrap(),
            End::Endless => while stream.write_all(&reply.body).await.is_ok() {},
            End::Silence => drop(stream.read(&mut [0]).await),
        }
    }
}

/// The next request, and whether all of its body was read.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(Seen, bool)> {
    let end = loop {
        if let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer.drain(..end + 4).collect()).ok()?;
    let mut lines = head.trim_end().split("\r\n");
    let (method, rest) = lines.next()?.split_once(' ')?;
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned()));
    let path = rest.split(' ').next()?.to_owned();
    let mut seen = Seen { method: method.to_owned(), path, headers: headers.collect(), body: Vec::new() };
    let length: usize = seen.header("content-length").map_or(0, |length| length.parse().unwrap());
    if length > BODY_BYTES_MAX {
        return Some((seen, false));
    }
    while buffer.len() < length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    seen.body = buffer.drain(..length).collect();
    Some((seen, true))
}
