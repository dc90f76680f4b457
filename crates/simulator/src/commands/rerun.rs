//! `simulator rerun`: broadcasts that a scheduler has recorded, played again under one policy after another.
//!
//! Owns: its command line, how the figures are shown. Does not own: what a record says (crate `record`), or a single figure
//! (crate `simulator`).

use std::process::ExitCode;
use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use modelpack::quantity::Rate;
use record::Header;
use simulator::policies::Kind;
use simulator::rerun::{Broadcast, Card, End, Play, broadcasts};

use super::parse;

struct Args {
    file: String,
    policies: Vec<Kind>,
    origin_rate: Option<u64>,
    pieces: u32,
    quanta: u32,
    seed: u64,
    json: bool,
}

impl Args {
    fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let file = words.next().filter(|word| !word.starts_with('-')).ok_or("`rerun` needs a FILE")?;
        // As many pieces and parts as in `policies`.
        let (pieces, quanta, seed) = (512, 16, 1);
        let (policies, origin_rate, json) = (Vec::new(), None, false);
        let mut args = Self { file, policies, origin_rate, pieces, quanta, seed, json };
        while let Some(flag) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
            match flag.as_str() {
                "--json" => args.json = true,
                "--policy" => {
                    let named: Result<Vec<Kind>, String> = value()?.split(',').map(policy).collect();
                    args.policies.extend(named?);
                }
                "--origin-rate" => args.origin_rate = Some(parse::<Rate>(&value()?)?.0),
                "--pieces" => args.pieces = parse::<u32>(&value()?)?.max(1),
                "--quanta" => args.quanta = parse::<u32>(&value()?)?.max(1),
                "--seed" => args.seed = parse(&value()?)?,
                _ => return Err(format!("`{flag}` is no option")),
            }
        }
        if args.policies.is_empty() {
            args.policies = Kind::ALL.to_vec();
        }
        Ok(args)
    }
}

fn policy(name: &str) -> Result<Kind, String> {
    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == name);
    kind.ok_or_else(|| format!("`{name}` is no policy"))
}

/// How long it took one policy.
struct Row {
    policy: Kind,
    last: Option<Duration>,
    /// Copies of the artifact that left the origin.
    origin: f64,
}

/// Plays, and shows it.
pub(crate) fn run(words: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    let args = Args::parse(words)?;
    let failed = |error: String| {
        eprintln!("error: {error}");
        Ok(ExitCode::FAILURE)
    };
    let text = match std::fs::read_to_string(&args.file) {
        Ok(text) => text,
        Err(error) => return failed(format!("read `{}`: {error}", args.file)),
    };
    let records = match record::parse(&text) {
        Ok(records) => records,
        Err(error) => return failed(format!("{}:{error}", args.file)),
    };
    let mut is_first = true;
    for record in records {
        for broadcast in broadcasts(&record) {
            if !args.json && !is_first {
                println!();
            }
            is_first = false;
            show(&args, &record.header, &broadcast);
        }
    }
    if is_first {
        return failed(format!("nobody lacked anything in `{}`", args.file));
    }
    Ok(ExitCode::SUCCESS)
}

fn show(args: &Args, header: &Header, broadcast: &Broadcast) {
    let Some(origin_rate) = args.origin_rate.or_else(|| broadcast.origin_rate()) else {
        let why = "nobody got an eighth of it, so that nothing is known of the origin: say `--origin-rate`";
        if args.json {
            println!("{{{},\"error\":\"{why}\"}}", begin_json(header, broadcast));
        } else {
            head(header, broadcast);
            println!("  {why}");
        }
        return;
    };
    let (pieces, quanta, seed) = (args.pieces.min(broadcast.pieces), args.quanta, args.seed);
    let play = Play { pieces, quanta, seed, origin_rate };
    let bound = broadcast.bound(origin_rate);
    if !args.json {
        head(header, broadcast);
        facts(args, broadcast, &play);
        println!("\n  POLICY        LAST         × BOUND  ORIGIN");
        if let Some(recorded) = broadcast.recorded() {
            line("recorded", (Some(recorded), bound), "");
        } else {
            println!("  recorded      not to its end");
        }
    }
    let options = broadcast.options(&play);
    let rows = args.policies.iter().map(|policy| {
        let report = policy.run(&options);
        let origin = as_f64(report.origin_bytes) / as_f64(u64::from(pieces) * PIECE_BYTES);
        let row = Row { policy: *policy, last: broadcast.last(&report), origin };
        if !args.json {
            line(policy.name(), (row.last, bound), &format!("{origin:.2}"));
        }
        row
    });
    let rows: Vec<Row> = rows.collect();
    if args.json {
        println!("{}", json((header, broadcast), &play, &rows));
    }
}

fn head(header: &Header, broadcast: &Broadcast) {
    let (bytes, pieces) = (amount(broadcast.bytes), broadcast.pieces);
    println!("{}", broadcast.artifact);
    println!("  begun     {:.3} s after {}", broadcast.begin.as_secs_f64(), header.start);
    println!("  size      {bytes} in {pieces} pieces");
}

fn facts(args: &Args, broadcast: &Broadcast, play: &Play) {
    let Counts { late, left, open, declared, seen } = Counts::of(broadcast);
    let all = broadcast.members.len();
    let unknown = all - declared - seen;
    println!("  members   {all}: {late} came later, {left} left too early, {open} not done at the end");
    println!("  cards     {declared} declared, {seen} as seen, {unknown} taken for the middle of the others");
    let origin = match (args.origin_rate, broadcast.holders_rate) {
        (Some(_), _) => "as given".to_owned(),
        (None, Some(_)) => format!("{} that had everything", broadcast.holders),
        (None, None) => "what it was seen to send at least".to_owned(),
    };
    println!("  origin    {}/s, {origin}", amount(play.origin_rate));
    println!("  plans     {} told to members", broadcast.plans);
    println!("  played    in {} pieces of {} parts", play.pieces, play.quanta);
    println!("  bound     {:.3} s", broadcast.bound(play.origin_rate).as_secs_f64());
}

fn line(name: &str, (last, bound): (Option<Duration>, Duration), origin: &str) {
    let text = match last {
        None => format!("  {name:<12}  never        {:<7}  {origin}", ""),
        Some(last) => {
            let ratio = last.as_secs_f64() / bound.as_secs_f64();
            format!("  {name:<12}  {:<11}  {ratio:<7.3}  {origin}", format!("{:.3} s", last.as_secs_f64()))
        }
    };
    println!("{}", text.trim_end());
}

/// How many members are what.
#[derive(Default)]
struct Counts {
    late: usize,
    left: usize,
    open: usize,
    declared: usize,
    seen: usize,
}

impl Counts {
    fn of(broadcast: &Broadcast) -> Self {
        let mut counts = Self::default();
        for member in &broadcast.members {
            counts.late += usize::from(member.joined > Duration::ZERO);
            counts.left += usize::from(matches!(member.end, End::Left(_)));
            counts.open += usize::from(member.end == End::Open);
            counts.declared += usize::from(matches!(member.card, Some(Card::Declared(_))));
            counts.seen += usize::from(matches!(member.card, Some(Card::Seen(_))));
        }
        counts
    }
}

fn begin_json(header: &Header, broadcast: &Broadcast) -> String {
    let Counts { late, left, open, declared, seen } = Counts::of(broadcast);
    let Broadcast { artifact, bytes, pieces, plans, holders, .. } = broadcast;
    format!(
        "\"artifact\":\"{artifact}\",\"start\":\"{}\",\"begin_seconds\":{:.6},\"bytes\":{bytes},\
         \"pieces\":{pieces},\"members\":{},\"late\":{late},\"left\":{left},\"open\":{open},\
         \"declared\":{declared},\"seen\":{seen},\"holders\":{holders},\"plans\":{plans}",
        header.start.escape_default(),
        broadcast.begin.as_secs_f64(),
        broadcast.members.len(),
    )
}

fn json((header, broadcast): (&Header, &Broadcast), play: &Play, rows: &[Row]) -> String {
    let seconds =
        |time: Option<Duration>| time.map_or("null".to_owned(), |time| format!("{:.6}", time.as_secs_f64()));
    let row = |row: &Row| {
        let (name, origin) = (row.policy.name(), row.origin);
        format!("{{\"policy\":\"{name}\",\"seconds\":{},\"origin_x\":{origin:.4}}}", seconds(row.last))
    };
    format!(
        "{{{},\"origin_bytes_per_second\":{},\"played_pieces\":{},\"bound_seconds\":{},\
         \"recorded_seconds\":{},\"policies\":[{}]}}",
        begin_json(header, broadcast),
        play.origin_rate,
        play.pieces,
        seconds(Some(broadcast.bound(play.origin_rate))),
        seconds(broadcast.recorded()),
        rows.iter().map(row).collect::<Vec<_>>().join(","),
    )
}

/// Bytes for people.
fn amount(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB"];
    let mut value = as_f64(bytes);
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^53")]
fn as_f64(value: u64) -> f64 {
    value as f64
}
