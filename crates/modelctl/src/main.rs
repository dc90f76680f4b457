//! `modelctl`, the one program of Modelcast.
//!
//! Owns: the command line, what it prints and its exit codes (DESIGN §8). Does not own: the work, which is in the
//! crates below it.

mod access;
mod artifact;
mod cli;
mod commands;
mod groups;
mod hash;
mod model;
mod packed;
mod printer;
mod progress;
mod publish;
mod report;
mod tensors;
mod text;
mod walk;

use std::process::ExitCode;

use crate::{
    cli::Parsed,
    printer::{Printer, StdoutClosed},
    report::Failure,
};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Parsed::Command(cli) => {
            let printer = Printer::new(cli.json);
            log_to_stderr();
            end(&printer, commands::run(&cli.command, &printer))
        }
        Parsed::Text(text) => {
            let printer = Printer::new(false);
            end(&printer, printer.data(text))
        }
        Parsed::Wrong { error, is_json } => end(&Printer::new(is_json), Err(error)),
    }
}

fn end(printer: &Printer, result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            let failure = Failure::of(&error);
            printer.failure(&failure);
            ExitCode::from(failure.exit_code)
        }
    }
}

/// What libraries log for the user goes to stderr; `MODELCTL_LOG=debug` shows more.
fn log_to_stderr() {
    // What it says comes after the default, so that a word that is no level silences nothing.
    let said = std::env::var("MODELCTL_LOG").unwrap_or_default();
    let filter = tracing_subscriber::EnvFilter::try_new(format!("warn,sidecar=info,{said}"))
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .with_ansi(false)
        .init();
}
