//! `simulator failover`: what the death of a parent costs its children. Owns its options and how figures are shown; does not
//! own a single figure (`simulator::failover`).

use std::time::Duration;

use modelpack::layout::PIECE_BYTES;
use modelpack::quantity::{Rate, Size};
use simulator::Orphan;
use simulator::failover::{End, Failover};

use super::parse;
use super::sweep::{number, quantile};

pub(crate) fn run(mut words: impl Iterator<Item = String>) -> Result<(), String> {
    let (mut peers, mut size, mut rate) = (64, 2 << 30, 1_250_000_000);
    let (mut seeds, mut first, mut is_json) = (20, 1, false);
    while let Some(flag) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("`{flag}` needs a value"));
        match flag.as_str() {
            "--json" => is_json = true,
            "--peers" => peers = parse::<u32>(&value()?)?.max(2),
            "--size" => size = parse::<Size>(&value()?)?.0,
            "--rate" => rate = parse::<Rate>(&value()?)?.0,
            "--seeds" => seeds = parse::<u64>(&value()?)?.max(1),
            "--seed" => first = parse(&value()?)?,
            _ => return Err(format!("`{flag}` is no option")),
        }
    }
    let pieces = u32::try_from(size.div_ceil(PIECE_BYTES).max(1)).map_err(|_| "that is too much")?;
    if !is_json {
        println!("{peers} peers · {pieces} pieces of {PIECE_BYTES} bytes · {rate} bytes per second");
        println!(
            "  end     was      orphans  gap: median      at most  rule: median     at most  later than by rule"
        );
    }
    for end in End::ALL {
        let failover = Failover { peers, pieces, rate, end };
        show(&failover, first..first + seeds, is_json);
    }
    Ok(())
}

/// The figures of one kind of end, of stripes that the dead relayed, and of those that it read from the origin.
fn show(failover: &Failover, seeds: std::ops::Range<u64>, is_json: bool) {
    let count = seeds.end - seeds.start;
    let (of_entrants, others): (Vec<Orphan>, Vec<Orphan>) =
        seeds.flat_map(|seed| failover.orphans(seed)).partition(|orphan| orphan.is_of_entrant);
    for (was, orphans) in [("relay", others), ("entrant", of_entrants)] {
        let figures = Figures::of(&orphans);
        if is_json {
            figures.show_json(failover, was, count);
        } else {
            figures.show(failover.end, was);
        }
    }
}

/// Of the orphans of several runs; times in milliseconds.
struct Figures {
    orphans: usize,
    /// Median and most.
    gap: [String; 2],
    /// Those at whose parent something was out, so that the rule promises something.
    promised: usize,
    rule: [String; 2],
    later: usize,
}

impl Figures {
    fn of(orphans: &[Orphan]) -> Self {
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let gaps: Vec<f64> = orphans.iter().map(|orphan| orphan.gap.map_or(f64::INFINITY, millis)).collect();
        let promised: Vec<f64> = orphans.iter().filter_map(|orphan| orphan.promised().map(millis)).collect();
        let is_late = |orphan: &&Orphan| {
            orphan.promised().is_some_and(|promised| orphan.gap.is_none_or(|gap| gap > promised))
        };
        let both = |values: &[f64]| [quantile(values, 0.5), quantile(values, 1.0)].map(number);
        Self {
            orphans: orphans.len(),
            gap: both(&gaps),
            promised: promised.len(),
            rule: both(&promised),
            later: orphans.iter().filter(is_late).count(),
        }
    }

    fn show_json(&self, failover: &Failover, was: &str, seeds: u64) {
        let Self { orphans, gap: [median, most], promised, rule: [rule_median, rule_most], later } = self;
        println!(
            "{{\"peers\":{},\"rate\":{},\"end\":\"{}\",\"was\":\"{was}\",\"seeds\":{seeds},\"orphans\":{orphans},\
             \"gap_ms_median\":{median},\"gap_ms_max\":{most},\"promised\":{promised},\
             \"rule_ms_median\":{rule_median},\"rule_ms_max\":{rule_most},\"later\":{later}}}",
            failover.peers,
            failover.rate,
            failover.end.name(),
        );
    }

    fn show(&self, end: End, was: &str) {
        let Self { orphans, gap: [median, most], promised, rule: [rule_median, rule_most], later } = self;
        println!(
            "  {:7} {was:8} {orphans:>7}  {median:>10} {most:>10}  {rule_median:>10} {rule_most:>10}  {later} of {promised}",
            end.name()
        );
    }
}
