//! What artifacts leave of the network card to more urgent ones of the same process.
//!
//! Owns: a rate in each direction for all that is equally urgent, and what has moved by it. Does not own: how urgent an
//! artifact is (`planner`), the law (`limit::way`), what the card does (`meter`), or who waits (`download`, `shared`).

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use planner::Priority;
use transport::Pacer;

use crate::limit::{FREE, Way};

/// All that is equally urgent, in one direction.
#[derive(Debug)]
struct Lane {
    pacer: Arc<Pacer>,
    moved: AtomicU64,
}

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Sent,
    Received,
}

/// The lanes of one process: for each priority, the least urgent first, one in each direction.
#[derive(Debug)]
pub(crate) struct Lanes([[Lane; 2]; Priority::ALL.len()]);

impl Default for Lanes {
    fn default() -> Self {
        let lane = |_| Lane { pacer: Arc::new(Pacer::new(FREE)), moved: AtomicU64::new(0) };
        Self(Priority::ALL.map(|_| [Direction::Sent, Direction::Received].map(lane)))
    }
}

impl Lanes {
    fn lane(&self, priority: Priority, direction: Direction) -> &Lane {
        &self.0[priority as usize][direction as usize]
    }

    /// What bytes that are so urgent wait for, if for anything.
    fn pacer(&self, priority: Priority, direction: Direction) -> Option<Arc<Pacer>> {
        let pacer = &self.lane(priority, direction).pacer;
        (pacer.rate() != FREE).then(|| Arc::clone(pacer))
    }

    /// Bytes per second by which a lane is held back, if it is.
    pub(crate) fn held(&self, priority: Priority, direction: Direction) -> Option<u64> {
        Some(self.lane(priority, direction).pacer.rate()).filter(|rate| *rate != FREE)
    }

    fn moved(&self) -> [[u64; 2]; Priority::ALL.len()] {
        self.0.each_ref().map(|lanes| lanes.each_ref().map(|lane| lane.moved.load(Ordering::Relaxed)))
    }
}

/// What one artifact has cost this process, and how urgent it is.
#[derive(Debug)]
pub(crate) struct Traffic {
    lanes: Arc<Lanes>,
    priority: AtomicU8,
    moved: [AtomicU64; 2],
}

impl Traffic {
    /// Of one that has cost nothing yet.
    pub(crate) fn new(lanes: Arc<Lanes>) -> Arc<Self> {
        let priority = AtomicU8::new(Priority::default() as u8);
        Arc::new(Self { lanes, priority, moved: <[AtomicU64; 2]>::default() })
    }

    pub(crate) fn priority(&self) -> Priority {
        Priority::ALL[usize::from(self.priority.load(Ordering::Relaxed))]
    }

    pub(crate) fn set_priority(&self, priority: Priority) {
        self.priority.store(priority as u8, Ordering::Relaxed);
    }

    /// So many bytes of it have moved.
    pub(crate) fn count(&self, direction: Direction, bytes: u64) {
        self.moved[direction as usize].fetch_add(bytes, Ordering::Relaxed);
        self.lanes.lane(self.priority(), direction).moved.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What bytes of it wait for before they move, if for anything.
    pub(crate) fn pacer(&self, direction: Direction) -> Option<Arc<Pacer>> {
        self.lanes.pacer(self.priority(), direction)
    }

    /// Sent and received.
    pub(crate) fn totals(&self) -> [u64; 2] {
        self.moved.each_ref().map(|count| count.load(Ordering::Relaxed))
    }
}

/// Sets the lanes' rates again and again: each gets what more urgent ones leave of the card, and no lane ever stands
/// still. The most urgent one is never held back.
#[derive(Debug)]
pub(crate) struct Sharing {
    lanes: Arc<Lanes>,
    ways: [[Way; 2]; Priority::ALL.len()],
    before: [[u64; 2]; Priority::ALL.len()],
}

impl Sharing {
    pub(crate) fn new(lanes: Arc<Lanes>) -> Self {
        let ways = Priority::ALL.map(|_| [Way::among_own(), Way::among_own()]);
        Self { before: lanes.moved(), lanes, ways }
    }

    /// Looks at what has moved since it looked last. `card` is what this process has of the card in each direction, in
    /// bytes per second; where that is not known, nobody is held back.
    pub(crate) fn look(&mut self, elapsed: Duration, card: [Option<u64>; 2]) {
        let now = self.lanes.moved();
        let before = std::mem::replace(&mut self.before, now);
        for (way, card) in card.into_iter().enumerate() {
            let mut above = 0;
            for number in (0..Priority::ALL.len()).rev() {
                let own = now[number][way].saturating_sub(before[number][way]);
                let rate = match card {
                    Some(card) => self.ways[number][way].beneath(card).look(elapsed, above + own, own),
                    None => f64::INFINITY,
                };
                above += own;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "`as` saturates"
                )]
                self.lanes.0[number][way].pacer.set_rate((rate as u64).max(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "parts of a card"
    )]

    use proptest::prelude::*;

    use super::*;

    const CARD: u64 = 1 << 30;
    const LOOK: Duration = Duration::from_millis(100);

    /// Artifacts that share a card, each of which wants everything or a part of it, with so many connections.
    struct Machine {
        sharing: Sharing,
        artifacts: Vec<(Arc<Traffic>, f64, u32)>,
    }

    impl Machine {
        fn new(artifacts: &[(Priority, f64, u32)]) -> Self {
            let lanes = Arc::<Lanes>::default();
            let artifact = |(priority, wants, links): &(Priority, f64, u32)| {
                let traffic = Traffic::new(Arc::clone(&lanes));
                traffic.set_priority(*priority);
                (traffic, *wants, *links)
            };
            let artifacts = artifacts.iter().map(artifact).collect();
            Self { sharing: Sharing::new(lanes), artifacts }
        }

        /// Lets looks pass, in which the card gives each connection an equal share of what it is asked for; gives what
        /// each artifact had of the card on average.
        fn run(&mut self, looks: u32) -> Vec<f64> {
            let mut had = vec![0.0; self.artifacts.len()];
            for _ in 0..looks {
                let wants: Vec<(f64, u32)> = self.artifacts.iter().map(Self::wish).collect();
                for (at, part) in share(&wants).into_iter().enumerate() {
                    let bytes = (part * CARD as f64 * LOOK.as_secs_f64()) as u64;
                    self.artifacts[at].0.count(Direction::Received, bytes);
                    had[at] += part / f64::from(looks);
                }
                self.sharing.look(LOOK, [Some(CARD); 2]);
            }
            had
        }

        fn wish((traffic, wants, links): &(Arc<Traffic>, f64, u32)) -> (f64, u32) {
            let pacer = traffic.pacer(Direction::Received);
            let rate = pacer.map_or(1.0, |pacer| pacer.rate() as f64 / CARD as f64);
            (wants.min(rate), *links)
        }
    }

    /// Max-min fair shares of a card, by connections.
    fn share(wants: &[(f64, u32)]) -> Vec<f64> {
        let mut given = vec![0.0; wants.len()];
        let mut left = 1.0;
        let mut hungry: Vec<usize> = (0..wants.len()).collect();
        while !hungry.is_empty() {
            let links: u32 = hungry.iter().map(|at| wants[*at].1).sum();
            let each = left / f64::from(links);
            let (sated, rest): (Vec<usize>, Vec<usize>) =
                hungry.iter().partition(|at| wants[**at].0 <= each * f64::from(wants[**at].1));
            for at in if sated.is_empty() { &rest } else { &sated } {
                given[*at] = wants[*at].0.min(each * f64::from(wants[*at].1));
                left -= given[*at];
            }
            hungry = if sated.is_empty() { Vec::new() } else { rest };
        }
        given
    }

    #[test]
    fn the_more_urgent_one_has_nearly_all_of_the_card_and_the_other_all_of_it_afterwards() {
        let mut machine = Machine::new(&[(Priority::High, 1.0, 4), (Priority::Normal, 1.0, 16)]);
        machine.run(20);
        let began = machine.run(5);
        assert!(began[0] > 0.9, "after two seconds: {began:?}");
        let shared = machine.run(100);
        assert!(shared[0] > 0.93 && shared[1] > 0.02, "{shared:?}");
        machine.artifacts[0].1 = 0.0;
        machine.run(45);
        assert!(machine.run(10)[1] > 0.99, "it is alone");
        assert!(machine.artifacts[1].0.pacer(Direction::Received).is_none());
    }

    #[test]
    fn of_three_the_first_has_most_and_nobody_stands_still() {
        let of = [Priority::Low, Priority::High, Priority::Normal].map(|priority| (priority, 1.0, 8));
        let mut machine = Machine::new(&of);
        machine.run(30);
        let had = machine.run(100);
        assert!(had[1] > 0.9 && had[0] > 0.02 && had[2] > 0.02, "{had:?}");
    }

    #[test]
    fn what_a_more_urgent_one_does_not_want_is_used() {
        let mut machine = Machine::new(&[(Priority::High, 0.25, 4), (Priority::Low, 1.0, 16)]);
        machine.run(80);
        let had = machine.run(100);
        assert!(had[0] > 0.24 && had[1] > 0.55, "{had:?}");
    }

    #[test]
    fn equally_urgent_ones_share_alike_and_nobody_is_held_back() {
        for priority in Priority::ALL {
            let mut machine = Machine::new(&[(priority, 1.0, 8), (priority, 1.0, 8)]);
            assert!(machine.run(50).iter().all(|had| (had - 0.5).abs() < 0.001));
            assert!(machine.artifacts.iter().all(|at| at.0.pacer(Direction::Received).is_none()));
        }
    }

    #[test]
    fn where_the_card_is_not_known_nobody_is_held_back() {
        let mut machine = Machine::new(&[(Priority::High, 1.0, 4), (Priority::Low, 1.0, 4)]);
        machine.run(20);
        assert!(machine.artifacts[1].0.pacer(Direction::Received).is_some());
        machine.sharing.look(LOOK, [None; 2]);
        assert!(machine.artifacts[1].0.pacer(Direction::Received).is_none());
    }

    proptest! {
        #[test]
        fn nobody_stands_still_and_the_most_urgent_has_what_it_would_have_alone(
            wants in proptest::collection::vec((0_usize..3, 0.05_f64..1.0, 1_u32..32), 1..5),
        ) {
            let of: Vec<_> =
                wants.iter().map(|(number, wants, links)| (Priority::ALL[*number], *wants, *links)).collect();
            let mut machine = Machine::new(&of);
            machine.run(40);
            let had = machine.run(100);
            let first = of.iter().map(|at| at.0).max().unwrap();
            let (mut wanted, mut got) = (0.0, 0.0);
            for (at, had) in of.iter().zip(&had) {
                prop_assert!(*had > 0.004, "{of:?} {had:?}");
                if at.0 == first {
                    (wanted, got) = (wanted + at.1, got + had);
                }
            }
            prop_assert!(got > 0.87 * f64::min(wanted, 1.0), "{of:?} {had:?}");
            prop_assert!(had.iter().sum::<f64>() > 0.84 * f64::min(of.iter().map(|at| at.1).sum(), 1.0), "{of:?} {had:?}");
        }
    }
}
