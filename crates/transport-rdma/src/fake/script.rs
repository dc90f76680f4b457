//! Faults by script, in front of any rail: a fake one, or a real one in the tests that need a device.
//!
//! Owns: what is held back. Does not own: what a card does by itself.

use std::{
    collections::BTreeMap,
    ops::Range,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use memory::Region;
use verbs::VerbsError;

use crate::{
    Endpoint, RailInfo,
    rail::{Done, Failure, FailureKind, Memory, Purpose, QueuePair, Rail, RailEvent, Unposted, Work},
};

/// What the rails that it is in front of do wrong. Clones are one script.
#[derive(Clone, Default)]
pub struct Script(Arc<Mutex<Rules>>);

#[derive(Default)]
struct Rules {
    holds_works: bool,
    withholds_completions: bool,
    qps: Vec<Weak<Mutex<Held>>>,
}

impl Script {
    /// From now on reads stay outstanding: they reach no card until [`Self::release`].
    pub fn hold(&self) {
        self.lock().holds_works = true;
    }

    /// Lets go what was held, and completions come out from now on; those that were withheld stay so.
    pub fn release(&self) {
        let qps = {
            let mut rules = self.lock();
            rules.holds_works = false;
            rules.withholds_completions = false;
            std::mem::take(&mut rules.qps)
        };
        for qp in &qps {
            if let Some(qp) = qp.upgrade() {
                qp.lock().unwrap_or_else(PoisonError::into_inner).post_held();
            }
        }
        self.lock().qps.extend(qps);
    }

    /// From now on no completion comes out: cards write memory, and nobody hears of it.
    pub fn withhold_completions(&self) {
        self.lock().withholds_completions = true;
    }

    fn lock(&self) -> MutexGuard<'_, Rules> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rail that does as a script says.
pub(crate) struct Scripted {
    rail: Arc<dyn Rail>,
    script: Script,
    /// Completions that were withheld, by QP.
    withheld: Arc<Mutex<BTreeMap<u32, Vec<Done>>>>,
}

impl Scripted {
    pub(crate) fn new(rail: Arc<dyn Rail>, script: &Script) -> Self {
        Self { rail, script: script.clone(), withheld: Arc::default() }
    }
}

/// A QP and the works that did not reach it.
struct Held {
    qp: Option<Box<dyn QueuePair>>,
    works: Vec<Work>,
}

impl Held {
    fn post_held(&mut self) {
        let works = std::mem::take(&mut self.works);
        if let Some(qp) = &mut self.qp
            && let Err(unposted) = qp.post(works)
        {
            self.works = unposted.works;
        }
    }
}

impl Rail for Scripted {
    fn info(&self) -> &RailInfo {
        self.rail.info()
    }

    fn works_max(&self) -> usize {
        self.rail.works_max()
    }

    fn register(
        &self,
        region: &Arc<Region>,
        range: Range<usize>,
        purpose: Purpose,
    ) -> Result<Memory, VerbsError> {
        self.rail.register(region, range, purpose)
    }

    fn queue_pair(&self, purpose: Purpose) -> Result<Box<dyn QueuePair>, VerbsError> {
        let qp = self.rail.queue_pair(purpose)?;
        let number = qp.number();
        let held = Arc::new(Mutex::new(Held { qp: Some(qp), works: Vec::new() }));
        let mut rules = self.script.lock();
        rules.qps.retain(|qp| qp.strong_count() > 0);
        rules.qps.push(Arc::downgrade(&held));
        drop(rules);
        let (script, withheld) = (self.script.clone(), Arc::clone(&self.withheld));
        Ok(Box::new(ScriptedQp { number, held, script, withheld }))
    }

    fn poll(&self, done: &mut Vec<Done>) -> Result<(), VerbsError> {
        let start = done.len();
        self.rail.poll(done)?;
        if self.script.lock().withholds_completions {
            let mut withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner);
            for done in done.drain(start..) {
                withheld.entry(done.qp).or_default().push(done);
            }
        }
        Ok(())
    }

    fn arm(&self) -> Result<(), VerbsError> {
        self.rail.arm()
    }

    fn clear(&self) {
        self.rail.clear();
    }

    fn completions(&self) -> BorrowedFd<'_> {
        self.rail.completions()
    }

    fn events(&self) -> BorrowedFd<'_> {
        self.rail.events()
    }

    fn next_event(&self) -> Option<RailEvent> {
        self.rail.next_event()
    }
}

struct ScriptedQp {
    number: u32,
    held: Arc<Mutex<Held>>,
    script: Script,
    withheld: Arc<Mutex<BTreeMap<u32, Vec<Done>>>>,
}

impl ScriptedQp {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueuePair for ScriptedQp {
    fn number(&self) -> u32 {
        self.number
    }

    fn connect(&mut self, peer: &Endpoint, own: &Endpoint) -> Result<(), VerbsError> {
        self.held().qp.as_mut().map_or(Ok(()), |qp| qp.connect(peer, own))
    }

    fn post(&mut self, mut works: Vec<Work>) -> Result<(), Unposted> {
        let mut held = self.held();
        // Under the QP's lock, so that a release that comes now finds the works.
        if self.script.lock().holds_works {
            held.works.append(&mut works);
            return Ok(());
        }
        held.qp.as_mut().map_or(Ok(()), |qp| qp.post(works))
    }

    fn destroy(self: Box<Self>) -> Vec<Done> {
        let (qp, works) = {
            let mut held = self.held();
            (held.qp.take(), std::mem::take(&mut held.works))
        };
        let mut done = qp.map(QueuePair::destroy).unwrap_or_default();
        let failure = || Failure::new(FailureKind::Path, "the queue pair was destroyed");
        done.extend(works.into_iter().map(|Work { id, sink, .. }| Done {
            id,
            qp: self.number,
            sink,
            result: Err(failure()),
        }));
        let withheld = self.withheld.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
        done.extend(withheld.into_iter().flatten().map(|done| Done { result: Err(failure()), ..done }));
        done
    }
}
