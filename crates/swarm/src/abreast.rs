//! Stripes that different peers read from the origin come abreast. Does not own which pieces are read (`pick`).
//!
//! An origin does not give all that read from it the same: its connections share its card by chance, and one may get
//! four times as much as another for as long as both last. Whoever gets more than its part cannot pass it on as fast,
//! whoever gets less leaves its own card idle, and the trees are done when the last of them is. So a peer whose stripes
//! are ahead of those that others read waits a while after each read, and what it leaves of the origin goes to them.
//!
//! That helps only those whose cards have room for it. One that is behind has them full of what others give, each of whom
//! gets as much of it as the origin: so it asks fewer of them at once while it is behind.

use std::time::Duration;

use planner::StripeSource;

use crate::bits::Bits;
use crate::link::Link;
use crate::stripes::Stripe;
use crate::swarm::Swarm;

/// Stripes of others to compare with, at least.
const OTHERS_MIN: u32 = 3;

/// Pieces of each stripe that a peer is ahead without waiting, at least: others' last ones are on their way.
const LEAD_FREE: f64 = 1.0;

/// What others have got may be heard so late. What comes here meanwhile is no lead, and on fast cards it is many pieces.
const NEWS_LATE: Duration = Duration::from_millis(2);

/// What it waits for each piece beyond, as a part of the time that its last read took. More makes all of them wait for one
/// another where trees are deep, and what others have is heard of late.
const WAIT_PER_PIECE: f64 = 0.5;

/// As often as not it reads: where others do not get more, however long it waits, the origin would idle.
const WAIT_MAX: f64 = 1.0;

/// Whoever is so many pieces further ahead though it waits, waits in vain: others cannot read faster. Where they can, no
/// lead is half as long.
const LEAD_VAIN: f64 = 11.0;

/// So many pieces of each stripe less than others' and a peer is behind.
const BEHIND: f64 = 0.5;

/// Whoever is behind reads from this part of its links at once.
const LINKS_BEHIND: (usize, usize) = (3, 4);

impl Swarm {
    /// Lets others read at the origin for a while, where this peer is ahead of them, and sees whether it is behind; its own
    /// last read was of so many pieces and took so long.
    pub(crate) fn keep_abreast(&mut self, pieces: u32, took: Duration) {
        self.origin.piece_takes = Some(took / pieces.max(1));
        if self.plan.is_none() {
            return;
        }
        for link in self.links.values_mut().filter(|link| link.is_usable()) {
            link.count_held(self.stripes.masks());
        }
        let lead = self.lead();
        let is_behind = lead.is_some_and(|lead| lead < -BEHIND);
        // Links that were not asked for more may be now.
        self.is_stirred |= std::mem::replace(&mut self.origin.is_behind, is_behind) && !is_behind;
        if let Some(lead) = lead {
            let unheard = f64::from(pieces) * NEWS_LATE.as_secs_f64() / took.as_secs_f64().max(f64::EPSILON);
            let beyond = lead - unheard.max(LEAD_FREE);
            let is_vain = beyond > LEAD_VAIN;
            let wait = if is_vain { 0.0 } else { (beyond * WAIT_PER_PIECE).clamp(0.0, WAIT_MAX) };
            self.origin.yields_until = self.now + took.mul_f64(wait);
        }
    }

    /// Whether no link is asked for more now, so that what is read at the origin has more of this peer's card.
    pub(crate) fn holds_back(&self) -> bool {
        if !self.origin.is_behind || self.origin.reads.is_empty() {
            return false;
        }
        let usable = || self.links.values().filter(|link| link.is_usable());
        let busy = usable().filter(|link| !link.reads.is_empty()).count();
        let (part, whole) = LINKS_BEHIND;
        busy * whole >= usable().count() * part
    }

    /// How many pieces there are of each stripe that is read here, beyond those of the usual other one.
    fn lead(&self) -> Option<f64> {
        let got = |stripe: &Stripe, mask: &Bits| mask.len() - stripe.wanted;
        let (mut mine, mut others) = (Mean::default(), Mean::default());
        for (number, (stripe, mask)) in self.stripes.all().iter().zip(self.stripes.masks()).enumerate() {
            match stripe.source {
                StripeSource::Origin => mine.add(got(stripe, mask)),
                StripeSource::Parent(_) => {
                    // Parents have a piece before it is here.
                    let there = |link: &Link| link.held(number);
                    let known = self.links.values().filter(|link| link.is_usable()).map(there).max();
                    others.add(got(stripe, mask).max(known.unwrap_or(0)));
                }
                StripeSource::None => {}
            }
        }
        (mine.count > 0 && others.count >= OTHERS_MIN).then(|| mine.value() - others.value())
    }
}

#[derive(Debug, Default)]
struct Mean {
    sum: u32,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: u32) {
        self.sum += value;
        self.count += 1;
    }

    fn value(&self) -> f64 {
        f64::from(self.sum) / f64::from(self.count)
    }
}
