//! Artifacts of other tools: which are read, and as what.

use modelpack::{
    digest::Sha256Digest,
    index::sole_manifest,
    layout::BlobIndex,
    manifest::{Family, Kind, Manifest, Packing},
};
use serde_json::{Value, json};

use crate::support::{layer, manifest, shown};

fn parse(json: &Value) -> Manifest {
    Manifest::parse(json.to_string().as_bytes()).unwrap()
}

/// A layer without annotations.
fn bare(media_type: &str, content: &str) -> Value {
    let digest = Sha256Digest::of(content.as_bytes()).to_string();
    json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
}

/// A manifest without an artifact type.
fn of_config(config: &str, layers: Vec<Value>) -> Value {
    let mut json = manifest(layers);
    json["config"]["mediaType"] = config.into();
    json.as_object_mut().unwrap().remove("artifactType");
    json
}

fn paths(manifest: &Manifest) -> Vec<(&str, Kind)> {
    manifest.files().iter().map(|file| (file.path.as_str(), file.kind)).collect()
}

#[test]
fn every_packing_of_both_dialects_is_an_archive_with_or_without_a_path() {
    for dialect in ["cncf", "cnai"] {
        for (packing, expected) in
            [("tar", Packing::Tar), ("tar+gzip", Packing::TarGzip), ("tar+zstd", Packing::TarZstd)]
        {
            let unnamed = bare(&format!("application/vnd.{dialect}.model.weight.v1.{packing}"), "w");
            let mut named = bare(&format!("application/vnd.{dialect}.model.doc.v1.{packing}"), "d");
            named["annotations"] = json!({ format!("org.{dialect}.model.filepath"): "docs" });
            let manifest = parse(&manifest(vec![layer("a", "a"), unnamed, named]));
            assert_eq!(paths(&manifest), [("a", Kind::Weight)]);
            let found: Vec<_> = manifest
                .archives()
                .iter()
                .map(|one| (one.layer, one.blob, one.kind, one.packing, one.name.as_deref()))
                .collect();
            assert_eq!(
                found,
                [
                    (1, BlobIndex(1), Some(Kind::Weight), expected, None),
                    (2, BlobIndex(2), Some(Kind::Doc), expected, Some("docs")),
                ]
            );
            assert_eq!(manifest.archives()[1].to_string(), format!("layer 2 ({packing}, `docs`)"));
        }
    }
}

#[test]
fn an_archive_that_is_listed_twice_is_one() {
    let tar = bare("application/vnd.cncf.model.weight.v1.tar", "t");
    let manifest = parse(&manifest(vec![tar.clone(), tar]));
    assert_eq!((manifest.archives().len(), manifest.blobs().len()), (1, 1));
}

#[test]
fn a_model_kit() {
    let kit = |part: &str| bare(&format!("application/vnd.kitops.modelkit.{part}"), part);
    let json = of_config(
        "application/vnd.kitops.modelkit.config.v1+json",
        vec![
            kit("model.v1.tar+gzip"),
            kit("modelpart.v1.tar"),
            kit("dataset.v1.tar"),
            kit("docs.v1.tar+gzip"),
        ],
    );
    let manifest = parse(&json);
    assert_eq!((manifest.family(), manifest.files().len()), (Family::ModelKit, 0));
    let kinds: Vec<_> = manifest.archives().iter().map(|one| (one.kind.unwrap(), one.packing)).collect();
    assert_eq!(
        kinds,
        [
            (Kind::Weight, Packing::TarGzip),
            (Kind::Weight, Packing::Tar),
            (Kind::Dataset, Packing::Tar),
            (Kind::Doc, Packing::TarGzip)
        ]
    );
}

#[test]
fn a_model_of_docker_without_paths_has_the_names_that_docker_gives() {
    let part = |part: &str, content: &str| bare(&format!("application/vnd.docker.ai.{part}"), content);
    let config = "application/vnd.docker.ai.model.config.v0.1+json";
    let one = of_config(
        config,
        vec![
            part("gguf.v3", "g"),
            part("license", "l"),
            part("mmproj", "m"),
            part("chat.template.jinja", "t"),
            part("vllm.config.tar", "v"),
        ],
    );
    let manifest = parse(&one);
    assert_eq!(manifest.family(), Family::DockerModel);
    assert_eq!(
        paths(&manifest),
        [
            ("model.gguf", Kind::Weight),
            ("LICENSE", Kind::Doc),
            ("model.mmproj", Kind::Weight),
            ("template.jinja", Kind::Config)
        ]
    );
    assert_eq!(manifest.archives()[0].packing, Packing::Tar);
    let two = parse(&of_config(config, vec![part("safetensors", "1"), part("safetensors", "2")]));
    assert_eq!(
        paths(&two),
        [
            ("model-00001-of-00002.safetensors", Kind::Weight),
            ("model-00002-of-00002.safetensors", Kind::Weight)
        ]
    );
}

#[test]
fn a_model_of_docker_with_paths_and_its_additions_to_modelpack() {
    let mut file = bare("application/vnd.docker.ai.model.file", "f");
    file["annotations"] = json!({ "org.cncf.model.filepath": "text_encoder/config.json" });
    let docker = parse(&of_config("application/vnd.docker.ai.model.config.v0.2+json", vec![file]));
    assert_eq!(paths(&docker), [("text_encoder/config.json", Kind::Config)]);
    let mut gguf = layer("m.gguf", "g");
    gguf["mediaType"] = "application/vnd.cncf.model.weight.v1.gguf".into();
    assert_eq!(paths(&parse(&manifest(vec![gguf]))), [("m.gguf", Kind::Weight)]);
}

#[test]
fn files_that_oras_pushed() {
    let titled = |media_type: &str, title: &str| {
        let mut layer = bare(media_type, title);
        layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        layer
    };
    let mut dir = titled("application/vnd.oci.image.layer.v1.tar+gzip", "tokenizer");
    dir["annotations"]["io.deis.oras.content.unpack"] = "true".into();
    let layers = vec![
        titled("application/vnd.oci.image.layer.v1.tar", "model.safetensors"),
        titled("application/json", "config.json"),
        dir,
    ];
    let mut json = of_config("application/vnd.oci.empty.v1+json", layers);
    json["artifactType"] = "application/vnd.unknown.artifact.v1".into();
    let manifest = parse(&json);
    assert_eq!(manifest.family(), Family::Files);
    assert_eq!(paths(&manifest), [("model.safetensors", Kind::Weight), ("config.json", Kind::Config)]);
    let archive = &manifest.archives()[0];
    assert_eq!(
        (archive.packing, archive.kind, archive.name.as_deref()),
        (Packing::TarGzip, None, Some("tokenizer"))
    );
    assert_eq!(archive.kind_of("tokenizer/model.safetensors"), Kind::Weight);
    // Before artifact types there were image configs.
    let former =
        of_config("application/vnd.oci.image.config.v1+json", vec![titled("application/x", "a.bin")]);
    assert_eq!(parse(&former).family(), Family::Files);
    let mixed =
        of_config("application/x", vec![titled("application/x", "a.bin"), bare("application/x", "b")]);
    let error = Manifest::parse(mixed.to_string().as_bytes()).unwrap_err();
    assert_eq!(shown(&error), "layer 1 has no path: it lacks the annotation `org.cncf.model.filepath`");
}

fn entry(content: &str) -> Value {
    bare("application/vnd.oci.image.manifest.v1+json", content)
}

fn index(entries: Vec<Value>) -> Vec<u8> {
    let mut json = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"});
    json["manifests"] = Value::Array(entries);
    json.to_string().into_bytes()
}

fn with(mut entry: Value, key: &str, value: Value) -> Value {
    entry[key] = value;
    entry
}

#[test]
fn the_only_model_of_an_index_is_found() {
    let model = Some(Sha256Digest::of(b"model"));
    let image = with(entry("image"), "platform", json!({"os": "linux", "architecture": "amd64"}));
    let about =
        with(entry("about"), "annotations", json!({"vnd.docker.reference.type": "attestation-manifest"}));
    assert_eq!(sole_manifest(&index(vec![entry("model")])).unwrap(), model);
    assert_eq!(sole_manifest(&index(vec![image.clone(), entry("model"), about.clone()])).unwrap(), model);
    let stated = with(entry("model"), "artifactType", json!("application/vnd.cncf.model.manifest.v1+json"));
    let stated = with(stated, "platform", json!({"os": "linux"}));
    assert_eq!(sole_manifest(&index(vec![entry("other"), stated])).unwrap(), model);
    let none = |entries| shown(&sole_manifest(&index(entries)).unwrap_err());
    assert_eq!(none(vec![]), "the index lists no model");
    assert_eq!(
        none(vec![image, about]),
        "the index lists no model, only container images and what is said of them"
    );
}

#[test]
fn an_index_of_several_names_them() {
    let q4 = with(entry("4"), "annotations", json!({"org.opencontainers.image.ref.name": "q4"}));
    let error = sole_manifest(&index(vec![q4.clone(), entry("8")])).unwrap_err();
    let (four, eight) = (Sha256Digest::of(b"4"), Sha256Digest::of(b"8"));
    assert_eq!(
        shown(&error),
        format!("the index lists 2 artifacts that may be meant: {four} (`q4`), {eight}")
    );
    assert_eq!(error.hint().unwrap(), "name one of them by its digest, as HOST/REPO@DIGEST");
    let many = sole_manifest(&index(vec![q4; 100])).unwrap_err();
    assert!(shown(&many).ends_with(", 92 more"), "{many}");
}

#[test]
fn what_is_no_index_is_left_to_whoever_reads_manifests() {
    let mut both = manifest(vec![layer("a", "a")]);
    both["manifests"] = json!([entry("model")]);
    for raw in [manifest(vec![layer("a", "a")]).to_string(), both.to_string(), "[]".into(), "{".into()] {
        assert_eq!(sole_manifest(raw.as_bytes()).unwrap(), None);
    }
    let odd = sole_manifest(&index(vec![with(entry("a"), "digest", json!("md5:00"))])).unwrap_err();
    assert!(
        shown(&odd).starts_with("the entry of the index of the manifest has an unusable digest"),
        "{odd}"
    );
}
