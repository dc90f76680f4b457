//! `modelctl doctor`: its form, because its facts are the machine's.

use crate::support::Scratch;

#[test]
fn every_fact_has_a_name_and_rdma_is_not_promised() {
    let text = Scratch::new().stdout(&["doctor"]);
    for name in
        ["modelctl", "kernel", "cpus", "rdma", "memlock", "directory", "filesystem", "landing", "peer"]
    {
        assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "no {name} in:\n{text}");
    }
    assert!(text.contains("this build moves bytes over TCP"), "{text}");
}

#[test]
fn a_tmpfs_and_a_directory_to_come_are_described() {
    let scratch = Scratch::new();
    let report = scratch.json(&["doctor", "/dev/shm/a/directory/to/come"]);
    assert_eq!(report["destination"]["filesystem"], "tmpfs");
    assert_eq!(report["destination"]["landing"], "staged");
    assert!(report["destination"]["rdma_landing"].as_str().unwrap().starts_with("direct: "));
    assert!(report["destination"]["free_bytes"].as_u64().unwrap() > 0);
    assert!(!std::path::Path::new("/dev/shm/a").exists(), "doctor changes nothing");
    assert_eq!(report["rdma"]["built_in"], false);
}
