//! What peers measure, as it travels: to the scheduler, and on to whoever asks that.
//!
//! Owns: the checks of such a message. Does not own: measuring, or what follows from it (`planner`).

use std::time::Duration;

use planner::{
    Measured, SwarmLoad,
    capacity::{Foreign, Learned},
};

use crate::{
    WireError, control,
    convert::{artifact_id, bounded},
};

/// Swarms in one report, at most.
const SWARMS_MAX: usize = 64;

/// The message for a peer's traffic, sent and received in bytes per second, and what it has found out besides.
pub fn load_message((sent, received): (u64, u64), measured: &Measured) -> control::Load {
    let swarm = |load: &SwarmLoad| control::SwarmLoad {
        artifact: load.artifact.0.to_vec(),
        bytes_per_second: load.rate,
    };
    control::Load {
        sent_bytes_per_second: sent,
        received_bytes_per_second: received,
        learned: measured.learned.map(Into::into),
        foreign: measured.foreign.map(Into::into),
        swarms: measured.swarms.iter().take(SWARMS_MAX).map(swarm).collect(),
    }
}

/// What a peer has found out, of its message.
pub fn measured(load: control::Load) -> Result<Measured, WireError> {
    bounded("swarms", load.swarms.len(), SWARMS_MAX)?;
    let swarm = |load: control::SwarmLoad| {
        Ok(SwarmLoad { artifact: artifact_id(&load.artifact)?, rate: load.bytes_per_second })
    };
    Ok(Measured {
        learned: load.learned.map(Into::into),
        foreign: load.foreign.map(Into::into),
        swarms: load.swarms.into_iter().map(swarm).collect::<Result<_, WireError>>()?,
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time that is added to others: nobody has measured for longer.
fn age(millis: u64) -> Duration {
    const AGE_MAX: Duration = Duration::from_hours(24 * 365);
    Duration::from_millis(millis).min(AGE_MAX)
}

impl From<Learned> for control::LearnedCard {
    fn from(learned: Learned) -> Self {
        Self { bytes_per_second: learned.rate, full: learned.is_full, age_ms: millis(learned.age) }
    }
}

impl From<control::LearnedCard> for Learned {
    fn from(learned: control::LearnedCard) -> Self {
        Self { rate: learned.bytes_per_second, is_full: learned.full, age: age(learned.age_ms) }
    }
}

impl From<Foreign> for control::ForeignLoad {
    fn from(Foreign { sent, received, age }: Foreign) -> Self {
        let (sent_bytes_per_second, received_bytes_per_second) = (sent, received);
        Self { sent_bytes_per_second, received_bytes_per_second, age_ms: millis(age) }
    }
}

impl From<control::ForeignLoad> for Foreign {
    fn from(foreign: control::ForeignLoad) -> Self {
        let (sent, received) = (foreign.sent_bytes_per_second, foreign.received_bytes_per_second);
        Self { sent, received, age: age(foreign.age_ms) }
    }
}
