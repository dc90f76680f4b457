//! Unpacking the archives of an output directory into its staging.
//!
//! Owns: files without their final names, made of archives that are proved, and what is known of them. Does not own:
//! reading archives (`archive`), or the names (`publish`).

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write as _},
    num::NonZero,
    os::unix::fs::FileExt as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use modelpack::{
    digest::{Sha256Digest, Sha256Hasher},
    manifest::{Archive, Kind, Modified},
    path,
    selection::{Matched, Selection},
};
use rustix::fs::{Mode, Timespec, Timestamps, UTIME_OMIT};

use crate::{
    archive::{ArchiveError, Budget, Packed, Taker, followed, read_archive},
    contents::Contents,
    error::{Context as _, StoreError},
    files::Dir,
    landing::Landing,
    link::{self, LinkMode},
    output::Output,
};

/// Where unpacked files lie until they get their names.
pub(crate) const UNPACKED_NAME: &str = "unpacked";

/// Archives unpacked side by side: a decoder of Zstandard may take 128 MiB for its window.
const AT_ONCE_MAX: usize = 4;

/// Bytes written at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// One file of an archive, unpacked.
#[derive(Clone, Debug)]
pub(crate) struct Unpacked {
    pub(crate) path: String,
    /// Its name in the directory of unpacked files.
    pub(crate) name: String,
    pub(crate) sha256: Sha256Digest,
    pub(crate) is_weight: bool,
}

/// What came of one archive: its files, and what the selection has to do with them.
pub(crate) type Part = (Vec<Unpacked>, Matched);

impl Output {
    /// Unpacks every archive that was not unpacked while it landed. Their blobs have been proved, and nothing changes
    /// them any more.
    pub(crate) fn unpack(&self, staging: &Dir) -> Result<Vec<Unpacked>, StoreError> {
        let ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner).take();
        let early = if let Some(ahead) = ahead {
            ahead.finish()
        } else {
            clear(staging)?;
            BTreeMap::new()
        };
        let mut matched = self.contents.matched.clone();
        let mut unpacked = Vec::new();
        if !self.contents.archives.is_empty() {
            let dir = staging.make(UNPACKED_NAME)?;
            for (mut files, here) in self.unpack_rest(&dir, early)? {
                unpacked.append(&mut files);
                matched.join(&here);
            }
        }
        if let Some(selection) = &self.contents.selection {
            selection.check(&matched)?;
        }
        let raw = self.contents.files.iter().map(|file| file.path.as_str());
        path::check_together(raw.chain(unpacked.iter().map(|file| file.path.as_str())))?;
        Ok(unpacked)
    }

    /// All archives in their order; those of `early`, by number, are unpacked.
    fn unpack_rest(&self, dir: &Dir, early: BTreeMap<usize, Part>) -> Result<Vec<Part>, StoreError> {
        let archives = &self.contents.archives;
        let rest: Vec<_> = (0..archives.len()).filter(|number| !early.contains_key(number)).collect();
        let budget = Budget::new(self.contents.packed_bytes());
        let next = AtomicUsize::new(0);
        let done: Mutex<BTreeMap<_, _>> =
            Mutex::new(early.into_iter().map(|(number, part)| (number, Ok(part))).collect());
        let work = || {
            while let Some(number) = rest.get(next.fetch_add(1, Ordering::Relaxed)) {
                let archive = &archives[*number];
                let source = Positioned { file: self.landing.file(archive.blob), offset: 0 };
                let result = unpack_one((&self.contents, &self.landing), (archive, source), dir, &budget);
                if result.is_err() {
                    // The others need not begin.
                    next.store(rest.len(), Ordering::Relaxed);
                }
                done.lock().unwrap_or_else(PoisonError::into_inner).insert(*number, result);
            }
        };
        thread::scope(|scope| {
            for _ in 1..unpacking_threads(rest.len()) {
                scope.spawn(work);
            }
            work();
        });
        done.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect()
    }
}

/// How many threads unpack that many archives.
pub fn unpacking_threads(archives: usize) -> usize {
    thread::available_parallelism().map_or(1, NonZero::get).min(AT_ONCE_MAX).min(archives)
}

/// Unpacks one archive into files without their final names. What was unpacked of one that fails is removed.
pub(crate) fn unpack_one(
    (contents, landing): (&Contents, &Landing),
    (archive, source): (&Archive, impl Read),
    dir: &Dir,
    budget: &Budget,
) -> Result<Part, StoreError> {
    let mut files = Files {
        archive,
        landing,
        dir,
        selection: contents.selection.as_deref(),
        matched: Matched::default(),
        unpacked: Vec::new(),
        links: BTreeMap::new(),
    };
    let read = read_archive(source, archive.packing, budget, &mut files);
    match read.and_then(|()| files.make_links()) {
        Ok(()) => Ok((files.unpacked, files.matched)),
        Err(error) => {
            remove(dir, archive, files.unpacked.len() + 1);
            Err(match error {
                ArchiveError::Store(error) => error,
                source => StoreError::Archive { archive: archive.to_string(), source: Box::new(source) },
            })
        }
    }
}

/// Removes the first `count` files of an archive: they take space and are of no use. Best effort, for the next run
/// removes what is left.
pub(crate) fn remove(dir: &Dir, archive: &Archive, count: usize) {
    for number in 0..count {
        if let Err(error) = dir.remove_if_there(&name_of(archive, number)) {
            tracing::warn!(%error, "an unpacked file is left behind; the next run removes it");
        }
    }
}

/// No two archives are the same blob, so that no two files get the same name.
fn name_of(archive: &Archive, number: usize) -> String {
    format!("{}-{number}", archive.blob)
}

/// Removes what an earlier run has unpacked.
pub(crate) fn clear(staging: &Dir) -> Result<(), StoreError> {
    if let Some(dir) = staging.find_sub(UNPACKED_NAME)? {
        for name in dir.names()? {
            dir.remove_if_there(&name)?;
        }
        staging.remove_empty_dir(UNPACKED_NAME)?;
    }
    Ok(())
}

/// Sets when a file was last modified, where that is known.
pub(crate) fn set_modified(file: &File, modified: Option<Modified>) -> rustix::io::Result<()> {
    let Some(Modified { seconds, nanoseconds }) = modified else { return Ok(()) };
    let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let last_modification = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    rustix::fs::futimens(file, &Timestamps { last_access: omitted, last_modification })
}

/// Reads a file that others read at the same time, from its start.
struct Positioned {
    file: Arc<File>,
    offset: u64,
}

impl Read for Positioned {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Takes the files of one archive.
struct Files<'a> {
    archive: &'a Archive,
    landing: &'a Landing,
    dir: &'a Dir,
    selection: Option<&'a Selection>,
    matched: Matched,
    unpacked: Vec<Unpacked>,
    /// Targets by path.
    links: BTreeMap<String, String>,
}

impl Files<'_> {
    fn is_wanted(&mut self, path: &str) -> bool {
        let kind = self.archive.kind_of(path);
        self.selection.is_none_or(|selection| selection.selects(path, kind, &mut self.matched))
    }

    fn next_name(&self) -> String {
        name_of(self.archive, self.unpacked.len())
    }

    fn done(&mut self, path: &str, name: String, sha256: Sha256Digest) {
        let is_weight = self.archive.kind_of(path) == Kind::Weight;
        self.unpacked.push(Unpacked { path: path.to_owned(), name, sha256, is_weight });
    }

    /// A link becomes a second name of the file that it leads to: a symbolic link could be made to lead elsewhere.
    fn make_links(&mut self) -> Result<(), ArchiveError> {
        let by_path: BTreeMap<_, _> =
            self.unpacked.iter().enumerate().map(|(number, file)| (file.path.clone(), number)).collect();
        let links = std::mem::take(&mut self.links);
        for (path, first) in &links {
            let Some(number) = followed(&links, first).find_map(|target| by_path.get(target)) else {
                let problem =
                    format!("is a link to `{first}`, which is no file that is unpacked of the archive");
                return Err(ArchiveError::Entry { path: path.clone(), problem });
            };
            let Unpacked { name: source, sha256, .. } = self.unpacked[*number].clone();
            let name = self.next_name();
            let file = self.open(&source)?;
            if self.dir.link(&file, &name).is_err() {
                let copy = self.dir.create_new(&name)?;
                link::fill(&copy, &file, LinkMode::Auto, &self.dir.path().join(&name))?;
                let mode = file.metadata().context("look at", self.dir.path())?.permissions();
                copy.set_permissions(mode).context("set the mode of", self.dir.path())?;
            }
            self.done(path, name, sha256);
        }
        Ok(())
    }

    fn open(&self, name: &str) -> Result<File, StoreError> {
        let path = || self.dir.path().join(name);
        self.dir.find(name)?.ok_or(rustix::io::Errno::NOENT).context("open", path())
    }

    fn write(&self, file: &Packed, bytes: &mut dyn Read, name: &str) -> Result<Sha256Digest, ArchiveError> {
        let path = self.dir.path().join(name);
        let free = self.landing.free_beside_blobs(file.size)?;
        if file.size > free {
            let path = self.dir.path().to_path_buf();
            return Err(StoreError::NoSpace { need: file.size, free, path }.into());
        }
        let mut target = self.dir.create_new(name)?;
        let mut hasher = Sha256Hasher::default();
        let mut buffer = vec![0; usize::try_from(file.size).unwrap_or(BUFFER_BYTES).clamp(1, BUFFER_BYTES)];
        loop {
            let count = match bytes.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ArchiveError::reading(error)),
            };
            hasher.update(&buffer[..count]);
            target.write_all(&buffer[..count]).context("write", &path)?;
        }
        let mode = Mode::from_raw_mode(file.mode);
        rustix::fs::fchmod(&target, mode).context("set the mode of", &path)?;
        set_modified(&target, file.modified).context("set the time of", &path)?;
        Ok(hasher.finish())
    }
}

impl Taker for Files<'_> {
    fn file(&mut self, file: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        if self.is_wanted(&file.path) {
            let name = self.next_name();
            let sha256 = self.write(file, bytes, &name)?;
            self.done(&file.path, name, sha256);
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        if self.is_wanted(path) && self.links.insert(path.to_owned(), target.to_owned()).is_some() {
            let problem = "is there twice".to_owned();
            return Err(ArchiveError::Entry { path: path.to_owned(), problem });
        }
        Ok(())
    }
}
