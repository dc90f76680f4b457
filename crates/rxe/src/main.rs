//! `rxe-proof`: RDMA tried on a software device, with real processes, inside the machine that `scripts/rxe-vm` boots.
//!
//! Owns: the command line, the order of parts. Does not own: the machine, the parts, how they are told (`report`).

mod bandwidth;
mod broadcast;
mod faults;
mod fleet;
mod report;
mod site;
mod suite;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    bandwidth::Bandwidth,
    report::{Proof, Report, Row},
    site::Site,
    suite::Suite,
};

/// Prove RDMA on a software device
///
/// Runs the device tests, a broadcast over RDMA into memory and onto a disk, a link beside `ib_read_bw`, and faults in the
/// middle of broadcasts. Needs an RDMA device, and root for the faults. Exits with 0 if all that ran holds.
#[derive(Debug, Parser)]
#[command(name = "rxe-proof", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// These parts only [default: all]
    #[arg(value_enum)]
    parts: Vec<Part>,
    /// A test binary whose ignored tests need the device; may be repeated
    #[arg(long, value_name = "NAME|PATH")]
    suite: Vec<PathBuf>,
    /// The program to try
    #[arg(long, value_name = "NAME|PATH", default_value = "modelctl")]
    modelctl: PathBuf,
    /// The program that measures a link
    #[arg(long, value_name = "NAME|PATH", default_value = "bench")]
    bench: PathBuf,
    /// The directory that `make-models` made, for broadcasts and faults
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
    /// A directory in memory, where bytes land directly
    #[arg(long, value_name = "DIR", default_value = "/dev/shm")]
    memory: PathBuf,
    /// A directory on a disk, where bytes are staged
    #[arg(long, value_name = "DIR", default_value = "/disk")]
    disk: PathBuf,
    /// Only these faults of fleets [default: all]
    #[arg(long, value_name = "NAME")]
    fault: Vec<String>,
    /// Exit with 1 also if the link is slower than 0.9 of `ib_read_bw`, which a busy machine may be the cause of
    #[arg(long)]
    strict: bool,
    /// The last line of stdout is the result as one JSON object; what people read goes to stderr
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the models that are moved, and their layouts
    MakeModels {
        /// The directory, which is made
        dir: PathBuf,
        /// The program that builds the layout
        #[arg(long, value_name = "NAME|PATH", default_value = "modelctl")]
        modelctl: PathBuf,
    },
}

/// What can be run by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The device tests of transport-rdma and verbs, and the faults among them
    Conformance,
    /// A model from a seed to three peers
    Broadcast,
    /// `bench link` beside `ib_read_bw`
    Bandwidth,
    /// Faults in the middle of broadcasts
    Faults,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let report = Report::new(cli.json);
    let done = match &cli.command {
        Some(Command::MakeModels { dir, modelctl }) => site::make_models(modelctl, dir).map(|()| true),
        None => prove(&cli, report).and_then(|proof| report.end(&proof, cli.strict)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report.tell(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs the parts one after another, also after one has failed.
fn prove(cli: &Cli, report: Report) -> anyhow::Result<Proof> {
    let is_wanted = |part: Part| cli.parts.is_empty() || cli.parts.contains(&part);
    let mut proof = Proof { kernel: kernel(), ..Proof::default() };
    report.head(&proof.kernel);
    if is_wanted(Part::Conformance) {
        let mut suite = Suite::default();
        let row = Row::of("conformance", || {
            suite = Suite::run(&cli.suite);
            suite.verdict()
        });
        report.row(&row);
        proof.conformance = Some(row.word());
        for row in suite.faults() {
            proof.fault(&row, report);
        }
    }
    let is_fleet_wanted = is_wanted(Part::Broadcast) || is_wanted(Part::Faults);
    let site = is_fleet_wanted.then(|| Site::new(cli)).transpose()?;
    if let Some(site) = &site {
        if is_wanted(Part::Broadcast) {
            proof.broadcast = Some(broadcast::prove(site, report));
        }
        if is_wanted(Part::Faults) {
            for fault in faults::chosen(&cli.fault)? {
                let row = Row::of(fault.name, || report::verdict(faults::play(site, &fault, report)));
                proof.fault(&row, report);
            }
        }
    }
    if is_wanted(Part::Bandwidth) {
        let row = Row::of("bandwidth", || {
            report::verdict(Bandwidth::measure(&cli.bench, &cli.memory).map(|measured| {
                proof.read_bw_ratio = Some(measured.read_bw_ratio());
                proof.checked_ratio = Some(measured.checked_ratio());
                measured.to_string()
            }))
        });
        report.row(&row);
        proof.bandwidth_failed = !row.is_passed();
    }
    Ok(proof)
}

/// The release of the kernel that runs.
fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}
