//! `scripts/rdma-accept` with programs that are made up: its arguments, its failures, its report. Not what it measures.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// `ssh`, which runs the line here, or fails; `scp`, which copies; the programs that are built.
const SSH: &str = r#"#!/bin/sh
while [ "$1" = -o ]; do shift 2; done
[ "$1" != dead ] || exit 255
shift
sh -c "$*"
"#;
const SCP: &str = r#"#!/bin/sh
for last; do :; done
while [ $# -gt 1 ]; do case $1 in -q) ;; -o) shift ;; *) cp "$1" "${last#*:}" ;; esac; shift; done
"#;
const MODELCTL: &str = "#!/bin/sh\necho \"doctor says: $*\"\n";
const BENCH: &str = r#"#!/bin/sh
case $1 in
    link-serve) echo '{"address":"0.0.0.0:4242"}' && cat >/dev/null && touch ended ;;
    *) [ ! -e ended ] || exit 1; echo "$*" >&2 && echo '{"rows":[{"name":"rdma","bytes_per_s":12000000000.0}]}' ;;
esac
"#;
const SUITE: &str = "#!/bin/sh\necho \"on $MODELCAST_RDMA_DEVICE: $*\"\n";
const READ_BW: &str = r"#!/bin/sh
for last; do :; done
case $last in 18777) exit 0 ;; esac
printf ' #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]\n'
printf ' 1048576    1000           12000.00            11500.00              0.0115\n'
";

struct Stage(tempfile::TempDir);

impl Stage {
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for (name, text) in [("ssh", SSH), ("scp", SCP), ("ib_read_bw", READ_BW)] {
            stage.program("path", name, text);
        }
        for (name, text) in [
            ("modelctl", MODELCTL),
            ("bench", BENCH),
            ("verbs-tests", SUITE),
            ("transport-rdma-tests", SUITE),
        ] {
            stage.program("built", name, text);
        }
        stage
    }

    fn path(&self, rel: &str) -> PathBuf {
        self.0.path().join(rel)
    }

    fn program(&self, dir: &str, name: &str, text: &str) {
        fs::create_dir_all(self.path(dir)).unwrap();
        let path = self.path(dir).join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn run(&self, args: &[&str]) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/rdma-accept");
        let path = format!("{}:{}", self.path("path").display(), std::env::var("PATH").unwrap());
        Command::new("timeout")
            .args(["60", "bash"])
            .arg(script)
            .args(args)
            .env("PATH", path)
            .env_remove("MODELCAST_RDMA_DEVICE")
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn refused(&self, args: &[&str], message: &str, hint: &str) {
        let output = self.run(args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("error: {message}")) && said.contains(hint), "{said}");
    }
}

#[test]
fn what_is_wrong_is_said_before_anything_is_built() {
    let stage = Stage::new();
    stage.refused(&[], "which host?", "hint: usage: scripts/rdma-accept HOST");
    stage.refused(&["a", "b"], "two hosts: `a` and `b`", "usage");
    stage.refused(&["a", "--size"], "`--size` lacks its value", "usage");
    stage.refused(&["a", "--speed", "9"], "unknown argument `--speed`", "usage");
    stage.refused(&["a", "--runs", "0"], "`--runs 0` is no number", "usage");
    stage.refused(&["dead"], "`ssh dead` does not work", "ssh-copy-id dead");
    let built = stage.path("built");
    let built = built.to_str().unwrap();
    fs::remove_file(stage.path("built/verbs-tests")).unwrap();
    let args = ["other", "--device", "a0", "--there", "b0", "--built", built];
    stage.refused(&args, "there is no program `verbs-tests`", "leave out `--built`");
}

#[test]
fn everything_is_tried_and_the_report_is_what_to_send_back() {
    let stage = Stage::new();
    let built = stage.path("built");
    let built = built.to_str().unwrap();
    let args = ["me@other", "--device", "a0", "--there", "b0", "--built", built, "--address", "10.0.0.2"];
    let output = stage.run(&args);
    let said = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}{err}");
    assert!(said.contains("Please send back the file rdma-accept-other.txt"), "{said}");
    let report = fs::read_to_string(stage.path("rdma-accept-other.txt")).unwrap();
    for words in [
        "reads from me@other (b0)",
        "doctor says: doctor . /dev/shm",
        "on a0: --ignored --test-threads=1",
        "link --transport rdma --from 10.0.0.2:4242 --device a0 --size 1GiB --runs 5 --json --check off",
        "link, checked, staged on tmpfs     12000 MB/s",
        "ib_read_bw                         12059 MB/s",
    ] {
        assert!(report.contains(words), "no `{words}` in:\n{report}\n{err}");
    }
    assert!(!report.contains("FAILED"), "{report}");
}

#[test]
fn what_fails_is_named_and_the_rest_is_tried() {
    let stage = Stage::new();
    stage.program("built", "verbs-tests", "#!/bin/sh\necho 'wrong_rkey failed'\nexit 101\n");
    stage.program("built", "bench", "#!/bin/sh\necho 'error: no such device' >&2\nexit 1\n");
    let built = stage.path("built");
    let args = ["other", "--device", "a0", "--there", "b0", "--built", built.to_str().unwrap()];
    let output = stage.run(&args);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("FAILED: verbs on a0 (exit code 101)"), "{said}");
    assert!(said.contains("FAILED: the sender on other did not start: error: no such device"), "{said}");
    assert!(said.contains("ib_read_bw                         12059 MB/s"), "{said}");
    assert!(said.contains("Please send back the file"), "{said}");
}
