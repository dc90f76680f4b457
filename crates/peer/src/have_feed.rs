//! What this peer can let others read of one artifact, and its growth, for any number of subscribers.
//!
//! Owns: that a subscriber misses nothing and is told nothing twice, and how news is batched. Does not own: how it is
//! sent.

use std::{sync::Arc, time::Duration};

use modelpack::{
    layout::{PieceIndex, Run},
    piece_map::PieceMap,
};
use planner::StripeSet;
use tokio::{sync::watch, time::Instant};

use crate::alarm;

/// Least time between two batches to one subscriber. News that come later than that go out at once; faster ones are
/// worth one message. Below the 1 ms that a piece takes at 10 Gbit/s.
const BATCH_INTERVAL: Duration = Duration::from_micros(500);

/// The same where the subscriber is interested in none of the news: it looks at them to see how far others are.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);

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

impl Coming {
    /// The runs that are new or gone; `None` where another plan makes news of all.
    fn changes_from<'a>(&'a self, before: &'a Self) -> Option<impl Iterator<Item = &'a Run>> {
        let new = self.runs.iter().filter(|run| !before.runs.contains(run));
        let gone = before.runs.iter().filter(|run| !self.runs.contains(run));
        (self.epoch == before.epoch).then(|| new.chain(gone))
    }
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
        HaveNews {
            state: self.0.subscribe(),
            read: None,
            told: Coming::default(),
            interest: None,
            last_batch: None,
        }
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
    /// What it was told is coming.
    told: Coming,
    /// Of what it wants to hear at once; of everything, unless it said so.
    interest: Option<StripeSet>,
    last_batch: Option<Instant>,
}

/// What has not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    /// Everything.
    All,
    Nothing,
    /// Only what may wait.
    Idle,
    /// So many pieces, up to [`BATCH_PIECES`].
    Some(usize),
}

impl HaveNews {
    /// Of these stripes the subscriber hears at once from now on; of others when it is convenient.
    pub(crate) fn interest(&mut self, stripes: StripeSet) {
        self.interest = Some(stripes);
    }

    /// The next batch: first everything, be it nothing, then what is new. A piece is readable in the batch, or an
    /// earlier one, that says that it is no longer coming.
    ///
    /// Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Batch, Closed> {
        loop {
            let fresh = self.fresh()?;
            let interval = if fresh == Fresh::Idle { IDLE_INTERVAL } else { BATCH_INTERVAL };
            let next = self.last_batch.map(|last| last + interval).filter(|next| Instant::now() < *next);
            match (fresh, next) {
                (Fresh::Nothing, _) => {
                    if self.state.changed().await.is_err() {
                        return Err(Closed("the artifact is no longer served".to_owned()));
                    }
                }
                (Fresh::Idle | Fresh::Some(..BATCH_PIECES), Some(next)) => {
                    tokio::select! {
                        () = alarm::at(next) => return Ok(self.take()),
                        // An error is met again where nothing is fresh.
                        _ = self.state.changed() => {}
                    }
                }
                (Fresh::All | Fresh::Idle | Fresh::Some(_), _) => return Ok(self.take()),
            }
        }
    }

    fn fresh(&mut self) -> Result<Fresh, Closed> {
        self.state.mark_unchanged();
        let state = self.state.borrow();
        if let Some(reason) = &state.closed {
            return Err(Closed(reason.clone()));
        }
        let Some((read, change)) = self.read else { return Ok(Fresh::All) };
        let news = &state.news[read..];
        if news.is_empty() && change == state.changes {
            return Ok(Fresh::Nothing);
        }
        let runs = news.iter().take(BATCH_PIECES);
        let pieces = runs.clone().map(|run| run.len() as usize).sum::<usize>();
        let coming_waits =
            change == state.changes || !self.is_of_interest(state.coming.changes_from(&self.told));
        if pieces < BATCH_PIECES && coming_waits && !self.is_of_interest(Some(runs)) {
            return Ok(Fresh::Idle);
        }
        Ok(Fresh::Some((pieces + usize::from(change != state.changes)).min(BATCH_PIECES)))
    }

    /// Whether any of these is; `None` always is.
    fn is_of_interest<'a>(&self, runs: Option<impl Iterator<Item = &'a Run>>) -> bool {
        let (Some(mut runs), Some(stripes)) = (runs, self.interest) else { return true };
        runs.any(|run| run.pieces().any(|piece| stripes.contains(piece)))
    }

    fn take(&mut self) -> Batch {
        let state = self.state.borrow();
        let runs = match self.read {
            None => state.have.runs(),
            Some((read, _)) => ascending(state.news[read..].to_vec()),
        };
        let is_told = self.read.is_some_and(|(_, told)| told == state.changes);
        let batch = Batch { runs, coming: (!is_told).then(|| state.coming.clone()) };
        self.told.clone_from(&state.coming);
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

    #[tokio::test(start_paused = true)]
    async fn what_nobody_asked_for_waits_for_what_somebody_did() {
        let feed = feed(&[]);
        let mut news = feed.subscribe();
        // Of every two pieces in a row the first is of interest.
        news.interest(StripeSet::new(1, 2, 0b01).expect("a geometry"));
        next(&mut news).await.expect("open");
        let start = Instant::now();
        feed.publish(Run::new(1, 2));
        assert_eq!(next(&mut news).await, Ok(vec![Run::new(1, 2)]));
        assert!(start.elapsed() >= IDLE_INTERVAL, "alone it waits");
        let start = Instant::now();
        feed.publish(Run::new(3, 4));
        feed.publish(Run::new(8, 9));
        assert_eq!(next(&mut news).await, Ok(vec![Run::new(3, 4), Run::new(8, 9)]));
        assert!(start.elapsed() < IDLE_INTERVAL, "it goes along");
        for (runs, is_urgent) in [(vec![], true), (vec![Run::new(5, 6)], false), (vec![Run::new(6, 7)], true)]
        {
            let (start, coming) = (Instant::now(), Coming { epoch: 1, runs });
            feed.coming(coming.clone());
            assert_eq!(next_batch(&mut news).await, Ok(Batch { runs: vec![], coming: Some(coming.clone()) }));
            assert_eq!(start.elapsed() < IDLE_INTERVAL, is_urgent, "{coming:?}");
        }
        let start = Instant::now();
        for piece in (101..).step_by(2).take(BATCH_PIECES) {
            feed.publish(Run::new(piece, piece + 1));
        }
        assert_eq!(next(&mut news).await.map(|runs| runs.len()), Ok(BATCH_PIECES));
        assert_eq!(start.elapsed(), Duration::ZERO, "many do not wait");
    }
}
