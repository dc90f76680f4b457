//! What a manifest digest stands for, as another peer tells it.
//!
//! Owns: the call and its bounds. Does not own: the proof: the caller checks the manifest against its digest, the config
//! against the manifest, and each tree against its blob's root.
#![cfg_attr(
    not(test),
    expect(dead_code, reason = "only pulls by `fleet:DIGEST` ask; so far peers only answer")
)]

use std::{collections::BTreeSet, time::Duration};

use modelpack::{
    config::CONFIG_BYTES_MAX,
    layout::BlobIndex,
    manifest::{LAYERS_MAX, MANIFEST_BYTES_MAX},
};
use planner::ArtifactId;
use wire::{
    PROTOCOL_VERSION,
    connection::{DESCRIPTION_BYTES_MAX, MESSAGE_BYTES_MAX, endpoint, explain},
    control::{BlobTree, DescribeReply, DescribeRequest, peer_client::PeerClient},
};

/// How long the whole call may take: the largest description at 20 Mbit/s.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a chaining value.
const VALUE_BYTES: usize = 32;

/// What an artifact is, in bytes that prove themselves against its id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// The manifest.
    pub(crate) manifest: Vec<u8>,
    /// The config blob.
    pub(crate) config: Vec<u8>,
    /// The trees of blobs of more than one piece, where they are known: each 32 bytes a piece.
    pub(crate) trees: Vec<(BlobIndex, Vec<u8>)>,
}

/// Another peer did not describe an artifact.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DescribeError {
    /// It cannot be reached.
    #[error("cannot reach `{address}`")]
    Connect {
        /// HOST:PORT.
        address: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
    /// It did not answer in time.
    #[error("`{address}` did not describe the artifact within {} s", DESCRIBE_TIMEOUT.as_secs())]
    Timeout {
        /// HOST:PORT.
        address: String,
    },
    /// It does not know the artifact, or speaks another version.
    #[error("`{address}` does not describe the artifact: {reason}")]
    Refused {
        /// HOST:PORT.
        address: String,
        /// What it said.
        reason: String,
    },
    /// Its answer cannot be one.
    #[error("`{address}` describes the artifact wrongly: {why}")]
    Invalid {
        /// HOST:PORT.
        address: String,
        /// The rule it breaks.
        why: &'static str,
    },
}

/// Asks the peer at `address` (HOST:PORT of its control service) what `artifact` is.
pub(crate) async fn describe(address: &str, artifact: ArtifactId) -> Result<Description, DescribeError> {
    let late = |_| DescribeError::Timeout { address: address.to_owned() };
    let reply = tokio::time::timeout(DESCRIBE_TIMEOUT, ask(address, artifact)).await.map_err(late)??;
    parse(reply).map_err(|why| DescribeError::Invalid { address: address.to_owned(), why })
}

async fn ask(address: &str, artifact: ArtifactId) -> Result<DescribeReply, DescribeError> {
    let unreachable = |source| DescribeError::Connect { address: address.to_owned(), source };
    let endpoint = endpoint(format!("http://{address}")).map_err(unreachable)?;
    let channel = endpoint.connect().await.map_err(unreachable)?;
    let mut client = PeerClient::new(channel)
        .max_decoding_message_size(DESCRIPTION_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let request = DescribeRequest { protocol_version: PROTOCOL_VERSION, artifact: artifact.0.to_vec() };
    let reply = client
        .describe(request)
        .await
        .map_err(|status| DescribeError::Refused { address: address.to_owned(), reason: explain(&status) })?;
    Ok(reply.into_inner())
}

fn parse(reply: DescribeReply) -> Result<Description, &'static str> {
    let DescribeReply { manifest, config, trees } = reply;
    let fits = |bytes: &[u8], max: u64| bytes.len() as u64 <= max;
    if !fits(&manifest, MANIFEST_BYTES_MAX) {
        return Err("the manifest is too long");
    }
    if !fits(&config, CONFIG_BYTES_MAX) {
        return Err("the config is too long");
    }
    let numbers: BTreeSet<u32> = trees.iter().map(|tree| tree.blob).collect();
    if numbers.len() < trees.len() || numbers.last().is_some_and(|last| *last as usize >= LAYERS_MAX) {
        return Err("trees are numbered wrongly");
    }
    if trees.iter().any(|tree| tree.chaining_values.len() % VALUE_BYTES != 0) {
        return Err("a tree is not made of chaining values");
    }
    let tree = |tree: BlobTree| (BlobIndex(tree.blob), tree.chaining_values);
    Ok(Description { manifest, config, trees: trees.into_iter().map(tree).collect() })
}

impl From<&Description> for DescribeReply {
    fn from(description: &Description) -> Self {
        let tree = |(blob, values): &(BlobIndex, Vec<u8>)| BlobTree {
            blob: blob.0,
            chaining_values: values.clone(),
        };
        Self {
            manifest: description.manifest.clone(),
            config: description.config.clone(),
            trees: description.trees.iter().map(tree).collect(),
        }
    }
}
