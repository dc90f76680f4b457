//! Tags and referrers of a repository, as the specification has them.
//!
//! Owns: pages, filters, and what stands in for referrers where a registry keeps none. Does not own: who may ask.
//!
//! Not every registry keeps to the specification here: docker-registry 2.8 knows neither pages nor referrers. A list is
//! therefore read whole and cut anew.

use bytes::Bytes;
use face::Listed;
use modelpack::{digest::Sha256Digest, piece_trees::fallback_tag};
use registry::{Class, Listing, Page, RegistryError, Repository};
use serde_json::{Value, json};

/// Pages of one list: registries put a hundred or a thousand entries on each.
const PAGES_MAX: usize = 64;

type Query = [(String, String)];

/// The tags after `last`, at most `n`, in the order of their bytes.
pub(super) async fn tags(repository: &Repository, query: &Query) -> Result<Listed, RegistryError> {
    let pages = pages(repository, &Listing::Tags, &[]).await?;
    let name = pages.first().map(|page| page["name"].clone()).unwrap_or_default();
    let listed = pages.iter().flat_map(|page| page["tags"].as_array().into_iter().flatten());
    let mut tags: Vec<_> = listed.filter_map(Value::as_str).collect();
    tags.sort_unstable();
    tags.dedup();
    if let Some(last) = of(query, "last") {
        tags.retain(|tag| *tag > last);
    }
    let mut next = None;
    if let Some(n) = of(query, "n").and_then(|n| n.parse::<usize>().ok())
        && n < tags.len()
    {
        tags.truncate(n);
        // A tag needs no escaping. Nothing comes after a page on which nothing fits.
        next = tags.last().map(|last| format!("n={n}&last={last}"));
    }
    let body = json!({ "name": name, "tags": tags });
    Ok(Listed { raw: Bytes::from(body.to_string()), next, is_filtered: false })
}

/// The manifests that point at `subject`, of the type that is asked for.
pub(super) async fn referrers(
    repository: &Repository,
    subject: &Sha256Digest,
    query: &Query,
) -> Result<Listed, RegistryError> {
    let mut pages = match pages(repository, &Listing::Referrers(*subject), &[]).await {
        // Older registries keep none. What clients write in place of them is a list under a tag.
        Err(error) if error.class() == Class::NotFound => {
            let tagged = repository.find_tagged(&fallback_tag(subject)).await?;
            tagged.iter().filter_map(|raw| serde_json::from_slice(raw).ok()).collect()
        }
        pages => pages?,
    };
    let all = pages.iter_mut().filter_map(|page| page["manifests"].as_array_mut());
    let mut all: Vec<Value> = all.flat_map(std::mem::take).collect();
    let wanted = of(query, "artifactType");
    if let Some(wanted) = wanted {
        all.retain(|descriptor| descriptor["artifactType"].as_str() == Some(wanted));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let body = json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": all });
    Ok(Listed { raw: Bytes::from(body.to_string()), next: None, is_filtered: wanted.is_some() })
}

async fn pages(
    repository: &Repository,
    listing: &Listing,
    first: &Query,
) -> Result<Vec<Value>, RegistryError> {
    let (mut pages, mut query) = (Vec::new(), first.to_vec());
    for _ in 0..PAGES_MAX {
        let Page { raw, next } = repository.page(listing, &query).await?;
        // Some answer any path with a page for people, which lists nothing.
        pages.push(serde_json::from_slice(&raw).unwrap_or_default());
        let Some(next) = next else { break };
        query = next;
    }
    Ok(pages)
}

fn of<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}
