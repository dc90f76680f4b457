//! `bench gen`: a model to measure with. Does not own what is in its files (`testbed::artifact`).

use std::{fmt, path::PathBuf};

use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;
use testbed::artifact::Source;

use crate::output::OutputArgs;

/// Write a model: sharded safetensors of noise, config and index
#[derive(Debug, Args)]
pub(crate) struct GenArgs {
    /// The directory it is written to
    dir: PathBuf,
    /// About how many bytes it has
    #[arg(long, default_value = "256MiB")]
    size: Size,
    /// Another number is another model
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was written.
#[derive(Debug, Serialize)]
struct Generated {
    bench: &'static str,
    dir: PathBuf,
    files: usize,
    size: u64,
}

impl fmt::Display for Generated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} files, {} bytes", self.dir.display(), self.files, self.size)
    }
}

/// Writes it.
pub(crate) fn run(args: &GenArgs) -> anyhow::Result<()> {
    let source = Source::write(&args.dir, args.size.0, args.seed)?;
    let size = source.files.values().map(|(bytes, _)| bytes).sum();
    args.output.print(&Generated { bench: "gen", dir: source.dir, files: source.files.len(), size })
}
