//! `simulator sweep`: measures broadcasts. Owns its options and how figures are shown; does not own a single figure (crate
//! `simulator`).

use std::time::{Duration, Instant};

use modelpack::quantity::{Rate, Size};
use simulator::Report;
use simulator::sweep::{Case, Figures, Sweep};

use super::parse;

pub(crate) struct SweepArgs {
    peers: u32,
    size: u64,
    rate: u64,
    case: Case,
    pieces: u32,
    quanta: u32,
    seeds: u64,
    seed: u64,
    json: bool,
    busy: bool,
}

impl SweepArgs {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            peers: 64,
            size: 140_000_000_000,
            rate: 25_000_000_000,
            case: Case::Clean,
            pieces: 2048,
            quanta: 2,
            seeds: 20,
            seed: 1,
            json: false,
            busy: false,
        };
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
            match flag.as_str() {
                "--json" => args.json = true,
                "--busy" => args.busy = true,
                "--peers" => args.peers = parse(&value()?)?,
                "--size" => args.size = parse::<Size>(&value()?)?.0,
                "--rate" => args.rate = parse::<Rate>(&value()?)?.0,
                "--pieces" => args.pieces = parse(&value()?)?,
                "--quanta" => args.quanta = parse(&value()?)?,
                "--seeds" => args.seeds = parse(&value()?)?,
                "--seed" => args.seed = parse(&value()?)?,
                "--case" => args.case = case(&value()?)?,
                _ => return Err(format!("`{flag}` is no option")),
            }
        }
        Ok(args)
    }
}

pub(crate) fn sweep(args: &SweepArgs) {
    let sweep = Sweep {
        case: args.case,
        peers: args.peers.max(2),
        bytes: args.size,
        rate: args.rate,
        pieces: args.pieces.max(1),
        quanta: args.quanta.max(1),
    };
    if !args.json {
        head(&sweep, args);
    }
    let mut all = Vec::new();
    for seed in args.seed..args.seed + args.seeds.max(1) {
        #[expect(
            clippy::disallowed_methods,
            reason = "how long a run takes is measured, and decides nothing"
        )]
        let started = Instant::now();
        let report = simulator::run(&sweep.options(seed));
        let figures = sweep.figures(&report);
        let took = started.elapsed();
        if args.busy {
            for line in &report.busy {
                let at = line.at.as_secs_f64();
                println!("{at:8.3} s  origin {:.3}  up {:.3}  down {:.3}", line.origin, line.up, line.down);
            }
        }
        show_seed(args.json, (seed, &report, took), &figures);
        all.push(figures);
    }
    show_result(args, &sweep, &all);
}

fn head(sweep: &Sweep, args: &SweepArgs) {
    let (bound, optimum) = sweep.yardsticks();
    println!("{} · {} peers · {} pieces", sweep.case.name(), sweep.peers, sweep.pieces);
    println!("  piece     {} bytes, in {} parts", sweep.piece_bytes(), args.quanta);
    println!("  bound     {:.3} s", bound.as_secs_f64());
    let over = optimum.as_secs_f64() / bound.as_secs_f64();
    println!("  optimum   {:.3} s in whole pieces, {over:.4} × the bound", optimum.as_secs_f64());
    if let Some((random, racks)) = sweep.of_random_mesh() {
        println!("  racks     {racks}; a random mesh takes {:.3} s at least", random.as_secs_f64());
    }
    println!();
    println!("  seed   last      ratio   p99     origin   events     took");
}

fn show_seed(is_json: bool, (seed, report, took): (u64, &Report, Duration), figures: &Figures) {
    let (events, hash) = (report.events, report.event_hash);
    let (worst, p99) = (figures.worst(), quantile(&figures.ratios, 0.99));
    let (last, took) = (figures.last.as_secs_f64(), took.as_secs_f64());
    let copies = figures.origin_copies;
    let core = figures.core.map_or("null".to_owned(), number);
    if is_json {
        let late = figures.late.map_or("null".to_owned(), number);
        println!(
            "{{\"seed\":{seed},\"last_seconds\":{last:.6},\"ratio\":{},\"p99_peer_ratio\":{},\"late_ratio\":{late},\
             \"origin_x\":{copies:.4},\"core_x\":{core},\"events\":{events},\"event_hash\":\"{hash:016x}\",\"took_seconds\":{took:.3}}}",
            number(worst),
            number(p99),
        );
    } else {
        let late = figures.late.map_or(String::new(), |late| format!("   late {late:.4}"));
        let core = figures.core.map_or(String::new(), |core| format!("   core {core:.4}"));
        println!(
            "  {seed:<4} {last:7.3} s   {worst:.4}  {p99:.4}  {copies:.4}  {events:>9}  {took:6.2} s{late}{core}"
        );
    }
}

fn show_result(args: &SweepArgs, sweep: &Sweep, all: &[Figures]) {
    let ratios: Vec<f64> = all.iter().map(Figures::worst).collect();
    let peers: Vec<f64> = all.iter().flat_map(|figures| figures.ratios.iter().copied()).collect();
    let origin: Vec<f64> = all.iter().map(|figures| figures.origin_copies).collect();
    let (median, max) = (quantile(&ratios, 0.5), quantile(&ratios, 1.0));
    let core: Option<f64> = all.iter().filter_map(|figures| figures.core).reduce(f64::max);
    let (p99, origin) = (quantile(&peers, 0.99), quantile(&origin, 1.0));
    if args.json {
        println!(
            "{{\"peers\":{},\"case\":\"{}\",\"seeds\":{},\"pieces\":{},\"ratio_median\":{},\"ratio_max\":{},\
             \"p99_peer_ratio\":{},\"origin_x\":{},\"core_x\":{}}}",
            sweep.peers,
            sweep.case.name(),
            all.len(),
            sweep.pieces,
            number(median),
            number(max),
            number(p99),
            number(origin),
            core.map_or("null".to_owned(), number),
        );
    } else {
        println!();
        println!("  ratio     {median:.4} median, {max:.4} at most");
        println!("  p99 peer  {p99:.4}");
        println!("  origin    {origin:.4} copies at most");
        if let Some(core) = core {
            println!("  core      {core:.4} times what has to cross between racks, at most");
        }
    }
}

pub(super) fn case(name: &str) -> Result<Case, String> {
    Case::ALL.into_iter().find(|case| case.name() == name).ok_or_else(|| format!("`{name}` is no case"))
}

/// JSON has no infinity.
pub(super) fn number(value: f64) -> String {
    if value.is_finite() { format!("{value:.4}") } else { "null".to_owned() }
}

/// The smallest value that so many of all are not above.
pub(super) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a list that is in memory"
    )]
    let at = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(at.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}
