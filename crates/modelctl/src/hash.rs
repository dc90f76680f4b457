//! Hashing files on disk, several at a time.
//!
//! Owns: one read of each file, the threads, and noticing that a file changes meanwhile. Does not own: what the hashes
//! are compared with.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::Context as _;
use modelpack::{
    digest::{Sha256Digest, Sha256Hasher},
    layout::{BlobPiece, PIECE_BYTES},
    piece_tree::{PieceTree, Provisional, TreeBuilder},
};
use store::Fingerprint;

use crate::{progress::Progress, report::Refusal};

/// Most files hashed at the same time: each has a buffer of one piece, and no disk is faster than eight cores hash.
const THREADS_MAX: usize = 8;

/// From here on a file's two hashes are computed on two threads: below, starting one costs more than it saves.
const TWO_THREADS_BYTES: u64 = 16 * PIECE_BYTES;

/// Pieces between the two threads: enough that neither waits for the other's moment of bad luck.
const BUFFERS: usize = 4;

/// Which hashes of a file are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Sha256,
    Blake3,
    Both,
}

/// What was found of one file.
#[derive(Debug)]
pub(crate) struct Hashed {
    pub(crate) fingerprint: Fingerprint,
    /// Present if it was wanted.
    pub(crate) sha256: Option<Sha256Digest>,
    /// Present if BLAKE3 was wanted.
    pub(crate) tree: Option<PieceTree<Provisional>>,
}

/// Opens a file that was hashed before and is still the same, as far as anybody can tell without reading it.
pub(crate) fn open_unchanged(path: &Path, fingerprint: &Fingerprint) -> anyhow::Result<File> {
    let file = store::open_file(path)?;
    if Fingerprint::of_file(&file, path)? == *fingerprint { Ok(file) } else { Err(changed(path)) }
}

/// Reads a file once, from its first byte to its last.
pub(crate) fn hash(path: &Path, wanted: Wanted, progress: &Progress) -> anyhow::Result<Hashed> {
    let file = store::open_file(path)?;
    let fingerprint = Fingerprint::of_file(&file, path)?;
    let mut pieces = Pieces { file, path, left: fingerprint.size, progress };
    let (sha256, tree) = if wanted == Wanted::Both && fingerprint.size >= TWO_THREADS_BYTES {
        let (sha256, tree) = on_two_threads(&mut pieces)?;
        (Some(sha256), Some(tree))
    } else {
        on_one_thread(&mut pieces, wanted)?
    };
    if Fingerprint::of_file(&pieces.file, path)? != fingerprint {
        return Err(changed(path));
    }
    Ok(Hashed { fingerprint, sha256, tree })
}

/// A file as it is read, piece by piece.
struct Pieces<'a> {
    file: File,
    path: &'a Path,
    left: u64,
    progress: &'a Progress,
}

impl Pieces<'_> {
    /// Fills `buffer` with the next piece; `false` at the end.
    fn next(&mut self, buffer: &mut Vec<u8>) -> anyhow::Result<bool> {
        if self.left == 0 {
            return Ok(false);
        }
        buffer.resize(usize::try_from(self.left.min(PIECE_BYTES)).expect("at most a piece"), 0);
        match self.file.read_exact(buffer) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed(self.path)),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read `{}`", self.path.display()));
            }
        }
        self.left -= buffer.len() as u64;
        self.progress.add(buffer.len() as u64);
        Ok(true)
    }
}

fn on_one_thread(
    pieces: &mut Pieces<'_>,
    wanted: Wanted,
) -> anyhow::Result<(Option<Sha256Digest>, Option<PieceTree<Provisional>>)> {
    let mut sha256 = (wanted != Wanted::Blake3).then(Sha256Hasher::default);
    let mut tree = (wanted != Wanted::Sha256).then(|| TreeBuilder::new(pieces.left));
    let mut buffer = Vec::new();
    for piece in (0..).map(BlobPiece) {
        if !pieces.next(&mut buffer)? {
            break;
        }
        if let Some(sha256) = &mut sha256 {
            sha256.update(&buffer);
        }
        if let Some(tree) = &mut tree {
            tree.add(piece, &buffer);
        }
    }
    let tree = tree.map(|tree| tree.finish().expect("every piece was added"));
    Ok((sha256.map(Sha256Hasher::finish), tree))
}

/// This thread reads and computes BLAKE3, a second one SHA-256, which takes longer than both together: so that the one
/// large file that is left at the end does not leave all cores but one idle.
fn on_two_threads(pieces: &mut Pieces<'_>) -> anyhow::Result<(Sha256Digest, PieceTree<Provisional>)> {
    let (filled, for_sha256) = mpsc::sync_channel::<Vec<u8>>(BUFFERS);
    let (emptied, empty) = mpsc::channel();
    for _ in 0..BUFFERS {
        emptied.send(Vec::new()).expect("the receiver is here");
    }
    thread::scope(|scope| {
        let sha256 = scope.spawn(move || {
            let mut sha256 = Sha256Hasher::default();
            for buffer in for_sha256 {
                sha256.update(&buffer);
                // At the end nobody waits for it any more.
                let _ = emptied.send(buffer);
            }
            sha256.finish()
        });
        let mut tree = TreeBuilder::new(pieces.left);
        for piece in (0..).map(BlobPiece) {
            let mut buffer = empty.recv().expect("the other thread lives while there is work");
            if !pieces.next(&mut buffer)? {
                break;
            }
            tree.add(piece, &buffer);
            filled.send(buffer).expect("the other thread lives while there is work");
        }
        drop(filled);
        let sha256 = sha256.join().expect("hashing does not panic");
        Ok((sha256, tree.finish().expect("every piece was added")))
    })
}

/// The SHA-256 of what is left of a file.
pub(crate) fn sha256(file: &mut File) -> io::Result<Sha256Digest> {
    let mut hasher = Sha256Hasher::default();
    let mut buffer = vec![0; usize::try_from(PIECE_BYTES).expect("a piece fits memory")];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

fn changed(path: &Path) -> anyhow::Error {
    Refusal::integrity(format!("`{}` has changed while it was being read", path.display()))
        .hint("wait until nobody writes the files, then run the command again")
        .into()
}

/// Does `work` for every item on a few threads, large ones first, and gives the results in the items' order. The first
/// failure is the one that is told; what has not begun then does not begin.
pub(crate) fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    size: impl Fn(&T) -> u64,
    work: impl Fn(&T) -> anyhow::Result<R> + Sync,
) -> anyhow::Result<Vec<R>> {
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|index| std::cmp::Reverse(size(&items[*index])));
    let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX).min(items.len());
    let (next, is_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<(usize, anyhow::Result<R>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_failed.load(Ordering::Relaxed) {
                    let Some(index) = order.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
                    let result = work(&items[*index]);
                    is_failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((*index, result));
                }
            });
        }
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut done: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for (index, result) in results {
        done[index] = Some(result?);
    }
    Ok(done.into_iter().map(|result| result.expect("without a failure every item was done")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_hashes_are_the_well_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0_usize, 1, 1 << 20, (1 << 20) + 1, 5 << 19, 16 << 20, (17 << 20) + 3] {
            let bytes: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
            let path = dir.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let hashed = hash(&path, Wanted::Both, &Progress::hidden()).unwrap();
            assert_eq!(hashed.sha256, Some(Sha256Digest::of(&bytes)));
            let root = hashed.tree.unwrap().root();
            assert_eq!(root.bytes(), blake3::hash(&bytes).as_bytes(), "{len} bytes");
            assert_eq!(hashed.fingerprint.size, len as u64);
        }
    }

    #[test]
    fn a_file_that_shrinks_while_it_is_read_is_refused_on_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        for size in [1_u64 << 20, TWO_THREADS_BYTES] {
            let path = dir.path().join("file");
            std::fs::write(&path, vec![7; usize::try_from(size).unwrap()]).unwrap();
            let file = store::open_file(&path).unwrap();
            let progress = Progress::hidden();
            // As if it had been longer when it was opened.
            let mut pieces = Pieces { file, path: &path, left: size + 1, progress: &progress };
            let error = if size < TWO_THREADS_BYTES {
                on_one_thread(&mut pieces, Wanted::Both).map(drop).unwrap_err()
            } else {
                on_two_threads(&mut pieces).map(drop).unwrap_err()
            };
            assert_eq!(crate::report::Failure::of(&error).exit_code, 3);
        }
    }

    #[test]
    fn a_file_that_was_written_after_hashing_is_not_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"one").unwrap();
        let fingerprint = hash(&path, Wanted::Sha256, &Progress::hidden()).unwrap().fingerprint;
        assert!(open_unchanged(&path, &fingerprint).is_ok());
        std::fs::write(&path, b"three").unwrap();
        let error = open_unchanged(&path, &fingerprint).unwrap_err();
        assert_eq!(crate::report::Failure::of(&error).exit_code, 3);
    }

    #[test]
    fn results_keep_the_order_of_the_items_and_a_failure_is_told() {
        let items: Vec<u64> = (0..100).collect();
        let doubled = in_parallel(&items, |item| *item, |item| Ok(item * 2)).unwrap();
        assert_eq!(doubled, (0..100).map(|item| item * 2).collect::<Vec<_>>());
        let fail = |item: &u64| if *item == 7 { Err(anyhow::anyhow!("seven")) } else { Ok(()) };
        let failed = in_parallel(&items, |item| *item, fail);
        assert_eq!(failed.unwrap_err().to_string(), "seven");
    }
}
