//! Traffic that has nothing to do with the broadcast: TCP at a rate, both ways between two hosts.
//!
//! Owns: its sockets and threads. Does not own: whose card it passes.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow, ensure};
use modelpack::quantity::Rate;
use testbed::netns::Host;

/// What is written at once: some milliseconds at the rates of a lab, so that it is no burst.
const PIECE_BYTES: usize = 16 << 10;

/// How late a writer may be and still catch up; beyond, the time is lost as it is to anybody who shares a card.
const LATENESS_MAX: Duration = Duration::from_millis(50);

/// How long a connection may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Traffic both ways, until it is ended or dropped.
#[derive(Debug)]
pub(crate) struct Foreign {
    ends: [TcpStream; 2],
    received: Arc<[AtomicU64; 2]>,
    threads: Vec<JoinHandle<()>>,
}

impl Foreign {
    /// Begins; a socket stays in the namespace in which it was made.
    pub(crate) fn begin(one: &Host, other: &Host, rate: Rate) -> anyhow::Result<Self> {
        let address = SocketAddr::from((other.address, 0));
        let listener = there(other, move || TcpListener::bind(address))?;
        let address = listener.local_addr()?;
        let near = there(one, move || TcpStream::connect_timeout(&address, PATIENCE))?;
        let (far, _) = listener.accept()?;
        let ends = [near, far];
        let received = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let mut threads = Vec::new();
        for (index, end) in ends.iter().enumerate() {
            let (writing, reading, received) = (end.try_clone()?, end.try_clone()?, Arc::clone(&received));
            // Either ends when the connection does.
            threads.push(thread::spawn(move || drop(write(writing, rate))));
            threads.push(thread::spawn(move || drop(read(reading, &received[index]))));
        }
        Ok(Self { ends, received, threads })
    }

    /// Ends it, which fails if nothing has passed.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        let passed = self.received.iter().all(|bytes| bytes.load(Ordering::Relaxed) > 0);
        ensure!(passed, "foreign traffic did not pass");
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        for end in &self.ends {
            // It fails only if the other end was faster.
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            // They do not panic.
            let _ = thread.join();
        }
    }
}

/// Does `work` on that host.
fn there<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let done = host.spawn(work).join().map_err(|_| anyhow!("a thread panicked"))??;
    done.context("foreign traffic cannot begin")
}

fn write(mut to: TcpStream, rate: Rate) -> io::Result<()> {
    let piece = vec![0x5a; PIECE_BYTES];
    let interval = Duration::from_secs(PIECE_BYTES as u64) / u32::try_from(rate.0).unwrap_or(u32::MAX);
    let mut next = Instant::now();
    loop {
        to.write_all(&piece)?;
        let now = Instant::now();
        next = (next + interval).max(now.checked_sub(LATENESS_MAX).unwrap_or(now));
        thread::sleep(next.saturating_duration_since(now));
    }
}

fn read(mut from: TcpStream, received: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; PIECE_BYTES * 4];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => received.fetch_add(count as u64, Ordering::Relaxed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_and_readers_end_with_their_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let far = listener.accept().unwrap().0;
        let (writing, received) = (near.try_clone().unwrap(), Arc::new(AtomicU64::new(0)));
        let writer = thread::spawn(move || write(writing, Rate(1 << 20)));
        let count = Arc::clone(&received);
        let reader = thread::spawn(move || read(far, &count));
        while received.load(Ordering::Relaxed) < 2 * PIECE_BYTES as u64 {
            thread::yield_now();
        }
        near.shutdown(Shutdown::Both).unwrap();
        assert!(writer.join().unwrap().is_err());
        // At its end or at a reset: what matters is that it returns.
        let _ = reader.join().unwrap();
    }
}
