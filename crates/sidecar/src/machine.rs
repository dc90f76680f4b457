//! What a sidecar does next about one model: the decisions, and nothing else.
//!
//! Law: after each [`Machine::handle`], [`Machine::poll`] is drained until it says `None`; of the outputs at most one is
//! answered by an input (all but `Sweep` and `End`), and nothing else is handled meanwhile. So one thing happens at a
//! time, in one order:
//!
//! ```text
//! Begun ─► Resolve ─► Sweep, Pull ─► Switch ─► Sweep, Resolve …
//!             │ nothing new                   (what was resolved may be old by now)
//!             └────► Ensure ─► Wait ─► Resolve …
//! ```
//!
//! Owns: that order, back-off, when a version is refused for good, and when a model counts as stale. Does not own: time,
//! files or the network; chance comes from a seed.

use std::{collections::VecDeque, time::Duration};

use modelpack::digest::Sha256Digest;

/// The first pause after a failure; each further one doubles it, up to the interval between looks at the tag.
const BACKOFF_MIN: Duration = Duration::from_secs(1);

/// Doublings that matter: beyond, every interval is reached.
const DOUBLINGS_MAX: u32 = 16;

/// What a machine is told once.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// How often the tag is looked at.
    pub poll: Duration,
    /// How many former versions stay.
    pub keep: usize,
    /// How long it goes on.
    pub until: Until,
    /// Where chance comes from, so that a fleet does not ask at the same moment.
    pub seed: u64,
}

/// How long a machine goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Until a version is there, or one attempt has failed.
    Present,
    /// Until its process ends.
    Told,
}

/// What has come of something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The process begins, and found this version in place, proved and unchanged.
    Begun(Option<Sha256Digest>),
    /// What the reference names now.
    Resolved(Result<Sha256Digest, String>),
    /// That version is there, proved, and seen by nobody; or why not.
    Pulled(Result<(), String>),
    /// It is in place, and its server has it; or the former one is in place again.
    Switched(Result<(), Refused>),
    /// The server has the version that is in place, or why not.
    Ensured(Result<(), String>),
    /// The pause is over.
    Due,
}

/// Why a version is not in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The server does not take it, and would not the next time.
    ForGood(String),
    /// It may do so later.
    ForNow(String),
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask what the reference names. Answered by `Resolved`.
    Resolve,
    /// Bring that version where nobody sees it. Answered by `Pulled`.
    Pull(Sha256Digest),
    /// Put it in place, and tell the server. Answered by `Switched`.
    Switch(Sha256Digest),
    /// See to it that the server has the version that is in place. Answered by `Ensured`.
    Ensure(Sha256Digest),
    /// Remove all versions but these.
    Sweep(Vec<Sha256Digest>),
    /// Do nothing for so long. Answered by `Due`.
    Wait(Duration),
    /// It is over.
    End(Ending),
}

/// How it ended, where it goes on until a version is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The version that the reference names is in place.
    Fresh,
    /// A former one is, and why no newer.
    Stale(String),
    /// None is, and why.
    Failed(String),
}

/// What a machine is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Nothing yet.
    Starting,
    /// Asking what the reference names.
    Resolving,
    /// Bringing a version.
    Pulling,
    /// Putting it in place.
    Switching,
    /// Asking the server whether it has it.
    Ensuring,
    /// Waiting for the next look.
    Waiting,
    /// It is over.
    Ended,
}

impl Phase {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Starting,
        Self::Resolving,
        Self::Pulling,
        Self::Switching,
        Self::Ensuring,
        Self::Waiting,
        Self::Ended,
    ];

    /// One word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Resolving => "resolving",
            Self::Pulling => "pulling",
            Self::Switching => "switching",
            Self::Ensuring => "ensuring",
            Self::Waiting => "waiting",
            Self::Ended => "ended",
        }
    }
}

/// The decisions about one model.
#[derive(Debug)]
pub struct Machine {
    rules: Rules,
    chance: fastrand::Rng,
    phase: Phase,
    /// In place.
    live: Option<Sha256Digest>,
    /// Formerly in place, the latest first.
    former: Vec<Sha256Digest>,
    /// Being pulled or put in place.
    coming: Option<Sha256Digest>,
    /// What the server does not take. It is not tried again until the reference names something else.
    refused: Option<Sha256Digest>,
    /// Why the version in place may not be what the reference names.
    stale: Option<String>,
    /// In a row.
    failures: u32,
    outputs: VecDeque<Output>,
}

impl Machine {
    /// A machine that has not begun.
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            chance: fastrand::Rng::with_seed(rules.seed),
            phase: Phase::Starting,
            live: None,
            former: Vec::new(),
            coming: None,
            refused: None,
            stale: None,
            failures: 0,
            outputs: VecDeque::new(),
        }
    }

    /// What it is doing.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The version in place.
    pub fn live(&self) -> Option<Sha256Digest> {
        self.live
    }

    /// The version that is on its way.
    pub fn coming(&self) -> Option<Sha256Digest> {
        self.coming
    }

    /// The version that the server does not take.
    pub fn refused(&self) -> Option<Sha256Digest> {
        self.refused
    }

    /// Why the version in place may not be what the reference names; `None` if it is, or where none is.
    pub fn stale(&self) -> Option<&str> {
        self.stale.as_deref().filter(|_| self.live.is_some())
    }

    /// Takes what has come of the last output.
    ///
    /// # Panics
    /// If it was waiting for something else.
    pub fn handle(&mut self, input: Input) {
        assert!(self.outputs.is_empty(), "what is to be done is taken before more is told");
        match (self.phase, input) {
            (Phase::Starting, Input::Begun(live)) => {
                self.live = live;
                self.resolve();
            }
            (Phase::Resolving, Input::Resolved(found)) => self.resolved(found),
            (Phase::Pulling, Input::Pulled(Ok(()))) => {
                let coming = self.coming.expect("what is pulled is on its way");
                self.begin(Phase::Switching, Output::Switch(coming));
            }
            (Phase::Pulling, Input::Pulled(Err(why))) => self.failed(why),
            (Phase::Switching, Input::Switched(done)) => self.switched(done),
            (Phase::Ensuring, Input::Ensured(Ok(()))) => {
                self.failures = if self.stale.is_some() { self.failures } else { 0 };
                self.rest();
            }
            (Phase::Ensuring, Input::Ensured(Err(_))) => {
                self.failures += 1;
                self.rest();
            }
            (Phase::Waiting, Input::Due) => self.resolve(),
            (phase, input) => panic!("{input:?} while {}", phase.name()),
        }
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn begin(&mut self, phase: Phase, output: Output) {
        self.phase = phase;
        self.outputs.push_back(output);
    }

    fn resolve(&mut self) {
        self.begin(Phase::Resolving, Output::Resolve);
    }

    fn resolved(&mut self, found: Result<Sha256Digest, String>) {
        let found = match found {
            Ok(found) => found,
            Err(why) => return self.failed(why),
        };
        if self.refused.is_some_and(|refused| refused != found) {
            self.refused = None;
        }
        if self.live == Some(found) {
            self.stale = None;
            self.ensure(Ending::Fresh);
        } else if self.refused == Some(found) {
            let why = self.stale.clone().unwrap_or_else(|| "the server does not take it".to_owned());
            // Nothing is gained by asking soon.
            self.failures = 0;
            self.ensure(Ending::Stale(why));
        } else {
            self.coming = Some(found);
            // Before it takes room: there are never more than may stay and one, or two.
            self.former.truncate(self.rules.keep.saturating_sub(1));
            self.sweep();
            self.begin(Phase::Pulling, Output::Pull(found));
        }
    }

    fn switched(&mut self, done: Result<(), Refused>) {
        let coming = self.coming.take().expect("what is put in place was on its way");
        match done {
            Ok(()) => {
                self.former.retain(|former| *former != coming);
                if let Some(former) = self.live.replace(coming) {
                    self.former.insert(0, former);
                }
                self.former.truncate(self.rules.keep);
                (self.failures, self.stale, self.refused) = (0, None, None);
                self.sweep();
                match self.rules.until {
                    Until::Present => self.end(Ending::Fresh),
                    // It may have moved since it was last asked for.
                    Until::Told => self.resolve(),
                }
            }
            Err(Refused::ForGood(why)) => {
                // Without one to go back to nothing else can be done but to try again.
                self.refused = self.live.map(|_| coming);
                self.sweep();
                self.failed(why);
            }
            Err(Refused::ForNow(why)) => self.failed(why),
        }
    }

    /// Goes on with what is in place, if anything is.
    fn failed(&mut self, why: String) {
        self.coming = None;
        self.failures += 1;
        self.stale = Some(why.clone());
        match (self.live, self.rules.until) {
            (Some(_), _) => self.ensure(Ending::Stale(why)),
            (None, Until::Present) => self.end(Ending::Failed(why)),
            (None, Until::Told) => self.rest(),
        }
    }

    /// With a version in place.
    fn ensure(&mut self, ending: Ending) {
        let live = self.live.expect("a version is in place");
        match self.rules.until {
            Until::Present => self.end(ending),
            Until::Told => self.begin(Phase::Ensuring, Output::Ensure(live)),
        }
    }

    fn sweep(&mut self) {
        let kept = self.live.iter().chain(&self.coming).chain(&self.former).copied().collect();
        self.outputs.push_back(Output::Sweep(kept));
    }

    fn end(&mut self, ending: Ending) {
        self.begin(Phase::Ended, Output::End(ending));
    }

    /// Between a tenth less and a tenth more than the interval; after failures sooner, but at least half of the
    /// back-off.
    fn rest(&mut self) {
        let poll = self.rules.poll;
        let pause = if self.failures == 0 {
            poll.mul_f64(0.9 + 0.2 * self.chance.f64())
        } else {
            let doublings = (self.failures - 1).min(DOUBLINGS_MAX);
            let backoff = BACKOFF_MIN.saturating_mul(1 << doublings).min(poll);
            backoff.mul_f64(0.5 + 0.5 * self.chance.f64())
        };
        self.begin(Phase::Waiting, Output::Wait(pause));
    }
}

#[cfg(test)]
mod tests;
