//! Who is much slower than the rest, seen in what they announce: of those that read the origin for others in the stripes
//! that they read, of all in everything.
//!
//! Owns: the comparison. Does not own: what a plan makes of it (`swarm_state`).

use std::collections::BTreeSet;
use std::time::Duration;

/// How often entrants are compared: many pieces, on any network that a model is sent over.
pub(crate) const ENTRANTS_INTERVAL: Duration = Duration::from_millis(500);

/// How often all are compared in all that they get: no sooner than they tell of it.
pub(crate) const MEMBERS_INTERVAL: Duration = Duration::from_millis(100);

/// Whoever is this many times slower than the middle one straggles. Less is unequal cards and luck.
const FACTOR: f64 = 4.0;

/// Whoever straggles goes on to do so while it is this many times slower.
const FACTOR_STILL: f64 = 2.0;

/// Or whoever needs this many times as long for its own as all together for what all lack.
const LATE: f64 = 2.0;

/// What all together have done once counts for less at each comparison: some are done, others were never as quick.
const FADES: f64 = 0.9;

/// Comparisons in a row that it must lose: one pause of a disk is no reason to move a stripe.
const LOSSES: u32 = 2;

/// Pieces that one must still lack: what is nearly done is done sooner than given to another.
const LEFT_MIN: u32 = 8;

/// Pieces that the one in the middle has got since the last comparison, and that whoever is compared should have got: with
/// fewer, whether a slow one got its next two before or after decides.
const GAIN_MIN: f64 = 12.0;

/// Without so many none is in the middle.
pub(crate) const COMPARED_MIN: usize = 3;

/// After this long without a comparison nothing is known of the time since.
const GAP_MAX: Duration = Duration::from_secs(1);

/// How long a slow entrant gets nothing to read for others. What it was slow at may be over by then.
pub(crate) const STRAGGLES: Duration = Duration::from_secs(30);

/// How long one that is slow in all it gets serves nobody, after it was seen to be slow last.
pub(crate) const RECOVERS: Duration = Duration::from_secs(2);

/// How far one is with what it is compared in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stretch {
    pub(crate) has: u32,
    pub(crate) lacks: u32,
    /// What its card does: a slower one is not expected to keep pace with a faster one.
    pub(crate) weight: u64,
    pub(crate) straggles: bool,
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
    /// Longer ago where less is expected of it.
    since: Duration,
}

/// A comparison that is made again and again, of those whom `K` tells apart.
#[derive(Debug)]
pub(crate) struct Pace<K> {
    interval: Duration,
    /// When it was looked last.
    last: Duration,
    /// When what is counted was counted.
    counted_at: Duration,
    /// Ascending, as all lists of them: ten thousand in a map take ten times as long.
    counted: Vec<(K, Counted)>,
    /// Pieces per second of the one in the middle, as last seen, and what its card does: it counts on when most are done.
    usual: (f64, u64),
    /// Pieces per second of all together, as lately seen, where what one lacks could be given to another.
    together: Option<f64>,
}

impl<K: Ord + Copy> Pace<K> {
    pub(crate) fn new(interval: Duration) -> Self {
        let (zero, usual) = (Duration::ZERO, (0.0, 1));
        Self { interval, last: zero, counted_at: zero, counted: Vec::new(), usual, together: None }
    }

    /// Of those who share what is to be got.
    pub(crate) fn of_sharers(interval: Duration) -> Self {
        Self { together: Some(0.0), ..Self::new(interval) }
    }

    /// When the next comparison is due.
    pub(crate) fn next(&self) -> Duration {
        self.last + self.interval
    }

    /// Compares them, who come in ascending order; gives those that straggle.
    pub(crate) fn compare(&mut self, now: Duration, all: &[(K, Stretch)]) -> BTreeSet<K> {
        if now.saturating_sub(self.last) > GAP_MAX {
            self.counted.clear();
            self.usual = (0.0, 1);
            self.together = self.together.map(|_| 0.0);
        }
        self.last = now;
        let elapsed = now.saturating_sub(self.counted_at).as_secs_f64();
        let before = counted_of(&self.counted, all);
        let rate = |((_, at), then): (&(K, Stretch), &Option<Counted>)| {
            // One that got or lost a stripe since is not compared by what it had of it.
            let then = then.filter(|then| at.lacks > 0 && then.all == at.all() && then.has <= at.has)?;
            Some(f64::from(at.has - then.has) / now.saturating_sub(then.since).as_secs_f64())
        };
        let rates: Vec<Option<f64>> = all.iter().zip(&before).map(rate).collect();
        let known = all.iter().zip(&rates).filter_map(|((_, at), rate)| Some(((*rate)?, at.weight)));
        let mut known: Vec<(f64, u64)> = known.collect();
        let by_rate = |a: &(f64, u64), b: &(f64, u64)| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1));
        let middle = known.len() / 2;
        let usual = if known.len() < COMPARED_MIN {
            self.usual
        } else {
            *known.select_nth_unstable_by(middle, by_rate).1
        };
        if !known.is_empty() && usual.0 * elapsed < GAIN_MIN {
            return BTreeSet::new();
        }
        self.usual = usual;
        self.counted_at = now;
        let sum: f64 = rates.iter().flatten().sum();
        self.together = self.together.map(|together| sum.max(together * FADES));
        let lacking = all.iter().map(|(_, at)| f64::from(at.lacks)).sum();
        let mut straggling = BTreeSet::new();
        let mut counted = Vec::with_capacity(all.len());
        for (((who, at), then), rate) in all.iter().zip(before).zip(rates) {
            let is_soon =
                |then: &Counted| self.usual_of(*at) * now.saturating_sub(then.since).as_secs_f64() < GAIN_MIN;
            let next = then.filter(|then| rate.is_some() && is_soon(then)).unwrap_or_else(|| {
                let is_slow =
                    rate.is_some_and(|rate| self.is_slow(rate, *at) || self.is_late(rate, *at, lacking));
                let losses = then.filter(|_| is_slow).map_or(0, |then| then.losses);
                let losses = losses + u32::from(is_slow && at.lacks >= LEFT_MIN);
                Counted { has: at.has, all: at.all(), losses, since: now }
            });
            if next.losses >= LOSSES {
                straggling.insert(*who);
            }
            counted.push((*who, next));
        }
        self.counted = counted;
        straggling
    }

    /// Whether the others would be done with everything long before this one is done with its own.
    fn is_late(&self, rate: f64, at: Stretch, lacking: f64) -> bool {
        self.together.is_some_and(|together| f64::from(at.lacks) * together > rate * LATE * lacking)
    }

    fn is_slow(&self, rate: f64, at: Stretch) -> bool {
        rate * if at.straggles { FACTOR_STILL } else { FACTOR } < self.usual_of(at)
    }

    /// Pieces per second of one that keeps pace as far as its card can.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are more than any card has")]
    fn usual_of(&self, at: Stretch) -> f64 {
        let (usual, weight) = self.usual;
        usual * (at.weight as f64 / weight.max(1) as f64).min(1.0)
    }
}

/// What was counted of each, if anything.
fn counted_of<K: Ord + Copy>(counted: &[(K, Counted)], all: &[(K, Stretch)]) -> Vec<Option<Counted>> {
    let mut rest = counted.iter().peekable();
    let of = |(who, _): &(K, Stretch)| {
        while rest.next_if(|(other, _)| other < who).is_some() {}
        rest.next_if(|(other, _)| other == who).map(|(_, then)| *then)
    };
    all.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PeerId;

    const SIZE: u32 = 1000;
    const INTERVAL: Duration = Duration::from_millis(500);

    fn stretch(has: u32, size: u32) -> Stretch {
        Stretch { has, lacks: size - has, weight: 10, straggles: false }
    }

    fn id(number: u8) -> PeerId {
        PeerId::new([number; 16])
    }

    /// What is found, comparison by comparison, among entrants that get so many pieces each time.
    fn found(gains: &[u32], times: u32) -> Vec<BTreeSet<PeerId>> {
        let mut pace = Pace::new(INTERVAL);
        let standing = |gain: u32, time: u32| stretch((gain * time).min(SIZE), SIZE);
        let compare = |time: u32| {
            let entrants: Vec<_> =
                (1..).map(id).zip(gains.iter().map(|gain| standing(*gain, time))).collect();
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
        let (mut pace, mut found) = (Pace::new(INTERVAL), BTreeSet::new());
        for time in 1..30 {
            // Two pieces in each second interval, where others get eight in each.
            let standing = |number: u32| stretch(if number == 1 { time / 2 * 2 } else { 8 * time }, SIZE);
            let entrants: Vec<_> = (1..).map(id).zip((0..4).map(standing)).collect();
            found.append(&mut pace.compare(INTERVAL * time, &entrants));
        }
        assert_eq!(found, BTreeSet::from([id(2)]));
    }

    #[test]
    fn what_comes_with_a_stripe_is_no_pace() {
        let (mut pace, mut found) = (Pace::new(INTERVAL), BTreeSet::new());
        for time in 1..9 {
            // All are as quick; three of them get a stripe that is begun, and soon another one.
            let stripes = |number: u32| if number < 3 { (time.max(2) - 2).min(2) } else { 0 };
            let standing =
                |number: u32| stretch(10 * time + 300 * stripes(number), SIZE * (stripes(number) + 1));
            let entrants: Vec<_> = (1..).map(id).zip((0..4).map(standing)).collect();
            found.append(&mut pace.compare(INTERVAL * time, &entrants));
        }
        assert_eq!(found, BTreeSet::new());
    }

    /// Whether the last of four straggles, if it gets so many pieces where the others get ten, with such a card.
    fn is_found(gain: u32, weight: u64, straggles: bool) -> bool {
        let mut pace = Pace::new(INTERVAL);
        let compare = |time: u32| {
            let last = Stretch { weight, straggles, ..stretch(gain * time, SIZE) };
            let all = [10; 3].map(|gain| stretch(gain * time, SIZE)).into_iter().chain([last]);
            pace.compare(INTERVAL * time * 2, &(1..).map(id).zip(all).collect::<Vec<_>>())
        };
        (1..20).map(compare).last() == Some(BTreeSet::from([id(4)]))
    }

    #[test]
    fn a_slower_card_is_not_expected_to_keep_pace_with_faster_ones() {
        assert!(is_found(2, 10, false));
        assert!(!is_found(2, 5, false), "half a card");
        assert!(is_found(1, 5, false));
        assert!(is_found(2, 40, false), "others may be held up by something else than their cards");
    }

    #[test]
    fn one_of_whom_few_pieces_are_expected_may_get_them_in_bursts() {
        let (mut pace, mut found) = (Pace::new(INTERVAL), BTreeSet::new());
        for time in 1..30 {
            // An eighth of a card: what it should get is two in each interval, and it gets six in each third one.
            let last = Stretch { weight: 2, ..stretch(time / 3 * 6, SIZE) };
            let all = [16; 3].map(|gain| Stretch { weight: 16, ..stretch(gain * time, SIZE) });
            let all: Vec<_> = (1..).map(id).zip(all.into_iter().chain([last])).collect();
            found.append(&mut pace.compare(INTERVAL * time, &all));
        }
        assert_eq!(found, BTreeSet::new());
    }

    #[test]
    fn whoever_straggles_has_to_come_up_to_half_the_pace() {
        assert!(!is_found(4, 10, false));
        assert!(is_found(4, 10, true));
        assert!(!is_found(6, 10, true));
    }

    #[test]
    fn of_those_who_share_whoever_would_hold_up_the_end_is_found() {
        let find = |gain: u32, others_are_done_at: u32| {
            let (mut pace, mut found) = (Pace::of_sharers(INTERVAL), BTreeSet::new());
            for time in 1..9 {
                let others = if time < others_are_done_at { 60 * time } else { SIZE };
                let standings = [others, others, others, gain * time].map(|has| stretch(has, SIZE));
                found.append(
                    &mut pace.compare(INTERVAL * time, &(1..).map(id).zip(standings).collect::<Vec<_>>()),
                );
            }
            found
        };
        assert_eq!(find(40, u32::MAX), BTreeSet::new(), "a little slower");
        assert_eq!(find(16, u32::MAX), BTreeSet::from([id(4)]), "less than four times slower, but late");
        assert_eq!(find(40, 4), BTreeSet::from([id(4)]), "the others could do what it lacks");
    }

    #[test]
    fn nobody_straggles_where_all_are_slow_or_few_or_done() {
        for gains in [&[1, 1, 1, 1][..], &[50, 1], &[0, 0, 0], &[500, 500, 500]] {
            assert!(found(gains, 9).iter().all(BTreeSet::is_empty), "{gains:?}");
        }
    }
}
