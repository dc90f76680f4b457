//! Pulling a new version where an older one is: what is the same is not moved, and nothing is trusted.

use std::{fmt::Write as _, fs, os::unix::fs::FileExt as _, path::Path};

use modelpack::reference::Reference;
use peer::{PullReport, PullWatch, Transports};
use proptest::prelude::*;

use crate::{
    clients::Alone,
    origin::{Holding, Origin},
    support::{Model, PATIENCE, pattern, pull, request},
};

const PIECE: u64 = 1 << 20;

/// A tensor by name and content.
type Tensor = (String, Vec<u8>);

fn tensor(seed: u32, len: usize) -> Tensor {
    (format!("tensor {seed}"), pattern(seed.wrapping_mul(77) + 1, len))
}

/// A safetensors file whose header takes at least `header` bytes.
fn safetensors(header: usize, tensors: &[Tensor]) -> Vec<u8> {
    let (mut json, mut at) = (String::from("{"), 0);
    for (name, bytes) in tensors {
        let (len, end) = (bytes.len(), at + bytes.len());
        let comma = if at == 0 && json.len() == 1 { "" } else { "," };
        write!(json, r#"{comma}"{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{at},{end}]}}"#)
            .unwrap();
        at = end;
    }
    json.push('}');
    json.push_str(&" ".repeat(header.saturating_sub(json.len())));
    let mut file = (json.len() as u64).to_le_bytes().to_vec();
    file.extend(json.as_bytes());
    for (_, bytes) in tensors {
        file.extend(bytes);
    }
    file
}

/// The bytes of the pieces of `file` that lie wholly in tensors that are among `old`.
fn coverable(header: usize, tensors: &[Tensor], old: &[Tensor]) -> u64 {
    let file = safetensors(header, tensors);
    let data = file.len() as u64 - tensors.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
    let (mut spans, mut at) = (Vec::new(), data);
    for one in tensors {
        let end = at + one.1.len() as u64;
        spans.push((at, end, old.contains(one)));
        at = end;
    }
    let starts = (0..file.len() as u64).step_by(1 << 20);
    let pieces = starts.map(|start| (start, (start + PIECE).min(file.len() as u64)));
    let is_covered = |(start, end): &(u64, u64)| {
        let mut over = spans.iter().filter(|(from, to, _)| from < end && start < to);
        *start >= data && over.all(|(_, _, is_old)| *is_old)
    };
    pieces.filter(is_covered).map(|(start, end)| end - start).sum()
}

fn model(files: &[(&str, Vec<u8>)]) -> Model {
    Model::new(files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.clone())).collect())
}

async fn pull_with(reference: Reference, output: &Path, bases: &[&Path]) -> PullReport {
    let bases: Vec<_> = bases.iter().map(|dir| Reference::Directory(dir.to_path_buf())).collect();
    let (request, watch) = (request(reference, output, &bases), PullWatch::new());
    let pull = peer::pull(request, Transports::tcp(), &watch);
    tokio::time::timeout(PATIENCE, pull).await.expect("the pull ends in time").unwrap()
}

/// Pulls `old`, then `new` beside it; says what came of the latter.
async fn update(top: &Path, old: &Model, new: &Model) -> PullReport {
    pull(old.write_layout(&top.join("layout-1")), &top.join("v1")).await.unwrap();
    let report =
        pull_with(new.write_layout(&top.join("layout-2")), &top.join("v2"), &[&top.join("v1")]).await;
    new.assert_in(&top.join("v2"));
    old.assert_in(&top.join("v1"));
    assert_eq!(report.origin_bytes + report.local_bytes, new.bytes(), "nothing moves twice: {report:?}");
    report
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_the_same_in_place_or_elsewhere_is_not_moved() {
    let top = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..4).map(|seed| tensor(seed, 3_000_000)).collect();
    let old = model(&[
        ("config.json", b"{}".to_vec()),
        ("a.safetensors", safetensors(100, &tensors)),
        ("old.bin", pattern(9, 2_500_000)),
        ("x.gguf", pattern(10, 5_500_000)),
    ]);
    let mut gguf = pattern(10, 5_500_000);
    gguf[3_000_000] ^= 1;
    let shifted = [tensors[2].clone(), tensor(77, 2_000_000), tensors[0].clone()];
    let new = model(&[
        ("config.json", b"{\"new\":true}".to_vec()),
        ("b.safetensors", safetensors(5000, &shifted)),
        ("renamed.bin", pattern(9, 2_500_000)),
        ("x.gguf", gguf),
    ]);
    let report = update(top.path(), &old, &new).await;
    let expected = coverable(5000, &shifted, &tensors) + 2_500_000 + 5_500_000 - PIECE;
    assert!(expected > 10_000_000, "{expected}");
    assert_eq!(report.local_bytes, expected, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_is_a_base_and_its_trees_spare_the_reading() {
    let top = tempfile::tempdir().unwrap();
    let old = model(&[("x.bin", pattern(1, 70 << 20))]);
    let mut bytes = pattern(1, 70 << 20);
    // In every stretch that is looked at, its first, middle and last piece.
    for piece in (0..70).filter(|piece| piece % 32 == 0 || piece % 32 == 31) {
        bytes[piece << 20] ^= 1;
    }
    let changed = (0..70_u64).filter(|piece| piece % 32 == 0 || piece % 32 == 31).count() as u64;
    let new = model(&[("x.bin", bytes)]);
    let base = old.write_layout(&top.path().join("layout-1"));
    let (request, watch) = (
        request(new.write_layout(&top.path().join("layout-2")), &top.path().join("v2"), &[base]),
        PullWatch::new(),
    );
    let pull = peer::pull(request, Transports::tcp(), &watch);
    let report = tokio::time::timeout(PATIENCE, pull).await.expect("it ends in time").unwrap();
    new.assert_in(&top.path().join("v2"));
    assert_eq!(report.origin_bytes, changed << 20, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_bytes_that_are_not_what_they_were_are_fetched() {
    let top = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..3).map(|seed| tensor(seed, 4 << 20)).collect();
    let old = model(&[("a.safetensors", safetensors(100, &tensors)), ("b.bin", pattern(5, 3 << 20))]);
    let new = model(&[("a.safetensors", safetensors(900, &tensors)), ("b.bin", pattern(5, 3 << 20))]);
    pull(old.write_layout(&top.path().join("layout-1")), &top.path().join("v1")).await.unwrap();
    // Without its inode, size or time telling.
    let flip = |path: &str, at: u64| {
        let path = top.path().join("v1").join(path);
        let file = fs::File::options().read(true).write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
        file.set_modified(modified).unwrap();
    };
    flip("a.safetensors", 6 << 20);
    flip("b.bin", 1);
    let report = pull_with(
        new.write_layout(&top.path().join("layout-2")),
        &top.path().join("v2"),
        &[&top.path().join("v1")],
    )
    .await;
    new.assert_in(&top.path().join("v2"));
    let most = coverable(900, &tensors, &tensors) + (3 << 20);
    assert_eq!(report.local_bytes, most - 2 * PIECE, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bases_that_are_of_no_use_cost_nothing() {
    let (model, top) = (Model::of(3), tempfile::tempdir().unwrap());
    let reference = model.write_layout(&top.path().join("layout"));
    let base = top.path().join("base");
    fs::create_dir_all(base.join("docs")).unwrap();
    fs::write(base.join("model.bin"), "short").unwrap();
    fs::write(base.join("other.safetensors"), [0xff; 100]).unwrap();
    std::os::unix::fs::symlink("/nowhere", base.join("config.json")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(base.join("docs/README.md")).status().unwrap();
    assert!(fifo.success());
    let report = pull_with(reference.clone(), &top.path().join("out"), &[&base]).await;
    model.assert_in(&top.path().join("out"));
    assert_eq!((report.origin_bytes, report.local_bytes), (model.bytes(), 0));
    let bases = [Reference::Directory(top.path().join("absent"))];
    let asked = request(reference, &top.path().join("again"), &bases);
    peer::pull(asked, Transports::tcp(), &PullWatch::new()).await.expect_err("it was named");
    assert!(!top.path().join("again").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cut_off_while_it_copies_goes_on() {
    let top = tempfile::tempdir().unwrap();
    let old = model(&[("x.bin", pattern(3, 40 << 20))]);
    let mut bytes = pattern(3, 40 << 20);
    bytes[5] ^= 1;
    let new = model(&[("x.bin", bytes)]);
    pull(old.write_layout(&top.path().join("layout-1")), &top.path().join("v1")).await.unwrap();
    let reference = new.write_layout(&top.path().join("layout-2"));
    let output = top.path().join("v2");
    for _ in 0..3 {
        let watch = PullWatch::new();
        let bases = [Reference::Directory(top.path().join("v1"))];
        let asked = request(reference.clone(), &output, &bases);
        let pulling = tokio::spawn({
            let watch = watch.clone();
            async move { peer::pull(asked, Transports::tcp(), &watch).await }
        });
        crate::support::until(|| watch.progress().local > 0 || pulling.is_finished()).await;
        pulling.abort();
        let _ = pulling.await;
    }
    // What was under way holds the landing for a moment.
    let report = loop {
        let bases = [Reference::Directory(top.path().join("v1"))];
        let asked = request(reference.clone(), &output, &bases);
        match peer::pull(asked, Transports::tcp(), &PullWatch::new()).await {
            Ok(report) => break report,
            Err(error) => assert!(format!("{error:?}").contains("Busy"), "{error:?}"),
        }
        tokio::task::yield_now().await;
    };
    new.assert_in(&output);
    assert!(report.origin_bytes <= PIECE, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_finds_the_older_version_in_its_store() {
    let tensors: Vec<_> = (0..3).map(|seed| tensor(seed, 3_000_000)).collect();
    let old = model(&[("a.safetensors", safetensors(100, &tensors))]);
    let new = model(&[("a.safetensors", safetensors(700, &tensors)), ("b.txt", b"new".to_vec())]);
    let [before, after] = [Origin::honest(Holding::of(&old)).await, Origin::honest(Holding::of(&new)).await];
    let peer = Alone::start().await;
    peer.pull_simply(before.reference(), "v1").await.unwrap();
    let report = peer.pull_simply(after.reference(), "v2").await.unwrap();
    new.assert_in(&peer.output("v2"));
    let expected = coverable(700, &tensors, &tensors);
    assert_eq!(report.local_bytes, expected, "{report:?}");
    assert_eq!(report.origin_bytes, new.bytes() - expected);
    peer.end().await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, ..ProptestConfig::default() })]

    /// Whatever is edited, the result is the new version, and what tensors tell is not moved.
    #[test]
    fn whatever_is_edited_the_new_version_is_exact(
        sizes in prop::collection::vec(1_usize..3_000_000, 1..8),
        edits in prop::collection::vec(0_u8..6, 8),
        headers in (64_usize..4000, 64_usize..4000),
        is_reversed in any::<bool>(),
        flips in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let old: Vec<_> = (0..).zip(&sizes).map(|(seed, len)| tensor(seed, *len)).collect();
        let mut new = Vec::new();
        for (number, one) in (0..).zip(&old) {
            match edits[number as usize] {
                // Dropped, changed at its end, of another shape, or one more before it.
                0 => {}
                1 => {
                    let mut changed = one.clone();
                    *changed.1.last_mut().unwrap() ^= 1;
                    new.push(changed);
                }
                2 => new.push((one.0.clone(), pattern(number + 500, one.1.len() + 1))),
                3 => new.extend([tensor(number + 100, 1_500_000), one.clone()]),
                _ => new.push(one.clone()),
            }
        }
        if is_reversed {
            new.reverse();
        }
        let mut blob = pattern(3, 3_300_000);
        let before = model(&[("m.safetensors", safetensors(headers.0, &old)), ("x.bin", blob.clone())]);
        for at in &flips {
            blob[at.index(3_300_000)] ^= 1;
        }
        let after = model(&[("m.safetensors", safetensors(headers.1, &new)), ("x.bin", blob)]);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let top = tempfile::tempdir().unwrap();
        let report = runtime.block_on(update(top.path(), &before, &after));
        prop_assert!(report.local_bytes >= coverable(headers.1, &new, &old), "{report:?}");
    }
}
