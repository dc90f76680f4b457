//! Publishing to a real registry, and reading from it.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
};

use crate::support::{Registry, Scratch, assert_said, said};

#[test]
fn build_push_inspect_and_verify_against_a_registry() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let (v1, v2) = (registry.reference("models/small:v1"), registry.reference("models/small:v2"));
    let v1_json = registry.reference("other/small:v1");
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let lines: &[&[&str]] = &[
        &["build", "model", "-t", &v1, "--plain-http"],
        &["push", "oci:out:v1", &v2, "--plain-http"],
        &["push", "oci:out:v1", &v1_json, "--plain-http", "--json"],
        &["inspect", &v2, "--plain-http"],
        &["verify", &v2, "model", "--plain-http"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn build_and_push_leave_the_same_in_a_registry() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let built = scratch.json(&["build", "model", "-t", &registry.reference("built:v1"), "--plain-http"]);
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let pushed = scratch.json(&["push", "oci:out:v1", &registry.reference("pushed:v1"), "--plain-http"]);
    assert_eq!(built["digest"], pushed["digest"]);
    let manifest = registry.get("pushed/manifests/v1");
    assert_eq!(registry.get("built/manifests/v1"), manifest);
    let hex = built["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    assert_eq!(fs::read(scratch.path("out/blobs/sha256").join(hex)).unwrap(), manifest, "byte for byte");

    // This registry has no referrers API, so the piece trees are listed under the fallback tag.
    let index = registry.get(&format!("pushed/manifests/sha256-{hex}"));
    assert_eq!(registry.get(&format!("built/manifests/sha256-{hex}")), index);
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let trees = &index["manifests"][0];
    assert_eq!(trees["artifactType"], "application/vnd.modelcast.pieces.v1");
    let trees = registry.get(&format!("pushed/manifests/{}", trees["digest"].as_str().unwrap()));
    let trees: serde_json::Value = serde_json::from_slice(&trees).unwrap();
    let tree = registry.get(&format!("pushed/blobs/{}", trees["layers"][0]["digest"].as_str().unwrap()));
    assert_eq!(tree.len(), 64, "two pieces");
}

#[test]
fn the_second_push_sends_nothing() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("models/small:v1");
    scratch.stdout(&["build", "model", "-t", "oci:out:v1"]);
    let first = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(first["sent_bytes"], first["bytes"]);
    let second = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(second["sent_bytes"], 0);
}

#[test]
fn a_layout_that_was_damaged_is_not_published() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let built = scratch.json(&["build", "model", "-t", "oci:out:v1"]);
    assert_eq!(built["files"], 6);
    let weights = fs::read(scratch.path("model/model.safetensors")).unwrap();
    let digest = scratch.json(&["inspect", "oci:out:v1"])["files"][1]["sha256"].as_str().unwrap().to_owned();
    let mut damaged = weights;
    damaged[0] ^= 1;
    fs::write(scratch.path("out/blobs/sha256").join(digest), damaged).unwrap();
    let reference = registry.reference("models/small:v1");
    let failure = scratch.json(&["push", "oci:out:v1", &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 3, "{failure}");
    let failure = scratch.json(&["inspect", &reference, "--plain-http"]);
    assert_eq!(failure["exit_code"], 1, "no manifest was written: {failure}");
}

#[test]
fn registry_failures() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let absent = registry.reference("models/absent:v1");
    let lines: &[&[&str]] = &[
        &["inspect", &absent, "--plain-http"],
        &["inspect", &absent],
        &["build", "model", "-t", &absent],
        &["inspect", "127.0.0.1:1/models/small:v1", "--plain-http"],
    ];
    let said: Vec<_> =
        lines.iter().map(|args| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args))).collect();
    assert_said!(said.join("\n"));
}

#[test]
fn what_is_pushed_from_one_registry_to_another_brings_all_that_belongs_to_it() {
    let (scratch, here, there) = (Scratch::with_model(), Registry::start(), Registry::start());
    let (from, to) = (here.reference("models/small:v1"), there.reference("mirror/small:v1"));
    scratch.stdout(&["build", "model", "-t", &from, "--plain-http"]);
    let digest = here.digest("models/small", "v1");
    // A signature as cosign keeps it.
    let hex = digest.trim_start_matches("sha256:").to_owned();
    let config = here.config("models/small", "v1");
    let signature = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"a/b","digest":"{config}","size":{}}},"layers":[]}}"#,
        here.get(&format!("models/small/blobs/{config}")).len()
    );
    here.put_manifest("models/small", &format!("sha256-{hex}.sig"), &signature);

    assert_said!(scratch.run(&["push", &from, &to, "--plain-http"]));
    assert_eq!(there.digest("mirror/small", "v1"), digest);
    let index = |registry: &Registry, name: &str| registry.get(&format!("{name}/manifests/sha256-{hex}"));
    assert_eq!(index(&there, "mirror/small"), index(&here, "models/small"), "the piece trees");
    let copied = there.get(&format!("mirror/small/manifests/sha256-{hex}.sig"));
    assert_eq!(copied, signature.as_bytes());
    assert_eq!(scratch.json(&["push", &from, &to, "--plain-http"])["sent_bytes"], 0);
    scratch.stdout(&["pull", &to, "--plain-http", "-o", "pulled"]);
    scratch.assert_pulled("model", "pulled");

    // Within one registry nothing is sent: it takes the blobs over.
    let other = here.reference("other/small:v1");
    let sent = here.sent();
    assert_eq!(scratch.json(&["push", &from, &other, "--plain-http"])["sent_bytes"], 0);
    assert!(here.requests().iter().any(|request| request.contains("mount=")));
    assert!(here.sent() - sent < 10_000, "only small blobs were read");
}

#[test]
fn a_login_is_kept_and_forgotten() {
    let (scratch, registry) = (Scratch::with_model(), Registry::with_login());
    let reference = registry.reference("models/small:v1");
    let host = registry.address().to_owned();
    let login = |password: &str| {
        let args = ["login", &host, "-u", "me", "--password-stdin", "--plain-http"];
        let mut child = scratch
            .modelctl(&args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(password.as_bytes()).unwrap();
        format!("$ modelctl {}\n{}", args.join(" "), said(&child.wait_with_output().unwrap()))
    };
    let run = |args: &[&str]| format!("$ modelctl {}\n{}", args.join(" "), scratch.run(args));
    let dir = scratch.path("").display().to_string();
    let said = [
        run(&["build", "model", "-t", &reference, "--plain-http"]),
        login("wrong\n"),
        run(&["login", &host]),
        login("secret\n"),
        run(&["build", "model", "-t", &reference, "--plain-http"]),
        run(&["logout", &host]),
        run(&["logout", &host]),
    ]
    .join("\n");
    assert!(!said.contains("secret"));
    assert_said!(said.replace(&dir, "[DIR]/"));
    assert_eq!(scratch.json(&["inspect", &reference, "--plain-http"])["exit_code"], 1, "logged out");
}

#[test]
fn credentials_come_from_helpers_and_podmans_file_and_open_files_are_told() {
    use std::os::unix::fs::PermissionsExt as _;
    let (scratch, registry) = (Scratch::with_model(), Registry::with_login());
    let reference = registry.reference("models/small:v1");
    let host = registry.address();
    let build = |command: &mut std::process::Command| said(&command.output().unwrap());
    let args = ["build", "model", "-t", &reference, "--plain-http"];

    let helper = "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread -r url\n\
        echo \"{\\\"ServerURL\\\":\\\"$url\\\",\\\"Username\\\":\\\"me\\\",\\\"Secret\\\":\\\"secret\\\"}\"\n";
    scratch.write("bin/docker-credential-test", helper);
    let path = scratch.path("bin/docker-credential-test");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    scratch.write(".docker/config.json", format!(r#"{{"credHelpers":{{"{host}":"test"}}}}"#));
    let search = format!("{}:{}", scratch.path("bin").display(), std::env::var("PATH").unwrap());
    let with_helper = build(scratch.modelctl(&args).env("PATH", &search));
    assert!(with_helper.starts_with("exit code: 0"), "{with_helper}");
    let without = build(&mut scratch.modelctl(&args));
    assert!(without.starts_with("exit code: 1") && without.contains("docker-credential-test"), "{without}");

    scratch.write(
        "run/containers/auth.json",
        format!(r#"{{"auths":{{"{host}/models":{{"auth":"bWU6c2VjcmV0"}}}}}}"#),
    );
    fs::remove_file(scratch.path(".docker/config.json")).unwrap();
    let with_podman = build(scratch.modelctl(&args).env("XDG_RUNTIME_DIR", scratch.path("run")));
    assert!(with_podman.starts_with("exit code: 0"), "{with_podman}");
    assert!(with_podman.contains("chmod 600"), "everybody can read it: {with_podman}");
    fs::set_permissions(scratch.path("run/containers/auth.json"), fs::Permissions::from_mode(0o600)).unwrap();
    let named =
        build(scratch.modelctl(&args).env("REGISTRY_AUTH_FILE", scratch.path("run/containers/auth.json")));
    assert!(named.starts_with("exit code: 0") && !named.contains("chmod"), "{named}");
}

/// A proxy that leads everything to one address; says what it was asked for.
fn proxy(to: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = Arc::clone(&asked);
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let (to, seen) = (to.clone(), Arc::clone(&seen));
            thread::spawn(move || lead(client, &to, &seen));
        }
    });
    (address, asked)
}

fn lead(mut client: TcpStream, to: &str, seen: &Mutex<Vec<String>>) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && client.read(&mut byte).is_ok_and(|count| count == 1) {
        head.push(byte[0]);
    }
    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    let is_tunnel = line.starts_with("CONNECT ");
    seen.lock().unwrap().push(line);
    let mut server = TcpStream::connect(to).unwrap();
    if is_tunnel {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    } else {
        server.write_all(&head).unwrap();
    }
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(std::net::Shutdown::Write);
    });
    let _ = std::io::copy(&mut server, &mut client);
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn proxies_are_used_as_the_environment_says() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let (address, asked) = proxy(registry.address().to_owned());
    let url = format!("http://{address}");
    let reference = "registry.test:5000/models/small:v1";
    let build = |variables: &[(&str, &str)]| {
        let mut command = scratch.modelctl(&["build", "model", "-t", reference, "--plain-http"]);
        for name in [
            "HTTP_PROXY",
            "http_proxy",
            "HTTPS_PROXY",
            "https_proxy",
            "ALL_PROXY",
            "all_proxy",
            "NO_PROXY",
            "no_proxy",
        ] {
            command.env_remove(name);
        }
        said(&command.envs(variables.iter().copied()).output().unwrap())
    };
    let through = build(&[("HTTP_PROXY", &url)]);
    assert!(through.starts_with("exit code: 0"), "{through}");
    let lines = asked.lock().unwrap().clone();
    assert!(
        lines.iter().any(|line| line.contains("http://registry.test:5000/v2/models/small/")),
        "{lines:?}"
    );
    registry.digest("models/small", "v1");
    asked.lock().unwrap().clear();
    let around = build(&[("HTTP_PROXY", &url), ("NO_PROXY", "registry.test")]);
    assert!(around.starts_with("exit code: 1"), "nobody else knows that name: {around}");
    assert!(asked.lock().unwrap().is_empty());

    // Over TLS the proxy only sees where a connection goes.
    let own = rcgen::generate_simple_self_signed(["registry.test".to_owned()]).unwrap();
    let secure = Registry::with_tls(&own.cert.pem(), &own.signing_key.serialize_pem());
    let (address, asked) = proxy(secure.address().to_owned());
    scratch.write("ca.pem", own.cert.pem());
    let mut command = scratch.modelctl(&["build", "model", "-t", reference, "--ca-cert", "ca.pem"]);
    command.env_remove("NO_PROXY").env_remove("no_proxy").env("HTTPS_PROXY", format!("http://{address}"));
    let through = said(&command.output().unwrap());
    assert!(through.starts_with("exit code: 0"), "{through}");
    let lines = asked.lock().unwrap().clone();
    assert!(lines.iter().all(|line| line.starts_with("CONNECT registry.test:5000 ")), "{lines:?}");

    // An administrator's certificates are found without a flag.
    scratch.write("config/containers/certs.d/registry.test:5000/ca.crt", own.cert.pem());
    let mut command = scratch.modelctl(&["inspect", reference]);
    command.env("HTTPS_PROXY", format!("http://{address}")).env("XDG_CONFIG_HOME", scratch.path("config"));
    let found = said(&command.env_remove("NO_PROXY").env_remove("no_proxy").output().unwrap());
    assert!(found.starts_with("exit code: 0"), "{found}");
}
