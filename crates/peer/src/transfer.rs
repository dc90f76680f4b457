//! One artifact being brought into the node's store, for any number of clients.
//!
//! Owns: one transfer an artifact, its cancellation when nobody wants it any more, and what becomes of its blobs.
//! Does not own: the clients (`clients`), or who else may read it (`node`).

use std::{
    fs::File,
    path::PathBuf,
    pin::pin,
    sync::{Arc, OnceLock, Weak},
    time::{Duration, Instant},
};

use modelpack::layout::{BlobIndex, PieceIndex, Run};
use store::{BlobIdentity, Landing, Pin, Store, StoreError};
use tokio::{sync::watch, task::AbortHandle};

use crate::{
    artifact::{Artifact, Check},
    delta::{self, Bases, Delta},
    error::PeerError,
    fetch::Ground,
    fill::{Filled, blocking, detach, fill_alone, resume},
    metrics::Running,
    node::Node,
    origin::Origin,
    progress::{Counters, Stage},
    repair::Together,
    sinks::{LandingMode, LandingRule},
};

/// How long a landing may still be held by a transfer that was given up: some last checks, or one blob that is being
/// hashed or synced as a whole.
const LANDING_WAIT: Duration = Duration::from_mins(1);
const LANDING_RETRY: Duration = Duration::from_millis(20);

/// What a finished transfer has.
#[derive(Debug)]
pub(crate) struct Brought {
    /// Read-only descriptors of the blobs, by number.
    pub(crate) blobs: Vec<Arc<File>>,
    /// Keeps them in the store until the last client has them.
    _pin: Option<Pin>,
    pub(crate) elapsed: Duration,
    pub(crate) bound: Option<Duration>,
    pub(crate) bounded_by: Option<Stage>,
}

/// `None` while it runs.
type Ended = Option<Result<Arc<Brought>, Arc<PeerError>>>;

/// A transfer under way or ended. When the last handle is dropped, it stops.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) artifact: Arc<Artifact>,
    pub(crate) counters: Arc<Counters>,
    origin: Option<Origin>,
    ended: watch::Receiver<Ended>,
    /// Where it lands, once that is open. Not held: whoever begins anew after it has to find the landing free.
    landing: Arc<OnceLock<Weak<Landing>>>,
    task: AbortHandle,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if self.ended.borrow().is_none() {
            let reference = &self.artifact.reference;
            tracing::info!(reference, "given up: nobody waits for it any more; what has landed is kept");
        }
        self.task.abort();
    }
}

impl Transfer {
    /// Starts to bring `artifact` into `store`.
    pub(crate) fn start(
        node: &Arc<Node>,
        store: &Arc<Store>,
        (artifact, origin): (Arc<Artifact>, Option<Origin>),
        (mode, delta): (LandingMode, Delta),
    ) -> Arc<Self> {
        let total = artifact.layout().total_bytes();
        let counters = Counters::new(total, Arc::clone(node.metrics()));
        let (sender, ended) = watch::channel(None);
        let landing = Arc::default();
        let bring = Bring {
            landing: Arc::clone(&landing),
            node: Arc::clone(node),
            store: Arc::clone(store),
            artifact: Arc::clone(&artifact),
            origin: origin.clone(),
            counters: Arc::clone(&counters),
            mode,
            delta,
        };
        let running = Running::begin(node.metrics());
        let task = tokio::spawn(async move {
            let result = bring.run().await;
            running.end(&result);
            sender.send_replace(Some(result.map(Arc::new).map_err(Arc::new)));
        });
        Arc::new(Self { artifact, counters, origin, ended, landing, task: task.abort_handle() })
    }

    /// What came from mirrors of the origin.
    pub(crate) fn mirror_bytes(&self) -> Vec<registry::MirrorBytes> {
        self.origin.as_ref().map(Origin::mirror_bytes).unwrap_or_default()
    }

    /// Whether it has failed, so that a new one has to be started.
    pub(crate) fn has_failed(&self) -> bool {
        matches!(*self.ended.borrow(), Some(Err(_)))
    }

    /// Waits for its end.
    pub(crate) async fn ended(&self) -> Result<Arc<Brought>, Arc<PeerError>> {
        let mut ended = self.ended.clone();
        let result = ended.wait_for(Option::is_some).await;
        match result.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The task ended without a word: it panicked, or the process is being shut down.
            Ok(None) | Err(_) => {
                Err(Arc::new(PeerError::CutOff { reference: self.artifact.reference.clone() }))
            }
        }
    }
}

impl Transfer {
    /// Whether it has ended well.
    pub(crate) fn is_complete(&self) -> bool {
        matches!(*self.ended.borrow(), Some(Ok(_)))
    }

    /// The file that has a piece of a blob, as soon as that piece is proved: before the end where it can be proved by
    /// itself, else at the end.
    pub(crate) async fn proved(
        &self,
        blob: BlobIndex,
        piece: PieceIndex,
    ) -> Result<Arc<File>, Arc<PeerError>> {
        loop {
            let mut moved = pin!(self.counters.moved());
            // Before looking, so that nothing is missed in between.
            moved.as_mut().enable();
            match &*self.ended.borrow() {
                Some(Ok(brought)) => return Ok(Arc::clone(&brought.blobs[blob.0 as usize])),
                Some(Err(error)) => return Err(Arc::clone(error)),
                None => {}
            }
            let landing = self.landing.get().and_then(Weak::upgrade);
            let is_proved =
                |landing: &Arc<Landing>| landing.holds(Run::one(piece)) || self.counters.is_proved(blob);
            if let Some(landing) = landing.filter(is_proved) {
                return Ok(landing.file(blob));
            }
            tokio::select! {
                () = moved => {}
                ended = self.ended() => drop(ended?),
            }
        }
    }
}

/// What the task of a transfer needs.
struct Bring {
    /// For whoever reads while it lands.
    landing: Arc<OnceLock<Weak<Landing>>>,
    node: Arc<Node>,
    store: Arc<Store>,
    artifact: Arc<Artifact>,
    /// None if the artifact is with other peers only.
    origin: Option<Origin>,
    counters: Arc<Counters>,
    mode: LandingMode,
    delta: Delta,
}

impl Bring {
    async fn run(self) -> Result<Brought, PeerError> {
        let start = Instant::now();
        if let Some(blobs) = self.node.seeded(&self.artifact.id())? {
            self.counters.was_here(self.artifact.layout().total_bytes());
            return Ok(Brought {
                blobs: blobs.into_iter().map(Arc::new).collect(),
                _pin: None,
                elapsed: start.elapsed(),
                bound: None,
                bounded_by: None,
            });
        }
        let landing = self.open_landing().await?;
        // Nobody else sets it.
        let _ = self.landing.set(Arc::downgrade(&landing));
        let vouching = self.node.is_in_fleet().then(|| self.node.vouching(&self.artifact)).flatten();
        let registrar = self.node.means().transports.registrar();
        let ground = Ground::new(
            Arc::clone(&self.artifact),
            (Arc::clone(&landing), LandingRule { mode: self.mode, registrar }),
            self.node.threads(),
            Arc::clone(&self.counters),
            (self.node.means().clone(), vouching),
        );
        let bases = match self.delta {
            Delta::FromStore => Bases::Store(Arc::clone(&self.store)),
            Delta::Off => Bases::Files(Vec::new()),
        };
        let filled = fill(&self.node, &ground, self.origin.clone(), bases).await?;
        let Filled { proofs, bounded_by, bound } = filled;
        let (store, artifact) = (Arc::clone(&self.store), Arc::clone(&self.artifact));
        let (blobs, pin) = blocking(move || {
            // Before the landing's own ends with it.
            let pin = store.pin(&artifact.manifest);
            for proof in &proofs {
                store.finish_blob(&landing, &BlobIdentity::from(artifact.blob(proof.blob())), proof)?;
            }
            keep_trees(&store, &artifact);
            store.put_config(&artifact.config)?;
            let digest = store.put_manifest(artifact.manifest.raw())?;
            store.complete(&landing, &digest)?;
            Ok::<_, StoreError>((open_blobs(&store, &artifact)?, pin))
        })
        .await?;
        self.hash_in_background();
        let blobs = blobs.into_iter().map(Arc::new).collect();
        let elapsed = start.elapsed();
        self.node.metrics().took(elapsed, bound);
        Ok(Brought { blobs, _pin: Some(pin), elapsed, bound, bounded_by })
    }

    /// A transfer that was given up may hold its landing until its last piece is written.
    async fn open_landing(&self) -> Result<Arc<Landing>, PeerError> {
        let give_up = Instant::now() + LANDING_WAIT;
        loop {
            let (store, node, artifact) =
                (Arc::clone(&self.store), Arc::clone(&self.node), Arc::clone(&self.artifact));
            let opened = blocking(move || {
                store.landing_in_budget(&artifact.manifest, &*node).map(|(landing, _)| landing)
            });
            match opened.await {
                Err(StoreError::Busy { .. }) if Instant::now() < give_up => {
                    tokio::time::sleep(LANDING_RETRY).await;
                }
                result => return Ok(result?),
            }
        }
    }

    /// Gives blobs that their root has proved their SHA-256 name too, once somebody has time to compute it.
    fn hash_in_background(&self) {
        let (store, artifact) = (Arc::clone(&self.store), Arc::clone(&self.artifact));
        // Not awaited: what it finds is for later pulls, and the process may end before.
        let started = detach(move || {
            for blob in artifact.manifest.blobs() {
                let identity = BlobIdentity::from(blob);
                let noted = store.hash_blob(&identity).and_then(|found| store.note_sha256(&identity, &found));
                match noted {
                    // Collected meanwhile.
                    Ok(()) | Err(StoreError::Missing { .. }) => {}
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(blob = %blob.digest, error, "a blob keeps only its BLAKE3 name");
                    }
                }
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "blobs keep only their BLAKE3 names");
        }
    }
}

/// Brings what is missing: from older files, then together with the other peers of the fleet if there is one.
pub(crate) async fn fill(
    node: &Arc<Node>,
    ground: &Arc<Ground>,
    origin: Option<Origin>,
    bases: Bases,
) -> Result<Filled, PeerError> {
    let have = resume(ground).await?;
    // In a fleet the origin is read by the plan alone.
    let asked = origin.as_ref().filter(|_| !node.is_in_fleet());
    let have = delta::bring(ground, bases, asked, have).await?;
    let is_held = have.is_full() && node.is_shared(&ground.artifact.id());
    if !node.is_in_fleet() || is_held {
        return fill_alone(ground, origin, have).await;
    }
    Together { node, ground, origin }.fill(have).await
}

/// Keeps the trees beside the blobs. One that is not kept only costs that it is computed again after a restart.
fn keep_trees(store: &Store, artifact: &Artifact) {
    for check in &artifact.checks {
        if let Check::Tree(tree) = check
            && let Err(error) = store.put_tree(tree)
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "a piece tree is not kept");
        }
    }
}

/// The store's own files of an artifact's blobs, opened read-only.
pub(crate) fn open_blobs(store: &Store, artifact: &Artifact) -> Result<Vec<File>, StoreError> {
    let open = |blob: BlobIndex| {
        let identity = BlobIdentity::from(artifact.blob(blob));
        store.blob_file(&identity)?.ok_or_else(|| StoreError::Missing {
            dir: PathBuf::from("the store"),
            what: format!("blob `{}`", identity.digest),
        })
    };
    artifact.layout().blobs().map(open).collect()
}
