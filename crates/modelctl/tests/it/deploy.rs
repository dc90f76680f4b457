//! `deploy/`: every command line and every setting there is one that this program knows.

use std::{fs, path::Path, process::Command};

use crate::support::{Scratch, said};

/// What the program takes from its environment besides the settings of its commands.
const OTHER_SETTINGS: [&str; 1] = ["MODELCTL_LOG"];

fn read(rel: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(rel);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rest of the only line that begins so.
fn line<'a>(text: &'a str, beginning: &str) -> &'a str {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(beginning));
    let line = lines.next().unwrap_or_else(|| panic!("no line begins with `{beginning}`"));
    assert_eq!(lines.next(), None, "one line begins with `{beginning}`");
    line
}

/// `NAME=VALUE` of all lines, also of those that are only proposed.
fn settings(text: &str) -> Vec<(&str, &str)> {
    let lines = text.lines().map(|line| line.trim_start_matches('#'));
    lines.filter(|line| line.starts_with("MODELCTL_")).filter_map(|line| line.split_once('=')).collect()
}

/// Runs a command with these settings and a key that is missing, which has to be all that is wrong: the key is read
/// only once the whole command line was understood.
fn assert_understood(args: &[&str], settings: &[(&str, &str)]) {
    let scratch = Scratch::new();
    // In words, as lines may end between any two.
    let help = scratch.stdout(&[args[0], "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
    for (name, _) in settings.iter().filter(|(name, _)| !OTHER_SETTINGS.contains(name)) {
        assert!(help.contains(&format!("[env: {name}]")), "`modelctl {}` does not know {name}", args[0]);
    }
    let mut command = scratch.modelctl(args);
    command.env("MODELCTL_FLEET_KEY", "absent").envs(settings.iter().copied());
    let said = said(&command.output().unwrap());
    assert!(said.contains("error: cannot read the fleet key `absent"), "{args:?} {settings:?}\n{said}");
}

#[test]
fn units_start_commands_that_exist() {
    for role in ["peer", "scheduler"] {
        let unit = read(&format!("systemd/modelctl-{role}.service"));
        let command = line(&unit, "ExecStart=/usr/bin/modelctl ").replace("%d/", "absent/");
        let args: Vec<&str> = command.split(' ').collect();
        assert_eq!(args[0], role);
        let env = read(&format!("systemd/{role}.env"));
        assert_eq!(line(&unit, "EnvironmentFile="), format!("/etc/modelctl/{role}.env"));
        assert!(settings(&env).len() > 2, "{env}");
        assert_understood(&args, &settings(&env));
    }
}

/// systemd cannot look into the arguments of openat2(2), and takes the whole call away with this setting. The store
/// opens its files by it.
#[test]
fn the_peers_unit_leaves_it_the_call_that_its_store_needs() {
    let unit = read("systemd/modelctl-peer.service");
    assert!(!unit.lines().any(|line| line.starts_with("RestrictSUIDSGID=")), "{unit}");
}

#[test]
fn the_container_starts_a_command_that_exists() {
    let file = read("Containerfile");
    assert_eq!(line(&file, "ENTRYPOINT "), r#"["/usr/bin/modelctl"]"#);
    let args: Vec<&str> = serde_json::from_str(line(&file, "CMD ")).unwrap();
    let env = line(&file, "ENV ").split(' ').collect::<Vec<_>>().join("\n");
    assert_eq!(settings(&env).len(), 2, "{env}");
    assert_understood(&args, &settings(&env));
}

#[test]
fn systemd_takes_the_units() {
    let scratch = Scratch::new();
    for role in ["peer", "scheduler"] {
        let name = format!("modelctl-{role}.service");
        // It wants to see the program that a unit starts.
        scratch.write(
            &name,
            read(&format!("systemd/{name}")).replace("/usr/bin/modelctl", env!("CARGO_BIN_EXE_modelctl")),
        );
        let verified = Command::new("systemd-analyze").arg("verify").arg(scratch.path(&name)).output();
        let Ok(verified) = verified else {
            eprintln!("skipped: there is no systemd-analyze here");
            return;
        };
        let said = said(&verified);
        // Other units of this machine may be wrong.
        let is_ours = |line: &&str| line.contains(&name);
        assert_eq!(said.lines().filter(is_ours).collect::<Vec<_>>(), Vec::<&str>::new(), "{said}");
    }
}
