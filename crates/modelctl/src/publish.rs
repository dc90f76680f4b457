//! Putting an artifact into a registry.
//!
//! Owns: the order of uploads: blobs and config, then the manifest that names them, then the referrers that name the
//! manifest. Does not own: the upload protocol (`registry`), or where the bytes come from.

use std::{
    fs::File,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use modelpack::{
    manifest::{Blob, MEDIA_TYPE, Manifest},
    piece_trees,
};
use registry::{RegistryError, Repository};

use crate::{hash, progress::Progress, report::Refusal};

/// Blobs uploaded at the same time: enough to hide round trips, and polite to a registry.
pub(crate) const UPLOADS_AT_ONCE: usize = 4;

/// An artifact whose small parts are in memory.
#[derive(Debug)]
pub(crate) struct Artifact {
    pub(crate) manifest: Manifest,
    pub(crate) config: Vec<u8>,
    /// The referrers that carry its piece trees.
    pub(crate) trees: Vec<Trees>,
}

/// One referrer.
#[derive(Debug)]
pub(crate) struct Trees {
    pub(crate) manifest: Vec<u8>,
    /// Its config and layers.
    pub(crate) blobs: Vec<Vec<u8>>,
}

impl Artifact {
    /// Uploads everything that the registry does not have, blobs from the files that `open` gives. Says how many bytes
    /// of blobs were sent.
    pub(crate) async fn push(
        &self,
        repository: &Repository,
        tag: Option<&str>,
        open: impl Fn(&Blob) -> anyhow::Result<File>,
        progress: &Progress,
    ) -> anyhow::Result<u64> {
        let sent = AtomicU64::new(0);
        stream::iter(self.manifest.blobs())
            .map(|blob| async {
                if push_blob(repository, blob, &open, progress).await? {
                    sent.fetch_add(blob.size, Ordering::Relaxed);
                }
                anyhow::Ok(())
            })
            .buffer_unordered(UPLOADS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.finish(repository, tag).await?;
        Ok(sent.into_inner())
    }

    /// Uploads what names the blobs, once they all are there.
    pub(crate) async fn finish(&self, repository: &Repository, tag: Option<&str>) -> anyhow::Result<()> {
        repository.push_bytes(&self.config).await?;
        repository.push_manifest(self.manifest.raw(), MEDIA_TYPE, tag).await?;
        let subject = self.manifest.digest();
        for trees in &self.trees {
            for blob in &trees.blobs {
                repository.push_bytes(blob).await.context("cannot add the piece trees")?;
            }
            repository
                .push_referrer(&trees.manifest, &subject, piece_trees::ARTIFACT_TYPE)
                .await
                .context("cannot add the piece trees")?;
        }
        Ok(())
    }
}

/// Says whether the blob was sent: it may have been there.
async fn push_blob(
    repository: &Repository,
    blob: &Blob,
    open: impl Fn(&Blob) -> anyhow::Result<File>,
    progress: &Progress,
) -> anyhow::Result<bool> {
    if repository.has_blob(&blob.digest, blob.size).await? {
        progress.add(blob.size);
        return Ok(false);
    }
    let part = progress.part();
    let pushed = repository.push_blob(&blob.digest, blob.size, open(blob)?, &|done| part.at(done)).await;
    if let Err(error) = &pushed {
        // Bytes that do not fit their digest are refused as a bad request; why they do not is told instead.
        let is_ours = match error {
            RegistryError::Refused { refusal, .. } => refusal.status == 400,
            RegistryError::File { .. } => true,
            _ => false,
        };
        if is_ours {
            check(open(blob)?, blob)?;
        }
    }
    Ok(pushed.map(|()| true)?)
}

/// Fails if a local file is not the blob that it should be.
fn check(mut file: File, blob: &Blob) -> anyhow::Result<()> {
    let found =
        hash::sha256(&mut file).with_context(|| format!("cannot read the bytes of {}", blob.digest))?;
    if found == blob.digest {
        return Ok(());
    }
    let message =
        format!("the local bytes of {} are not those that the digest names: they have {found}", blob.digest);
    Err(Refusal::integrity(message).hint("build the artifact again from its files").into())
}
