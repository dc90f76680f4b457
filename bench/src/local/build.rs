//! `bench build`: a directory becomes a layout, beside hashing its files alone.
//!
//! Owns: its contenders. Does not own: taking turns (`contest`).

use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;
use testbed::{
    artifact::Source,
    maker::Maker,
    program::{are_installed, find, path},
    stage,
};

use super::{
    contest::{self, Contender, Table},
    site::{Landing, Site, hashes},
};
use crate::{
    TOOL,
    broadcast::Dest,
    output::{OutputArgs, tell},
};

/// Anonymous memory of a build.
const RSS_ANON_BUDGET_MIB: f64 = 64.0;

const MIB: f64 = 1_048_576.0;

/// Copies of the model while it is measured: source and layout.
const COPIES: u64 = 2;

/// Build a layout from a directory, beside openssl and b3sum of the same files
///
/// A build computes SHA-256 and BLAKE3 of every file; `modelctl` writes a copy (a reflink, where the file system has
/// them), `modelctl-hard` gives the files a second name. openssl and b3sum hash the same files alone, and side by side;
/// `hash-cp` copies them as well. On disk the files are read from there, and each run ends with its bytes
/// on disk.
#[derive(Clone, Debug, Args)]
pub(crate) struct BuildArgs {
    /// About how many bytes the model has
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// How often each of them runs
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the files and the layout lie
    #[arg(long, value_enum, default_value = "tmpfs")]
    dest: Dest,
    /// The program to measure
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is known in the end.
#[derive(Clone, Debug, Serialize)]
struct Built {
    bench: &'static str,
    /// The files' bytes.
    size: u64,
    dest: Dest,
    runs: usize,
    #[serde(flatten)]
    table: Table,
}

impl fmt::Display for Built {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, dest, runs, table, .. } = self;
        write!(out, "build of {size} bytes on {dest}, medians of {runs} runs\n{table}")
    }
}

/// Measures it.
pub(crate) fn run(args: BuildArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run is needed");
    are_installed(&["setpriv"])?;
    stage::run(Maker::this(TOOL), move || measure(&args))
}

fn measure(args: &BuildArgs) -> anyhow::Result<()> {
    let modelctl = find(&args.modelctl, "--modelctl")?;
    let in_memory = if args.dest == Dest::Tmpfs { args.size.0 * COPIES } else { 0 };
    let site = Site::new(args.dest, in_memory)?;
    tell("making the files");
    let source = Source::write(&site.landing.join("model"), args.size.0, 1)?;
    let hashes = hashes(&source);
    let contenders = contenders(&modelctl, &source.dir, site.flush());
    let mut table = contest::hold(&contenders, &["hash", "hash-cp"], args.runs, |contender| {
        let copies = matches!(contender.name, "modelctl" | "modelctl-hard" | "hash-cp");
        let expected = if copies { hashes.clone() } else { BTreeSet::new() };
        Ok(Box::new(Landing::new(&site, expected)))
    })?;
    let bytes = source.files.values().map(|(bytes, _)| bytes).sum();
    add_budgets(&mut table, bytes);
    args.output.print(&Built { bench: "build", size: bytes, dest: args.dest, runs: args.runs, table })
}

fn contenders(modelctl: &Path, model: &Path, flush: &str) -> Vec<Contender> {
    let (modelctl, model) = (path(modelctl), path(model));
    let openssl = format!("ls -d '{model}'/* | xargs -P \"$(nproc)\" -n 1 openssl dgst -sha256 > sha256");
    let b3sum = format!("b3sum '{model}'/* > b3");
    // A failure of what runs in the background must not be lost.
    let both = format!("{openssl} & hashing=$!; {b3sum}; wait $hashing");
    let build = |link: &str| format!("'{modelctl}' build '{model}' -t oci:layout:v1{link}{flush}");
    vec![
        Contender { name: "modelctl", tools: &[], script: build("") },
        Contender { name: "modelctl-hard", tools: &[], script: build(" --link hard") },
        Contender { name: "openssl", tools: &["openssl", "xargs"], script: openssl },
        Contender { name: "b3sum", tools: &["b3sum"], script: b3sum },
        Contender { name: "hash", tools: &["openssl", "xargs", "b3sum"], script: both.clone() },
        Contender {
            name: "hash-cp",
            tools: &["openssl", "xargs", "b3sum"],
            script: format!("cp -r '{model}' copy & copying=$!; {both}; wait $copying{flush}"),
        },
    ]
}

fn add_budgets(table: &mut Table, size: u64) {
    let Some(row) = table.row("modelctl-hard").cloned() else { return };
    let ratio = row.ratios.get("ratio_to_hash").copied();
    table.budget("time with second names to that of both hashes", ratio, 1.25);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (written, size, rss) = (row.disk_bytes as f64, size as f64, row.rss_anon_max as f64);
    // What is hashed is read, and only names are written.
    table.budget("bytes written with second names to those of the model", Some(written / size), 0.01);
    table.budget("anonymous memory, MiB", Some(rss / MIB), RSS_ANON_BUDGET_MIB);
}
