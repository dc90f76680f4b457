//! `modelctl diff`: what differs between two artifacts.
//!
//! Owns: the comparison of files and what is said of it. Does not own: that of tensors (`tensors`), or pulling what
//! differs.

mod tensors;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use modelpack::{
    digest::Sha256Digest,
    layout::PIECE_BYTES,
    manifest::{Blob, Manifest},
    piece_tree::{Anchored, PieceTree},
};
use serde::Serialize;

use self::tensors::TensorDifference;
use crate::{
    access,
    artifact::Artifact,
    cli::DiffArgs,
    printer::Printer,
    tensors::is_safetensors,
    text::{self, Align, Table},
};

/// Bytes of one piece's value in a serialised tree.
const VALUE_BYTES: usize = 32;

/// The piece trees of an artifact, by blob.
type Trees = BTreeMap<Sha256Digest, PieceTree<Anchored>>;

/// The result.
#[derive(Serialize)]
struct Difference {
    old: String,
    new: String,
    same: usize,
    files: Vec<FileDifference>,
    /// Bytes that somebody with the old artifact would have to be sent for the new one, at most.
    moving_bytes: u64,
    /// And if tensors that are at another place are the same, which only their bytes could say.
    moving_bytes_least: u64,
    new_bytes: u64,
}

#[derive(Serialize)]
struct FileDifference {
    path: String,
    change: Change,
    old_bytes: Option<u64>,
    new_bytes: Option<u64>,
    moving_bytes: u64,
    /// Whether those were counted piece by piece.
    by_pieces: bool,
    /// For a safetensors file that changed, if both headers can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<TensorDifference>,
}

impl FileDifference {
    fn moving_least(&self) -> u64 {
        self.tensors.as_ref().map_or(self.moving_bytes, |tensors| tensors.moving_least.min(self.moving_bytes))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Added,
    Removed,
    Changed,
    /// Only whether it may be executed, or what it is for.
    Attributes,
}

/// Compares.
pub(crate) fn run(args: &DiffArgs, printer: &Printer) -> anyhow::Result<()> {
    let difference = access::runtime()?.block_on(async {
        let old = Artifact::open(&args.old, &args.registry).await?;
        let new = Artifact::open(&args.new, &args.registry).await?;
        // Without trees the comparison is only coarser.
        let trees = |found: anyhow::Result<Trees>| {
            found.unwrap_or_else(|error| {
                printer.warn(format_args!("the piece trees cannot be read: {error:#}"));
                Trees::new()
            })
        };
        let old_trees = trees(old.trees().await);
        let new_trees = trees(new.trees().await);
        let mut difference = compare((&old.manifest, &old_trees), (&new.manifest, &new_trees));
        let changed = difference.files.iter_mut().filter(|file| file.change == Change::Changed);
        for file in changed.filter(|file| is_safetensors(&file.path)) {
            let (from, to) = (blob_of(&old.manifest, &file.path), blob_of(&new.manifest, &file.path));
            let Some((from, to)) = from.zip(to) else { continue };
            let before = (&old, from, old_trees.get(&from.digest));
            match tensors::compare(before, (&new, to, new_trees.get(&to.digest))).await {
                Ok(found) => file.tensors = Some(found),
                Err(error) => {
                    let path = text::one_line(&file.path);
                    printer.warn(format_args!("cannot compare the tensors of `{path}`: {error:#}"));
                }
            }
        }
        difference.moving_bytes_least = difference.files.iter().map(FileDifference::moving_least).sum();
        anyhow::Ok(difference)
    })?;
    let (old, new) = (args.old.to_string(), args.new.to_string());
    printer.result(&Difference { old, new, ..difference })
}

fn blob_of<'a>(manifest: &'a Manifest, path: &str) -> Option<&'a Blob> {
    let file = manifest.files().iter().find(|file| file.path == path)?;
    manifest.blobs().get(file.blob.0 as usize)
}

fn compare((old, old_trees): (&Manifest, &Trees), (new, new_trees): (&Manifest, &Trees)) -> Difference {
    let blob =
        |manifest: &'_ Manifest, index: modelpack::layout::BlobIndex| manifest.blobs()[index.0 as usize];
    let before: BTreeMap<_, _> = old.files().iter().map(|file| (file.path.as_str(), file)).collect();
    let mut there: BTreeSet<Sha256Digest> = old.blobs().iter().map(|blob| blob.digest).collect();
    let (mut files, mut same) = (Vec::new(), 0);
    for file in new.files() {
        let to = blob(new, file.blob);
        let from = before.get(file.path.as_str()).map(|old_file| (*old_file, blob(old, old_file.blob)));
        let is_same = |from: &Blob| from.digest == to.digest;
        let change = match &from {
            None => Change::Added,
            Some((_, from)) if !is_same(from) => Change::Changed,
            Some((old, _)) if (old.is_executable, old.kind) != (file.is_executable, file.kind) => {
                Change::Attributes
            }
            Some(_) => {
                same += 1;
                continue;
            }
        };
        // Two files of one blob are one transfer.
        let is_new = there.insert(to.digest);
        let pieces = from
            .and_then(|(_, from)| moving(old_trees.get(&from.digest)?, new_trees.get(&to.digest)?))
            .filter(|_| is_new);
        files.push(FileDifference {
            path: file.path.clone(),
            change,
            old_bytes: from.map(|(_, from)| from.size),
            new_bytes: Some(to.size),
            moving_bytes: if is_new { pieces.unwrap_or(to.size) } else { 0 },
            by_pieces: pieces.is_some(),
            tensors: None,
        });
    }
    let after: BTreeSet<_> = new.files().iter().map(|file| file.path.as_str()).collect();
    let removed = old.files().iter().filter(|file| !after.contains(file.path.as_str()));
    files.extend(removed.map(|file| FileDifference {
        path: file.path.clone(),
        change: Change::Removed,
        old_bytes: Some(blob(old, file.blob).size),
        new_bytes: None,
        moving_bytes: 0,
        by_pieces: false,
        tensors: None,
    }));
    files.sort_by(|a, b| (a.change, &a.path).cmp(&(b.change, &b.path)));
    Difference {
        old: String::new(),
        new: String::new(),
        same,
        moving_bytes: files.iter().map(|file| file.moving_bytes).sum(),
        moving_bytes_least: 0,
        new_bytes: new.layout().total_bytes(),
        files,
    }
}

/// The bytes of the pieces that are not the same at the same place.
fn moving(old: &PieceTree<Anchored>, new: &PieceTree<Anchored>) -> Option<u64> {
    let (old, values) = (old.serialise(), new.serialise());
    // A blob of one piece has no values: its root is compared as its digest is.
    if values.is_empty() {
        return None;
    }
    let mut old = old.chunks(VALUE_BYTES);
    let pieces = values.chunks(VALUE_BYTES).zip((0..).map(|piece: u64| piece * PIECE_BYTES));
    let differ = pieces.filter(|(value, _)| old.next() != Some(*value));
    Some(differ.map(|(_, offset)| PIECE_BYTES.min(new.blob_bytes() - offset)).sum())
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.files.is_empty() {
            return write!(f, "no file differs: {} are the same", text::plural(self.same, "file"));
        }
        let mut table = Table::new([Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
        table.row(["CHANGE", "OLD", "NEW", "MOVES", "PATH"].map(str::to_owned));
        let size = |bytes: Option<u64>| bytes.map_or_else(|| "-".to_owned(), text::bytes);
        for file in &self.files {
            let moves = match file.change {
                Change::Removed => "-".to_owned(),
                _ => text::bytes(file.moving_bytes),
            };
            table.row([
                file.change.to_string(),
                size(file.old_bytes),
                size(file.new_bytes),
                moves,
                text::one_line(&file.path),
            ]);
        }
        writeln!(f, "{table}\n")?;
        for file in &self.files {
            let Some(tensors) = &file.tensors else { continue };
            writeln!(f, "tensors of {}: {tensors}", text::one_line(&file.path))?;
        }
        let (moving, all) = (text::bytes(self.moving_bytes), text::bytes(self.new_bytes));
        let least = match self.moving_bytes_least {
            least if least < self.moving_bytes => format!("{} to ", text::bytes(least)),
            _ => String::new(),
        };
        write!(f, "{} the same; {least}{moving} of {all} would move", text::plural(self.same, "file"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Changed => "changed",
            Self::Attributes => "mode or kind",
        })
    }
}
