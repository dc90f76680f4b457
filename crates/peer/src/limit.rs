//! What a process may send and receive: so much, or what others leave on the card.
//!
//! Owns: the pacers of both directions, and the thread that follows the cards. Does not own: waiting (crate
//! `transport`), or who waits (`transports`).

mod cards;
mod way;

use std::{
    io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

pub use self::cards::Cards;
pub(crate) use self::cards::Counters;
pub(crate) use self::way::Way;
use self::{cards::Totals, way::LOOK_INTERVAL};
use transport::Pacer;

/// As a rate: whatever the card does.
pub(crate) const FREE: u64 = u64::MAX;

/// What a process may send, and what it may receive. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Limit(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bytes per second of each direction, if it was told to keep to some.
    told: Option<u64>,
    gives_way: bool,
    /// What may be sent now, over all transports.
    sending: AtomicU64,
    /// What is sent over TCP.
    sent: Arc<Pacer>,
    /// What is received from peers and the origin.
    received: Arc<Pacer>,
}

impl Limit {
    /// So many bytes per second in each direction.
    pub(crate) fn of(rate: u64) -> Self {
        Self(Arc::new(Inner::new(Some(rate), false)))
    }

    /// What others leave on the cards, and no more than `told`.
    ///
    /// # Errors
    /// If the cards do not say what they move, or no thread can be started.
    pub(crate) fn beside(cards: Cards, told: Option<u64>) -> io::Result<Self> {
        let totals = cards.totals()?;
        let inner = Arc::new(Inner::new(told, true));
        let follower = Follower::new(&inner, cards, totals);
        thread::Builder::new().name("cards".to_owned()).spawn(move || follower.run())?;
        Ok(Self(inner))
    }

    /// Bytes per second of each direction, if it was told to keep to some.
    pub(crate) fn told(&self) -> Option<u64> {
        self.0.told
    }

    /// Whether it moves only what others leave.
    pub(crate) fn gives_way(&self) -> bool {
        self.0.gives_way
    }

    /// What is sent over TCP.
    pub(crate) fn sent(&self) -> &Arc<Pacer> {
        &self.0.sent
    }

    /// What is received from peers and the origin.
    pub(crate) fn received(&self) -> &Arc<Pacer> {
        &self.0.received
    }

    /// Bytes per second that may be sent and received now, where that is not whatever the card does.
    pub(crate) fn now(&self) -> [Option<u64>; 2] {
        let rates = [self.0.sending.load(Ordering::Relaxed), self.0.received.rate()];
        rates.map(|rate| Some(rate).filter(|rate| *rate != FREE))
    }

    /// What a child may read over RDMA, of whom there are so many, beside so many over TCP, in bytes per second. What
    /// those over TCP get is set to the rest.
    pub(crate) fn share(&self, (over_tcp, over_rdma): (usize, usize)) -> u64 {
        let all = (over_tcp + over_rdma).max(1) as u64;
        let each = (self.0.sending.load(Ordering::Relaxed) / all).max(1);
        self.0.sent.set_rate(if over_tcp == 0 { each } else { each * over_tcp as u64 });
        each
    }
}

impl Inner {
    fn new(told: Option<u64>, gives_way: bool) -> Self {
        let rate = told.unwrap_or(FREE);
        let pacer = || Arc::new(Pacer::new(rate));
        Self { told, gives_way, sending: AtomicU64::new(rate), sent: pacer(), received: pacer() }
    }

    /// No link is read over RDMA here, so that all that is sent is sent by the pacer.
    fn set(&self, [sending, receiving]: [f64; 2]) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
        let rate = |rate: f64| (rate as u64).clamp(1, self.told.unwrap_or(FREE));
        self.sending.store(rate(sending), Ordering::Relaxed);
        self.sent.set_rate(rate(sending));
        self.received.set_rate(rate(receiving));
    }
}

/// Sets a limit again and again to what others leave, until nobody has it any more.
struct Follower {
    limit: Weak<Inner>,
    cards: Cards,
    before: (Instant, Totals, [u64; 2]),
    /// Of what is sent, and of what is received.
    ways: [Way; 2],
}

impl Follower {
    fn new(limit: &Arc<Inner>, cards: Cards, totals: Totals) -> Self {
        let way = || Way::new(cards.rate());
        Self {
            limit: Arc::downgrade(limit),
            ways: [way(), way()],
            cards,
            before: (Instant::now(), totals, [0; 2]),
        }
    }

    fn run(mut self) {
        loop {
            thread::sleep(LOOK_INTERVAL);
            let Some(limit) = self.limit.upgrade() else { return };
            match self.cards.totals() {
                Ok(totals) => self.look(&limit, totals),
                // A card that was taken out says nothing: what it was like before stands.
                Err(error) => tracing::debug!(%error, "the network cards do not say what they move"),
            }
        }
    }

    fn look(&mut self, limit: &Inner, totals: Totals) {
        let now = (Instant::now(), totals, [limit.sent.moved(), limit.received.moved()]);
        let (then, before, own_before) = std::mem::replace(&mut self.before, now);
        let (elapsed, own) = (now.0.saturating_duration_since(then), now.2);
        let all = [totals.sent.saturating_sub(before.sent), totals.received.saturating_sub(before.received)];
        let mut rates = [0.0; 2];
        for (at, way) in self.ways.iter_mut().enumerate() {
            rates[at] = way.look(elapsed, all[at], own[at] - own_before[at]);
        }
        limit.set(rates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_shares_together_are_the_limit() {
        let limit = Limit::of(1000);
        for (links, each, over_tcp) in
            [((4, 0), 250, 1000), ((3, 1), 250, 750), ((0, 2), 500, 500), ((0, 0), 1000, 1000)]
        {
            assert_eq!((limit.share(links), limit.sent().rate()), (each, over_tcp), "{links:?}");
        }
    }

    #[test]
    fn what_others_leave_is_no_more_than_what_was_told() {
        let inner = Inner::new(Some(1000), true);
        inner.set([f64::INFINITY, 300.0]);
        let limit = Limit(Arc::new(inner));
        assert_eq!((limit.now(), limit.told()), ([Some(1000), Some(300)], Some(1000)));
        let free = Inner::new(None, true);
        free.set([0.0, f64::INFINITY]);
        assert_eq!(Limit(Arc::new(free)).now(), [Some(1), None], "it never stands still");
    }
}
