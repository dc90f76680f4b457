//! What this peer can let others read of one artifact, and its growth, for any number of subscribers.
//!
//! Owns: that a subscriber misses nothing and is told nothing twice, and how news is batched. Does not own: how it is
//! sent.

use std::{sync::Arc, time::Duration};

use modelpack::{
    layout::{PieceIndex, Run},
    piece_map::PieceMap,
};
use tokio::{sync::watch, time::Instant};

use crate::alarm;

/// Least time between two batches to one subscriber. News that come later than that go out at once; faster ones are
/// worth one message. Below the 1 ms that a piece takes at 10 Gbit/s.
const BATCH_INTERVAL: Duration = Duration::from_micros(500);

/// As many new pieces are sent without waiting.
const BATCH_PIECES: usize = 64;

/// One artifact's pieces as they become readable here. Clones are the same feed.
#[derive(Clone, Debug)]
pub(crate) struct HaveFeed(Arc<watch::Sender<State>>);

#[derive(Debug)]
struct State {
    have: PieceMap,
    /// What was published, in order; no piece is in it twice, so it has at most one entry a piece. All subscribers
    /// share it: each only remembers how far it has read.
    news: Vec<Run>,
    coming: Coming,
    /// How often that has changed.
    changes: u64,
    closed: Option<String>,
}

/// What this peer reads from the origin now: nobody else has to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Coming {
    /// Of the plan that this peer acts by; 0 before it has one.
    pub(crate) epoch: u64,
    /// The pieces, ascending and apart.
    pub(crate) runs: Vec<Run>,
}

/// What a subscriber is told at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Pieces that became readable: ascending and apart, as runs travel.
    pub(crate) runs: Vec<Run>,
    /// What is coming, if that has changed.
    pub(crate) coming: Option<Coming>,
}

impl HaveFeed {
    /// A feed that begins with `have`.
    pub(crate) fn new(have: PieceMap) -> Self {
        Self(Arc::new(watch::Sender::new(State {
            have,
            news: Vec::new(),
            coming: Coming::default(),
            changes: 0,
            closed: None,
        })))
    }

    /// Tells every subscriber that these pieces are readable. What was said before is not said again.
    ///
    /// # Panics
    /// If the artifact has no such piece.
    pub(crate) fn publish(&self, run: Run) {
        self.0.send_if_modified(|state| {
            let before = state.news.len();
            for piece in run.pieces() {
                if state.have.insert(piece) {
                    push(&mut state.news, before, piece);
                }
            }
            state.news.len() > before
        });
    }

    /// Tells every subscriber what is being read from the origin now; replaces what was said before.
    pub(crate) fn coming(&self, coming: Coming) {
        self.0.send_modify(|state| {
            state.coming = coming;
            state.changes += 1;
        });
    }

    /// Ends the feed: the artifact is no longer served.
    pub(crate) fn close(&self, reason: &str) {
        self.0.send_modify(|state| state.closed = Some(reason.to_owned()));
    }

    /// What is readable now.
    pub(crate) fn snapshot(&self) -> PieceMap {
        self.0.borrow().have.clone()
    }

    /// What is being read from the origin now.
    pub(crate) fn coming_now(&self) -> Coming {
        self.0.borrow().coming.clone()
    }

    /// Whether all of these pieces are readable.
    pub(crate) fn holds(&self, run: Run) -> bool {
        self.0.borrow().have.contains_run(run)
    }

    /// Whether the two are the same feed.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A subscriber, which is first told everything.
    pub(crate) fn subscribe(&self) -> HaveNews {
        HaveNews { state: self.0.subscribe(), read: None, last_batch: None }
    }
}

/// Adds `piece` to the last run if that was begun by the same publication, whose runs nobody has read yet.
fn push(news: &mut Vec<Run>, before: usize, piece: PieceIndex) {
    match news[before..].last_mut() {
        Some(run) if run.end == piece => run.end.0 += 1,
        _ => news.push(Run::one(piece)),
    }
}

/// The feed is closed, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closed(pub(crate) String);

/// One subscriber of a [`HaveFeed`].
#[derive(Debug)]
pub(crate) struct HaveNews {
    state: watch::Receiver<State>,
    /// How much of the news was told, and which change of what is coming; `None` before everything was told once.
    read: Option<(usize, u64)>,
    last_batch: Option<Instant>,
}

impl HaveNews {
    /// The next batch: first everything, be it nothing, then what is new. A piece is readable in the batch, or an
    /// earlier one, that says that it is no longer coming.
    ///
    /// Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Batch, Closed> {
        loop {
            let fresh = self.fresh()?;
            match self.last_batch.map(|last| last + BATCH_INTERVAL) {
                _ if fresh == Some(0) => {
                    if self.state.changed().await.is_err() {
                        return Err(Closed("the artifact is no longer served".to_owned()));
                    }
                }
                Some(next) if fresh.is_some_and(|count| count < BATCH_PIECES) && Instant::now() < next => {
                    tokio::select! {
                        () = alarm::at(next) => return Ok(self.take()),
                        // An error is met again where nothing is fresh.
                        _ = self.state.changed() => {}
                    }
                }
                _ => return Ok(self.take()),
            }
        }
    }

    /// How much is new, up to [`BATCH_PIECES`]; `None` while everything is.
    fn fresh(&mut self) -> Result<Option<usize>, Closed> {
        let state = self.state.borrow_and_update();
        if let Some(reason) = &state.closed {
            return Err(Closed(reason.clone()));
        }
        let Some((read, change)) = self.read else { return Ok(None) };
        let runs = state.news[read..].iter().take(BATCH_PIECES);
        let pieces = runs.map(|run| run.len() as usize).sum::<usize>() + usize::from(change != state.changes);
        Ok(Some(pieces.min(BATCH_PIECES)))
    }

    fn take(&mut self) -> Batch {
        let state = self.state.borrow();
        let runs = match self.read {
            None => state.have.runs(),
            Some((read, _)) => ascending(state.news[read..].to_vec()),
        };
        let is_told = self.read.is_some_and(|(_, told)| told == state.changes);
        let batch = Batch { runs, coming: (!is_told).then(|| state.coming.clone()) };
        self.read = Some((state.news.len(), state.changes));
        self.last_batch = Some(Instant::now());
        batch
    }
}

/// Runs that do not overlap, sorted and joined.
fn ascending(mut runs: Vec<Run>) -> Vec<Run> {
    runs.sort_unstable();
    runs.dedup_by(|next, run| {
        let touches = run.end == next.start;
        if touches {
            run.end = next.end;
        }
        touches
    });
    runs
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    async fn next_batch(news: &mut HaveNews) -> Result<Batch, Closed> {
        timeout(Duration::from_secs(30), news.next()).await.expect("in time")
    }

    async fn next(news: &mut HaveNews) -> Result<Vec<Run>, Closed> {
        next_batch(news).await.map(|batch| batch.runs)
    }

    fn feed(have: &[Run]) -> HaveFeed {
        let mut map = PieceMap::empty(1000);
        for run in have {
            map.insert_run(*run);
        }
        HaveFeed::new(map)
    }

    #[tokio::test(start_paused = true)]
    async fn everything_first_then_news_once_ascending_and_joined() {
        let feed = feed(&[Run::new(10, 12)]);
        let mut early = feed.subscribe();
        assert_eq!(next(&mut early).await, Ok(vec![Run::new(10, 12)]));
        feed.publish(Run::new(20, 21));
        feed.publish(Run::new(11, 14));
        feed.publish(Run::new(14, 15));
        feed.publish(Run::new(10, 15));
        assert_eq!(next(&mut early).await, Ok(vec![Run::new(12, 15), Run::new(20, 21)]));
        let mut late = feed.subscribe();
        assert_eq!(next(&mut late).await, Ok(vec![Run::new(10, 15), Run::new(20, 21)]));
        assert_eq!(feed.snapshot().runs(), [Run::new(10, 15), Run::new(20, 21)]);
        feed.publish(Run::new(0, 1));
        assert_eq!(next(&mut early).await, Ok(vec![Run::new(0, 1)]));
        assert_eq!(next(&mut late).await, Ok(vec![Run::new(0, 1)]));
        feed.close("the artifact is gone");
        assert_eq!(next(&mut late).await, Err(Closed("the artifact is gone".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn few_news_wait_for_more_and_many_do_not() {
        let feed = feed(&[]);
        let mut news = feed.subscribe();
        assert_eq!(next(&mut news).await, Ok(Vec::new()));
        feed.publish(Run::new(0, 1));
        let start = Instant::now();
        next(&mut news).await.expect("open");
        assert!(start.elapsed() >= BATCH_INTERVAL, "the second batch follows the first at its distance");
        feed.publish(Run::new(100, 163));
        feed.publish(Run::new(200, 201));
        let start = Instant::now();
        assert_eq!(next(&mut news).await, Ok(vec![Run::new(100, 163), Run::new(200, 201)]));
        assert_eq!(start.elapsed(), Duration::ZERO, "64 pieces go at once");
        // The clock is stopped, so this ends only because the batch interval is over.
        tokio::time::advance(BATCH_INTERVAL).await;
        let start = Instant::now();
        feed.publish(Run::new(300, 301));
        assert_eq!(next(&mut news).await, Ok(vec![Run::new(300, 301)]));
        assert_eq!(start.elapsed(), Duration::ZERO, "news after a pause go at once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_published_while_a_batch_waits_goes_with_it() {
        let feed = feed(&[]);
        let mut news = feed.subscribe();
        next(&mut news).await.expect("open");
        feed.publish(Run::new(5, 6));
        let more = async {
            tokio::task::yield_now().await;
            feed.publish(Run::new(6, 7));
        };
        let (batch, ()) = tokio::join!(next(&mut news), more);
        assert_eq!(batch, Ok(vec![Run::new(5, 7)]));
        // Given up in the middle, it loses nothing.
        feed.publish(Run::new(7, 8));
        tokio::select! {
            biased;
            () = tokio::task::yield_now() => {}
            _ = news.next() => panic!("the batch interval is not over"),
        }
        assert_eq!(next(&mut news).await, Ok(vec![Run::new(7, 8)]));
        drop(feed);
        assert!(next(&mut news).await.is_err(), "nobody is left to publish");
    }

    #[tokio::test(start_paused = true)]
    async fn a_piece_is_readable_no_later_than_it_is_no_longer_coming() {
        let feed = feed(&[]);
        let mut news = feed.subscribe();
        let coming = |runs: &[Run]| Coming { epoch: 3, runs: runs.to_vec() };
        let batch = |runs: &[Run], coming: Option<Coming>| Ok(Batch { runs: runs.to_vec(), coming });
        assert_eq!(
            next_batch(&mut news).await,
            batch(&[], Some(Coming::default())),
            "said at first, be it nothing"
        );
        feed.coming(coming(&[Run::new(4, 8)]));
        assert_eq!(next_batch(&mut news).await, batch(&[], Some(coming(&[Run::new(4, 8)]))));
        feed.publish(Run::new(4, 6));
        feed.coming(coming(&[]));
        assert_eq!(next_batch(&mut news).await, batch(&[Run::new(4, 6)], Some(coming(&[]))));
        feed.publish(Run::new(6, 7));
        assert_eq!(next_batch(&mut news).await, batch(&[Run::new(6, 7)], None), "it has not changed");
    }
}
