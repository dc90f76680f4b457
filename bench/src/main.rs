//! `bench`: every claim about speed as one command.
//!
//! Owns: the command line. Does not own: the benchmarks, how results are printed (`output`).

mod broadcast;
mod compare;
mod generate;
mod hash;
mod link;
mod local;
mod output;
mod plan;
mod plot;
mod statistics;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use testbed::{maker::Maker, stage};

use crate::output::tell;

/// What this program is called in names of what it makes.
const TOOL: &str = "bench";

/// Measure modelctl beside what people use today
///
/// Every number is measured here and now. With --json the last line of stdout is the result as one JSON object; what is
/// said meanwhile goes to stderr.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Broadcast(Box<broadcast::BroadcastArgs>),
    Link(Box<link::LinkArgs>),
    LinkServe(link::ServeArgs),
    Pull(local::pull::PullArgs),
    Packed(local::packed::PackedArgs),
    Push(local::push::PushArgs),
    Build(local::build::BuildArgs),
    Small(local::small::SmallArgs),
    Hash(hash::HashArgs),
    Plan(plan::PlanArgs),
    Gen(generate::GenArgs),
    Plot(plot::PlotArgs),
    Compare(compare::CompareArgs),
    #[command(hide = true)]
    LinkSender(link::SenderArgs),
    #[command(hide = true)]
    LinkReceiver(link::ReceiverArgs),
    #[command(hide = true)]
    LinkRdmaReceiver(link::RdmaReceiverArgs),
    #[command(hide = true)]
    PlanRun(plan::PlanRunArgs),
    /// Clean up after the bench of that process id, when stdin ends
    #[command(hide = true)]
    Janitor {
        /// The process id
        pid: u32,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Broadcast(args) => broadcast::run(*args),
        Command::Link(args) => link::run(&args),
        Command::Pull(args) => local::pull::run(args),
        Command::Packed(args) => local::packed::run(args),
        Command::Push(args) => local::push::run(args),
        Command::Build(args) => local::build::run(args),
        Command::Small(args) => local::small::run(args),
        Command::Hash(args) => hash::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Gen(args) => generate::run(&args),
        Command::Plot(args) => plot::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::LinkServe(args) => link::serve_rdma(&args),
        Command::LinkRdmaReceiver(args) => link::receive_rdma(&args),
        Command::LinkSender(args) => link::send(&args),
        Command::LinkReceiver(args) => link::receive(&args),
        Command::PlanRun(args) => plan::run_one(&args),
        Command::Janitor { pid } => {
            stage::clean_up_after(Maker::new(TOOL, pid));
            Ok(())
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
