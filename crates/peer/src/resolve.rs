//! What a reference names now, without pulling it.
//!
//! Owns: asking its origin for the digest, and the reference that names just that. Does not own: what is there.

use modelpack::{
    digest::Sha256Digest,
    hub::Commit,
    reference::{HubReference, LayoutReference, Reference, RegistryReference},
};
use registry::{Access, Repository, Snapshot};
use store::LayoutReader;

use crate::{error::PeerError, fill::blocking};

/// The commit that a revision of a hub is now, and nothing more: 40 hexadecimal digits. Where nothing may be asked of the
/// hub, and for a revision that is a commit, nobody is asked.
pub async fn hub_commit(at: &HubReference, access: &Access) -> Result<String, PeerError> {
    let failed = |source| PeerError::registry(&at.to_string(), source);
    if let Ok(commit) = at.revision().parse::<Commit>() {
        return Ok(commit.to_string());
    }
    let commit = if access.hub.is_offline {
        Snapshot::list(at, access).await.map_err(failed)?.0
    } else {
        Snapshot::commit_of(at, access).await.map_err(failed)?
    };
    Ok(commit.to_string())
}

/// The digest of the manifest, or the index, that `reference` names now, and the reference that names just that. Of a
/// registry that says it without sending the manifest only that is asked; a reference with a digest asks nobody; of a hub
/// the whole listing and what is small are read.
pub async fn resolve(reference: &Reference, access: Access) -> Result<(Sha256Digest, Reference), PeerError> {
    if let Reference::Hub(at) = reference {
        let snapshot = Snapshot::open(at, &access).await;
        let snapshot = snapshot.map_err(|source| PeerError::registry(&reference.to_string(), source))?;
        let revision = Some(snapshot.commit().to_string());
        let pinned = Reference::Hub(HubReference { revision, ..at.clone() });
        return Ok((Sha256Digest::of(snapshot.manifest()), pinned));
    }
    let digest = digest_of(reference, access).await?;
    Ok((digest, pinned(reference, digest)))
}

async fn digest_of(reference: &Reference, access: Access) -> Result<Sha256Digest, PeerError> {
    match reference {
        Reference::Registry(RegistryReference { digest: Some(digest), .. })
        | Reference::Layout(LayoutReference { digest: Some(digest), .. })
        | Reference::Fleet(digest) => Ok(*digest),
        Reference::Registry(at) => {
            let failed = |source| PeerError::registry(&reference.to_string(), source);
            let repository = Repository::open(at, access).map_err(failed)?;
            // Some registries say nothing then, and this is asked once only.
            if let Ok(Some(digest)) = repository.stated_digest(at.tag.as_deref(), None).await {
                return Ok(digest);
            }
            let raw = repository.resolve(at.tag.as_deref(), None).await.map_err(failed)?;
            Ok(Sha256Digest::of(&raw))
        }
        Reference::Layout(at) => {
            let at = at.clone();
            blocking(move || {
                let raw = LayoutReader::open(&at.dir)?.find(at.tag.as_deref(), None)?;
                Ok(Sha256Digest::of(&raw))
            })
            .await
        }
        Reference::Directory(_) | Reference::Hub(_) => {
            let reason = "a plain directory is no artifact: build one from it with `modelctl build`";
            Err(PeerError::Reference { reference: reference.to_string(), reason })
        }
    }
}

/// The same artifact by its digest alone, whatever becomes of the tag. A model of a hub has no such name.
#[must_use]
pub fn pinned(reference: &Reference, digest: Sha256Digest) -> Reference {
    match reference {
        Reference::Registry(at) => {
            Reference::Registry(RegistryReference { digest: Some(digest), ..at.clone() })
        }
        Reference::Layout(at) => {
            Reference::Layout(LayoutReference { tag: None, digest: Some(digest), ..at.clone() })
        }
        Reference::Fleet(_) | Reference::Directory(_) | Reference::Hub(_) => reference.clone(),
    }
}
