//! What a peer's network card does, learned from what it has moved, and what others move there. Pure: it is told what was
//! counted, and when.
//!
//! Owns: which stretches of time say anything about a card, and what they say; the smoothing of others' traffic. Does not
//! own: counters, or what a plan makes of this (`cards`).
//!
//! What has been moved is never more than the card does, and mostly less: whoever had nothing to do moved little. So a
//! stretch can raise what was learned at any time, but lower it only if this peer was *pressed* all the while: two other
//! peers at least had reads of it to answer, so that its own card is what they have in common. Reads at the origin do not
//! press, since an origin may be slow for all.

use std::collections::VecDeque;
use std::time::Duration;

/// What others move is not known any more if it was not measured for so long.
pub const FOREIGN_LASTS: Duration = Duration::from_secs(10);

/// How often a peer is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A stretch is no shorter: connections take turns in tenths of a second.
const STRETCH_MIN: Duration = Duration::from_secs(1);

/// And has no fewer bytes, unless it is long: what is counted comes piece by piece.
const STRETCH_BYTES_MIN: u64 = 32 << 20;

/// It is no longer.
const STRETCH_MAX: Duration = Duration::from_secs(4);

/// Of ten looks in a stretch, so many found the peer pressed if it is to count as pressed.
const PRESSED_OF_TEN: u32 = 9;

/// Pressed stretches that are remembered: a minute of work at least. A card that has become slower is one after that.
const STRETCHES_MAX: usize = 60;

/// How long a stretch counts. Cards stay what they are, but somebody may have plugged in another.
const LASTS: Duration = Duration::from_hours(24);

/// The best pressed stretch has this part of the best of all at least, or else the peer has done more than it did when
/// it was pressed, and it was something else that pressed it.
const FULL: f64 = 0.8;

/// What others move is smoothed over this time: a plan that follows each burst of theirs does more harm than they.
const SMOOTH: Duration = Duration::from_secs(2);

/// What a byte that is counted here takes on the wire at most: 66 bytes of headers for 1448, and what is acknowledged.
const HEADERS: f64 = 1.06;

/// Less than this part of what the card moves is nobody: headers are not exactly known, and every machine talks a little.
const OTHERS_MIN: f64 = 0.08;

/// What a peer's card does in each direction, as far as it has found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learned {
    /// Bytes per second.
    pub rate: u64,
    /// Whether it does no more than that, by all that is known. Otherwise it does so much at least.
    pub is_full: bool,
    /// How long ago that was found out.
    pub age: Duration,
}

/// What others move on a peer's card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Foreign {
    /// Bytes per second that they send.
    pub sent: u64,
    /// Bytes per second that they receive.
    pub received: u64,
    /// How long ago the card was last read.
    pub age: Duration,
}

impl Foreign {
    /// Of the direction in which there is more.
    pub fn most(&self) -> u64 {
        self.sent.max(self.received)
    }
}

/// What a peer has moved up to now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Moved {
    /// Bytes that it has sent, as far as it can count them.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
    /// Whether two other peers at least have reads of it to answer now.
    pub is_pressed: bool,
}

/// A stretch of time that has ended.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    end: Duration,
    rate: u64,
    /// What was received meanwhile, by others too, if the peer was pressed.
    pressed: u64,
}

/// One that has not.
#[derive(Clone, Copy, Debug)]
struct Open {
    begin: Duration,
    moved: Moved,
    looks: u32,
    pressed: u32,
}

/// Learns what a card does.
///
/// Law: what was learned is at most what was moved in some stretch, and at most the cap; whatever is moved while the
/// peer is not pressed never lowers it.
#[derive(Debug)]
pub struct Learner {
    cap: u64,
    open: Option<Open>,
    /// Pressed ones, and those that were better than all before.
    stretches: VecDeque<Stretch>,
}

impl Learner {
    /// Of a card that does no more than `cap` bytes per second, if somebody says so who must know.
    pub fn new(cap: Option<u64>) -> Self {
        Self { cap: cap.unwrap_or(u64::MAX), open: None, stretches: VecDeque::new() }
    }

    /// Takes note of what the peer has moved up to now; others move so much beside it.
    pub fn look(&mut self, now: Duration, moved: Moved, foreign: Option<Foreign>) {
        let begun = Open { begin: now, moved, looks: 0, pressed: 0 };
        let open = self.open.get_or_insert(begun);
        open.looks += 1;
        open.pressed += u32::from(moved.is_pressed);
        let elapsed = now.saturating_sub(open.begin);
        let sent = moved.sent.saturating_sub(open.moved.sent);
        let received = moved.received.saturating_sub(open.moved.received);
        let is_ample = sent.max(received) >= STRETCH_BYTES_MIN;
        if elapsed < STRETCH_MIN || !is_ample && elapsed < STRETCH_MAX {
            return;
        }
        let was_pressed = open.pressed * 10 >= open.looks * PRESSED_OF_TEN;
        self.open = Some(begun);
        // Who has not been looked at lately may have gone.
        let foreign = foreign.filter(|at| at.age <= STRETCH_MAX).unwrap_or_default();
        let received = rate(received, elapsed).saturating_add(foreign.received).min(self.cap);
        let sent = rate(sent, elapsed).saturating_add(foreign.sent).min(self.cap);
        let stretch =
            Stretch { end: now, rate: sent.max(received), pressed: if was_pressed { received } else { 0 } };
        self.note(stretch);
    }

    fn note(&mut self, stretch: Stretch) {
        self.stretches.retain(|before| before.end + LASTS > stretch.end);
        if stretch.rate > 0 && (stretch.pressed > 0 || self.best().is_none_or(|best| stretch.rate > best)) {
            self.stretches.push_back(stretch);
            if self.stretches.len() > STRETCHES_MAX {
                self.stretches.pop_front();
            }
        }
    }

    fn best(&self) -> Option<u64> {
        self.stretches.iter().map(|stretch| stretch.rate).max()
    }

    /// What is known of the card now, if anything.
    pub fn learned(&self, now: Duration) -> Option<Learned> {
        let rate = self.best()?;
        let age = now.saturating_sub(self.stretches.back()?.end);
        let pressed = self.stretches.iter().map(|stretch| stretch.pressed).max().unwrap_or(0);
        let is_full = as_f64(pressed) >= FULL * as_f64(rate);
        Some(Learned { rate, is_full, age }).filter(|_| age < LASTS)
    }
}

/// Follows what others move on a card: what it counts, less what this process moved.
#[derive(Debug, Default)]
pub struct Beside {
    /// Of what is sent and what is received, in bytes per second.
    all: [f64; 2],
    own: [f64; 2],
    last: Option<Duration>,
}

impl Beside {
    /// So many bytes have been sent and received meanwhile, and so many of them were this process's.
    pub fn look(&mut self, now: Duration, elapsed: Duration, (all, own): ([u64; 2], [u64; 2])) {
        let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
        let weight = 1.0 - (-seconds / SMOOTH.as_secs_f64()).exp();
        for way in 0..2 {
            self.all[way] += weight * (as_f64(all[way]) / seconds - self.all[way]);
            self.own[way] += weight * (as_f64(own[way]) / seconds - self.own[way]);
        }
        self.last = Some(now);
    }

    /// What others move, if the card was ever read.
    pub fn foreign(&self, now: Duration) -> Option<Foreign> {
        let [sent, received] = [0, 1].map(|way| {
            let others = self.all[way] - self.own[way] * HEADERS;
            if others < OTHERS_MIN * self.all[way] { 0 } else { as_u64(others) }
        });
        Some(Foreign { sent, received, age: now.saturating_sub(self.last?) })
    }
}

fn rate(bytes: u64, elapsed: Duration) -> u64 {
    let nanos = elapsed.as_nanos().max(1);
    u64::try_from(u128::from(bytes) * 1_000_000_000 / nanos).unwrap_or(u64::MAX)
}

#[expect(clippy::cast_precision_loss, reason = "a rate that is exact to 53 bits")]
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn as_u64(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;

    /// A peer that moves at given rates.
    struct Peer {
        now: Duration,
        moved: Moved,
        learner: Learner,
    }

    impl Peer {
        fn new(cap: Option<u64>) -> Self {
            Self { now: Duration::ZERO, moved: Moved::default(), learner: Learner::new(cap) }
        }

        /// Lets seconds pass, in which it sends and receives so many MB in each.
        fn run(&mut self, seconds: u32, [sent, received]: [u64; 2], is_pressed: bool) -> Option<Learned> {
            for _ in 0..seconds * 10 {
                self.now += LOOK_INTERVAL;
                self.moved.sent += sent * MB / 10;
                self.moved.received += received * MB / 10;
                self.moved.is_pressed = is_pressed;
                self.learner.look(self.now, self.moved, None);
            }
            self.learner.learned(self.now)
        }
    }

    fn is_about(learned: Option<Learned>, mb: u64, is_full: bool) -> bool {
        learned.is_some_and(|at| at.rate.abs_diff(mb * MB) <= mb * MB / 50 && at.is_full == is_full)
    }

    #[test]
    fn whoever_was_pressed_knows_its_card_and_whoever_idles_keeps_what_it_knows() {
        let mut peer = Peer::new(None);
        assert_eq!(peer.run(9, [0, 0], false), None, "nothing was moved");
        assert!(is_about(peer.run(5, [30, 100], true), 100, true));
        assert!(is_about(peer.run(1000, [0, 1], false), 100, true), "it idles");
        assert_eq!(peer.run(1, [0, 0], false).unwrap().age.as_secs(), 1001, "and says since when");
    }

    #[test]
    fn what_was_moved_without_being_pressed_is_no_more_than_a_lower_bound() {
        let mut peer = Peer::new(None);
        assert!(is_about(peer.run(9, [0, 40], false), 40, false), "the origin was slow, perhaps");
        assert!(is_about(peer.run(9, [200, 40], false), 200, false), "sending counts");
        assert!(is_about(peer.run(9, [10, 60], true), 200, false), "its sources were slow: it has done more");
        assert!(is_about(peer.run(9, [10, 210], true), 210, true));
    }

    #[test]
    fn a_card_that_has_become_slower_is_one_after_a_minute_of_work() {
        let mut peer = Peer::new(None);
        peer.run(10, [0, 100], true);
        assert!(is_about(peer.run(40, [0, 50], true), 100, true));
        assert!(is_about(peer.run(30, [0, 50], true), 50, true));
    }

    #[test]
    fn what_nobody_has_found_out_for_a_day_is_not_known() {
        let mut peer = Peer::new(None);
        peer.run(10, [0, 100], true);
        peer.now += LASTS;
        assert_eq!(peer.learner.learned(peer.now), None);
        assert!(is_about(peer.run(9, [0, 30], false), 30, false), "it begins anew");
    }

    #[test]
    fn a_card_does_no_more_than_it_says() {
        let mut peer = Peer::new(Some(80 * MB));
        assert!(is_about(peer.run(9, [500, 100], true), 80, true), "the rest came from this machine");
    }

    #[test]
    fn few_large_pieces_are_counted_over_a_longer_time() {
        let mut peer = Peer::new(None);
        // Eight seconds, in each of which 5 or 7 MB come at once.
        for second in 0..8_u64 {
            peer.moved.received += (5 + second % 2 * 2) * MB;
            peer.run(1, [0, 0], true);
        }
        let learned = peer.learner.learned(peer.now).unwrap();
        assert!((5 * MB..=6 * MB).contains(&learned.rate), "{learned:?}");
    }

    #[test]
    fn what_others_move_belongs_to_the_card() {
        let (mut peer, mut now) = (Peer::new(None), Duration::ZERO);
        let foreign = Some(Foreign { sent: 0, received: 70 * MB, age: Duration::ZERO });
        for _ in 0..50 {
            now += LOOK_INTERVAL;
            peer.moved.received += 3 * MB;
            peer.moved.is_pressed = true;
            peer.learner.look(now, peer.moved, foreign);
        }
        assert!(is_about(peer.learner.learned(now), 100, true));
    }

    #[test]
    fn foreign_is_what_the_card_counts_and_this_process_did_not_move() {
        let mut beside = Beside::default();
        assert_eq!(beside.foreign(Duration::ZERO), None, "nobody has looked");
        let look = |beside: &mut Beside, tenths: u32, others: u64| {
            for _ in 0..tenths {
                // 5 MB of ours in a tenth of a second, with their headers; nothing is sent.
                let all = [0, 5 * MB + MB / 4 + others * MB / 10];
                beside.look(Duration::from_secs(9), LOOK_INTERVAL, (all, [0, 5 * MB]));
            }
            beside.foreign(Duration::from_secs(10)).expect("it was read")
        };
        let alone = Foreign { sent: 0, received: 0, age: Duration::from_secs(1) };
        assert_eq!(look(&mut beside, 100, 0), alone, "headers are nobody");
        let burst = look(&mut beside, 3, 100).received;
        assert!(burst < 20 * MB, "a burst weighs little: {burst}");
        let steady = look(&mut beside, 100, 100).received;
        assert!((97 * MB..=103 * MB).contains(&steady), "{steady}");
        assert_eq!(look(&mut beside, 200, 0).received, 0, "they have gone");
    }
}
