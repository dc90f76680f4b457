//! A link within one process, without sockets, threads or a clock of its own: for tests of what drives links.
//!
//! Owns: the same laws as any transport, in the order the caller steps. Does not own time: `step` is told it.

use std::{
    collections::VecDeque,
    io,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use crate::{CompletionSink, Exports, Level, Link, ReadRequest, link::Outstanding};

/// A link to the exports of the same process. Reads end when it is stepped.
pub struct MemoryLink {
    exports: Exports,
    level: Level,
    in_flight_max: usize,
    received: AtomicU64,
    sink: CompletionSink,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Outstanding>,
    closed: Option<Arc<io::Error>>,
}

impl MemoryLink {
    /// A link that reads `exports`.
    ///
    /// # Panics
    /// If no read could ever be posted.
    pub fn new(exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<Self> {
        Self::at_level(Level::Tcp, exports, in_flight_max, sink)
    }

    /// The same that passes for one of another transport.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub fn at_level(level: Level, exports: Exports, in_flight_max: usize, sink: CompletionSink) -> Arc<Self> {
        assert!(in_flight_max > 0, "a link carries something");
        let (received, state) = (AtomicU64::new(0), Mutex::default());
        Arc::new(Self { exports, level, in_flight_max, received, sink, state })
    }

    /// Ends the oldest read, or every read of a link that is closed or has one past its deadline. Says whether any ended.
    pub fn step(&self, now: Instant) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed.is_none() && state.queue.iter().any(|read| read.deadline <= now) {
            state.closed = Some(Arc::new(io::ErrorKind::TimedOut.into()));
        }
        if let Some(reason) = state.closed.clone() {
            let queue = std::mem::take(&mut state.queue);
            drop(state);
            let any = !queue.is_empty();
            for read in queue {
                read.fail_with_link(&reason, now);
            }
            return any;
        }
        let Some(read) = state.queue.pop_front() else { return false };
        drop(state);
        self.serve(read, now);
        true
    }

    fn serve(&self, mut read: Outstanding, now: Instant) {
        let len = u32::try_from(read.len()).unwrap_or(u32::MAX);
        match self.exports.open(read.window, read.offset, len) {
            Err(denial) => read.fail(denial.into()),
            Ok(export) => {
                let offset = read.offset;
                match export.file().read_exact_at(read.target(), offset) {
                    Ok(()) => {
                        self.received.fetch_add(read.len() as u64, Ordering::Relaxed);
                        read.succeed();
                    }
                    // As over a socket: a sender that cannot finish a body can only hang up.
                    Err(error) => {
                        let reason = self.end(error);
                        read.fail_with_link(&reason, now);
                    }
                }
            }
        }
    }

    /// Closes for `reason`, or for the one it was closed for before.
    fn end(&self, reason: io::Error) -> Arc<io::Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(state.closed.get_or_insert_with(|| Arc::new(reason)))
    }
}

impl Link for MemoryLink {
    fn level(&self) -> Level {
        self.level
    }

    fn post(&self, read: ReadRequest) -> Result<(), ReadRequest> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.closed.is_some() || state.queue.len() >= self.in_flight_max {
            return Err(read);
        }
        state.queue.push_back(Outstanding::new(read, &self.sink));
        Ok(())
    }

    fn in_flight_max(&self) -> usize {
        self.in_flight_max
    }

    fn bytes_received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.end(io::Error::new(io::ErrorKind::ConnectionAborted, "the link was closed here"));
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed.is_some()
    }
}
