//! What a fuzzer has been fed, fed to the same check on every run of the tests. `scripts/fuzz` looks for more.

use std::{fs, path::Path};

#[path = "../../../../fuzz/checks/archive.rs"]
mod checks;

#[test]
fn corpus_of_archives() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/archive");
    let mut inputs: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(!inputs.is_empty());
    for input in inputs {
        // Said only if the check panics.
        println!("{}", input.display());
        checks::archive(&fs::read(&input).unwrap());
    }
}
