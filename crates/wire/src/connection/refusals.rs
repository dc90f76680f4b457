//! Connections that were refused, as they are told: once in a while for each machine and reason, because a peer with a
//! wrong key comes again every few seconds. Does not own why one is refused.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How long the same is not told again.
const QUIET: Duration = Duration::from_mins(10);

/// Machines and reasons that are remembered, at most; beyond, nothing new is told before the oldest is forgotten.
const REMEMBERED_MAX: usize = 1024;

/// What was told, and when.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<BTreeMap<(IpAddr, &'static str), Instant>>);

impl Refusals {
    /// Whether this is to be told; if so, it counts as told.
    pub(super) fn is_news(&self, from: IpAddr, why: &'static str, now: Instant) -> bool {
        // A panic elsewhere leaves the table whole: each change is one step.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, at| now.saturating_duration_since(*at) < QUIET);
        if told.len() >= REMEMBERED_MAX || told.contains_key(&(from, why)) {
            return false;
        }
        told.insert((from, why), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_and_reason_is_told_once_in_a_while() {
        let (refusals, start) = (Refusals::default(), Instant::now());
        let one = |number: u32| IpAddr::from(number.to_be_bytes());
        assert!(refusals.is_news(one(1), "key", start));
        assert!(!refusals.is_news(one(1), "key", start + QUIET / 2));
        assert!(refusals.is_news(one(1), "clock", start));
        assert!(refusals.is_news(one(2), "key", start));
        assert!(refusals.is_news(one(1), "key", start + QUIET));
        let told = (10..5000).filter(|number| refusals.is_news(one(*number), "key", start + QUIET)).count();
        assert!(told < REMEMBERED_MAX, "{told}");
    }
}
