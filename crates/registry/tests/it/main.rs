//! The registry client against a real registry and against a server that misbehaves.

#![allow(clippy::unwrap_used, reason = "clippy lets tests unwrap, but not the helpers that they share")]

mod docker_registry;
#[allow(unreachable_pub, unused, reason = "other crates include this file too, and use other parts of it")]
mod fault_server;

#[allow(unused, reason = "other crates include this file too, and use other parts of it")]
mod hub_model;

mod auth;
mod copy;
mod hub;
mod manifests;
mod mirrors;
mod push;
mod reads;
mod real;

use std::{future::Future, time::Duration};

use modelpack::{digest::Sha256Digest, reference::RegistryReference};
use registry::{Access, Patience, Repository};

/// Longer than any test takes on a busy machine.
const TEST_MAX: Duration = Duration::from_mins(1);

/// Runs a test, which fails if it hangs.
async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_MAX, Box::pin(test)).await.expect("the test hangs")
}

/// The repository `models/one` over plain HTTP, with pauses too short to wait for.
fn open(host: &str) -> Repository {
    open_with(host, Access { plain_http: true, ..Access::default() })
}

fn open_with(host: &str, access: Access) -> Repository {
    let reference = RegistryReference {
        registry: host.to_owned(),
        repository: "models/one".to_owned(),
        tag: Some("v1".to_owned()),
        digest: None,
    };
    Repository::open(&reference, access).unwrap().with_patience(patience())
}

/// Back-off of a millisecond; limits on silence stay long, so that a busy machine is not taken for a silent server.
fn patience() -> Patience {
    let pause = Duration::from_millis(1);
    Patience { pause_first: pause, pause_max: pause, retry_after_max: pause, ..Patience::default() }
}

/// Bytes that differ from place to place.
fn bytes(length: usize) -> Vec<u8> {
    (0u32..).flat_map(|word| (word.wrapping_mul(2_654_435_761)).to_le_bytes()).take(length).collect()
}

fn digest(raw: &[u8]) -> Sha256Digest {
    Sha256Digest::of(raw)
}
