//! What is built is what the specification asks for, always the same, and what we read back.

use modelpack::{
    build::{About, BuildError, Dialect, Kept, Options, SourceFile, build, check_limits, kind_of},
    config::ModelConfig,
    digest::Sha256Digest,
    layout::PIECE_BYTES,
    manifest::{Kind, Manifest, Modified},
    modelfile::Facts,
    piece_tree::PieceTree,
    piece_trees::{TreesManifest, tree_bytes},
    safetensors::Summary,
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{bytes, shown, source};

fn summary(dtypes: &[(&str, u64)], parameters: u64) -> Summary {
    let dtypes = dtypes.iter().map(|(dtype, bytes)| ((*dtype).to_owned(), *bytes)).collect();
    Summary { tensors: 1, dtypes, parameters }
}

fn text(raw: &[u8]) -> String {
    String::from_utf8(raw.to_vec()).unwrap()
}

/// A small model: weights of several pieces, one of them twice.
fn model() -> Vec<SourceFile> {
    let mut weights = source("model.safetensors", &bytes(1, 2 * PIECE_BYTES + 7));
    weights.safetensors = Some(summary(&[("I64", 4096), ("F32", 90_000_000)], 22_713_728));
    let mut copy = weights.clone();
    copy.path = "original/model.safetensors".into();
    let mut script = source("run.sh", b"#!/bin/sh");
    script.is_executable = true;
    vec![
        weights,
        source("README.md", b"read"),
        script,
        source("config.json", b"{}"),
        copy,
        source("strange", b""),
        source("1_Pooling/config.json", b"{}"),
    ]
}

fn options() -> Options {
    Options {
        facts: Facts { name: Some("mini".into()), ..Facts::default() },
        created_at_unix: 1_700_000_000,
        hf_config: Some(json!({
            "architectures": ["BertModel"],
            "model_type": "bert",
            "torch_dtype": "float32",
            "transformers_version": "4.8.2",
        })),
        ..Options::default()
    }
}

#[test]
fn the_manifest_is_what_the_specification_asks_for() {
    let built = build(model(), &options()).unwrap();
    let json: Value = serde_json::from_slice(&built.manifest).unwrap();
    assert_eq!(json["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
    assert_eq!(json["config"]["mediaType"], "application/vnd.cncf.model.config.v1+json");
    assert_eq!(json["config"]["digest"], Sha256Digest::of(&built.config).to_string());
    let layers: Vec<_> = json["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| {
            let annotations = &layer["annotations"];
            assert_eq!(annotations["org.cncf.model.filepath"], annotations["org.opencontainers.image.title"]);
            let path = annotations["org.cncf.model.filepath"].as_str().unwrap();
            (layer["mediaType"].as_str().unwrap().trim_start_matches("application/vnd.cncf.model."), path)
        })
        .collect();
    assert_eq!(
        layers,
        [
            ("weight.config.v1.raw", "1_Pooling/config.json"),
            ("weight.config.v1.raw", "config.json"),
            ("weight.v1.raw", "model.safetensors"),
            ("weight.v1.raw", "original/model.safetensors"),
            ("code.v1.raw", "run.sh"),
            ("code.v1.raw", "strange"),
            ("doc.v1.raw", "README.md"),
        ]
    );
    assert_eq!(
        json["layers"][4]["annotations"],
        json!({
            "org.cncf.model.filepath": "run.sh",
            "org.opencontainers.image.title": "run.sh",
            "org.cncf.model.file.metadata+json": concat!(
                r#"{"name":"run.sh","mode":493,"uid":0,"gid":0,"size":9,"#,
                r#""mtime":"2023-11-14T22:13:20Z","typeflag":0}"#
            ),
            "org.modelcast.blake3": blake3::hash(b"#!/bin/sh").to_hex().as_str(),
        })
    );
    assert_eq!(json["layers"][5]["annotations"]["org.cncf.model.file.mediatype.untested"], "true");
}

#[test]
fn the_config_says_what_the_files_say() {
    let built = build(model(), &options()).unwrap();
    let mut json: Value = serde_json::from_slice(&built.config).unwrap();
    let diff_ids = json["modelfs"]["diffIds"].take();
    let manifest: Value = serde_json::from_slice(&built.manifest).unwrap();
    let digests: Vec<_> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect();
    assert_eq!(diff_ids, Value::from(digests));
    assert_eq!(
        json,
        json!({
            "descriptor": { "createdAt": "2023-11-14T22:13:20Z", "family": "bert", "name": "mini" },
            "modelfs": { "type": "layers", "diffIds": null },
            "config": {
                "architecture": "transformer",
                "format": "safetensors",
                "paramSize": "22.7M",
                "precision": "float32,int64",
            },
        })
    );
    let config = ModelConfig::parse(&built.config).unwrap();
    assert_eq!((config.name.as_deref(), config.param_size.as_deref()), (Some("mini"), Some("22.7M")));
}

#[test]
fn configs_of_other_weights() {
    let facts = |files: Vec<SourceFile>, hf_config: Value| {
        let built = build(files, &Options { hf_config: Some(hf_config), ..Options::default() }).unwrap();
        let json: Value = serde_json::from_slice(&built.config).unwrap();
        assert_eq!(json["descriptor"]["createdAt"], "1970-01-01T00:00:00Z");
        json["config"].clone()
    };
    let file = |path: &str, size| source(path, &bytes(size, size));
    assert_eq!(facts(vec![file("a.gguf", 5)], json!({})), json!({ "format": "gguf" }));
    assert_eq!(
        facts(vec![file("pytorch_model.bin", 5), file("x.onnx", 4)], json!({ "dtype": "bfloat16" })),
        json!({ "format": "pt", "precision": "bfloat16" })
    );
    assert_eq!(
        facts(
            vec![file("x.gguf", 9), file("a.safetensors", 5)],
            json!({ "torch_dtype": "torch.float16", "quantization_config": { "quant_method": "awq" } })
        ),
        json!({ "format": "safetensors", "precision": "float16", "quantization": "awq" })
    );
    assert_eq!(facts(vec![file("README", 5)], json!([1])), json!({}));
    assert_eq!(facts(vec![file("README", 5)], json!({ "dtype": "odd", "model_type": 3 })), json!({}));
}

#[test]
fn numbers_of_parameters() {
    for (parameters, expected) in [
        (0, None),
        (1, Some("0.1K")),
        (340, Some("0.3K")),
        (999, Some("1K")),
        (1_000, Some("1K")),
        (999_949, Some("999.9K")),
        (999_950, Some("1M")),
        (6_738_415_616, Some("6.7B")),
        (70_553_706_496, Some("70.6B")),
        (684_531_386_000, Some("684.5B")),
        (1_000_000_000_000, Some("1T")),
    ] {
        let mut file = source("a.safetensors", b"a");
        file.safetensors = Some(summary(&[], parameters));
        let built = build(vec![file], &Options::default()).unwrap();
        assert_eq!(
            ModelConfig::parse(&built.config).unwrap().param_size.as_deref(),
            expected,
            "{parameters}"
        );
    }
}

#[test]
fn trees_travel_in_a_referrer() {
    let built = build(model(), &options()).unwrap();
    let trees = built.trees.unwrap();
    let referrer = TreesManifest::parse(&trees.manifest).unwrap();
    assert_eq!(referrer.subject, Sha256Digest::of(&built.manifest));
    assert_eq!(trees.config, b"{}");
    let manifest = Manifest::parse(&built.manifest).unwrap();
    let large: Vec<_> = manifest.blobs().iter().filter(|blob| blob.size > PIECE_BYTES).collect();
    assert_eq!((referrer.layers.len(), large.len(), trees.layers.len()), (1, 1, 1), "one tree a blob");
    let (layer, blob, (digest, tree)) = (referrer.layers[0], large[0], &trees.layers[0]);
    assert_eq!((layer.blob, layer.digest, layer.size), (blob.digest, *digest, tree_bytes(blob.size)));
    assert_eq!(Sha256Digest::of(tree), *digest);
    assert!(PieceTree::anchor(blob.size, blob.root.unwrap(), tree).is_ok());
}

#[test]
fn small_models_have_no_referrer() {
    assert_eq!(build(vec![source("a.bin", b"a")], &Options::default()).unwrap().trees, None);
}

#[test]
fn the_same_files_give_the_same_bytes() {
    let built = build(model(), &options()).unwrap();
    let mut reversed = model();
    reversed.reverse();
    assert_eq!(build(reversed, &options()).unwrap(), built);
    // A change here changes the digest of every model that anybody builds again.
    assert_eq!(
        [
            Sha256Digest::of(&built.manifest).to_string(),
            Sha256Digest::of(&built.config).to_string(),
            Sha256Digest::of(&built.trees.unwrap().manifest).to_string(),
        ],
        [
            "sha256:0a85a91328a188057395cc798e224089e6841ac5adad03c6813e0c76e94387e4",
            "sha256:5947f727d5eebe30575e381afcad77ec230a54f9081541dbaa3af8113ef79487",
            "sha256:52568410f78e2b04c77873d722780c05616feef20c42d962f17d708d81d6eedb",
        ]
    );
}

#[test]
fn kinds() {
    for (path, kind) in [
        ("config.json", Kind::Config),
        ("model.safetensors.index.json", Kind::Config),
        ("pytorch_model.bin.index.json", Kind::Config),
        ("tokenizer.model", Kind::Config),
        ("vocab.txt", Kind::Config),
        ("a/Merges.TXT", Kind::Config),
        ("chat_template.jinja", Kind::Config),
        ("tokenizer_special", Kind::Config),
        ("model.safetensors", Kind::Weight),
        ("MODEL.SAFETENSORS", Kind::Weight),
        ("model-00001-of-00002.gguf", Kind::Weight),
        ("model.onnx", Kind::Weight),
        ("model.onnx_data_1", Kind::Weight),
        ("model.data-00000-of-00001", Kind::Weight),
        ("original/consolidated.00.pth", Kind::Weight),
        ("tokenizer.py", Kind::Code),
        ("modeling_x.py", Kind::Code),
        ("README.md", Kind::Doc),
        ("LICENSE", Kind::Doc),
        ("notes.txt", Kind::Doc),
        ("data/train.parquet", Kind::Dataset),
        (".gitattributes", Kind::Code),
        ("strange", Kind::Code),
        ("a.d/strange", Kind::Code),
    ] {
        assert_eq!(kind_of(path), kind, "{path}");
    }
}

#[test]
fn limits_are_checked_by_names_alone() {
    let error = |paths: Vec<String>| {
        let error = check_limits(paths.iter().map(String::as_str)).unwrap_err();
        assert!(error.hint().is_some());
        shown(&error)
    };
    assert_eq!(error(vec![]), "there are no files");
    let many = |count: usize| (0..count).map(|n| format!("{n}")).collect::<Vec<_>>();
    assert_eq!(error(many(8193)), "there are 8193 files, over the limit of 8192");
    check_limits(many(6000).iter().map(String::as_str)).unwrap();
    let long = (0..1500).map(|n| format!("{}{n}", "d/".repeat(600))).collect();
    assert!(error(long).ends_with("bytes, over the limit of 4194304"));
    let bad = "a file's path cannot be part of an artifact\n";
    assert_eq!(
        error(vec![".modelctl/x".into()]),
        format!("{bad}path `.modelctl/x` lies in `.modelctl`, which is reserved")
    );
    assert_eq!(
        error(vec!["a".into(), "A".into()]),
        format!("{bad}paths `A` and `a` are the same, or differ only by case")
    );
}

#[test]
fn what_passes_the_limits_can_be_built() {
    let paths: Vec<_> = (0..4000).map(|n| format!("{}{n}.bin", "d/".repeat(500))).collect();
    let passes = |count: usize| check_limits(paths[..count].iter().map(String::as_str)).is_ok();
    let (mut fits, mut too_many) = (1, paths.len());
    assert!(passes(fits) && !passes(too_many));
    while too_many - fits > 1 {
        let middle = usize::midpoint(fits, too_many);
        *if passes(middle) { &mut fits } else { &mut too_many } = middle;
    }
    let files = paths[..fits].iter().map(|path| source(path, b"a")).collect();
    let built = build(files, &Options::default()).unwrap();
    assert!(built.manifest.len() > 4_000_000, "the estimate is close: {}", built.manifest.len());
}

#[test]
fn files_that_contradict_one_another() {
    let one = source("a.bin", b"a");
    let mut two = source("b.bin", b"b");
    two.digest = one.digest;
    let error = build(vec![one.clone(), two], &Options::default()).unwrap_err();
    assert!(matches!(error, BuildError::Refused(_)), "{error}");
    let mut tree = source("b.bin", &bytes(1, PIECE_BYTES + 1));
    tree.tree[0] ^= 1;
    let error = build(vec![one.clone(), tree], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "the piece tree of `b.bin` does not fit the file");
    for created_at_unix in [-1, i64::MIN, i64::MAX, 253_402_300_800] {
        let error = build(vec![one.clone()], &Options { created_at_unix, ..Options::default() }).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the time {created_at_unix} is not between the years 1970 and 9999")
        );
    }
    build(vec![one], &Options { created_at_unix: 253_402_300_799, ..Options::default() }).unwrap();
}

fn file() -> impl Strategy<Value = SourceFile> {
    let path = "[a-c\"\\$é<]{1,3}(/[a-c]{1,2}){0,2}(\\.json|\\.safetensors|\\.md|)";
    let size = prop_oneof![Just(0), 1..100_u64, Just(PIECE_BYTES), Just(PIECE_BYTES + 1)];
    (path, size, any::<bool>()).prop_map(|(path, size, is_executable)| SourceFile {
        is_executable,
        ..source(&path, &bytes(size, size))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_built_is_read_back(files in prop::collection::vec(file(), 1..6)) {
        let Ok(built) = build(files.clone(), &Options::default()) else {
            // Only paths can be wrong here.
            prop_assert!(check_limits(files.iter().map(|file| file.path.as_str())).is_err());
            return Ok(());
        };
        let manifest = Manifest::parse(&built.manifest).unwrap();
        prop_assert_eq!(manifest.config().digest, Sha256Digest::of(&built.config));
        prop_assert_eq!(manifest.files().len(), files.len());
        for file in &files {
            let found = manifest.files().iter().find(|found| found.path == file.path).unwrap();
            let blob = manifest.blobs()[found.blob.0 as usize];
            prop_assert_eq!((blob.digest, blob.size, blob.root), (file.digest, file.size, file.root));
            prop_assert_eq!((found.kind, found.is_executable), (kind_of(&file.path), file.is_executable));
        }
        prop_assert!(manifest.files().is_sorted_by_key(|file| (file.kind, file.path.clone())));
    }
}

#[test]
fn what_a_publisher_states_is_written_and_beats_what_files_say() {
    let about = About {
        authors: vec!["A. Person".into()],
        licenses: vec!["Apache-2.0".into(), "LicenseRef-x".into()],
        languages: vec!["en".into(), "de".into()],
        version: Some("1.2".into()),
        title: Some("Mini".into()),
        description: Some("small".into()),
        vendor: Some("Example".into()),
        doc_url: Some("https://example.org/doc".into()),
        source_url: Some("https://example.org/src".into()),
        revision: Some("abc".into()),
    };
    let facts = Facts {
        family: Some("tiny".into()),
        format: Some("odd".into()),
        precision: Some("int8".into()),
        ..options().facts
    };
    let stated = Options { about: about.clone(), facts, ..options() };
    let built = build(model(), &stated).unwrap();
    let config: Value = serde_json::from_slice(&built.config).unwrap();
    let descriptor = json!({
        "createdAt": "2023-11-14T22:13:20Z", "family": "tiny", "name": "mini", "authors": ["A. Person"],
        "vendor": "Example", "version": "1.2", "title": "Mini", "description": "small",
        "docURL": "https://example.org/doc", "sourceURL": "https://example.org/src", "revision": "abc",
        "licenses": ["Apache-2.0", "LicenseRef-x"],
    });
    assert_eq!(config["descriptor"], descriptor);
    assert_eq!(config["config"]["architecture"], "transformer", "what is not stated is from the files");
    assert_eq!(config["config"]["format"], "odd");
    assert_eq!(config["config"]["precision"], "int8");
    assert_eq!(config["config"]["capabilities"], json!({ "languages": ["en", "de"] }));
    let refused = [
        About { languages: vec!["eng".into()], ..about.clone() },
        About { languages: vec!["EN".into()], ..about.clone() },
        About { licenses: vec!["Apache 2.0; see file".into()], ..about.clone() },
        About { licenses: vec![" ".into()], ..about.clone() },
        About { version: Some(String::new()), ..about.clone() },
        About { authors: vec!["a\u{1b}[31m".into()], ..about },
    ];
    for about in refused {
        let shown = format!("{about:?}");
        let error = build(model(), &Options { about, ..options() }).unwrap_err();
        assert!(matches!(error, BuildError::About { .. }), "{shown}: {error}");
    }
}

#[test]
fn stated_kinds_decide_the_layers_and_their_order() {
    let kinds = [("README.md".to_owned(), Kind::Dataset), ("strange".to_owned(), Kind::Weight)].into();
    let modelfile = Some("MODEL strange\n".to_owned());
    let built = build(model(), &Options { kinds, modelfile, ..options() }).unwrap();
    let manifest = Manifest::parse(&built.manifest).unwrap();
    let kinds: Vec<_> = manifest.files().iter().map(|file| (file.path.as_str(), file.kind)).collect();
    assert_eq!(kinds.last(), Some(&("README.md", Kind::Dataset)));
    assert!(kinds.contains(&("strange", Kind::Weight)), "{kinds:?}");
    let json: Value = serde_json::from_slice(&built.manifest).unwrap();
    assert_eq!(json["annotations"], json!({ "org.cncf.modctl.modelfile": "MODEL strange\n" }));
    let manifest = text(&built.manifest);
    assert!(!manifest.contains("untested"), "nothing is guessed any more: {manifest}");
    let alone = build(
        vec![source("strange", b"x")],
        &Options { kinds: [("strange".to_owned(), Kind::Weight)].into(), ..Options::default() },
    );
    let config: Value = serde_json::from_slice(&alone.unwrap().config).unwrap();
    assert_eq!(config["config"]["format"], "unknown", "wherever there are weights there is a format");
}

#[test]
fn a_modelfile_counts_towards_the_limit_of_the_manifest() {
    let modelfile = Some("#".repeat(5 << 20));
    let error = build(model(), &Options { modelfile, ..options() }).unwrap_err();
    assert!(matches!(error, BuildError::ManifestTooLong(_)), "{error}");
}

#[test]
fn the_former_names_are_written_on_request_and_say_the_same() {
    let (now, former) = (Options { modelfile: Some("x".into()), ..options() }, Dialect::Cnai);
    let cncf = build(model(), &now).unwrap();
    let cnai = build(model(), &Options { dialect: former, ..now }).unwrap();
    assert_eq!(cncf.config, cnai.config);
    let (here, there) = (text(&cncf.manifest), text(&cnai.manifest));
    assert_eq!(here.replace(".cncf.", ".cnai."), there);
    let [here, there] = [&cncf, &cnai].map(|built| Manifest::parse(&built.manifest).unwrap());
    assert_eq!(here.files(), there.files());
}

#[test]
fn permissions_and_times_are_kept_where_that_is_wanted() {
    let files = || vec![source("a.json", b"{}"), source("b.sh", b"#!")];
    let kept = |mode, modified| Kept { mode, modified };
    let modified = Modified::new(1_700_000_000, 123_456_789);
    let kept = [("a.json".to_owned(), kept(0o640, modified)), ("b.sh".to_owned(), kept(0o6_775, None))];
    let options = Options { kept: kept.into(), ..Options::default() };
    let manifest = Manifest::parse(&build(files(), &options).unwrap().manifest).unwrap();
    let found: Vec<_> = manifest.files().iter().map(|file| (file.mode, file.modified)).collect();
    assert_eq!(found, [(0o640, modified), (0o755, None)], "nobody else may write, and no identity changes");
    let plain = build(files(), &Options::default()).unwrap();
    let manifest = Manifest::parse(&plain.manifest).unwrap();
    assert!(manifest.files().iter().all(|file| file.mode == 0o644 && file.modified.is_none()));
}
