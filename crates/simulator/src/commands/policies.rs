//! `simulator policies`: ways to distribute an artifact side by side, as a table and as a picture.
//!
//! Owns: its command line, its table. Does not own: a single figure (crate `simulator`), what the picture looks like
//! (`picture`).

use std::fmt::Write as _;
use std::process::ExitCode;

use simulator::policies::Kind;
use simulator::sweep::{Case, Figures, Sweep};

use super::parse;
use super::sweep::{case, number, quantile};

mod picture;

const BYTES: u64 = 140_000_000_000;
const RATE: u64 = 25_000_000_000;

struct Args {
    peers: Vec<u32>,
    cases: Vec<Case>,
    pieces: u32,
    quanta: u32,
    seeds: u64,
    seed: u64,
    json: bool,
    svg: Option<String>,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut args = Self {
            peers: vec![8, 16, 64],
            cases: vec![Case::Clean, Case::Slow, Case::Kill, Case::Heterogeneous],
            pieces: 512,
            // A hop of the binomial pipeline waits for the last part of a piece: few parts would make it look slow.
            quanta: 16,
            seeds: 5,
            seed: 1,
            json: false,
            svg: None,
        };
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
            match flag.as_str() {
                "--json" => args.json = true,
                "--svg" => args.svg = Some(value()?),
                "--peers" => {
                    let peers: Result<Vec<u32>, _> = value()?.split(',').map(parse).collect();
                    args.peers = peers?.into_iter().map(|peers| peers.max(2)).collect();
                }
                "--cases" => args.cases = value()?.split(',').map(case).collect::<Result<_, _>>()?,
                "--pieces" => args.pieces = parse::<u32>(&value()?)?.max(1),
                "--quanta" => args.quanta = parse::<u32>(&value()?)?.max(1),
                "--seeds" => args.seeds = parse::<u64>(&value()?)?.max(1),
                "--seed" => args.seed = parse(&value()?)?,
                _ => return Err(format!("`{flag}` is no option")),
            }
        }
        let is_of_hybrid = |case: &&Case| {
            matches!(
                case,
                Case::Late
                    | Case::SchedulerDown
                    | Case::Racks
                    | Case::Far
                    | Case::Unequal
                    | Case::Disk
                    | Case::Hash
            )
        };
        match args.cases.iter().find(is_of_hybrid) {
            Some(case) => Err(format!("`{}` is a case of the hybrid alone", case.name())),
            None => Ok(args),
        }
    }
}

/// What came of one policy in one case: medians over seeds.
struct Row {
    policy: Kind,
    peers: u32,
    case: Case,
    /// The ratio of the last healthy peer; infinite if it never finished.
    median: f64,
    max: f64,
    p99: f64,
    /// Copies of the artifact that left the origin.
    origin: f64,
}

impl Row {
    fn measure(args: &Args, (policy, peers, case): (Kind, u32, Case)) -> Self {
        let (pieces, quanta) = (args.pieces, args.quanta);
        let sweep = Sweep { case, peers, bytes: BYTES, rate: RATE, pieces, quanta };
        let seeds = args.seed..args.seed + args.seeds;
        let all: Vec<Figures> = seeds.map(|seed| sweep.figures(&policy.run(&sweep.options(seed)))).collect();
        let ratios: Vec<f64> = all.iter().map(Figures::worst).collect();
        let healthy: Vec<f64> = all.iter().flat_map(|figures| figures.ratios.iter().copied()).collect();
        let origin: Vec<f64> = all.iter().map(|figures| figures.origin_copies).collect();
        Self {
            policy,
            peers,
            case,
            median: quantile(&ratios, 0.5),
            max: quantile(&ratios, 1.0),
            p99: quantile(&healthy, 0.99),
            origin: quantile(&origin, 0.5),
        }
    }

    fn json(&self) -> String {
        format!(
            "{{\"policy\":\"{}\",\"peers\":{},\"case\":\"{}\",\"ratio_median\":{},\"ratio_max\":{},\
             \"p99_peer_ratio\":{},\"origin_x\":{}}}",
            self.policy.name(),
            self.peers,
            self.case.name(),
            number(self.median),
            number(self.max),
            number(self.p99),
            number(self.origin),
        )
    }
}

/// Measures, and shows it.
pub(crate) fn run(words: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let args = Args::parse(words)?;
    if !args.json {
        println!(
            "140 GB over cards of 25 GB/s in {} pieces; medians of {} seeds: the last healthy peer as a multiple of its\n\
             bound · copies of the artifact that left the origin",
            args.pieces, args.seeds
        );
    }
    let mut rows = Vec::new();
    for peers in &args.peers {
        if !args.json {
            let names = args.cases.iter().map(|case| case.name().to_owned());
            println!("\n{}", line(&format!("{peers} peers"), names));
        }
        for policy in Kind::ALL {
            let begin = rows.len();
            for case in &args.cases {
                rows.push(Row::measure(&args, (policy, *peers, *case)));
                if let (true, Some(row)) = (args.json, rows.last()) {
                    println!("{}", row.json());
                }
            }
            if !args.json {
                println!("{}", line(policy.name(), rows[begin..].iter().map(cell)));
            }
        }
    }
    if let Some(file) = &args.svg {
        let about = format!(
            "last healthy peer, as a multiple of its bound · 140 GB at 25 GB/s in {} pieces, medians of {} seeds",
            args.pieces, args.seeds
        );
        let svg = picture::draw(&args.cases, &rows, &about);
        if let Err(error) = std::fs::write(file, svg) {
            eprintln!("error: write `{file}`: {error}");
            return Ok(ExitCode::FAILURE);
        }
    }
    if args.json {
        let rows: Vec<String> = rows.iter().map(Row::json).collect();
        let (pieces, quanta, seeds) = (args.pieces, args.quanta, args.seeds);
        let rows = rows.join(",");
        println!("{{\"pieces\":{pieces},\"quanta\":{quanta},\"seeds\":{seeds},\"rows\":[{rows}]}}");
    }
    Ok(ExitCode::SUCCESS)
}

fn line(name: &str, cells: impl Iterator<Item = String>) -> String {
    let mut line = format!("{name:<12}");
    for cell in cells {
        let _ = write!(line, "{cell:<18}");
    }
    line.trim_end().to_owned()
}

fn cell(row: &Row) -> String {
    format!("{} · {:.2}", ratio(row.median), row.origin)
}

/// With as many digits as mean something.
fn ratio(value: f64) -> String {
    match value {
        value if !value.is_finite() => "never".to_owned(),
        value if value < 2.0 => format!("{value:.3}"),
        value => format!("{value:.2}"),
    }
}
