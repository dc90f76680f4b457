//! What fuzzers have been fed, fed to the same checks on every run of the tests. `scripts/fuzz` looks for more.

use std::{fs, path::Path};

#[path = "../../../fuzz/checks/format.rs"]
mod checks;

#[expect(clippy::print_stdout, reason = "shown only if the check panics")]
fn replay(target: &str, check: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for input in inputs {
        // Said only if the check panics.
        println!("{}", input.display());
        check(&fs::read(&input).unwrap());
    }
}

#[test]
fn corpora_of_the_format() {
    replay("manifest", checks::manifest);
    replay("config", checks::config);
    replay("modelfile", checks::modelfile);
    replay("annotations", checks::annotations);
    replay("safetensors", checks::safetensors);
    replay("reference", checks::reference);
}
