//! The engine of one rail: one thread that owns the QPs which fetch, posts to them and takes their completions.
//!
//! Owns: the thread, its mailbox, and when it sleeps. Does not own: any decision about a link (`flow`), or QPs that
//! others read from (`serving`). It never hashes, and blocks on nothing but its poll(2): between bursts it looks for
//! completions for a moment, then arms the queue and sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering, fence},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, unbounded};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::{Errno, read, write},
};

use crate::{
    link::Shared,
    rail::{Done, Failure, FailureKind, QueuePair, Rail, RailEvent, Work},
};

/// How long the engine looks for completions before it sleeps: about what a sleep and a wake-up cost.
const SPIN: Duration = Duration::from_micros(50);

/// A QP and which lane of its link it is.
pub(crate) type Lane = (usize, Box<dyn QueuePair>);

/// What the engine is told. Bounded: one `Attach` a link, one `Kick` a link that was not answered yet, one `Stop`.
pub(crate) enum Command {
    /// QPs of a link, which are connected.
    Attach(Arc<Shared>, Vec<Lane>),
    /// The link has something to do.
    Kick(u64),
    /// Nobody needs the rail any more.
    Stop,
}

/// How others reach the engine.
#[derive(Clone)]
pub(crate) struct Bell(Arc<BellInner>);

struct BellInner {
    commands: Sender<Command>,
    is_asleep: AtomicBool,
    fd: OwnedFd,
}

impl Bell {
    pub(crate) fn send(&self, command: Command) {
        // An engine that has stopped has ended its links first, so that nothing waits for an answer.
        let _ = self.0.commands.send(command);
        // Either this sees that the engine sleeps, or the engine, which looks once more after it said so, sees this.
        fence(Ordering::SeqCst);
        if self.0.is_asleep.swap(false, Ordering::SeqCst) {
            // It fails only when the count is full, and then the engine wakes anyway.
            let _ = write(&self.0.fd, &1_u64.to_ne_bytes());
        }
    }
}

/// The engine's owner. Dropping it ends the engine, and every link on it.
pub(crate) struct Handle {
    bell: Bell,
    is_up: Arc<AtomicBool>,
}

impl Handle {
    /// Starts an engine; `index` is the rail's place among this process's.
    pub(crate) fn start(rail: Arc<dyn Rail>, index: usize) -> io::Result<Self> {
        let (commands, mailbox) = unbounded();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let bell = Bell(Arc::new(BellInner { commands, is_asleep: AtomicBool::new(false), fd }));
        let is_up = Arc::new(AtomicBool::new(true));
        let name = format!("rdma {}", rail.info().name);
        let engine = Engine {
            rail,
            index,
            mailbox,
            bell: bell.clone(),
            is_up: Arc::clone(&is_up),
            is_gone: false,
            links: BTreeMap::new(),
            by_qp: BTreeMap::new(),
            dirty: BTreeSet::new(),
            next_deadline: None,
            posted: 0,
            done: Vec::new(),
        };
        thread::Builder::new().name(name).spawn(move || engine.run())?;
        Ok(Self { bell, is_up })
    }

    pub(crate) fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Whether the rail carries anything.
    pub(crate) fn is_up(&self) -> bool {
        self.is_up.load(Ordering::Relaxed)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.bell.send(Command::Stop);
    }
}

struct Attached {
    shared: Arc<Shared>,
    lanes: BTreeMap<usize, Box<dyn QueuePair>>,
    deadline: Option<Instant>,
}

struct Engine {
    rail: Arc<dyn Rail>,
    index: usize,
    mailbox: Receiver<Command>,
    bell: Bell,
    is_up: Arc<AtomicBool>,
    /// Nothing comes from the device any more; its descriptors are not looked at again.
    is_gone: bool,
    links: BTreeMap<u64, Attached>,
    /// The link and lane of each QP.
    by_qp: BTreeMap<u32, (u64, usize)>,
    /// Links to look at.
    dirty: BTreeSet<u64>,
    /// No link's deadline is before this.
    next_deadline: Option<Instant>,
    /// Works that are out.
    posted: usize,
    done: Vec<Done>,
}

impl Engine {
    fn run(mut self) {
        let mut spin_until = Instant::now();
        loop {
            if self.take_commands().is_break() {
                return;
            }
            self.take_completions();
            let now = Instant::now();
            self.find_late(now);
            if !self.dirty.is_empty() {
                for id in std::mem::take(&mut self.dirty) {
                    self.serve(id, now);
                }
                spin_until = Instant::now() + SPIN;
            } else if self.posted > 0 && now < spin_until {
                std::hint::spin_loop();
            } else {
                self.sleep();
            }
        }
    }

    /// Marks the links whose deadline has come.
    fn find_late(&mut self, now: Instant) {
        if self.next_deadline.is_none_or(|deadline| now < deadline) {
            return;
        }
        let (mut late, mut next) = (Vec::new(), None);
        for (id, link) in &self.links {
            match link.deadline {
                Some(deadline) if deadline <= now => late.push(*id),
                deadline => next = earlier(next, deadline),
            }
        }
        self.dirty.extend(late);
        self.next_deadline = next;
    }

    fn take_commands(&mut self) -> std::ops::ControlFlow<()> {
        while let Ok(command) = self.mailbox.try_recv() {
            match command {
                Command::Attach(shared, lanes) => self.attach(shared, lanes),
                Command::Kick(link) => {
                    self.dirty.insert(link);
                }
                Command::Stop => return std::ops::ControlFlow::Break(()),
            }
        }
        std::ops::ControlFlow::Continue(())
    }

    fn attach(&mut self, shared: Arc<Shared>, lanes: Vec<Lane>) {
        let id = shared.id();
        self.by_qp.extend(lanes.iter().map(|(lane, qp)| (qp.number(), (id, *lane))));
        if !self.is_up.load(Ordering::Relaxed) {
            shared.flow().lose_rail(self.index, &Failure::new(FailureKind::Path, "the port is down"));
        }
        self.links.insert(id, Attached { shared, lanes: lanes.into_iter().collect(), deadline: None });
        self.dirty.insert(id);
    }

    fn take_completions(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        if !self.is_gone
            && let Err(error) = self.rail.poll(&mut done)
        {
            // A queue that cannot be read carries nothing any more.
            self.is_gone = true;
            self.go_down(&format!("its completions cannot be read: {error}"));
        }
        for Done { id, qp, sink, result } in done.drain(..) {
            // First, so that whoever ends the read finds the lease alone.
            drop(sink);
            self.posted = self.posted.saturating_sub(1);
            let Some((link, lane)) = self.by_qp.get(&qp) else { continue };
            let Some(attached) = self.links.get(link) else { continue };
            attached.shared.returned(*lane, id, &result);
            self.dirty.insert(*link);
        }
        self.done = done;
    }

    fn take_events(&mut self) {
        while let Some(event) = self.rail.next_event() {
            let name = &self.rail.info().name;
            match event {
                RailEvent::Down => self.go_down("the port went down"),
                RailEvent::Gone => {
                    self.is_gone = true;
                    self.go_down("the device is gone");
                    return;
                }
                RailEvent::Up if !self.is_gone => {
                    tracing::info!(rail = %name, "the port is up again");
                    self.is_up.store(true, Ordering::Relaxed);
                }
                RailEvent::Up => {}
                RailEvent::QueuePairFailed(qp) => {
                    let Some((link, lane)) = self.by_qp.get(&qp) else { continue };
                    let Some(attached) = self.links.get(link) else { continue };
                    let failure = Failure::new(FailureKind::Path, "the queue pair is broken");
                    attached.shared.flow().lane_failed(*lane, &failure);
                    self.dirty.insert(*link);
                }
            }
        }
    }

    fn go_down(&mut self, why: &str) {
        if self.is_up.swap(false, Ordering::Relaxed) {
            tracing::warn!(rail = %self.rail.info().name, "{why}");
        }
        let failure = Failure::new(FailureKind::Path, why);
        for (id, attached) in &self.links {
            attached.shared.flow().lose_rail(self.index, &failure);
            self.dirty.insert(*id);
        }
    }

    /// Does everything that there is to do for a link on this rail.
    fn serve(&mut self, id: u64, now: Instant) {
        let Some(mut link) = self.links.remove(&id) else { return };
        let shared = Arc::clone(&link.shared);
        shared.answer_kick(self.index);
        shared.flow().tick(now);
        loop {
            let doomed = shared.flow().take_doomed(self.index);
            let posts: Vec<(usize, Vec<Work>)> =
                link.lanes.keys().map(|lane| (*lane, shared.take_works(*lane))).collect();
            for (lane, works) in posts {
                if let Some(qp) = link.lanes.get_mut(&lane).filter(|_| !works.is_empty()) {
                    self.posted += works.len();
                    self.post(&shared, lane, qp.as_mut(), works);
                }
            }
            for lane in &doomed {
                if let Some(qp) = link.lanes.remove(lane) {
                    self.destroy(&shared, *lane, qp);
                }
            }
            if !shared.deliver() && doomed.is_empty() && shared.flow().has_nothing_for(self.index) {
                break;
            }
        }
        if shared.flow().take_stirred() {
            shared.kick_others(self.index);
        }
        link.deadline = shared.flow().next_deadline();
        self.next_deadline = earlier(self.next_deadline, link.deadline);
        if !link.lanes.is_empty() {
            self.links.insert(id, link);
        }
    }

    fn post(&mut self, shared: &Shared, lane: usize, qp: &mut dyn QueuePair, works: Vec<Work>) {
        let Err(unposted) = qp.post(works) else { return };
        for Work { id, sink, .. } in unposted.works {
            drop(sink);
            self.posted = self.posted.saturating_sub(1);
            shared.returned(lane, id, &Err(unposted.error.clone()));
        }
        // Also where every work was taken.
        shared.flow().lane_failed(lane, &unposted.error);
    }

    fn destroy(&mut self, shared: &Shared, lane: usize, qp: Box<dyn QueuePair>) {
        self.by_qp.remove(&qp.number());
        for Done { id, sink, result, .. } in qp.destroy() {
            drop(sink);
            self.posted = self.posted.saturating_sub(1);
            shared.returned(lane, id, &result);
        }
        shared.flow().lane_gone(lane);
    }

    /// Sleeps until there is a command, a completion, an event or a deadline.
    fn sleep(&mut self) {
        if !self.is_gone
            && let Err(error) = self.rail.arm()
        {
            self.is_gone = true;
            self.go_down(&format!("its completions cannot be waited for: {error}"));
        }
        // What ended before the queue was armed raises no event.
        self.take_completions();
        self.bell.0.is_asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if !self.dirty.is_empty() || !self.mailbox.is_empty() {
            self.bell.0.is_asleep.store(false, Ordering::SeqCst);
            return;
        }
        let (has_completions, has_events) = self.wait();
        self.bell.0.is_asleep.store(false, Ordering::SeqCst);
        // Fails when nobody rang.
        let _ = read(&self.bell.0.fd, &mut [0_u8; 8]);
        if has_completions {
            self.rail.clear();
        }
        if has_events {
            self.take_events();
        }
    }

    fn wait(&self) -> (bool, bool) {
        let left = self.next_deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = [
            PollFd::from_borrowed_fd(self.bell.0.fd.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.rail.completions(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.rail.events(), PollFlags::IN),
        ];
        // A device that is gone keeps its descriptors readable for ever.
        let watched = if self.is_gone { &mut fds[..1] } else { &mut fds[..] };
        match poll(watched, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => tracing::error!(%errno, "poll(2) in the engine"),
        }
        (!fds[1].revents().is_empty(), !fds[2].revents().is_empty())
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

impl Drop for Engine {
    /// Ends every link that is still here, at the end of the process's use of the rail or if the engine broke.
    fn drop(&mut self) {
        self.is_up.store(false, Ordering::Relaxed);
        let waiting: Vec<Command> = self.mailbox.try_iter().collect();
        for command in waiting {
            if let Command::Attach(shared, lanes) = command {
                self.attach(shared, lanes);
            }
        }
        for (_, Attached { shared, lanes, .. }) in std::mem::take(&mut self.links) {
            shared
                .flow()
                .finish(io::Error::new(io::ErrorKind::ConnectionAborted, "the transport was shut down"));
            let _ = shared.flow().take_doomed(self.index);
            for (lane, qp) in lanes {
                self.destroy(&shared, lane, qp);
            }
            shared.deliver();
            shared.kick_others(self.index);
        }
    }
}
