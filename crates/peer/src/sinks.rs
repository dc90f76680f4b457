//! Where the bytes of a piece go: through a buffer, or straight to their place in the file.
//!
//! Owns: that choice, the windows of files that a network card may write, and that a piece is never written by a card
//! and out of a buffer at once. Does not own: the files and their mappings (crate `store`), how memory is registered
//! ([`Registrar`]), or when which piece is read.
//!
//! A window is registered when the first piece of it is to be read, which waits for that as it would for a buffer, and
//! ahead of that when half of the one before has been asked for; it is let go when all of it has landed. It is refused
//! where the card or a limit says so: then its pieces go through buffers, and it is tried again when another was let go.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use memory::Region;
use modelpack::{
    layout::{BlobIndex, PIECE_BYTES, PieceIndex, Run},
    piece_map::PieceMap,
};
use store::Landing;
use tokio::sync::watch;
use transport::{Level, Link};

use crate::{
    buffers::{Buffers, Permit, Right, Space},
    error::PeerError,
    fill::detach,
    workers::{Job, Workers},
};

/// Pieces of one window, that is 256 MiB: registering one takes a fraction of the time that its bytes take, and a few of
/// them cover what is read at once.
const WINDOW_PIECES: u32 = 256;
const _: () = assert!(WINDOW_PIECES as u64 * PIECE_BYTES == 256 << 20);

const HINT_REFUSED: &str = "`modelctl doctor` says how much memory this process may lock; \
                            more lets the network card write files directly";

/// How bytes of other peers land.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LandingMode {
    /// Directly where the transport and the file system can, else through buffers.
    #[default]
    Auto,
    /// The same, but a file system that cannot is an error.
    Direct,
    /// Through buffers.
    Staged,
}

impl LandingMode {
    /// Fails if the file system of `path` cannot do what was asked for.
    pub(crate) fn check(self, path: &Path) -> Result<(), PeerError> {
        let filesystem = store::filesystem_of(path)?;
        if self == Self::Direct && !filesystem.lands_direct() {
            return Err(PeerError::NotDirect { path: path.to_path_buf(), filesystem });
        }
        Ok(())
    }
}

/// What lets a network card write memory of this process.
pub(crate) trait Registrar: Send + Sync {
    /// Lets it write that range for as long as the result lives, and until the reads into it have ended. Blocks.
    ///
    /// # Errors
    /// Why it may not, in the user's words.
    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
    ) -> Result<Box<dyn Any + Send + Sync>, String>;
}

/// How the bytes of one artifact land.
#[derive(Clone, Default)]
pub(crate) struct LandingRule {
    pub(crate) mode: LandingMode,
    /// None where there is no network card that writes memory.
    pub(crate) registrar: Option<Arc<dyn Registrar>>,
}

/// Where the pieces of one artifact go.
pub(crate) struct Sinks {
    landing: Arc<Landing>,
    buffers: Buffers,
    workers: Workers,
    /// None if every piece goes through a buffer.
    registrar: Option<Arc<dyn Registrar>>,
    state: Mutex<State>,
}

struct State {
    /// What has landed.
    done: PieceMap,
    /// By their first pieces.
    windows: BTreeMap<PieceIndex, Window>,
    /// Pieces whose place in the file is out to a card, or is being checked after that.
    out: BTreeMap<PieceIndex, Out>,
    /// Pieces that are being checked in a buffer and may then be written, and how many times each.
    staging: BTreeMap<PieceIndex, u32>,
    /// Whether a refusal was said.
    has_said: bool,
}

enum Window {
    /// Whoever waits is woken when this is dropped.
    Registering(watch::Sender<()>),
    Ready(Ready),
    Refused,
}

struct Ready {
    region: Arc<Region>,
    #[expect(dead_code, reason = "held for its drop")]
    registration: Box<dyn Any + Send + Sync>,
    /// Pieces that were missing when it became ready, and those that were asked for since.
    missing: u32,
    given: u32,
}

/// A part of a blob's file.
#[derive(Clone, Copy)]
struct WindowAt {
    blob: BlobIndex,
    run: Run,
}

#[derive(Default)]
struct Out {
    /// What the read is on, once it is posted and until it has arrived.
    link: Option<Arc<dyn Link>>,
    /// The same piece, which came through buffers meanwhile.
    waiting: Vec<Job>,
}

/// What there is for a piece.
enum Route {
    Buffer,
    File,
    Wait(watch::Receiver<()>),
}

/// The place of a piece in the file is out. Dropped after the lease: then the same piece out of a buffer gets its turn.
pub(crate) struct Hold {
    sinks: Arc<Sinks>,
    piece: PieceIndex,
}

impl Hold {
    /// The read is posted there; if not, because the piece is here by another way, says so.
    #[must_use]
    pub(crate) fn post_on(&self, link: &Arc<dyn Link>) -> bool {
        let mut state = self.sinks.state();
        let out = state.out.entry(self.piece).or_default();
        if !out.waiting.is_empty() {
            return false;
        }
        out.link = Some(Arc::clone(link));
        true
    }

    /// The bytes are here: nothing is gained by closing the link.
    pub(crate) fn arrived(&self) {
        self.sinks.state().out.entry(self.piece).or_default().link = None;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.sinks.state();
        let waiting = state.out.remove(&self.piece).unwrap_or_default().waiting;
        for job in waiting {
            self.sinks.run_staged(&mut state, self.piece, job);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hold({})", self.piece)
    }
}

impl Sinks {
    pub(crate) fn new(
        landing: Arc<Landing>,
        rule: LandingRule,
        (workers, buffers): (Workers, Buffers),
    ) -> Arc<Self> {
        let is_possible = rule.mode != LandingMode::Staged && landing.filesystem().lands_direct();
        let state = State {
            done: PieceMap::empty(landing.layout().piece_count()),
            windows: BTreeMap::new(),
            out: BTreeMap::new(),
            staging: BTreeMap::new(),
            has_said: false,
        };
        let registrar = rule.registrar.filter(|_| is_possible);
        Arc::new(Self { landing, buffers, workers, registrar, state: Mutex::new(state) })
    }

    /// A download begins that has these pieces and reads the others.
    pub(crate) fn begin(&self, have: &PieceMap) {
        let mut state = self.state();
        state.done = have.clone();
        let State { done, windows, .. } = &mut *state;
        for (first, window) in windows {
            if let Window::Ready(ready) = window {
                (ready.missing, ready.given) = (missing(done, self.window_of(*first).run), 0);
            }
        }
    }

    /// Memory for a piece that is to be read over a link of that level, if there is some now.
    pub(crate) fn try_space(self: &Arc<Self>, piece: PieceIndex, level: Level) -> Option<Space> {
        match self.route(piece, level) {
            Route::Buffer => Some(self.buffers.buffer(self.len(piece), self.buffers.try_permit()?)),
            Route::File => Some(self.take(piece, self.buffers.try_permit()?)),
            Route::Wait(_) => None,
        }
    }

    /// The same, as soon as there is some.
    pub(crate) async fn space(self: Arc<Self>, piece: PieceIndex, level: Level) -> Space {
        loop {
            match self.route(piece, level) {
                Route::Buffer => return self.buffers.buffer(self.len(piece), self.buffers.permit().await),
                Route::File => return self.take(piece, self.buffers.permit().await),
                // Ends when its sender is dropped.
                Route::Wait(mut registered) => drop(registered.changed().await),
            }
        }
    }

    /// Does what checks a piece in a buffer and writes it, as soon as nobody else writes there. A read that would write
    /// there is given up with its link: the piece is here.
    pub(crate) fn stage(self: &Arc<Self>, piece: PieceIndex, job: Job) {
        if self.registrar.is_none() {
            return self.workers.run_boxed(job);
        }
        let mut state = self.state();
        let Some(out) = state.out.get_mut(&piece) else {
            return self.run_staged(&mut state, piece, job);
        };
        out.waiting.push(job);
        let link = out.link.take();
        drop(state);
        if let Some(link) = link {
            tracing::debug!(%piece, "it came another way: the link that still reads it is closed");
            link.close();
        }
    }

    fn run_staged(self: &Arc<Self>, state: &mut State, piece: PieceIndex, job: Job) {
        *state.staging.entry(piece).or_default() += 1;
        let sinks = Arc::clone(self);
        self.workers.run(move || {
            job();
            sinks.staged(piece);
        });
    }

    fn staged(&self, piece: PieceIndex) {
        let mut state = self.state();
        if let Some(count) = state.staging.get_mut(&piece) {
            *count -= 1;
            if *count == 0 {
                state.staging.remove(&piece);
            }
        }
    }

    /// The piece is good and where it belongs.
    pub(crate) fn landed(&self, piece: PieceIndex) {
        if self.registrar.is_none() {
            return;
        }
        let at = self.window_of(piece);
        let mut state = self.state();
        state.done.insert(piece);
        if !state.done.contains_run(at.run) {
            return;
        }
        let Some(Window::Ready(ready)) = state.windows.remove(&at.run.start) else { return };
        // What was refused for want of room may have some now.
        state.windows.retain(|_, window| !matches!(window, Window::Refused));
        drop(state);
        // Taking the card's rights back takes a while. A thread that cannot be started only means that it is done here.
        let _ = detach(move || drop(ready));
    }

    fn route(self: &Arc<Self>, piece: PieceIndex, level: Level) -> Route {
        let Some(registrar) = self.registrar.as_ref().filter(|_| level == Level::Nic) else {
            return Route::Buffer;
        };
        let at = self.window_of(piece);
        let mut state = self.state();
        if state.done.contains(piece) || state.is_busy(piece) {
            return Route::Buffer;
        }
        if !state.windows.contains_key(&at.run.start) {
            self.register(&mut state, at, registrar);
        }
        match &state.windows[&at.run.start] {
            Window::Ready(_) => Route::File,
            Window::Registering(registered) => Route::Wait(registered.subscribe()),
            Window::Refused => Route::Buffer,
        }
    }

    /// The piece's place in the file; if it is not to be had after all, a buffer.
    fn take(self: &Arc<Self>, piece: PieceIndex, permit: Permit) -> Space {
        let at = self.window_of(piece);
        let mut state = self.state();
        let is_busy = state.is_busy(piece);
        let leased = match state.windows.get_mut(&at.run.start) {
            Some(Window::Ready(ready)) if !is_busy => {
                let lease = ready.region.lease(self.bytes_of(Run::one(piece)));
                ready.given += u32::from(lease.is_some());
                lease.map(|lease| (lease, ready.given == ready.missing.div_ceil(2)))
            }
            _ => None,
        };
        let Some((lease, is_half)) = leased else {
            drop(state);
            return self.buffers.buffer(self.len(piece), permit);
        };
        if is_half {
            self.register_next(&mut state, at);
        }
        state.out.insert(piece, Out::default());
        drop(state);
        Space { lease, right: Right { permit, hold: Some(Hold { sinks: Arc::clone(self), piece }) } }
    }

    fn register_next(self: &Arc<Self>, state: &mut State, at: WindowAt) {
        let Some(registrar) = &self.registrar else { return };
        let next = state.done.next_missing(at.run.end).map(|piece| self.window_of(piece));
        if let Some(next) = next.filter(|next| !state.windows.contains_key(&next.run.start)) {
            self.register(state, next, registrar);
        }
    }

    fn register(self: &Arc<Self>, state: &mut State, at: WindowAt, registrar: &Arc<dyn Registrar>) {
        state.windows.insert(at.run.start, Window::Registering(watch::channel(()).0));
        let (landing, registrar, range) =
            (Arc::clone(&self.landing), Arc::clone(registrar), self.bytes_of(at.run));
        let sinks = Arc::downgrade(self);
        let started = detach(move || {
            let region = landing.region(at.blob, range.clone());
            // The landing is free before anybody hears of it.
            drop(landing);
            let result = match region {
                Ok(Some(region)) => registrar.register(&region, range).map(|held| (region, held)),
                Ok(None) => Err("its file is not one to write".to_owned()),
                Err(error) => Err(error.to_string()),
            };
            if let Some(sinks) = sinks.upgrade() {
                sinks.registered(at, result);
            }
        });
        if let Err(error) = started {
            state.refuse(at, &error.to_string());
        }
    }

    fn registered(&self, at: WindowAt, result: Result<(Arc<Region>, Box<dyn Any + Send + Sync>), String>) {
        let mut state = self.state();
        match (result, missing(&state.done, at.run)) {
            // Everything came another way meanwhile. What is dropped here is dropped after the lock.
            (Ok(_unused), 0) => drop(state.windows.remove(&at.run.start)),
            (Ok((region, registration)), missing) => {
                let ready = Ready { region, registration, missing, given: 0 };
                state.windows.insert(at.run.start, Window::Ready(ready));
            }
            (Err(reason), _) => state.refuse(at, &reason),
        }
    }

    fn window_of(&self, piece: PieceIndex) -> WindowAt {
        let layout = self.landing.layout();
        let blob = layout.span(piece).blob;
        let all = layout.pieces_of(blob);
        let start = piece.0 - (piece.0 - all.start.0) % WINDOW_PIECES;
        WindowAt { blob, run: Run::new(start, (start + WINDOW_PIECES).min(all.end.0)) }
    }

    /// Within the blob's file.
    fn bytes_of(&self, run: Run) -> Range<usize> {
        let (_, bytes) = self.landing.layout().bytes_of(run);
        let at = |byte| usize::try_from(byte).expect("a blob that is mapped fits the address space");
        at(bytes.start)..at(bytes.end)
    }

    fn len(&self, piece: PieceIndex) -> u32 {
        self.landing.layout().span(piece).len
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves the tables whole: each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Its pieces go through buffers. Why is said once.
    fn refuse(&mut self, at: WindowAt, reason: &str) {
        self.windows.insert(at.run.start, Window::Refused);
        if std::mem::replace(&mut self.has_said, true) {
            tracing::debug!(reason, blob = %at.blob, "another window is not written directly");
        } else {
            let hint = HINT_REFUSED;
            tracing::warn!(reason, hint, "the network card may not write the file: bytes go through buffers");
        }
    }

    /// Whether somebody writes the piece, or may be about to.
    fn is_busy(&self, piece: PieceIndex) -> bool {
        self.out.contains_key(&piece) || self.staging.contains_key(&piece)
    }
}

impl fmt::Debug for Sinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.registrar.is_some() { "direct or staged" } else { "staged" };
        write!(f, "Sinks({how})")
    }
}

fn missing(done: &PieceMap, run: Run) -> u32 {
    u32::try_from(run.pieces().filter(|piece| !done.contains(*piece)).count()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
