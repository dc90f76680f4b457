//! The words of failures, and where requests come from. How else connections behave is tested where they are used: in
//! crates `scheduler` and `peer`.

use std::{error::Error, fmt, io, net::IpAddr, time::Duration};

use identity::{FleetKey, Identity, Security};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status, Streaming};
use wire::{
    connection::{dial, explain, reason, serve},
    control::{
        ChildToParent, DescribeReply, DescribeRequest, ParentToChild, peer_client::PeerClient, peer_server,
    },
};

/// Answers every question with where it came from.
struct Where;

#[tonic::async_trait]
impl peer_server::Peer for Where {
    type LinkStream = tokio_stream::Empty<Result<ParentToChild, Status>>;

    async fn link(&self, _: Request<Streaming<ChildToParent>>) -> Result<Response<Self::LinkStream>, Status> {
        Err(Status::unimplemented("only questions"))
    }

    async fn describe(&self, request: Request<DescribeRequest>) -> Result<Response<DescribeReply>, Status> {
        Err(Status::not_found(request.remote_addr().map_or("nowhere".to_owned(), |at| at.ip().to_string())))
    }
}

/// Plans hang on it: a scheduler counts accusations once for each address.
#[tokio::test]
async fn a_service_sees_where_a_request_comes_from_with_a_key_as_without() {
    let key = FleetKey::generate().expect("random bytes");
    for security in [Security::Plain, Security::Fleet(Identity::new(&key).expect("an identity"))] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let asked = async {
            let channel = dial(format!("http://{address}"), &security).await.expect("it listens");
            PeerClient::new(channel).describe(DescribeRequest::default()).await.expect_err("no answer")
        };
        let service = peer_server::PeerServer::new(Where);
        let status = tokio::select! {
            status = tokio::time::timeout(Duration::from_secs(30), asked) => status.expect("in time"),
            served = serve(listener, &security, service, std::future::pending()) => panic!("{served:?}"),
        };
        assert_eq!(status.message().parse::<IpAddr>().ok(), Some(address.ip()), "{security:?}");
    }
}

/// An error with a cause.
#[derive(Debug)]
struct Because(&'static str, Box<dyn Error>);

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Because {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.1.as_ref())
    }
}

#[test]
fn a_failure_is_told_with_its_causes_once_each() {
    let refused = || Box::new(io::Error::other("refused"));
    assert_eq!(explain(&Because("cannot connect", refused())), "cannot connect: refused");
    let repeated = Because("cannot connect: refused", refused());
    assert_eq!(explain(&repeated), "cannot connect: refused");
    assert_eq!(explain(&Status::not_found("no\u{1b}such\nthing")), "nosuchthing");
    let within = Because("cannot ask", Box::new(Status::not_found("no such thing")));
    assert_eq!(explain(&within), "cannot ask: no such thing");
}

#[test]
fn a_reason_fits_a_line() {
    assert_eq!(reason("too\r\n\u{1b}[31m long"), "too[31m long");
    assert_eq!(reason(&"é".repeat(10_000)).chars().count(), 256);
}
