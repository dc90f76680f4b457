//! A store by hand: what is in it, names, pins, removing, pruning.

use std::fs;

use ::store::{NoReaders, Store, StoreError};

use crate::collect::Model;

const NAME: &str = "registry.example.org/models/x:v1";

#[test]
fn an_inventory_counts_what_is_shared_once_and_is_read_beside_a_peer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second) = (Model::of(&[0, 3]), Model::of(&[0, 2]));
    first.pull(&store, &NoReaders).unwrap();
    second.pull(&store, &NoReaders).unwrap();
    store.name(&first.digest(), NAME).unwrap();
    // The store is open: looking needs no lock.
    let inventory = Store::look(dir.path()).unwrap();
    let one = inventory.artifacts.iter().find(|one| one.digest == first.digest()).unwrap();
    assert_eq!(one.names, [NAME]);
    assert!(!one.is_pinned);
    assert_eq!(one.manifest.as_ref().unwrap().files().len(), 2);
    assert!(one.bytes >= 9_000 && one.own_bytes >= 8_000 && one.own_bytes + 1_000 == one.bytes, "{one:?}");
    let total: u64 = inventory.artifacts.iter().map(|one| one.own_bytes).sum();
    assert_eq!(inventory.bytes, total + 1_000, "what both have counts once");
    assert_eq!(inventory.leftover_bytes, 0);
    assert_eq!(inventory.artifacts.len(), 2);

    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(Store::look(empty.path()), Err(StoreError::Missing { .. })));
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "looking makes no store");
}

#[test]
fn removing_frees_what_only_the_artifact_has_and_pins_prevent_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second) = (Model::of(&[0, 3]), Model::of(&[0, 2]));
    first.pull(&store, &NoReaders).unwrap();
    second.pull(&store, &NoReaders).unwrap();
    Store::keep(dir.path(), &first.digest()).unwrap();
    let error = store.remove(&first.digest()).unwrap_err();
    assert!(matches!(error, StoreError::Pinned { .. }) && error.hint().is_some(), "{error}");
    assert!(Store::look(dir.path()).unwrap().artifacts.iter().any(|one| one.is_pinned));
    assert!(Store::let_go(dir.path(), &first.digest()).unwrap());
    assert!(!Store::let_go(dir.path(), &first.digest()).unwrap());
    let own = Store::look(dir.path()).unwrap();
    let own = own.artifacts.iter().find(|one| one.digest == first.digest()).unwrap().own_bytes;
    assert_eq!(store.remove(&first.digest()).unwrap(), own);
    second.assert_whole(&store);
    assert!(matches!(store.remove(&first.digest()), Err(StoreError::Missing { .. })));
}

#[test]
fn what_is_pinned_is_not_collected_and_a_pull_that_needs_its_room_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(12_000));
    let (kept, next) = (Model::of(&[3]), Model::of(&[2, 1]));
    kept.pull(&store, &NoReaders).unwrap();
    Store::keep(dir.path(), &kept.digest()).unwrap();
    let error = next.pull(&store, &NoReaders).unwrap_err();
    assert!(matches!(error, StoreError::OverBudget { in_use, .. } if in_use > 8_000), "{error}");
    kept.assert_whole(&store);
    Store::let_go(dir.path(), &kept.digest()).unwrap();
    next.pull(&store, &NoReaders).unwrap();
}

#[test]
fn a_name_goes_alone_and_the_artifact_stays_listed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let model = Model::of(&[1]);
    model.pull(&store, &NoReaders).unwrap();
    store.name(&model.digest(), NAME).unwrap();
    assert_eq!(store.unname(NAME).unwrap(), Some(model.digest()));
    assert_eq!(store.unname(NAME).unwrap(), None);
    assert_eq!(store.complete_manifests().unwrap(), [model.digest()].into());
    model.assert_whole(&store);
}

#[test]
fn pruning_does_what_it_says_the_least_recently_used_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second, third) = (Model::of(&[0, 3]), Model::of(&[0, 2]), Model::of(&[1]));
    for model in [&first, &second, &third] {
        model.pull(&store, &NoReaders).unwrap();
    }
    fs::write(dir.path().join("blobs/sha256").join("0".repeat(64)), b"left").unwrap();
    let partial = dir.path().join("partial").join("1".repeat(64));
    fs::create_dir_all(partial.join("blobs")).unwrap();
    fs::write(partial.join("blobs/0"), [0; 77]).unwrap();
    Store::keep(dir.path(), &third.digest()).unwrap();

    let plan = store.plan_prune(None).unwrap();
    assert_eq!((plan.artifacts.len(), plan.leftover_bytes), (0, 4), "without a budget no artifact goes");
    assert_eq!(plan.partials, [("1".repeat(64), 77)]);
    let before = store.inventory().unwrap().bytes;
    assert_eq!(plan.left_bytes, before - 4 - 77);

    let plan = store.plan_prune(Some(before - 5_000)).unwrap();
    assert_eq!(plan.artifacts.len(), 1);
    assert_eq!(plan.artifacts[0].0, first.digest(), "it was used before the second");
    assert_eq!(store.inventory().unwrap().bytes, before, "a plan removes nothing");
    store.carry_out(&plan).unwrap();
    let after = store.inventory().unwrap();
    assert_eq!(after.bytes, plan.left_bytes);
    assert_eq!(before - after.bytes, plan.freed_bytes());
    assert!(after.partials.is_empty() && after.leftover_bytes == 0);
    second.assert_whole(&store);

    let plan = store.plan_prune(Some(0)).unwrap();
    store.carry_out(&plan).unwrap();
    assert_eq!(store.complete_manifests().unwrap(), [third.digest()].into(), "what is pinned stays");
    third.assert_whole(&store);
}

#[test]
fn an_older_version_stays_while_its_bytes_are_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (old, new, other) = (Model::of(&[0, 3]), Model::of(&[3, 2]), Model::of(&[1]));
    old.pull(&store, &NoReaders).unwrap();
    other.pull(&store, &NoReaders).unwrap();
    let (files, pins) = store.old_files(&new.manifest).unwrap();
    let paths: Vec<_> = files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["0.safetensors", "3.safetensors"], "of the artifact that has a path in common");
    assert!(matches!(store.remove(&old.digest()), Err(StoreError::Busy { .. })));
    drop(pins);
    store.remove(&old.digest()).unwrap();
    for mut file in files {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file.file, &mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes, "what is open stays readable");
    }
    assert!(store.old_files(&new.manifest).unwrap().0.is_empty());
}
