//! What the guides to mirrors say happens, played line by line. `…` stands for what differs from day to day.

use std::{fs, path::Path, process::Command};

use tokio::runtime::Runtime;

use crate::{
    fault_server::FaultServer,
    hub_model::HubModel,
    running::Running,
    support::{Registry, Scratch, safetensors, said, skip},
};

const CONFIG: &str = "{\"model_type\":\"bert\"}\n";

/// Where the guides have a registry, which listens elsewhere in a test.
const REGISTRY: &str = "registry.example.org:5000";
/// Where they have a hub.
const HUB: &str = "http://hub.example.org";
/// What stands before a part of a guide that is played.
const MARK: &str = "<!-- replayed by crates/modelctl/tests/it/mirror_guides.rs -->\n```console\n";

/// Plays the parts of a guide, each in a directory of its own with a model, which is in the registry under `name` and on the
/// hub as `org/small`. `face` is where the guide has the mirror.
fn play(guide: &str, name: &str, face: &str) {
    let runtime = Runtime::new().unwrap();
    let model = HubModel::new().with("config.json", CONFIG).with_lfs("model.safetensors", safetensors());
    let hub = runtime.block_on(FaultServer::start(move |seen| model.reply(seen)));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides").join(guide);
    let text = fs::read_to_string(path).unwrap();
    let parts: Vec<_> = text.split(MARK).skip(1).map(|part| part.split_once("```").unwrap().0).collect();
    assert!(!parts.is_empty(), "{guide} has a part to play");
    for part in parts {
        play_part((guide, part), name, (face, &format!("http://{}", hub.host())));
    }
}

fn play_part((guide, played): (&str, &str), name: &str, (face, hub): (&str, &str)) {
    let (scratch, registry) = (Scratch::new(), Registry::start());
    scratch.write("model/config.json", CONFIG);
    scratch.write("model/model.safetensors", safetensors());
    scratch.stdout(&["build", "model", "-t", &registry.reference(name), "--plain-http"]);
    let mut peer = None;
    let mut address = String::from("127.0.0.1:0");
    for step in played.split("$ ").skip(1) {
        let (line, expected) = step.split_once('\n').unwrap();
        let line_here = line.replace(REGISTRY, registry.address()).replace(HUB, hub).replace(face, &address);
        let found = if let Some(line) = line_here.strip_suffix(" &") {
            let mut running = Running::start(shell(&scratch, &format!("exec {line}")));
            let ready = running.text();
            peer = Some(running);
            ready.rsplit_once("http://").expect("where the mirror is").1.clone_into(&mut address);
            format!("{ready}\n")
        } else {
            let output = shell(&scratch, &line_here).output().unwrap();
            assert!(output.status.success(), "{guide}: $ {line}\n{}", said(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        let found = found.replace(registry.address(), REGISTRY).replace(&address, face);
        assert!(is_like(&found, expected), "{guide}: $ {line}\nexpected:\n{expected}\nfound:\n{found}");
    }
    drop(peer);
}

/// A shell for which `modelctl` is the one that is tested.
fn shell(scratch: &Scratch, line: &str) -> Command {
    let program = Path::new(env!("CARGO_BIN_EXE_modelctl"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    // For its environment.
    let settings = scratch.modelctl(&[]);
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(scratch.path("")).env("NO_PROXY", "*");
    for (name, value) in settings.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("PATH", path);
    command
}

/// Whether a text is what is expected, `…` being anything within a line.
fn is_like(found: &str, expected: &str) -> bool {
    let is_line = |(found, expected): (&str, &str)| {
        let mut rest = Some(found);
        for (number, part) in expected.split('…').enumerate() {
            rest = match number {
                0 => rest.and_then(|rest| rest.strip_prefix(part)),
                _ => rest.and_then(|rest| rest.find(part).map(|at| &rest[at + part.len()..])),
            };
        }
        rest.is_some_and(|rest| rest.is_empty() || expected.ends_with('…'))
    };
    found.lines().count() == expected.lines().count() && found.lines().zip(expected.lines()).all(is_line)
}

#[test]
fn the_guide_to_registry_mirrors_says_what_happens() {
    play("registry-mirror.md", "models/minilm:v1", "127.0.0.1:5050");
}

#[test]
fn the_guide_to_hub_mirrors_says_what_happens() {
    if !Command::new("python3")
        .args(["-c", "import huggingface_hub"])
        .output()
        .is_ok_and(|output| output.status.success())
    {
        return skip("no huggingface_hub here, which scripts/setup installs");
    }
    play("hub-mirror.md", "hub/org/minilm:main", "127.0.0.1:8090");
}
