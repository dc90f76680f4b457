//! The decisions of one link: which QP carries what, what a failure ends, and when a read has ended. Pure: it is told
//! the time, and what happened.
//!
//! Owns: the order of things. Does not own: QPs, memory or threads. A *lane* is one QP of the link; a *work* is a part
//! of a read that is with a lane's QP.
//!
//! Laws: a read ends once, and only when none of its works is out; a lane's works come back before the lane is gone; a
//! link is over once it was ended and every lane is gone.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
    sync::Arc,
    time::Instant,
};

use crate::rail::{Failure, FailureKind};

/// Some bytes of a read, from one place of the sender's memory.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// Which bytes of the read.
    pub(crate) range: Range<usize>,
    /// Where they are.
    pub(crate) address: u64,
    /// The key for each rail that the two ends share.
    pub(crate) rkeys: Arc<[u32]>,
}

/// How a read ended.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Done,
    Refused,
    Late,
    Down(Arc<io::Error>),
}

/// What a lane is to post next.
pub(crate) struct Taken<'a, P> {
    pub(crate) work: u64,
    pub(crate) part: &'a Part,
    pub(crate) payload: &'a P,
}

/// A read and how it ended.
pub(crate) type Ended<P> = (P, Ending);

pub(crate) struct Flow<P> {
    lanes: Vec<Lane>,
    reads: BTreeMap<u64, Read<P>>,
    /// Reads that have ended and were not picked up yet.
    ended: VecDeque<Ended<P>>,
    in_flight_max: usize,
    works_max: usize,
    /// Reads and works are numbered from one count: no number comes twice.
    last: u64,
    end: Option<End>,
    /// Other rails have something to do that they were not told of.
    is_stirred: bool,
}

struct End {
    reason: Arc<io::Error>,
    /// When, if a deadline was why: reads that were late then end as late.
    late_at: Option<Instant>,
}

struct Read<P> {
    payload: P,
    deadline: Instant,
    /// Parts that wait or are out.
    left: usize,
    /// A part was given up.
    is_broken: bool,
    /// The link's own, which no caller counts or waits for.
    is_probe: bool,
}

struct Item {
    read: u64,
    part: Part,
    /// It proves this very lane, so that no other may take it.
    is_probe: bool,
}

impl Item {
    fn bytes(&self) -> u64 {
        self.part.range.len() as u64
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Up,
    /// To be destroyed.
    Doomed,
    /// Somebody destroys it.
    Dying,
    Gone,
}

struct Lane {
    rail: usize,
    state: State,
    queue: VecDeque<Item>,
    posted: BTreeMap<u64, Item>,
    /// Of both.
    bytes: u64,
}

impl<P> Flow<P> {
    /// A link of lanes on these rails, each of which carries `works_max` works at once.
    pub(crate) fn new(rails: &[usize], works_max: usize, in_flight_max: usize) -> Self {
        let lane = |rail: &usize| Lane {
            rail: *rail,
            state: State::Up,
            queue: VecDeque::new(),
            posted: BTreeMap::new(),
            bytes: 0,
        };
        Self {
            lanes: rails.iter().map(lane).collect(),
            reads: BTreeMap::new(),
            ended: VecDeque::new(),
            in_flight_max,
            works_max,
            last: 0,
            end: None,
            is_stirred: false,
        }
    }

    /// Whether a read would be taken now.
    pub(crate) fn has_room(&self) -> bool {
        self.end.is_none() && self.reads.values().filter(|read| !read.is_probe).count() < self.in_flight_max
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether nothing will happen any more.
    #[cfg(test)]
    fn is_over(&self) -> bool {
        self.is_ended() && self.reads.is_empty() && self.lanes.iter().all(|lane| lane.state == State::Gone)
    }

    /// The rails that still carry something of it.
    pub(crate) fn rails_up(&self) -> Vec<usize> {
        let up = self.lanes.iter().filter(|lane| lane.state == State::Up);
        let mut rails: Vec<usize> = up.map(|lane| lane.rail).collect();
        rails.dedup();
        rails
    }

    /// The rails that have something to post; or one that can say what has ended, if nothing is to be posted.
    pub(crate) fn rails_waiting(&self) -> Vec<usize> {
        let up = self.lanes.iter().filter(|lane| lane.state == State::Up);
        let mut rails: Vec<usize> =
            up.clone().filter(|lane| !lane.queue.is_empty()).map(|lane| lane.rail).collect();
        if rails.is_empty() {
            rails.extend(up.map(|lane| lane.rail).next());
        }
        rails.dedup();
        rails
    }

    /// Takes a read, which [`Self::has_room`] for it, in parts. Each goes to the lane with the fewest bytes.
    pub(crate) fn post(&mut self, payload: P, parts: Vec<Part>, deadline: Instant) {
        let number = self.next_number();
        let left = parts.len();
        self.reads.insert(number, Read { payload, deadline, left, is_broken: false, is_probe: false });
        for part in parts {
            self.assign(Item { read: number, part, is_probe: false });
        }
    }

    /// Takes a read that never reaches a QP.
    pub(crate) fn refuse(&mut self, payload: P) {
        self.ended.push_back((payload, Ending::Refused));
    }

    /// Takes a read for this very lane.
    pub(crate) fn probe(&mut self, lane: usize, payload: P, part: Part, deadline: Instant) {
        let number = self.next_number();
        self.reads.insert(number, Read { payload, deadline, left: 1, is_broken: false, is_probe: true });
        self.queue_on(lane, Item { read: number, part, is_probe: true });
    }

    /// What the lane posts now: its own, or else what waits for the lane that is furthest behind. It is out from then on.
    pub(crate) fn take(&mut self, lane: usize) -> Option<Taken<'_, P>> {
        if self.lanes[lane].state != State::Up || self.lanes[lane].posted.len() >= self.works_max {
            return None;
        }
        let item = self.lanes[lane].queue.pop_front().or_else(|| self.steal(lane))?;
        let work = self.next_number();
        let item = self.lanes[lane].posted.entry(work).or_insert(item);
        let payload =
            &self.reads.get(&item.read).expect("a read is there until its parts have ended").payload;
        Some(Taken { work, part: &item.part, payload })
    }

    /// Whether neither [`Self::take`] nor [`Self::take_doomed`] has anything for the rail.
    pub(crate) fn has_nothing_for(&self, rail: usize) -> bool {
        let anything = self.lanes.iter().any(|lane| lane.has_spare(self.works_max));
        !self.lanes.iter().filter(|lane| lane.rail == rail).any(|lane| match lane.state {
            State::Up => lane.posted.len() < self.works_max && (anything || !lane.queue.is_empty()),
            State::Doomed => true,
            State::Dying | State::Gone => false,
        })
    }

    /// A work of the lane came back. Says how many bytes of the caller's reads it brought.
    pub(crate) fn returned(&mut self, lane: usize, work: u64, result: Result<(), &Failure>) -> u64 {
        let Some(item) = self.lanes[lane].posted.remove(&work) else { return 0 };
        let bytes = item.bytes();
        self.lanes[lane].bytes -= bytes;
        match result {
            Ok(()) => {
                self.part_ended(item.read);
                if item.is_probe { 0 } else { bytes }
            }
            Err(failure) => {
                if self.lanes[lane].state == State::Up {
                    self.lane_failed(lane, failure);
                }
                self.place_again(item);
                0
            }
        }
    }

    /// The lane carries nothing any more: its rail is lost to this link, or the link has ended.
    pub(crate) fn lane_failed(&mut self, lane: usize, failure: &Failure) {
        let rail = self.lanes[lane].rail;
        match failure.kind {
            FailureKind::Access => self.finish(io::Error::other(failure.clone())),
            FailureKind::Path => self.lose_rail(rail, failure),
        }
    }

    /// Goes on without the rail, or ends if there is no other.
    pub(crate) fn lose_rail(&mut self, rail: usize, failure: &Failure) {
        let up = |lane: &Lane| lane.state == State::Up;
        if !self.lanes.iter().any(|lane| up(lane) && lane.rail == rail) {
            return;
        }
        if !self.lanes.iter().any(|lane| up(lane) && lane.rail != rail) {
            self.finish(io::Error::other(failure.clone()));
            return;
        }
        self.is_stirred = true;
        let mut homeless = Vec::new();
        for lane in self.lanes.iter_mut().filter(|lane| up(lane) && lane.rail == rail) {
            lane.state = State::Doomed;
            homeless.extend(lane.take_queue());
        }
        for item in homeless {
            self.place_again(item);
        }
    }

    /// Ends the link for `reason`, or does nothing if it has ended before.
    pub(crate) fn finish(&mut self, reason: io::Error) {
        self.end_with(End { reason: Arc::new(reason), late_at: None });
    }

    /// Ends the link if a read is late.
    pub(crate) fn tick(&mut self, now: Instant) {
        if self.next_deadline().is_some_and(|deadline| deadline <= now) {
            let reason = Arc::new(io::ErrorKind::TimedOut.into());
            self.end_with(End { reason, late_at: Some(now) });
        }
    }

    /// When [`Self::tick`] has something to do next.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if self.is_ended() {
            return None;
        }
        self.reads.values().map(|read| read.deadline).min()
    }

    /// The lanes of a rail that the caller must destroy now.
    pub(crate) fn take_doomed(&mut self, rail: usize) -> Vec<usize> {
        let mut doomed = Vec::new();
        for (number, lane) in self.lanes.iter_mut().enumerate() {
            if lane.rail == rail && lane.state == State::Doomed {
                lane.state = State::Dying;
                doomed.push(number);
            }
        }
        doomed
    }

    /// The lane's QP is destroyed, and every work that came back from it was reported. What did not come back never
    /// will, so its reads end, too; their memory is whoever's holds it.
    pub(crate) fn lane_gone(&mut self, lane: usize) {
        self.lanes[lane].state = State::Gone;
        for item in std::mem::take(&mut self.lanes[lane].posted).into_values() {
            self.give_up(item.read);
        }
        self.lanes[lane].bytes = 0;
    }

    /// The next read that has ended.
    pub(crate) fn next_ended(&mut self) -> Option<Ended<P>> {
        self.ended.pop_front()
    }

    /// Whether other rails have something to do; asked once.
    pub(crate) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.is_stirred)
    }

    fn next_number(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn end_with(&mut self, end: End) {
        if self.is_ended() {
            return;
        }
        self.end = Some(end);
        self.is_stirred = true;
        let mut dropped = Vec::new();
        for lane in &mut self.lanes {
            dropped.extend(lane.take_queue());
            if lane.state == State::Up {
                lane.state = State::Doomed;
            }
        }
        for item in dropped {
            self.give_up(item.read);
        }
    }

    /// The lane with the fewest bytes to carry, of the rail with the fewest; of equals the one with the fewest parts, so
    /// that small reads spread, too.
    fn assign(&mut self, item: Item) {
        let up = || self.lanes.iter().enumerate().filter(|(_, lane)| lane.state == State::Up);
        let of_rail =
            |rail| up().filter(|(_, lane)| lane.rail == rail).map(|(_, lane)| lane.bytes).sum::<u64>();
        let parts = |lane: &Lane| lane.queue.len() + lane.posted.len();
        let least = up().min_by_key(|(_, lane)| (of_rail(lane.rail), lane.bytes, parts(lane)));
        match least.map(|(number, _)| number) {
            Some(lane) => self.queue_on(lane, item),
            None => self.give_up(item.read),
        }
    }

    fn queue_on(&mut self, lane: usize, item: Item) {
        let lane = &mut self.lanes[lane];
        lane.bytes += item.bytes();
        lane.queue.push_back(item);
    }

    fn place_again(&mut self, item: Item) {
        if item.is_probe || self.is_ended() {
            self.give_up(item.read);
        } else {
            self.is_stirred = true;
            self.assign(item);
        }
    }

    /// The last part that waits for the lane with most bytes, of those that carry all they can: what waits for another
    /// goes out as soon as its engine looks, and would not be spread if the first to look took it.
    fn steal(&mut self, thief: usize) -> Option<Item> {
        let works_max = self.works_max;
        let is_behind = |lane: &&mut Lane| lane.has_spare(works_max);
        let victim = self.lanes.iter_mut().filter(is_behind).max_by_key(|lane| lane.bytes)?;
        let item = victim.queue.pop_back()?;
        victim.bytes -= item.bytes();
        self.lanes[thief].bytes += item.bytes();
        Some(item)
    }

    fn give_up(&mut self, read: u64) {
        if let Some(read) = self.reads.get_mut(&read) {
            read.is_broken = true;
        }
        self.part_ended(read);
    }

    fn part_ended(&mut self, number: u64) {
        let Some(read) = self.reads.get_mut(&number) else { return };
        read.left -= 1;
        if read.left > 0 {
            return;
        }
        let Some(Read { payload, deadline, is_broken, .. }) = self.reads.remove(&number) else { return };
        let ending = if is_broken { self.fault(deadline) } else { Ending::Done };
        self.ended.push_back((payload, ending));
    }

    fn fault(&self, deadline: Instant) -> Ending {
        match &self.end {
            Some(End { late_at: Some(at), .. }) if deadline <= *at => Ending::Late,
            Some(End { reason, .. }) => Ending::Down(Arc::clone(reason)),
            None => Ending::Down(Arc::new(io::Error::other("the rail was lost"))),
        }
    }
}

impl Lane {
    /// Whether something waits that others may take.
    fn has_spare(&self, works_max: usize) -> bool {
        self.posted.len() >= works_max && self.queue.back().is_some_and(|item| !item.is_probe)
    }

    fn take_queue(&mut self) -> VecDeque<Item> {
        self.bytes -= self.queue.iter().map(Item::bytes).sum::<u64>();
        std::mem::take(&mut self.queue)
    }
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;
