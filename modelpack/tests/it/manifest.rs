//! Manifests that other tools and we wrote are understood.

use modelpack::{
    digest::{Blake3Root, Sha256Digest},
    layout::BlobIndex,
    manifest::{Kind, MEDIA_TYPE, Manifest, Modified},
};
use serde_json::{Value, json};

use crate::support::{layer, manifest};

fn parse(json: &Value) -> Manifest {
    Manifest::parse(json.to_string().as_bytes()).unwrap()
}

#[test]
fn both_dialects_of_modctl() {
    for raw in [
        include_bytes!("data/modctl-0.2.2-cnai.manifest.json").as_slice(),
        include_bytes!("data/modctl-main-cncf.manifest.json").as_slice(),
    ] {
        let manifest = Manifest::parse(raw).unwrap();
        let files: Vec<_> = manifest
            .files()
            .iter()
            .map(|file| {
                let blob = &manifest.blobs()[file.blob.0 as usize];
                assert_eq!((blob.root, file.is_executable), (None, false));
                (file.path.as_str(), file.kind, blob.size)
            })
            .collect();
        assert_eq!(
            files,
            [
                ("config.json", Kind::Config, 155),
                ("model.safetensors.index.json", Kind::Config, 210),
                ("tokenizer_config.json", Kind::Config, 24),
                ("model-00001-of-00002.safetensors", Kind::Weight, 4_194_304),
                ("model-00002-of-00002.safetensors", Kind::Weight, 4_194_304),
                ("README.md", Kind::Doc, 9),
            ]
        );
        assert_eq!(manifest.layout().piece_count(), 3 + 4 + 4 + 1);
        assert_eq!((manifest.raw(), manifest.digest()), (raw, Sha256Digest::of(raw)));
        let own = manifest.descriptor();
        assert_eq!(
            (own.media_type.as_str(), own.digest, own.size),
            (MEDIA_TYPE, manifest.digest(), raw.len() as u64)
        );
    }
}

#[test]
fn configs_are_those_that_the_manifests_name() {
    for (raw, config) in [
        (
            include_bytes!("data/modctl-0.2.2-cnai.manifest.json").as_slice(),
            include_bytes!("data/modctl-0.2.2-cnai.config.json").as_slice(),
        ),
        (
            include_bytes!("data/modctl-main-cncf.manifest.json").as_slice(),
            include_bytes!("data/modctl-main-cncf.config.json").as_slice(),
        ),
    ] {
        let found = Manifest::parse(raw).unwrap().config().clone();
        assert_eq!((found.digest, found.size), (Sha256Digest::of(config), config.len() as u64));
    }
}

#[test]
fn the_config_decides_where_no_artifact_type_is_stated() {
    for artifact_type in [Value::Null, json!("")] {
        let mut json = manifest(vec![layer("a", "a")]);
        json["artifactType"] = artifact_type;
        assert_eq!(parse(&json).files().len(), 1);
    }
}

#[test]
fn the_path_is_the_first_of_three_annotations() {
    let annotations =
        ["org.cncf.model.filepath", "org.cnai.model.filepath", "org.opencontainers.image.title"];
    for first in 0..3 {
        let mut layer = layer("", "a");
        layer["annotations"] =
            annotations[first..].iter().map(|key| ((*key).to_owned(), json!(key))).collect();
        assert_eq!(parse(&manifest(vec![layer])).files()[0].path, annotations[first]);
    }
}

#[test]
fn files_share_blobs() {
    let json = manifest(vec![layer("x", "same"), layer("y", "other"), layer("z/x", "same")]);
    let manifest = parse(&json);
    let blobs: Vec<_> = manifest.files().iter().map(|file| file.blob).collect();
    assert_eq!(blobs, [BlobIndex(0), BlobIndex(1), BlobIndex(0)]);
    let sizes: Vec<_> = manifest.blobs().iter().map(|blob| blob.size).collect();
    assert_eq!(sizes, [4, 5]);
    assert_eq!(manifest.layout().total_bytes(), 9);
}

#[test]
fn roots_are_read() {
    let mut stated = layer("a", "a");
    let root = Blake3Root::new(*blake3::hash(b"a").as_bytes());
    stated["annotations"]["org.modelcast.blake3"] = root.hex().into();
    let manifest = parse(&manifest(vec![stated, layer("b", "b")]));
    assert_eq!(manifest.blobs().iter().map(|blob| blob.root).collect::<Vec<_>>(), [Some(root), None]);
}

#[test]
fn a_file_without_bytes_is_a_file() {
    let manifest = parse(&manifest(vec![layer("__init__.py", ""), layer("a", "a")]));
    assert_eq!((manifest.files().len(), manifest.layout().piece_count()), (2, 1));
}

#[test]
fn any_execute_bit_makes_executable_and_odd_metadata_makes_nothing() {
    for (metadata, is_executable) in [
        (r#"{"mode":420,"typeflag":0}"#, false),
        (r#"{"mode":493,"typeflag":48}"#, true),
        (r#"{"mode":8}"#, true),
        (r#"{"mode":"0755","typeflag":"0"}"#, false),
        (r#"{"mode":-1}"#, false),
        ("[]", false),
        ("not JSON", false),
    ] {
        for key in ["org.cncf.model.file.metadata+json", "org.cnai.model.file.metadata+json"] {
            let mut layer = layer("a", "a");
            layer["annotations"][key] = metadata.into();
            assert_eq!(parse(&manifest(vec![layer])).files()[0].is_executable, is_executable, "{metadata}");
        }
    }
}

#[test]
fn mode_and_time_are_those_that_are_stated_within_reason() {
    for (metadata, mode, modified) in [
        (
            r#"{"mode":420,"mtime":"2026-11-23T23:22:34.553027093Z"}"#,
            0o644,
            Modified::new(1_795_476_154, 553_027_093),
        ),
        (r#"{"mode":436,"mtime":"2026-11-24T00:22:34+01:00"}"#, 0o644, Modified::new(1_795_476_154, 0)),
        (r#"{"mode":384,"mtime":"2026-11-23T17:52:34-05:30"}"#, 0o600, Modified::new(1_795_476_154, 0)),
        (r#"{"mode":3565,"mtime":"0001-01-01T00:00:00Z"}"#, 0o755, None),
        (r#"{"mode":0,"mtime":"1970-01-01T00:00:00Z"}"#, 0o600, None),
        (r#"{"mtime":"yesterday"}"#, 0o644, None),
        (r#"{"mtime":"+01:00"}"#, 0o644, None),
        (r#"{"mtime":"é2026-11-23T17:52:34-05:30"}"#, 0o644, None),
        ("{}", 0o644, None),
    ] {
        let mut layer = layer("a", "a");
        layer["annotations"]["org.cncf.model.file.metadata+json"] = metadata.into();
        let manifest = parse(&manifest(vec![layer]));
        let file = &manifest.files()[0];
        assert_eq!((file.mode, file.modified), (mode, modified), "{metadata}");
    }
}
