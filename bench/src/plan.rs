//! `bench plan`: what the planner costs against the number of peers.
//!
//! Owns: the swarm that is planned, the clock around it. Does not own: the planner, or what its plans are worth (the
//! simulator shows that).
//!
//! Each number of peers has a process of its own, so that the memory of one is not that of another.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use modelpack::{layout::PIECE_BYTES, quantity::Size};
use planner::{ArtifactId, HostAddr, Input, Output, PeerId, Place, Planner, Progress};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use crate::{
    output::{OutputArgs, tell},
    statistics::{Latencies, Percentiles},
};

/// The budgets of a full plan and of a join, at [`BUDGET_PEERS`].
const PLAN_BUDGET_US: u64 = 100_000;
const JOIN_BUDGET_US: u64 = 1000;
const BUDGET_PEERS: u32 = 10_000;

/// The budget of memory, in bytes a peer beyond its piece map.
const MEMORY_BUDGET: u64 = 2048;

/// More peers than anybody has named; their numbers are their addresses.
const PEERS_MAX: u32 = 1_000_000;

/// How often one thing is done at most, and for how long it is begun again.
const SAMPLES_MAX: u32 = 200;
const PATIENCE: Duration = Duration::from_secs(5);

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);

/// What every network card does, in bytes per second: 10 gbit.
const NIC_RATE: u64 = 1_250_000_000;

/// Measure the planner: a full plan, a join and a leave, against the number of peers
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The numbers of peers
    #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(PEERS_MAX)))]
    peers: Vec<u32>,
    /// The artifact's size
    #[arg(long, default_value = "16GiB")]
    size: Size,
    #[command(flatten)]
    output: OutputArgs,
}

/// Plan for so many peers, and say what it took as a line of JSON
#[derive(Debug, Args)]
pub(crate) struct PlanRunArgs {
    /// The number of peers
    peers: u32,
    /// The artifact's bytes
    bytes: u64,
}

/// What was found.
#[derive(Debug, Serialize)]
struct PlanResult {
    bench: &'static str,
    size: u64,
    plan_budget_us: u64,
    join_budget_us: u64,
    budget_peers: u32,
    memory_budget_bytes_per_peer: u64,
    rows: Vec<Row>,
}

/// What one number of peers costs.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    peers: u32,
    /// A scheduler that knows nobody hears of all, then plans once, as after a take-over.
    plan: Percentiles,
    /// One more peer, all plans that follow included.
    join: Percentiles,
    /// One peer less, likewise.
    leave: Percentiles,
    /// Members who are told something new when one joins or leaves, the mean.
    told_per_change: f64,
    /// Memory before the first plan, and after it when all of it was sent; what the allocator keeps counts too.
    state_bytes_per_peer: u64,
    planned_bytes_per_peer: u64,
    /// The most, while the first plan waits to be sent.
    peak_bytes_per_peer: u64,
    /// What a piece map takes of these.
    map_bytes_per_peer: u64,
}

impl fmt::Display for PlanResult {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            out,
            "{:>7}  {:>21}  {:>21}  {:>21}  {:>6}  {:>20}",
            "peers", "plan p50/p99 µs", "join p50/p99 µs", "leave p50/p99 µs", "told", "B/peer held/peak"
        )?;
        for row in &self.rows {
            let pair = |of: &Percentiles| format!("{}/{}", of.p50_us, of.p99_us);
            let memory = format!("{}/{}", row.planned_bytes_per_peer, row.peak_bytes_per_peer);
            let (plan, join, leave) = (pair(&row.plan), pair(&row.join), pair(&row.leave));
            let told = row.told_per_change;
            writeln!(
                out,
                "{:>7}  {plan:>21}  {join:>21}  {leave:>21}  {told:>6.1}  {memory:>20}",
                row.peers
            )?;
        }
        write!(
            out,
            "budget at {} peers: plan {} µs, join {} µs, {} B a peer and its piece map",
            self.budget_peers, self.plan_budget_us, self.join_budget_us, self.memory_budget_bytes_per_peer
        )
    }
}

/// Measures every number of peers.
pub(crate) fn run(args: &PlanArgs) -> anyhow::Result<()> {
    ensure!(args.size.0 > 0, "an artifact of no bytes is not planned");
    let rows = args.peers.iter().map(|peers| in_process(*peers, args.size.0)).collect::<Result<_, _>>()?;
    args.output.print(&PlanResult {
        bench: "plan",
        size: args.size.0,
        plan_budget_us: PLAN_BUDGET_US,
        join_budget_us: JOIN_BUDGET_US,
        budget_peers: BUDGET_PEERS,
        memory_budget_bytes_per_peer: MEMORY_BUDGET,
        rows,
    })
}

fn in_process(peers: u32, bytes: u64) -> anyhow::Result<Row> {
    tell(&format!("{peers} peers"));
    let output = Command::new("/proc/self/exe")
        .args(["plan-run", &peers.to_string(), &bytes.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run this program again")?;
    ensure!(output.status.success(), "planning for {peers} peers failed");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Measures one number of peers, in a process that does nothing else.
pub(crate) fn run_one(args: &PlanRunArgs) -> anyhow::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let piece_count = u32::try_from(args.bytes.div_ceil(PIECE_BYTES)).context("the artifact is too large")?;
    let scene = Scene { bytes: args.bytes, piece_count, peers: args.peers };
    let row = scene.measure()?;
    println_json(&row)
}

fn println_json(row: &Row) -> anyhow::Result<()> {
    use std::io::Write as _;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(row)?)?)
}

/// The swarm that is planned.
#[derive(Clone, Copy)]
struct Scene {
    bytes: u64,
    piece_count: u32,
    peers: u32,
}

impl Scene {
    fn measure(&self) -> anyhow::Result<Row> {
        let per_peer = |bytes: u64, base: u64| bytes.saturating_sub(base) / u64::from(self.peers);
        let base = memory("RssAnon")?;
        let mut planner = self.gathered();
        let state = memory("RssAnon")?;
        let (mut plan, first) = (Latencies::new(), self.first_plan(&mut planner)?);
        plan.record(first);
        let (peak, held, files) = (memory("VmHWM")?, memory("RssAnon")?, memory("RssFile")?);
        again(first, || {
            plan.record(self.first_plan(&mut self.gathered())?);
            Ok(())
        })?;
        let (mut join, mut leave, mut told, mut changes) = (Latencies::new(), Latencies::new(), 0, 0);
        let mut dice = fastrand::Rng::with_seed(u64::from(self.peers));
        let mut members: Vec<u32> = (0..self.peers).collect();
        let mut next = self.peers;
        again(Duration::ZERO, || {
            let (joined, told_of_join) = timed(&mut planner, [register(next), self.join(next, 0)]);
            members.push(next);
            next += 1;
            let gone = members.swap_remove(dice.usize(..members.len()));
            let (left, told_of_leave) = timed(&mut planner, [Input::Gone { peer: id(gone) }]);
            join.record(joined);
            leave.record(left);
            told += told_of_join + told_of_leave;
            changes += 2;
            Ok(())
        })?;
        ensure!(planner.member_count(&ARTIFACT) == members.len(), "a member got lost");
        Ok(Row {
            peers: self.peers,
            plan: plan.summary(),
            join: join.summary(),
            leave: leave.summary(),
            told_per_change: f64::from(told) / f64::from(changes),
            state_bytes_per_peer: per_peer(state, base),
            planned_bytes_per_peer: per_peer(held, base),
            peak_bytes_per_peer: per_peer(peak, base + files),
            map_bytes_per_peer: u64::from(self.piece_count).div_ceil(8),
        })
    }

    /// A planner to which all have come with the plan of another, so that it has made none yet.
    fn gathered(&self) -> Planner {
        let mut planner = Planner::new();
        for number in 0..self.peers {
            planner.handle(Duration::ZERO, register(number));
            planner.handle(Duration::ZERO, self.join(number, 1));
        }
        planner
    }

    /// How long the first plan takes, until the last member's part is there to be sent.
    fn first_plan(&self, planner: &mut Planner) -> anyhow::Result<Duration> {
        let wake = planner.next_wake().context("a planner that gathers wakes")?;
        let begin = Instant::now();
        planner.handle(wake, Input::Tick);
        // Each part is made when it is asked for.
        let told = drain(planner);
        let took = begin.elapsed();
        ensure!(told == self.peers, "{told} of {} peers were told the first plan", self.peers);
        Ok(took)
    }

    fn join(&self, number: u32, epoch: u64) -> Input {
        Input::Join {
            peer: id(number),
            artifact: ARTIFACT,
            bytes: self.bytes,
            piece_count: self.piece_count,
            origin_ok: true,
            is_seed: false,
            have: Vec::new(),
            progress: Progress { epoch, ..Progress::default() },
        }
    }
}

/// The name of a peer: as random as those in a fleet, which are hashes too.
fn id(number: u32) -> PeerId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake3::hash(&number.to_le_bytes()).as_bytes()[..16]);
    PeerId::new(bytes)
}

/// A peer opens its stream.
fn register(number: u32) -> Input {
    let ip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 0, 0, 0).to_bits() + number);
    Input::Register {
        peer: id(number),
        address: format!("{ip}:7200"),
        name: format!("node-{number}"),
        nic_rate: Some(NIC_RATE),
        place: Place::default(),
        host: HostAddr::new(IpAddr::V4(ip)),
    }
}

/// How long inputs take, and how many were told something.
fn timed(planner: &mut Planner, inputs: impl IntoIterator<Item = Input>) -> (Duration, u32) {
    let begin = Instant::now();
    for input in inputs {
        planner.handle(Duration::from_secs(1), input);
    }
    let told = drain(planner);
    (begin.elapsed(), told)
}

/// Takes all outputs, and counts the plans among them.
fn drain(planner: &mut Planner) -> u32 {
    let mut plans = 0;
    while let Some(output) = planner.poll() {
        plans += u32::from(matches!(output, Output::Plan { .. }));
    }
    plans
}

/// Does it again and again, as long as patience lasts, of which `spent` is gone; without it, once at least.
fn again(spent: Duration, mut what: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let begin = Instant::now();
    for done in 0..SAMPLES_MAX {
        if spent + begin.elapsed() > PATIENCE && (done > 0 || !spent.is_zero()) {
            break;
        }
        what()?;
    }
    Ok(())
}

/// A line of what the kernel says of this process's memory, in bytes.
fn memory(name: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    memory_of(&status, name).with_context(|| format!("the kernel does not say {name}"))
}

fn memory_of(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(value.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_told_and_nobody_gets_lost() {
        let scene = Scene { bytes: 64 << 20, piece_count: 64, peers: 20 };
        let row = scene.measure().unwrap();
        assert_eq!(row.peers, 20);
        assert!(row.plan.count > 1 && row.join.count == row.leave.count, "{row:?}");
        assert!(row.told_per_change >= 0.5, "who joins is told: {row:?}");
        assert_eq!(row.map_bytes_per_peer, 8);
    }

    #[test]
    fn memory_is_what_the_kernel_says() {
        let status = "VmHWM:\t    4096 kB\nRssAnon:\t     120 kB\nRssAnonymous: 7 kB\n";
        assert_eq!(memory_of(status, "RssAnon"), Some(120 << 10));
        assert_eq!(memory_of(status, "VmHWM"), Some(4 << 20));
        assert_eq!(memory_of(status, "VmSwap"), None);
    }
}
