//! The gRPC face: makes a session of every stream. Does not own what is said on it.

use std::{
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use identity::Security;
use planner::HostAddr;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot, watch},
};
use tonic::{Request, Response, Status, Streaming};
use wire::{
    FEATURES, PROTOCOL_VERSION, WireError, check_version,
    connection::{self, MESSAGE_BYTES_MAX},
    control::{
        AliveReply, AliveRequest, Claim, CurrentPlanReply, CurrentPlanRequest, HoldersReply, HoldersRequest,
        PeerToScheduler, SchedulerToPeer, StatusReply, StatusRequest, scheduler_server,
    },
    convert,
    plan_status::plan_status_message,
};

use crate::{
    claims::Found,
    driver::{Driver, Event},
    metrics::Metrics,
    outbox::Outbox,
    peering::{self, Instance, Peering},
    record_file::RecordFile,
    recorder::Recorder,
    session::Session,
};

/// Events that wait for the event loop, at most: beyond, streams are not read, so the network holds their peers back.
const EVENTS_MAX: usize = 1024;

/// How a scheduler behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often peers report their load, which is also their heartbeat: at most 60 s.
    pub load_interval: Duration,
    /// Who may connect.
    pub security: Security,
    /// The other schedulers of the fleet; `None` if this is the only one.
    pub peering: Option<Peering>,
    /// Where it counts; whoever keeps a clone may watch.
    pub metrics: Arc<Metrics>,
    /// Where it writes down what happens, for people; `None` for nowhere.
    pub record: Option<RecordFile>,
}

impl Default for Options {
    fn default() -> Self {
        let load_interval = Duration::from_secs(1);
        let (peering, metrics, record) = (None, Arc::default(), None);
        Self { load_interval, security: Security::Plain, peering, metrics, record }
    }
}

/// The scheduler cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SchedulerError {
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random(#[source] std::io::Error),
    /// Its socket failed.
    #[error("serving peers failed")]
    Serve(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Serves peers on `listener` until `shutdown` is ready; then it ends every stream.
///
/// # Errors
/// If the listener fails for good.
pub async fn serve(
    listener: TcpListener,
    options: Options,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), SchedulerError> {
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (stop, stopped) = watch::channel(());
    let security = options.security.clone();
    let instance: Instance = identity::random_bytes().map_err(SchedulerError::Random)?;
    let (peering, to_driver, secured) = (options.peering.clone(), events.clone(), security.clone());
    let watching = async {
        match peering {
            Some(peering) => peering::watch(peering, secured, instance, to_driver).await,
            None => std::future::pending().await,
        }
    };
    let recorder = options.record.as_ref().map(Recorder::new);
    let driver = Driver::new(options.load_interval, Arc::clone(&options.metrics)).recorded_by(recorder);
    let service = Service { options, events, stopped, streams: AtomicU64::new(0), instance };
    let service = scheduler_server::SchedulerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let shutdown = async {
        shutdown.await;
        tracing::info!("stopping");
        drop(stop);
    };
    tokio::select! {
        served = connection::serve(listener, &security, service, shutdown) => {
            served.map_err(|error| SchedulerError::Serve(Box::new(error)))
        }
        // The service holds a sender, so it is never the event loop that ends first.
        () = driver.run(inbox) => Ok(()),
        () = watching => Ok(()),
    }
}

struct Service {
    options: Options,
    events: mpsc::Sender<Event>,
    /// Its sender is dropped when the scheduler stops.
    stopped: watch::Receiver<()>,
    streams: AtomicU64,
    instance: Instance,
}

#[tonic::async_trait]
impl scheduler_server::Scheduler for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<SchedulerToPeer, Status>> + Send>>;

    async fn session(
        &self,
        request: Request<Streaming<PeerToScheduler>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let outbox = Outbox::new();
        let unknown = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let session = Session {
            host: HostAddr::new(request.remote_addr().map_or(unknown, |address| address.ip())),
            stream: self.streams.fetch_add(1, Ordering::Relaxed),
            inbound: request.into_inner(),
            outbox: Arc::clone(&outbox),
            events: self.events.clone(),
            stopped: self.stopped.clone(),
            load_interval: self.options.load_interval,
        };
        tokio::spawn(session.run());
        Ok(Response::new(Box::pin(outbox.stream())))
    }

    async fn alive(&self, request: Request<AliveRequest>) -> Result<Response<AliveReply>, Status> {
        let refused = |error: WireError| Status::invalid_argument(error.to_string());
        check_version(request.into_inner().protocol_version).map_err(refused)?;
        Ok(Response::new(AliveReply {
            protocol_version: PROTOCOL_VERSION,
            features: FEATURES,
            instance: self.instance.to_vec(),
        }))
    }

    async fn holders(&self, request: Request<HoldersRequest>) -> Result<Response<HoldersReply>, Status> {
        let request = request.into_inner();
        let refused = |error: WireError| Status::invalid_argument(error.to_string());
        check_version(request.protocol_version).map_err(refused)?;
        let artifact = convert::artifact_id(&request.artifact).map_err(refused)?;
        let stopping = || Status::unavailable("the scheduler stops");
        let claim = request.claim();
        let peer = (claim != Claim::None).then(|| convert::peer_id(&request.peer_id));
        let peer = peer.transpose().map_err(refused)?;
        let (reply, answer) = oneshot::channel();
        let holds = Duration::from_millis(request.holds_for_ms);
        let asked = Event::Asked { artifact, claim: (claim, holds), peer, reply };
        self.events.send(asked).await.map_err(|_| stopping())?;
        Ok(Response::new(match answer.await.map_err(|_| stopping())? {
            Found::Holders(control_addresses) => HoldersReply { control_addresses, read_origin: false },
            Found::ReadOrigin => HoldersReply { control_addresses: Vec::new(), read_origin: true },
        }))
    }

    async fn current_plan(
        &self,
        request: Request<CurrentPlanRequest>,
    ) -> Result<Response<CurrentPlanReply>, Status> {
        let request = request.into_inner();
        let refused = |error: WireError| Status::invalid_argument(error.to_string());
        check_version(request.protocol_version).map_err(refused)?;
        let artifact = convert::artifact_id(&request.artifact).map_err(refused)?;
        let stopping = || Status::unavailable("the scheduler stops");
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::AskedPlan { artifact, reply }).await.map_err(|_| stopping())?;
        let plan = answer.await.map_err(|_| stopping())?;
        Ok(Response::new(plan_status_message(plan.as_ref())))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let refused = |error: WireError| Status::invalid_argument(error.to_string());
        check_version(request.into_inner().protocol_version).map_err(refused)?;
        let stopping = || Status::unavailable("the scheduler stops");
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Inquired(reply)).await.map_err(|_| stopping())?;
        let status = answer.await.map_err(|_| stopping())?;
        Ok(Response::new(StatusReply::from(&status)))
    }
}
