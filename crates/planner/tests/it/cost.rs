//! What plans cost, printed for whoever runs `cargo test --release -p planner -- --ignored --nocapture cost`. It asserts
//! no time: `bench plan` measures against the budgets.

#![expect(clippy::disallowed_methods, reason = "the time that it takes is the question here")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use modelpack::layout::Run;
use planner::{ArtifactId, HostAddr, Input, Output, PeerId, Place, Planner, Progress};

const ARTIFACT: ArtifactId = ArtifactId([7; 32]);
const PIECES: u32 = 2048;

/// Names are as random as hashes.
pub(crate) fn peer(number: u32) -> PeerId {
    let word = |salt: u64| (u64::from(number) + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (salt << 7);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word(1).swap_bytes().to_le_bytes());
    bytes[8..].copy_from_slice(&word(77).to_le_bytes());
    PeerId::new(bytes)
}

pub(crate) fn register(number: u32) -> Input {
    let ip = Ipv4Addr::from_bits((10 << 24) + number);
    Input::Register {
        peer: peer(number),
        address: format!("{ip}:7200"),
        name: format!("node-{number}"),
        nic_rate: Some(1_250_000_000),
        place: Place::default(),
        host: HostAddr::new(ip.into()),
    }
}

pub(crate) fn join(number: u32, epoch: u64) -> Input {
    Input::Join {
        peer: peer(number),
        artifact: ARTIFACT,
        bytes: u64::from(PIECES) << 20,
        piece_count: PIECES,
        origin_ok: true,
        is_seed: false,
        have: Vec::new(),
        progress: Progress { epoch, ..Progress::default() },
    }
}

/// Tells it, and gives the time until the last plan was taken, and how many there were.
fn timed(planner: &mut Planner, now: Duration, input: Input) -> (Duration, usize) {
    let begin = Instant::now();
    planner.handle(now, input);
    let plans = std::iter::from_fn(|| planner.poll()).filter(|at| matches!(at, Output::Plan { .. })).count();
    (begin.elapsed(), plans)
}

/// Bytes of memory that this process has.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) << 10
}

/// All get as many pieces in each tenth of a second; gives what it takes to compare them.
fn compared(planner: &mut Planner, peers: u32) -> Duration {
    let mut last = Duration::ZERO;
    for time in 1..=3 {
        let now = Duration::from_millis(1000 + 110 * u64::from(time));
        for number in 0..peers {
            let runs = vec![Run::new(20 * (time - 1), 20 * time)];
            timed(planner, now, Input::Have { peer: peer(number), artifact: ARTIFACT, runs });
        }
        last = timed(planner, now, Input::Tick).0;
    }
    last
}

fn middle(mut times: Vec<(Duration, usize)>) -> (Duration, Duration, usize) {
    times.sort_unstable();
    let most = times.iter().map(|(_, plans)| *plans).max().unwrap_or(0);
    (times[times.len() / 2].0, times[times.len() - 1].0, most)
}

#[test]
#[ignore = "it measures, and asserts nothing"]
fn cost_of_the_first_plan_of_many() {
    let mut plans: Vec<(Duration, usize)> = (0..11)
        .map(|_| {
            let mut planner = Planner::new();
            for number in 0..10_000 {
                timed(&mut planner, Duration::ZERO, register(number));
                timed(&mut planner, Duration::ZERO, join(number, 9));
            }
            timed(&mut planner, Duration::from_secs(1), Input::Tick)
        })
        .collect();
    plans.sort_unstable();
    println!(
        "10000 peers: plan {:?}, best {:?} (median and best of eleven, all told)",
        plans[5].0, plans[0].0
    );
}

#[test]
#[ignore = "it measures, and asserts nothing"]
fn cost_of_a_plan_a_join_and_a_leave() {
    for peers in [100, 1000, 10_000] {
        let before = resident();
        let mut planner = Planner::new();
        // As after a take-over: everybody comes with a plan, and the first one of this planner is for all.
        for number in 0..peers {
            timed(&mut planner, Duration::ZERO, register(number));
            timed(&mut planner, Duration::ZERO, join(number, 9));
        }
        let (plan, plans) = timed(&mut planner, Duration::from_secs(1), Input::Tick);
        let bytes = resident().saturating_sub(before) / u64::from(peers);
        let compare = compared(&mut planner, peers);
        let (mut joins, mut leaves) = (Vec::new(), Vec::new());
        for at in 0..200 {
            timed(&mut planner, Duration::from_secs(2), register(peers + at));
            joins.push(timed(&mut planner, Duration::from_secs(2), join(peers + at, 0)));
        }
        for at in 0..200 {
            let gone = Input::Gone { peer: peer((at * 37) % peers) };
            leaves.push(timed(&mut planner, Duration::from_secs(2), gone));
        }
        println!(
            "{peers} peers: plan {plan:?} ({plans} told), join {:?}, leave {:?} (median, worst, most told), {bytes} bytes a peer, \
             comparison {compare:?}",
            middle(joins),
            middle(leaves)
        );
    }
}
