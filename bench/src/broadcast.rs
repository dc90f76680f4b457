//! `bench broadcast`: how long until every peer has the model, against the least time in which that can be.
//!
//! Owns: its flags, the order of things. Does not own: the network (`lab`), the systems, one run (`race`), the sums
//! (`measured`).

mod faults;
mod goodput;
mod lab;
mod measured;
mod meter;
mod modelctl;
mod race;
mod script;
mod system;
mod trace;

use std::{fmt, path::PathBuf, time::Duration};

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum, error::ErrorKind};
use modelpack::quantity::{Rate, Size};
use serde::Serialize;
use testbed::{
    maker::Maker,
    netns,
    program::{self, are_installed},
    scratch::Medium,
    stage,
};

use self::{
    faults::{Cast, FaultArgs},
    lab::{Lab, Order},
    measured::{Conditions, HEAD, Measured},
    modelctl::{Data, Modelctl, Origin, Via},
    script::Script,
    system::System,
};
use crate::{
    TOOL,
    output::{OutputArgs, tell},
};

/// Where adapters of other systems are in the source tree.
const ADAPTERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/systems");

/// How many times the time that the origin would need for all peers alone a run may take, and what is added.
const PATIENCE_X: f64 = 3.0;
const PATIENCE_EXTRA_S: f64 = 60.0;

/// Move a model from one host to N others over shaped links, all at once
///
/// Makes N + 1 network namespaces on a bridge, shapes both directions of every card, measures what they carry with all
/// links loaded both ways, and lets each system bring the same model to all peers, in turns. Needs root.
#[derive(Clone, Debug, Args)]
pub(crate) struct BroadcastArgs {
    /// How many receive
    #[arg(long, default_value_t = 8)]
    peers: usize,
    /// What every card does in each direction
    #[arg(long, default_value = "200mbit")]
    rate: Rate,
    /// About how many bytes the model has
    #[arg(long, default_value = "256MiB")]
    size: Size,
    /// What moves it: modelctl, or the name of an adapter such as registry, bittorrent, aria2, chain; repeatable
    #[arg(long = "system", value_name = "NAME", default_value = "modelctl")]
    systems: Vec<String>,
    /// How often each of them runs
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where stores and outputs lie
    #[arg(long, value_enum, default_value = "tmpfs")]
    dest: Dest,
    /// modelctl: where the bytes first come from
    #[arg(long, value_enum, default_value = "registry")]
    origin: Origin,
    /// modelctl: which process lands them [default: the pull on tmpfs, the peer on disk]
    #[arg(long, value_enum)]
    via: Option<Via>,
    /// modelctl: do not encrypt model bytes between peers
    #[arg(long)]
    plain: bool,
    /// The program to measure
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
    /// Adapters of other systems
    #[arg(long, value_name = "DIR", default_value = ADAPTERS)]
    adapters: PathBuf,
    /// Write what the cards moved in the last run of the last system, ten times a second
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    faults: FaultArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where the bytes land.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Dest {
    Tmpfs,
    Disk,
}

impl fmt::Display for Dest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tmpfs => "tmpfs",
            Self::Disk => "disk",
        })
    }
}

/// A system that was not measured.
#[derive(Clone, Debug, Serialize)]
struct Absent {
    bench: &'static str,
    system: String,
    skipped: String,
}

/// Measures what is asked for.
pub(crate) fn run(args: BroadcastArgs) -> anyhow::Result<()> {
    ensure!(args.peers > 0 && args.peers < 200, "there can be 1 to 199 peers");
    ensure!(args.runs > 0, "at least one run is needed");
    let (cast, double) = cast(&args)
        .unwrap_or_else(|error| clap::Error::raw(ErrorKind::ArgumentConflict, format!("{error:#}\n")).exit());
    let maker = Maker::this(TOOL);
    are_installed(&["ip", "tc", "setpriv", "iperf3"])?;
    netns::probe(maker)?;
    stage::run(maker, move || measure(&args, cast, double))
}

/// Who is not well, and what plays a peer that serves wrong bytes.
fn cast(args: &BroadcastArgs) -> anyhow::Result<(Cast, Option<PathBuf>)> {
    let cast = Cast::choose(&args.faults, args.peers, args.rate)?;
    let only = args.faults.of_modelctl();
    let others: Vec<_> = args.systems.iter().filter(|name| *name != "modelctl").cloned().collect();
    ensure!(
        only.is_empty() || others.is_empty(),
        "{} cannot be used with `--system {}`: only of modelctl it is known what a peer runs, and what it does then",
        only.join(" and "),
        others.join(", "),
    );
    let is_lying = (0..args.peers).any(|peer| cast.is_corrupt(peer));
    let double = is_lying.then(|| program::find(&args.faults.double, "--double")).transpose()?;
    Ok((cast, double))
}

fn measure(args: &BroadcastArgs, cast: Cast, double: Option<PathBuf>) -> anyhow::Result<()> {
    let systems = systems(args)?;
    tell("making the network and the model");
    let medium = if args.dest == Dest::Tmpfs { Medium::Memory } else { Medium::Disk };
    let rate = lab::mbit(args.rate)?;
    let order = Order {
        modelctl: args.modelctl.clone(),
        peers: args.peers,
        rate,
        bytes: args.size.0,
        medium,
        cast,
        double,
    };
    let lab = Lab::new(&order)?;
    tell("measuring what the cards carry, all links loaded both ways");
    let goodput = goodput::goodput(&lab)?;
    lab.shape()?;
    let conditions =
        Conditions { n: args.peers, rate_mbit: rate.0, goodput, size: lab.size(), cast: &lab.cast };
    tell(&format!("a card carries {:.0} mbit of payload each way", goodput * 8.0 / 1e6));
    let mut present: Vec<(&dyn System, Vec<race::Run>)> = Vec::new();
    for system in &systems {
        if let Some(why) = system.missing(&lab) {
            tell(&format!("skipped: {}: {why}", system.name()));
            args.output.add(&Absent {
                bench: "broadcast",
                system: system.name().to_owned(),
                skipped: why,
            })?;
        } else {
            system.prepare(&lab)?;
            present.push((system.as_ref(), Vec::new()));
        }
    }
    run_in_turns(args, &lab, &conditions, &mut present)?;
    if args.output.is_for_people() {
        tell(HEAD);
    }
    for (system, runs) in &present {
        args.output.print(&Measured::of(system.name(), system.is_encrypted(), &conditions, runs))?;
    }
    Ok(())
}

/// One run of each system after another, then the next of each, so that whatever else the machine does hits all.
fn run_in_turns(
    args: &BroadcastArgs,
    lab: &Lab,
    conditions: &Conditions<'_>,
    systems: &mut [(&dyn System, Vec<race::Run>)],
) -> anyhow::Result<()> {
    let alone_s = meter::to_f64(args.peers as u64) * conditions.bound_s();
    let patience = Duration::from_secs_f64(PATIENCE_X * alone_s + PATIENCE_EXTRA_S);
    for number in 1..=args.runs {
        for (system, runs) in systems.iter_mut() {
            let run = race::run(lab, *system, patience)
                .map_err(|error| error.context(format!("run {number} of {}", system.name())))?;
            let last_s = measured::done_by(&run, 100);
            let ratio = last_s / conditions.bound_s();
            tell(&format!("{} run {number}: {last_s:.2} s, {ratio:.3} × the bound", system.name()));
            if let Some(file) = &args.trace {
                trace::write(file, system.name(), conditions, &run.samples)?;
            }
            runs.push(run);
        }
    }
    Ok(())
}

/// The systems of these names.
fn systems(args: &BroadcastArgs) -> anyhow::Result<Vec<Box<dyn System>>> {
    let on_tmpfs = if args.dest == Dest::Tmpfs { Via::Pull } else { Via::Peer };
    let data = if args.plain { Data::Plain } else { Data::Encrypted };
    let modelctl = Modelctl { origin: args.origin, via: args.via.unwrap_or(on_tmpfs), data };
    let mut systems: Vec<Box<dyn System>> = Vec::new();
    for name in &args.systems {
        if name == "modelctl" {
            systems.push(Box::new(modelctl));
            continue;
        }
        let path = args.adapters.join(name);
        if !path.is_file() || name.contains(['/', '.']) {
            bail!(
                "there is no system `{name}`: it is modelctl, or a script in `{}`",
                args.adapters.display()
            );
        }
        systems.push(Box::new(Script::new(&path)));
    }
    Ok(systems)
}
