//! `bench hash`: what hashing costs, as the product does it, beside the tools that people have.
//!
//! Owns: the file, the threads, the clock around each. Does not own: the hashes (crate `modelpack`).

use std::{
    fmt,
    fs::File,
    io::Write as _,
    num::NonZeroU32,
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Instant,
};

use anyhow::{Context as _, ensure};
use clap::Args;
use modelpack::{
    digest::Sha256Hasher,
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{TreeBuilder, piece_value},
    quantity::Size,
};
use serde::Serialize;
use testbed::{
    maker::Maker,
    program::{are_installed, path},
    scratch::{self, Medium},
    stage,
};

use crate::{
    TOOL,
    output::{OutputArgs, tell},
    statistics::{median, ratio},
};

/// Memory beside the file.
const ROOM_BYTES: u64 = 128 << 20;

/// Most threads that are tried: more than one machine has cores to pay for.
const THREADS_MAX: u32 = 256;

/// Measure hashing as the product does it, beside b3sum, openssl and sha256sum
#[derive(Clone, Debug, Args)]
pub(crate) struct HashArgs {
    /// The file's size; it lies in memory
    #[arg(long, default_value = "1GiB")]
    size: Size,
    /// The numbers of threads; SHA-256 of one file has one
    #[arg(long, value_delimiter = ',', default_value = "1,2",
        value_parser = clap::value_parser!(u32).range(1..=i64::from(THREADS_MAX)))]
    threads: Vec<u32>,
    /// How often each is measured
    #[arg(long, default_value = "5")]
    runs: NonZeroU32,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was found.
#[derive(Debug, Serialize)]
struct HashResult {
    bench: &'static str,
    size: u64,
    runs: u32,
    rows: Vec<Row>,
    skipped: Vec<Skipped>,
}

/// One way to hash: medians over its runs.
#[derive(Debug, Serialize)]
struct Row {
    name: &'static str,
    threads: u32,
    bytes_per_s: f64,
    /// Bytes per second to those of the named tool with as many threads, the median of the pairs.
    ruler: Option<&'static str>,
    ratio: Option<f64>,
    #[serde(skip)]
    seconds: Vec<f64>,
}

/// What is not there, and why.
#[derive(Debug, Serialize)]
struct Skipped {
    name: &'static str,
    why: String,
}

impl fmt::Display for HashResult {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let beside = row.ruler.zip(row.ratio);
            let beside = beside.map_or_else(String::new, |(ruler, ratio)| format!("{ratio:.2} × {ruler}"));
            let (name, threads) = (row.name, row.threads);
            writeln!(out, "{name:<16} {threads:>3}  {:>6.2} GB/s  {beside}", row.bytes_per_s / 1e9)?;
        }
        for Skipped { name, why } in &self.skipped {
            writeln!(out, "skipped: {name}: {why}")?;
        }
        write!(out, "{} bytes in memory, {} runs", self.size, self.runs)
    }
}

/// A way to hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Pieces, each by itself: as they are checked when they arrive.
    Pieces,
    /// One hasher from the first byte to the last.
    Whole,
    /// SHA-256, as a blob is named.
    Sha256,
    /// SHA-256 and the piece tree in one pass, as a pull from a registry and a build do it.
    Both,
    B3sum,
    Openssl,
    Sha256sum,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Pieces => "blake3-pieces",
            Self::Whole => "blake3-whole",
            Self::Sha256 => "sha256",
            Self::Both => "sha256+pieces",
            Self::B3sum => "b3sum",
            Self::Openssl => "openssl",
            Self::Sha256sum => "sha256sum",
        }
    }

    fn has_threads(self) -> bool {
        matches!(self, Self::Pieces | Self::B3sum)
    }

    fn ruler(self) -> Option<Self> {
        match self {
            Self::Pieces | Self::Whole => Some(Self::B3sum),
            Self::Sha256 | Self::Both => Some(Self::Openssl),
            Self::B3sum | Self::Openssl | Self::Sha256sum => None,
        }
    }

    /// Hashes the file once.
    fn hash(self, file: &Path, threads: u32) -> anyhow::Result<()> {
        match self {
            Self::Pieces => pieces(file, threads),
            Self::Whole => {
                let mut hasher = blake3::Hasher::new();
                in_order(file, |_, bytes| {
                    hasher.update(bytes);
                })?;
                std::hint::black_box(hasher.finalize());
                Ok(())
            }
            Self::Sha256 => {
                let mut hasher = Sha256Hasher::default();
                in_order(file, |_, bytes| hasher.update(bytes))?;
                std::hint::black_box(hasher.finish());
                Ok(())
            }
            Self::Both => {
                let (mut hasher, mut tree) =
                    (Sha256Hasher::default(), TreeBuilder::new(file.metadata()?.len()));
                in_order(file, |piece, bytes| {
                    hasher.update(bytes);
                    tree.add(piece, bytes);
                })?;
                std::hint::black_box((hasher.finish(), tree.finish()));
                Ok(())
            }
            Self::B3sum => tool("b3sum", &["--num-threads", &threads.to_string(), path(file)]),
            Self::Openssl => tool("openssl", &["dgst", "-sha256", path(file)]),
            Self::Sha256sum => tool("sha256sum", &[path(file)]),
        }
    }
}

/// Measures every way.
pub(crate) fn run(args: &HashArgs) -> anyhow::Result<()> {
    ensure!(args.size.0 > 0, "no bytes are hashed in no time");
    let (maker, job) = (Maker::this(TOOL), args.clone());
    let result = stage::run(maker, move || measure(&job, maker))?;
    args.output.print(&result)
}

fn measure(args: &HashArgs, maker: Maker) -> anyhow::Result<HashResult> {
    let size = args.size.0;
    ensure!(
        Medium::with_room(size + ROOM_BYTES)? == Medium::Memory,
        "there is not enough memory for {size} bytes: choose a smaller `--size`"
    );
    let file = scratch::make(maker, Medium::Memory)?.join("hashed.bin");
    write_noise(&file, size)?;
    let (ways, skipped) = ways();
    let mut rows = Vec::new();
    for way in ways {
        let one = [1];
        let threads = if way.has_threads() { &args.threads[..] } else { &one[..] };
        rows.extend(threads.iter().map(|threads| (way, Row::new(way, *threads))));
    }
    for run in 1..=args.runs.get() {
        tell(&format!("run {run} of {}", args.runs));
        for (way, row) in &mut rows {
            stage::goes_on()?;
            let begin = Instant::now();
            way.hash(&file, row.threads).with_context(|| way.name())?;
            row.seconds.push(begin.elapsed().as_secs_f64());
        }
    }
    let mut rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    sum_up(&mut rows, size);
    Ok(HashResult { bench: "hash", size, runs: args.runs.get(), rows, skipped })
}

/// All ways, but for those whose tool is missing.
fn ways() -> (Vec<Way>, Vec<Skipped>) {
    let mut ways = vec![Way::Pieces, Way::Whole, Way::Sha256, Way::Both];
    let mut skipped = Vec::new();
    for tool in [Way::B3sum, Way::Openssl, Way::Sha256sum] {
        match are_installed(&[tool.name()]) {
            Ok(()) => ways.push(tool),
            Err(why) => skipped.push(Skipped { name: tool.name(), why: format!("{why:#}") }),
        }
    }
    (ways, skipped)
}

impl Row {
    fn new(way: Way, threads: u32) -> Self {
        let ruler = way.ruler().map(Way::name);
        Self { name: way.name(), threads, bytes_per_s: 0.0, ruler, ratio: None, seconds: Vec::new() }
    }
}

/// Medians, and ratios of what was measured in the same run.
fn sum_up(rows: &mut [Row], size: u64) {
    #[expect(clippy::cast_precision_loss, reason = "no file has 2^53 bytes")]
    let bytes = size as f64;
    let all: Vec<(&'static str, u32, Vec<f64>)> =
        rows.iter().map(|row| (row.name, row.threads, row.seconds.clone())).collect();
    for row in rows {
        row.bytes_per_s = median(&row.seconds).and_then(|seconds| ratio(bytes, seconds)).unwrap_or_default();
        let ruler = all.iter().find(|(name, threads, _)| Some(*name) == row.ruler && *threads == row.threads);
        let pairs = ruler.map(|(_, _, seconds)| seconds.iter().zip(&row.seconds));
        let ratios: Option<Vec<f64>> =
            pairs.and_then(|pairs| pairs.map(|(theirs, ours)| ratio(*theirs, *ours)).collect());
        row.ratio = ratios.and_then(|ratios| median(&ratios));
    }
}

fn write_noise(file: &Path, bytes: u64) -> anyhow::Result<()> {
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut out = File::create(file)?;
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES)?];
    let mut left = bytes;
    while left > 0 {
        stage::goes_on()?;
        let part = &mut buffer[..usize::try_from(left.min(PIECE_BYTES))?];
        noise.fill(part);
        out.write_all(part)?;
        left -= part.len() as u64;
    }
    Ok(())
}

/// Reads the file piece by piece.
fn in_order(file: &Path, mut take: impl FnMut(BlobPiece, &[u8])) -> anyhow::Result<()> {
    let (file, mut buffer) = (File::open(file)?, vec![0; usize::try_from(PIECE_BYTES)?]);
    let bytes = file.metadata()?.len();
    for number in 0..bytes.div_ceil(PIECE_BYTES) {
        let part = piece(&file, number, bytes, &mut buffer)?;
        take(BlobPiece(u32::try_from(number)?), part);
    }
    Ok(())
}

/// Reads one piece.
fn piece<'a>(file: &File, number: u64, bytes: u64, buffer: &'a mut [u8]) -> anyhow::Result<&'a [u8]> {
    let offset = number * PIECE_BYTES;
    let part = &mut buffer[..usize::try_from((bytes - offset).min(PIECE_BYTES))?];
    file.read_exact_at(part, offset)?;
    Ok(part)
}

/// Threads take pieces as a peer's do: whoever is free takes the next.
fn pieces(file: &Path, threads: u32) -> anyhow::Result<()> {
    let (file, next) = (File::open(file)?, AtomicU64::new(0));
    let bytes = file.metadata()?.len();
    let work = || -> anyhow::Result<()> {
        let mut buffer = vec![0; usize::try_from(PIECE_BYTES)?];
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= bytes.div_ceil(PIECE_BYTES) {
                return Ok(());
            }
            let part = piece(&file, number, bytes, &mut buffer)?;
            std::hint::black_box(piece_value(BlobPiece(u32::try_from(number)?), part));
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("a hashing thread does not panic"))
    })
}

/// Runs a tool to its end.
fn tool(name: &str, args: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(name).args(args).stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it failed: {}", stderr.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_compared_with_as_many_threads_of_the_same_run() {
        let row = |way, threads, seconds: &[f64]| Row { seconds: seconds.to_vec(), ..Row::new(way, threads) };
        let mut rows = [
            row(Way::Pieces, 1, &[2.0, 4.0, 20.0]),
            row(Way::Pieces, 2, &[1.0, 1.0, 1.0]),
            row(Way::B3sum, 1, &[1.0, 2.0, 10.0]),
        ];
        sum_up(&mut rows, 4_000_000_000);
        assert_eq!((rows[0].bytes_per_s, rows[0].ratio), (1e9, Some(0.5)));
        assert_eq!(rows[1].ratio, None, "b3sum was not measured with two");
        assert_eq!((rows[2].ruler, rows[2].ratio), (None, None));
    }

    #[test]
    fn every_piece_is_read_once_and_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        let bytes = 2 * PIECE_BYTES + 5;
        write_noise(&file, bytes).unwrap();
        let mut hasher = blake3::Hasher::new();
        let mut tree = TreeBuilder::new(bytes);
        in_order(&file, |piece, part| {
            hasher.update(part);
            tree.add(piece, part);
        })
        .unwrap();
        let whole = blake3::hash(&std::fs::read(&file).unwrap());
        assert_eq!(hasher.finalize(), whole);
        assert_eq!(tree.finish().unwrap().root().bytes(), whole.as_bytes());
        pieces(&file, 3).unwrap();
    }

    #[test]
    fn a_tool_that_fails_is_told() {
        assert!(tool("sh", &["-c", "echo why >&2; exit 1"]).unwrap_err().to_string().contains("why"));
    }
}
