//! What happens to peers while a broadcast runs.
//!
//! Owns: doing it when its moment has come. Does not own: who is hit (`cast`), what moves the model.

use anyhow::{bail, ensure};

use super::{Cast, Moment, Role, foreign::Foreign};
use crate::{
    broadcast::{lab::Lab, system::Standing},
    output::tell,
};

/// What is still to happen in one run, and what happens all the time.
#[derive(Debug)]
pub(crate) struct Acts {
    pending: Vec<(Moment, usize, Act)>,
    /// Kept until the run is over.
    foreign: Vec<Foreign>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Kill,
    Join,
}

impl Acts {
    /// The run begins: foreign traffic does.
    pub(crate) fn begin(lab: &Lab) -> anyhow::Result<Self> {
        let (mut pending, mut foreign) = (Vec::new(), Vec::new());
        for (peer, role) in &lab.cast.roles {
            match role {
                Role::Killed(moment) => pending.push((*moment, *peer, Act::Kill)),
                Role::Late(moment) => pending.push((*moment, *peer, Act::Join)),
                Role::Busy(rate) => {
                    let Some(stranger) = &lab.stranger else { bail!("there is nobody to be busy with") };
                    foreign.push(Foreign::begin(&lab.peers[*peer], stranger, *rate)?);
                }
                Role::Slow(_) | Role::Corrupt => {}
            }
        }
        Ok(Self { pending, foreign })
    }

    /// Does what is due when the peers that are well have that share of what they are to have; says who begins now.
    pub(crate) fn due(&mut self, share: f64, standing: &mut dyn Standing) -> anyhow::Result<Vec<usize>> {
        let (due, pending) = self.pending.drain(..).partition(|(moment, _, _)| share >= moment.0);
        self.pending = pending;
        let mut joined = Vec::new();
        for (_, peer, act) in due {
            let what = match act {
                Act::Kill => {
                    standing.kill(peer);
                    "is killed"
                }
                Act::Join => {
                    standing.start(peer)?;
                    joined.push(peer);
                    "begins"
                }
            };
            tell(&format!("p{} {what} at {:.0} %", peer + 1, share * 100.0));
        }
        Ok(joined)
    }

    /// Whether all of it happened, foreign traffic included.
    pub(crate) fn end(self) -> anyhow::Result<()> {
        ensure!(
            self.pending.is_empty(),
            "the broadcast was over before its faults: it needs a larger --size"
        );
        self.foreign.into_iter().try_for_each(Foreign::end)
    }
}

impl Cast {
    /// Whether that peer begins when the clock starts.
    pub(crate) fn begins(&self, peer: usize) -> bool {
        !matches!(self.roles.get(&peer), Some(Role::Late(_) | Role::Corrupt))
    }

    /// Whether foreign traffic passes somebody's card.
    pub(crate) fn is_busy(&self) -> bool {
        self.roles.values().any(|role| matches!(role, Role::Busy(_)))
    }
}
