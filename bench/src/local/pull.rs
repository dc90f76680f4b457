//! `bench pull`: a pull without any fleet, from a registry over loopback.
//!
//! Owns: its contenders and budgets. Does not own: the registry (`site`), taking turns (`contest`).

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use anyhow::ensure;
use clap::Args;
use modelpack::quantity::Size;
use serde::Serialize;
use serde_json::Value;
use testbed::{
    artifact::Artifact,
    maker::Maker,
    model::Model,
    program::{are_installed, call, find, path},
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

/// How the model is called in the registry.
const NAME: &str = "bench/model";

/// Copies of the model in memory while it is measured: source, layout, registry, output.
const COPIES: u64 = 4;

/// Connections that curl has at once, as many as modelctl opens.
const CURLS: usize = 4;

/// Without it a registry gives a manifest of another kind, or none.
const ACCEPT: &str = "Accept: application/vnd.oci.image.manifest.v1+json";

/// Anonymous memory of a pull, its buffers apart, which cannot be told from the rest from outside.
const RSS_ANON_BUDGET_MIB: f64 = 64.0;

const MIB: f64 = 1_048_576.0;

/// Pull a model from a registry over loopback, beside curl and skopeo
///
/// A standalone pull proves every byte; curl checks nothing, and is followed by b3sum or openssl in other rows; skopeo
/// copies to a layout and checks SHA-256. All run in turns. On disk each of them ends with its bytes on disk. The
/// processor time is that of the command alone, not of the registry, which runs on the same machine.
#[derive(Clone, Debug, Args)]
pub(crate) struct PullArgs {
    /// About how many bytes the model has
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// How often each of them runs
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where the bytes land
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
struct Pulled {
    bench: &'static str,
    /// The artifact's bytes.
    size: u64,
    dest: Dest,
    runs: usize,
    #[serde(flatten)]
    table: Table,
}

impl fmt::Display for Pulled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, dest, runs, table, .. } = self;
        write!(out, "pull of {size} bytes to {dest}, medians of {runs} runs\n{table}")
    }
}

/// Measures it.
pub(crate) fn run(args: PullArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run is needed");
    are_installed(&["docker-registry", "setpriv"])?;
    stage::run(Maker::this(TOOL), move || measure(&args))
}

fn measure(args: &PullArgs) -> anyhow::Result<()> {
    let modelctl = find(&args.modelctl, "--modelctl")?;
    let site = Site::new(args.dest, args.size.0 * COPIES)?;
    tell("making the model and the registry");
    let model = Model::new(&modelctl, &site.memory, "model", args.size.0)?;
    let registry = site.registry("registry")?;
    let reference = format!("{}/{NAME}:v1", registry.address);
    call(&modelctl, &["push", &model.reference(), &reference, "--plain-http"])?;
    let urls = site.memory.join("urls");
    let (list, bytes) = curl_list(&model.artifact, &format!("http://{}/v2/{NAME}", registry.address))?;
    fs::write(&urls, list)?;
    let hashes = hashes(&model.source);
    let contenders = contenders(&modelctl, &reference, &urls, site.flush());
    let mut table = contest::hold(&contenders, &["curl", "curl-b3sum"], args.runs, |_| {
        Ok(Box::new(Landing::new(&site, hashes.clone())))
    })?;
    add_budgets(&mut table, bytes, args.dest);
    args.output.print(&Pulled { bench: "pull", size: bytes, dest: args.dest, runs: args.runs, table })
}

/// What curl reads: the manifest and each blob, one a line; and how many bytes the blobs have.
pub(super) fn curl_list(artifact: &Artifact, base: &str) -> anyhow::Result<(String, u64)> {
    let manifest: Value = serde_json::from_slice(&artifact.manifest)?;
    let config = manifest["config"]["digest"].as_str().unwrap_or_default();
    let mut list = vec![format!("{base}/manifests/{}", artifact.digest()), format!("{base}/blobs/{config}")];
    list.extend(artifact.blobs.iter().map(|blob| {
        let hex = blob.path.file_name().unwrap_or_default().display();
        format!("{base}/blobs/sha256:{hex}")
    }));
    Ok((list.join("\n"), artifact.bytes() + u64::try_from(artifact.config.len())?))
}

/// Reads them all into the directory where it runs.
fn curl_script(urls: &Path) -> String {
    format!("xargs -P {CURLS} -n 1 curl -sSf -H '{ACCEPT}' --remote-name < '{}'", path(urls))
}

/// The same by one process: where so little is read that starting more would be most of the time.
pub(super) fn one_curl_script(urls: &Path) -> String {
    let several = format!("--parallel --parallel-max {CURLS}");
    format!("curl -sSf {several} -H '{ACCEPT}' --remote-name-all $(cat '{}')", path(urls))
}

fn contenders(modelctl: &Path, reference: &str, urls: &Path, flush: &str) -> Vec<Contender> {
    let (modelctl, curl) = (path(modelctl), curl_script(urls));
    let hashed = |sum: &str| format!("{curl}; {sum} > ../sums{flush}");
    vec![
        Contender {
            name: "modelctl",
            tools: &[],
            script: format!("'{modelctl}' pull '{reference}' -o model --peer none --plain-http{flush}"),
        },
        Contender { name: "curl", tools: &["curl", "xargs"], script: format!("{curl}{flush}") },
        Contender { name: "curl-b3sum", tools: &["curl", "xargs", "b3sum"], script: hashed("b3sum *") },
        Contender {
            name: "curl-openssl",
            tools: &["curl", "xargs", "openssl"],
            script: hashed("ls | xargs -P \"$(nproc)\" -n 1 openssl dgst -sha256"),
        },
        Contender {
            name: "skopeo",
            tools: &["skopeo"],
            script: format!(
                "skopeo --insecure-policy copy -q --src-tls-verify=false 'docker://{reference}' oci:layout:v1{flush}"
            ),
        },
    ]
}

fn add_budgets(table: &mut Table, size: u64, dest: Dest) {
    let Some(row) = table.row("modelctl").cloned() else { return };
    let ratio = |name: &str| row.ratios.get(name).copied();
    if dest == Dest::Tmpfs {
        table.budget("time to that of curl", ratio("ratio_to_curl"), 1.3);
    }
    table.budget("time to that of curl, then b3sum", ratio("ratio_to_curl_b3sum"), 1.0);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (written, size, rss) = (row.disk_bytes as f64, size as f64, row.rss_anon_max as f64);
    if dest == Dest::Disk {
        table.budget("bytes written to those of the model", Some(written / size), 1.01);
    }
    table.budget("anonymous memory with buffers, MiB", Some(rss / MIB), RSS_ANON_BUDGET_MIB);
}
