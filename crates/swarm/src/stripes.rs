//! The stripes of the plan as this peer sees them: what is wanted of each, since when nothing was heard of it, and in
//! which order peers touch the origin when nobody else can help. Does not own links or reads.

use std::sync::Arc;
use std::time::Duration;

use modelpack::layout::PieceIndex;
use planner::{Before, PeerId, PeerPlan, StripeSource};

use crate::bits::Bits;

/// Patience for a stripe of which nothing was ever heard, without a scheduler.
const PATIENCE_FIRST: Duration = Duration::from_secs(1);

/// Patience while a scheduler is reachable: replacing a dead entrant is its business, and the origin budget holds.
const PATIENCE_PLANNED: Duration = Duration::from_secs(30);

/// News of a stripe may be this many times later than usual before it is called quiet.
const PATIENCE_GAPS: u32 = 4;

/// A stripe that changed hands: whoever read it before says first which pieces are on their way.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub(crate) before: Vec<Before>,
    /// From then on the origin is read all the same.
    pub(crate) until: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Stripe {
    pub(crate) source: StripeSource,
    pub(crate) backups: Vec<PeerId>,
    /// What an entrant waits for before it reads the origin.
    pub(crate) handover: Option<Handover>,
    /// How many of its pieces are wanted.
    pub(crate) wanted: u32,
    /// No piece below this one is wanted.
    first_wanted: u32,
    quiet_since: Duration,
    gap: Option<Duration>,
    /// Nobody announces it: the origin may be read though it is not this peer's share.
    pub(crate) is_last_resort: bool,
}

impl Stripe {
    fn new(source: StripeSource, backups: Vec<PeerId>, now: Duration) -> Self {
        Self {
            source,
            backups,
            handover: None,
            wanted: 0,
            first_wanted: 0,
            quiet_since: now,
            gap: None,
            is_last_resort: false,
        }
    }

    /// One of its pieces arrived or was announced.
    pub(crate) fn news(&mut self, now: Duration) {
        let interval = now.saturating_sub(self.quiet_since);
        self.gap = Some(self.gap.map_or(interval, |gap| (gap * 3 + interval) / 4));
        self.quiet_since = now;
    }

    /// How long news of it may be missing.
    pub(crate) fn patience(&self, stall_min: Duration) -> Duration {
        self.gap.map_or(PATIENCE_FIRST, |gap| (gap * PATIENCE_GAPS).max(stall_min))
    }

    /// When the stripe will have been quiet for `times` its patience.
    pub(crate) fn quiet_at(&self, times: u32, stall_min: Duration, is_planned: bool) -> Duration {
        let patience = if is_planned { PATIENCE_PLANNED } else { self.patience(stall_min) };
        self.quiet_since + patience * times
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Stripes {
    stripe_pieces: u32,
    piece_count: u32,
    all: Vec<Stripe>,
    /// The pieces of each.
    masks: Arc<[Bits]>,
}

impl Stripes {
    /// One stripe of everything, before any plan.
    pub(crate) fn single(source: StripeSource, wanted: &Bits, now: Duration) -> Self {
        let piece_count = wanted.piece_count();
        let mut stripes = Self {
            stripe_pieces: piece_count.max(1),
            piece_count,
            all: vec![Stripe::new(source, Vec::new(), now)],
            masks: masks(piece_count.max(1), piece_count, 1),
        };
        stripes.count(wanted);
        stripes
    }

    /// The stripes of a plan. What is known of a stripe stays where the geometry stays.
    pub(crate) fn planned(
        plan: &PeerPlan,
        before: &Self,
        wanted: &Bits,
        now: Duration,
        until: Duration,
    ) -> Self {
        let is_same = before.stripe_pieces == plan.stripe_pieces && before.all.len() == plan.stripes.len();
        let part = |(at, part): (usize, &planner::StripePart)| {
            let mut stripe = Stripe::new(part.source, part.backups.clone(), now);
            let old = before.all.get(at).filter(|_| is_same);
            stripe.gap = old.and_then(|old| old.gap);
            stripe.handover = match old.filter(|old| old.source == part.source) {
                Some(old) => old.handover.clone(),
                None => {
                    Some(Handover { before: part.before.clone(), until }).filter(|_| !part.before.is_empty())
                }
            };
            stripe
        };
        let all = plan.stripes.iter().enumerate().map(part).collect();
        let (stripe_pieces, piece_count) = (plan.stripe_pieces, wanted.piece_count());
        let masks = if is_same {
            Arc::clone(&before.masks)
        } else {
            masks(stripe_pieces, piece_count, plan.stripes.len())
        };
        let mut stripes = Self { stripe_pieces, piece_count, all, masks };
        stripes.count(wanted);
        stripes
    }

    fn count(&mut self, wanted: &Bits) {
        let mut from = 0;
        while let Some(piece) = wanted.next(from) {
            self.at_mut(piece).wanted += 1;
            from = piece.0 + 1;
        }
    }

    pub(crate) fn number(&self, piece: PieceIndex) -> usize {
        (piece.0 / self.stripe_pieces) as usize % self.all.len()
    }

    pub(crate) fn at(&self, piece: PieceIndex) -> &Stripe {
        &self.all[self.number(piece)]
    }

    pub(crate) fn at_mut(&mut self, piece: PieceIndex) -> &mut Stripe {
        let number = self.number(piece);
        &mut self.all[number]
    }

    /// The pieces of each stripe.
    pub(crate) fn masks(&self) -> &[Bits] {
        &self.masks
    }

    pub(crate) fn stripe_pieces(&self) -> u32 {
        self.stripe_pieces
    }

    pub(crate) fn all(&self) -> &[Stripe] {
        &self.all
    }

    pub(crate) fn all_mut(&mut self) -> &mut [Stripe] {
        &mut self.all
    }

    pub(crate) fn inserted(&mut self, piece: PieceIndex) {
        let stripe = self.at_mut(piece);
        stripe.wanted += 1;
        stripe.first_wanted = stripe.first_wanted.min(piece.0);
    }

    pub(crate) fn removed(&mut self, piece: PieceIndex) {
        self.at_mut(piece).wanted -= 1;
    }

    /// The first wanted piece of a stripe at or after `from`. From 0 it remembers where it found it.
    pub(crate) fn next_wanted(&mut self, stripe: usize, from: u32, wanted: &Bits) -> Option<PieceIndex> {
        let is_from_start = from <= self.all[stripe].first_wanted;
        let mut at = from.max(self.all[stripe].first_wanted);
        let found = loop {
            if at >= self.piece_count {
                break None;
            }
            let number = self.number(PieceIndex(at));
            let block_end = (at / self.stripe_pieces + 1).saturating_mul(self.stripe_pieces);
            if number == stripe
                && let Some(piece) = wanted.next(at).filter(|piece| piece.0 < block_end)
            {
                break Some(piece);
            }
            let stripes = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
            let ahead = u32::try_from((stripe + self.all.len() - number) % self.all.len()).unwrap_or(0);
            let blocks = if ahead == 0 { stripes } else { ahead };
            at = (at / self.stripe_pieces).saturating_add(blocks).saturating_mul(self.stripe_pieces);
        };
        if is_from_start {
            self.all[stripe].first_wanted = found.map_or(self.piece_count, |piece| piece.0);
        }
        found
    }
}

fn masks(stripe_pieces: u32, piece_count: u32, stripes: usize) -> Arc<[Bits]> {
    let mut masks = vec![Bits::empty(piece_count); stripes];
    for piece in 0..piece_count {
        masks[(piece / stripe_pieces) as usize % stripes].insert(PieceIndex(piece));
    }
    masks.into()
}

/// A peer's place in the order of a stripe: the smallest goes first. Any fixed mixing serves, as long as it is the
/// same at every peer.
pub(crate) fn rendezvous(peer: PeerId, stripe: usize) -> u64 {
    let (high, low) = peer.bytes().split_at(8);
    let word = |bytes: &[u8]| bytes.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte));
    mix(word(high) ^ mix(word(low) ^ mix(stripe as u64)))
}

/// The finaliser of `SplitMix64`: every bit of the input moves every bit of the output.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
