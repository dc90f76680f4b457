//! Accusations, what they amount to, and how they fade. Does not own: the plans that follow.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::id::ArtifactId;
use crate::place::Place;
use crate::plan::{PeerPlan, StripeSource};
use crate::planner::{Input, Output, Planner};
use modelpack::layout::Run;

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
const PIECES: u32 = 64;
const MINUTE: Duration = Duration::from_mins(1);

fn id(number: u8) -> PeerId {
    PeerId::new([number; 16])
}

fn host(number: u8) -> HostAddr {
    HostAddr::new(Ipv4Addr::new(10, 0, 0, number).into())
}

/// A fleet as its scheduler sees it, with the last plan that each peer was told.
struct Fleet {
    planner: Planner,
    now: Duration,
    plans: BTreeMap<PeerId, PeerPlan>,
    alarms: Vec<Alarm>,
}

impl Fleet {
    fn new() -> Self {
        Self { planner: Planner::new(), now: Duration::ZERO, plans: BTreeMap::new(), alarms: Vec::new() }
    }

    fn tell(&mut self, input: Input) {
        self.planner.handle(self.now, input);
        while let Some(output) = self.planner.poll() {
            match output {
                Output::Plan { to, plan, .. } => drop(self.plans.insert(to, plan)),
                Output::Standing(alarm) => self.alarms.push(alarm),
            }
        }
    }

    fn register(&mut self, number: u8, host: HostAddr) {
        let (peer, address, name) = (id(number), format!("10.0.0.{number}:7200"), format!("node-{number}"));
        self.tell(Input::Register { peer, address, name, nic_rate: None, place: Place::default(), host });
    }

    fn join(&mut self, number: u8, origin_ok: bool, have: Vec<Run>) {
        let (peer, artifact, bytes) = (id(number), ARTIFACT, u64::from(PIECES) << 20);
        let is_seed = false;
        let progress = crate::Progress::default();
        let piece_count = PIECES;
        self.tell(Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, have, progress });
    }

    /// Joins with everything, as an origin.
    fn seed(&mut self, number: u8) {
        let (peer, artifact, bytes) = (id(number), ARTIFACT, u64::from(PIECES) << 20);
        let (progress, have) = (crate::Progress::default(), everything());
        let (is_seed, origin_ok, piece_count) = (true, false, PIECES);
        self.tell(Input::Join { peer, artifact, bytes, piece_count, origin_ok, is_seed, have, progress });
    }

    fn accuse(&mut self, by: u8, about: u8) {
        self.tell(Input::Complaint { peer: id(by), artifact: ARTIFACT, about: id(about), piece: 3 });
    }

    fn miss(&mut self, by: u8, about: u8) {
        self.tell(Input::Silence { peer: id(by), artifact: ARTIFACT, about: id(about) });
    }

    /// Lets time pass as a scheduler does: it wakes when the planner says so.
    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(at) = self.planner.next_wake().filter(|at| *at <= until) {
            assert!(at >= self.now, "time does not go back");
            self.now = at;
            self.tell(Input::Tick);
        }
        self.now = until;
        self.tell(Input::Tick);
    }

    fn names(&self, reader: u8, source: u8) -> bool {
        self.plans.get(&id(reader)).is_some_and(|plan| names(plan, id(source)))
    }

    fn is_parent(&self, source: u8) -> bool {
        let is_part =
            |plan: &PeerPlan| plan.stripes.iter().any(|part| part.source == StripeSource::Parent(id(source)));
        self.plans.values().any(is_part)
    }
}

fn names(plan: &PeerPlan, source: PeerId) -> bool {
    plan.members.iter().any(|member| member.id == source)
        || plan.stripes.iter().any(|part| {
            part.source == StripeSource::Parent(source)
                || part.backups.contains(&source)
                || part.before.iter().any(|before| before.peer == source)
        })
}

/// `count` peers on a host each, all of which want everything and read the origin.
fn fleet(count: u8) -> Fleet {
    let mut fleet = Fleet::new();
    for number in 1..=count {
        fleet.register(number, host(number));
        fleet.join(number, true, Vec::new());
    }
    fleet
}

fn everything() -> Vec<Run> {
    vec![Run::new(0, PIECES)]
}

#[test]
fn one_accuser_makes_a_suspect_two_a_quarantine_and_time_takes_both_back() {
    let mut fleet = fleet(5);
    assert!(fleet.is_parent(5));
    fleet.accuse(1, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect);
    assert!(!fleet.is_parent(5), "while others can serve");
    assert!(!fleet.names(1, 5), "who accuses it is not sent there again");
    assert!(fleet.names(2, 5), "others may be");
    fleet.accuse(1, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect, "saying it again does not make it truer");
    fleet.accuse(2, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Quarantined);
    assert!((1..5).all(|reader| !fleet.names(reader, 5)));
    assert!(fleet.plans[&id(5)].stripes.iter().all(|part| part.source != StripeSource::None), "it may read");
    fleet.wait(11 * MINUTE);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect);
    fleet.wait(10 * MINUTE);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Good);
    assert!(fleet.is_parent(5) && fleet.names(1, 5));
    assert_eq!(fleet.planner.alarms().count(), 0);
    let said: Vec<_> = fleet.alarms.iter().map(|alarm| (alarm.name.as_str(), alarm.standing)).collect();
    assert_eq!(
        said,
        [Standing::Suspect, Standing::Quarantined, Standing::Suspect, Standing::Good]
            .map(|at| ("node-5", at))
    );
}

#[test]
fn a_restart_does_not_wash_a_peer_clean_and_leaving_does_not_hide_it() {
    let mut fleet = fleet(4);
    fleet.accuse(1, 4);
    fleet.tell(Input::Gone { peer: id(4) });
    fleet.accuse(2, 4);
    fleet.register(9, host(4));
    fleet.join(9, true, Vec::new());
    assert_eq!(fleet.planner.standing(id(9)), Standing::Quarantined);
    assert!((1..4).all(|reader| !fleet.names(reader, 9)));
    let alarms: Vec<Alarm> = fleet.planner.alarms().collect();
    assert_eq!(alarms.len(), 1);
    assert_eq!((alarms[0].address.as_str(), alarms[0].accusers), ("10.0.0.4:7200", 2));
}

#[test]
fn on_one_machine_names_are_told_apart_and_nobody_is_quarantined() {
    let mut fleet = Fleet::new();
    for number in 1..=4 {
        fleet.register(number, HostAddr::new(Ipv4Addr::LOCALHOST.into()));
        fleet.join(number, true, Vec::new());
    }
    for accuser in 1..4 {
        fleet.accuse(accuser, 4);
    }
    assert_eq!(fleet.planner.standing(id(4)), Standing::Suspect);
    assert_eq!(fleet.planner.standing(id(3)), Standing::Good);
    assert!((1..4).all(|reader| !fleet.names(reader, 4)), "each found out by itself");
}

#[test]
fn many_names_at_one_address_are_one_accuser() {
    let mut fleet = fleet(3);
    let at = |low: u16| HostAddr::new(Ipv6Addr::new(0xfd00, 1, 2, 3, 4, 5, 6, low).into());
    for number in 10..50 {
        fleet.register(number, at(number.into()));
        fleet.join(number, true, Vec::new());
        fleet.accuse(number, 3);
    }
    assert_eq!(fleet.planner.standing(id(3)), Standing::Suspect);
    let loopback = ["127.0.0.1", "127.9.8.7", "::1"].map(|at| HostAddr::new(at.parse().expect("an address")));
    assert!(loopback.iter().all(|at| *at == loopback[0]));
    let mapped: IpAddr = "::ffff:10.0.0.3".parse().expect("an address");
    assert_eq!(HostAddr::new(mapped), host(3));
}

#[test]
fn whoever_is_accused_cannot_accuse_back_and_who_accuses_everybody_is_not_believed() {
    let mut fleet = fleet(9);
    fleet.accuse(1, 2);
    fleet.accuse(2, 1);
    assert_eq!(fleet.planner.standing(id(1)), Standing::Good);
    for about in 4..=8 {
        fleet.accuse(3, about);
    }
    let suspects = (4..=8).filter(|about| fleet.planner.standing(id(*about)) == Standing::Suspect).count();
    assert_eq!(suspects, ACCUSED_MAX);
    fleet.accuse(3, 3);
    assert_eq!(fleet.planner.standing(id(3)), Standing::Good, "nobody accuses itself");
    // A stranger to the swarm is not heard.
    fleet.register(20, host(20));
    fleet.accuse(20, 2);
    assert_eq!(fleet.planner.standing(id(2)), Standing::Suspect);
}

#[test]
fn the_origin_is_read_where_every_holder_is_quarantined() {
    let mut fleet = Fleet::new();
    for number in 1..=4 {
        fleet.register(number, host(number));
        fleet.join(number, true, if number <= 2 { everything() } else { Vec::new() });
    }
    for holder in [1, 2] {
        for accuser in [3, 4] {
            fleet.accuse(accuser, holder);
        }
    }
    assert_eq!(fleet.planner.holders(&ARTIFACT, None, 8), ["10.0.0.3:7200", "10.0.0.4:7200"]);
    for stripe in 0..16 {
        let sources = [3, 4].map(|reader| fleet.plans[&id(reader)].stripes[stripe].source);
        assert!(sources.contains(&StripeSource::Origin), "{sources:?}");
    }
}

#[test]
fn a_holder_that_one_accuses_still_saves_the_origin_from_being_read() {
    let mut fleet = Fleet::new();
    for number in 1..=3 {
        fleet.register(number, host(number));
        fleet.join(number, true, if number == 1 { everything() } else { Vec::new() });
    }
    fleet.accuse(2, 1);
    assert!(fleet.names(3, 1) && !fleet.names(2, 1));
    let parts = |reader: u8| fleet.plans[&id(reader)].stripes.iter().map(|part| part.source);
    assert!(parts(3).any(|source| source == StripeSource::Parent(id(1))));
}

#[test]
fn a_holder_that_several_accuse_keeps_nobody_from_the_origin() {
    let mut fleet = Fleet::new();
    for number in 1..=4 {
        fleet.register(number, host(number));
        fleet.join(number, true, if number == 1 { everything() } else { Vec::new() });
    }
    let is_source = |fleet: &Fleet, stripe: usize, source: StripeSource| {
        (2..=4).any(|reader| fleet.plans[&id(reader)].stripes[stripe].source == source)
    };
    fleet.miss(2, 1);
    fleet.miss(2, 1);
    assert!((0..16).any(|stripe| is_source(&fleet, stripe, StripeSource::Parent(id(1)))), "one may lie");
    fleet.miss(3, 1);
    for stripe in 0..16 {
        assert!(is_source(&fleet, stripe, StripeSource::Origin), "{stripe}");
        assert!(!is_source(&fleet, stripe, StripeSource::Parent(id(1))), "{stripe}");
    }
    assert!((0..16).any(|stripe| fleet.plans[&id(4)].stripes[stripe].source == StripeSource::Origin));
    fleet.wait(MINUTE);
    assert!((0..16).all(|stripe| !is_source(&fleet, stripe, StripeSource::Origin)), "it is believed again");
}

#[test]
fn where_nobody_in_good_standing_reads_the_origin_those_who_are_accused_are_left() {
    let mut fleet = Fleet::new();
    for number in 1..=4 {
        fleet.register(number, host(number));
        fleet.join(number, false, if number == 1 { everything() } else { Vec::new() });
    }
    fleet.miss(2, 1);
    fleet.miss(3, 1);
    assert!(fleet.plans[&id(4)].stripes.iter().any(|part| part.source == StripeSource::Parent(id(1))));
}

#[derive(Clone, Debug)]
enum Step {
    Join(u8, bool, bool),
    Gone(u8),
    Accuse(u8, u8),
    Wait(u64),
}

fn step(peers: u8) -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (1..=peers, any::<bool>(), any::<bool>()).prop_map(|(peer, ok, full)| Step::Join(peer, ok, full)),
        1 => (1..=peers).prop_map(Step::Gone),
        6 => (1..=peers, 1..=peers).prop_map(|(by, about)| Step::Accuse(by, about)),
        2 => (0_u64..900).prop_map(Step::Wait),
    ]
}

fn play(fleet: &mut Fleet, step: &Step, host_of: impl Fn(u8) -> HostAddr) {
    match *step {
        Step::Join(peer, origin_ok, is_full) => {
            fleet.register(peer, host_of(peer));
            fleet.join(peer, origin_ok, if is_full { everything() } else { Vec::new() });
        }
        Step::Gone(peer) => {
            fleet.plans.remove(&id(peer));
            fleet.tell(Input::Gone { peer: id(peer) });
        }
        Step::Accuse(by, about) => fleet.accuse(by, about),
        Step::Wait(seconds) => fleet.wait(Duration::from_secs(seconds)),
    }
}

proptest! {
    #[test]
    fn one_address_never_quarantines_anybody(steps in proptest::collection::vec(step(12), 1..80)) {
        let mut fleet = Fleet::new();
        // Those who accuse, 1 to 6, share one address.
        for step in steps {
            if matches!(step, Step::Accuse(by, _) if by > 6) {
                continue;
            }
            play(&mut fleet, &step, |peer| host(if peer <= 6 { 100 } else { peer }));
            prop_assert!(fleet.planner.alarms().all(|alarm| alarm.standing < Standing::Quarantined));
        }
    }

    #[test]
    fn a_quarantined_peer_is_a_source_in_no_plan(steps in proptest::collection::vec(step(8), 1..80)) {
        let mut fleet = Fleet::new();
        for step in steps {
            play(&mut fleet, &step, host);
            for bad in (1..=8).filter(|peer| fleet.planner.standing(id(*peer)) == Standing::Quarantined) {
                for (reader, plan) in &fleet.plans {
                    prop_assert!(!names(plan, id(bad)), "{} is sent to {}", reader, id(bad));
                }
                let address = format!("10.0.0.{bad}:7200");
                prop_assert!(!fleet.planner.holders(&ARTIFACT, None, 64).contains(&address));
            }
        }
    }

    #[test]
    fn as_many_addresses_as_it_takes_do_and_only_time_undoes_it(accusers in 2_u8..20, minutes in 0_u64..60) {
        let mut fleet = fleet(20 + 1);
        for accuser in 1..=accusers {
            fleet.accuse(accuser, 21);
        }
        prop_assert_eq!(fleet.planner.standing(id(21)), Standing::Quarantined);
        fleet.wait(MINUTE * u32::try_from(minutes).expect("small"));
        let standing = fleet.planner.standing(id(21));
        if minutes < 10 {
            prop_assert_eq!(standing, Standing::Quarantined);
        }
        if minutes > 20 {
            prop_assert_eq!(standing, Standing::Good);
        }
    }

    #[test]
    fn who_reads_the_origin_never_goes_without(steps in proptest::collection::vec(step(8), 1..60)) {
        let mut fleet = Fleet::new();
        let mut wanting: BTreeMap<PeerId, bool> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Join(peer, ok, full) => drop(wanting.insert(id(peer), ok && !full)),
                Step::Gone(peer) => drop(wanting.remove(&id(peer))),
                _ => {}
            }
            play(&mut fleet, &step, host);
            for (peer, _) in wanting.iter().filter(|(_, reads)| **reads) {
                let plan = &fleet.plans[peer];
                prop_assert!(plan.stripes.iter().all(|part| part.source != StripeSource::None), "{}", peer);
            }
        }
    }
}

#[test]
fn silence_makes_a_suspect_for_a_minute_and_no_quarantine() {
    let mut fleet = fleet(5);
    for by in 1..=4 {
        fleet.miss(by, 5);
    }
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect);
    assert!(!fleet.is_parent(5), "while others can serve");
    assert_eq!(fleet.alarms.last().and_then(|alarm| alarm.charge), Some(Charge::Silence));
    fleet.wait(MINUTE);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Good);
    assert_eq!(fleet.alarms.last().map(|alarm| (alarm.standing, alarm.charge)), Some((Standing::Good, None)));

    // Wrong bytes weigh more, and what is said of silence later does not renew them.
    fleet.accuse(1, 5);
    fleet.wait(MINUTE);
    fleet.miss(1, 5);
    assert_eq!(fleet.alarms.last().and_then(|alarm| alarm.charge), Some(Charge::WrongBytes));
    fleet.miss(2, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect, "one address alone says wrong bytes");
    fleet.accuse(2, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Quarantined);
}

#[test]
fn charges_of_silence_shield_nobody_who_sends_wrong_bytes() {
    let mut fleet = fleet(6);
    for frozen in 2..=4 {
        fleet.miss(1, frozen);
    }
    fleet.miss(5, 1);
    fleet.accuse(1, 5);
    assert_eq!(fleet.planner.standing(id(5)), Standing::Suspect, "neither too many nor a retort");
    fleet.miss(1, 6);
    assert_eq!(fleet.planner.standing(id(6)), Standing::Good, "a fourth that is silent is");
}

#[test]
fn a_silent_holder_keeps_nobody_from_a_seed() {
    let mut fleet = Fleet::new();
    for number in 1..=5 {
        fleet.register(number, host(number));
    }
    fleet.seed(1);
    fleet.join(2, false, everything());
    for number in 3..=5 {
        fleet.join(number, false, Vec::new());
    }
    assert!(!fleet.is_parent(1), "a seed is an origin: it is read where nobody else has the artifact");
    fleet.miss(3, 2);
    let reads_from = |fleet: &Fleet, reader: u8, source: u8| {
        let is_part = |part: &crate::plan::StripePart| part.source == StripeSource::Parent(id(source));
        fleet.plans[&id(reader)].stripes.iter().any(is_part)
    };
    assert!(reads_from(&fleet, 3, 1) && !reads_from(&fleet, 3, 2), "{:?}", fleet.plans[&id(3)]);
    fleet.miss(4, 2);
    assert!((3..=5).all(|reader| !reads_from(&fleet, reader, 2)), "{:?}", fleet.plans[&id(5)]);
}
