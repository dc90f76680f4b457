//! What is read from files and helpers, and what is left of a file that was changed.

use std::os::unix::fs::PermissionsExt as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::*;

fn basic(username: &str, password: &str) -> Credentials {
    Credentials::Basic { username: username.into(), password: password.into() }
}

fn files(config: &str) -> (tempfile::TempDir, CredentialFiles) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    fs::write(&path, config).unwrap();
    (dir, CredentialFiles { named: Some(path) })
}

fn check(config: &str, registry: &str, expect: &Credentials) {
    let (_dir, files) = files(config);
    assert_eq!(files.find(registry, "team/model").unwrap(), *expect, "{config}");
}

#[test]
fn reads_what_docker_login_writes() {
    let auth = STANDARD.encode("me:pass:word");
    let nobody = Credentials::Anonymous;
    check(&format!(r#"{{"auths":{{"r.io":{{"auth":"{auth}"}}}}}}"#), "r.io", &basic("me", "pass:word"));
    check(&format!(r#"{{"auths":{{"r.io":{{"auth":"{auth}"}}}}}}"#), "other.io", &nobody);
    check(r#"{"auths":{"r.io:5000":{"username":"u","password":"p"}}}"#, "r.io:5000", &basic("u", "p"));
    check(r#"{"auths":{"https://r.io":{"username":"u","password":"p"}}}"#, "r.io", &basic("u", "p"));
    let hub = r#"{"auths":{"https://index.docker.io/v1/":{"username":"u","password":"p"}}}"#;
    check(hub, "docker.io", &basic("u", "p"));
    let token = Credentials::Identity { token: "t".into() };
    check(r#"{"auths":{"r.io":{"auth":"","identitytoken":"t"}}}"#, "r.io", &token);
    check("{}", "r.io", &nobody);
    check("", "r.io", &nobody);
}

#[test]
fn the_longest_part_of_a_name_counts_as_podman_has_it() {
    let config = r#"{"auths":{"r.io":{"username":"all","password":"p"},"r.io/team":{"username":"team","password":"p"},
        "r.io/team/model":{"username":"one","password":"p"},"r.io/te":{"username":"no","password":"p"}}}"#;
    let (_dir, files) = files(config);
    let of = |repository: &str| files.find("r.io", repository).unwrap();
    assert_eq!(of("team/model"), basic("one", "p"));
    assert_eq!(of("team/other"), basic("team", "p"));
    assert_eq!(of("tea"), basic("all", "p"));
}

#[test]
fn a_helper_that_is_not_installed_has_nothing() {
    check(r#"{"auths":{"r.io":{}},"credsStore":"no-such-helper"}"#, "r.io", &Credentials::Anonymous);
    let config =
        r#"{"auths":{"r.io":{"username":"u","password":"p"}},"credHelpers":{"r.io":"no-such-helper"}}"#;
    check(config, "r.io", &Credentials::Anonymous);
    let (_dir, files) = files(r#"{"credHelpers":{"r.io":"../../bin/sh"}}"#);
    files.find("r.io", "x").unwrap_err();
}

#[test]
fn never_shows_a_secret() {
    let (dir, files) = files(r#"{"auths":{"r.io":{"auth":hunter2}}}"#);
    let error = files.find("r.io", "x").unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"));
    let absent = CredentialFiles { named: Some(dir.path().join("absent")) };
    assert_eq!(absent.find("r.io", "x").unwrap(), Credentials::Anonymous, "no file, no login");
    for credentials in [basic("me", "hunter2"), Credentials::Identity { token: "hunter2".into() }] {
        let access =
            crate::Access { credentials, client_pem: Some(b"hunter2".to_vec()), ..Default::default() };
        assert!(!format!("{access:?}").contains("hunter2"));
    }
}

#[test]
fn a_login_is_kept_for_its_owner_only_and_nothing_else_is_lost() {
    let (dir, files) = files(r#"{"detachKeys":"ctrl-x","auths":{"other.io":{"auth":"b3RoZXI6eA=="}}}"#);
    let path = files.for_login().unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    store_credentials(&path, "r.io", &basic("me", "secret")).unwrap();
    assert_eq!(files.find("r.io", "x").unwrap(), basic("me", "secret"));
    assert_eq!(files.find("other.io", "x").unwrap(), basic("other", "x"));
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    store_credentials(&path, "r.io", &basic("me", "other")).unwrap();
    assert_eq!(files.find("r.io", "x").unwrap(), basic("me", "other"));
    assert!(forget_credentials(&path, "r.io").unwrap());
    assert!(!forget_credentials(&path, "r.io").unwrap(), "a second time there is nothing");
    assert_eq!(files.find("r.io", "x").unwrap(), Credentials::Anonymous);
    let left: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let expected =
        serde_json::json!({"detachKeys": "ctrl-x", "auths": {"other.io": {"auth": "b3RoZXI6eA=="}}});
    assert_eq!(left, expected);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");

    let new = dir.path().join("new/dir/auth.json");
    store_credentials(&new, "docker.io", &basic("me", "secret")).unwrap();
    assert_eq!(CredentialFiles { named: Some(new) }.find("docker.io", "x").unwrap(), basic("me", "secret"));
}
