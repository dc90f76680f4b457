//! Which tensors differ between two files of one path.
//!
//! Owns: comparing two headers, and the tensors' bytes as far as piece trees tell. Does not own: reading tensors.

use std::{collections::BTreeMap, fmt};

use anyhow::Context as _;
use modelpack::{
    delta::{Attempts, NewFile, OldFile, OldFiles, Trial},
    layout::PIECE_BYTES,
    manifest::Blob,
    piece_tree::{Anchored, PieceTree},
    safetensors::{HEADER_BYTES_MAX, Tensor},
};
use serde::Serialize;

use super::VALUE_BYTES;
use crate::{artifact::Artifact, text};

/// Characters of a tensor's name that a line has room for.
const NAME_CHARS_MAX: usize = 60;

/// How the tensors of two files compare.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct TensorDifference {
    /// Equal, proved by the trees.
    pub(super) same: usize,
    pub(super) added: Vec<String>,
    pub(super) removed: Vec<String>,
    /// Of another type or shape, or in a piece that differs.
    pub(super) changed: Vec<String>,
    /// At another place, or without trees: equal or not, which the headers do not say.
    pub(super) unknown: usize,
    /// Bytes of the file that would move if all of those were equal.
    pub(super) moving_least: u64,
}

impl fmt::Display for TensorDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { same, added, removed, changed, unknown, moving_least: _ } = self;
        write!(f, "{same} the same")?;
        for (names, what) in [(changed, "changed"), (added, "added"), (removed, "removed")] {
            if let Some(first) = names.first() {
                let more = if names.len() > 1 { ", …" } else { "" };
                write!(f, ", {} {what} ({}{more})", names.len(), text::clipped(first, NAME_CHARS_MAX))?;
            }
        }
        if *unknown > 0 { write!(f, ", {unknown} cannot be told") } else { Ok(()) }
    }
}

/// Compares two files that differ.
pub(super) async fn compare(
    old: (&Artifact, &Blob, Option<&PieceTree<Anchored>>),
    new: (&Artifact, &Blob, Option<&PieceTree<Anchored>>),
) -> anyhow::Result<TensorDifference> {
    let before = old.0.tensors(old.1, HEADER_BYTES_MAX).await.context("the old one")?;
    let after = new.0.tensors(new.1, HEADER_BYTES_MAX).await.context("the new one")?;
    let moving_least = moving_least((old.1, &before, old.2), (new.1, &after, new.2));
    let trees = old.2.zip(new.2).map(|(old, new)| (old.serialise(), new.serialise()));
    Ok(TensorDifference { moving_least, ..judge(before, after, trees.as_ref()) })
}

/// A file's blob, tensors and tree.
type Known<'a> = (&'a Blob, &'a [Tensor], Option<&'a PieceTree<Anchored>>);

/// The bytes that would have to be sent if tensors that are at another place were the same.
fn moving_least((old, before, old_tree): Known<'_>, (new, after, new_tree): Known<'_>) -> u64 {
    let file = OldFile { path: String::new(), bytes: old.size, digest: None, tensors: before.to_vec() };
    // What is no tensor is compared in place, by the trees alone.
    let wanted = NewFile { paths: &[], bytes: new.size, digest: new.digest, tensors: Some(after) };
    let may_be_same = |trial: &Trial| match old_tree.zip(new_tree) {
        Some((old, new)) if trial.lies_in_place().is_some() => new.shares(old, trial.piece),
        _ => true,
    };
    let attempts = Attempts::new(&OldFiles::new(vec![file]), &wanted, may_be_same);
    let here = attempts.all().iter().flat_map(|trial| &trial.parts).map(|part| part.bytes).sum::<u64>();
    new.size.saturating_sub(here)
}

fn judge(old: Vec<Tensor>, new: Vec<Tensor>, trees: Option<&(Vec<u8>, Vec<u8>)>) -> TensorDifference {
    let mut before: BTreeMap<String, Tensor> =
        old.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
    let mut difference = TensorDifference::default();
    for tensor in new {
        let Some(was) = before.remove(&tensor.name) else {
            difference.added.push(tensor.name);
            continue;
        };
        if (&was.dtype, &was.shape) != (&tensor.dtype, &tensor.shape) {
            difference.changed.push(tensor.name);
        } else if tensor.bytes == 0 {
            difference.same += 1;
        } else {
            let trees = trees.filter(|_| was.offset == tensor.offset);
            match trees.map(|(old, new)| are_pieces_same(&tensor, old, new)) {
                Some(true) => difference.same += 1,
                Some(false) => difference.changed.push(tensor.name),
                None => difference.unknown += 1,
            }
        }
    }
    difference.removed = before.into_keys().collect();
    difference
}

/// Whether all pieces in which the tensor lies are the same in both files.
fn are_pieces_same(tensor: &Tensor, old: &[u8], new: &[u8]) -> bool {
    let last = tensor.offset.saturating_add(tensor.bytes - 1) / PIECE_BYTES;
    let mut pieces = tensor.offset / PIECE_BYTES..=last;
    pieces.all(|piece| {
        let value = |values: &[u8]| {
            let start = usize::try_from(piece).ok()?.checked_mul(VALUE_BYTES)?;
            values.get(start..start.checked_add(VALUE_BYTES)?).map(<[u8]>::to_vec)
        };
        value(old).is_some_and(|old| Some(old) == value(new))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, offset: u64, bytes: u64) -> Tensor {
        Tensor { name: name.into(), dtype: "U8".into(), shape: vec![bytes], offset, bytes }
    }

    #[test]
    fn tensors_are_the_same_where_all_their_pieces_are() {
        let old = vec![
            tensor("first", 8, 100),
            tensor("across", PIECE_BYTES - 10, 20),
            tensor("second", PIECE_BYTES + 10, 100),
            tensor("gone", PIECE_BYTES + 110, 1),
            tensor("moved", 3 * PIECE_BYTES, 1),
            tensor("empty", 0, 0),
        ];
        let mut new = old.clone();
        new.retain(|tensor| tensor.name != "gone");
        new.push(tensor("added", PIECE_BYTES + 110, 1));
        new[3].offset += 1;
        let (before, mut after) = (vec![7; 4 * VALUE_BYTES], vec![7; 4 * VALUE_BYTES]);
        after[VALUE_BYTES] = 8;
        let found = judge(old.clone(), new.clone(), Some(&(before, after)));
        assert_eq!(found.same, 2, "first and empty: {found:?}");
        assert_eq!(found.changed, ["across", "second"]);
        assert_eq!((found.added, found.removed), (vec!["added".to_owned()], vec!["gone".to_owned()]));
        assert_eq!(found.unknown, 1, "what moved");
        let found = judge(old, new, None);
        assert_eq!((found.same, found.changed.len(), found.unknown), (1, 0, 4));
    }

    #[test]
    fn a_piece_that_only_one_file_has_is_not_the_same() {
        let values = vec![7; 2 * VALUE_BYTES];
        assert!(!are_pieces_same(&tensor("x", PIECE_BYTES, 10), &values, &values[..VALUE_BYTES]));
        assert!(are_pieces_same(&tensor("x", PIECE_BYTES, 10), &values, &values));
        assert!(!are_pieces_same(&tensor("x", u64::MAX - 5, 4), &values, &values));
    }
}
