//! Who of those that read the origin for others is much slower than the rest, seen in what they announce.
//!
//! Owns: the comparison. Does not own: what a plan makes of it (`swarm_state`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::id::PeerId;

/// How often entrants are compared: many pieces, on any network that a model is sent over.
const INTERVAL: Duration = Duration::from_millis(500);

/// An entrant is a straggler when it is this many times slower than the middle one. Less is unequal cards and luck.
const FACTOR: f64 = 4.0;

/// Comparisons in a row that it must lose: one pause of a disk is no reason to move a stripe.
const LOSSES: u32 = 2;

/// Pieces that an entrant must still lack: what is nearly done is done sooner than given to another.
const LEFT_MIN: u32 = 8;

/// Pieces that the one in the middle has got since the last comparison: with fewer, whether a slow one got its next two
/// before or after decides.
const GAIN_MIN: f64 = 12.0;

/// Entrants without which none is in the middle.
pub(crate) const COMPARED_MIN: usize = 3;

/// After this long without a comparison nothing is known of the time since.
const GAP_MAX: Duration = Duration::from_secs(1);

/// How long a straggler gets nothing to read for others. What it was slow at may be over by then.
pub(crate) const STRAGGLES: Duration = Duration::from_secs(30);

/// How far an entrant is with all stripes that it is the entrant of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) has: u32,
    pub(crate) lacks: u32,
}

impl Stretch {
    fn all(self) -> u32 {
        self.has + self.lacks
    }
}

#[derive(Clone, Copy, Debug)]
struct Counted {
    has: u32,
    /// The size of its stripes: another one means other stripes.
    all: u32,
    losses: u32,
}

/// The comparison of one swarm.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// When it was looked last.
    last: Duration,
    /// When what is counted was counted.
    counted_at: Duration,
    counted: BTreeMap<PeerId, Counted>,
    /// Pieces per second of the one in the middle, as last seen: it counts on when most are done.
    usual: f64,
}

impl Pace {
    /// When the next comparison is due.
    pub(crate) fn next(&self) -> Duration {
        self.last + INTERVAL
    }

    /// Compares the entrants; gives those that straggle.
    pub(crate) fn compare(
        &mut self,
        now: Duration,
        entrants: &BTreeMap<PeerId, Stretch>,
    ) -> BTreeSet<PeerId> {
        if now.saturating_sub(self.last) > GAP_MAX {
            self.counted.clear();
            self.usual = 0.0;
        }
        self.last = now;
        let elapsed = now.saturating_sub(self.counted_at).as_secs_f64();
        let mut rates = BTreeMap::new();
        for (peer, at) in entrants.iter().filter(|(_, at)| at.lacks > 0) {
            // One that got or lost a stripe since is not compared by what it had of it.
            let then = self.counted.get(peer).filter(|then| then.all == at.all() && then.has <= at.has);
            if let Some(then) = then {
                rates.insert(*peer, f64::from(at.has - then.has) / elapsed);
            }
        }
        let mut sorted: Vec<f64> = rates.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let usual = if rates.len() < COMPARED_MIN { self.usual } else { sorted[sorted.len() / 2] };
        if !rates.is_empty() && usual * elapsed < GAIN_MIN {
            return BTreeSet::new();
        }
        self.usual = usual;
        self.counted_at = now;
        let before = std::mem::take(&mut self.counted);
        let mut straggling = BTreeSet::new();
        for (peer, at) in entrants {
            let is_slow = rates.get(peer).is_some_and(|rate| rate * FACTOR < self.usual);
            let losses = before.get(peer).filter(|_| is_slow).map_or(0, |then| then.losses);
            let losses = losses + u32::from(is_slow && at.lacks >= LEFT_MIN);
            if losses >= LOSSES {
                straggling.insert(*peer);
            }
            self.counted.insert(*peer, Counted { has: at.has, all: at.all(), losses });
        }
        straggling
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u32 = 1000;

    fn id(number: u8) -> PeerId {
        PeerId::new([number; 16])
    }

    /// What is found, comparison by comparison, among entrants that get so many pieces each time.
    fn found(gains: &[u32], times: u32) -> Vec<BTreeSet<PeerId>> {
        let mut pace = Pace::default();
        let standing = |gain: u32, time: u32| {
            let has = (gain * time).min(SIZE);
            Stretch { has, lacks: SIZE - has }
        };
        let compare = |time: u32| {
            let entrants = (1..).map(id).zip(gains.iter().map(|gain| standing(*gain, time))).collect();
            pace.compare(INTERVAL * time, &entrants)
        };
        (0..times).map(compare).collect()
    }

    #[test]
    fn one_that_is_much_slower_is_found_at_the_second_loss() {
        let straggler = BTreeSet::from([id(2)]);
        assert_eq!(found(&[50, 10, 50, 50], 4)[1..], [BTreeSet::new(), straggler.clone(), straggler]);
        assert!(found(&[50, 20, 50, 40], 9).iter().all(BTreeSet::is_empty), "unequal cards");
    }

    #[test]
    fn when_the_others_are_done_it_is_still_known_what_is_usual() {
        let last = found(&[500, 500, 500, 50], 9).pop();
        assert_eq!(last, Some(BTreeSet::from([id(4)])));
    }

    #[test]
    fn one_whose_few_pieces_come_in_pairs_is_found() {
        let (mut pace, mut found) = (Pace::default(), BTreeSet::new());
        for time in 1..30 {
            // Two pieces in each second interval, where others get eight in each.
            let stretch = |number: u32| {
                let has = if number == 1 { time / 2 * 2 } else { 8 * time };
                Stretch { has, lacks: SIZE - has }
            };
            let entrants = (1..).map(id).zip((0..4).map(stretch)).collect();
            found.append(&mut pace.compare(INTERVAL * time, &entrants));
        }
        assert_eq!(found, BTreeSet::from([id(2)]));
    }

    #[test]
    fn what_comes_with_a_stripe_is_no_pace() {
        let (mut pace, mut found) = (Pace::default(), BTreeSet::new());
        for time in 1..9 {
            // All are as quick; three of them get a stripe that is begun, and soon another one.
            let stripes = |number: u32| if number < 3 { (time.max(2) - 2).min(2) } else { 0 };
            let stretch = |number: u32| {
                let has = 10 * time + 300 * stripes(number);
                Stretch { has, lacks: SIZE * (stripes(number) + 1) - has }
            };
            let entrants = (1..).map(id).zip((0..4).map(stretch)).collect();
            found.append(&mut pace.compare(INTERVAL * time, &entrants));
        }
        assert_eq!(found, BTreeSet::new());
    }

    #[test]
    fn nobody_straggles_where_all_are_slow_or_few_or_done() {
        for gains in [&[1, 1, 1, 1][..], &[50, 1], &[0, 0, 0], &[500, 500, 500]] {
            assert!(found(gains, 9).iter().all(BTreeSet::is_empty), "{gains:?}");
        }
    }
}
