//! Two ends of a connection, each with the key that it has.

mod voucher;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    time::{Duration, SystemTime},
};

use identity::{FleetKey, Identity, KeyError, VALID_FOR, VALID_SINCE, explain};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Connects both ends and lets the server say a word; the errors of client and server.
async fn talk(client: &Identity, server: &Identity) -> (std::io::Result<Vec<u8>>, std::io::Result<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serve = async {
        let (socket, _) = listener.accept().await?;
        let mut stream = server.accept(socket).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await
    };
    let ask = async {
        let mut stream = client.connect(TcpStream::connect(address).await?).await?;
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await?;
        Ok(said)
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(ask, serve) }).await.expect("in time")
}

fn key(seed: u8) -> FleetKey {
    FleetKey::new([seed; 32])
}

fn identity(seed: u8) -> Identity {
    Identity::new(&key(seed)).expect("an identity")
}

#[tokio::test]
async fn holders_of_one_key_trust_each_other() {
    let (said, served) = talk(&identity(1), &identity(1)).await;
    assert_eq!(said.expect("trusted"), b"hello");
    served.expect("trusted");
}

#[tokio::test]
async fn holders_of_two_keys_do_not() {
    let (said, served) = talk(&identity(1), &identity(2)).await;
    let (said, served) = (said.expect_err("another key"), served.expect_err("another key"));
    assert_eq!(explain(&said), Some("the other side has another fleet key"), "{said}");
    assert_eq!(explain(&served), Some("the other side has another fleet key"), "{served}");
}

#[tokio::test]
async fn clocks_may_differ_by_a_day_and_certificates_expire() {
    let now = SystemTime::now();
    let at = |time| Identity::issued_at(&key(1), time).expect("an identity");
    let ahead = at(now + VALID_SINCE - Duration::from_mins(5));
    assert_eq!(talk(&identity(1), &ahead).await.0.expect("within a day"), b"hello");
    let (said, _) = talk(&identity(1), &at(now + VALID_SINCE + Duration::from_mins(5))).await;
    let said = said.expect_err("not valid yet");
    assert_eq!(
        explain(&said),
        Some("a certificate is not valid yet: compare the clocks of both machines"),
        "{said}"
    );
    let (said, _) = talk(&identity(1), &at(now - VALID_FOR - Duration::from_mins(5))).await;
    let said = said.expect_err("expired");
    assert!(explain(&said).is_some_and(|why| why.contains("expired")), "{said}");
}

#[tokio::test]
async fn whoever_speaks_plainly_is_told_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let member = identity(1);
    let plain = async {
        let (mut socket, _) = listener.accept().await.expect("a connection");
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.expect("written");
    };
    let ask = async { member.connect(TcpStream::connect(address).await.expect("connected")).await };
    let (error, ()) =
        tokio::time::timeout(PATIENCE, async { tokio::join!(ask, plain) }).await.expect("in time");
    let error = error.expect_err("no TLS");
    assert_eq!(explain(&error), Some("the other side does not speak TLS: it has no fleet key"), "{error}");
}

#[test]
fn a_key_file_is_whole_and_secret() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("fleet.key");
    let missing = FleetKey::load(&path).expect_err("missing");
    assert!(missing.hint().is_some_and(|hint| hint.contains("modelctl fleet-key new")));
    let key = FleetKey::generate().expect("random bytes");
    key.save_new(&path).expect("written");
    assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(FleetKey::load(&path).expect("read"), key);
    assert!(matches!(key.save_new(&path), Err(KeyError::Io { .. })), "never overwritten");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("changed");
    assert!(matches!(FleetKey::load(&path), Err(KeyError::Readable { mode: 0o644, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("changed");
    FleetKey::load(&path).expect("a group may hold it");
    fs::write(&path, [1; 33]).expect("written");
    assert!(matches!(FleetKey::load(&path), Err(KeyError::Length { .. })));
    assert_ne!(key.fleet_name(), FleetKey::generate().expect("random bytes").fleet_name());
    assert_eq!(format!("{key:?}"), "FleetKey(…)");
}
