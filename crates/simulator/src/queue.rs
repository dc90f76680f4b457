//! The queue of what happens next. Does not own what it means.
//!
//! Two queues in one: a heap, and a plain queue for the many events that all come after the same delay and so are in
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

/// What happens next; of events of the same moment, what was said first.
pub(crate) struct Queue<T> {
    now: u64,
    delay: u64,
    next_order: u64,
    heap: BinaryHeap<Entry<T>>,
    delayed: VecDeque<Entry<T>>,
}

impl<T> Queue<T> {
    /// A queue at the beginning of time, in which [`Self::later`] means after `delay`.
    pub(crate) fn new(delay: Duration) -> Self {
        Self { now: 0, delay: nanos(delay), next_order: 0, heap: BinaryHeap::new(), delayed: VecDeque::new() }
    }

    pub(crate) fn now(&self) -> Duration {
        Duration::from_nanos(self.now)
    }

    /// At a moment, or now if that has passed.
    pub(crate) fn push(&mut self, at: Duration, what: T) {
        let entry = self.entry(nanos(at), what);
        self.heap.push(entry);
    }

    /// After so many nanoseconds.
    pub(crate) fn after(&mut self, nanoseconds: u64, what: T) {
        let entry = self.entry(self.now + nanoseconds, what);
        self.heap.push(entry);
    }

    /// After the delay that all messages have.
    pub(crate) fn later(&mut self, what: T) {
        let entry = self.entry(self.now + self.delay, what);
        self.delayed.push_back(entry);
    }

    fn entry(&mut self, at: u64, what: T) -> Entry<T> {
        self.next_order += 1;
        Entry { at: at.max(self.now), order: self.next_order, what }
    }

    pub(crate) fn pop(&mut self) -> Option<T> {
        let is_delayed_next = match (self.heap.peek(), self.delayed.front()) {
            (Some(heap), Some(delayed)) => delayed > heap,
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let entry = if is_delayed_next { self.delayed.pop_front() } else { self.heap.pop() }?;
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
}
