//! An open link: its grant is renewed, its news are heard, its windows are asked for ahead of the reads.
//!
//! Owns: all that until it ends, also to a parent that leaves. Does not own: which windows (`windows`).

use std::{sync::Arc, time::Duration};

use modelpack::{
    layout::{BlobIndex, Run, runs_of},
    piece_map::PieceMap,
};
use tokio::{
    sync::{mpsc::UnboundedReceiver, watch},
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use transport::Pacer;
use wire::{
    connection::reason,
    control::{
        HaveRuns, WindowGrant, WindowRefusal, WindowRelease, WindowRequest, child_to_parent::Kind as Said,
        parent_to_child::Kind as Heard,
    },
    convert,
    rdma::{self, WindowId},
};

use super::{
    Child, DATA_POLL, GrantedLink, LinkEnd, LinkEvent, Word,
    control::{Control, Terms},
    invalid,
    open::{DataLink, Open},
    outstanding::Watched,
    windows::{Readable, Windows},
};
use crate::{have_feed::Coming, rdma_words};

/// Renewals within one expiry: two may be lost or late before the grant ends.
const RENEWALS_PER_EXPIRY: u32 = 3;

/// What of a link over RDMA is granted, or will be.
struct Reading {
    watched: Watched,
    windows: Windows,
}

/// A link, as long as it is up.
struct Kept {
    control: Control,
    terms: Terms,
    data: DataLink,
    expires: watch::Sender<Instant>,
    /// What the parent has said that it has.
    have: PieceMap,
    /// None over TCP, where a sender's own check decides what may be read.
    reading: Option<Reading>,
    /// What reads keep to, if the parent grants a rate.
    pacer: Option<Arc<Pacer>>,
}

fn ticks(period: Duration) -> Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

impl Child {
    /// Keeps an open link until it ends.
    pub(super) async fn keep(
        &self,
        open: Open,
        mut told: UnboundedReceiver<Word>,
    ) -> Result<std::convert::Infallible, LinkEnd> {
        let mut kept = self.up(open);
        let mut renewal = ticks(kept.terms.lasts / RENEWALS_PER_EXPIRY);
        renewal.tick().await; // The first tick is now.
        let mut poll = ticks(DATA_POLL);
        loop {
            let expiry = *kept.expires.borrow();
            tokio::select! {
                heard = kept.control.next() => match heard {
                    Err(LinkEnd::Farewell(reason)) => {
                        let (peer, generation) = (self.request.peer, self.request.generation);
                        self.emit(LinkEvent::Leaving { peer, generation });
                        return Err(self.left(kept, expiry, reason).await);
                    }
                    heard => self.heard(&mut kept, heard?)?,
                },
                _ = renewal.tick() => kept.control.renew(),
                _ = poll.tick() => {
                    if kept.data.link.is_closed() {
                        return Err(kept.data_ended());
                    }
                    self.say_progress(&mut kept);
                }
                // Its sender is the handle, which aborts this task when it is dropped.
                Some(word) = told.recv() => match word {
                    Word::Landed(run) => kept.landed(run),
                    Word::Interest(stripes) => kept.control.say(Said::Interest(stripes.into())),
                },
                () = sleep_until(expiry) => return Err(LinkEnd::Expired),
            }
            kept.settle();
        }
    }

    fn up(&self, open: Open) -> Kept {
        let Open { control, terms, data, expires, fallback } = open;
        let (peer, generation) = (self.request.peer, self.request.generation);
        let pacer = terms.rate.map(|rate| Arc::new(Pacer::new(rate)));
        let grant = GrantedLink {
            pacer: pacer.clone(),
            link: Arc::clone(&data.link),
            windows: terms.windows.clone(),
            in_flight_max: terms.in_flight_max,
            expires: expires.subscribe(),
            fallback,
        };
        self.emit(LinkEvent::Up { peer, generation, grant });
        let have = PieceMap::empty(self.request.layout.piece_count());
        let reading = data.rdma.clone().map(|watched| {
            let windows = Windows::new(self.request.layout.clone(), self.request.here.clone());
            Reading { watched, windows }
        });
        Kept { control, terms, data, expires, have, reading, pacer }
    }

    fn heard(&self, kept: &mut Kept, heard: Heard) -> Result<(), LinkEnd> {
        match heard {
            Heard::Have(message) => self.have(kept, message),
            Heard::Grant(grant) => {
                let renewal = self.check_grant(&grant)?;
                if !kept.terms.are_renewed_by(&renewal) {
                    return Err(invalid("grant", "a renewal changes it"));
                }
                if let (Some(pacer), Some(rate)) = (&kept.pacer, renewal.rate) {
                    pacer.set_rate(rate);
                }
                kept.expires.send_replace(kept.control.end_of(&kept.terms)?);
                Ok(())
            }
            Heard::Window(grant) => {
                let readable = kept.window(&grant)?;
                self.say_readable(readable);
                Ok(())
            }
            Heard::WindowRefusal(WindowRefusal { reason: why, .. }) => {
                kept.reading.as_ref().ok_or_else(|| invalid("kind", "a window of a link over TCP"))?;
                Err(LinkEnd::Window(reason(&why)))
            }
            Heard::Welcome(_) | Heard::Refusal(_) | Heard::Farewell(_) => {
                Err(invalid("kind", "a second welcome"))
            }
        }
    }

    fn have(&self, kept: &mut Kept, message: HaveRuns) -> Result<(), LinkEnd> {
        let (peer, generation, count) = (self.request.peer, self.request.generation, kept.have.piece_count());
        let runs = convert::runs(&message.runs, count)?;
        let vouchers = convert::vouchers(message.vouchers, count)?;
        let runs = fresh(&mut kept.have, &runs);
        self.say_readable(match &mut kept.reading {
            None => Readable { runs, vouchers },
            Some(reading) => reading.windows.announced(&runs, vouchers),
        });
        if let Some(coming) = message.coming {
            let runs = convert::runs(&coming.runs, count)?;
            let coming = Coming { epoch: coming.epoch, runs };
            self.emit(LinkEvent::Coming { peer, generation, coming });
        }
        Ok(())
    }

    fn say_progress(&self, kept: &mut Kept) {
        if kept.data.count() {
            let (peer, generation) = (self.request.peer, self.request.generation);
            self.emit(LinkEvent::Progress { peer, generation });
        }
    }

    /// How a link to a parent that leaves ends, unless its owner drops it before: the grant is not renewed any more.
    async fn left(&self, mut kept: Kept, expiry: Instant, reason: String) -> LinkEnd {
        let mut poll = ticks(DATA_POLL);
        loop {
            tokio::select! {
                heard = kept.control.next() => if heard.is_err() {
                    return LinkEnd::Farewell(reason);
                },
                _ = poll.tick() => {
                    if kept.data.link.is_closed() {
                        return LinkEnd::Farewell(reason);
                    }
                    self.say_progress(&mut kept);
                }
                () = sleep_until(expiry) => return LinkEnd::Expired,
            }
        }
    }
}

impl Kept {
    fn data_ended(&self) -> LinkEnd {
        if self.reading.is_some() { LinkEnd::RdmaEnded } else { LinkEnd::DataEnded }
    }

    fn landed(&mut self, run: Run) {
        if let Some(reading) = &mut self.reading {
            reading.windows.landed(run, &self.have);
        }
    }

    /// A window was granted. Gives what of it may be read.
    fn window(&mut self, message: &WindowGrant) -> Result<Readable, LinkEnd> {
        let Some(reading) = &mut self.reading else {
            return Err(invalid("kind", "a window of a link over TCP"));
        };
        let window = rdma::granted_window(message)?;
        if reading.windows.bytes(window.id) != Some(window.bytes) {
            return Err(invalid("bytes", "the window is not as long as its part of the blob"));
        }
        let file = self.terms.windows.get(&BlobIndex(window.id.blob));
        let handle = file.ok_or_else(|| invalid("blob", "it is not granted"))?.handle;
        let readable =
            reading.windows.granted(window.id).ok_or_else(|| invalid("index", "nobody asked for it"))?;
        let granted = reading.watched.link.grant(handle, rdma_words::window_from(&window));
        granted.map_err(|_| invalid("rkeys", "they are not one for each rail"))?;
        Ok(readable)
    }

    /// Gives back what is not needed any more, asks for what is, and says what has not been said.
    fn settle(&mut self) {
        self.control.flush();
        let Some(reading) = &mut self.reading else { return };
        let handle = |id: &WindowId| self.terms.windows.get(&BlobIndex(id.blob)).map(|file| file.handle);
        for id in reading.windows.idle() {
            // No read is posted there from now on; those that are out are waited for.
            if let Some(handle) = handle(&id) {
                reading.watched.link.forget(handle, id.index);
            }
        }
        let outstanding = &reading.watched.outstanding;
        let is_out =
            |id: &WindowId| handle(id).is_some_and(|handle| outstanding.is_reading(handle, id.index));
        let free: Vec<_> = reading.windows.leaving().filter(|id| !is_out(id)).collect();
        if !free.is_empty() {
            for id in &free {
                reading.windows.released(*id);
            }
            let windows = rdma::window_messages(&free);
            self.control.say(Said::Release(WindowRelease { windows }));
        }
        let asked = reading.windows.ask();
        if !asked.is_empty() {
            let windows = rdma::window_messages(&asked);
            self.control.say(Said::Windows(WindowRequest { windows }));
        }
    }
}

/// What of `runs` is new: however often a parent says the same, its child's work is bounded.
fn fresh(have: &mut PieceMap, runs: &[Run]) -> Vec<Run> {
    runs_of(runs.iter().flat_map(Run::pieces).filter(|piece| have.insert(*piece)))
}
