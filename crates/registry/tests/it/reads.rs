//! Ranged reads: what makes the client ask again, what it streams, and what ends a stream.

use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use registry::{BlobStream, Class, Patience, RegistryError};

use crate::{
    bounded, bytes, digest,
    fault_server::{FaultServer, Reply, Seen},
    open, patience,
};

const RANGE: Range<u64> = 1000..5000;

fn slice(blob: &[u8]) -> &[u8] {
    &blob[1000..5000]
}

/// All that a stream yields, and how it ended.
async fn drain(stream: &mut BlobStream) -> (Vec<u8>, Result<(), RegistryError>) {
    let mut all = Vec::new();
    loop {
        match stream.next().await {
            Ok(Some(chunk)) => all.extend_from_slice(&chunk),
            Ok(None) => return (all, Ok(())),
            Err(error) => return (all, Err(error)),
        }
    }
}

/// Answers the first requests with `faults` and then honestly; returns how many requests a read of `RANGE` took.
async fn requests_until_good(
    faults: impl Fn(&Seen, &[u8], usize) -> Option<Reply> + Send + Sync + 'static,
) -> usize {
    let blob = bytes(10_000);
    let copy = blob.clone();
    let count = AtomicUsize::new(0);
    let server = FaultServer::start(move |seen| {
        let index = count.fetch_add(1, Ordering::Relaxed);
        faults(seen, &copy, index).unwrap_or_else(|| Reply::blob(seen, &copy))
    })
    .await;
    bounded(async {
        let mut stream = open(&server.host()).read(&digest(&blob), 10_000, RANGE).await.unwrap();
        assert_eq!((stream.start(), stream.is_whole()), (1000, false));
        let (all, end) = drain(&mut stream).await;
        end.unwrap();
        assert_eq!(all, slice(&blob));
    })
    .await;
    server.seen().len()
}

/// Whether a head like `reply` is asked again instead of believed.
async fn check_head(reply: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static) {
    let requests = requests_until_good(move |seen, blob, index| (index < 2).then(|| reply(seen, blob))).await;
    assert_eq!(requests, 3);
}

#[tokio::test]
async fn asks_again_after_wrong_content_ranges() {
    let wrong =
        ["bytes 1001-5000/10000", "bytes 1000-4998/10000", "bytes 1000-4999/10001", "bytes 1000-4999/*", ""];
    for stated in wrong {
        check_head(move |seen, blob| Reply::blob(seen, blob).header("Content-Range", stated)).await;
    }
}

#[tokio::test]
async fn asks_again_after_wrong_lengths_and_encodings() {
    check_head(|seen, blob| Reply::blob(seen, blob).short(4000).header("Content-Length", "3999")).await;
    check_head(|_, blob| Reply::body(200, &blob[1..])).await;
    check_head(|seen, blob| Reply::blob(seen, blob).header("Content-Encoding", "gzip")).await;
}

#[tokio::test]
async fn asks_again_after_statuses_that_pass() {
    for status in [408, 416, 429, 500, 502, 503, 504] {
        check_head(move |_, _| Reply::status(status)).await;
    }
}

#[tokio::test]
async fn asks_again_after_connections_that_broke() {
    check_head(|_, _| Reply::hang_up()).await;
    let error = bounded(open("127.0.0.1:1").read(&digest(b""), 10_000, RANGE)).await.unwrap_err();
    assert_eq!((error.class(), error.hint()), (Class::Retry, None));
}

#[tokio::test]
async fn gives_up_in_the_end() {
    let server = FaultServer::replay([Reply::status(503)]).await;
    let error = bounded(open(&server.host()).read(&digest(b""), 10_000, RANGE)).await.unwrap_err();
    assert_eq!((error.class(), server.seen().len()), (Class::Retry, 6));
    let text = error.to_string();
    assert!(
        text.contains("503") && text.contains(&server.host()) && text.contains("blob `sha256:"),
        "{text}"
    );
}

#[tokio::test]
async fn does_not_insist_on_what_is_refused() {
    for (status, class) in [(403, Class::Unauthorized), (404, Class::NotFound), (451, Class::Fatal)] {
        let body = "{\"errors\":[{\"code\":\"OH\",\"message\":\"no \\u001b[2J thanks\"}]}";
        let server = FaultServer::replay([Reply::body(status, body)]).await;
        let error = bounded(open(&server.host()).read(&digest(b""), 10_000, RANGE)).await.unwrap_err();
        assert_eq!((error.class(), server.seen().len()), (class, 1));
        assert!(error.to_string().ends_with("OH: no  [2J thanks"), "{error}");
    }
}

#[tokio::test]
async fn waits_as_long_as_it_is_asked_to() {
    let blob = bytes(10_000);
    let good = Reply::body(206, slice(&blob)).header("Content-Range", "bytes 1000-4999/10000");
    let server = FaultServer::replay([Reply::status(429).header("Retry-After", "3600"), good]).await;
    // Shorter than an hour, longer than the pauses of the back-off.
    let limit = Duration::from_millis(300);
    let repository = open(&server.host()).with_patience(Patience { retry_after_max: limit, ..patience() });
    let asked = std::time::Instant::now();
    bounded(repository.read(&digest(&blob), 10_000, RANGE)).await.unwrap();
    assert!(asked.elapsed() >= limit);
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn takes_a_whole_blob_where_ranges_are_ignored() {
    let blob = bytes(10_000);
    let server = FaultServer::replay([Reply::body(200, blob.clone())]).await;
    bounded(async {
        let mut stream = open(&server.host()).read(&digest(&blob), 10_000, RANGE).await.unwrap();
        assert_eq!((stream.start(), stream.is_whole()), (0, true));
        let (all, end) = drain(&mut stream).await;
        end.unwrap();
        assert_eq!(all, blob);
    })
    .await;
}

/// Reads `RANGE` from a server that sends `reply`'s head and a body that is not as it says.
async fn check_body(reply: impl Fn(&Seen, &[u8]) -> Reply + Send + Sync + 'static, good_bytes: usize) {
    let blob = bytes(10_000);
    let copy = blob.clone();
    let server = FaultServer::start(move |seen| reply(seen, &copy)).await;
    let limit = Duration::from_millis(300);
    let repository = open(&server.host()).with_patience(Patience { silence_max: limit, ..patience() });
    bounded(async {
        let mut stream = repository.read(&digest(&blob), 10_000, RANGE).await.unwrap();
        let (all, end) = drain(&mut stream).await;
        assert_eq!(end.unwrap_err().class(), Class::Retry);
        assert!(all.len() >= good_bytes && all.len() <= 4000, "{} bytes", all.len());
        assert_eq!(all, slice(&blob)[..all.len()]);
    })
    .await;
}

#[tokio::test]
async fn ends_a_stream_with_an_error_where_the_body_is_wrong() {
    check_body(|seen, blob| Reply::blob(seen, blob).short(3000), 3000).await;
    check_body(|seen, blob| Reply::blob(seen, blob).silent(3000), 3000).await;
    check_body(|seen, blob| Reply::blob(seen, blob).reset(3000), 0).await;
    // Without a stated length: too short, too long, without end.
    let head = |bytes: &[u8]| Reply::body(206, bytes).header("Content-Range", "bytes 1000-4999/10000");
    check_body(move |_, blob| head(&blob[1000..4999]).unframed(), 3999).await;
    check_body(move |_, blob| head(&blob[1000..5001]).unframed(), 0).await;
    check_body(move |_, blob| head(&blob[1000..5000]).endless(), 0).await;
}

#[tokio::test]
async fn asks_nothing_for_an_empty_range() {
    let repository = open("localhost:1");
    let mut stream = repository.read(&digest(b""), 0, 0..0).await.unwrap();
    assert!(stream.next().await.unwrap().is_none());
}

#[tokio::test]
async fn follows_redirects_with_the_range_and_remembers_where_to() {
    let blob = bytes(10_000);
    let copy = blob.clone();
    let storage = FaultServer::start(move |seen| Reply::blob(seen, &copy)).await;
    let target = format!("http://{}/bucket/x?signature=hunter2", storage.host());
    let registry = FaultServer::replay([Reply::body(307, "moved").header("Location", &target)]).await;
    let repository = open(&registry.host());
    bounded(async {
        for _ in 0..3 {
            let mut stream = repository.read(&digest(&blob), 10_000, RANGE).await.unwrap();
            assert!(!format!("{stream:?} {repository:?}").contains("hunter2"));
            assert_eq!(drain(&mut stream).await.0, slice(&blob));
        }
    })
    .await;
    assert_eq!((registry.seen().len(), storage.seen().len()), (1, 3), "asked once, remembered");
    assert!(storage.seen().iter().all(|seen| seen.range() == Some(1000..5000)));
}

#[tokio::test]
async fn goes_back_to_the_registry_when_a_signed_url_has_expired() {
    let blob = bytes(10_000);
    let (copy, reads) = (blob.clone(), AtomicUsize::new(0));
    // The first URL is good for two reads and then shows a page, the second for ever, any other for none.
    let storage = FaultServer::start(move |seen| match seen.path.as_str() {
        "/first" if reads.fetch_add(1, Ordering::Relaxed) < 2 => Reply::blob(seen, &copy),
        "/first" => Reply::body(200, "<html>expired</html>"),
        "/second" => Reply::blob(seen, &copy),
        _ => Reply::body(403, "<Error>expired</Error>"),
    })
    .await;
    let to = |path: &str| Reply::status(307).header("Location", &format!("http://{}{path}", storage.host()));
    let registry = FaultServer::replay([to("/first"), to("/other"), to("/second")]).await;
    let repository = open(&registry.host());
    bounded(async {
        for _ in 0..4 {
            repository.read(&digest(&blob), 10_000, RANGE).await.unwrap();
        }
    })
    .await;
    assert_eq!((registry.seen().len(), storage.seen().len()), (3, 6));

    let registry = FaultServer::replay([to("/never?signature=hunter2")]).await;
    let error = bounded(open(&registry.host()).read(&digest(&blob), 10_000, RANGE)).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    assert!(error.to_string().contains(&storage.host()), "{error}");
}

#[tokio::test]
async fn refuses_redirects_in_a_circle_or_away_from_http() {
    for target in ["/v2/models/one/blobs/again", "file:///etc/passwd"] {
        let server = FaultServer::replay([Reply::status(307).header("Location", target)]).await;
        let error = bounded(open(&server.host()).read(&digest(b""), 10_000, RANGE)).await.unwrap_err();
        assert!(matches!(error, RegistryError::Redirect { .. }), "{error}");
        assert!(server.seen().len() <= 6);
    }
}

#[tokio::test]
async fn hints_at_plain_http() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent something other than HTTP\n";
        tokio::io::AsyncWriteExt::write_all(&mut stream, answer).await.unwrap();
        // Kept open until the client hangs up.
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.unwrap_or_default();
    });
    let repository = crate::open_with(&host, registry::Access::default());
    let error = bounded(repository.resolve(Some("v1"), None)).await.unwrap_err();
    assert_eq!(error.class(), Class::Fatal, "{error:?}");
    assert!(error.hint().unwrap().contains("--plain-http"));
}
