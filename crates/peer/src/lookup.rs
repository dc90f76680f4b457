//! What a digest stands for, learned from the fleet: alone (`fleet:DIGEST`), or so that a registry is asked once.
//!
//! Owns: asking the scheduler who knows, asking those, and proving what they say. Does not own: the pieces.

use std::time::{Duration, Instant};

use identity::Security;
use modelpack::{
    config::ModelConfig,
    digest::Sha256Digest,
    layout::BlobIndex,
    manifest::{Blob, Family, Manifest},
    piece_tree::PieceTree,
    reference::Reference,
};
use planner::PeerId;
use registry::{Access, Repository};
use tokio::runtime::Handle;
use tonic::{Status, transport::Channel};
use wire::{
    PROTOCOL_VERSION,
    connection::{DESCRIPTION_BYTES_MAX, MESSAGE_BYTES_MAX, dial, explain},
    control::{
        Claim, DescribeReply, DescribeRequest, HoldersReply, HoldersRequest, peer_client::PeerClient,
        scheduler_client::SchedulerClient,
    },
};

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
    node::Node,
    origin::{self, Origin},
};

/// How long one question may take: the largest description at 20 Mbit/s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a scheduler may know no member: a seed that was just started has yet to join.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is asked meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Members that are asked, one after another.
pub(crate) const ASKED_MAX: usize = 8;

/// Nobody could say what an artifact is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    /// This peer has no scheduler.
    #[error("this peer has no scheduler to ask")]
    Alone,
    /// No scheduler answers.
    #[error("no scheduler is reachable: {reason}")]
    NoScheduler { reason: String, hint: Option<&'static str> },
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

impl LookupError {
    /// What the user may do about it.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Alone => "start the peer with `--scheduler URL`",
            Self::NoScheduler { hint, .. } => {
                hint.unwrap_or("start a scheduler, or look at the peer's `--scheduler` and `--fleet-key`")
            }
            _ => "announce it with `modelctl peer --seed REF`",
        }
    }
}

/// Learns what the artifact of `digest` is from the fleet alone.
pub(crate) async fn lookup(node: &Node, digest: &Sha256Digest) -> Result<Artifact, PeerError> {
    let reference = format!("fleet:{digest}");
    let failed = |source: LookupError| PeerError::Lookup {
        reference: reference.clone(),
        hint: source.hint(),
        source: Box::new(source),
    };
    if !node.is_in_fleet() {
        return Err(failed(LookupError::Alone));
    }
    let give_up = Instant::now() + PATIENCE;
    loop {
        // A scheduler may be taking over from another at this moment.
        let found = if let Some(scheduler) = node.scheduler() {
            ask_holders(&scheduler, digest, (Claim::None, node.me())).await
        } else {
            let (reason, hint) = node.lost_reason();
            Err(LookupError::NoScheduler { reason, hint })
        };
        let is_last = Instant::now() >= give_up;
        match found {
            Ok(found) if !found.control_addresses.is_empty() => {
                return ask_each(node, &reference, digest, found.control_addresses).await.map_err(failed);
            }
            Ok(_) if is_last => return Err(failed(LookupError::Unknown)),
            Err(error) if is_last => return Err(failed(error)),
            Ok(_) | Err(_) => tokio::time::sleep(ASK_AGAIN).await,
        }
    }
}

/// Opens a registry's artifact together with the fleet: each peer asks the registry which manifest the reference names,
/// which also proves that its credentials may read it; the manifest, the config and the piece trees are read there once,
/// by whoever the scheduler elects, and come to the others from that one. Whatever fails on the way only means that this
/// peer reads them at the registry by itself.
pub(crate) async fn open(
    node: &Node,
    reference: &Reference,
    access: Access,
) -> Result<(Origin, Artifact), PeerError> {
    let (Reference::Registry(at), Some(scheduler)) = (reference, node.scheduler()) else {
        return origin::open(reference, access).await;
    };
    let opened = Repository::open(at, access.clone());
    let repository = opened.map_err(|source| PeerError::registry(&reference.to_string(), source))?;
    let digest = match repository.stated_digest(at.tag.as_deref(), at.digest.as_ref()).await {
        Ok(Some(digest)) => digest,
        Ok(None) => return origin::open(reference, access).await,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "asking for the manifest itself");
            return origin::open(reference, access).await;
        }
    };
    let name = reference.to_string();
    if let Some(artifact) = shared_here(node, &name, &digest) {
        return Ok((Origin::Registry(repository), artifact));
    }
    let found = ask_holders(&scheduler, &digest, (Claim::Offer, node.me())).await.unwrap_or_else(|error| {
        tracing::debug!(error = &error as &dyn std::error::Error, "reading the origin without the fleet");
        HoldersReply::default()
    });
    if found.read_origin {
        let mut claim = Held { scheduler, node: node.me(), digest, end: Some(Claim::Failed) };
        let opened = origin::open_digest(reference, repository, &digest).await?;
        // What an index lists is known by another digest, under which nobody waits.
        if opened.1.manifest.digest() == digest {
            claim.end = None;
        }
        return Ok(opened);
    }
    match ask_each(node, &name, &digest, found.control_addresses).await {
        Ok(artifact) => Ok((Origin::Registry(repository), artifact)),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "reading the origin alone");
            origin::open_digest(reference, repository, &digest).await
        }
    }
}

/// What this peer itself shares under this digest.
pub(crate) fn shared_here(node: &Node, name: &str, digest: &Sha256Digest) -> Option<Artifact> {
    node.description(digest).and_then(|reply| prove(name, digest, reply).ok())
}

/// The claim of this peer while it reads the origin for all. Joining the swarm ends a good one; the scheduler hears of
/// another when this is dropped, also by a client that goes away.
pub(crate) struct Held {
    pub(crate) scheduler: (Channel, String),
    pub(crate) node: PeerId,
    pub(crate) digest: Sha256Digest,
    pub(crate) end: Option<Claim>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(claim) = self.end else { return };
        let (scheduler, node, digest) = (self.scheduler.clone(), self.node, self.digest);
        // If it does not arrive, the claim expires.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move { drop(ask_holders(&scheduler, &digest, (claim, node)).await) });
    }
}

/// The description by the first of these members whose words prove themselves.
async fn ask_each(
    node: &Node,
    reference: &str,
    digest: &Sha256Digest,
    addresses: Vec<String>,
) -> Result<Artifact, LookupError> {
    let mut last = LookupError::Unknown;
    for address in addresses.into_iter().take(ASKED_MAX) {
        let described = match describe(&address, &node.security().control, digest).await {
            Ok(reply) => prove(reference, digest, reply)
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
    Err(last)
}

/// Who can describe it.
pub(crate) async fn ask_holders(
    scheduler: &(Channel, String),
    digest: &Sha256Digest,
    claim: (Claim, PeerId),
) -> Result<HoldersReply, LookupError> {
    ask_about(scheduler, digest, claim, Duration::ZERO).await
}

/// The same; or says what is known of a name, which holds for some time.
pub(crate) async fn ask_about(
    (channel, address): &(Channel, String),
    digest: &Sha256Digest,
    (claim, me): (Claim, PeerId),
    holds: Duration,
) -> Result<HoldersReply, LookupError> {
    let ask = async {
        let mut client = SchedulerClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let request = HoldersRequest {
            protocol_version: PROTOCOL_VERSION,
            artifact: digest.bytes().to_vec(),
            claim: claim.into(),
            peer_id: me.bytes().to_vec(),
            holds_for_ms: u64::try_from(holds.as_millis()).unwrap_or(u64::MAX),
        };
        client.holders(request).await.map_err(|status| refused(address, &status))
    };
    Ok(in_time(address, ask).await?.into_inner())
}

pub(crate) async fn describe(
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

async fn connect(uri: String, address: &str, security: &Security) -> Result<Channel, LookupError> {
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
    let DescribeReply { manifest: raw, config, trees, hub: _ } = reply;
    if Sha256Digest::of(&raw) != *digest {
        return Err("the manifest has another digest");
    }
    let manifest = Manifest::parse(&raw).map_err(|_| "the manifest is not usable")?;
    let is_readable = manifest.family() != Family::ModelPack || ModelConfig::parse(&config).is_ok();
    if Sha256Digest::of(&config) != manifest.config().digest || !is_readable {
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
    Ok(Artifact { reference: reference.to_owned(), manifest, index: None, config, checks })
}
