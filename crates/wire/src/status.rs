//! What a scheduler knows of its fleet, as it travels to whoever asks.
//!
//! Owns: how much of it one message holds, and the checks of such a message. Does not own: what is known (`planner`), or
//! how it is shown.

use std::time::Duration;

use planner::{Alarm, AlarmStatus, Charge, PeerStatus, Planner, Standing, SwarmStatus};

use crate::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    control::{self, StatusReply},
    convert::{self, bounded},
    priority,
};

/// Peers that are listed, at most: with [`ALARMS_MAX`] of at most ~450 bytes each they fit a message.
pub const PEERS_MAX: usize = 4096;

/// Swarms that are listed, at most.
pub const SWARMS_MAX: usize = 4096;

/// Alarms that are listed, at most.
pub const ALARMS_MAX: usize = 1024;

/// The thousandths of a whole.
const PERMILLE_MAX: u16 = 1000;

/// What one scheduler knows. Where a fleet is larger than a message, the lists hold its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetStatus {
    /// HOST:PORT of the living scheduler that peers prefer to this one; `None` if this one plans.
    pub redirect: Option<String>,
    /// Peers whose stream is open.
    pub peers: Vec<PeerStatus>,
    /// How many there are.
    pub peer_count: u32,
    /// Swarms.
    pub swarms: Vec<SwarmStatus>,
    /// How many there are.
    pub swarm_count: u32,
    /// Peers that are not in good standing, also those that have left.
    pub alarms: Vec<AlarmStatus>,
    /// How many there are.
    pub alarm_count: u32,
}

impl FleetStatus {
    /// What a scheduler knows at `now`, on the clock that its planner was told.
    pub fn of(planner: &Planner, redirect: Option<String>, now: Duration) -> Self {
        let (peers, peer_count) = first(planner.peers(), PEERS_MAX);
        let (swarms, swarm_count) = first(planner.swarms(), SWARMS_MAX);
        let (alarms, alarm_count) = first(planner.alarms_at(now), ALARMS_MAX);
        Self { redirect, peers, peer_count, swarms, swarm_count, alarms, alarm_count }
    }
}

/// The first of all, and how many there are.
fn first<T>(mut all: impl Iterator<Item = T>, max: usize) -> (Vec<T>, u32) {
    let listed: Vec<T> = all.by_ref().take(max).collect();
    let count = listed.len() + all.count();
    (listed, u32::try_from(count).unwrap_or(u32::MAX))
}

impl From<&FleetStatus> for StatusReply {
    fn from(status: &FleetStatus) -> Self {
        Self {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            redirect: status.redirect.clone().unwrap_or_default(),
            peers: status.peers.iter().map(control::PeerStatus::from).collect(),
            peer_count: status.peer_count,
            swarms: status.swarms.iter().map(control::SwarmStatus::from).collect(),
            swarm_count: status.swarm_count,
            alarms: status.alarms.iter().map(control::AlarmStatus::from).collect(),
            alarm_count: status.alarm_count,
        }
    }
}

impl TryFrom<StatusReply> for FleetStatus {
    type Error = WireError;

    fn try_from(reply: StatusReply) -> Result<Self, WireError> {
        check_version(reply.protocol_version)?;
        bounded("peers", reply.peers.len(), PEERS_MAX)?;
        bounded("swarms", reply.swarms.len(), SWARMS_MAX)?;
        bounded("alarms", reply.alarms.len(), ALARMS_MAX)?;
        let redirect = Some(reply.redirect).filter(|address| !address.is_empty());
        Ok(Self {
            redirect: redirect.map(convert::address).transpose()?,
            peers: reply.peers.into_iter().map(PeerStatus::try_from).collect::<Result<_, _>>()?,
            peer_count: reply.peer_count,
            swarms: reply.swarms.into_iter().map(SwarmStatus::try_from).collect::<Result<_, _>>()?,
            swarm_count: reply.swarm_count,
            alarms: reply.alarms.into_iter().map(AlarmStatus::try_from).collect::<Result<_, _>>()?,
            alarm_count: reply.alarm_count,
        })
    }
}

impl From<Standing> for control::Standing {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Good => Self::Good,
            Standing::Suspect => Self::Suspect,
            Standing::Quarantined => Self::Quarantined,
        }
    }
}

fn standing(number: i32) -> Result<Standing, WireError> {
    match control::Standing::try_from(number) {
        Ok(control::Standing::Good) => Ok(Standing::Good),
        Ok(control::Standing::Suspect) => Ok(Standing::Suspect),
        Ok(control::Standing::Quarantined) => Ok(Standing::Quarantined),
        Err(_) => Err(WireError::Invalid { field: "standing", why: "it is unknown" }),
    }
}

impl From<Option<Charge>> for control::Charge {
    fn from(charge: Option<Charge>) -> Self {
        match charge {
            None => Self::None,
            Some(Charge::Silence) => Self::Silence,
            Some(Charge::WrongBytes) => Self::WrongBytes,
        }
    }
}

fn charge(number: i32) -> Result<Option<Charge>, WireError> {
    match control::Charge::try_from(number) {
        Ok(control::Charge::None) => Ok(None),
        Ok(control::Charge::Silence) => Ok(Some(Charge::Silence)),
        Ok(control::Charge::WrongBytes) => Ok(Some(Charge::WrongBytes)),
        Err(_) => Err(WireError::Invalid { field: "charge", why: "it is unknown" }),
    }
}

impl From<&PeerStatus> for control::PeerStatus {
    fn from(status: &PeerStatus) -> Self {
        Self {
            peer_id: status.peer.bytes().to_vec(),
            name: status.name.clone(),
            control_address: status.address.clone(),
            nic_bytes_per_second: status.nic_rate.unwrap_or(0),
            sent_bytes_per_second: status.sent,
            received_bytes_per_second: status.received,
            standing: control::Standing::from(status.standing).into(),
            learned: status.learned.map(Into::into),
            foreign: status.foreign.map(Into::into),
        }
    }
}

impl TryFrom<control::PeerStatus> for PeerStatus {
    type Error = WireError;

    fn try_from(status: control::PeerStatus) -> Result<Self, WireError> {
        Ok(Self {
            peer: convert::peer_id(&status.peer_id)?,
            name: convert::name(status.name)?,
            address: convert::address(status.control_address)?,
            nic_rate: Some(status.nic_bytes_per_second).filter(|rate| *rate > 0),
            sent: status.sent_bytes_per_second,
            received: status.received_bytes_per_second,
            standing: standing(status.standing)?,
            learned: status.learned.map(Into::into),
            foreign: status.foreign.map(Into::into),
        })
    }
}

impl From<&SwarmStatus> for control::SwarmStatus {
    fn from(status: &SwarmStatus) -> Self {
        Self {
            artifact: status.artifact.0.to_vec(),
            artifact_bytes: status.bytes,
            members: status.members,
            complete: status.complete,
            seeds: status.seeds,
            permille: status.permille.into(),
            priority: control::Priority::from(status.priority).into(),
        }
    }
}

impl TryFrom<control::SwarmStatus> for SwarmStatus {
    type Error = WireError;

    fn try_from(status: control::SwarmStatus) -> Result<Self, WireError> {
        let permille = u16::try_from(status.permille).ok().filter(|part| *part <= PERMILLE_MAX);
        Ok(Self {
            artifact: convert::artifact_id(&status.artifact)?,
            bytes: status.artifact_bytes,
            members: status.members,
            complete: status.complete,
            seeds: status.seeds,
            permille: permille.ok_or(WireError::Invalid { field: "permille", why: "more than all of it" })?,
            priority: priority::of_number(status.priority),
        })
    }
}

impl From<&AlarmStatus> for control::AlarmStatus {
    fn from(AlarmStatus { alarm, accused_ago, left }: &AlarmStatus) -> Self {
        let millis = |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            peer_id: alarm.peer.bytes().to_vec(),
            name: alarm.name.clone(),
            control_address: alarm.address.clone(),
            standing: control::Standing::from(alarm.standing).into(),
            accusers: u32::try_from(alarm.accusers).unwrap_or(u32::MAX),
            accused_ago_ms: millis(accused_ago),
            left_ms: millis(left),
            charge: control::Charge::from(alarm.charge).into(),
        }
    }
}

impl TryFrom<control::AlarmStatus> for AlarmStatus {
    type Error = WireError;

    fn try_from(status: control::AlarmStatus) -> Result<Self, WireError> {
        let alarm = Alarm {
            peer: convert::peer_id(&status.peer_id)?,
            name: convert::name(status.name)?,
            address: convert::address(status.control_address)?,
            standing: standing(status.standing)?,
            charge: charge(status.charge)?,
            accusers: status.accusers as usize,
            // On the other side's clock, which means nothing here.
            last_accused: Duration::ZERO,
        };
        let (accused_ago, left) =
            (Duration::from_millis(status.accused_ago_ms), Duration::from_millis(status.left_ms));
        Ok(Self { alarm, accused_ago, left })
    }
}
