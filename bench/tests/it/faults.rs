//! Faults that cannot be played are refused before anything is made.

use std::process::Command;

#[track_caller]
fn check_refused(flags: &str, why: &str) {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_bench"));
    let output = bench
        .args(["broadcast", "--peers", "4"])
        .args(flags.split_whitespace())
        .output()
        .expect("bench runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{flags}: {stderr}");
    assert!(stderr.contains(why), "{flags}: {stderr}");
    assert!(output.stdout.is_empty(), "{flags}");
}

#[test]
fn faults_that_cannot_be_played_are_wrong_usage() {
    check_refused("--kill p1@50% --system chain", "--kill cannot be used with `--system chain`");
    check_refused(
        "--join p1@50% --system modelctl --system aria2",
        "--join cannot be used with `--system aria2`",
    );
    check_refused("--corrupt p1 --double /nonexistent/double", "--double");
    check_refused("--slow p5@0.5", "there are 4 peers");
    check_refused("--slow 100%@0.5", "somebody has to be well");
    check_refused("--slow p1@0.1 --kill p1@50%", "p1 is already hit");
    check_refused("--oversubscription 3", "--racks");
}
