//! How busy things are, looked at from time to time. Does not own what anybody does.

use std::time::Duration;

use super::{Event, World};
use crate::options::Busy;

/// In how many intervals the time that an artifact takes on one card is looked at.
const INTERVALS: u32 = 40;

/// What was seen at the last look: the busy time of the origin, of all sending, of all receiving.
#[derive(Debug, Default)]
pub(super) struct Watched {
    at: Duration,
    busy: [Duration; 3],
}

impl World {
    pub(super) fn watch(&mut self) {
        let now = self.queue.now();
        let (nodes, origin) = self.nodes.split_at(self.options.nodes);
        let sum = |pick: &dyn Fn(&super::Node) -> u32| -> Duration {
            nodes.iter().map(|node| self.network.busy(pick(node))).sum()
        };
        let busy = [self.network.busy(origin[0].card.0), sum(&|node| node.card.0), sum(&|node| node.card.1)];
        let elapsed = now.saturating_sub(self.watched.at).as_secs_f64();
        if elapsed > 0.0 {
            let count = f64::from(super::number(self.options.nodes.max(1)));
            let share = |at: usize, count: f64| {
                busy[at].saturating_sub(self.watched.busy[at]).as_secs_f64() / elapsed / count
            };
            let line = Busy { at: now, origin: share(0, 1.0), up: share(1, count), down: share(2, count) };
            self.report.busy.push(line);
        }
        self.watched = Watched { at: now, busy };
        let whole = self.layout.total_bytes().saturating_mul(1_000_000_000) / self.options.rate.max(1);
        let interval = Duration::from_nanos((whole / u64::from(INTERVALS)).max(1));
        self.queue.push(now + interval, Event::Watch);
    }
}
