//! A registry that serves one model, and misbehaves as the test says.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use modelpack::{digest::Sha256Digest, piece_trees, reference::Reference};
use serde_json::{Value, json};

pub(crate) use crate::fault_server::{FaultServer, Reply, Seen};
use crate::support::{Model, PATIENCE};

/// What the registry holds.
#[derive(Clone)]
pub(crate) struct Holding {
    manifest: Vec<u8>,
    blobs: BTreeMap<String, Vec<u8>>,
    /// Manifests by tag or digest, besides the model's own.
    others: BTreeMap<String, Vec<u8>>,
}

impl Holding {
    /// The model as it was built, piece trees included.
    pub(crate) fn of(model: &Model) -> Self {
        let mut holding = Self::without_trees(model);
        if let Some(trees) = &model.built.trees {
            let digest = Sha256Digest::of(&trees.manifest);
            let descriptor = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(),
                "size": trees.manifest.len(), "artifactType": piece_trees::ARTIFACT_TYPE,
            });
            let index = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
                "manifests": [descriptor],
            });
            let tag = piece_trees::fallback_tag(&Sha256Digest::of(&model.built.manifest));
            holding.others.insert(tag, index.to_string().into_bytes());
            holding.others.insert(digest.to_string(), trees.manifest.clone());
            for (digest, layer) in &trees.layers {
                holding.blobs.insert(digest.to_string(), layer.clone());
            }
        }
        holding
    }

    /// The model without its referrer, as some copies are.
    pub(crate) fn without_trees(model: &Model) -> Self {
        let mut blobs: BTreeMap<String, Vec<u8>> = model
            .files
            .iter()
            .map(|(_, bytes)| (Sha256Digest::of(bytes).to_string(), bytes.clone()))
            .collect();
        let config = &model.built.config;
        blobs.insert(Sha256Digest::of(config).to_string(), config.clone());
        Self { manifest: model.built.manifest.clone(), blobs, others: BTreeMap::new() }
    }

    /// The model as another tool would have written it: no BLAKE3 annotation.
    pub(crate) fn foreign(model: &Model) -> Self {
        let mut manifest: Value = serde_json::from_slice(&model.built.manifest).unwrap();
        for layer in manifest["layers"].as_array_mut().unwrap() {
            layer["annotations"].as_object_mut().unwrap().remove("org.modelcast.blake3").unwrap();
        }
        Self { manifest: manifest.to_string().into_bytes(), ..Self::without_trees(model) }
    }

    /// The same with another manifest.
    pub(crate) fn with_manifest(mut self, change: impl FnOnce(&mut Value)) -> Self {
        let mut manifest = serde_json::from_slice(&self.manifest).unwrap();
        change(&mut manifest);
        self.manifest = manifest.to_string().into_bytes();
        self
    }

    /// The same with one blob replaced, whatever its digest says.
    pub(crate) fn with_blob(mut self, digest: &str, bytes: &[u8]) -> Self {
        self.blobs.insert(digest.to_owned(), bytes.to_vec());
        self
    }

    /// What an honest registry without a referrers API says.
    fn answer(&self, seen: &Seen) -> Reply {
        let path = seen.path.split('?').next().unwrap();
        let Some(rest) = path.strip_prefix("/v2/") else { return Reply::status(404) };
        if let Some((_, digest)) = rest.split_once("/blobs/") {
            return self.blobs.get(digest).map_or(Reply::status(404), |blob| Reply::blob(seen, blob));
        }
        let Some((_, name)) = rest.split_once("/manifests/") else { return Reply::status(404) };
        let own = Sha256Digest::of(&self.manifest).to_string();
        let raw = if name == "v1" || name == own { Some(&self.manifest) } else { self.others.get(name) };
        raw.map_or(Reply::status(404), |raw| {
            let media: Value = serde_json::from_slice(raw).unwrap();
            Reply::body(200, raw.clone()).header("Content-Type", media["mediaType"].as_str().unwrap())
        })
    }
}

/// A running registry.
pub(crate) struct Origin {
    server: FaultServer,
    sent: Arc<AtomicU64>,
}

impl Origin {
    /// An honest one.
    pub(crate) async fn honest(holding: Holding) -> Self {
        Self::with_fault(holding, |_, reply| reply).await
    }

    /// One whose answers to reads of weights (more than a piece) `fault` may change; it is told how many there were
    /// before.
    pub(crate) async fn with_fault(
        holding: Holding,
        fault: impl Fn(&Read<'_>, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start(holding, None, fault).await
    }

    /// One that answers nothing to whoever does not show this `Authorization`.
    pub(crate) async fn guarded(
        holding: Holding,
        login: &'static str,
        fault: impl Fn(&Read<'_>, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::start(holding, Some(login), fault).await
    }

    async fn start(
        holding: Holding,
        login: Option<&'static str>,
        fault: impl Fn(&Read<'_>, Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let (count, sent) = (AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let bytes = Arc::clone(&sent);
        let server = FaultServer::start(move |seen| {
            if login.is_some_and(|login| seen.header("authorization") != Some(login)) {
                return Reply::status(401).header("WWW-Authenticate", "Basic realm=\"models\"");
            }
            let reply = holding.answer(seen);
            let digest = seen.path.rsplit('/').next().unwrap();
            match holding.blobs.get(digest) {
                Some(blob) if blob.len() > 1 << 20 && seen.path.contains("/blobs/") => {
                    let number = count.fetch_add(1, Ordering::SeqCst);
                    let read = Read { seen, number, blob };
                    bytes.fetch_add(
                        seen.range().map_or(blob.len(), |range| range.len()) as u64,
                        Ordering::SeqCst,
                    );
                    fault(&read, reply)
                }
                _ => reply,
            }
        })
        .await;
        Self { server, sent }
    }

    pub(crate) fn reference(&self) -> Reference {
        format!("{}/models/test:v1", self.server.host()).parse().unwrap()
    }

    /// Bytes of weights that were asked for.
    pub(crate) fn asked(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.server.seen()
    }
}

/// One request for weights.
pub(crate) struct Read<'a> {
    pub(crate) seen: &'a Seen,
    /// How many there were before.
    pub(crate) number: u64,
    /// The whole blob.
    pub(crate) blob: &'a [u8],
}

impl Read<'_> {
    /// What was asked for, with its first bit flipped.
    pub(crate) fn flipped(&self) -> Reply {
        let mut blob = self.blob.to_vec();
        blob[self.seen.range().map_or(0, |range| range.start)] ^= 1;
        Reply::blob(self.seen, &blob)
    }
}

/// Holds answers back until it is opened. Needs a runtime of several threads.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    pub(crate) fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub(crate) fn pass(&self) {
        tokio::task::block_in_place(|| {
            let open = self.0.0.lock().unwrap();
            let waited = self.0.1.wait_timeout_while(open, PATIENCE, |open| !*open).unwrap();
            assert!(!waited.1.timed_out(), "nobody opened the gate");
        });
    }
}
