//! Where bytes of a new artifact may lie in files that are here already, such as those of its last version.
//!
//! Owns: guessing, by digest, path and tensor, and giving up on what turned out wrong. Does not own: reading old files,
//! or proof. A guess says where to look; whether a piece is right is said by the new blob's tree, at its new place,
//! because chaining values depend on the offset.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    digest::Sha256Digest,
    layout::{BlobPiece, PIECE_BYTES},
    safetensors::Tensor,
};

/// Bytes of a file without structure that are given up together: enough that looking at three pieces of each costs
/// little, and little enough that a change somewhere gives up little.
const STRETCH_BYTES: u64 = 64 * PIECE_BYTES;

/// Pieces of a stretch that are looked at before the rest: its first, its last and the one in the middle.
const PROBES: usize = 3;

/// A file that is here.
#[derive(Clone, Debug)]
pub struct OldFile {
    /// Its path in its artifact.
    pub path: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256, if somebody has computed it.
    pub digest: Option<Sha256Digest>,
    /// Its tensors; none unless it is safetensors.
    pub tensors: Vec<Tensor>,
}

/// The files that are here, the likeliest first.
#[derive(Clone, Debug, Default)]
pub struct OldFiles {
    files: Vec<OldFile>,
    /// By name: in which file, and which of its tensors.
    tensors: BTreeMap<String, Vec<(usize, usize)>>,
}

/// A file that is wanted.
#[derive(Clone, Copy, Debug)]
pub struct NewFile<'a> {
    /// Its paths: those of all files that have this blob.
    pub paths: &'a [&'a str],
    /// Its size in bytes.
    pub bytes: u64,
    /// Its SHA-256.
    pub digest: Sha256Digest,
    /// Its tensors, where its header is known.
    pub tensors: Option<&'a [Tensor]>,
}

/// Bytes of an old file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// The number of the file.
    pub file: usize,
    /// The first byte, in the old file.
    pub from: u64,
    /// How many.
    pub bytes: u64,
    /// Which stretch it belongs to.
    stretch: usize,
}

/// A piece that may be put together from old bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Which piece of its blob.
    pub piece: BlobPiece,
    /// Its bytes, in order.
    pub parts: Vec<Part>,
}

impl Trial {
    /// The bytes of a piece of `bytes` bytes at the same place of an old file.
    pub fn in_place(piece: BlobPiece, bytes: u64, file: usize) -> Self {
        let from = u64::from(piece.0) * PIECE_BYTES;
        Self { piece, parts: vec![Part { file, from, bytes, stretch: 0 }] }
    }

    /// The old file that has all of its bytes at the very same place, if one has.
    pub fn lies_in_place(&self) -> Option<usize> {
        let mut at = u64::from(self.piece.0) * PIECE_BYTES;
        let file = self.parts.first()?.file;
        for part in &self.parts {
            if (part.file, part.from) != (file, at) {
                return None;
            }
            at += part.bytes;
        }
        Some(file)
    }
}

/// Bytes of a new blob that may be bytes of one old file. They are right or wrong together: a tensor, most often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    offset: u64,
    bytes: u64,
    file: usize,
    from: u64,
}

impl OldFiles {
    /// Of these files, the likeliest first.
    pub fn new(files: Vec<OldFile>) -> Self {
        let mut tensors: BTreeMap<String, Vec<_>> = BTreeMap::new();
        for (number, file) in files.iter().enumerate() {
            for (place, tensor) in file.tensors.iter().enumerate() {
                tensors.entry(tensor.name.clone()).or_default().push((number, place));
            }
        }
        Self { files, tensors }
    }

    /// The files, as they are numbered.
    pub fn files(&self) -> &[OldFile] {
        &self.files
    }

    /// Whether some tensor is known.
    pub fn has_tensors(&self) -> bool {
        !self.tensors.is_empty()
    }

    /// The file that is looked at in place: the same file under any path, or else another one of the same path.
    pub fn counterpart(&self, new: &NewFile<'_>) -> Option<usize> {
        let same = |file: &OldFile| file.bytes == new.bytes && file.digest == Some(new.digest);
        let named = |file: &OldFile| new.paths.contains(&file.path.as_str());
        self.files.iter().position(same).or_else(|| self.files.iter().position(named))
    }

    /// Where a tensor with the name, type and shape of this one lies; in `preferred` rather than elsewhere.
    fn tensor(&self, wanted: &Tensor, preferred: Option<usize>) -> Option<(usize, u64)> {
        let fits = |at: &&(usize, usize)| {
            let found = &self.files[at.0].tensors[at.1];
            found.dtype == wanted.dtype && found.shape == wanted.shape && found.bytes == wanted.bytes
        };
        let all = self.tensors.get(&wanted.name)?;
        let best = all.iter().filter(fits).find(|at| Some(at.0) == preferred);
        let (file, place) = *best.or_else(|| all.iter().find(fits))?;
        Some((file, self.files[file].tensors[place].offset))
    }
}

/// The borders at which a file is cut: those of its tensors, or where it has none every so many bytes.
fn borders(bytes: u64, tensors: &[Tensor]) -> Vec<u64> {
    let mut borders: Vec<u64> = vec![0, bytes];
    if tensors.is_empty() {
        borders.extend((0..bytes).step_by(usize::try_from(STRETCH_BYTES).expect("64-bit machines")));
    }
    for tensor in tensors {
        borders.extend([tensor.offset.min(bytes), tensor.offset.saturating_add(tensor.bytes).min(bytes)]);
    }
    borders.sort_unstable();
    borders.dedup();
    borders
}

fn stretches(old: &OldFiles, new: &NewFile<'_>) -> Vec<Stretch> {
    let counterpart = old.counterpart(new);
    let here = counterpart.map(|number| (number, &old.files[number]));
    let cut_by = new.tensors.or_else(|| here.map(|(_, file)| file.tensors.as_slice())).unwrap_or_default();
    let by_offset: BTreeMap<u64, &Tensor> = new
        .tensors
        .unwrap_or_default()
        .iter()
        .filter(|one| one.bytes > 0)
        .map(|one| (one.offset, one))
        .collect();
    let mut found = Vec::new();
    for border in borders(new.bytes, cut_by).windows(2) {
        let [offset, end] = [border[0], border[1]];
        let tensor = by_offset.get(&offset).filter(|tensor| tensor.bytes == end - offset);
        if let Some((file, from)) = tensor.and_then(|tensor| old.tensor(tensor, counterpart)) {
            found.push(Stretch { offset, bytes: end - offset, file, from });
        } else if let Some((file, at)) = here.filter(|(_, at)| offset < at.bytes) {
            found.push(Stretch { offset, bytes: end.min(at.bytes) - offset, file, from: offset });
        }
    }
    found
}

/// What is worth trying for one blob, in two steps: some pieces of each stretch first, the rest when it is known which
/// stretches are wrong.
#[derive(Debug)]
pub struct Attempts {
    trials: Vec<Trial>,
    /// Of each stretch that is long enough: the trials that tell whether it is wrong.
    probes: BTreeMap<usize, Vec<usize>>,
    good: BTreeSet<BlobPiece>,
}

impl Attempts {
    /// For the pieces that `is_wanted` admits.
    pub fn new(old: &OldFiles, new: &NewFile<'_>, is_wanted: impl Fn(&Trial) -> bool) -> Self {
        let stretches = stretches(old, new);
        let mut trials = Vec::new();
        let mut first = 0;
        for (piece, offset) in (0..).map(BlobPiece).zip((0..new.bytes).step_by(1 << 20)) {
            let end = new.bytes.min(offset + PIECE_BYTES);
            while stretches.get(first).is_some_and(|stretch| stretch.offset + stretch.bytes <= offset) {
                first += 1;
            }
            if let Some(parts) = parts(&stretches, first, offset, end) {
                let trial = Trial { piece, parts };
                if is_wanted(&trial) {
                    trials.push(trial);
                }
            }
        }
        let probes = probes(&trials);
        Self { trials, probes, good: BTreeSet::new() }
    }

    /// All that is worth trying, as far as is known before.
    pub fn all(&self) -> &[Trial] {
        &self.trials
    }

    /// What to try first.
    pub fn first(&self) -> Vec<Trial> {
        let numbers: BTreeSet<_> = self.probes.values().flatten().collect();
        numbers.into_iter().map(|number| self.trials[*number].clone()).collect()
    }

    /// That a piece was right.
    pub fn was_good(&mut self, piece: BlobPiece) {
        self.good.insert(piece);
    }

    /// What to try then.
    pub fn rest(&self) -> Vec<Trial> {
        let is_good = |number: &usize| self.good.contains(&self.trials[*number].piece);
        let is_wrong =
            |part: &Part| self.probes.get(&part.stretch).is_some_and(|probes| !probes.iter().any(is_good));
        let tried: BTreeSet<_> = self.probes.values().flatten().copied().collect();
        let rest = self.trials.iter().enumerate().filter(|(number, _)| !tried.contains(number));
        rest.map(|(_, trial)| trial).filter(|trial| !trial.parts.iter().any(is_wrong)).cloned().collect()
    }
}

/// The parts of the bytes `offset..end`, from the stretch `first` on; none unless they are all there.
fn parts(stretches: &[Stretch], first: usize, offset: u64, end: u64) -> Option<Vec<Part>> {
    let (mut parts, mut at) = (Vec::new(), offset);
    for (number, stretch) in stretches.iter().enumerate().skip(first) {
        if at == end || stretch.offset > at {
            break;
        }
        let bytes = end.min(stretch.offset + stretch.bytes) - at;
        let from = stretch.from + (at - stretch.offset);
        parts.push(Part { file: stretch.file, from, bytes, stretch: number });
        at += bytes;
    }
    (at == end).then_some(parts)
}

/// Only a piece within one stretch says something about it. A stretch of few pieces is tried as a whole.
fn probes(trials: &[Trial]) -> BTreeMap<usize, Vec<usize>> {
    let mut within: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (number, trial) in trials.iter().enumerate() {
        if let [part] = trial.parts.as_slice() {
            within.entry(part.stretch).or_default().push(number);
        }
    }
    within.retain(|_, numbers| numbers.len() > PROBES);
    for numbers in within.values_mut() {
        *numbers = vec![numbers[0], numbers[numbers.len() / 2], numbers[numbers.len() - 1]];
    }
    within
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECE: u64 = PIECE_BYTES;

    fn tensor(name: &str, offset: u64, bytes: u64) -> Tensor {
        Tensor { name: name.into(), dtype: "U8".into(), shape: vec![bytes], offset, bytes }
    }

    fn file(path: &str, bytes: u64, tensors: Vec<Tensor>) -> OldFile {
        OldFile { path: path.into(), bytes, digest: None, tensors }
    }

    fn new<'a>(paths: &'a [&'a str], bytes: u64, tensors: Option<&'a [Tensor]>) -> NewFile<'a> {
        NewFile { paths, bytes, digest: Sha256Digest::of(b"new"), tensors }
    }

    fn pieces(trials: &[Trial]) -> Vec<u32> {
        trials.iter().map(|trial| trial.piece.0).collect()
    }

    #[test]
    fn the_file_of_that_path_is_looked_at_in_place_and_the_same_file_under_any() {
        let mut old = vec![file("a", 3 * PIECE + 5, vec![]), file("b", 2 * PIECE, vec![])];
        let attempts = |old: &[OldFile]| {
            let old = OldFiles::new(old.to_vec());
            Attempts::new(&old, &new(&["x", "a"], 2 * PIECE + 9, None), |_| true).rest()
        };
        let found = attempts(&old);
        assert_eq!(pieces(&found), [0, 1, 2]);
        assert!(found.iter().all(|trial| trial.lies_in_place() == Some(0)));
        assert_eq!(found[2].parts[0].bytes, 9);
        old[1].digest = Some(Sha256Digest::of(b"new"));
        assert!(attempts(&old).iter().all(|trial| trial.parts[0].file == 0), "another size is another file");
        old[1].bytes = 2 * PIECE + 9;
        assert!(attempts(&old).iter().all(|trial| trial.parts[0].file == 1));
        assert_eq!(attempts(&[file("b", 2 * PIECE, vec![])]), []);
    }

    #[test]
    fn an_old_file_that_is_shorter_gives_only_what_it_has() {
        let old = OldFiles::new(vec![file("a", 2 * PIECE - 1, vec![])]);
        let found = Attempts::new(&old, &new(&["a"], 3 * PIECE, None), |_| true);
        assert_eq!(pieces(&found.rest()), [0]);
    }

    #[test]
    fn tensors_are_found_in_other_files_and_at_other_places() {
        let old = OldFiles::new(vec![
            file("one", 5 * PIECE, vec![tensor("w", 100, 3 * PIECE)]),
            file("two", 5 * PIECE, vec![tensor("v", 7, 2 * PIECE)]),
        ]);
        let tensors = [tensor("v", 50, 2 * PIECE), tensor("w", 50 + 2 * PIECE, 3 * PIECE)];
        let bytes = 50 + 5 * PIECE;
        let found = Attempts::new(&old, &new(&["three"], bytes, Some(&tensors)), |_| true).rest();
        assert_eq!(pieces(&found), [1, 2, 3, 4, 5], "the header lies in the first");
        let part = |file, from, bytes, stretch| Part { file, from, bytes, stretch };
        assert_eq!(found[0].parts, [part(1, 7 + PIECE - 50, PIECE, 0)]);
        assert_eq!(found[1].parts, [part(1, 7 + 2 * PIECE - 50, 50, 0), part(0, 100, PIECE - 50, 1)]);
        assert!(found.iter().all(|trial| trial.lies_in_place().is_none()));
        let mut other = tensors.clone();
        other[1].dtype = "I8".into();
        let found = Attempts::new(&old, &new(&["three"], bytes, Some(&other)), |_| true).rest();
        assert_eq!(pieces(&found), [1]);
    }

    #[test]
    fn a_stretch_whose_probes_are_wrong_is_given_up_and_no_other() {
        let tensors = vec![tensor("a", 0, 100 * PIECE), tensor("b", 100 * PIECE, 50 * PIECE)];
        let old = OldFiles::new(vec![file("x", 150 * PIECE, tensors)]);
        let mut attempts = Attempts::new(&old, &new(&["x"], 150 * PIECE, None), |_| true);
        assert_eq!(pieces(&attempts.first()), [0, 50, 99, 100, 125, 149]);
        attempts.was_good(BlobPiece(125));
        let rest = pieces(&attempts.rest());
        assert_eq!(rest.len(), 47);
        assert!(rest.iter().all(|piece| *piece > 100 && ![125, 149].contains(piece)));
    }

    proptest! {
        /// Every piece that lies wholly in tensors that are here is tried, unless a tensor it lies in is wrong.
        #[test]
        fn whatever_is_covered_is_tried(
            sizes in prop::collection::vec(1_u64..(6 << 20), 1..12),
            kept in prop::collection::vec(any::<bool>(), 12),
            (old_header, new_header) in (8_u64..5000, 8_u64..5000),
        ) {
            let mut old_at = old_header;
            let mut old_tensors = Vec::new();
            for (number, bytes) in sizes.iter().enumerate().rev() {
                old_tensors.push(tensor(&number.to_string(), old_at, *bytes));
                old_at += bytes;
            }
            let mut at = new_header;
            let mut tensors = Vec::new();
            for (number, bytes) in sizes.iter().enumerate() {
                let name = if kept[number] { number.to_string() } else { format!("new {number}") };
                tensors.push(tensor(&name, at, *bytes));
                at += bytes;
            }
            let old = OldFiles::new(vec![file("old", old_at, old_tensors.clone())]);
            let mut attempts = Attempts::new(&old, &new(&["new"], at, Some(&tensors)), |_| true);
            let first = attempts.first();
            for trial in &first {
                attempts.was_good(trial.piece);
            }
            let mut tried: BTreeMap<u32, Trial> =
                attempts.rest().into_iter().chain(first).map(|trial| (trial.piece.0, trial)).collect();
            for piece in 0..u32::try_from(at.div_ceil(PIECE)).unwrap() {
                let (start, end) = (u64::from(piece) * PIECE, at.min((u64::from(piece) + 1) * PIECE));
                let over = |one: &&Tensor| one.offset < end && start < one.offset + one.bytes;
                let is_kept = |one: &Tensor| !one.name.starts_with("new");
                let covered = start >= new_header && tensors.iter().filter(over).all(is_kept);
                let trial = tried.remove(&piece);
                prop_assert_eq!(trial.is_some(), covered);
                // The parts are the bytes of the very tensors.
                let mut at = start;
                for part in trial.into_iter().flat_map(|trial| trial.parts) {
                    let one = tensors.iter().rev().find(|one| one.offset <= at).unwrap();
                    let was = old_tensors.iter().find(|was| was.name == one.name).unwrap();
                    prop_assert_eq!(part.from - was.offset, at - one.offset);
                    at += part.bytes;
                }
            }
        }
    }
}
