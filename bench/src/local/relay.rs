//! A way to a server over loopback that is as fast as a network card, and knows when the last byte went over it.
//!
//! Owns: passing bytes on, the rate, the clock. Does not own: what they mean.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use modelpack::quantity::Rate;

/// Bytes passed on at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// What may go at once after nothing went for a while.
const BURST: Duration = Duration::from_millis(5);

/// Answers of a server, passed on at a rate that all connections share. It runs until this process ends.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) address: SocketAddr,
    gate: Arc<Gate>,
}

#[derive(Debug)]
struct Gate {
    rate: Rate,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the way is free for more.
    free_at: Instant,
    /// When bytes were last passed on.
    last: Instant,
}

impl Relay {
    /// Listens on a port of loopback that is free, and passes on what comes there and what `server` answers.
    pub(super) fn start(server: SocketAddr, rate: Rate) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let now = Instant::now();
        let gate = Arc::new(Gate { rate, state: Mutex::new(State { free_at: now, last: now }) });
        let shared = Arc::clone(&gate);
        thread::spawn(move || {
            for client in listener.incoming() {
                // Whoever was refused says so itself.
                let _ = client.and_then(|client| connect(client, server, &shared));
            }
        });
        Ok(Self { address, gate })
    }

    /// When the last byte of an answer was passed on.
    pub(super) fn last(&self) -> Instant {
        self.gate.state().last
    }
}

fn connect(client: TcpStream, server: SocketAddr, gate: &Arc<Gate>) -> io::Result<()> {
    let server = TcpStream::connect(server)?;
    for socket in [&client, &server] {
        socket.set_nodelay(true)?;
    }
    let (questions, answers) = (client.try_clone()?, server.try_clone()?);
    let gate = Arc::clone(gate);
    thread::spawn(move || pass(questions, server, |_| {}));
    thread::spawn(move || pass(answers, client, |bytes| gate.pass(bytes)));
    Ok(())
}

/// Passes on all that comes; `passing` is called before each part goes. Either side may hang up.
fn pass(mut from: TcpStream, mut to: TcpStream, passing: impl Fn(usize)) {
    let mut buffer = vec![0; CHUNK_BYTES];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        passing(count);
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    for (socket, way) in [(&to, Shutdown::Write), (&from, Shutdown::Read)] {
        // It may be gone already.
        let _ = socket.shutdown(way);
    }
}

impl Gate {
    /// Waits until so many bytes may go.
    fn pass(&self, bytes: usize) {
        let mut state = self.state();
        let now = Instant::now();
        state.last = now;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let takes = Duration::from_secs_f64(bytes as f64 / self.rate.0 as f64);
        state.free_at = state.free_at.max(now.checked_sub(BURST).unwrap_or(now)) + takes;
        let wait = state.free_at.saturating_duration_since(now);
        drop(state);
        if !wait.is_zero() {
            thread::sleep(wait);
            self.state().last = Instant::now();
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_come_whole_and_at_the_rate() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let server = listener.local_addr().unwrap();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 251) as u8).collect();
        let answer = bytes.clone();
        thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let mut question = [0; 3];
            socket.read_exact(&mut question).unwrap();
            assert_eq!(&question, b"ask");
            socket.write_all(&answer).unwrap();
        });
        let begin = Instant::now();
        let relay = Relay::start(server, Rate(10_000_000)).unwrap();
        let mut socket = TcpStream::connect(relay.address).unwrap();
        socket.write_all(b"ask").unwrap();
        let mut got = Vec::new();
        socket.read_to_end(&mut got).unwrap();
        assert_eq!(got, bytes);
        // It cannot be faster, however the machine is, but for the burst.
        assert!(begin.elapsed() + BURST >= Duration::from_millis(100), "{:?}", begin.elapsed());
        assert!(relay.last() > begin && relay.last() <= Instant::now());
    }
}
