//! `bench plot`: pictures of results and traces. Owns which pictures there are and where they go. Does not own how lines
//! are read (`input`), what a picture looks like (`makespan`, `progress`, `utilisation`, `latency`, and `canvas` for all).

mod canvas;
pub(crate) mod input;
mod latency;
mod makespan;
mod progress;
#[cfg(test)]
mod tests;
mod utilisation;

use std::{fmt, fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use crate::output::OutputArgs;

/// Draw results and traces as SVG
#[derive(Debug, Args)]
pub(crate) struct PlotArgs {
    /// Lines that benchmarks printed with --json
    #[arg(long, num_args = 1.., value_name = "FILE")]
    results: Vec<PathBuf>,
    /// What `bench broadcast --trace` wrote; of several, each picture has its system and number of peers in its name
    #[arg(long, num_args = 1.., value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// The directory that pictures are written to
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
    #[command(flatten)]
    print: OutputArgs,
}

/// What was drawn.
#[derive(Debug, Serialize)]
struct Drawn {
    bench: &'static str,
    pictures: Vec<PathBuf>,
    skipped: Vec<Skipped>,
}

/// A picture that nothing was given for.
#[derive(Debug, Serialize)]
struct Skipped {
    name: &'static str,
    why: &'static str,
}

impl fmt::Display for Drawn {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines: Vec<String> = self.pictures.iter().map(|path| path.display().to_string()).collect();
        lines.extend(self.skipped.iter().map(|picture| format!("no {}: {}", picture.name, picture.why)));
        out.write_str(&lines.join("\n"))
    }
}

/// Draws all that there is something to draw from.
pub(crate) fn run(args: &PlotArgs) -> anyhow::Result<()> {
    if args.results.is_empty() && args.trace.is_empty() {
        bail!("nothing to draw: give --results or --trace");
    }
    let results =
        args.results.iter().map(|path| input::results(path)).collect::<anyhow::Result<Vec<_>>>()?.concat();
    let traces = args.trace.iter().map(|path| input::trace(path)).collect::<anyhow::Result<Vec<_>>>()?;
    fs::create_dir_all(&args.output).with_context(|| format!("make `{}`", args.output.display()))?;
    let mut drawn = Drawn { bench: "plot", pictures: Vec::new(), skipped: Vec::new() };

    let broadcasts = makespan::series(&results);
    if broadcasts.is_empty() {
        drawn.skipped.push(Skipped { name: "makespan.svg", why: "no result of a broadcast without faults" });
    } else {
        save(args, &mut drawn, "makespan.svg", &makespan::draw(&broadcasts)?)?;
    }
    let latencies = latency::series(&results);
    if latencies.is_empty() {
        drawn.skipped.push(Skipped { name: "latency.svg", why: "no result has percentiles" });
    } else {
        save(args, &mut drawn, "latency.svg", &latency::draw(&latencies)?)?;
    }
    if traces.is_empty() {
        drawn.skipped.push(Skipped { name: "progress.svg, utilisation.svg", why: "no trace" });
    }
    for (index, trace) in traces.iter().enumerate() {
        let of = match traces.len() {
            1 => String::new(),
            // Two of the same system and size still get a file each.
            _ => format!("-{}-{}-{}", input::file_name(&trace.system), trace.n, index + 1),
        };
        save(args, &mut drawn, &format!("progress{of}.svg"), &progress::draw(trace)?)?;
        save(args, &mut drawn, &format!("utilisation{of}.svg"), &utilisation::draw(trace)?)?;
    }
    args.print.print(&drawn)
}

fn save(args: &PlotArgs, drawn: &mut Drawn, name: &str, svg: &str) -> anyhow::Result<()> {
    let path = args.output.join(name);
    fs::write(&path, svg).with_context(|| format!("write `{}`", path.display()))?;
    drawn.pictures.push(path);
    Ok(())
}
