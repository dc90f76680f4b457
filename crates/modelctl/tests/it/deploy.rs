//! `deploy/`: every command line and every setting there is one that this program knows.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::{Scratch, said, skip};

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

const EXAMPLES: [&str; 2] = ["examples/vllm-init.yaml", "examples/triton-sidecar.yaml"];

/// The Python that has the types of Kubernetes' API; `None`, and says why, where there is none.
fn kubernetes() -> Option<std::path::PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")))?;
    let python = cache.join("modelcast/kubernetes/bin/python");
    if !python.exists() {
        skip("the schemas of Kubernetes' API are not here: scripts/setup installs them");
        return None;
    }
    Some(python)
}

fn path_of(rel: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(rel).display().to_string()
}

#[test]
fn kubernetes_takes_the_examples() {
    let Some(python) = kubernetes() else { return };
    // Since the first of these containers of this kind are known by default.
    for version in ["1.29.0", "1.37.0"] {
        let paths = EXAMPLES.map(path_of);
        let args = ["-m", "kubernetes_validate", "-k", version, "--strict"];
        let output = Command::new(&python).args(args).args(paths).output().unwrap();
        let said = said(&output);
        assert!(
            output.status.success() && said.matches(" passed for resource pod/chat").count() == 2,
            "{said}"
        );
    }
}

#[test]
fn the_examples_start_commands_that_exist_and_say_what_a_sidecar_understands() {
    let Some(python) = kubernetes() else { return };
    let script = "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    for example in EXAMPLES {
        let output = Command::new(&python).args(["-c", script, &path_of(example)]).output().unwrap();
        let documents: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let scratch = Scratch::new();
        if let Some(config) = documents[0]["data"]["sidecar.toml"].as_str() {
            scratch.write("sidecar.toml", config);
        }
        let pod = documents.last().unwrap();
        let container = &pod["spec"]["initContainers"][0];
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true);
        let args = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap());
        let args: Vec<_> = args.map(|arg| arg.replace("/etc/modelctl/", "")).collect();
        // The last thing that is looked at before anything is done.
        let args: Vec<_> = args.iter().map(String::as_str).chain(["--poll", "0"]).collect();
        let said = scratch.run(&args);
        assert!(
            said.contains("error: `--poll 0` would ask the registry without a pause"),
            "{example}: {said}"
        );
    }
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
