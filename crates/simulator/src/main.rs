//! `simulator`: plays broadcasts on a virtual clock, to measure them or to find what is wrong with them.
//!
//! Owns: which command it is. Does not own what one does (`commands`).

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "what it prints is what it is for")]

use std::process::ExitCode;

use commands::{failover, fuzz, policies, rerun, sweep};

mod commands;

const USAGE: &str =
    "usage: simulator sweep [--peers N] [--size 140GB] [--rate 25GB/s] [--case NAME] [--pieces 2048]
                       [--quanta 2] [--seeds 20] [--seed 1] [--json] [--busy]
       simulator policies [--peers 8,16,64] [--cases clean,slow,kill,heterogeneous] [--pieces 512]
                       [--quanta 16] [--seeds 5] [--seed 1] [--json] [--svg FILE]
       simulator failover [--peers 64] [--size 2GiB] [--rate 10gbit] [--seeds 20] [--seed 1] [--json]
       simulator rerun FILE [--policy chain,binomial,trees,mesh,hybrid] [--origin-rate RATE] [--pieces 512]
                       [--quanta 16] [--seed 1] [--json]
       simulator fuzz  [--seeds 1000 | --minutes M] [--seed 1] [--past] [--jobs 1] [--json]
       simulator replay SEED [--lines 40] [--node N]…
cases: clean slow kill origin-fast origin-slow late scheduler-down heterogeneous racks far";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    match run(words.next().as_deref(), words) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Option<&str>, words: impl Iterator<Item = String>) -> Result<ExitCode, String> {
    Ok(match command {
        Some("sweep") => {
            sweep::sweep(&sweep::SweepArgs::parse(words)?);
            ExitCode::SUCCESS
        }
        Some("policies") => policies::run(words)?,
        Some("failover") => {
            failover::run(words)?;
            ExitCode::SUCCESS
        }
        Some("rerun") => rerun::run(words)?,
        Some("fuzz") => fuzz::fuzz(&fuzz::FuzzArgs::parse(words)?),
        Some("replay") => fuzz::replay(words)?,
        _ => {
            let commands = "the commands are `sweep`, `policies`, `failover`, `rerun`, `fuzz` and `replay`";
            return Err(commands.to_owned());
        }
    })
}
