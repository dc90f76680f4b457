//! A double's end of links to children: grants and announces everything. Does not own: the bytes.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
};

use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::{
    PROTOCOL_VERSION, connection,
    control::{
        ChildToParent, Coming, DescribeReply, DescribeRequest, Grant, HaveRuns, LinkWelcome, ParentToChild,
        Run, TcpEndpoint, Window,
        child_to_parent::Kind as Heard,
        parent_to_child::Kind as Said,
        peer_server::{Peer, PeerServer},
    },
};

use super::Double;

/// As an honest peer grants them.
const EXPIRES_MS: u32 = 10_000;
const IN_FLIGHT_MAX: u32 = 16;

/// Messages that wait for a child.
const OUTGOING_MAX: usize = 8;

/// Serves children for ever.
pub(crate) async fn serve(listener: TcpListener, double: Arc<Double>) -> Result<(), tonic::transport::Error> {
    let security = double.control.clone();
    let service = PeerServer::new(Service(double));
    connection::serve(listener, &security, service, std::future::pending()).await
}

struct Service(Arc<Double>);

type Sent = Result<ParentToChild, Status>;

#[tonic::async_trait]
impl Peer for Service {
    type LinkStream = Pin<Box<ReceiverStream<Sent>>>;

    async fn link(
        &self,
        request: Request<Streaming<ChildToParent>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        tokio::spawn(link(Arc::clone(&self.0), request.into_inner(), outgoing));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Err(Status::not_found("this peer does not share the artifact"))
    }
}

/// One link, until the child ends it.
async fn link(double: Arc<Double>, mut inbound: Streaming<ChildToParent>, outgoing: mpsc::Sender<Sent>) {
    let (link, secret) = double.tcp.issue_link();
    double.seen.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(hex::encode(secret));
    let first = [
        Said::Welcome(welcome(&double, link, &secret)),
        Said::Grant(grant(&double)),
        Said::Have(everything(&double)),
    ];
    while let Ok(Some(message)) = inbound.message().await {
        let answers: Vec<Said> = match message.kind {
            Some(Heard::Hello(_)) => first.to_vec(),
            Some(Heard::Renewal(_)) => vec![Said::Grant(grant(&double))],
            None => Vec::new(),
        };
        for kind in answers {
            if outgoing.send(Ok(ParentToChild { kind: Some(kind) })).await.is_err() {
                break;
            }
        }
    }
    double.tcp.revoke(link);
}

fn welcome(double: &Double, link: u64, secret: &[u8; 32]) -> LinkWelcome {
    LinkWelcome {
        protocol_version: PROTOCOL_VERSION,
        features: double.features(),
        peer_id: double.id.to_vec(),
        tcp: Some(TcpEndpoint {
            address: double.tcp.local_addr().to_string(),
            link,
            secret: secret.to_vec(),
            encrypted: double.is_data_encrypted,
        }),
    }
}

fn grant(double: &Double) -> Grant {
    let blobs = (0..).zip(&double.artifact.blobs).zip(&double.handles);
    let windows = blobs.map(|((blob, file), handle)| Window { blob, handle: *handle, bytes: file.bytes });
    Grant {
        windows: windows.collect(),
        in_flight_max: IN_FLIGHT_MAX,
        bytes_per_second_max: 0,
        expires_ms: EXPIRES_MS,
    }
}

fn everything(double: &Double) -> HaveRuns {
    let runs = vec![Run { start: 0, end: double.artifact.pieces() }];
    HaveRuns { runs, coming: Some(Coming { runs: Vec::new(), epoch: 0 }), vouchers: Vec::new() }
}
