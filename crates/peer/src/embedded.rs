//! A pull that takes part in a fleet by itself: it lands the bytes in its own output directory, with no store and no
//! daemon, serves what it has proved meanwhile, and lives on while others still read from it.
//!
//! Owns: the order of such a pull, and its end. Does not own: its sockets (`presence`), or how bytes come (`transfer`).

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use modelpack::reference::Reference;
use planner::Place;
use store::{Contents, OpenedOutput};
use tokio::time::timeout;

use crate::{
    artifact::Artifact,
    delta, descriptors,
    error::PeerError,
    fetch::Ground,
    fill::blocking,
    lookup::{self, lookup},
    node::Node,
    origin::{self, Origin},
    presence::{Address, Membership, Presence, Present},
    progress::Counters,
    pull::{self, Done, PullReport, PullRequest, PullWatch},
    security::PeerSecurity,
    sinks::LandingRule,
    transfer,
    transports::{Means, Transports},
};

/// How long a process that ends waits for reads that are under way: those of a child that lives take a fraction of it.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long the first attempt to reach a scheduler is waited for: many times what it takes where there is one.
const SCHEDULER_WAIT: Duration = Duration::from_secs(2);

/// How a pull takes part in a fleet.
#[derive(Clone, Debug)]
pub struct FleetOptions {
    /// HOST:PORT of each scheduler, or of a name that has several addresses.
    pub schedulers: Vec<String>,
    /// Where its control service listens; port 0 takes a free one. The data server takes a free port of the same
    /// address.
    pub listen: SocketAddr,
    /// The host by which others reach it, where that is not the address that it listens on.
    pub advertise: Option<String>,
    /// Its name for people.
    pub name: String,
    /// What its network card does in each direction, in bytes per second, if known.
    pub nic_rate: Option<u64>,
    /// Where it stands.
    pub place: Place,
    /// How its connections to other processes are secured.
    pub security: PeerSecurity,
    /// By what bytes move between it and others.
    pub transports: Transports,
}

/// A pull that is done, whose directory others may still read from. Dropping it ends that at once.
pub struct Lingering(Option<Present>);

/// Pulls as a member of a fleet. Cancelled at any point, it resumes when it is called again, here or standalone.
pub async fn pull_in_fleet(
    request: PullRequest,
    fleet: FleetOptions,
    watch: &PullWatch,
) -> Result<(PullReport, Lingering), PeerError> {
    descriptors::allow_many();
    let start = Instant::now();
    if !request.selection.is_everything() {
        let reason = "members of a fleet exchange whole artifacts, and a selection was asked for";
        return Err(PeerError::Reference { reference: request.reference.to_string(), reason });
    }
    request.landing.check(&request.output)?;
    let FleetOptions { schedulers, listen, advertise, name, nic_rate, place, security, transports } = fleet;
    let rule = LandingRule { mode: request.landing, registrar: transports.registrar() };
    let means = Means { security, transports };
    let presence = Presence::open(Address { listen, advertise }, means.clone()).await?;
    let node = Arc::clone(presence.node());
    let present = presence.begin(Some(Membership { schedulers, name, nic_rate, place }));
    let (origin, artifact) = open(&request, &node).await?;
    let artifact = Arc::new(artifact);
    let _wish = node.wish(artifact.id(), request.priority);
    let bases = delta::open_bases(&request.bases).await?;
    let counters = Counters::new(artifact.layout().total_bytes(), Arc::clone(node.metrics()));
    watch.count(&counters);
    let contents = Contents::from(&artifact.manifest);
    let output = match pull::open_output(&request, contents).await? {
        OpenedOutput::Fresh(output) => output,
        OpenedOutput::Complete(record) => {
            counters.was_here(artifact.layout().total_bytes());
            let report = pull::report(&artifact, &counters, start, Done::found(request.output, record));
            return Ok((report, Lingering(None)));
        }
    };
    let asked = origin.clone();
    let trust = (means, node.vouching(&artifact));
    let ground_of = |landing| {
        let threads = node.threads();
        Ground::new(Arc::clone(&artifact), (landing, rule), threads, Arc::clone(&counters), trust)
    };
    let fill = async |ground: &Arc<Ground>| transfer::fill(&node, ground, origin, bases).await;
    let done = pull::fill_and_publish(output, ground_of, fill).await?;
    let mut report = pull::report(&artifact, &counters, start, done);
    report.mirrors = asked.map(|origin| origin.mirror_bytes()).unwrap_or_default();
    if node.is_without_scheduler() {
        // It weighs more than the transport of what came before.
        report.fallback_reason = Some("the scheduler is not reachable".to_owned());
    }
    Ok((report, Lingering(Some(present))))
}

/// Serves an artifact whose files lie in a directory, as a pull that is done has left them and whoever calls this has just
/// compared with its record. Nothing is moved or hashed; readers check what they read, as always.
pub async fn serve_directory(request: PullRequest, fleet: FleetOptions) -> Result<Lingering, PeerError> {
    descriptors::allow_many();
    let FleetOptions { schedulers, listen, advertise, name, nic_rate, place, security, transports } = fleet;
    let (_, artifact) = origin::open(&request.reference, request.access).await?;
    let not_served = |reason| PeerError::Reference { reference: request.reference.to_string(), reason };
    if !artifact.is_anchored() {
        return Err(not_served("it has no piece trees, by which others could prove what they read here"));
    }
    let path_of =
        |blob| artifact.manifest.files().iter().find(|file| file.blob == blob).map(|file| &file.path);
    let paths = artifact.layout().blobs().map(|blob| path_of(blob).map(|path| request.output.join(path)));
    let paths: Option<Vec<_>> = paths.collect();
    let paths = paths.ok_or_else(|| not_served("its archives were unpacked"))?;
    let files = blocking(move || {
        paths.iter().map(|path| store::open_file(path).map(Arc::new)).collect::<Result<Vec<_>, _>>()
    });
    let files = files.await?;
    let presence = Presence::open(Address { listen, advertise }, Means { security, transports }).await?;
    presence.node().hold(&artifact, files);
    Ok(Lingering(Some(presence.begin(Some(Membership { schedulers, name, nic_rate, place })))))
}

async fn open(request: &PullRequest, node: &Node) -> Result<(Option<Origin>, Artifact), PeerError> {
    if let Reference::Fleet(digest) = &request.reference {
        return Ok((None, lookup(node, digest).await?));
    }
    // Only who has a scheduler can leave it to others to read the manifest.
    let _ = timeout(SCHEDULER_WAIT, node.has_tried_scheduler()).await;
    let (origin, artifact) = lookup::open(node, &request.reference, request.access.clone()).await?;
    Ok((Some(origin), artifact))
}

impl Lingering {
    /// Serves on until nobody holds a grant, or `at_most` so long, or until `told_to_end` is ready. Then children are
    /// told to go elsewhere, and reads under way may end.
    pub async fn linger(self, at_most: Duration, told_to_end: impl Future<Output = ()>) {
        let Some(present) = self.0 else { return };
        tokio::select! {
            () = present.children().gone() => {}
            () = tokio::time::sleep(at_most) => tracing::debug!("others still read here"),
            () = told_to_end => {}
        }
        let left = present.leave().drain(at_most.min(DRAIN_MAX), std::future::pending()).await;
        tracing::debug!(?left, "no longer a member");
    }
}
