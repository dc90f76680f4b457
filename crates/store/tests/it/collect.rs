//! Collection under a budget: what may go, what must stay, and that whatever is listed is whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use ::store::{BlobIdentity, Landing, NoReaders, Pin, Readers, Store, StoreError};
use modelpack::{
    build::{self, SourceFile},
    digest::{Blake3Root, Sha256Digest},
    manifest::Manifest,
    piece_tree::{Landed, PieceTree},
};
use proptest::prelude::*;

use crate::support::pattern;

/// Of each weight file, by its number.
const WEIGHT_BYTES: [usize; 5] = [1_000, 2_000, 4_000, 8_000, 16_000];

pub(crate) struct Model {
    pub(crate) manifest: Manifest,
    config: Vec<u8>,
    bytes: BTreeMap<Sha256Digest, Vec<u8>>,
}

impl Model {
    /// The weight files of these numbers.
    pub(crate) fn of(weights: &[usize]) -> Self {
        let contents = weights
            .iter()
            .map(|number| (*number, pattern(u8::try_from(*number).unwrap(), WEIGHT_BYTES[*number])));
        let (mut sources, mut bytes) = (Vec::new(), BTreeMap::new());
        for (number, content) in contents {
            let digest = Sha256Digest::of(&content);
            sources.push(SourceFile {
                path: format!("{number}.safetensors"),
                size: content.len() as u64,
                digest,
                root: Some(Blake3Root::new(*blake3::hash(&content).as_bytes())),
                tree: Vec::new(),
                is_executable: false,
                safetensors: None,
            });
            bytes.insert(digest, content);
        }
        let built = build::build(sources, &build::Options::default()).unwrap();
        Self { manifest: Manifest::parse(&built.manifest).unwrap(), config: built.config, bytes }
    }

    pub(crate) fn digest(&self) -> Sha256Digest {
        self.manifest.digest()
    }

    /// Lands and proves everything that is missing.
    fn finish(&self, store: &Store, landing: &Landing) {
        for (index, blob) in self.manifest.layout().blobs().zip(self.manifest.blobs()) {
            let piece = self.manifest.layout().pieces_of(index).start;
            let tree = PieceTree::single(blob.size, blob.root.unwrap()).unwrap();
            let landed = Landed::new(modelpack::layout::BlobPiece(0), &self.bytes[&blob.digest]);
            landing.commit(piece, &tree.verify(landed).unwrap()).unwrap();
            let proof = landing.prove_verified(index).unwrap();
            store.finish_blob(landing, &BlobIdentity::from(blob), &proof).unwrap();
        }
        store.put_config(&self.config).unwrap();
    }

    pub(crate) fn pull(&self, store: &Store, readers: &dyn Readers) -> Result<(), StoreError> {
        let (landing, _) = store.landing_in_budget(&self.manifest, readers)?;
        self.finish(store, &landing);
        store.put_manifest(self.manifest.raw()).unwrap();
        store.complete(&landing, &self.digest()).unwrap();
        Ok(())
    }

    pub(crate) fn assert_whole(&self, store: &Store) {
        assert!(store.manifest(&self.digest()).unwrap().is_some());
        assert_eq!(store.config(&self.manifest.config().digest).unwrap().as_ref(), Some(&self.config));
        for blob in self.manifest.blobs() {
            let mut found = Vec::new();
            let file = store.blob_file(&BlobIdentity::from(blob)).unwrap();
            std::io::Read::read_to_end(&mut file.expect("a listed artifact is whole"), &mut found).unwrap();
            assert!(found == self.bytes[&blob.digest]);
        }
    }

    /// Its files in a store, and their sizes.
    fn files(&self) -> impl Iterator<Item = (Sha256Digest, u64)> {
        let small = [
            (self.digest(), self.manifest.raw().len() as u64),
            (self.manifest.config().digest, self.config.len() as u64),
        ];
        small.into_iter().chain(self.manifest.blobs().iter().map(|blob| (blob.digest, blob.size)))
    }
}

/// Bytes of all files below a directory of the store.
fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let bytes = |path: &Path| if path.is_dir() { bytes_below(path) } else { path.metadata().unwrap().len() };
    entries.map(|entry| bytes(&entry.unwrap().path())).sum()
}

/// What counts: blobs, and what was allocated to be landed.
fn bytes_of(dir: &Path) -> u64 {
    let partials = fs::read_dir(dir.join("partial")).into_iter().flatten();
    let partials: u64 = partials.map(|entry| bytes_below(&entry.unwrap().path().join("blobs"))).sum();
    bytes_below(&dir.join("blobs")) + partials
}

/// What is read, and stays.
struct Read(Vec<Sha256Digest>);

impl Readers for Read {
    fn are_there(&self, artifact: &Sha256Digest) -> bool {
        self.0.contains(artifact)
    }

    fn let_go(&self, artifact: &Sha256Digest) -> bool {
        !self.0.contains(artifact)
    }
}

#[test]
fn what_was_not_used_for_longest_goes_first_and_shared_blobs_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second, third) = (Model::of(&[0, 3]), Model::of(&[0, 2]), Model::of(&[1]));
    for model in [&first, &second, &first] {
        model.pull(&store, &NoReaders).unwrap();
    }
    // Either of the two would make room enough.
    let budget = bytes_of(dir.path()) + 500;
    let store = store.with_budget(Some(budget));
    third.pull(&store, &NoReaders).unwrap();
    let listed = store.complete_manifests().unwrap();
    assert!(listed.contains(&first.digest()) && listed.contains(&third.digest()));
    assert!(!listed.contains(&second.digest()), "it was used before the first");
    first.assert_whole(&store);
    assert!(bytes_of(dir.path()) <= budget);
}

#[test]
fn a_pull_that_cannot_fit_is_refused_and_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(12_000));
    let (small, large) = (Model::of(&[3]), Model::of(&[4]));
    small.pull(&store, &NoReaders).unwrap();
    let error = large.pull(&store, &NoReaders).unwrap_err();
    assert!(matches!(error, StoreError::OverBudget { .. }) && error.hint().is_some(), "{error}");
    let _pin = store.pin(&small.manifest);
    let error = Model::of(&[2, 1]).pull(&store, &NoReaders).unwrap_err();
    assert!(matches!(error, StoreError::OverBudget { in_use, .. } if in_use > 8_000), "{error}");
    small.assert_whole(&store);
    assert!(!dir.path().join("partial").join(large.digest().hex()).exists());
}

#[test]
fn a_name_is_of_one_artifact_and_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(13_000));
    let (first, second) = (Model::of(&[1]), Model::of(&[2]));
    let (host, other) = ("registry.example.org:5000/models/x:v1", "registry.example.org:5000/models/x:v2");
    store.name(&first.digest(), host).unwrap();
    assert_eq!(store.named(host).unwrap(), None, "it is not there");
    first.pull(&store, &NoReaders).unwrap();
    second.pull(&store, &NoReaders).unwrap();
    for _ in 0..2 {
        store.name(&first.digest(), host).unwrap();
        store.name(&first.digest(), other).unwrap();
    }
    assert_eq!(store.named(host).unwrap(), Some(first.digest()));
    store.name(&second.digest(), host).unwrap();
    assert_eq!(store.named(host).unwrap(), Some(second.digest()), "the tag has moved");
    assert_eq!(store.named(other).unwrap(), Some(first.digest()));
    // Pulled again it keeps its names, and it is listed once.
    first.pull(&store, &NoReaders).unwrap();
    assert_eq!(store.named(other).unwrap(), Some(first.digest()));
    assert_eq!(store.complete_manifests().unwrap(), [first.digest(), second.digest()].into());
    second.pull(&store, &NoReaders).unwrap();
    Model::of(&[3]).pull(&store, &NoReaders).unwrap();
    assert_eq!(store.named(other).unwrap(), None);
    let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
    assert!(!index.contains(&first.digest().hex()), "{index}");
}

#[test]
fn whoever_loses_its_last_name_stays_listed_with_all_its_files() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (first, second) = (Model::of(&[0]), Model::of(&[1]));
    for model in [&first, &second] {
        model.pull(&store, &NoReaders).unwrap();
        store.name(&model.digest(), "registry.local/m:latest").unwrap();
    }
    assert_eq!(store.named("registry.local/m:latest").unwrap(), Some(second.digest()));
    let both = BTreeSet::from([first.digest(), second.digest()]);
    assert_eq!(store.complete_manifests().unwrap(), both);
    // One that has another name is not listed twice.
    store.name(&second.digest(), "registry.local/m:2").unwrap();
    store.name(&first.digest(), "registry.local/m:latest").unwrap();
    assert_eq!(store.complete_manifests().unwrap(), both);
    let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
    assert_eq!(index.matches(&second.digest().hex()).count(), 1, "{index}");
    // What others read is not swept.
    let store = store.with_budget(Some(1));
    store.collect(&Read(both.into_iter().collect())).unwrap();
    for model in [&first, &second] {
        model.assert_whole(&store);
    }
}

#[test]
fn what_is_read_stays_and_is_known_before_anything_goes() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (small, read, large) = (Model::of(&[1]), Model::of(&[3]), Model::of(&[4]));
    small.pull(&store, &NoReaders).unwrap();
    read.pull(&store, &NoReaders).unwrap();
    let store = store.with_budget(Some(20_000));
    let error = large.pull(&store, &Read(vec![read.digest()])).unwrap_err();
    assert!(matches!(error, StoreError::OverBudget { in_use, .. } if in_use > 8_000), "{error}");
    small.assert_whole(&store);
    read.assert_whole(&store);
    large.pull(&store, &NoReaders).unwrap();
}

#[test]
fn a_collection_that_ends_in_the_middle_leaves_whole_artifacts_only() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    // One blob is of both.
    let (goes, stays, next) = (Model::of(&[1, 3]), Model::of(&[1, 2]), Model::of(&[0]));
    goes.pull(&store, &NoReaders).unwrap();
    stays.pull(&store, &NoReaders).unwrap();
    let left: BTreeMap<_, _> = stays.files().chain(next.files()).collect();
    let store = store.with_budget(Some(left.values().sum()));
    // It cannot be removed as a file: the collection fails when it comes to it.
    let large = goes.manifest.blobs().iter().find(|blob| blob.size == 8_000).unwrap();
    let in_the_way = dir.path().join("blobs/blake3").join(large.root.unwrap().hex());
    fs::remove_file(&in_the_way).unwrap();
    fs::create_dir(&in_the_way).unwrap();
    let error = next.pull(&store, &NoReaders).unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: "remove", .. }), "{error}");
    drop(store);

    fs::remove_dir(&in_the_way).unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(20_000));
    assert_eq!(store.complete_manifests().unwrap(), [stays.digest()].into(), "not listed before it went");
    stays.assert_whole(&store);
    goes.pull(&store, &NoReaders).unwrap();
    goes.assert_whole(&store);
}

#[test]
fn what_a_crash_left_is_of_use_while_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let (model, other) = (Model::of(&[3]), Model::of(&[2]));
    {
        let store = Store::open(dir.path()).unwrap();
        let (landing, _) = store.landing_in_budget(&model.manifest, &NoReaders).unwrap();
        model.finish(&store, &landing);
    }
    let store = Store::open(dir.path()).unwrap().with_budget(Some(13_000));
    store.collect(&NoReaders).unwrap();
    let (landing, here) = store.landing_in_budget(&model.manifest, &NoReaders).unwrap();
    assert!(here.is_full());
    drop(landing);
    other.pull(&store, &NoReaders).unwrap();
    assert!(store.blob_file(&BlobIdentity::from(&model.manifest.blobs()[0])).unwrap().is_none());
    assert!(bytes_of(dir.path()) <= 13_000);
}

#[test]
fn a_file_that_was_opened_before_is_readable_after() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(12_000));
    let (first, second) = (Model::of(&[3]), Model::of(&[2, 1]));
    first.pull(&store, &NoReaders).unwrap();
    let blob = &first.manifest.blobs()[0];
    let mut file = store.blob_file(&BlobIdentity::from(blob)).unwrap().unwrap();
    second.pull(&store, &NoReaders).unwrap();
    assert!(store.blob_file(&BlobIdentity::from(blob)).unwrap().is_none());
    let mut found = Vec::new();
    std::io::Read::read_to_end(&mut file, &mut found).unwrap();
    assert!(found == first.bytes[&blob.digest]);
}

#[test]
fn what_other_tools_list_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap().with_budget(Some(12_000));
    let layer = vec![7; 6_000];
    let layer_digest = store.put_config(&layer).unwrap();
    let raw = format!(
        r#"{{"schemaVersion":2,"config":{{"digest":"{layer_digest}"}},"layers":[{{"digest":"{layer_digest}"}}]}}"#
    );
    let digest = store.put_manifest(raw.as_bytes()).unwrap();
    let index = fs::read_to_string(dir.path().join("index.json")).unwrap();
    let entry = format!(r#""manifests": [{{"digest":"{digest}","size":{}}}]"#, raw.len());
    fs::write(dir.path().join("index.json"), index.replace(r#""manifests": []"#, &entry)).unwrap();
    store.collect(&NoReaders).unwrap();
    assert!(matches!(Model::of(&[3]).pull(&store, &NoReaders), Err(StoreError::OverBudget { .. })));
    Model::of(&[2]).pull(&store, &NoReaders).unwrap();
    assert_eq!(store.config(&layer_digest).unwrap(), Some(layer));
}

#[derive(Clone, Debug)]
enum Step {
    Pull(usize),
    /// Begins and is given up.
    Abandon(usize),
    /// Is killed after all blobs are finished and before the manifest is listed.
    Crash(usize),
    Pin(usize),
    Unpin(usize),
    Serve(usize),
    Unserve(usize),
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let model = 0..6_usize;
    prop_oneof![
        4 => model.clone().prop_map(Step::Pull),
        1 => model.clone().prop_map(Step::Abandon),
        1 => model.clone().prop_map(Step::Crash),
        2 => model.clone().prop_map(Step::Pin),
        1 => model.clone().prop_map(Step::Unpin),
        1 => model.clone().prop_map(Step::Serve),
        1 => model.prop_map(Step::Unserve),
        1 => Just(Step::Collect),
    ]
}

struct World {
    dir: tempfile::TempDir,
    store: Option<Store>,
    models: Vec<Model>,
    pins: BTreeMap<usize, Pin>,
    served: BTreeSet<usize>,
    budget: u64,
}

impl World {
    fn new(budget: u64) -> Self {
        // In memory, where nothing is synced.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let models = [&[0][..], &[0, 1], &[1, 2], &[3], &[2, 3], &[0, 4]].map(Model::of).into();
        let mut world =
            Self { dir, store: None, models, pins: BTreeMap::new(), served: BTreeSet::new(), budget };
        world.restart();
        world
    }

    fn restart(&mut self) {
        (self.pins, self.served) = (BTreeMap::new(), BTreeSet::new());
        self.store = None;
        let store = Store::open(self.dir.path()).unwrap().with_budget(Some(self.budget));
        store.collect(&NoReaders).unwrap();
        self.store = Some(store);
        assert!(bytes_of(self.dir.path()) <= self.budget, "nothing is in use");
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn is_listed(&self, model: usize) -> bool {
        self.store().complete_manifests().unwrap().contains(&self.models[model].digest())
    }

    fn readers(&self) -> Read {
        Read(self.served.iter().map(|model| self.models[*model].digest()).collect())
    }

    /// Bytes that must be there while that model is brought, whatever is collected.
    fn least_with(&self, model: usize) -> u64 {
        let pinned = || self.pins.keys().chain([&model]);
        let files: BTreeMap<_, _> =
            pinned().chain(&self.served).flat_map(|model| self.models[*model].files()).collect();
        // What has landed of a pinned one stays too.
        let partial =
            |model: &usize| self.dir.path().join("partial").join(self.models[*model].digest().hex());
        let pinned: BTreeSet<_> = pinned().collect();
        let landed: u64 = pinned.into_iter().map(|model| bytes_below(&partial(model).join("blobs"))).sum();
        files.values().sum::<u64>() + landed
    }

    fn play(&mut self, step: &Step) {
        let in_use: Vec<_> =
            self.pins.keys().chain(&self.served).copied().filter(|model| self.is_listed(*model)).collect();
        match *step {
            Step::Pull(model) => {
                let least = self.least_with(model);
                match self.models[model].pull(self.store(), &self.readers()) {
                    Ok(()) => {
                        assert!(self.is_listed(model));
                        assert!(bytes_of(self.dir.path()) <= self.budget);
                    }
                    Err(StoreError::OverBudget { .. }) => {
                        assert!(least > self.budget, "it would have fitted");
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Abandon(model) | Step::Crash(model) => {
                let begun = self.store().landing_in_budget(&self.models[model].manifest, &self.readers());
                if let Ok((landing, _)) = begun
                    && matches!(step, Step::Crash(_))
                {
                    self.models[model].finish(self.store(), &landing);
                    drop(landing);
                    return self.restart();
                }
            }
            Step::Pin(model) => {
                let pin = self.store().pin(&self.models[model].manifest);
                self.pins.insert(model, pin);
            }
            Step::Unpin(model) => drop(self.pins.remove(&model)),
            Step::Serve(model) if self.is_listed(model) => {
                self.served.insert(model);
            }
            Step::Unserve(model) => {
                self.served.remove(&model);
            }
            Step::Collect => {
                self.store().collect(&self.readers()).unwrap();
            }
            Step::Serve(_) => {}
        }
        for model in in_use {
            assert!(self.is_listed(model), "what is in use was collected");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_the_listed_is_whole_and_the_used_stays(
        budget in 12_000_u64..50_000,
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let mut world = World::new(budget);
        for step in &steps {
            world.play(step);
            for digest in world.store().complete_manifests().unwrap() {
                world.models.iter().find(|model| model.digest() == digest).unwrap().assert_whole(world.store());
            }
        }
    }
}
