//! `simulator fuzz` and `simulator replay`: plays seeds, and shows what is wrong with one. Owns their options and what they
//! print; does not own what a seed means or what must hold (`simulator::fuzz`).

use std::process::ExitCode;
use std::time::{Duration, Instant};

use simulator::fuzz::{self, Scenario, Shown, Verdict, past_seeds};

use super::parse;

/// Of so many seeds one is played twice, to see that it gives the same events.
const TWICE_EVERY: u64 = 64;

/// Failures after which no more seeds are played: what is broken is broken.
const FAILURES_MAX: u64 = 10;

/// Which seeds, and how they are shown.
pub(crate) struct FuzzArgs {
    seeds: u64,
    minutes: Option<u64>,
    seed: u64,
    past: bool,
    json: bool,
}

impl FuzzArgs {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self { seeds: 1000, minutes: None, seed: 1, past: false, json: false };
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
            match flag.as_str() {
                "--json" => args.json = true,
                "--past" => args.past = true,
                "--seeds" => args.seeds = parse(&value()?)?,
                "--minutes" => args.minutes = Some(parse(&value()?)?),
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
    let ends = args.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let mut seed = args.seed;
    let is_more = |seeds: u64| ends.map_or(seeds < args.seeds, |ends| started.elapsed() < ends);
    while sum.failures < FAILURES_MAX && is_more(sum.seeds) {
        sum.seeds += 1;
        sum.play(seed, is_json);
        seed = seed.wrapping_add(1);
    }
    sum.show(started.elapsed(), args);
    if sum.failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

impl Sum {
    fn play(&mut self, seed: u64, is_json: bool) {
        let scenario = Scenario::new(seed);
        let verdict = fuzz::play(&scenario);
        self.events += verdict.events;
        if verdict.violation.is_some() {
            self.failures += 1;
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
        let Self { seeds, past, failures, events, twice } = self;
        let took = took.as_secs_f64();
        if args.json {
            println!(
                "{{\"seed\":{},\"seeds\":{seeds},\"past\":{past},\"failures\":{failures},\"events\":{events},\
                 \"played_twice\":{twice},\"took_seconds\":{took:.3}}}",
                args.seed
            );
        } else {
            let good = seeds + past - failures.min(&(seeds + past));
            println!(
                "{seeds} seeds and {past} past ones in {took:.1} s, {events} events, {twice} played twice"
            );
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
