//! What is in an artifact's archives, learned by reading them once more where they come from.
//!
//! Owns: the hashes of their files, believed only when the whole archive has its digest. Does not own: unpacking
//! (`store`), or comparing with a directory (`verify`).

use std::{
    collections::BTreeMap,
    io::{self, Read},
};

use anyhow::Context as _;
use modelpack::{
    digest::{Sha256Digest, Sha256Hasher},
    manifest::{Archive, Blob, Kind, Manifest},
    path,
};
use store::{ArchiveError, Budget, Packed, StoreError, Taker, followed, read_archive};

use crate::{progress::Progress, report::Refusal};

/// Bytes read at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// One file of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) sha256: Sha256Digest,
    pub(crate) kind: Kind,
}

/// Every file of all archives, by path. `open` gives an archive's bytes.
pub(crate) fn contents<R: Read>(
    manifest: &Manifest,
    open: impl Fn(&Blob) -> anyhow::Result<R>,
    progress: &Progress,
) -> anyhow::Result<BTreeMap<String, Content>> {
    let blob_of = |archive: &Archive| &manifest.blobs()[archive.blob.0 as usize];
    let packed = manifest.archives().iter().map(|archive| blob_of(archive).size).fold(0, u64::saturating_add);
    let budget = Budget::new(packed);
    let mut all = BTreeMap::new();
    let mut paths: Vec<_> = manifest.files().iter().map(|file| file.path.clone()).collect();
    for archive in manifest.archives() {
        let blob = blob_of(archive);
        let read = || read_one(archive, blob, (open(blob)?, &budget), progress);
        let files = read().with_context(|| format!("cannot read {archive}"))?;
        paths.extend(files.iter().map(|(path, _)| path.clone()));
        all.extend(files);
    }
    path::check_together(paths.iter().map(String::as_str)).map_err(StoreError::from)?;
    Ok(all)
}

fn read_one(
    archive: &Archive,
    blob: &Blob,
    (source, budget): (impl Read, &Budget),
    progress: &Progress,
) -> anyhow::Result<Vec<(String, Content)>> {
    let mut source = Hashing { source, hasher: Sha256Hasher::default(), progress };
    let mut files = Files { archive, found: Vec::new(), links: BTreeMap::new() };
    let read = read_archive(&mut source, archive.packing, budget, &mut files);
    // Whatever it says: if it is not the archive that was meant, nothing else matters.
    io::copy(&mut source, &mut io::sink())?;
    let found = source.hasher.finish();
    if found != blob.digest {
        let message = format!("it should be {}, but is {found}", blob.digest);
        return Err(Refusal::integrity(message).hint("its copy at the origin is damaged").into());
    }
    read.map_err(|error| StoreError::Archive { archive: archive.to_string(), source: Box::new(error) })?;
    files.resolved()
}

/// Hashes what is read.
struct Hashing<'a, R> {
    source: R,
    hasher: Sha256Hasher,
    progress: &'a Progress,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.progress.add(count as u64);
        Ok(count)
    }
}

struct Files<'a> {
    archive: &'a Archive,
    found: Vec<(String, Content)>,
    links: BTreeMap<String, String>,
}

impl Files<'_> {
    /// With links as the files that they lead to.
    fn resolved(mut self) -> anyhow::Result<Vec<(String, Content)>> {
        let by_path: BTreeMap<_, _> = self.found.iter().cloned().collect();
        for (path, first) in &self.links {
            let content = followed(&self.links, first).find_map(|target| by_path.get(target));
            let content = content.with_context(|| format!("`{path}` is a link to no file of the archive"))?;
            let kind = self.archive.kind_of(path);
            self.found.push((path.clone(), Content { kind, ..*content }));
        }
        Ok(self.found)
    }
}

impl Taker for Files<'_> {
    fn file(&mut self, file: &Packed, bytes: &mut dyn Read) -> Result<(), ArchiveError> {
        let mut hasher = Sha256Hasher::default();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            match bytes.read(&mut buffer).map_err(ArchiveError::reading)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            }
        }
        let kind = self.archive.kind_of(&file.path);
        self.found.push((file.path.clone(), Content { size: file.size, sha256: hasher.finish(), kind }));
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<(), ArchiveError> {
        self.links.insert(path.to_owned(), target.to_owned());
        Ok(())
    }
}
