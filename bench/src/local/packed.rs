//! `bench packed`: a pull of archives, and what is left to do of it after its last byte.
//!
//! Owns: the archives, the clock that begins with the last byte. Does not own: the way there (`relay`), what a command
//! costs (`meter`).

use std::{
    collections::BTreeSet,
    fmt,
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::ensure;
use clap::Args;
use modelpack::quantity::{Rate, Size};
use serde::Serialize;
use serde_json::{Value, json};
use store::LayoutWriter;
use testbed::{
    artifact,
    maker::Maker,
    program::{are_installed, call, find, path},
    stage,
};

use super::{
    meter,
    relay::Relay,
    site::{Registry, Site, fresh, holds},
};
use crate::{
    TOOL,
    broadcast::Dest,
    output::{OutputArgs, tell},
    statistics::median,
};

/// How archives are packed: as media types have it, and what packs them.
const PACKINGS: [(&str, &str); 3] = [("tar", "cat"), ("tar+gzip", "gzip -1"), ("tar+zstd", "zstd -q -1")];

/// Copies of the model in memory while it is measured: source, archive, layout, registry, the archive that is pulled,
/// the files of it.
const COPIES: u64 = 6;

/// Pull archives as fast as a network card is, and say what is left to do after the last byte
///
/// A registry over loopback gives an artifact of archives at a rate. Their weights compress about as well as real ones.
/// `after` is the time from the last byte of the registry to the end of the command, `unpack` what unpacking the same
/// archives takes by itself, one after another, with the machine's own tar.
#[derive(Clone, Debug, Args)]
pub(crate) struct PackedArgs {
    /// About how many bytes the model has
    #[arg(long, default_value = "512MiB")]
    size: Size,
    /// How many archives it is packed in
    #[arg(long, default_value_t = 4)]
    archives: u64,
    /// How fast the registry gives it
    #[arg(long, default_value = "1gbit")]
    rate: Rate,
    /// How often each packing is pulled
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// The program to measure
    #[arg(long, default_value = "modelctl")]
    modelctl: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// One packing: medians over its runs.
#[derive(Clone, Debug, Serialize)]
struct Row {
    packing: &'static str,
    packed_bytes: u64,
    seconds: f64,
    cpu_s: f64,
    after_s: f64,
    /// The longest of all runs.
    after_max_s: f64,
    unpack_s: f64,
}

/// What is known in the end.
#[derive(Clone, Debug, Serialize)]
struct PackedPull {
    bench: &'static str,
    /// The files' bytes.
    size: u64,
    archives: u64,
    rate_mbit: u64,
    runs: usize,
    rows: Vec<Row>,
}

impl fmt::Display for PackedPull {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { size, archives, rate_mbit, runs, rows, .. } = self;
        writeln!(out, "{archives} archives of {size} bytes at {rate_mbit} mbit, medians of {runs} runs")?;
        writeln!(
            out,
            "{:<10} {:>13} {:>9} {:>7} {:>8} {:>9} {:>9}",
            "", "packed_bytes", "seconds", "cpu_s", "after_s", "(max)", "unpack_s"
        )?;
        for Row { packing, packed_bytes, seconds, cpu_s, after_s, after_max_s, unpack_s } in rows {
            let most = format!("({after_max_s:.3})");
            writeln!(
                out,
                "{packing:<10} {packed_bytes:>13} {seconds:>9.3} {cpu_s:>7.2} {after_s:>8.3} {most:>9} {unpack_s:>9.3}"
            )?;
        }
        Ok(())
    }
}

/// Measures it.
pub(crate) fn run(args: PackedArgs) -> anyhow::Result<()> {
    ensure!(args.runs > 0, "at least one run is needed");
    ensure!((1..=1000).contains(&args.archives), "there are 1 to 1000 archives");
    are_installed(&["docker-registry", "setpriv", "tar", "gzip", "zstd"])?;
    stage::run(Maker::this(TOOL), move || measure(&args))
}

fn measure(args: &PackedArgs) -> anyhow::Result<()> {
    let modelctl = find(&args.modelctl, "--modelctl")?;
    let site = Site::new(Dest::Tmpfs, args.size.0 * COPIES)?;
    tell("making the model");
    let model = site.memory.join("model");
    fs::create_dir_all(&model)?;
    let mut hashes = BTreeSet::new();
    for number in 0..args.archives {
        let file = model.join(name(number));
        write_weights(&file, args.size.0 / args.archives, number)?;
        hashes.insert(*artifact::hash(&file)?.1.as_bytes());
    }
    let bench = Bench { registry: site.registry("registry")?, args, modelctl, site, model, hashes };
    let rows = PACKINGS.iter().map(|(packing, packer)| bench.row(packing, packer));
    let rows = rows.collect::<anyhow::Result<_>>()?;
    args.output.print(&PackedPull {
        bench: "packed",
        size: args.size.0 / args.archives * args.archives,
        archives: args.archives,
        rate_mbit: args.rate.0 / 125_000,
        runs: args.runs,
        rows,
    })
}

fn name(number: u64) -> String {
    format!("model-{number:05}.bin")
}

/// Numbers as bfloat16 has them, near 0: the mantissa is noise, few exponents are frequent.
fn write_weights(path: &Path, bytes: u64, seed: u64) -> anyhow::Result<()> {
    let mut noise = blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().take(bytes);
    let mut file = BufWriter::new(File::create(path)?);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let count = noise.read(&mut chunk)?;
        if count == 0 {
            return Ok(file.flush()?);
        }
        for high in chunk[..count].iter_mut().skip(1).step_by(2) {
            // Each exponent is half as frequent as the next higher one.
            let below = u8::try_from((*high >> 1).leading_zeros()).unwrap_or_default();
            *high = *high << 7 | (61 - below);
        }
        file.write_all(&chunk[..count])?;
    }
}

struct Bench<'a> {
    args: &'a PackedArgs,
    modelctl: PathBuf,
    site: Site,
    model: PathBuf,
    hashes: BTreeSet<[u8; 32]>,
    registry: Registry,
}

impl Bench<'_> {
    fn row(&self, packing: &'static str, program: &str) -> anyhow::Result<Row> {
        let packed = fresh(&self.site.memory.join("packed"))?;
        let script = format!(
            "ls '{}' | xargs -I {{}} sh -c \"tar -C '{}' -cf - {{}} | {program} > {{}}\"",
            path(&self.model),
            path(&self.model)
        );
        meter::measure(&script, &packed, &self.site.memory)?;
        let name = format!("bench/{}", packing.replace('+', "-"));
        let packed_bytes = self.publish(&packed, packing, &name)?;
        let unpacked = fresh(&self.site.memory.join("out"))?;
        let unpack = format!("ls '{0}' | xargs -I {{}} tar -xf '{0}/{{}}'", path(&packed));
        let unpack_s = meter::measure(&unpack, &unpacked, &self.site.memory)?.seconds;
        holds(&unpacked, &self.hashes)?;
        let (mut seconds, mut cpu_s, mut after) = (Vec::new(), Vec::new(), Vec::new());
        for run in 1..=self.args.runs {
            stage::goes_on()?;
            let (cost, rest) = self.pull(&name)?;
            tell(&format!(
                "{packing} run {run}: {:.3} s, {rest:.3} s of it after the last byte",
                cost.seconds
            ));
            seconds.push(cost.seconds);
            cpu_s.push(cost.cpu_s);
            after.push(rest);
        }
        let middle = |values: &[f64]| median(values).unwrap_or_default();
        Ok(Row {
            packing,
            packed_bytes,
            seconds: middle(&seconds),
            cpu_s: middle(&cpu_s),
            after_s: middle(&after),
            after_max_s: after.iter().copied().fold(0.0, f64::max),
            unpack_s,
        })
    }

    /// Publishes the archives in `dir`; says how long they are.
    fn publish(&self, dir: &Path, packing: &str, name: &str) -> anyhow::Result<u64> {
        let layout = fresh(&self.site.memory.join("layout"))?;
        let writer = LayoutWriter::open(&layout)?;
        let (mut layers, mut total) = (Vec::<Value>::new(), 0);
        for number in 0..self.args.archives {
            let raw = fs::read(dir.join(self::name(number)))?;
            let media_type = format!("application/vnd.cncf.model.weight.v1.{packing}");
            let digest = writer.write_bytes(&raw)?.to_string();
            layers.push(json!({ "mediaType": media_type, "digest": digest, "size": raw.len() }));
            total += raw.len() as u64;
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.cncf.model.config.v1+json",
                "digest": writer.write_bytes(b"{}")?.to_string(),
                "size": 2,
            },
            "layers": layers,
        });
        writer.put_manifest(manifest.to_string().as_bytes(), Some("v1"))?;
        drop(writer);
        let to = format!("{}/{name}:v1", self.registry.address);
        call(&self.modelctl, &["push", &format!("oci:{}:v1", layout.display()), &to, "--plain-http"])?;
        Ok(total)
    }

    /// One pull; also says how long it went on after the last byte.
    fn pull(&self, name: &str) -> anyhow::Result<(meter::Cost, f64)> {
        let dir = fresh(&self.site.memory.join("out"))?;
        let relay = Relay::start(self.registry.address, self.args.rate)?;
        let script = format!(
            "exec '{}' pull '{}/{name}:v1' -o model --peer none --plain-http",
            path(&self.modelctl),
            relay.address,
        );
        let begin = Instant::now();
        let cost = meter::measure(&script, &dir, &self.site.memory)?;
        let last = relay.last().saturating_duration_since(begin).as_secs_f64();
        holds(&dir, &self.hashes)?;
        Ok((cost, (cost.seconds - last).max(0.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_have_few_exponents_and_noise_below_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weights");
        write_weights(&file, 1 << 20, 7).unwrap();
        let bytes = fs::read(&file).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        let kinds = |skip: usize| bytes.iter().skip(skip).step_by(2).collect::<BTreeSet<_>>().len();
        assert_eq!(kinds(0), 256);
        assert!(kinds(1) <= 18, "{}", kinds(1));
    }
}
