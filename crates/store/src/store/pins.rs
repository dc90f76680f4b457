//! What is in use right now, and is therefore not collected.
//!
//! Owns: which blobs somebody holds. Does not own: what is collected of the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use modelpack::{digest::Sha256Digest, manifest::Manifest};

use super::{BLAKE3, SHA256};

/// `sha256-HEX` or `blake3-HEX`: a file in `blobs`, and the name of its record.
pub(super) type BlobName = String;

/// Everything that is held. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Pins(Arc<Gated>);

#[derive(Debug, Default)]
struct Gated {
    /// Held while something is removed.
    gate: Mutex<()>,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    next: u64,
    artifacts: BTreeMap<u64, (Sha256Digest, BTreeSet<BlobName>)>,
}

/// What is pinned. While it lives nothing else is: pins end, but none begins.
pub(super) struct Pinned<'a> {
    artifacts: BTreeSet<Sha256Digest>,
    names: BTreeSet<BlobName>,
    _gate: MutexGuard<'a, ()>,
}

/// Keeps an artifact, and each of its blobs, from being collected until it is dropped.
#[derive(Debug)]
pub struct Pin {
    pins: Pins,
    number: u64,
}

impl Pins {
    /// Waits for a removal under way, so that whoever holds a pin finds an artifact whole or not at all.
    pub(super) fn hold(&self, manifest: &Manifest) -> Pin {
        let _gate = unpoison(self.0.gate.lock());
        let mut held = self.held();
        let number = held.next;
        held.next += 1;
        held.artifacts.insert(number, (manifest.digest(), names_of(manifest)));
        Pin { pins: self.clone(), number }
    }

    /// Lets nobody pin anything until the value is dropped.
    pub(super) fn freeze(&self) -> Pinned<'_> {
        let gate = unpoison(self.0.gate.lock());
        let held = self.held();
        let artifacts = held.artifacts.values().map(|(digest, _)| *digest).collect();
        let names = held.artifacts.values().flat_map(|(_, names)| names).cloned().collect();
        Pinned { artifacts, names, _gate: gate }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        unpoison(self.0.held.lock())
    }
}

impl Pinned<'_> {
    pub(super) fn has(&self, digest: &Sha256Digest) -> bool {
        self.artifacts.contains(digest)
    }

    pub(super) fn names(&self) -> &BTreeSet<BlobName> {
        &self.names
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Not the gate: whoever drops one does not wait for a removal.
        self.pins.held().artifacts.remove(&self.number);
    }
}

fn unpoison<T>(result: Result<T, PoisonError<T>>) -> T {
    // A panic elsewhere leaves the table whole: each change is one step.
    result.unwrap_or_else(PoisonError::into_inner)
}

/// Every file of the store that belongs to an artifact.
pub(super) fn names_of(manifest: &Manifest) -> BTreeSet<BlobName> {
    let small = [manifest.digest(), manifest.config().digest];
    let blobs = manifest.blobs();
    let roots = blobs.iter().filter_map(|blob| blob.root).map(|root| format!("{BLAKE3}-{}", root.hex()));
    let digests = small.into_iter().chain(blobs.iter().map(|blob| blob.digest));
    digests.map(|digest| format!("{SHA256}-{}", digest.hex())).chain(roots).collect()
}
