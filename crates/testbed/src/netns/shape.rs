//! What a network card does at most. Does not own which cards there are.

use super::run;

/// What a card may send at once, at the least: above the 64 KiB and the headers that the kernel hands over in one piece.
const BURST_BYTES_MIN: u64 = 128 << 10;

/// What a card may send at once, as time at its rate: the kernel's timer is not exact.
const BURST_MS: u64 = 1;

/// What waits in front of a card, as time at its rate: some round trips, and no more than a switch would keep.
const QUEUE_MS: u64 = 20;

/// What waits in front of a card at the least: several pieces of what the kernel hands over.
const QUEUE_BYTES_MIN: u64 = 512 << 10;

/// A rate in megabits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mbit(
    /// How many.
    pub u32,
);

impl Mbit {
    fn bytes_in(self, milliseconds: u64) -> u64 {
        u64::from(self.0) * 125 * milliseconds
    }

    fn burst_bytes(self) -> u64 {
        self.bytes_in(BURST_MS).max(BURST_BYTES_MIN)
    }

    /// What it has at most, sent at once or waiting.
    fn limit_bytes(self) -> u64 {
        self.burst_bytes() + self.bytes_in(QUEUE_MS).max(QUEUE_BYTES_MIN)
    }
}

/// Lets `card` of that namespace send no more than `rate`.
pub(super) fn shape(namespace: &str, card: &str, rate: Mbit) -> anyhow::Result<()> {
    let (burst, limit) = (rate.burst_bytes().to_string(), rate.limit_bytes().to_string());
    let rate = format!("{}mbit", rate.0);
    let tbf =
        ["qdisc", "replace", "dev", card, "root", "tbf", "rate", &rate, "burst", &burst, "limit", &limit];
    run("tc", &[&["-n", namespace], &tbf[..]].concat()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_a_millisecond_and_never_less_than_the_kernel_hands_over() {
        assert_eq!(Mbit(50).burst_bytes(), 128 << 10);
        assert_eq!(Mbit(10_000).burst_bytes(), 1_250_000);
        assert_eq!(Mbit(50).limit_bytes(), (128 << 10) + (512 << 10));
        assert_eq!(Mbit(10_000).limit_bytes(), 1_250_000 + 25_000_000);
    }
}
