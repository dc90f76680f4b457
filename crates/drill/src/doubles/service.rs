//! A double's end of links to children: grants everything and announces what is claimed. Does not own: the bytes.

use std::{
    pin::Pin,
    sync::{Arc, PoisonError},
};

use modelpack::layout::{PieceIndex, runs_of};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::{
    PROTOCOL_VERSION, connection,
    control::{
        ChildToParent, Coming, DescribeReply, DescribeRequest, Grant, HaveRuns, LinkWelcome, ParentToChild,
        TcpEndpoint, Window,
        child_to_parent::Kind as Heard,
        parent_to_child::Kind as Said,
        peer_server::{Peer, PeerServer},
    },
    convert,
};

use super::{Behaviour, Double, reader::Claims};

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

    /// Only of an artifact without trees, which it does not know.
    async fn describe(&self, _: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        if self.0.behaviour != Behaviour::LyingReader {
            return Err(Status::not_found("this peer does not share the artifact"));
        }
        let (manifest, config) = (self.0.artifact.manifest.clone(), self.0.artifact.config.clone());
        Ok(Response::new(DescribeReply { manifest, config, ..DescribeReply::default() }))
    }
}

/// One link, until the child ends it.
async fn link(double: Arc<Double>, mut inbound: Streaming<ChildToParent>, outgoing: mpsc::Sender<Sent>) {
    let (link, secret) = double.tcp.issue_link();
    double.seen.secrets.lock().unwrap_or_else(PoisonError::into_inner).push(hex::encode(secret));
    let (mut claims, mut said) = (double.claims.subscribe(), None);
    loop {
        let answers = tokio::select! {
            heard = inbound.message() => match heard {
                Ok(Some(ChildToParent { kind: Some(Heard::Hello(_)) })) => {
                    let (have, count) = news(&claims.borrow_and_update(), 0);
                    said = Some(count);
                    vec![Said::Welcome(welcome(&double, link, &secret)), Said::Grant(grant(&double)), have]
                }
                Ok(Some(ChildToParent { kind: Some(Heard::Renewal(_)) })) => vec![Said::Grant(grant(&double))],
                // A double knows no RDMA, so that nobody asks it for windows, and tells everybody everything at once.
                Ok(Some(ChildToParent {
                    kind: None | Some(Heard::Windows(_) | Heard::Release(_) | Heard::Interest(_)),
                })) => Vec::new(),
                Ok(None) | Err(_) => break,
            },
            _ = claims.changed(), if said.is_some() => {
                let (have, count) = news(&claims.borrow_and_update(), said.unwrap_or_default());
                said = Some(count);
                vec![have]
            }
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
        peer_id: double.key.id().to_vec(),
        tcp: Some(TcpEndpoint {
            address: double.tcp.local_addr().to_string(),
            link,
            secret: secret.to_vec(),
            encrypted: double.is_data_encrypted,
        }),
        rdma: None,
        rdma_refusal: String::new(),
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

/// What is claimed beyond the first `said` pieces; and how many there are now.
fn news(claims: &Claims, said: usize) -> (Said, usize) {
    let news = &claims.pieces[said..];
    let mut pieces: Vec<PieceIndex> = news.iter().map(|(piece, _)| *piece).collect();
    pieces.sort_unstable();
    let vouchers = news.iter().filter_map(|(piece, voucher)| Some((piece, voucher.as_ref()?)));
    let have = HaveRuns {
        runs: convert::runs_message(&runs_of(pieces)),
        coming: Some(Coming { runs: Vec::new(), epoch: claims.epoch }),
        vouchers: vouchers.map(|(piece, voucher)| convert::voucher_message(*piece, voucher)).collect(),
    };
    (Said::Have(have), claims.pieces.len())
}
