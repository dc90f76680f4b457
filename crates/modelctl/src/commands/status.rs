//! `modelctl status`: what a fleet's scheduler knows.
//!
//! Owns: whom it asks, and the report in its two forms. Does not own: the asking (`scheduler`).

use std::{fmt, time::Duration};

use anyhow::Context as _;
use modelpack::digest::Sha256Digest;
use planner::{
    AlarmStatus, Charge, PeerId, PeerStatus, Standing, SwarmStatus,
    capacity::{Foreign, Learned},
};
use scheduler::{Inquiry, Seen, inquire};
use serde::Serialize;
use wire::{schedulers::Schedulers, status::FleetStatus};

use crate::{
    access,
    cli::StatusArgs,
    printer::Printer,
    text::{self, Align, Table},
};

/// Hexadecimal characters of a digest that a person needs to tell artifacts apart.
const SHORT_DIGEST: usize = 12;

/// Columns of names and addresses: with the numbers beside them a line has at most a hundred.
const NAME_WIDTH: usize = 18;
const ADDRESS_WIDTH: usize = 22;

/// Lines of each table: who wants more takes `--json`.
const ROWS_MAX: usize = 100;

/// How a fleet is. Serialised, it is the result of `--json`.
#[derive(Debug, Serialize)]
struct Report {
    /// HOST:PORT of the one that said all this.
    scheduler: String,
    /// Whether that one plans.
    active: bool,
    schedulers: Vec<SchedulerFacts>,
    /// All; the lists hold the first few thousand.
    peer_count: u32,
    peers: Vec<PeerFacts>,
    swarm_count: u32,
    swarms: Vec<SwarmFacts>,
    alarm_count: u32,
    alarms: Vec<AlarmFacts>,
}

#[derive(Debug, Serialize)]
struct SchedulerFacts {
    address: String,
    /// `active`, `standby` or `silent`.
    state: &'static str,
    /// Why it is silent.
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct PeerFacts {
    id: String,
    name: String,
    address: String,
    nic_bytes_per_second: Option<u64>,
    /// What its card does, by what it has moved.
    learned: Option<LearnedFacts>,
    /// What others than its process move on its card.
    foreign: Option<ForeignFacts>,
    received_bytes_per_second: u64,
    sent_bytes_per_second: u64,
    standing: &'static str,
}

#[derive(Debug, Serialize)]
struct LearnedFacts {
    bytes_per_second: u64,
    /// Whether it does no more; else it does so much at least.
    full: bool,
    seconds_ago: u64,
}

#[derive(Debug, Serialize)]
struct ForeignFacts {
    received_bytes_per_second: u64,
    sent_bytes_per_second: u64,
    seconds_ago: u64,
}

#[derive(Debug, Serialize)]
struct SwarmFacts {
    digest: String,
    bytes: u64,
    members: u32,
    complete: u32,
    seeds: u32,
    /// Of all members together: 1 when all have everything.
    progress: f64,
    /// `high`, `normal` or `low`: to those who lack something, or lacked it last.
    priority: &'static str,
}

#[derive(Debug, Serialize)]
struct AlarmFacts {
    id: String,
    name: String,
    address: String,
    standing: &'static str,
    /// `wrong_bytes` or `silence`, the worst.
    charge: Option<&'static str>,
    /// Addresses that accuse it.
    accusers: usize,
    last_accused_seconds_ago: u64,
    /// Until its standing changes, if nobody accuses it again.
    seconds_left: u64,
}

/// Asks and shows.
pub(crate) fn run(args: &StatusArgs, printer: &Printer) -> anyhow::Result<()> {
    let security = access::security_of(&args.fleet)?;
    access::runtime()?.block_on(async {
        let schedulers = Schedulers::new(&security, access::fleet_schedulers(&args.fleet).await?);
        let Inquiry { address, status, schedulers } = inquire(&schedulers, &security)
            .await
            .context("cannot ask the fleet how it is")?;
        if let Some(first) = &status.redirect {
            printer.warn(format_args!(
                "`{address}` stands by, and `{first}`, which it takes for the active scheduler, does not answer"
            ));
        }
        printer.result(&Report::new(address, schedulers, status))
    })
}

impl Report {
    fn new(scheduler: String, schedulers: Vec<(String, Seen)>, status: FleetStatus) -> Self {
        let FleetStatus { redirect, peer_count, swarm_count, alarm_count, .. } = status;
        let mut peers: Vec<PeerFacts> = status.peers.into_iter().map(PeerFacts::from).collect();
        peers.sort_by(|a, b| (&a.name, &a.address).cmp(&(&b.name, &b.address)));
        let mut swarms: Vec<SwarmFacts> = status.swarms.into_iter().map(SwarmFacts::from).collect();
        // What moves comes first.
        swarms.sort_by(|a, b| a.progress.total_cmp(&b.progress).then_with(|| a.digest.cmp(&b.digest)));
        let mut alarms = status.alarms;
        alarms
            .sort_by(|a, b| b.alarm.standing.cmp(&a.alarm.standing).then(a.accused_ago.cmp(&b.accused_ago)));
        Self {
            scheduler,
            active: redirect.is_none(),
            schedulers: schedulers.into_iter().map(SchedulerFacts::from).collect(),
            peer_count,
            peers,
            swarm_count,
            swarms,
            alarm_count,
            alarms: alarms.into_iter().map(AlarmFacts::from).collect(),
        }
    }
}

impl From<(String, Seen)> for SchedulerFacts {
    fn from((address, seen): (String, Seen)) -> Self {
        let (state, reason) = match seen {
            Seen::Active => ("active", None),
            Seen::Standby => ("standby", None),
            Seen::Silent(reason) => ("silent", Some(reason)),
        };
        Self { address, state, reason }
    }
}

fn id(peer: PeerId) -> String {
    format!("{:032x}", u128::from_be_bytes(*peer.bytes()))
}

/// What peers are accused of, as programs read it.
const WRONG_BYTES: &str = "wrong_bytes";
const SILENCE: &str = "silence";

const fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Good => "good",
        Standing::Suspect => "suspect",
        Standing::Quarantined => "quarantined",
    }
}

impl From<PeerStatus> for PeerFacts {
    fn from(status: PeerStatus) -> Self {
        Self {
            id: id(status.peer),
            name: status.name,
            address: status.address,
            nic_bytes_per_second: status.nic_rate,
            learned: status.learned.map(|Learned { rate, is_full, age }| LearnedFacts {
                bytes_per_second: rate,
                full: is_full,
                seconds_ago: age.as_secs(),
            }),
            foreign: status.foreign.map(|Foreign { sent, received, age }| ForeignFacts {
                received_bytes_per_second: received,
                sent_bytes_per_second: sent,
                seconds_ago: age.as_secs(),
            }),
            received_bytes_per_second: status.received,
            sent_bytes_per_second: status.sent,
            standing: word(status.standing),
        }
    }
}

impl From<SwarmStatus> for SwarmFacts {
    fn from(status: SwarmStatus) -> Self {
        Self {
            digest: Sha256Digest::new(status.artifact.0).to_string(),
            bytes: status.bytes,
            members: status.members,
            complete: status.complete,
            seeds: status.seeds,
            progress: f64::from(status.permille) / 1000.0,
            priority: status.priority.name(),
        }
    }
}

impl From<AlarmStatus> for AlarmFacts {
    fn from(AlarmStatus { alarm, accused_ago, left }: AlarmStatus) -> Self {
        Self {
            id: id(alarm.peer),
            name: alarm.name,
            address: alarm.address,
            standing: word(alarm.standing),
            charge: alarm.charge.map(|charge| match charge {
                Charge::WrongBytes => WRONG_BYTES,
                Charge::Silence => SILENCE,
            }),
            accusers: alarm.accusers,
            last_accused_seconds_ago: accused_ago.as_secs(),
            seconds_left: left.as_secs(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts().fmt(f)?;
        if !self.swarms.is_empty() {
            write!(f, "\n\n{}", swarm_table(&self.swarms))?;
            more(f, self.swarm_count, self.swarms.len())?;
        }
        if !self.peers.is_empty() {
            write!(f, "\n\n{}", peer_table(&self.peers))?;
            more(f, self.peer_count, self.peers.len())?;
        }
        if !self.alarms.is_empty() {
            writeln!(f)?;
            self.alarms.iter().take(ROWS_MAX).try_for_each(|alarm| write!(f, "\n{alarm}"))?;
            more(f, self.alarm_count, self.alarms.len())?;
        }
        Ok(())
    }
}

/// Says how many there are beyond those that are shown.
fn more(f: &mut fmt::Formatter<'_>, count: u32, listed: usize) -> fmt::Result {
    let shown = listed.min(ROWS_MAX);
    match (count as usize).saturating_sub(shown) {
        0 => Ok(()),
        more => write!(f, "\n… and {more} more; `--json` lists them"),
    }
}

impl Report {
    fn facts(&self) -> Table<2> {
        let mut facts = Table::new([Align::Left, Align::Left]);
        let is_other = |address: &str| address != self.scheduler;
        let mut schedulers: Vec<&SchedulerFacts> = self.schedulers.iter().collect();
        schedulers.sort_by_key(|scheduler| is_other(&scheduler.address));
        for SchedulerFacts { address, state, reason } in schedulers {
            let reason = reason.as_ref().map(|reason| format!(" ({})", text::one_line(reason)));
            let said = format!("{}, {state}{}", text::one_line(address), reason.unwrap_or_default());
            facts.row(["scheduler".to_owned(), said]);
        }
        let count = |count: u32, one: &str| match count {
            0 => format!("no {one}s"),
            count => text::plural(count as usize, one),
        };
        let (peers, swarms) = (count(self.peer_count, "peer"), count(self.swarm_count, "swarm"));
        facts.row(["fleet".to_owned(), format!("{peers}, {swarms}, {}", count(self.alarm_count, "alarm"))]);
        facts
    }
}

fn swarm_table(swarms: &[SwarmFacts]) -> Table<7> {
    let (left, right) = (Align::Left, Align::Right);
    let mut table = Table::new([left, right, right, right, right, left, left]);
    let head = ["ARTIFACT", "SIZE", "MEMBERS", "COMPLETE", "SEEDS", "PRIORITY", "PROGRESS"];
    table.row(head.map(str::to_owned));
    for swarm in swarms.iter().take(ROWS_MAX) {
        let digest = swarm.digest.trim_start_matches("sha256:");
        table.row([
            digest.get(..SHORT_DIGEST).unwrap_or(digest).to_owned(),
            text::bytes(swarm.bytes),
            swarm.members.to_string(),
            swarm.complete.to_string(),
            swarm.seeds.to_string(),
            swarm.priority.to_owned(),
            text::share(swarm.progress),
        ]);
    }
    table
}

/// What its card does: as it was said, as it was learned (`~`), or at least (`>`).
fn card(peer: &PeerFacts) -> String {
    let learned = || {
        let LearnedFacts { bytes_per_second, full, .. } = peer.learned.as_ref()?;
        Some(format!("{}{}", if *full { '~' } else { '>' }, rate(*bytes_per_second)))
    };
    peer.nic_bytes_per_second.map(rate).or_else(learned).unwrap_or_else(|| "?".to_owned())
}

fn rate(rate: u64) -> String {
    format!("{}/s", text::bytes(rate))
}

fn peer_table(peers: &[PeerFacts]) -> Table<7> {
    let (left, right) = (Align::Left, Align::Right);
    let mut table = Table::new([left, left, right, right, right, right, left]);
    table.row(["PEER", "ADDRESS", "CARD", "IN", "OUT", "OTHERS", "STANDING"].map(str::to_owned));
    for peer in peers.iter().take(ROWS_MAX) {
        let foreign = peer.foreign.as_ref();
        let others = foreign.map(|at| at.sent_bytes_per_second.max(at.received_bytes_per_second));
        table.row([
            text::clipped(&peer.name, NAME_WIDTH),
            text::clipped(&peer.address, ADDRESS_WIDTH),
            card(peer),
            rate(peer.received_bytes_per_second),
            rate(peer.sent_bytes_per_second),
            others.map_or_else(|| "?".to_owned(), rate),
            peer.standing.to_owned(),
        ]);
    }
    table
}

impl fmt::Display for AlarmFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |seconds| text::seconds(Duration::from_secs(seconds));
        let (name, address) =
            (text::clipped(&self.name, NAME_WIDTH), text::clipped(&self.address, ADDRESS_WIDTH));
        writeln!(f, "{}: {name} at {address}", self.standing)?;
        let who =
            if self.accusers == 1 { "1 address".to_owned() } else { format!("{} addresses", self.accusers) };
        let what = match self.charge {
            Some(SILENCE) => "of giving nothing that it announces",
            _ => "of sending wrong bytes",
        };
        let (ago, left) = (seconds(self.last_accused_seconds_ago), seconds(self.seconds_left));
        write!(f, "  accused {what} by {who}, last {ago} ago; {left} to go")
    }
}

#[cfg(test)]
mod tests {
    use planner::{Alarm, ArtifactId, Priority};

    use super::*;

    fn peer(number: u8, name: &str, standing: Standing) -> PeerStatus {
        PeerStatus {
            peer: PeerId::new([number; 16]),
            name: name.to_owned(),
            address: format!("10.0.0.{number}:7200"),
            nic_rate: (number == 1).then_some(3_125_000_000),
            learned: Some(Learned { rate: 999_950_000, is_full: number == 3, age: Duration::from_secs(75) }),
            foreign: (number != 2).then_some(Foreign { sent: 0, received: 999_950_000, age: Duration::ZERO }),
            sent: u64::from(number) * 999_950_000,
            received: 0,
            standing,
        }
    }

    fn swarm(number: u8, permille: u16) -> SwarmStatus {
        let complete = u32::from(permille == 1000);
        let artifact = ArtifactId([number; 32]);
        let priority = if complete > 0 { Priority::Normal } else { Priority::High };
        let bytes = 140_000_000_000;
        SwarmStatus { artifact, bytes, members: 4, complete, seeds: 1, permille, priority }
    }

    fn alarm(number: u8, standing: Standing, accusers: usize) -> AlarmStatus {
        let peer = peer(number, "node-with-a-name-that-is-far-too-long", standing);
        let PeerStatus { peer, name, address, .. } = peer;
        let charge = Some(if accusers > 1 { Charge::WrongBytes } else { Charge::Silence });
        let alarm = Alarm { peer, name, address, standing, charge, accusers, last_accused: Duration::ZERO };
        AlarmStatus { alarm, accused_ago: Duration::from_secs(75), left: Duration::from_secs(492) }
    }

    fn status() -> FleetStatus {
        FleetStatus {
            redirect: None,
            peers: vec![
                peer(1, "node-b", Standing::Good),
                peer(2, "node-a", Standing::Suspect),
                peer(3, &"n".repeat(128), Standing::Quarantined),
            ],
            peer_count: 3,
            swarms: vec![swarm(0xc0, 1000), swarm(0xab, 523)],
            swarm_count: 2,
            alarms: vec![alarm(2, Standing::Suspect, 1), alarm(3, Standing::Quarantined, 2)],
            alarm_count: 2,
        }
    }

    fn report(status: FleetStatus) -> Report {
        let schedulers = vec![
            ("10.0.0.2:7100".to_owned(), Seen::Silent("connection refused".to_owned())),
            ("10.0.0.1:7100".to_owned(), Seen::Active),
            ("10.0.0.3:7100".to_owned(), Seen::Standby),
        ];
        Report::new("10.0.0.1:7100".to_owned(), schedulers, status)
    }

    #[test]
    fn a_fleet_is_shown_in_a_hundred_columns() {
        let text = report(status()).to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        insta::assert_snapshot!(text);
    }

    #[test]
    fn a_fleet_without_peers_is_two_facts() {
        let lists = FleetStatus { peers: vec![], swarms: vec![], alarms: vec![], ..status() };
        let status = FleetStatus { peer_count: 0, swarm_count: 0, alarm_count: 0, ..lists };
        let text = report(status).to_string();
        assert_eq!(text.lines().last(), Some("fleet      no peers, no swarms, no alarms"));
    }

    #[test]
    fn what_is_beyond_the_lines_of_a_terminal_is_counted() {
        let peers = (0..=255).map(|number| peer(number, "node", Standing::Good)).collect();
        let text = report(FleetStatus { peers, peer_count: 10_000, ..status() }).to_string();
        assert!(text.contains("\n… and 9900 more; `--json` lists them\n"), "{text}");
    }
}
