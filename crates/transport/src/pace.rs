//! Keeping to a rate: how long bytes have to wait so that no more of them move than may.
//!
//! Owns: the arithmetic (`Bucket`, which is told the time) and waiting by it (`Pacer`). Does not own: whose bytes they
//! are, or where rates come from.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// What may move at once after a pause, as a part of what moves in a second: some tens of milliseconds, so that a process
/// which was not woken in time loses nothing.
const BURST_PART: u64 = 32;

/// And no less than that, so that slow rates do not mean many small steps.
const BURST_BYTES_MIN: u64 = 64 << 10;

/// A rate, and what has moved by it.
///
/// Law: of what was taken, no more is due within any span of time than the rate times that span and the burst; where
/// more than the burst is taken at once, than that instead of the burst.
#[derive(Debug)]
pub struct Bucket {
    rate: u64,
    /// When everything that was taken has moved, at exactly this rate.
    busy_until: Duration,
}

impl Bucket {
    /// Of so many bytes per second, that has not moved any.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), busy_until: Duration::ZERO }
    }

    /// What may move at once after a pause.
    pub fn burst(&self) -> u64 {
        (self.rate / BURST_PART).max(BURST_BYTES_MIN)
    }

    /// Bytes per second from now on.
    pub fn set_rate(&mut self, rate: u64) {
        self.rate = rate.max(1);
    }

    /// Takes `bytes`; says when they are due, which is now or later.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Duration {
        self.busy_until = self.busy_until.max(now) + self.time_of(bytes);
        self.busy_until.saturating_sub(self.time_of(self.burst())).max(now)
    }

    /// The same, if they are due by `deadline`; else it takes nothing.
    pub fn take_by(&mut self, now: Duration, deadline: Duration, bytes: u64) -> Option<Duration> {
        let before = self.busy_until;
        let due = self.take(now, bytes);
        if due <= deadline {
            return Some(due);
        }
        self.busy_until = before;
        None
    }

    fn time_of(&self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 1_000_000_000).div_ceil(u128::from(self.rate));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// A [`Bucket`] for all who share a rate: each waits until what it takes is due.
#[derive(Debug)]
pub struct Pacer {
    begin: Instant,
    bucket: Mutex<Bucket>,
    moved: AtomicU64,
}

impl Pacer {
    /// Of so many bytes per second.
    pub fn new(rate: u64) -> Self {
        Self { begin: Instant::now(), bucket: Mutex::new(Bucket::new(rate)), moved: AtomicU64::new(0) }
    }

    /// Bytes per second.
    pub fn rate(&self) -> u64 {
        self.bucket().rate
    }

    /// From now on; who waits already does so as long as it was told to.
    pub fn set_rate(&self, rate: u64) {
        self.bucket().set_rate(rate);
    }

    /// All bytes that were let through.
    pub fn moved(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Waits until `bytes` more may move.
    pub async fn take(&self, bytes: u64) {
        let due = self.begin + self.bucket().take(self.begin.elapsed(), bytes);
        self.let_through(due, bytes).await;
    }

    /// The same, unless that is after `deadline`: then it takes nothing and says so at once.
    pub async fn take_by(&self, deadline: Instant, bytes: u64) -> bool {
        let deadline = deadline.saturating_duration_since(self.begin);
        let due = self.bucket().take_by(self.begin.elapsed(), deadline, bytes);
        if let Some(due) = due {
            self.let_through(self.begin + due, bytes).await;
        }
        due.is_some()
    }

    async fn let_through(&self, due: Instant, bytes: u64) {
        if due > Instant::now() {
            sleep_until(due).await;
        }
        self.moved.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        // Each change is one step.
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// When each of some amounts, taken so many microseconds after the one before, is due.
    fn due(rate: u64, taken: &[(u64, u64)]) -> Vec<(Duration, u64)> {
        let (mut bucket, mut now) = (Bucket::new(rate), Duration::ZERO);
        let mut due = Vec::new();
        for (pause, bytes) in taken {
            now += Duration::from_micros(*pause);
            due.push((bucket.take(now, *bytes), *bytes));
        }
        due
    }

    fn amounts() -> impl Strategy<Value = Vec<(u64, u64)>> {
        proptest::collection::vec((0_u64..200_000, 1_u64..(2 << 20)), 1..60)
    }

    proptest! {
        #[test]
        fn no_span_sees_more_than_the_rate_and_a_burst(rate in 10_000_u64..10_000_000_000, taken in amounts()) {
            let due = due(rate, &taken);
            let most = due.iter().map(|(_, bytes)| *bytes).max().unwrap_or_default();
            let burst = u128::from(Bucket::new(rate).burst().max(most));
            for (begin, (from, _)) in due.iter().enumerate() {
                let mut sum = 0_u128;
                for (at, bytes) in &due[begin..] {
                    sum += u128::from(*bytes);
                    let span = at.saturating_sub(*from).as_nanos() * u128::from(rate) / 1_000_000_000;
                    // Times are in whole nanoseconds.
                    let rounding = u128::from(rate) * 2 / 1_000_000_000 + 1;
                    prop_assert!(sum <= span + burst + rounding, "{sum} within {span}");
                }
            }
        }

        #[test]
        fn nobody_waits_longer_than_the_rate_wants(rate in 10_000_u64..10_000_000_000, taken in amounts()) {
            // A queue that is served at exactly that rate.
            let (mut now, mut idle_at) = (Duration::ZERO, Duration::ZERO);
            for ((pause, bytes), (at, _)) in taken.iter().zip(due(rate, &taken)) {
                now += Duration::from_micros(*pause);
                let nanos = (u128::from(*bytes) * 1_000_000_000).div_ceil(u128::from(rate));
                idle_at = idle_at.max(now) + Duration::from_nanos(u64::try_from(nanos).unwrap());
                prop_assert!(at >= now && at <= idle_at);
            }
        }
    }

    #[test]
    fn what_is_due_too_late_is_not_taken() {
        let ms = Duration::from_millis;
        let mut bucket = Bucket::new(1 << 20);
        // A burst takes a sixteenth of a second.
        let burst = Duration::from_secs(1) / 16;
        assert_eq!(bucket.take_by(ms(0), ms(2000), 2 << 20), Some(ms(2000).saturating_sub(burst)));
        assert_eq!(bucket.take_by(ms(0), ms(3000), 2 << 20), None);
        // As if nobody had asked in between.
        assert_eq!(bucket.take(ms(0), 1 << 20), ms(3000).saturating_sub(burst));
        bucket.set_rate(2 << 20);
        let burst = Duration::from_secs(1) / 32;
        assert_eq!(bucket.take(ms(0), 2 << 20), ms(4000).saturating_sub(burst));
        // After a pause it is as new.
        assert_eq!(bucket.take(ms(9000), 64 << 10), ms(9000));
    }
}
