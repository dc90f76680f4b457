//! Manifests that point at another one.
//!
//! Owns: the referrers endpoint and, where a registry has none, the tag that stands in for it (OCI distribution
//! specification 1.1.1, "Referrers tag schema"). Does not own: what referrers hold.

use std::sync::Arc;

use modelpack::{
    digest::Sha256Digest,
    manifest::{MANIFEST_BYTES_MAX, MEDIA_TYPE},
    piece_trees::fallback_tag,
};
use reqwest::{
    Method, Url,
    header::{ACCEPT, HeaderValue, LINK},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    address::host_of,
    answer::Answer,
    error::{Class, Exchange, RegistryError},
    mirrors::{Mirrors, Name},
    repository::Repository,
};

pub(crate) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
/// A model has a signature or two, an SBOM and its piece trees; registries put a hundred or so on a page.
const PAGES_MAX: usize = 16;
/// Each round that finds another writer's index in place of ours means somebody else got on; they end some time.
const FALLBACK_ROUNDS_MAX: usize = 5;

/// As much of an index as choosing a referrer takes.
#[derive(Deserialize)]
struct Index {
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    /// Of any algorithm; only those that can be checked are of use.
    digest: String,
    artifact_type: Option<String>,
    #[serde(default)]
    media_type: String,
}

/// One manifest that points at another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its digest.
    pub digest: Sha256Digest,
    /// Its media type.
    pub media_type: String,
    /// What it is.
    pub artifact_type: String,
}

impl Repository {
    /// The manifests of this type that state `subject` as theirs, in the registry's order.
    pub async fn referrers(
        &self,
        subject: &Sha256Digest,
        artifact_type: &str,
    ) -> Result<Vec<Sha256Digest>, RegistryError> {
        let name = subject.to_string();
        let name = Name::Digest(&name);
        for site in self.mirrors.asked(name) {
            let mirror = Self { channel: Arc::clone(&site.channel), mirrors: Mirrors::default() };
            // Many mirrors have no referrers: only what one lists counts.
            match site.answer(name, Box::pin(mirror.referrers_here(subject, artifact_type))).await {
                Some(found) if !found.is_empty() => return Ok(found),
                _ => {}
            }
        }
        self.referrers_here(subject, artifact_type).await
    }

    async fn referrers_here(
        &self,
        subject: &Sha256Digest,
        artifact_type: &str,
    ) -> Result<Vec<Sha256Digest>, RegistryError> {
        let listed = self.listed(subject, Some(artifact_type)).await?.unwrap_or_default();
        let found = of_type(listed, artifact_type);
        if !found.is_empty() {
            return Ok(found);
        }
        // A registry that lists referrers may still not say so when one is pushed, and go-containerregistry's lists them
        // under their config's type: then whoever pushed them has written the tag as well.
        Ok(of_type(self.tagged_entries(subject).await?, artifact_type))
    }

    /// All manifests that state `subject` as theirs, also those that are listed only under the tag that older clients
    /// write.
    pub async fn all_referrers(&self, subject: &Sha256Digest) -> Result<Vec<Referrer>, RegistryError> {
        let mut entries = self.listed(subject, None).await?.unwrap_or_default();
        entries.extend(self.tagged_entries(subject).await?);
        let mut found: Vec<Referrer> = Vec::new();
        for Entry { digest, artifact_type, media_type } in entries {
            let Ok(digest) = digest.parse() else { continue };
            if found.iter().all(|referrer| referrer.digest != digest) {
                let artifact_type = artifact_type.unwrap_or_default();
                found.push(Referrer { digest, media_type, artifact_type });
            }
        }
        Ok(found)
    }

    /// The raw manifest under this tag now, if there is one.
    pub async fn find_tagged(&self, tag: &str) -> Result<Option<Vec<u8>>, RegistryError> {
        match self.tagged(tag).await {
            Ok(raw) => Ok(Some(raw)),
            Err(error) if error.class() == Class::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the referrers endpoint lists; `None` if the registry has none.
    async fn listed(
        &self,
        subject: &Sha256Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Entry>>, RegistryError> {
        let operation = format!("list the referrers of `{subject}`");
        let mut ask = self.channel.ask(Method::GET, &["referrers", &subject.to_string()], operation);
        if let Some(artifact_type) = artifact_type {
            ask.url.query_pairs_mut().append_pair("artifactType", artifact_type);
        }
        ask.headers.insert(ACCEPT, HeaderValue::from_static(INDEX_TYPE));
        let mut entries = Vec::new();
        for _ in 0..PAGES_MAX {
            let mut attempts = self.channel.patience().attempts();
            let (next, page) = loop {
                let error = match self.channel.send(&ask).await {
                    Ok(answer) => match page(answer).await {
                        Ok(page) => break page,
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                // Registries without this endpoint answer 404, and some of them 400 or 405.
                let status =
                    if let RegistryError::Refused { refusal, .. } = &error { refusal.status } else { 0 };
                if matches!(status, 400 | 404 | 405) {
                    return Ok(None);
                }
                attempts.pause_or_fail(error).await?;
            };
            // Some answer any path with a page for people.
            let Some(page) = page else { return Ok(None) };
            entries.extend(page.manifests);
            let Some(next) = next else { break };
            ask.url = next;
        }
        Ok(Some(entries))
    }

    /// What the fallback tag lists.
    async fn tagged_entries(&self, subject: &Sha256Digest) -> Result<Vec<Entry>, RegistryError> {
        match self.tagged(&fallback_tag(subject)).await {
            Ok(raw) => {
                Ok(serde_json::from_slice(&raw).map_or_else(|_| Vec::new(), |index: Index| index.manifests))
            }
            Err(error) if error.class() == Class::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Uploads the manifest `raw`, which states `subject` as its subject, and makes it findable: where the registry does
    /// not say that it keeps referrers itself, by the fallback tag's index.
    pub async fn push_referrer(
        &self,
        raw: &[u8],
        subject: &Sha256Digest,
        artifact_type: &str,
    ) -> Result<Sha256Digest, RegistryError> {
        let digest = Sha256Digest::of(raw);
        let answer = self.put_manifest(raw, MEDIA_TYPE, &digest.to_string()).await?;
        if answer.header("oci-subject").is_none() {
            let mut descriptor = json!({
                "mediaType": MEDIA_TYPE,
                "digest": digest.to_string(),
                "size": raw.len(),
                "artifactType": artifact_type,
            });
            let manifest: Value = serde_json::from_slice(raw).unwrap_or_default();
            if let Some(annotations) = manifest.get("annotations").filter(|value| value.is_object()) {
                descriptor["annotations"] = annotations.clone();
            }
            self.list_under_tag(&fallback_tag(subject), &descriptor).await?;
        }
        Ok(digest)
    }

    /// Reads, changes and writes the index under `tag` until it lists `descriptor`. The registry has no way to do
    /// this as one step, so another writer may replace our index by one without the entry: the look that ends the
    /// loop is always one after the write.
    async fn list_under_tag(&self, tag: &str, descriptor: &Value) -> Result<(), RegistryError> {
        let exchange = || Exchange {
            operation: format!("list a referrer under `{tag}`"),
            host: host_of(self.channel.base()),
        };
        let problem =
            |problem: &str| RegistryError::Answer { exchange: exchange(), problem: problem.to_owned() };
        for _ in 0..FALLBACK_ROUNDS_MAX {
            let mut index = match self.tagged(tag).await {
                // Whatever else is under this tag is somebody's: it is not replaced.
                Ok(raw) => {
                    parse_index(&raw).ok_or_else(|| RegistryError::Occupied { exchange: exchange() })?
                }
                Err(error) if error.class() == Class::NotFound => empty_index(),
                Err(error) => return Err(error),
            };
            let manifests = index.get_mut("manifests").and_then(Value::as_array_mut);
            let manifests = manifests.expect("an index has manifests");
            if manifests.iter().any(|entry| entry.get("digest") == descriptor.get("digest")) {
                return Ok(());
            }
            manifests.push(descriptor.clone());
            let raw = serde_json::to_vec(&index).expect("JSON that was read can be written");
            self.put_manifest(&raw, INDEX_TYPE, tag).await?.settle().await;
        }
        Err(problem("other writers keep replacing its index"))
    }
}

/// The digests of entries of this type, each once.
fn of_type(entries: Vec<Entry>, artifact_type: &str) -> Vec<Sha256Digest> {
    let mut found = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.artifact_type.as_deref() == Some(artifact_type)) {
        match entry.digest.parse() {
            Ok(digest) if !found.contains(&digest) => found.push(digest),
            _ => {}
        }
    }
    found
}

fn empty_index() -> Map<String, Value> {
    let mut index = Map::new();
    index.insert("schemaVersion".to_owned(), json!(2));
    index.insert("mediaType".to_owned(), json!(INDEX_TYPE));
    index.insert("manifests".to_owned(), json!([]));
    index
}

/// An index as it is, with all that this client does not know.
fn parse_index(raw: &[u8]) -> Option<Map<String, Value>> {
    let index: Map<String, Value> = serde_json::from_slice(raw).ok()?;
    index.get("manifests")?.is_array().then_some(index)
}

/// The entries of one page and where the next one is; no entries if this is no index.
async fn page(answer: Answer) -> Result<(Option<Url>, Option<Index>), RegistryError> {
    let next = match answer.header(LINK).and_then(next_link) {
        Some(link) => Some(answer.join(link)?),
        None => None,
    };
    let raw = answer.bytes(MANIFEST_BYTES_MAX).await?;
    Ok((next, serde_json::from_slice(&raw).ok()))
}

/// The target of `<URL>; rel="next"`, as registries write it.
pub(crate) fn next_link(header: &str) -> Option<&str> {
    let (target, parameters) = header.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = |parameter: &str| {
        parameter.split_once('=').is_some_and(|(name, value)| {
            name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"') == "next"
        })
    };
    parameters.split(';').any(is_next).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_links() {
        assert_eq!(next_link(r#"</v2/a/referrers/x?n=1>; rel="next""#), Some("/v2/a/referrers/x?n=1"));
        assert_eq!(next_link("<https://r.io/b>;rel=next"), Some("https://r.io/b"));
        assert_eq!(next_link(r#"</a>; rel="prev""#), None);
        assert_eq!(next_link("nonsense"), None);
    }
}
