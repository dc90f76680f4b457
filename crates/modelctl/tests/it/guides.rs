//! `docs/guides`: what a newcomer types there, typed, and what is said to that.
//!
//! Blocks of `console` hold commands after `$ `, more lines of one after `> `, and what it says. A command that ends with
//! `&` runs until the end. `…` stands for anything within a line, and alone on one for any number of lines.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use crate::{
    running::{Running, Signal},
    support::{Registry, Scratch},
    triton::{self, free_port},
};

/// How long one command of a guide may take, in seconds.
const COMMAND_SECONDS_MAX: &str = "120";

/// Where the guides say that things are, and where they are in a test.
struct Places(Vec<(&'static str, String)>);

impl Places {
    fn here(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (there, here)| text.replace(there, here))
    }

    fn there(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (there, here)| text.replace(here.as_str(), there))
    }
}

struct Step {
    command: String,
    expected: Vec<String>,
}

fn steps(guide: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_console = false;
    for line in guide.lines() {
        if line.starts_with("```") {
            is_console = line == "```console";
        } else if !is_console {
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), expected: Vec::new() });
        } else if let Some(more) = line.strip_prefix('>') {
            let step = steps.last_mut().expect("a command begins with `$ `");
            step.command.extend(["\n", more.strip_prefix(' ').unwrap_or(more)]);
        } else {
            steps.last_mut().expect("a block begins with a command").expected.push(line.to_owned());
        }
    }
    steps
}

/// Whether a line is what was expected, with `…` for anything.
fn is_like(expected: &str, found: &str) -> bool {
    let mut parts = expected.split('…');
    let Some(mut rest) = found.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let Some(last) = expected.contains('…').then(|| parts.next_back().unwrap_or_default()) else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn are_like(expected: &[String], found: &[&str]) -> bool {
    match (expected, found) {
        ([], []) => true,
        ([any, rest @ ..], _) if any == "…" => (0..=found.len()).any(|at| are_like(rest, &found[at..])),
        ([one, rest @ ..], [line, lines @ ..]) => is_like(one, line) && are_like(rest, lines),
        _ => false,
    }
}

/// Types what a guide says, and says when, for who wants to know how long a newcomer needs (`--no-capture`).
fn play(guide: &str, scratch: &Scratch, registry: &Registry) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guides").join(guide);
    let ports = [free_port(), free_port()];
    let places = Places(vec![
        ("registry.example.org", registry.address().to_owned()),
        ("127.0.0.1:7300", format!("127.0.0.1:{}", ports[0])),
        ("127.0.0.1:8000", format!("127.0.0.1:{}", ports[1])),
        ("--http-port=8000", format!("--http-port={}", ports[1])),
    ]);
    fs::create_dir_all(scratch.path("bin")).unwrap();
    let _ = symlink(env!("CARGO_BIN_EXE_modelctl"), scratch.path("bin/modelctl"));
    let bin = scratch.path("bin").display().to_string();
    // With nobody's settings but these.
    let bash = |command: &str| {
        let mut bash = scratch.modelctl(&[]);
        let path = std::env::var("PATH").unwrap();
        let mut typed = Command::new("timeout");
        typed.args([COMMAND_SECONDS_MAX, "bash", "-c", command]).current_dir(scratch.path("."));
        typed.envs(bash.get_envs().filter_map(|(name, value)| Some((name, value?))));
        bash.env_clear();
        typed
            .env("PATH", format!("{bin}:{path}"))
            .env("MODELCTL_PLAIN_HTTP", "1")
            .env("MODELCTL_PEER", "none");
        typed.env("MODELCTL_HTTP_LISTEN", format!("127.0.0.1:{}", ports[0])).stdin(Stdio::null());
        typed
    };
    let (mut beside, began) = (Vec::new(), Instant::now());
    let steps = steps(&fs::read_to_string(path).unwrap());
    assert!(steps.len() > 3, "{guide} has commands");
    for Step { command, expected } in steps {
        let here = places.here(&command);
        eprintln!(
            "{:6.2} s  $ {}",
            began.elapsed().as_secs_f64(),
            command.lines().next().unwrap_or_default()
        );
        if let Some(command) = here.strip_suffix(" &") {
            beside.push(Running::start(bash(&format!("exec {command}"))));
            continue;
        }
        let output = bash(&format!("exec 2>&1\n{here}")).output().unwrap();
        let found = places.there(&String::from_utf8(output.stdout).unwrap());
        let lines: Vec<&str> = found.lines().collect();
        assert!(
            are_like(&expected, &lines),
            "{guide}: $ {command}\nsays\n{found}\nand not\n{}",
            expected.join("\n")
        );
    }
    eprintln!("{:6.2} s  the end of {guide}", began.elapsed().as_secs_f64());
    // `timeout` passes it on; killed, it would leave its command alone.
    for process in beside.into_iter().rev() {
        process.signal(Signal::TERM);
        process.end();
    }
}

#[test]
fn guides_say_what_happens() {
    let (scratch, registry) = (Scratch::with_model(), Registry::start());
    scratch.stdout(&["build", "model", "-t", &registry.reference("models/chat:v1"), "--plain-http"]);
    scratch.write("bin/vllm", "#!/bin/sh\necho \"serving $2\"\n");
    fs::set_permissions(scratch.path("bin/vllm"), fs::Permissions::from_mode(0o755)).unwrap();
    play("next-to-vllm.md", &scratch, &registry);
}

#[test]
fn the_guide_to_triton_says_what_happens() {
    let (scratch, registry) = (Scratch::new(), Registry::start());
    let Some(program) = triton::program_or_skip() else { return };
    fs::create_dir_all(scratch.path("bin")).unwrap();
    symlink(program, scratch.path("bin/tritonserver")).unwrap();
    play("next-to-triton.md", &scratch, &registry);
}

#[test]
fn lines_are_compared_around_what_differs() {
    for (expected, found, is_so) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("a … c", "a b c", true),
        ("a…", "abc", true),
        ("…c", "abc", true),
        ("a…b…c", "a1b2c", true),
        ("a…b…c", "a1c2b", false),
    ] {
        assert_eq!(is_like(expected, found), is_so, "{expected} {found}");
    }
    let expected = ["a".to_owned(), "…".to_owned(), "z".to_owned()];
    assert!(are_like(&expected, &["a", "b", "c", "z"]) && !are_like(&expected, &["a", "b"]));
}
