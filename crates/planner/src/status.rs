//! What a planner knows, as a person asks for it. Does not own how it is shown, and decides nothing.

use std::time::Duration;

use crate::capacity::{Foreign, Learned};
use crate::id::{ArtifactId, PeerId};
use crate::place::Place;
use crate::plan::StripeSource;
use crate::planner::{Planner, Registered};
use crate::priority::Priority;
use crate::quarantine::{Alarm, Standing};
use crate::swarm_state::{MemberState, SwarmState};

/// One peer whose stream is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// The peer.
    pub peer: PeerId,
    /// Its name for people.
    pub name: String,
    /// HOST:PORT of its control service.
    pub address: String,
    /// What its network card does in each direction, in bytes per second, if it knows.
    pub nic_rate: Option<u64>,
    /// What it has learned of its card, if anything.
    pub learned: Option<Learned>,
    /// What others move on its card, if it can read that.
    pub foreign: Option<Foreign>,
    /// Bytes per second that it sends, as it last reported.
    pub sent: u64,
    /// Bytes per second that it receives.
    pub received: u64,
    /// What it is trusted with.
    pub standing: Standing,
}

impl PeerStatus {
    fn new(
        peer: PeerId,
        registered: &Registered,
        (sent, received): (u64, u64),
        (learned, foreign): (Option<Learned>, Option<Foreign>),
    ) -> Self {
        Self {
            learned,
            foreign,
            peer,
            name: registered.contact.name.to_string(),
            address: registered.contact.address.to_string(),
            nic_rate: registered.nic_rate,
            sent,
            received,
            standing: registered.standing,
        }
    }
}

/// One swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwarmStatus {
    /// What it is about.
    pub artifact: ArtifactId,
    /// The artifact's size in bytes.
    pub bytes: u64,
    /// Members that fetch the artifact or have fetched it.
    pub members: u32,
    /// Those of them that have everything.
    pub complete: u32,
    /// Members that announce it: they had it from the start, and count as the origin.
    pub seeds: u32,
    /// What of `bytes`, once for each of `members`, is there, in thousandths; 1000 only when all of it is.
    pub permille: u16,
    /// How urgent it is to those who want it.
    pub priority: Priority,
}

impl SwarmStatus {
    pub(crate) fn new(artifact: ArtifactId, swarm: &SwarmState) -> Self {
        let (mut members, mut complete, mut seeds, mut pieces) = (0, 0, 0, 0_u64);
        for (have, is_seed) in swarm.holdings() {
            if is_seed {
                seeds += 1;
                continue;
            }
            members += 1;
            complete += u32::from(have.is_full());
            pieces += u64::from(have.len());
        }
        let all = u64::from(members) * u64::from(swarm.piece_count());
        let permille =
            (pieces * 1000).checked_div(all).map_or(1000, |part| u16::try_from(part).unwrap_or(1000));
        let (bytes, priority) = (swarm.bytes(), swarm.priority());
        Self { artifact, bytes, members, complete, seeds, permille, priority }
    }
}

/// The plan of one swarm as it is now: everybody's part of it.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanStatus {
    /// The artifact's size in bytes.
    pub bytes: u64,
    /// How many pieces it has.
    pub piece_count: u32,
    /// The plan's number.
    pub epoch: u64,
    /// Consecutive pieces that stay in one stripe.
    pub stripe_pieces: u32,
    /// How many stripes there are.
    pub stripe_count: u32,
    /// As in [`crate::PeerPlan`], for those who lack something.
    pub finish: Option<Duration>,
    /// As in [`crate::PeerPlan`].
    pub bound: Option<Duration>,
    /// Members.
    pub members: Vec<MemberStatus>,
    /// How many there are.
    pub member_count: u32,
}

/// One member's part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The member.
    pub peer: PeerId,
    /// Its name for people.
    pub name: String,
    /// What its network card does in each direction, in bytes per second, if it knows.
    pub nic_rate: Option<u64>,
    /// What of the card the plan counts with, in bytes per second, if that is known: what it does, given or learned, less
    /// what others move there.
    pub counts: Option<u64>,
    /// Where it stands.
    pub place: Place,
    /// Whether it announces the artifact.
    pub is_seed: bool,
    /// How many pieces it has.
    pub pieces: u32,
    /// Where it gets each stripe.
    pub sources: Vec<StripeSource>,
}

/// A case against a peer, and for how long it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlarmStatus {
    /// The case.
    pub alarm: Alarm,
    /// For how long nobody has accused it.
    pub accused_ago: Duration,
    /// After how long its standing changes by itself, if nobody accuses it again.
    pub left: Duration,
}

impl From<(&MemberState, Vec<StripeSource>)> for MemberStatus {
    fn from((member, sources): (&MemberState, Vec<StripeSource>)) -> Self {
        Self {
            peer: member.peer,
            name: member.facts.contact.name.to_string(),
            nic_rate: member.facts.nic_rate,
            counts: member.counts(),
            place: member.facts.place.clone(),
            is_seed: member.is_seed,
            pieces: member.have.len(),
            sources,
        }
    }
}

impl Planner {
    /// Every peer whose stream is open.
    pub fn peers(&self) -> impl Iterator<Item = PeerStatus> + '_ {
        self.registered().map(|(peer, registered)| {
            let load = self.load(*peer).unwrap_or_default();
            PeerStatus::new(*peer, registered, load, self.measured_of(*peer))
        })
    }

    /// Every swarm. It counts each member's pieces.
    pub fn swarms(&self) -> impl Iterator<Item = SwarmStatus> + '_ {
        self.swarm_states().map(|(artifact, swarm)| SwarmStatus::new(*artifact, swarm))
    }

    /// The plan of a swarm as it is now, with its first `members_max` members; `None` if nobody has or wants the
    /// artifact.
    pub fn plan_of(&self, artifact: &ArtifactId, members_max: usize) -> Option<PlanStatus> {
        let swarm = self.swarm_state(artifact)?;
        let (finish, bound) = swarm.predict();
        Some(PlanStatus {
            bytes: swarm.bytes(),
            piece_count: swarm.piece_count(),
            epoch: swarm.epoch(),
            stripe_pieces: swarm.stripe_pieces(),
            stripe_count: swarm.stripe_count(),
            finish,
            bound,
            members: swarm.sources().take(members_max).map(MemberStatus::from).collect(),
            member_count: u32::try_from(swarm.member_count()).unwrap_or(u32::MAX),
        })
    }

    /// How many swarms there are, and how many members they have together.
    pub fn swarm_counts(&self) -> (usize, usize) {
        let members = self.swarm_states().map(|(_, swarm)| swarm.member_count());
        (self.swarm_states().len(), members.sum())
    }

    /// Every peer that is not in good standing at `now`, and for how long.
    pub fn alarms_at(&self, now: Duration) -> impl Iterator<Item = AlarmStatus> + '_ {
        self.cases().map(move |(alarm, until)| AlarmStatus {
            accused_ago: now.saturating_sub(alarm.last_accused),
            left: until.saturating_sub(now),
            alarm,
        })
    }
}

#[cfg(test)]
mod tests {
    use modelpack::layout::Run;

    use super::*;
    use crate::{HostAddr, Input, Progress};

    const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
    const SEED: u8 = 4;

    /// A planner with a peer for each of these, that has so many of four pieces. The fourth is a seed.
    fn planner(have: &[u32]) -> Planner {
        let mut planner = Planner::new();
        for (number, have) in (1..).zip(have) {
            let (peer, address, name) =
                (PeerId::new([number; 16]), format!("10.0.0.{number}:7200"), String::new());
            let host = HostAddr::new([10, 0, 0, number].into());
            planner.handle(
                Duration::ZERO,
                Input::Register { peer, address, name, nic_rate: None, place: Place::default(), host },
            );
            planner.handle(
                Duration::ZERO,
                Input::Join {
                    peer,
                    artifact: ARTIFACT,
                    bytes: 4 << 20,
                    piece_count: 4,
                    origin_ok: true,
                    is_seed: number == SEED,
                    have: vec![Run::new(0, *have)],
                    progress: Progress::default(),
                },
            );
            while planner.poll().is_some() {}
        }
        planner
    }

    #[test]
    fn a_swarm_is_as_far_as_its_members_but_for_seeds() {
        let planner = planner(&[4, 3, 0, 4]);
        let swarms: Vec<_> = planner.swarms().collect();
        let expected = SwarmStatus {
            artifact: ARTIFACT,
            bytes: 4 << 20,
            members: 3,
            complete: 1,
            seeds: 1,
            permille: 583,
            priority: Priority::Normal,
        };
        assert_eq!(swarms, [expected]);
        assert_eq!(planner.swarm_counts(), (1, 4));
        assert_eq!(planner.peers().map(|peer| peer.standing).collect::<Vec<_>>(), [Standing::Good; 4]);
    }

    #[test]
    fn a_plan_names_everybodys_sources() {
        let planner = planner(&[1, 0, 0]);
        let plan = planner.plan_of(&ARTIFACT, 9).expect("there is one");
        assert_eq!((plan.bytes, plan.piece_count, plan.stripe_count, plan.member_count), (4 << 20, 4, 4, 3));
        assert_eq!(plan.members.iter().map(|member| member.pieces).collect::<Vec<_>>(), [1, 0, 0]);
        for stripe in 0..4 {
            let entrant = |member: &&MemberStatus| member.sources[stripe] == StripeSource::Origin;
            let entrants: Vec<_> = plan.members.iter().filter(entrant).map(|member| member.peer).collect();
            let [entrant] = entrants[..] else { panic!("{entrants:?}") };
            let others = plan.members.iter().filter(|member| member.peer != entrant);
            assert!(
                others
                    .map(|member| member.sources[stripe])
                    .all(|source| matches!(source, StripeSource::Parent(_)))
            );
        }
        let first = planner.plan_of(&ARTIFACT, 1).expect("there is one");
        assert_eq!((first.members.len(), first.member_count), (1, 3));
        assert_eq!(planner.plan_of(&ArtifactId([8; 32]), 9), None);
    }

    #[test]
    fn an_alarm_says_how_long_it_holds() {
        let mut planner = planner(&[4, 3, 0, 4]);
        let about = PeerId::new([1; 16]);
        for (by, at) in [(2, 10), (3, 20)] {
            let peer = PeerId::new([by; 16]);
            planner.handle(
                Duration::from_secs(at),
                Input::Complaint { peer, artifact: ARTIFACT, about, piece: 1 },
            );
            while planner.poll().is_some() {}
        }
        let now = Duration::from_secs(50);
        let [alarm] = planner.alarms_at(now).collect::<Vec<_>>().try_into().expect("one");
        let AlarmStatus { alarm, accused_ago, left } = alarm;
        assert_eq!((alarm.peer, alarm.standing, alarm.accusers), (about, Standing::Quarantined, 2));
        assert_eq!(accused_ago, Duration::from_secs(30));
        let until = planner.next_wake().expect("it fades");
        assert_eq!(now + left, until);
        assert_eq!((planner.count_of(Standing::Quarantined), planner.count_of(Standing::Suspect)), (1, 0));
    }
}
