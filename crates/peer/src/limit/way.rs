//! How much may move in one direction of a card beside what others move there. Pure: it is told what was counted.
//!
//! Owns: the law. Does not own: the counters, or waiting.

use std::time::Duration;

/// How often it is looked.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What was counted is smoothed over this time: a read is counted when it is posted, and cards when it has come.
const SMOOTH: Duration = Duration::from_millis(500);

/// What a byte that is counted here takes on the wire at most: 66 bytes of headers for 1448, and what is acknowledged.
const HEADERS: f64 = 1.06;

/// Less than this part of what the card does is nobody: headers are not exactly known, and every machine talks a little.
const OTHERS_MIN: f64 = 0.08;

/// Of what is counted exactly, less than this part is nobody: a smoothed rate never becomes nothing.
const OWN_OTHERS_MIN: f64 = 0.01;

/// From this part of what the card does on it is full: others may want more than they get.
const FULL: f64 = 0.93;

/// Below this part there is room for more.
const ROOM: f64 = 0.86;

/// What is left of the rate when the card is full, ten times a second: it halves in two looks.
const BACK: f64 = 0.7;

/// By which part of what the card does the rate grows at each look.
const STEP: f64 = 1.0 / 16.0;

/// The same beside others of this process. What is taken from them is given back half a second later, and by then a step
/// has been made five times.
const OWN_STEP: f64 = 1.0 / 64.0;

/// What is never given away, as a part of what the card does: a pull that does not move at all looks like one that hangs.
const LEAST: f64 = 1.0 / 32.0;

/// One direction of the cards. Law: where others fill the card, what is left to this process shrinks to [`LEAST`] within
/// a second; where they take less than the card does, it gets most of what they leave; where there are none, all of it.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// What the card does, in bytes per second.
    card: f64,
    /// What a byte that is counted takes, what less than this part of the card is nobody, and by which part of the card
    /// the rate grows beside others.
    headers: f64,
    others_min: f64,
    step: f64,
    /// What it moves, and what of that is this process's: smoothed, in bytes per second.
    all: f64,
    own: f64,
    /// Infinite where nothing keeps it back.
    rate: f64,
}

impl Way {
    #[expect(clippy::cast_precision_loss, reason = "a rate that is exact to 53 bits")]
    pub(super) fn new(card: u64) -> Self {
        let card = card as f64;
        let rate = f64::INFINITY;
        Self { card, headers: HEADERS, others_min: OTHERS_MIN, step: STEP, all: 0.0, own: 0.0, rate }
    }

    /// Where the others are of this process, too: they are counted as exactly as its own, so that no headers are in the
    /// way. What the card does is said with each look.
    pub(crate) fn among_own() -> Self {
        Self { headers: 1.0, others_min: OWN_OTHERS_MIN, step: OWN_STEP, ..Self::new(1) }
    }

    /// The same, of a card that does so much from now on.
    #[expect(clippy::cast_precision_loss, reason = "a rate that is exact to 53 bits")]
    pub(crate) fn beneath(&mut self, card: u64) -> &mut Self {
        self.card = card.max(1) as f64;
        self
    }

    /// So many bytes have moved meanwhile, and so many of them were this process's. Says at which rate it may go on.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a tenth of a second")]
    pub(crate) fn look(&mut self, elapsed: Duration, all: u64, own: u64) -> f64 {
        let seconds = elapsed.as_secs_f64().max(f64::EPSILON);
        let weight = 1.0 - (-seconds / SMOOTH.as_secs_f64()).exp();
        self.all += weight * (all as f64 / seconds - self.all);
        self.own += weight * (own as f64 / seconds - self.own);
        let others = self.all - self.own * self.headers;
        let is_alone = others < self.others_min * self.card;
        if !is_alone && self.all > FULL * self.card {
            self.rate = (self.rate.min(self.own) * BACK).max(LEAST * self.card);
        } else if is_alone {
            self.rate += STEP * self.card;
        } else if self.all < ROOM * self.card {
            self.rate += self.step * self.card;
        }
        if self.rate >= self.card {
            self.rate = f64::INFINITY;
        }
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: u64 = 125_000_000;
    /// What of the wire is payload.
    const PAYLOAD: f64 = 0.955;

    /// A card on which somebody else wants `want` of it, with as many flows as this process has: who wants less than
    /// half gets it, who wants more gets half or what this process leaves.
    struct Card {
        way: Way,
        rate: f64,
    }

    impl Card {
        fn new() -> Self {
            Self { way: Way::new(CARD), rate: f64::INFINITY }
        }

        /// Lets seconds pass; gives what both got in the last of them, as parts of the card.
        fn run(&mut self, seconds: u32, want: f64) -> (f64, f64) {
            let (card, mut own_got, mut others_got) = (self.way.card, 0.0, 0.0);
            for look in 0..seconds * 10 {
                let wish = (self.rate / PAYLOAD / card).min(1.0);
                let own = wish.min((1.0 - want).max(0.5));
                let others = want.min(1.0 - own);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a part of a card"
                )]
                let bytes = |part: f64| (part * card / 10.0) as u64;
                self.rate = self.way.look(LOOK_INTERVAL, bytes(own + others), bytes(own * PAYLOAD));
                if look >= (seconds - 1) * 10 {
                    (own_got, others_got) = (own_got + own / 10.0, others_got + others / 10.0);
                }
            }
            (own_got, others_got)
        }
    }

    #[test]
    fn whoever_is_alone_gets_the_card() {
        let (own, _) = Card::new().run(10, 0.0);
        assert!(own > 0.99, "{own}");
        let (own, _) = Card::new().run(10, 0.03);
        assert!(own > 0.96, "a little talk is nobody: {own}");
    }

    #[test]
    fn somebody_who_wants_all_of_it_gets_nearly_all_of_it() {
        let mut card = Card::new();
        card.run(3, 0.0);
        let (own, others) = card.run(3, 1.0);
        assert!(others > 0.95 && own >= LEAST, "{others} beside {own}");
    }

    #[test]
    fn somebody_who_wants_a_part_gets_it_and_most_of_the_rest_is_used() {
        for want in [0.15, 0.3, 0.5, 0.7] {
            let mut card = Card::new();
            card.run(3, 0.0);
            let (own, others) = card.run(10, want);
            assert!(others > 0.97 * want, "{others} of {want}");
            assert!(own > 0.6 * (1.0 - want), "{own} beside {want}");
        }
    }

    #[test]
    fn when_the_others_are_gone_it_is_free_again_within_three_seconds() {
        let mut card = Card::new();
        card.run(5, 1.0);
        card.run(2, 0.0);
        let (own, _) = card.run(1, 0.0);
        assert!(own > 0.99 && card.rate.is_infinite(), "{own}");
    }

    #[test]
    fn nothing_at_all_is_no_reason_to_wait() {
        let mut way = Way::new(CARD);
        assert!(way.look(Duration::ZERO, 0, 0).is_infinite());
        assert!((0..50).all(|_| way.look(LOOK_INTERVAL, 0, 0).is_infinite()));
    }
}
