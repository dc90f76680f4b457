//! What a digest stands for, learned from the fleet alone (`fleet:DIGEST`).
//!
//! Owns: asking the scheduler who knows, asking those, and proving what they say. Does not own: the pieces.

use std::time::{Duration, Instant};

use identity::Security;
use modelpack::{
    config::ModelConfig,
    digest::Sha256Digest,
    layout::BlobIndex,
    manifest::{Blob, Manifest},
    piece_tree::PieceTree,
};
use tonic::Status;
use wire::{
    PROTOCOL_VERSION,
    connection::{DESCRIPTION_BYTES_MAX, MESSAGE_BYTES_MAX, dial, explain},
    control::{
        DescribeReply, DescribeRequest, HoldersRequest, peer_client::PeerClient,
        scheduler_client::SchedulerClient,
    },
};

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
};

/// How long one question may take: the largest description at 20 Mbit/s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a scheduler may know no member: a seed that was just started has yet to join.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Members that are asked, one after another.
const ASKED_MAX: usize = 8;

/// Nobody could say what an artifact is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// This peer has no scheduler.
    #[error("this peer has no scheduler to ask")]
    Alone,
    /// Somebody cannot be reached.
    #[error("cannot reach `{address}`: {reason}")]
    Connect { address: String, reason: String },
    /// Somebody did not answer in time.
    #[error("`{address}` did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout { address: String },
    /// Somebody does not know.
    #[error("`{address}` does not say: {reason}")]
    Refused { address: String, reason: String },
    /// What somebody says does not prove itself.
    #[error("`{address}` describes it wrongly: {why}")]
    Invalid { address: String, why: &'static str },
    /// The scheduler knows no member.
    #[error("no peer has announced it")]
    Unknown,
}

/// Learns what the artifact of `digest` is.
pub(crate) async fn lookup(
    scheduler: Option<&str>,
    security: &Security,
    digest: &Sha256Digest,
) -> Result<Artifact, PeerError> {
    let reference = format!("fleet:{digest}");
    let failed = |source| PeerError::Lookup { reference: reference.clone(), source: Box::new(source) };
    let scheduler = scheduler.ok_or_else(|| failed(LookupError::Alone))?;
    let mut last = LookupError::Unknown;
    let give_up = Instant::now() + PATIENCE;
    let mut addresses = holders(scheduler, security, digest).await.map_err(failed)?;
    while addresses.is_empty() && Instant::now() < give_up {
        tokio::time::sleep(ASK_AGAIN).await;
        addresses = holders(scheduler, security, digest).await.map_err(failed)?;
    }
    for address in addresses {
        let described = match describe(&address, security, digest).await {
            Ok(reply) => prove(&reference, digest, reply)
                .map_err(|why| LookupError::Invalid { address: address.clone(), why }),
            Err(error) => Err(error),
        };
        match described {
            Ok(artifact) => return Ok(artifact),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "asking the next");
                last = error;
            }
        }
    }
    Err(failed(last))
}

async fn holders(
    scheduler: &str,
    security: &Security,
    digest: &Sha256Digest,
) -> Result<Vec<String>, LookupError> {
    let ask = async {
        let channel = connect(scheduler.to_owned(), scheduler, security).await?;
        let mut client = SchedulerClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request =
            HoldersRequest { protocol_version: PROTOCOL_VERSION, artifact: digest.bytes().to_vec() };
        client.holders(request).await.map_err(|status| refused(scheduler, &status))
    };
    let mut addresses = in_time(scheduler, ask).await?.into_inner().control_addresses;
    addresses.truncate(ASKED_MAX);
    Ok(addresses)
}

async fn describe(
    address: &str,
    security: &Security,
    digest: &Sha256Digest,
) -> Result<DescribeReply, LookupError> {
    let ask = async {
        let channel = connect(format!("http://{address}"), address, security).await?;
        let mut client = PeerClient::new(channel).max_decoding_message_size(DESCRIPTION_BYTES_MAX);
        let request =
            DescribeRequest { protocol_version: PROTOCOL_VERSION, artifact: digest.bytes().to_vec() };
        client.describe(request).await.map_err(|status| refused(address, &status))
    };
    Ok(in_time(address, ask).await?.into_inner())
}

async fn connect(
    uri: String,
    address: &str,
    security: &Security,
) -> Result<tonic::transport::Channel, LookupError> {
    let unreachable = |error: tonic::transport::Error| LookupError::Connect {
        address: address.to_owned(),
        reason: explain(&error),
    };
    dial(uri, security).await.map_err(unreachable)
}

fn refused(address: &str, status: &Status) -> LookupError {
    LookupError::Refused { address: address.to_owned(), reason: explain(status) }
}

async fn in_time<T>(
    address: &str,
    ask: impl Future<Output = Result<T, LookupError>>,
) -> Result<T, LookupError> {
    let late = |_| LookupError::Timeout { address: address.to_owned() };
    tokio::time::timeout(ANSWER_TIMEOUT, ask).await.map_err(late)?
}

/// Believes nothing: the manifest is what the digest names, and the manifest names all the rest.
fn prove(reference: &str, digest: &Sha256Digest, reply: DescribeReply) -> Result<Artifact, &'static str> {
    let DescribeReply { manifest: raw, config, trees } = reply;
    if Sha256Digest::of(&raw) != *digest {
        return Err("the manifest has another digest");
    }
    let manifest = Manifest::parse(&raw).map_err(|_| "the manifest is not usable")?;
    if Sha256Digest::of(&config) != manifest.config().digest || ModelConfig::parse(&config).is_err() {
        return Err("the config is not the manifest's");
    }
    let check = |(index, blob): (BlobIndex, &Blob)| {
        let Some(root) = blob.root else { return Ok(Check::Sha256) };
        if let Some(tree) = PieceTree::single(blob.size, root) {
            return Ok(Check::Tree(tree));
        }
        let Some(tree) = trees.iter().find(|tree| tree.blob == index.0) else { return Ok(Check::Root(root)) };
        let tree = PieceTree::anchor(blob.size, root, &tree.chaining_values);
        tree.map(Check::Tree).map_err(|_| "a piece tree is wrong")
    };
    let numbered = manifest.layout().blobs().zip(manifest.blobs());
    let checks = numbered.map(check).collect::<Result<_, _>>()?;
    Ok(Artifact { reference: reference.to_owned(), manifest, config, checks })
}
