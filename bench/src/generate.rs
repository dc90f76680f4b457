//! `bench gen`: a model to measure with, or a variant of one. Does not own what is in its files (`weights`).

mod weights;

use std::{fmt, path::PathBuf};

use anyhow::ensure;
use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;

use self::weights::Order;
use crate::output::OutputArgs;

/// More shards than any model has.
const SHARDS_MAX: u64 = 10_000;

/// Write a model: sharded safetensors of noise, config and index
///
/// Tensors have the names and relative sizes of a Llama's. With --like it is a copy of a model of which part of the
/// weights differ, as after fine-tuning: whole tensors, anywhere in it.
#[derive(Debug, Args)]
pub(crate) struct GenArgs {
    /// The directory it is written to
    dir: PathBuf,
    /// About how many bytes it has
    #[arg(long, default_value = "256MiB", conflicts_with = "like")]
    size: Size,
    /// How many files its weights are in
    #[arg(long, default_value_t = 4, conflicts_with = "like")]
    shards: u64,
    /// Another number is another model
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Make a variant of the model in this directory
    #[arg(long, value_name = "DIR", requires = "changed")]
    like: Option<PathBuf>,
    /// How much of its weights differ, in percent
    #[arg(long, value_name = "PERCENT", requires = "like")]
    changed: Option<f64>,
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
    /// Bytes in which a variant differs.
    changed_bytes: Option<u64>,
}

impl fmt::Display for Generated {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {} files, {} bytes", self.dir.display(), self.files, self.size)?;
        self.changed_bytes.map_or(Ok(()), |bytes| write!(out, ", {bytes} of them changed"))
    }
}

/// Writes it.
pub(crate) fn run(args: &GenArgs) -> anyhow::Result<()> {
    let GenArgs { dir, size, shards, seed, like, changed, .. } = args;
    let mut changed_bytes = None;
    if let Some((like, percent)) = like.as_ref().zip(*changed) {
        ensure!((0.0..=100.0).contains(&percent), "there are 0 to 100 percent");
        changed_bytes = Some(weights::vary(like, dir, percent, *seed)?);
    } else {
        ensure!((1..=SHARDS_MAX).contains(shards), "there are 1 to {SHARDS_MAX} shards");
        weights::write(dir, Order { bytes: size.0, shards: *shards, seed: *seed })?;
    }
    let (files, size) = weights::count(dir)?;
    args.output.print(&Generated { bench: "gen", dir: dir.clone(), files, size, changed_bytes })
}
