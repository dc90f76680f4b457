//! `simulator fuzz` and `simulator replay`: plays seeds, and shows what is wrong with one. Owns their options and what they
//! print; does not own what a seed means or what must hold (`simulator::fuzz`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use simulator::fuzz::{self, Scenario, Shown, Verdict, past_seeds};

use super::parse;

/// Of so many seeds one is played twice, to see that it gives the same events.
const TWICE_EVERY: u64 = 64;

/// Failures after which no more seeds are played: what is broken is broken.
const FAILURES_MAX: u64 = 10;

/// What is printed of one seed stays together.
static PRINTING: Mutex<()> = Mutex::new(());

/// Which seeds, and how they are shown.
pub(crate) struct FuzzArgs {
    seeds: u64,
    minutes: Option<u64>,
    seed: u64,
    past: bool,
    jobs: usize,
    json: bool,
}

impl FuzzArgs {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self { seeds: 1000, minutes: None, seed: 1, past: false, jobs: 1, json: false };
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
            match flag.as_str() {
                "--json" => args.json = true,
                "--past" => args.past = true,
                "--seeds" => args.seeds = parse(&value()?)?,
                "--minutes" => args.minutes = Some(parse(&value()?)?),
                "--jobs" => args.jobs = parse(&value()?)?,
                "--seed" => args.seed = parse(&value()?)?,
                _ => return Err(format!("`{flag}` is no option")),
            }
        }
        Ok(args)
    }
}

/// What all seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    past: u64,
    failures: u64,
    events: u64,
    twice: u64,
    /// Seeds in which members began repairs, and in which plans arrived wrong.
    repaired: u64,
    misled: u64,
}

pub(crate) fn fuzz(args: &FuzzArgs) -> ExitCode {
    let started = now();
    let is_json = args.json;
    if !is_json {
        let many =
            args.minutes.map_or(format!("{} seeds", args.seeds), |minutes| format!("{minutes} minutes"));
        println!("{many} from seed {} on", args.seed);
    }
    let mut sum = Sum::default();
    if args.past {
        for (seed, _) in past_seeds() {
            sum.past += 1;
            sum.play(seed, is_json);
        }
    }
    // The past ones take none of the time that fresh ones have.
    let fresh = now();
    let ends = args.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let is_more = |seeds: u64| ends.map_or(seeds < args.seeds, |ends| fresh.elapsed() < ends);
    // A seed is a run of its own: side by side they take the next one, and find what they would one after another.
    let (next, failures) = (AtomicU64::new(0), AtomicU64::new(sum.failures));
    let play = || {
        let mut sum = Sum::default();
        while failures.load(Ordering::Relaxed) < FAILURES_MAX {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if !is_more(at) {
                break;
            }
            sum.seeds += 1;
            let before = sum.failures;
            sum.play(args.seed.wrapping_add(at), is_json);
            failures.fetch_add(sum.failures - before, Ordering::Relaxed);
        }
        sum
    };
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(play)).collect();
        for job in jobs {
            sum.add(&job.join().expect("what panics in a seed is caught there"));
        }
    });
    sum.show(started.elapsed(), args);
    if sum.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.seeds += other.seeds;
        self.past += other.past;
        self.failures += other.failures;
        self.events += other.events;
        self.twice += other.twice;
        self.repaired += other.repaired;
        self.misled += other.misled;
    }

    fn play(&mut self, seed: u64, is_json: bool) {
        let scenario = Scenario::new(seed);
        let Ok(verdict) = catch_unwind(AssertUnwindSafe(|| fuzz::play(&scenario))) else {
            self.failures += 1;
            println!("seed {seed}: panics\n  replay: cargo run --release -p simulator -- replay {seed}");
            return;
        };
        self.events += verdict.events;
        self.repaired += u64::from(verdict.repairs > 0);
        self.misled += u64::from(verdict.wrong_plans > 0);
        if verdict.violation.is_some() {
            self.failures += 1;
            let _printing = PRINTING.lock().unwrap_or_else(PoisonError::into_inner);
            show(&scenario, &fuzz::replay(&scenario, &Shown::default()), is_json);
        } else if seed.is_multiple_of(TWICE_EVERY) {
            self.twice += 1;
            if fuzz::play(&scenario).event_hash != verdict.event_hash {
                self.failures += 1;
                println!("seed {seed}: same seed, same events: the second time they were others");
            }
        }
    }

    fn show(&self, took: Duration, args: &FuzzArgs) {
        let Self { seeds, past, failures, events, twice, repaired, misled } = self;
        let took = took.as_secs_f64();
        if args.json {
            println!(
                "{{\"seed\":{},\"seeds\":{seeds},\"past\":{past},\"failures\":{failures},\"events\":{events},\
                 \"played_twice\":{twice},\"repaired\":{repaired},\"misled\":{misled},\"took_seconds\":{took:.3}}}",
                args.seed
            );
        } else {
            let good = seeds + past - failures.min(&(seeds + past));
            println!(
                "{seeds} seeds and {past} past ones in {took:.1} s, {events} events, {twice} played twice"
            );
            println!("{repaired} with repairs of wrong provisional trees, {misled} with wrong plans");
            println!("{good} hold, {failures} do not");
        }
    }
}

/// Plays one seed, and says all that is known of it.
pub(crate) fn replay(mut words: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let seed = parse(&words.next().ok_or("`replay` needs a seed")?)?;
    let mut shown = Shown::default();
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{flag}` needs a value"))?;
        match flag.as_str() {
            "--lines" => shown.lines = parse(&value)?,
            "--node" => shown.nodes.push(parse(&value)?),
            _ => return Err(format!("`{flag}` is no option")),
        }
    }
    let scenario = Scenario::new(seed);
    let verdict = fuzz::replay(&scenario, &shown);
    show(&scenario, &verdict, false);
    Ok(if verdict.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(scenario: &Scenario, verdict: &Verdict, is_json: bool) {
    let seed = scenario.seed;
    if is_json {
        if let Some(found) = &verdict.violation {
            let (oracle, at, what) = (found.oracle, found.at.as_secs_f64(), &found.what);
            println!(
                "{{\"seed\":{seed},\"oracle\":{oracle:?},\"at_seconds\":{at:.6},\"nodes\":{:?},\"what\":{what:?}}}",
                found.nodes
            );
        }
        return;
    }
    println!("seed {seed}: {scenario}");
    match &verdict.violation {
        None => println!(
            "  all holds: the last was done at {:.3} s, {:.3} copies left the origin, {} events, hash {:016x}",
            verdict.last_done.as_secs_f64(),
            verdict.copies,
            verdict.events,
            verdict.event_hash
        ),
        Some(found) => {
            println!(
                "  VIOLATED: {} at {:.6} s, nodes {:?}",
                found.oracle,
                found.at.as_secs_f64(),
                found.nodes
            );
            println!("  {}", found.what);
            println!("  replay: cargo run --release -p simulator -- replay {seed}");
        }
    }
    for line in verdict.state.iter().chain(&verdict.trace) {
        println!("  {line}");
    }
}

#[expect(clippy::disallowed_methods, reason = "how long seeds take is measured, and decides when to stop")]
fn now() -> Instant {
    Instant::now()
}
