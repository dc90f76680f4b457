//! The checked-in code under `src/gen` is what the protos generate.

use std::{collections::BTreeMap, fs, path::Path};

const PROTOS: [&str; 2] = ["modelcast/v1/control.proto", "modelcast/v1/local.proto"];

/// Generates into a directory and returns the files by name.
fn generate() -> BTreeMap<String, Vec<u8>> {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto");
    let descriptors = protox::compile(PROTOS, [proto]).expect("the protos are well formed");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .btree_map(".")
        // Passwords and keys must not reach a log by way of `{:?}`.
        .skip_debug([
            "modelcast.local.v1.Pull",
            "modelcast.local.v1.Mirror",
            "modelcast.v1.TcpEndpoint",
            "modelcast.v1.RdmaProbe",
            "modelcast.v1.WindowGrant",
        ])
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("the descriptors generate");
    read_all(out.path())
}

fn read_all(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| {
            let entry = entry.expect("readable");
            let name = entry.file_name().into_string().expect("an ASCII name");
            (name, fs::read(entry.path()).expect("readable"))
        })
        .collect()
}

#[test]
fn generated_code_is_what_the_protos_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/gen");
    let fresh = generate();
    assert_eq!(fresh.len(), 2, "one file a package: {:?}", fresh.keys());
    if std::env::var_os("UPDATE").is_some() {
        for (name, bytes) in &fresh {
            fs::write(dir.join(name), bytes).expect("src/gen is writable");
        }
    }
    let checked_in = read_all(&dir);
    assert!(
        checked_in == fresh,
        "src/gen differs from the protos; run `UPDATE=1 cargo test -p wire --test it generated`"
    );
}
