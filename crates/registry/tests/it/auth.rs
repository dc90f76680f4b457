//! Who is told the credentials, how often a token is asked for, and what a refusal looks like.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use registry::{Access, Class, Credentials, RegistryError, Repository};

use crate::{
    bounded, bytes, digest,
    fault_server::{FaultServer, Reply, Seen},
    open, open_with,
};

const SECRET: &str = "hunter2";
/// `me:hunter2` in base64.
const BASIC: &str = "Basic bWU6aHVudGVyMg==";

fn logged_in(host: &str) -> Repository {
    let credentials = Credentials::Basic { username: "me".to_owned(), password: SECRET.to_owned() };
    open_with(host, Access { plain_http: true, credentials, ..Access::default() })
}

/// A token server that hands out `token-1`, `token-2`, … which live for `expires_in`.
async fn token_server(expires_in: u64) -> FaultServer {
    let count = Mutex::new(0);
    FaultServer::start(move |_| {
        let mut count = count.lock().unwrap();
        *count += 1;
        Reply::body(200, format!(r#"{{"token":"token-{count}","expires_in":{expires_in}}}"#))
    })
    .await
}

/// A registry that serves `blob` to whoever `is_welcome` says, and sends all others to `tokens`.
async fn token_registry(
    tokens: &FaultServer,
    blob: &[u8],
    is_welcome: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> FaultServer {
    let blob = blob.to_owned();
    let scope = r#"service="here",scope="repository:models/one:pull""#;
    let challenge = format!(r#"Bearer realm="http://{}/token",{scope}"#, tokens.host());
    FaultServer::start(move |seen| match seen.header("authorization") {
        Some(token) if is_welcome(token) => Reply::blob(seen, &blob),
        _ => Reply::status(401).header("WWW-Authenticate", &challenge),
    })
    .await
}

async fn read_all(repository: &Repository, blob: &[u8]) {
    let size = blob.len() as u64;
    let mut stream = repository.read(&digest(blob), size, 0..size).await.unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = stream.next().await.unwrap() {
        all.extend_from_slice(&chunk);
    }
    assert_eq!(all, blob);
}

#[tokio::test]
async fn asks_for_one_token_and_keeps_it() {
    let blob = bytes(1000);
    let tokens = token_server(300).await;
    let registry = token_registry(&tokens, &blob, |token| token == "Bearer token-1").await;
    let repository = logged_in(&registry.host());
    bounded(async {
        read_all(&repository, &blob).await;
        tokio::join!(read_all(&repository, &blob), read_all(&repository, &blob));
    })
    .await;
    let seen = tokens.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].path, "/token?service=here&scope=repository%3Amodels%2Fone%3Apull");
    assert_eq!(seen[0].header("authorization"), Some(BASIC));
    assert_eq!(registry.seen().len(), 4, "one refusal, three reads");
    assert!(!format!("{repository:?}").contains(SECRET));
}

#[tokio::test]
async fn renews_a_token_that_expires_or_is_refused() {
    let blob = bytes(1000);
    let tokens = token_server(0).await;
    let registry = token_registry(&tokens, &blob, |token| token.starts_with("Bearer token-")).await;
    let repository = open(&registry.host());
    bounded(async {
        read_all(&repository, &blob).await;
        read_all(&repository, &blob).await;
    })
    .await;
    assert_eq!((tokens.seen().len(), registry.seen().len()), (2, 3), "renewed before it is used again");
    assert!(tokens.seen().iter().all(|seen| seen.header("authorization").is_none()), "anonymous");

    let tokens = token_server(300).await;
    let reads = AtomicUsize::new(0);
    // The first token is good for two reads, whatever its server said.
    let registry = token_registry(&tokens, &blob, move |token| match token {
        "Bearer token-1" => reads.fetch_add(1, Ordering::Relaxed) < 2,
        token => token == "Bearer token-2",
    })
    .await;
    let repository = open(&registry.host());
    bounded(async {
        for _ in 0..4 {
            read_all(&repository, &blob).await;
        }
    })
    .await;
    assert_eq!((tokens.seen().len(), registry.seen().len()), (2, 6));
}

#[tokio::test]
async fn survives_a_token_server_that_stumbles() {
    let blob = bytes(1000);
    let good = Reply::body(200, r#"{"access_token":"token-1"}"#);
    let tokens =
        FaultServer::replay([Reply::status(503), Reply::hang_up(), Reply::body(200, "{}"), good]).await;
    let registry = token_registry(&tokens, &blob, |token| token == "Bearer token-1").await;
    bounded(read_all(&open(&registry.host()), &blob)).await;
}

#[tokio::test]
async fn shows_credentials_to_nobody_else() {
    let blob = bytes(1000);
    let served = blob.clone();
    // Storage even asks for them.
    let challenge = r#"Basic realm="more""#;
    let storage = FaultServer::start(move |seen| match seen.path.as_str() {
        "/public" => Reply::blob(seen, &served),
        _ => Reply::status(401).header("WWW-Authenticate", challenge),
    })
    .await;
    for (path, is_served) in [("public", true), ("greedy", false)] {
        let target = format!("http://{}/{path}", storage.host());
        let registry = FaultServer::start(move |seen: &Seen| match seen.header("authorization") {
            Some(BASIC) => Reply::status(302).header("Location", &target),
            _ => Reply::status(401).header("WWW-Authenticate", challenge),
        })
        .await;
        let stream = bounded(logged_in(&registry.host()).read(&digest(&blob), 1000, 0..1000)).await;
        assert_eq!(stream.is_ok(), is_served);
        assert!(registry.seen().iter().any(|seen| seen.header("authorization") == Some(BASIC)));
    }
    assert!(storage.seen().len() >= 2);
    assert!(storage.seen().iter().all(|seen| seen.header("authorization").is_none()));
}

#[tokio::test]
async fn says_when_credentials_are_wrong_or_missing() {
    for challenge in [r#"Basic realm="here""#, "Nonsense"] {
        let registry = FaultServer::replay([Reply::status(401).header("WWW-Authenticate", challenge)]).await;
        for repository in [open(&registry.host()), logged_in(&registry.host())] {
            let error = bounded(repository.resolve(Some("v1"), None)).await.unwrap_err();
            assert_eq!(error.class(), Class::Unauthorized);
            assert!(error.hint().unwrap().contains("login"));
            assert!(!format!("{error} {error:?}").contains(SECRET));
        }
        assert!(registry.seen().len() <= 3);
    }
    let tokens = FaultServer::replay([Reply::status(403)]).await;
    let registry = token_registry(&tokens, b"", |_| false).await;
    let error = bounded(logged_in(&registry.host()).resolve(Some("v1"), None)).await.unwrap_err();
    assert_eq!((error.class(), tokens.seen().len()), (Class::Unauthorized, 1));
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post_and_never_sent_to_the_registry() {
    let blob = bytes(1000);
    let tokens = token_server(300).await;
    let registry = token_registry(&tokens, &blob, |token| token == "Bearer token-1").await;
    let credentials = Credentials::Identity { token: "se/cr+et".to_owned() };
    let access = Access { plain_http: true, credentials, ..Access::default() };
    bounded(read_all(&open_with(&registry.host(), access), &blob)).await;
    let asked = &tokens.seen()[0];
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    assert_eq!(asked.header("content-type"), Some("application/x-www-form-urlencoded"));
    let form = String::from_utf8(asked.body.clone()).unwrap();
    let expected = "grant_type=refresh_token&client_id=modelctl&refresh_token=se%2Fcr%2Bet&service=here\
        &scope=repository%3Amodels%2Fone%3Apull";
    assert_eq!(form, expected);
    for seen in registry.seen() {
        assert!(!seen.path.contains("se") || !format!("{seen:?}").contains("cr+et"), "{seen:?}");
    }
}

#[tokio::test]
async fn a_login_is_tried_before_it_is_kept() {
    let with = |password: &str| {
        let credentials = Credentials::Basic { username: "me".to_owned(), password: password.to_owned() };
        Access { plain_http: true, credentials, ..Access::default() }
    };
    let registry = FaultServer::start(|seen| match seen.header("authorization") {
        Some(BASIC) => Reply::status(200),
        _ => Reply::status(401).header("WWW-Authenticate", r#"Basic realm="here""#),
    })
    .await;
    assert!(bounded(registry::check_login(&registry.host(), with(SECRET))).await.unwrap());
    let error = bounded(registry::check_login(&registry.host(), with("wrong"))).await.unwrap_err();
    assert_eq!(error.class(), Class::Unauthorized, "{error}");
    assert!(registry.seen().iter().all(|seen| seen.path == "/v2/"));

    let open = FaultServer::start(|_| Reply::status(200)).await;
    assert!(!bounded(registry::check_login(&open.host(), with(SECRET))).await.unwrap(), "it asked nobody");

    // A token server gets the question without any repository in it.
    let tokens = token_server(300).await;
    let challenge = format!(r#"Bearer realm="http://{}/token",service="here""#, tokens.host());
    let registry = FaultServer::start(move |seen| match seen.header("authorization") {
        Some("Bearer token-1") => Reply::status(200),
        _ => Reply::status(401).header("WWW-Authenticate", &challenge),
    })
    .await;
    assert!(bounded(registry::check_login(&registry.host(), with(SECRET))).await.unwrap());
    let asked = &tokens.seen()[0];
    assert_eq!((asked.path.as_str(), asked.header("authorization")), ("/token?service=here", Some(BASIC)));
}

#[tokio::test]
async fn what_somebody_else_proves_is_passed_on_and_challenges_come_back() {
    let blob = bytes(1000);
    let tokens = token_server(300).await;
    let registry = token_registry(&tokens, &blob, |token| token == "Bearer of-somebody").await;
    let base = logged_in(&registry.host());
    let asked = |authorization: Option<&str>| {
        let authorization = authorization.map(ToOwned::to_owned);
        base.sibling("models/one", Credentials::Forwarded { authorization }).unwrap()
    };
    bounded(async {
        read_all(&asked(Some("Bearer of-somebody")), &blob).await;
        for authorization in [None, Some("Bearer of-nobody")] {
            let error = asked(authorization).blob_bytes(&digest(&blob)).await.unwrap_err();
            assert_eq!(error.class(), Class::Unauthorized);
            let RegistryError::Refused { refusal, .. } = error else { panic!("{error}") };
            let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.host());
            assert!(refusal.challenges[0].starts_with(&challenge), "{:?}", refusal.challenges);
        }
    })
    .await;
    assert_eq!(tokens.seen().len(), 0, "no challenge is met in somebody else's name");
    let shown = |seen: &Seen| seen.header("authorization").map(ToOwned::to_owned);
    let shown: Vec<_> = registry.seen().iter().map(shown).collect();
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(shown, [text("Bearer of-somebody"), None, text("Bearer of-nobody")], "nor are our own shown");
}
