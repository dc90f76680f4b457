//! `modelctl run`: a process that pulls, and then is the command.

use std::fs;

use crate::{
    running::{Running, Signal},
    support::{Registry, Scratch, assert_said, said, until},
};

/// A registry with the small model of a scratch directory.
fn published() -> (Scratch, Registry, String) {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    let reference = registry.reference("models/m:v1");
    scratch.stdout(&["build", "model", "-t", &reference, "--plain-http"]);
    (scratch, registry, reference)
}

#[test]
fn the_command_gets_the_directory_and_its_exit_code_is_the_commands() {
    let (scratch, registry, reference) = published();
    let script = r#"echo "says $1"; ls "$2"; exit 7"#;
    let args = [
        "run",
        &reference,
        "--plain-http",
        "--peer",
        "none",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "--dir={}",
        "{}",
    ];
    let first = scratch.modelctl(&args).output().unwrap();
    assert_eq!(first.status.code(), Some(7), "{}", said(&first));
    let digest = registry.digest("models/m", "v1").replace(':', "-");
    // The home directory is the scratch directory.
    let dir = scratch.path(&format!(".cache/modelctl/models/{digest}"));
    let expected = format!(
        "says --dir={}\nREADME.md\nconfig.json\nempty.txt\nmodel.safetensors\ntools\n",
        dir.display()
    );
    assert_eq!(String::from_utf8(first.stdout).unwrap(), expected);
    scratch.assert_pulled("model", dir.to_str().unwrap());
    let sent = registry.sent();
    let second = scratch.modelctl(&args).output().unwrap();
    assert_eq!(second.status.code(), Some(7));
    assert!(said(&second).contains("all proved before"), "{}", said(&second));
    assert_eq!(registry.sent(), sent, "a second run reads no blob");
    // A named directory is one like any other.
    let args =
        ["run", &reference, "--plain-http", "--peer", "none", "-o", "named", "--", "cat", "{}/config.json"];
    assert_eq!(scratch.stdout(&args).as_bytes(), fs::read(scratch.path("model/config.json")).unwrap());
    scratch.assert_pulled("model", "named");
}

#[test]
fn what_was_not_used_for_longest_goes_unless_a_command_uses_it() {
    let (scratch, registry, _) = published();
    let versions: Vec<_> = (0..3)
        .map(|number| {
            scratch.write_model("next");
            scratch.write("next/config.json", format!(r#"{{"model_type":"bert","number":{number}}}"#));
            let tag = format!("models/m:n{number}");
            scratch.stdout(&["build", "next", "-t", &registry.reference(&tag), "--plain-http"]);
            let digest = registry.digest("models/m", &format!("n{number}")).replace(':', "-");
            (registry.reference(&tag), scratch.path(&format!(".cache/modelctl/models/{digest}")))
        })
        .collect();
    let run = |reference: &str, keep: &str, command: &[&str]| {
        let start = ["run", reference, "--plain-http", "--peer", "none", "--keep", keep, "--"];
        scratch.modelctl(&[&start[..], command].concat())
    };
    let (first, second, third) = (&versions[0], &versions[1], &versions[2]);
    // A child of the command uses it as well.
    let script = "(echo started >\"$0.started\"; while [ ! -e \"$0.stop\" ]; do sleep 0.02; done) & wait";
    let user = Running::start(run(&first.0, "0", &["sh", "-c", script, "{}"]));
    let started = first.1.with_extension("started");
    until("the command has started", || started.exists());
    assert!(run(&second.0, "0", &["ls", "{}"]).output().unwrap().status.success());
    assert!(first.1.exists() && second.1.exists(), "the first is in use");
    let output = run(&third.0, "0", &["ls", "{}"]).output().unwrap();
    assert!(said(&output).contains("which was not used for longest"), "{}", said(&output));
    assert!(first.1.exists() && !second.1.exists() && third.1.exists());
    fs::write(first.1.with_extension("stop"), "").unwrap();
    assert!(user.end().status.success());
    assert!(run(&second.0, "1", &["ls", "{}"]).output().unwrap().status.success());
    assert!(!first.1.exists() && second.1.exists() && third.1.exists(), "the one that was used before stays");
    let left = fs::read_dir(first.1.parent().unwrap()).unwrap();
    let locks =
        left.flatten().filter(|entry| entry.path().extension().is_some_and(|ending| ending == "lock"));
    assert_eq!(locks.count(), 2, "nothing is left of those that went");
}

#[test]
fn signals_are_the_commands() {
    let (scratch, _registry, reference) = published();
    let script = "trap 'exit 9' TERM; echo started >\"$1.started\"; while :; do sleep 0.02; done";
    let args = [
        "run",
        &reference,
        "--plain-http",
        "--peer",
        "none",
        "-o",
        "named",
        "--",
        "sh",
        "-c",
        script,
        "sh",
        "{}",
    ];
    let running = Running::start(scratch.modelctl(&args));
    until("the command has started", || scratch.path("named.started").exists());
    running.signal(Signal::TERM);
    assert_eq!(running.end().status.code(), Some(9));
}

#[test]
fn what_makes_no_sense_is_said_before_anything_moves() {
    let (scratch, registry, reference) = published();
    let lines: [&[&str]; 4] = [
        &["--", "sh", "-c", "ls"],
        &["--", "no-such-program", "{}"],
        &["--", "./model/config.json", "{}"],
        &[],
    ];
    let said: Vec<_> = lines
        .iter()
        .map(|line| {
            let said = scratch.run(&[&["run", &reference, "--plain-http", "--peer", "none"], *line].concat());
            format!("$ modelctl run REF {}\n{said}", line.join(" "))
        })
        .collect();
    assert_said!(said.join("\n"));
    assert_eq!(registry.sent(), 0);
}

#[test]
fn where_no_home_is_known_a_directory_has_to_be_named() {
    let (scratch, _registry, reference) = published();
    let args = ["run", &reference, "--plain-http", "--peer", "none", "--", "ls", "{}"];
    let output = scratch.modelctl(&args).env_remove("HOME").env_remove("XDG_CACHE_HOME").output().unwrap();
    assert_said!(said(&output));
}
