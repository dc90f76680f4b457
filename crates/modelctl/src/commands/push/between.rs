//! From one registry to another, without a copy in between.
//!
//! Owns: what is copied, and in which order: blobs, then the manifest, then all that points at it: piece trees,
//! signatures, lists of parts, and what points at those. Does not own: how a blob gets across (`registry`).

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use modelpack::{
    digest::Sha256Digest,
    manifest::{MEDIA_TYPE, Manifest},
    reference::{Reference, RegistryReference},
};
use registry::{Class, Copied, Referrer, Repository};
use serde::Deserialize;

use super::check_digest;
use crate::{
    access, cli::PushArgs, commands::Published, printer::Printer, progress::Progress,
    publish::UPLOADS_AT_ONCE,
};

/// Manifests that point at an artifact, directly and not. A model has a handful.
const REFERRERS_MAX: usize = 256;

/// Tags by which cosign lists what belongs to a manifest, besides referrers.
const COSIGN_ENDINGS: [&str; 3] = ["sig", "att", "sbom"];

/// As much of a manifest as copying takes.
#[derive(Deserialize)]
struct Parts {
    #[serde(default)]
    config: Option<Part>,
    #[serde(default)]
    layers: Vec<Part>,
    #[serde(default, rename = "artifactType")]
    artifact_type: Option<String>,
}

#[derive(Deserialize)]
struct Part {
    digest: String,
    size: u64,
}

/// One copy under way.
struct Copy<'a> {
    from: Repository,
    to: Repository,
    printer: &'a Printer,
    progress: Progress,
    sent: AtomicU64,
}

/// Copies, and says what was published.
pub(super) fn run(
    args: &PushArgs,
    from: &RegistryReference,
    to: &RegistryReference,
    printer: &Printer,
) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut source_args = args.registry.clone();
    source_args.plain_http |= args.from_plain_http;
    let source = access::repository(&source_args, from)?;
    let destination = access::destination(&args.registry, to)?.taking_from(&source);
    let published = access::runtime()?.block_on(async {
        let raw = source.resolve(from.tag.as_deref(), from.digest.as_ref()).await;
        let raw = raw.with_context(|| format!("cannot read `{from}`"))?;
        let manifest = Manifest::parse(&raw).with_context(|| format!("cannot read `{from}`"))?;
        check_digest(&from.to_string(), &manifest.digest(), to)?;
        let progress = printer.progress("copying", manifest.layout().total_bytes());
        let copy = Copy { from: source, to: destination, printer, progress, sent: AtomicU64::new(0) };
        copy.artifact(&raw, to.tag.as_deref()).await.with_context(|| format!("cannot publish `{to}`"))?;
        copy.progress.finish();
        let reference = Reference::Registry(to.clone());
        let published = Published::new(&reference, &manifest, start.elapsed());
        anyhow::Ok(Published { sent_bytes: Some(copy.sent.into_inner()), ..published })
    })?;
    printer.result(&published)
}

impl Copy<'_> {
    async fn artifact(&self, raw: &[u8], tag: Option<&str>) -> anyhow::Result<()> {
        self.blobs(raw).await?;
        self.to.push_manifest(raw, MEDIA_TYPE, tag).await?;
        let mut seen = BTreeSet::new();
        let mut subjects = vec![Sha256Digest::of(raw)];
        while let Some(subject) = subjects.pop() {
            if !seen.insert(subject) {
                continue;
            }
            anyhow::ensure!(seen.len() <= REFERRERS_MAX, "more than {REFERRERS_MAX} manifests point at it");
            self.cosign(&subject).await?;
            let referrers = self.from.all_referrers(&subject).await;
            let referrers = referrers.context("cannot tell what points at the manifest")?;
            for referrer in referrers {
                let copied = self.referrer(&referrer, &subject).await;
                let is_copied =
                    copied.with_context(|| format!("cannot copy the referrer {}", referrer.digest))?;
                subjects.extend(is_copied.then_some(referrer.digest));
            }
        }
        Ok(())
    }

    /// Copies a manifest that points at another; says whether it could be.
    async fn referrer(&self, referrer: &Referrer, subject: &Sha256Digest) -> anyhow::Result<bool> {
        let Referrer { digest, media_type, artifact_type } = referrer;
        if !media_type.is_empty() && media_type != MEDIA_TYPE {
            self.printer.warn(format_args!("the referrer {digest} is not copied: it is no image manifest"));
            return Ok(false);
        }
        let raw = match self.from.manifest(digest).await {
            Ok(raw) => raw,
            // A list may name what somebody has removed since.
            Err(error) if error.class() == Class::NotFound => {
                self.printer.warn(format_args!("the referrer {digest} is listed, but not there"));
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let stated = self.blobs(&raw).await?;
        // What it says of itself weighs more than what a registry lists it as.
        let artifact_type = stated.as_ref().unwrap_or(artifact_type);
        self.to.push_referrer(&raw, subject, artifact_type).await?;
        Ok(true)
    }

    /// Copies what cosign keeps for a manifest under tags that are made of its digest.
    async fn cosign(&self, subject: &Sha256Digest) -> anyhow::Result<()> {
        for ending in COSIGN_ENDINGS {
            let tag = format!("sha256-{}.{ending}", subject.hex());
            let Some(raw) = self.from.find_tagged(&tag).await? else { continue };
            self.blobs(&raw).await.with_context(|| format!("cannot copy `{tag}`"))?;
            self.to.push_manifest(&raw, MEDIA_TYPE, Some(&tag)).await?;
        }
        Ok(())
    }

    /// Copies all blobs that a manifest names, several at a time; gives the type that it states.
    async fn blobs(&self, raw: &[u8]) -> anyhow::Result<Option<String>> {
        let Parts { config, layers, artifact_type } =
            serde_json::from_slice(raw).context("the manifest is not JSON")?;
        let mut blobs = BTreeSet::new();
        for part in layers.into_iter().chain(config) {
            blobs.insert((part.digest.parse::<Sha256Digest>()?, part.size));
        }
        let copies = stream::iter(blobs).map(|(digest, size)| async move {
            let part = self.progress.part();
            let copied = self.to.copy_blob(&self.from, &digest, size, &|done| part.at(done)).await?;
            if copied == Copied::Sent {
                self.sent.fetch_add(size, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
        copies.buffer_unordered(UPLOADS_AT_ONCE).try_collect::<()>().await?;
        Ok(artifact_type)
    }
}
