//! A door before a registry: so many bytes come through, and no more until it is opened. With it a test has all the
//! time it needs to do something in the middle of a pull, however fast the machine is.

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

use crate::support::{PATIENCE, Registry};

/// What one connection takes from the registry at once, and what each may have before the door counts: each may exceed
/// what is let through by twice so much.
const CHUNK_BYTES: usize = 64 << 10;

pub(crate) struct Door {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    registry: String,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    is: Is,
    /// Both ends of every connection, to end them by.
    streams: Vec<TcpStream>,
}

enum Is {
    /// So many bytes of answers come through yet.
    Ajar(u64),
    Open,
    Closed,
}

impl Door {
    /// One that lets `bytes` through.
    pub(crate) fn before(registry: &Registry, bytes: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Mutex::new(State { is: Is::Ajar(bytes), streams: Vec::new() });
        let shared = Shared { registry: registry.address().to_owned(), state, changed: Condvar::new() };
        let shared = Arc::new(shared);
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if accepting.connect(client).is_err() {
                    break;
                }
            }
        });
        Self { address, shared }
    }

    /// A reference in the registry behind it.
    pub(crate) fn reference(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }

    /// Lets everything through from now on.
    pub(crate) fn open(&self) {
        self.shared.turn(Is::Open);
    }

    /// Ends every connection and takes no more, as if the registry had died.
    pub(crate) fn close(&self) {
        self.shared.turn(Is::Closed);
        // Wakes whoever accepts, so that it sees this.
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn turn(&self, is: Is) {
        let mut state = self.state.lock().unwrap();
        if matches!(is, Is::Closed) {
            for stream in state.streams.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        state.is = is;
        self.changed.notify_all();
    }

    /// Brings a connection to the registry. Fails once the door is closed.
    fn connect(self: &Arc<Self>, client: TcpStream) -> io::Result<()> {
        let registry = TcpStream::connect(&self.registry)?;
        let mut state = self.state.lock().unwrap();
        if matches!(state.is, Is::Closed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        state.streams.extend([client.try_clone()?, registry.try_clone()?]);
        let (mut asking, mut asked) = (client.try_clone()?, registry.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut asking, &mut asked);
            let _ = asked.shutdown(Shutdown::Write);
        });
        let shared = Arc::clone(self);
        thread::spawn(move || {
            let _ = shared.answer(registry, &client);
            let _ = client.shutdown(Shutdown::Both);
        });
        Ok(())
    }

    fn answer(&self, mut registry: TcpStream, mut client: &TcpStream) -> io::Result<()> {
        let mut chunk = vec![0; CHUNK_BYTES];
        // A process that comes late, when nothing more is let through, has to learn what the artifact is all the same.
        let mut free = CHUNK_BYTES;
        loop {
            let count = registry.read(&mut chunk)?;
            let counted = count.saturating_sub(free);
            free -= count - counted;
            if count == 0 || (counted > 0 && !self.may_pass(counted as u64)) {
                return Ok(());
            }
            client.write_all(&chunk[..count])?;
        }
    }

    fn may_pass(&self, bytes: u64) -> bool {
        let state = self.state.lock().unwrap();
        let is_held = |state: &mut State| matches!(state.is, Is::Ajar(0));
        let (mut state, _) = self.changed.wait_timeout_while(state, PATIENCE, is_held).unwrap();
        if let Is::Ajar(left) = &mut state.is {
            *left = left.saturating_sub(bytes);
        }
        !matches!(state.is, Is::Closed)
    }
}
