//! Manifests that clients have asked for, and the transfers of what they list.
//!
//! Owns: what each manifest is, which blobs it lists, how long its transfer goes on when nobody reads. Does not own: who may
//! ask (`rights`), the transfers themselves.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use modelpack::{digest::Sha256Digest, layout::BlobIndex};
use serde_json::Value;
use tokio::sync::OnceCell;

use super::rights::Key;
use crate::{artifact::Artifact, origin::Origin, transfer::Transfer};

/// Manifests that are remembered: those of the models of a node and their referrers.
const SLOTS_MAX: usize = 256;

/// How long a transfer goes on, and what it brought stays pinned, when nobody reads: clients ask for one blob after
/// another, and come back after a failure.
const REST_AFTER: Duration = Duration::from_mins(1);

const IMAGE_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// All of them.
#[derive(Default)]
pub(super) struct Slots(Mutex<BTreeMap<(Key, Sha256Digest), Arc<Slot>>>);

/// One manifest of one repository.
#[derive(Default)]
pub(super) struct Slot {
    /// What it is, once somebody has looked.
    pub(super) learned: OnceCell<Learned>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    transfer: Option<Arc<Transfer>>,
    used: Option<Instant>,
    /// As what it was asked for, until the store knows it by that.
    name: Option<String>,
}

/// What a manifest is.
pub(super) enum Learned {
    /// One of a model, or an index that lists one.
    Model(Model),
    /// Something small that belongs to one, such as a signature or an index.
    Plain { raw: Bytes, media_type: String },
    /// Something else, such as a container image.
    Foreign,
}

/// A model.
pub(super) struct Model {
    pub(super) artifact: Arc<Artifact>,
    /// Its blobs by their digests, without the config.
    pub(super) blobs: BTreeMap<Sha256Digest, BlobIndex>,
    /// Where it is read if this peer may do so by itself; else with the proof of whoever asks.
    pub(super) origin: Option<Origin>,
}

impl Model {
    pub(super) fn of(artifact: Artifact, origin: Option<Origin>) -> Self {
        let blobs = artifact.layout().blobs().zip(artifact.manifest.blobs());
        let blobs = blobs.map(|(index, blob)| (blob.digest, index)).collect();
        Self { artifact: Arc::new(artifact), blobs, origin }
    }

    /// Its manifest, or the index that lists it, whichever has this digest.
    pub(super) fn document(&self, digest: &Sha256Digest) -> (Bytes, String) {
        let index = self.artifact.index.as_ref().filter(|_| self.artifact.manifest.digest() != *digest);
        let raw = index.map_or(self.artifact.manifest.raw(), Vec::as_slice);
        (Bytes::copy_from_slice(raw), media_type(&serde_json::from_slice(raw).unwrap_or_default()))
    }
}

/// What a manifest that is no model's is: handed out if it is a list, or all that it lists is small.
pub(super) fn plain(raw: Vec<u8>, bytes_max: u64) -> Learned {
    let json: Value = serde_json::from_slice(&raw).unwrap_or_default();
    let size = |descriptor: &Value| descriptor["size"].as_u64().unwrap_or(u64::MAX);
    let is_ours = match (json["manifests"].as_array(), json["layers"].as_array()) {
        // An index of images for platforms is their registry's business, as those are.
        (Some(listed), _) => listed.iter().all(|descriptor| descriptor.get("platform").is_none()),
        (None, Some(layers)) => {
            let all = layers.iter().chain([&json["config"]]);
            all.fold(0, |sum: u64, descriptor| sum.saturating_add(size(descriptor))) <= bytes_max
        }
        (None, None) => false,
    };
    if !is_ours {
        return Learned::Foreign;
    }
    Learned::Plain { media_type: media_type(&json), raw: Bytes::from(raw) }
}

fn media_type(json: &Value) -> String {
    let stated = json["mediaType"].as_str().map(ToOwned::to_owned);
    stated.unwrap_or_else(|| if json["manifests"].is_array() { INDEX_TYPE } else { IMAGE_TYPE }.to_owned())
}

impl Slots {
    /// The slot of a manifest, which may be a new one.
    pub(super) fn slot(&self, key: &Key, digest: &Sha256Digest) -> Arc<Slot> {
        let mut slots = self.slots();
        let at = (key.clone(), *digest);
        if !slots.contains_key(&at) && slots.len() >= SLOTS_MAX {
            let oldest = slots.iter().min_by_key(|(_, slot)| slot.state().used).map(|(at, _)| at.clone());
            oldest.and_then(|oldest| slots.remove(&oldest));
        }
        let slot = Arc::clone(slots.entry(at).or_default());
        drop(slots);
        slot.touch();
        slot
    }

    /// The slot of a manifest that is known.
    pub(super) fn find(&self, key: &Key, digest: &Sha256Digest) -> Option<Arc<Slot>> {
        let slot = self.slots().get(&(key.clone(), *digest)).cloned();
        slot.filter(|slot| slot.learned.initialized())
    }

    /// The manifests of that repository that list a blob, and their slots.
    pub(super) fn listing(&self, key: &Key, blob: &Sha256Digest) -> Vec<(Sha256Digest, Arc<Slot>)> {
        let slots = self.slots();
        let of_repository = slots.iter().filter(|((at, _), _)| at == key);
        let lists = |slot: &Slot| match slot.learned.get() {
            Some(Learned::Model(model)) => {
                model.blobs.contains_key(blob) || model.artifact.manifest.config().digest == *blob
            }
            _ => false,
        };
        let listing = of_repository.filter(|(_, slot)| lists(slot));
        listing.map(|((_, digest), slot)| (*digest, Arc::clone(slot))).collect()
    }

    /// What an index lists is known with it.
    pub(super) fn note(&self, key: &Key, model: &Model) {
        if model.artifact.index.is_none() {
            return;
        }
        let slot = self.slot(key, &model.artifact.manifest.digest());
        let Model { artifact, blobs, origin } = model;
        let (artifact, blobs, origin) = (Arc::clone(artifact), blobs.clone(), origin.clone());
        // Or it is known already.
        let _ = slot.learned.set(Learned::Model(Model { artifact, blobs, origin }));
    }

    /// Lets go of transfers that nobody reads.
    pub(super) fn rest(&self) {
        let slots: Vec<_> = self.slots().values().cloned().collect();
        for slot in slots {
            slot.rest();
        }
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<(Key, Sha256Digest), Arc<Slot>>> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// Somebody asks for it or reads of it.
    pub(super) fn touch(&self) {
        self.state().used = Some(Instant::now());
    }

    /// When that was last.
    pub(super) fn used(&self) -> Option<Instant> {
        self.state().used
    }

    /// It was asked for by this name.
    pub(super) fn named(&self, name: String) {
        self.state().name = Some(name);
    }

    /// Its transfer: the one under way, or what `join` gives.
    pub(super) fn transfer(&self, join: impl FnOnce() -> Arc<Transfer>) -> Arc<Transfer> {
        let mut state = self.state();
        let running = state.transfer.take().filter(|running| !running.has_failed());
        let transfer = running.unwrap_or_else(join);
        state.transfer = Some(Arc::clone(&transfer));
        transfer
    }

    /// The name that the store does not know yet.
    pub(super) fn take_name(&self) -> Option<String> {
        self.state().name.take()
    }

    /// Lets go of its transfer if nobody reads.
    pub(super) fn rest(&self) {
        let mut state = self.state();
        let is_idle = state.used.is_none_or(|used| used.elapsed() > REST_AFTER);
        let idle = if is_idle { state.transfer.take() } else { None };
        drop(state);
        // The last handle ends the transfer.
        drop(idle);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_things_and_lists_are_handed_out_and_images_are_not() {
        let kind = |raw: &str| match plain(raw.as_bytes().to_vec(), 100) {
            Learned::Plain { media_type, .. } => media_type,
            Learned::Model(_) | Learned::Foreign => "foreign".to_owned(),
        };
        assert_eq!(kind(r#"{"config":{"size":50},"layers":[{"size":50}]}"#), IMAGE_TYPE);
        assert_eq!(kind(r#"{"mediaType":"a/b","config":{"size":2},"layers":[]}"#), "a/b");
        assert_eq!(kind(r#"{"config":{"size":50},"layers":[{"size":51}]}"#), "foreign");
        assert_eq!(kind(r#"{"config":{"size":50},"layers":[{}]}"#), "foreign");
        assert_eq!(kind(r#"{"manifests":[{"digest":"x"}]}"#), INDEX_TYPE);
        assert_eq!(kind(r#"{"manifests":[{"platform":{"os":"linux"}}]}"#), "foreign");
        assert_eq!(kind("no json"), "foreign");
    }
}
