//! What the store has from earlier runs, offered again.
//!
//! Owns: finding each artifact with the piece trees that it is described by. Does not own: serving it (`node`).

use std::{fs::File, sync::Arc};

use modelpack::{
    digest::Sha256Digest,
    manifest::{Blob, Manifest},
};
use store::{BlobIdentity, Store, StoreError};

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
    fill::{blocking, detach},
    node::Node,
    transfer::open_blobs,
};

/// Offers every artifact that can be proved piece by piece. Those whose trees are not at hand are offered once their
/// blobs have been hashed again, in the background: nobody waits for a store of terabytes.
pub(crate) async fn offer(store: &Arc<Store>, node: &Arc<Node>) -> Result<(), PeerError> {
    let (at, holder) = (Arc::clone(store), Arc::clone(node));
    let without_trees = blocking(move || offer_described(&at, &holder)).await?;
    if without_trees.is_empty() {
        return Ok(());
    }
    let (store, node) = (Arc::clone(store), Arc::clone(node));
    let started = detach(move || {
        for mut artifact in without_trees {
            let computed = compute_trees(&store, &mut artifact);
            // It may have been collected meanwhile, but is not between being found and being offered.
            let _pin = store.pin(&artifact.manifest);
            let found = computed.and_then(|()| open_blobs(&store, &artifact));
            match found {
                Ok(files) => {
                    node.hold_unless_shared(&artifact, files.into_iter().map(Arc::new).collect());
                    tracing::info!(artifact = %artifact.reference, "offered: its piece trees were computed");
                }
                Err(error) => not_offered(&artifact.manifest.digest(), &error),
            }
        }
    });
    if let Err(error) = started {
        tracing::warn!(%error, "stored artifacts without piece trees are not offered");
    }
    Ok(())
}

/// Offers what has its trees at hand; gives the rest.
fn offer_described(store: &Store, node: &Node) -> Result<Vec<Artifact>, PeerError> {
    let mut without_trees = Vec::new();
    for digest in store.complete_manifests()? {
        match load(store, &digest) {
            Ok(Some((artifact, _))) if !artifact.is_anchored() => without_trees.push(artifact),
            Ok(Some((artifact, files))) => node.hold(&artifact, files.into_iter().map(Arc::new).collect()),
            Ok(None) => {}
            Err(error) => not_offered(&digest, &error),
        }
    }
    Ok(without_trees)
}

fn not_offered(digest: &Sha256Digest, error: &StoreError) {
    let error = error as &dyn std::error::Error;
    tracing::warn!(%digest, error, "a stored artifact is not offered");
}

/// An artifact of the store, if it can be offered: peers exchange only what they can prove.
pub(crate) fn load(
    store: &Store,
    digest: &Sha256Digest,
) -> Result<Option<(Artifact, Vec<File>)>, StoreError> {
    let (Some(raw), reference) = (store.manifest(digest)?, digest.to_string()) else { return Ok(None) };
    // A layout may list what is no model.
    let Ok(manifest) = Manifest::parse(&raw) else { return Ok(None) };
    let Some(config) = store.config(&manifest.config().digest)? else { return Ok(None) };
    if manifest.blobs().iter().any(|blob| blob.root.is_none()) {
        return Ok(None);
    }
    let check = |blob: &Blob| match blob.root {
        Some(root) => store.tree(blob.size, root).map_or(Check::Root(root), Check::Tree),
        None => Check::Sha256,
    };
    let checks = manifest.blobs().iter().map(check).collect();
    let artifact = Artifact { reference, manifest, index: None, config, checks };
    let files = open_blobs(store, &artifact)?;
    Ok(Some((artifact, files)))
}

/// Computes what is missing from the blobs, which proves those once more.
pub(crate) fn compute_trees(store: &Store, artifact: &mut Artifact) -> Result<(), StoreError> {
    for (check, blob) in artifact.checks.iter_mut().zip(artifact.manifest.blobs()) {
        if !matches!(check, Check::Tree(_)) {
            *check = Check::Tree(store.compute_tree(&BlobIdentity::from(blob))?);
        }
    }
    Ok(())
}
