//! The queue of what happens next. Does not own what it means.
//!
//! Several queues in one: a heap, and a plain queue for each of the few delays that most events come after, which are in
//! order already.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

struct Entry<T> {
    at: u64,
    order: u64,
    what: T,
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    /// The next one is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// Delays that have a queue of their own, at most: the first that are met are those that come again and again.
const LANES_MAX: usize = 8;

/// Events that all come after the same delay.
struct Lane<T> {
    delay: u64,
    events: VecDeque<Entry<T>>,
}

/// What happens next; of events of the same moment, what was said first.
pub(crate) struct Queue<T> {
    now: u64,
    delay: u64,
    next_order: u64,
    heap: BinaryHeap<Entry<T>>,
    lanes: Vec<Lane<T>>,
}

impl<T> Queue<T> {
    /// A queue at the beginning of time, in which [`Self::later`] means after `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self { now: 0, delay: nanos(delay), next_order: 0, heap: BinaryHeap::new(), lanes: Vec::new() }
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// At a moment, or now if that has passed.
    pub(crate) fn push(&mut self, at: Duration, what: T) {
        let at = nanos(at);
        if at <= self.now {
            return self.after(0, what);
        }
        // What is due at some moment has seldom a delay that others have.
        let entry = self.entry(at, what);
        self.heap.push(entry);
    }

    /// After so many nanoseconds, as many other events.
    pub(crate) fn after(&mut self, nanoseconds: u64, what: T) {
        let entry = self.entry(self.now + nanoseconds, what);
        match self.lanes.iter().position(|lane| lane.delay == nanoseconds) {
            Some(lane) => self.lanes[lane].events.push_back(entry),
            None if self.lanes.len() < LANES_MAX => {
                self.lanes.push(Lane { delay: nanoseconds, events: VecDeque::from([entry]) });
            }
            None => self.heap.push(entry),
        }
    }

    /// After the delay that all messages have.
    pub(crate) fn later(&mut self, what: T) {
        self.after(self.delay, what);
    }

    fn entry(&mut self, at: u64, what: T) -> Entry<T> {
        self.next_order += 1;
        Entry { at, order: self.next_order, what }
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let (mut next, mut first) = (None, self.heap.peek());
        for (at, lane) in self.lanes.iter().enumerate() {
            let front = lane.events.front();
            if front.is_some_and(|front| first.is_none_or(|first| front > first)) {
                (next, first) = (Some(at), front);
            }
        }
        let entry = match next {
            Some(lane) => self.lanes[lane].events.pop_front(),
            None => self.heap.pop(),
        }?;
        self.now = entry.at;
        Some(entry.what)
    }
}

/// Saturating: nothing is simulated for 584 years.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_first_happens_first_in_both_queues() {
        let mut queue = Queue::new(Duration::from_nanos(5));
        queue.later("b");
        queue.push(Duration::from_nanos(5), "c");
        queue.push(Duration::from_nanos(3), "a");
        queue.push(Duration::from_nanos(9), "e");
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some("a"), Some("b"), Some("c")]);
        queue.after(0, "d");
        assert_eq!([queue.pop(), queue.pop(), queue.pop()], [Some("d"), Some("e"), None]);
        assert_eq!(queue.now(), Duration::from_nanos(9));
    }

    #[test]
    fn whatever_the_delays_events_come_in_the_order_of_a_sorted_list() {
        let mut queue = Queue::new(Duration::from_nanos(7));
        let (mut expect, mut order, mut random) = (std::collections::BTreeSet::new(), 0_u32, 1_u64);
        for step in 0..20_000 {
            random = crate::fuzz::mix(random);
            let now = nanos(queue.now());
            let delay = match random % 4 {
                // More delays than have queues of their own.
                0 => (random >> 8) % 30,
                1 => 7,
                2 => 0,
                _ => 3,
            };
            order += 1;
            match random % 3 {
                0 => queue.push(Duration::from_nanos((now + delay).saturating_sub(2)), order),
                _ if delay == 7 => queue.later(order),
                _ => queue.after(delay, order),
            }
            let at =
                if random.is_multiple_of(3) { (now + delay).saturating_sub(2).max(now) } else { now + delay };
            expect.insert((at, order));
            if step % 3 > 0 {
                let next = expect.pop_first();
                assert_eq!(queue.pop(), next.map(|(_, order)| order), "step {step}");
                assert_eq!(Some(nanos(queue.now())), next.map(|(at, _)| at));
            }
        }
    }
}
