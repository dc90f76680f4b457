//! `fleet-drill`: real processes on shaped networks, and every fault that a fleet must survive.
//!
//! Owns: the command line, the order of things, cleaning up however it ends. Does not own: the faults.

mod broadcast;
mod capture;
mod doubles;
mod faults;
mod fleet;
mod report;
mod site;
mod watch;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::bail;
use clap::{Parser, Subcommand};
use testbed::{maker::Maker, netns::Mbit, stage};

use crate::{
    doubles::DoubleArgs,
    faults::Fault,
    report::{HEAD, Row, Summary},
    site::Site,
};

/// What every card does in each direction: the broadcast then takes some seconds, most of them not of the processors.
const RATE: Mbit = Mbit(400);

/// The model's bytes.
const SHORT_BYTES: u64 = 256 << 20;
const LONG_BYTES: u64 = 512 << 20;

/// Where a drill cannot run, as automake's tests say it.
const SKIPPED: u8 = 77;

/// What is played last, and is no fault.
const CAPTURE: &str = "capture";

/// Play faults against broadcasts of a real fleet
#[derive(Debug, Parser)]
#[command(name = "fleet-drill", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// The faults [default: all of them]
    faults: Vec<String>,
    /// A model of 256 MiB instead of 512
    #[arg(long)]
    short: bool,
    /// The last line of stdout is the result as one JSON object
    #[arg(long)]
    json: bool,
    /// The program to try
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
}

#[derive(Debug, Subcommand)]
enum Command {
    Double(DoubleArgs),
    /// Clean up after the drill of that process id, when stdin ends
    #[command(hide = true)]
    Janitor {
        /// The process id
        pid: u32,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::Double(args)) => doubles::run(args).map(|()| ExitCode::SUCCESS),
        Some(Command::Janitor { pid }) => {
            stage::clean_up_after(Maker::new(site::TOOL, *pid));
            Ok(ExitCode::SUCCESS)
        }
        None => drill(cli),
    };
    done.unwrap_or_else(|error| {
        tell(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Plays what is asked for, or says why it cannot be played here.
fn drill(cli: Cli) -> anyhow::Result<ExitCode> {
    let faults = chosen(&cli.faults)?;
    if let Err(why) = site::probe() {
        tell(&format!("skipped: {why:#}"));
        return Ok(ExitCode::from(SKIPPED));
    }
    let passed = stage::run(site::maker(), move || play(&cli, &faults))?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The faults of these names, or all; whether there is a capture, too.
fn chosen(names: &[String]) -> anyhow::Result<(Vec<Fault>, bool)> {
    let all = faults::all();
    for name in names {
        if name != CAPTURE && all.iter().all(|fault| fault.name != name) {
            let names: Vec<&str> = all.iter().map(|fault| fault.name).collect();
            bail!("there is no fault `{name}`; there are {} and {CAPTURE}", names.join(", "));
        }
    }
    let is_chosen = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    // The first is what others are compared with.
    let chosen = all.into_iter().filter(|fault| fault.name == "none" || is_chosen(fault.name));
    Ok((chosen.collect(), is_chosen(CAPTURE)))
}

/// Plays them one after another; says whether all passed.
fn play(cli: &Cli, (faults, with_capture): &(Vec<Fault>, bool)) -> anyhow::Result<bool> {
    let bytes = if cli.short { SHORT_BYTES } else { LONG_BYTES };
    tell("making the network and the model");
    let site = Site::new(&cli.modelctl, bytes, RATE)?;
    let mut rows: Vec<Row> = Vec::new();
    tell(HEAD);
    for fault in faults {
        let seconds_without = rows.first().and_then(|row| row.seconds);
        let (verdict, outcome) = match faults::play(&site, fault) {
            Ok((outcome, what)) => (Ok(what), Some(outcome)),
            Err(why) => (Err(format!("{why:#}")), None),
        };
        let seconds = outcome.as_ref().map(|it| it.seconds);
        let verdict = match seconds.zip(seconds_without) {
            Some((with, without)) => verdict.and_then(|what| fault.judge_time(with, without).map(|()| what)),
            None => verdict,
        };
        let origin = outcome.map(|it| (fault.reads, it.origin_x));
        let row = Row { name: fault.name, verdict, seconds, seconds_without, origin };
        tell(&row.to_string());
        rows.push(row);
    }
    if *with_capture {
        let verdict = capture::play(&site).map_err(|why| format!("{why:#}"));
        let row = Row { name: CAPTURE, verdict, seconds: None, seconds_without: None, origin: None };
        tell(&row.to_string());
        rows.push(row);
    }
    if cli.json {
        writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(&Summary::of(&rows))?)?;
    }
    Ok(Summary::is_passed(&rows))
}

/// What people read goes to stderr, so that stdout is for data.
fn tell(line: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
