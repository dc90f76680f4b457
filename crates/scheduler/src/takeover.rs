//! Swarms that this scheduler takes over from another: how long it takes until it knows again what they are about.
//!
//! Owns: when a take-over begins and when it is news that more members have come. Does not own: what members say, or the
//! plan that follows (`planner`).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use planner::ArtifactId;

/// How long after a take-over a member that comes counts as part of it. Peers try the next scheduler within seconds.
const LASTS: Duration = Duration::from_secs(10);

/// One swarm.
#[derive(Debug)]
struct TakeOver {
    /// When the first of its members said hello.
    begin: Instant,
    /// Members of the last plan that was spoken of.
    told: usize,
}

/// All swarms that were taken over lately.
#[derive(Debug, Default)]
pub(crate) struct TakeOvers(BTreeMap<ArtifactId, TakeOver>);

impl TakeOvers {
    /// A member of a swarm that was not planned here comes with another scheduler's plan; `hello` is when it said so.
    /// Says whether it is the first.
    pub(crate) fn begin(&mut self, artifact: ArtifactId, hello: Instant) -> bool {
        let is_first = !self.0.contains_key(&artifact);
        self.0.entry(artifact).or_insert(TakeOver { begin: hello, told: 0 });
        is_first
    }

    /// A plan for so many members goes out at `now`; says how long after the begin of a take-over, if more have come
    /// since the last one.
    pub(crate) fn planned(&mut self, now: Instant, artifact: ArtifactId, members: usize) -> Option<Duration> {
        self.0.retain(|_, at| now.saturating_duration_since(at.begin) < LASTS);
        let at = self.0.get_mut(&artifact).filter(|at| at.told < members)?;
        at.told = members;
        Some(now.saturating_duration_since(at.begin))
    }

    /// Nobody is here any more.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

    #[test]
    fn it_counts_from_the_first_hello_and_speaks_when_more_have_come() {
        let (mut all, start) = (TakeOvers::default(), Instant::now());
        let after = |millis| start + Duration::from_millis(millis);
        assert_eq!(all.planned(after(0), ARTIFACT, 3), None, "nothing was taken over");
        assert!(all.begin(ARTIFACT, after(0)));
        assert!(!all.begin(ARTIFACT, after(20)));
        assert_eq!(all.planned(after(70), ARTIFACT, 7), Some(Duration::from_millis(70)));
        assert_eq!(all.planned(after(80), ARTIFACT, 7), None);
        assert_eq!(all.planned(after(90), ARTIFACT, 6), None);
        assert_eq!(all.planned(after(400), ARTIFACT, 8), Some(Duration::from_millis(400)));
        assert_eq!(all.planned(after(400), ArtifactId([8; 32]), 9), None);
        assert_eq!(all.planned(start + LASTS, ARTIFACT, 9), None, "who comes later is no part of it");
        assert!(all.begin(ARTIFACT, start + LASTS), "the next one is another");
    }
}
