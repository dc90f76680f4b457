//! Who is trusted to serve: accusations of wrong bytes and of silence, what they amount to, and how they fade.
//!
//! Owns: whose word counts how much for how long. Does not own: what a plan makes of a standing (`swarm_state`).
//!
//! Identities are self-issued, so that a process may call itself a hundred peers. Hence an accusation counts once for
//! each network address that it comes from, and what is quarantined is the address, not the name that it goes by today.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::id::PeerId;

/// Time in which an accusation loses half its weight.
pub const HALF_LIFE: Duration = Duration::from_mins(10);

/// Age at which an accusation, by then of a quarter of its weight, is forgotten.
const FORGOTTEN: Duration = Duration::from_mins(20);

/// How long an accusation of silence lasts: a peer that was paused, or whose network was full, serves again soon.
pub const SILENCE_LASTS: Duration = Duration::from_mins(1);

/// Addresses that must accuse the same one before it is quarantined. More would never be reached: from the first
/// accusation on hardly anybody reads from the accused, so that nobody else learns what it sends.
const ACCUSERS_MIN: usize = 2;

/// Weight of all accusations together above which a quarantine lasts: two of the same moment hold for one half-life.
const QUARANTINE_WEIGHT: f64 = 1.0;

/// Others that one address may accuse at a time. An address that finds everybody wrong has bad memory or bad intent.
const ACCUSED_MAX: usize = 3;

/// Accusers of one case that are kept. They fade together, so that more would only keep it closed a little longer.
const ACCUSERS_MAX: usize = 64;

/// Cases at a time. More are not faults of machines but an attack, and those that there are go on.
const CASES_MAX: usize = 4096;

/// Added to the moment at which a weight crosses its threshold, so that it has crossed it by then.
const ROUNDING: Duration = Duration::from_secs(1);

/// A network address that streams come from: an IPv4 address, or of IPv6 the /64 that one machine may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostAddr(IpAddr);

impl HostAddr {
    /// The host that this address belongs to.
    pub fn new(address: IpAddr) -> Self {
        let address = address.to_canonical();
        if address.is_loopback() {
            // One process may choose from all of them.
            return Self(IpAddr::V4(Ipv4Addr::LOCALHOST));
        }
        Self(match address {
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            IpAddr::V4(v4) => IpAddr::V4(v4),
        })
    }

    /// Whether it says nothing about who is there: all processes of one machine share it.
    fn is_anybody(self) -> bool {
        self.0.is_loopback() || self.0.is_unspecified()
    }
}

/// What a peer is trusted with. Each is worse than the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It serves.
    #[default]
    Good,
    /// One address accuses it of wrong bytes, or any number of silence: it serves where nobody else can.
    Suspect,
    /// Several addresses accuse it of wrong bytes: it serves nobody. It may still fetch.
    Quarantined,
}

/// What a peer is accused of. Each is worse than the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Charge {
    /// It announces pieces and gives none. A slow network looks the same, so that this alone quarantines nobody.
    Silence,
    /// What it sent does not match the manifest.
    WrongBytes,
}

impl Charge {
    fn lasts(self) -> Duration {
        match self {
            Self::Silence => SILENCE_LASTS,
            Self::WrongBytes => FORGOTTEN,
        }
    }
}

/// A peer that is not in good standing, or has just come back to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alarm {
    /// The peer, as it last called itself.
    pub peer: PeerId,
    /// Its name for people.
    pub name: String,
    /// HOST:PORT of its control service.
    pub address: String,
    /// What it is trusted with.
    pub standing: Standing,
    /// The worst that it is accused of; none when it has come back.
    pub charge: Option<Charge>,
    /// How many addresses accuse it of that.
    pub accusers: usize,
    /// When it was last accused, on the clock of `now`.
    pub last_accused: Duration,
}

/// A peer as cases are filed about it.
#[derive(Clone, Debug)]
pub(crate) struct Whereabouts {
    pub(crate) peer: PeerId,
    /// Where its stream comes from.
    pub(crate) host: HostAddr,
    pub(crate) name: String,
    pub(crate) address: String,
}

/// What a case is about. Where an address means nobody in particular, only the name is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Subject {
    Host(HostAddr),
    Peer(PeerId),
}

impl Subject {
    pub(crate) fn of(peer: PeerId, host: HostAddr) -> Self {
        if host.is_anybody() { Self::Peer(peer) } else { Self::Host(host) }
    }
}

#[derive(Clone, Debug)]
struct Accusation {
    at: Duration,
    charge: Charge,
    /// The peers of that address that said so.
    by: BTreeSet<PeerId>,
}

impl Accusation {
    fn ends(&self) -> Duration {
        self.at + self.charge.lasts()
    }
}

#[derive(Clone, Debug)]
struct Case {
    about: Whereabouts,
    standing: Standing,
    accusations: BTreeMap<HostAddr, Accusation>,
    /// When time alone may change the standing.
    until: Duration,
}

impl Case {
    fn of_wrong_bytes(&self) -> impl Iterator<Item = &Accusation> {
        self.accusations.values().filter(|accusation| accusation.charge == Charge::WrongBytes)
    }

    fn weight(&self, now: Duration) -> f64 {
        let halves = |at: Duration| now.saturating_sub(at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        self.of_wrong_bytes().map(|accusation| (-halves(accusation.at)).exp2()).sum()
    }

    /// Forgets what is old, and judges what is left.
    fn judge(&mut self, now: Duration) -> Standing {
        self.accusations.retain(|_, accusation| now < accusation.ends());
        let is_proved =
            self.of_wrong_bytes().count() >= ACCUSERS_MIN && self.weight(now) >= QUARANTINE_WEIGHT;
        self.standing = match self.accusations.is_empty() {
            true => Standing::Good,
            false if is_proved => Standing::Quarantined,
            false => Standing::Suspect,
        };
        let forgets = self.accusations.values().map(Accusation::ends).min();
        self.until = forgets.unwrap_or(now);
        if self.standing == Standing::Quarantined {
            let halves = (self.weight(now) / QUARANTINE_WEIGHT).log2().max(0.0);
            self.until = self.until.min(now + HALF_LIFE.mul_f64(halves) + ROUNDING);
        }
        self.standing
    }

    /// When it is let out of its standing if nobody accuses it again.
    fn ends(&self) -> Duration {
        match self.standing {
            Standing::Quarantined => self.until,
            _ => self.accusations.values().map(Accusation::ends).max().unwrap_or(self.until),
        }
    }

    fn charge(&self) -> Option<Charge> {
        self.accusations.values().map(|accusation| accusation.charge).max()
    }

    fn last_accused(&self) -> Duration {
        self.accusations.values().map(|accusation| accusation.at).max().unwrap_or_default()
    }

    fn alarm(&self) -> Alarm {
        Alarm {
            peer: self.about.peer,
            name: self.about.name.clone(),
            address: self.about.address.clone(),
            standing: self.standing,
            charge: self.charge(),
            accusers: self.accusations.values().filter(|at| Some(at.charge) == self.charge()).count(),
            last_accused: self.last_accused(),
        }
    }
}

/// Every case of one fleet.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    cases: BTreeMap<Subject, Case>,
}

impl Quarantine {
    /// Takes note that `by` got wrong bytes, or nothing, from `about`; says what has become of that one, if its
    /// standing or the charge has changed.
    pub(crate) fn accuse(
        &mut self,
        now: Duration,
        by: (PeerId, HostAddr),
        about: &Whereabouts,
        charge: Charge,
    ) -> Option<Alarm> {
        let (accuser, host) = by;
        let subject = Subject::of(about.peer, about.host);
        if by.0 == about.peer
            || self.is_retort(by, about, charge)
            || self.accuses_enough(now, (host, charge), subject)
        {
            return None;
        }
        let is_known = self.cases.contains_key(&subject);
        if !is_known && self.cases.len() >= CASES_MAX {
            return None;
        }
        let case = self.cases.entry(subject).or_insert_with(|| Case {
            about: about.clone(),
            standing: Standing::Good,
            accusations: BTreeMap::new(),
            until: now,
        });
        case.about = about.clone();
        let before = (case.standing, case.charge());
        if case.accusations.len() < ACCUSERS_MAX || case.accusations.contains_key(&host) {
            let nobody = Accusation { at: now, charge, by: BTreeSet::new() };
            let accusation = case.accusations.entry(host).or_insert(nobody);
            // Of two charges by one address the worse one is kept, with its own time.
            if charge >= accusation.charge {
                (accusation.at, accusation.charge) = (now, charge);
            }
            if accusation.by.len() < ACCUSERS_MAX {
                accusation.by.insert(accuser);
            }
        }
        case.judge(now);
        ((case.standing, case.charge()) != before).then(|| case.alarm())
    }

    /// Whether somebody accuses those who accuse it of as much or more, or is not to be believed at all.
    fn is_retort(&self, by: (PeerId, HostAddr), about: &Whereabouts, charge: Charge) -> bool {
        let Some(case) = self.cases.get(&Subject::of(by.0, by.1)) else { return false };
        let is_about_accuser = case.accusations.get(&about.host).is_some_and(|accusation| {
            // Those of one machine are told apart by name.
            accusation.charge >= charge && (!about.host.is_anybody() || accusation.by.contains(&about.peer))
        });
        case.standing == Standing::Quarantined || is_about_accuser
    }

    fn accuses_enough(&self, now: Duration, (host, charge): (HostAddr, Charge), subject: Subject) -> bool {
        let counts = |accusation: &Accusation| accusation.charge >= charge && now < accusation.ends();
        let is_open = |case: &Case| case.accusations.get(&host).is_some_and(counts);
        let others = self.cases.iter().filter(|(other, case)| **other != subject && is_open(case));
        others.count() >= ACCUSED_MAX
    }

    /// Lets time pass; says whose standing has changed.
    pub(crate) fn fade(&mut self, now: Duration) -> Vec<Alarm> {
        let mut changed = Vec::new();
        for case in self.cases.values_mut() {
            let (before, last) = (case.standing, case.last_accused());
            if case.judge(now) != before {
                // What it was last accused of is forgotten when it is released.
                changed.push(Alarm { last_accused: last, ..case.alarm() });
            }
        }
        self.cases.retain(|_, case| case.standing != Standing::Good);
        changed
    }

    /// When time alone may change a standing.
    pub(crate) fn next_change(&self) -> Option<Duration> {
        self.cases.values().map(|case| case.until).min()
    }

    /// What a peer is trusted with, and who accuses it.
    pub(crate) fn standing(&self, peer: PeerId, host: HostAddr) -> (Standing, BTreeSet<PeerId>) {
        let Some(case) = self.cases.get(&Subject::of(peer, host)) else { return Default::default() };
        let accusers = case.accusations.values().flat_map(|accusation| accusation.by.iter().copied());
        (case.standing, accusers.collect())
    }

    /// Whether several addresses accuse it, of whatever it be. One alone may lie.
    pub(crate) fn is_doubted(&self, peer: PeerId, host: HostAddr) -> bool {
        let case = self.cases.get(&Subject::of(peer, host));
        case.is_some_and(|case| case.accusations.len() >= ACCUSERS_MIN)
    }

    /// Everybody who is not in good standing, and when time alone may change that.
    pub(crate) fn cases(&self) -> impl Iterator<Item = (Alarm, Duration)> + '_ {
        self.cases.values().map(|case| (case.alarm(), case.ends()))
    }

    /// The standing of each case.
    pub(crate) fn standings(&self) -> impl Iterator<Item = Standing> + '_ {
        self.cases.values().map(|case| case.standing)
    }

    /// Everybody who is not in good standing.
    pub(crate) fn alarms(&self) -> impl Iterator<Item = Alarm> + '_ {
        self.cases.values().map(Case::alarm)
    }
}

#[cfg(test)]
mod tests;
