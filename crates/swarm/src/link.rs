//! One link: what the other end announced, what is outstanding on it, how fast it has been. Does not own reads.

use std::time::Duration;

use modelpack::layout::{PIECE_BYTES, PieceIndex, Run};
use planner::StripeSet;

use crate::bits::Bits;
use crate::io::ReadId;

/// Time over which a rate is sampled: pieces that arrive together would else show an endless rate.
const SAMPLE: Duration = Duration::from_millis(5);

/// Weight of a new sample: a few samples forget the start-up, one hiccup is not believed.
const SAMPLE_WEIGHT: f64 = 0.3;

/// Bytes wanted in flight are what the link carries in this time: well above any round trip of a data centre, and
/// short enough that pieces promised to a link are not held up by it.
const DEPTH_TIME: f64 = 0.1;

/// Bytes in flight before a rate is known, and on any link that carries less: one piece. A slow source that many ask
/// would else hold what the last of them asked for until it has sent several pieces to each.
const DEPTH_MIN: u64 = PIECE_BYTES;

/// The first wait before a lost link is opened again; it doubles up to `RECONNECT_DOUBLINGS` times.
const RECONNECT: Duration = Duration::from_millis(500);
const RECONNECT_DOUBLINGS: u32 = 5;

/// What was announced on a link that ended and is opened at once counts for so long: many times what opening takes, and no
/// longer than the new entrant of a stripe waits for the old one.
const MISSED: Duration = Duration::from_secs(1);

/// A parent's news may be this many times later than usual before others are asked for what it should have had, but for
/// no longer than this.
const REST_INTERVALS: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(1);

/// So many pieces in a row that are here already are no chance: fewer come on a slow network from any parent at times.
const USELESS_MIN: u32 = 4;

/// Failures in a row after which nobody waits for a link any more. The first waits to open it again take 1.5 s: longer
/// than a scheduler needs to see that a peer is gone.
const FAILING: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    Connecting,
    Up,
    /// The other end has said farewell: what is out may end, nothing more is posted.
    Leaving,
    Down {
        retry_at: Duration,
    },
}

/// Goodput, measured only while something is outstanding.
#[derive(Clone, Debug, Default)]
struct Rate {
    bytes_per_second: Option<f64>,
    bytes: u64,
    mark: Duration,
}

impl Rate {
    fn start(&mut self, now: Duration) {
        (self.bytes, self.mark) = (0, now);
    }

    #[expect(clippy::cast_precision_loss, reason = "an estimate; 53 bits count a sample's bytes exactly")]
    fn add(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        let elapsed = now.saturating_sub(self.mark);
        if elapsed >= SAMPLE {
            let sample = self.bytes as f64 / elapsed.as_secs_f64();
            let old = self.bytes_per_second.unwrap_or(sample);
            self.bytes_per_second = Some(old + SAMPLE_WEIGHT * (sample - old));
            self.start(now);
        }
    }
}

/// A set that few links need: of all pieces from when it is first written to.
fn lasting(set: &mut Bits, piece_count: u32) -> &mut Bits {
    if set.piece_count() == 0 {
        *set = Bits::empty(piece_count);
    }
    set
}

#[expect(clippy::struct_excessive_bools, reason = "facts of a link, none of which follows from another")]
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) state: LinkState,
    pub(crate) in_flight_max: u32,
    pub(crate) has: Bits,
    /// What the other end reads from the origin, and the epoch of the plan that it acts by. The runs are ascending and apart.
    pub(crate) coming: (u64, Vec<Run>),
    /// The pieces of stripes that it is the parent of; none of none.
    pub(crate) mine: Bits,
    /// Which stripes those are, unless stripes are others since.
    mine_of: Option<Vec<usize>>,
    /// How many pieces of each stripe it has; nothing until that is asked.
    held: Vec<u32>,
    /// Of which stripes it was asked to tell at once.
    pub(crate) interest: Option<StripeSet>,
    /// When it last announced any of those.
    pub(crate) last_mine: Duration,
    /// How many of those it has announced, and since when it does.
    pub(crate) announced_mine: u32,
    since: Duration,
    /// When it last announced any of those that was not here already, and how many it has announced since that were.
    last_use: Duration,
    useless: u32,
    /// Every piece that it announced and that is no longer in `has`: what it says again is no news. None of none.
    pub(crate) heard: Bits,
    /// Outstanding reads, ascending, those given up on included: they still occupy the link.
    pub(crate) reads: Vec<ReadId>,
    pub(crate) bytes_in_flight: u64,
    /// Pieces that came and are not checked yet.
    unchecked: u32,
    /// When the last piece came, checked or not.
    pub(crate) last_piece: Duration,
    /// When it was last seen that bytes had come, of whole pieces or not.
    pub(crate) last_byte: Duration,
    /// No piece came for too long; cleared by the next good piece, and by no new link: whoever never gives anything
    /// opens those as well as anybody.
    pub(crate) is_slow: bool,
    /// When that was last found.
    pub(crate) slow_since: Duration,
    /// The scheduler was told that it stalls; cleared likewise.
    pub(crate) is_told_stalled: bool,
    /// The scheduler was told that nothing comes; cleared by the next good piece.
    pub(crate) is_reported: bool,
    pub(crate) pause_until: Duration,
    /// It broke and was opened again at once; cleared by the next good piece, so that this is done once for each.
    is_reopened: bool,
    /// Until when what it announced counts though it must be said again.
    missed_until: Option<Duration>,
    /// Failures since the last good piece.
    pub(crate) failures: u32,
    /// Those among them that refused what was announced.
    pub(crate) refusals: u32,
    /// What it refused and has not announced again; none of none.
    refused: Bits,
    /// Since when it does so, unless it was said to the scheduler.
    refusing_since: Option<Duration>,
    rate: Rate,
}

impl Link {
    pub(crate) fn new(piece_count: u32) -> Self {
        Self {
            state: LinkState::Connecting,
            in_flight_max: 0,
            has: Bits::empty(piece_count),
            coming: (0, Vec::new()),
            mine: Bits::empty(0),
            mine_of: None,
            held: Vec::new(),
            interest: None,
            last_mine: Duration::ZERO,
            announced_mine: 0,
            since: Duration::ZERO,
            last_use: Duration::ZERO,
            useless: 0,
            heard: Bits::empty(0),
            reads: Vec::new(),
            bytes_in_flight: 0,
            unchecked: 0,
            last_piece: Duration::ZERO,
            last_byte: Duration::ZERO,
            is_slow: false,
            slow_since: Duration::ZERO,
            is_told_stalled: false,
            is_reported: false,
            pause_until: Duration::ZERO,
            is_reopened: false,
            missed_until: None,
            failures: 0,
            refusals: 0,
            refused: Bits::empty(0),
            refusing_since: None,
            rate: Rate::default(),
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        self.state == LinkState::Up
    }

    /// How many times the patience with it have passed since it last announced something to its child, or gave it.
    pub(crate) fn rests(&self, now: Duration, stall_min: Duration) -> u32 {
        let interval = self.last_mine.saturating_sub(self.since) / self.announced_mine.max(1);
        let patience = (interval * REST_INTERVALS).clamp(stall_min, REST_MAX.max(stall_min));
        let rest = now.saturating_sub(self.last_mine.max(self.last_piece));
        if rest < patience {
            return 0;
        }
        u32::try_from(rest.as_nanos() / patience.as_nanos().max(1)).unwrap_or(u32::MAX)
    }

    /// It announced something of what its child has from it.
    pub(crate) fn note_use(&mut self, now: Duration, is_missing: bool) {
        if is_missing {
            (self.last_use, self.useless) = (now, 0);
        } else {
            self.useless += 1;
        }
    }

    /// Whether it has long given nothing, and announced one piece after another, but only what its child has already.
    pub(crate) fn is_vain(&self, now: Duration) -> bool {
        self.useless >= USELESS_MIN && now >= self.last_use.max(self.last_piece) + REST_MAX
    }

    /// Whether its other end leaves or cannot be reached, as far as is known: it broke, and is not up again.
    pub(crate) fn is_gone(&self) -> bool {
        match self.state {
            LinkState::Leaving | LinkState::Down { .. } => true,
            LinkState::Connecting => self.is_reopened,
            LinkState::Up => false,
        }
    }

    /// Whether pieces it announced may be counted on.
    pub(crate) fn is_usable(&self) -> bool {
        self.is_up() && !self.is_slow
    }

    pub(crate) fn up(&mut self, now: Duration, in_flight_max: u32) {
        self.state = LinkState::Up;
        (self.last_mine, self.since, self.announced_mine) = (now, now, 0);
        (self.last_use, self.useless) = (now, 0);
        self.in_flight_max = in_flight_max;
    }

    pub(crate) fn down(&mut self, now: Duration) {
        let wait = RECONNECT * 2_u32.pow(self.failures.min(RECONNECT_DOUBLINGS));
        self.failures = self.failures.saturating_add(1);
        self.missed_until = None;
        self.ended_until(now + wait);
    }

    /// It broke, and nobody knows why: the other end may live. So it is opened again at once, but only once for each
    /// good piece, and until that has failed the other end has what it had.
    pub(crate) fn broken(&mut self, now: Duration) {
        if self.is_up() && !std::mem::replace(&mut self.is_reopened, true) {
            self.missed(now);
        } else {
            self.down(now);
        }
    }

    fn missed(&mut self, now: Duration) {
        self.missed_until = Some(now + MISSED);
        self.ended_until(now);
    }

    /// It is opened anew at once. Only a link that is up moves, so that one which never comes up cannot do so for ever.
    pub(crate) fn moved(&mut self, now: Duration) {
        match self.state {
            LinkState::Up => self.missed(now),
            LinkState::Connecting | LinkState::Leaving => self.down(now),
            LinkState::Down { .. } => {}
        }
    }

    fn ended_until(&mut self, retry_at: Duration) {
        self.state = LinkState::Down { retry_at };
        self.unchecked = 0;
        lasting(&mut self.heard, self.has.piece_count()).unite(&self.has);
        self.has.clear();
        self.held.clear();
        self.coming = (0, Vec::new());
        self.interest = None;
    }

    /// It does not give what it announced.
    pub(crate) fn refused(&mut self, now: Duration, run: Run) {
        self.refusals += 1;
        self.held.clear();
        let piece_count = self.has.piece_count();
        for piece in run.pieces() {
            if self.has.remove(piece) {
                lasting(&mut self.heard, piece_count).insert(piece);
            }
            lasting(&mut self.refused, piece_count).insert(piece);
        }
        self.refusing_since.get_or_insert(now);
    }

    /// Takes note of what it reads from the origin now.
    pub(crate) fn is_coming(&mut self, epoch: u64, runs: &[Run]) {
        let coming = &mut self.coming.1;
        coming.clear();
        coming.extend(runs.iter().map(|run| self.has.clip(*run)).filter(|run| !run.is_empty()));
        coming.sort_unstable();
        coming.dedup_by(|next, run| {
            let is_one = next.start <= run.end;
            if is_one {
                run.end = run.end.max(next.end);
            }
            is_one
        });
        self.coming.0 = epoch;
        // What it had is said before that.
        self.missed_until = None;
    }

    /// It is the parent of these of the stripes that have such pieces.
    pub(crate) fn is_parent_of(&mut self, numbers: impl Iterator<Item = usize> + Clone, masks: &[Bits]) {
        if self.mine_of.as_ref().is_some_and(|before| numbers.clone().eq(before.iter().copied())) {
            return;
        }
        self.mine.clear();
        for number in numbers.clone() {
            lasting(&mut self.mine, self.has.piece_count()).unite(&masks[number]);
        }
        self.mine_of = Some(numbers.collect());
    }

    /// Stripes are others than before; until [`Self::is_parent_of`] it counts as the parent of those that it was.
    pub(crate) fn forget_stripes(&mut self) {
        self.mine_of = None;
        self.held.clear();
    }

    /// Counts the pieces that it has of each stripe, if nobody has: from then on they are counted as they are announced.
    pub(crate) fn count_held(&mut self, masks: &[Bits]) {
        if self.held.is_empty() {
            self.held.extend(masks.iter().map(|mask| self.has.count_common(mask)));
        }
    }

    /// How many pieces of a stripe it has, after [`Self::count_held`].
    pub(crate) fn held(&self, number: usize) -> u32 {
        self.held.get(number).copied().unwrap_or(0)
    }

    /// It has one more piece, and `number` says of which stripe.
    pub(crate) fn holds_one_more(&mut self, number: impl FnOnce() -> usize) {
        if !self.held.is_empty()
            && let Some(held) = self.held.get_mut(number())
        {
            *held += 1;
        }
    }

    fn will_have(&self, piece: PieceIndex) -> bool {
        let after = self.coming.1.partition_point(|run| run.start <= piece);
        self.coming.1[..after].last().is_some_and(|run| run.contains(piece))
    }

    /// Takes note that it announces a piece; says whether it had not.
    pub(crate) fn announced(&mut self, piece: PieceIndex) -> bool {
        if self.refused.remove(piece) && self.refused.is_empty() {
            self.refusing_since = None;
        }
        self.has.insert(piece)
    }

    /// Since when it refuses something that it said it has.
    pub(crate) fn refusing_since(&self) -> Option<Duration> {
        self.refusing_since.filter(|_| !self.is_reported)
    }

    /// The scheduler was told of it.
    pub(crate) fn reported(&mut self) {
        (self.is_reported, self.refusing_since) = (true, None);
    }

    /// The scheduler relies on it again: it has forgotten what it was told, and is told again if nothing has changed.
    pub(crate) fn relied_on(&mut self, now: Duration) {
        if std::mem::take(&mut self.is_reported) && !self.refused.is_empty() {
            self.refusing_since = Some(now);
        }
    }

    /// Whether it refuses what it announces, again and again.
    pub(crate) fn is_refusing(&self) -> bool {
        self.refusals >= FAILING
    }

    /// Whether it has failed again and again since its last good piece, or gives nothing, whatever it announces.
    pub(crate) fn is_failing(&self) -> bool {
        self.failures >= FAILING || self.is_reported
    }

    /// Whether the other end has this piece, or will without our doing.
    pub(crate) fn has_or_will(&self, piece: PieceIndex) -> bool {
        !self.is_slow && self.may_give(piece)
    }

    /// Whether it has or reads this piece by what it last said, though it has stalled: it may have paused, or be slow.
    pub(crate) fn may_give(&self, piece: PieceIndex) -> bool {
        self.is_up() && !self.is_failing() && (self.has.contains(piece) || self.will_have(piece))
    }

    /// Whether it had this piece until its link ended just now, and says it again as soon as that is open.
    pub(crate) fn had(&self, now: Duration, piece: PieceIndex) -> bool {
        let counts = !self.is_slow && !self.is_failing() && self.heard.contains(piece);
        counts && self.missed_until.is_some_and(|until| now < until)
    }

    /// Until when what it had counts, if it does.
    pub(crate) fn missed_until(&self) -> Option<Duration> {
        self.missed_until
    }

    /// Whether it has the piece and serves what it has.
    pub(crate) fn has_for_sure(&self, piece: PieceIndex) -> bool {
        self.is_usable() && !self.is_failing() && self.has.contains(piece)
    }

    pub(crate) fn posted(&mut self, now: Duration, read: ReadId, bytes: u64) {
        if self.reads.is_empty() {
            self.rate.start(now);
            (self.last_piece, self.last_byte) = (now, now);
            // Every read ends after its pieces.
            self.unchecked = 0;
        }
        self.reads.push(read);
        self.bytes_in_flight += bytes;
    }

    pub(crate) fn arrived(&mut self, now: Duration, bytes: u64) {
        self.rate.add(now, bytes);
        (self.last_piece, self.last_byte) = (now, now);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(bytes);
        (self.is_slow, self.is_told_stalled, self.is_reported) = (false, false, false);
        (self.failures, self.refusals, self.is_reopened) = (0, 0, false);
    }

    /// A piece came; whether it is right is found out later.
    pub(crate) fn came(&mut self, now: Duration) {
        (self.last_piece, self.last_byte) = (now, now);
        self.unchecked += 1;
    }

    /// That is found out of one of them.
    pub(crate) fn checked(&mut self) {
        self.unchecked = self.unchecked.saturating_sub(1);
    }

    /// Whether so many pieces are all here, and wait for nothing but this peer itself.
    pub(crate) fn has_sent(&self, pieces: u64) -> bool {
        u64::from(self.unchecked) >= pieces
    }

    pub(crate) fn ended(&mut self, read: ReadId, bytes_left: u64) {
        self.reads.retain(|other| *other != read);
        self.bytes_in_flight = self.bytes_in_flight.saturating_sub(bytes_left);
    }

    pub(crate) fn rate(&self) -> Option<f64> {
        self.rate.bytes_per_second
    }

    /// When `more` bytes would be there if they were asked for now; `default_rate` where this link has none yet.
    #[expect(clippy::cast_precision_loss, reason = "an estimate; 53 bits count bytes in flight exactly")]
    pub(crate) fn predicted(&self, more: u64, default_rate: Option<f64>) -> Option<Duration> {
        let rate = self.rate().or(default_rate)?;
        Duration::try_from_secs_f64((self.bytes_in_flight + more) as f64 / rate).ok()
    }

    /// Whether a read may be posted: under the grant, and no deeper than the link is fast.
    pub(crate) fn has_room(&self, now: Duration, reads_max: u32) -> bool {
        let reads = u32::try_from(self.reads.len()).unwrap_or(u32::MAX);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate is positive; `as` saturates"
        )]
        let depth = DEPTH_MIN.max((self.rate().unwrap_or(0.0) * DEPTH_TIME) as u64);
        self.is_up()
            && now >= self.pause_until
            && reads < reads_max.min(self.in_flight_max)
            && self.bytes_in_flight < depth
            && !(self.is_slow && reads > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECES: u32 = 100;

    fn pieces() -> impl Iterator<Item = PieceIndex> {
        Run::new(0, PIECES).pieces()
    }

    fn link() -> Link {
        let mut link = Link::new(PIECES);
        link.up(Duration::ZERO, 16);
        link
    }

    #[test]
    fn what_is_said_to_come_is_found_whatever_the_order_of_its_runs() {
        let mut link = link();
        let runs = [(95, 200), (7, 9), (2, 5), (1, 3), (9, 9), (300, 400), (20, 30), (22, 24), (30, 31)];
        link.is_coming(1, &runs.map(|(start, end)| Run::new(start, end)));
        assert!(link.coming.1.is_sorted() && link.coming.1.len() == 4, "{:?}", link.coming.1);
        for piece in pieces() {
            let is_said = runs.iter().any(|(start, end)| (*start..*end).contains(&piece.0));
            assert_eq!(link.may_give(piece), is_said, "{piece}");
        }
        link.is_coming(2, &[]);
        assert!(!pieces().any(|piece| link.may_give(piece)));
    }

    #[test]
    fn what_was_announced_once_stays_heard_when_it_is_refused_or_the_link_ends() {
        let mut link = link();
        let said = |piece: u32| move |link: &Link| link.heard.contains(PieceIndex(piece));
        assert!(link.announced(PieceIndex(5)) && link.announced(PieceIndex(6)));
        link.refused(Duration::ZERO, Run::new(6, 8));
        assert!(said(6)(&link) && !said(7)(&link), "it never said that it has 7");
        assert!(!link.has.contains(PieceIndex(6)) && link.announced(PieceIndex(6)));
        link.down(Duration::ZERO);
        assert!(said(5)(&link) && said(6)(&link) && link.has.is_empty());
    }

    #[test]
    fn pieces_of_stripes_are_counted_as_they_are_announced() {
        let mut link = link();
        let mut masks = [Bits::empty(PIECES), Bits::empty(PIECES), Bits::empty(PIECES)];
        for piece in pieces() {
            masks[piece.0 as usize % 3].insert(piece);
        }
        let announce = |link: &mut Link, piece: u32| {
            if link.announced(PieceIndex(piece)) {
                link.holds_one_more(|| piece as usize % 3);
            }
        };
        let counts = |link: &mut Link, masks: &[Bits]| {
            link.count_held(masks);
            [0, 1, 2].map(|number| link.held(number))
        };
        for piece in [0, 1, 2, 3, 30] {
            announce(&mut link, piece);
        }
        assert_eq!(counts(&mut link, &masks), [3, 1, 1]);
        for piece in [30, 31, 34, 99] {
            announce(&mut link, piece);
        }
        assert_eq!(counts(&mut link, &masks), [4, 3, 1]);
        link.refused(Duration::ZERO, Run::new(30, 32));
        assert_eq!(counts(&mut link, &masks), [3, 2, 1]);
        link.forget_stripes();
        assert_eq!(counts(&mut link, &masks[1..]), [2, 1, 0]);
        link.down(Duration::ZERO);
        assert_eq!(counts(&mut link, &masks), [0, 0, 0]);
    }
}
