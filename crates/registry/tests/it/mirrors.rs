//! Mirrors: asked first, one try each, and trusted with nothing.

use std::time::Duration;

use modelpack::digest::Sha256Digest;
use registry::{Access, BlobStream, Credentials, Mirror, MirrorBytes, Repository, Serves};

use crate::{
    bounded, bytes, digest,
    fault_server::{FaultServer, Reply, Seen},
    open_with,
};

const LEN: usize = 100_000;

fn mirror(of: &FaultServer) -> Mirror {
    let access = Access { plain_http: true, ..Access::default() };
    Mirror { registry: of.host(), repository: "cache/one".into(), serves: Serves::All, access }
}

fn open(origin: &FaultServer, mirrors: Vec<Mirror>) -> Repository {
    open_with(&origin.host(), Access { plain_http: true, mirrors, ..Access::default() })
}

/// A registry that has the blob and the manifest of these bytes.
async fn honest(raw: Vec<u8>) -> FaultServer {
    FaultServer::start(move |seen: &Seen| Reply::blob(seen, &raw)).await
}

async fn read(repository: &Repository, of: &Sha256Digest) -> Vec<u8> {
    let mut stream = repository.read(of, LEN as u64, 10..LEN as u64).await.unwrap();
    drain(&mut stream).await.unwrap()
}

async fn drain(stream: &mut BlobStream) -> Result<Vec<u8>, registry::RegistryError> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await? {
        all.extend_from_slice(&chunk);
    }
    Ok(all)
}

#[tokio::test]
async fn a_mirror_is_read_and_the_registry_is_asked_for_nothing() {
    bounded(async {
        let raw = bytes(LEN);
        let (origin, near) = (honest(raw.clone()).await, honest(raw.clone()).await);
        let repository = open(&origin, vec![mirror(&near)]);
        let of = digest(&raw);
        assert_eq!(read(&repository, &of).await, raw[10..]);
        assert_eq!(repository.manifest(&of).await.unwrap(), raw);
        assert_eq!(repository.resolve(Some("v1"), None).await.unwrap(), raw);
        assert_eq!(repository.small_blob(&of, LEN as u64).await.unwrap(), raw);
        assert_eq!(origin.seen().len(), 0);
        let paths: Vec<_> = near.seen().into_iter().map(|seen| seen.path).collect();
        assert!(paths.iter().all(|path| path.starts_with("/v2/cache/one/")), "{paths:?}");
        let expected = MirrorBytes { registry: near.host(), bytes: LEN as u64 - 10 };
        assert_eq!(repository.mirror_bytes(), [expected]);
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_is_of_no_use_costs_one_try() {
    bounded(async {
        let raw = bytes(LEN);
        let of = digest(&raw);
        let gone = "127.0.0.1:1".to_owned();
        for (fault, tries) in
            [(Reply::status(404), 1), (Reply::status(500), 1), (Reply::status(401), 1), (Reply::hang_up(), 1)]
        {
            let (origin, near) = (honest(raw.clone()).await, honest(raw.clone()).await);
            let bad = FaultServer::replay([fault.clone()]).await;
            let dead = Mirror { registry: gone.clone(), ..mirror(&bad) };
            let repository = open(&origin, vec![mirror(&bad), dead, mirror(&near)]);
            for _ in 0..3 {
                assert_eq!(read(&repository, &of).await, raw[10..]);
            }
            assert_eq!(
                (bad.seen().len(), near.seen().len(), origin.seen().len()),
                (tries, 3, 0),
                "{fault:?}"
            );
            let only = open(&origin, vec![mirror(&bad)]);
            assert_eq!(read(&only, &of).await, raw[10..]);
            assert_eq!(origin.seen().len(), 1, "{fault:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_breaks_or_stops_is_read_elsewhere_the_next_time() {
    bounded(async {
        let raw = bytes(LEN);
        let of = digest(&raw);
        let (origin, near) = (honest(raw.clone()).await, honest(raw.clone()).await);
        let body = raw.clone();
        let broken = FaultServer::start(move |seen: &Seen| Reply::blob(seen, &body).reset(1000)).await;
        let repository = open(&origin, vec![mirror(&broken), mirror(&near)]);
        let mut stream = repository.read(&of, LEN as u64, 10..LEN as u64).await.unwrap();
        drain(&mut stream).await.unwrap_err();
        assert_eq!(read(&repository, &of).await, raw[10..]);
        assert_eq!((broken.seen().len(), near.seen().len()), (1, 1));

        let body = raw.clone();
        let silent = FaultServer::start(move |seen: &Seen| Reply::blob(seen, &body).silent(1000)).await;
        let repository = open(&origin, vec![mirror(&silent)]);
        let mut stream = repository.read(&of, LEN as u64, 10..LEN as u64).await.unwrap();
        // Whoever reads has a limit of its own.
        let waited = tokio::time::timeout(Duration::from_millis(1100), drain(&mut stream)).await;
        assert!(waited.is_err());
        drop(stream);
        assert_eq!(read(&repository, &of).await, raw[10..]);
        assert_eq!((silent.seen().len(), origin.seen().len()), (1, 1));
    })
    .await;
}

#[tokio::test]
async fn a_mirror_that_served_wrong_bytes_is_asked_no_more() {
    bounded(async {
        let (raw, other) = (bytes(LEN), bytes(LEN + 4)[4..].to_vec());
        let of = digest(&raw);
        let (origin, wrong) = (honest(raw.clone()).await, honest(other.clone()).await);
        let repository = open(&origin, vec![mirror(&wrong)]);
        assert_eq!(repository.manifest(&of).await.unwrap(), raw);
        assert_eq!(read(&repository, &of).await, raw[10..]);
        assert_eq!((wrong.seen().len(), origin.seen().len()), (1, 2));

        // Of a range only the reader finds out.
        let repository = open(&origin, vec![mirror(&wrong)]);
        let mut stream = repository.read(&of, LEN as u64, 10..LEN as u64).await.unwrap();
        assert_eq!(drain(&mut stream).await.unwrap(), other[10..]);
        assert!(stream.served().was_wrong());
        assert_eq!(read(&repository, &of).await, raw[10..]);
        let mut stream = repository.read(&of, LEN as u64, 10..LEN as u64).await.unwrap();
        assert!(
            drain(&mut stream).await.is_ok() && !stream.served().was_wrong(),
            "the registry is no mirror"
        );

        let repository = open(&origin, vec![mirror(&wrong)]);
        assert_eq!(read(&repository, &of).await, other[10..]);
        repository.distrust_mirrors();
        assert_eq!(read(&repository, &of).await, raw[10..]);
    })
    .await;
}

#[tokio::test]
async fn nobody_is_shown_the_credentials_of_another() {
    bounded(async {
        let raw = bytes(LEN);
        let guarded = |raw: Vec<u8>| {
            FaultServer::start(move |seen: &Seen| match seen.header("authorization") {
                Some(_) => Reply::blob(seen, &raw),
                None => Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\""),
            })
        };
        let (origin, own, foreign) =
            (guarded(raw.clone()).await, guarded(raw.clone()).await, guarded(raw.clone()).await);
        let basic = |name: &str| Credentials::Basic { username: name.into(), password: "secret".into() };
        let mut with_own = mirror(&own);
        with_own.access.credentials = basic("mirror");
        let mirrors = vec![mirror(&foreign), with_own];
        let access = Access { plain_http: true, credentials: basic("me"), mirrors, ..Access::default() };
        let repository = open_with(&origin.host(), access);
        assert_eq!(read(&repository, &digest(&raw)).await, raw[10..]);
        assert!(foreign.seen().iter().all(|seen| seen.header("authorization").is_none()));
        let shown: Vec<_> =
            own.seen().iter().filter_map(|seen| seen.header("authorization").map(str::to_owned)).collect();
        assert_eq!(shown, ["Basic bWlycm9yOnNlY3JldA=="], "mirror:secret");
        assert_eq!(origin.seen().len(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_mirror_is_asked_for_what_it_serves_and_nothing_is_written_to_it() {
    bounded(async {
        let raw = bytes(LEN);
        let (origin, near) = (honest(raw.clone()).await, honest(raw.clone()).await);
        let digests = Mirror { serves: Serves::Digests, ..mirror(&near) };
        let repository = open(&origin, vec![digests]);
        repository.resolve(Some("v1"), None).await.unwrap();
        assert_eq!((near.seen().len(), origin.seen().len()), (0, 1));
        repository.manifest(&digest(&raw)).await.unwrap();
        assert_eq!((near.seen().len(), origin.seen().len()), (1, 1));
        let tags = Mirror { serves: Serves::Tags, ..mirror(&near) };
        let repository = open(&origin, vec![tags]);
        repository.resolve(Some("v1"), None).await.unwrap();
        repository.manifest(&digest(&raw)).await.unwrap();
        assert_eq!((near.seen().len(), origin.seen().len()), (2, 2));
        // What is written, and what is asked before that.
        assert!(repository.has_blob(&digest(&raw), LEN as u64).await.unwrap());
        let _ = repository.push_manifest(&raw, "application/json", Some("v2")).await;
        assert_eq!(near.seen().len(), 2);
    })
    .await;
}
