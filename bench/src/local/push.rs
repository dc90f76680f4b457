//! `bench push`: from a layout to a registry over loopback that has nothing, or everything.
//!
//! Owns: its contenders, a registry for each run. Does not own: taking turns (`contest`).

use std::{
    collections::BTreeSet,
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;
use testbed::{
    maker::Maker,
    model::Model,
    program::{are_installed, find, path},
    stage,
};

use super::{
    contest::{self, Contender, Ground, Table},
    meter,
    site::{Registry, Site, fresh, hashes, holds},
};
use crate::{
    TOOL,
    broadcast::Dest,
    output::{OutputArgs, tell},
};

/// Anonymous memory of a push.
const RSS_ANON_BUDGET_MIB: f64 = 64.0;

const MIB: f64 = 1_048_576.0;

/// Copies of the model in memory while it is measured: source, layout, registry.
const COPIES: u64 = 3;

/// Push a model from a layout to a registry over loopback, beside skopeo
///
/// Each run has an empty registry of its own, all in memory. The rows named `again` push what the registry already has.
/// The processor time is that of the command alone, not of the registry, which hashes on the same machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct PushArgs {
    /// About how many bytes the model has
    #[arg(long, default_value = "512MiB")]
    size: Size,
    /// How often each of them runs
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The program to measure
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// What is known in the end.
#[derive(Clone, Debug, Serialize)]
struct Pushed {
    bench: &'static str,
    /// The artifact's bytes.
    size: u64,
    runs: usize,
    #[serde(flatten)]
    table: Table,
}

impl fmt::Display for Pushed {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, runs, table, .. } = self;
        write!(out, "push of {size} bytes to an empty registry, and again: medians of {runs} runs\n{table}")
    }
}

/// Measures it.
pub(crate) fn run(args: PushArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run is needed");
    are_installed(&["docker-registry", "setpriv"])?;
    stage::run(Maker::this(TOOL), move || measure(&args))
}

fn measure(args: &PushArgs) -> anyhow::Result<()> {
    let modelctl = find(&args.modelctl, "--modelctl")?;
    let site = Site::new(Dest::Tmpfs, args.size.0 * COPIES)?;
    tell("making the model");
    let model = Model::new(&modelctl, &site.memory, "model", args.size.0)?;
    let hashes = hashes(&model.source);
    let contenders = contenders(&modelctl, &model);
    let mut table = contest::hold(&contenders, &["skopeo", "skopeo-again"], args.runs, |contender| {
        let is_again = contender.name.ends_with("-again");
        Ok(Box::new(Target {
            site: site.clone(),
            dir: site.memory.join("out"),
            hashes: hashes.clone(),
            before: is_again.then(|| contender.script.clone()),
            registry: None,
        }))
    })?;
    let is_again = |name: &str| name.ends_with("again");
    for row in &mut table.rows {
        let row_is_again = is_again(row.name);
        row.ratios.retain(|key, _| is_again(key) == row_is_again);
    }
    let bytes = model.artifact.bytes() + u64::try_from(model.artifact.config.len())?;
    add_budgets(&mut table);
    args.output.print(&Pushed { bench: "push", size: bytes, runs: args.runs, table })
}

fn contenders(modelctl: &Path, model: &Model) -> Vec<Contender> {
    let (modelctl, layout) = (path(modelctl), model.reference());
    let push =
        format!("read -r to < address; '{modelctl}' push '{layout}' \"$to/bench/model:v1\" --plain-http");
    let copy = format!(
        "read -r to < address; skopeo --insecure-policy copy -q --dest-tls-verify=false '{layout}' \
         \"docker://$to/bench/model:v1\""
    );
    vec![
        Contender { name: "modelctl", tools: &[], script: push.clone() },
        Contender { name: "skopeo", tools: &["skopeo"], script: copy.clone() },
        Contender { name: "modelctl-again", tools: &[], script: push },
        Contender { name: "skopeo-again", tools: &["skopeo"], script: copy },
    ]
}

fn add_budgets(table: &mut Table) {
    let Some(row) = table.row("modelctl").cloned() else { return };
    table.budget("time to that of skopeo", row.ratios.get("ratio_to_skopeo").copied(), 1.0);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rss = row.rss_anon_max as f64;
    table.budget("anonymous memory, MiB", Some(rss / MIB), RSS_ANON_BUDGET_MIB);
}

/// A registry that is empty before each run, or has it all if something is to run before.
struct Target {
    site: Site,
    dir: PathBuf,
    hashes: BTreeSet<[u8; 32]>,
    before: Option<String>,
    registry: Option<Registry>,
}

impl Ground for Target {
    fn reset(&mut self) -> anyhow::Result<()> {
        fresh(&self.dir)?;
        // The one before must not write to what is removed.
        self.registry = None;
        let registry = self.site.registry("registry")?;
        fs::write(self.dir.join("address"), format!("{}\n", registry.address))?;
        self.registry = Some(registry);
        if let Some(script) = &self.before {
            meter::measure(script, self.dir(), self.logs()).context("the push before")?;
        }
        Ok(())
    }

    fn dir(&self) -> &Path {
        &self.dir
    }

    fn logs(&self) -> &Path {
        &self.site.memory
    }

    fn check(&self) -> anyhow::Result<()> {
        holds(&self.site.memory.join("registry"), &self.hashes)
    }
}
