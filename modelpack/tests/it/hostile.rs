//! Manifests that lie, overflow or escape are refused, in words that help.

use modelpack::{
    digest::Sha256Digest,
    manifest::{MANIFEST_BYTES_MAX, Manifest},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::{layer, manifest, shown};

#[track_caller]
fn refused_raw(raw: &[u8], expected: &str) {
    let error = Manifest::parse(raw).expect_err("this is refused");
    assert_eq!(shown(&error), expected);
    assert!(!error.to_string().ends_with('.'));
}

#[track_caller]
fn refused(json: &Value, expected: &str) {
    refused_raw(json.to_string().as_bytes(), expected);
}

#[track_caller]
fn refused_path(path: &str, expected: &str) {
    refused(
        &manifest(vec![layer(path, "a")]),
        &format!("the artifact has a path that no file may have\n{expected}"),
    );
}

#[track_caller]
fn refused_paths(paths: [&str; 2], expected: &str) {
    let error = format!("the artifact has a path that no file may have\n{expected}");
    let mut layers = vec![layer(paths[0], "a"), layer("m", "m"), layer(paths[1], "b")];
    refused(&manifest(layers.clone()), &error);
    layers.reverse();
    assert!(Manifest::parse(manifest(layers).to_string().as_bytes()).is_err(), "in the other order");
}

#[test]
fn parent_directories() {
    for path in ["..", "../a", "a/../b", "a/..", ".", "./a", "a/./b"] {
        refused_path(path, &format!("path `{path}` has a component that is empty, `.` or `..`"));
    }
}

#[test]
fn absolute_paths() {
    refused_path("/etc/passwd", "path `/etc/passwd` is absolute");
    refused_path("//a", "path `//a` is absolute");
}

#[test]
fn empty_components() {
    for path in ["", "a//b", "a/"] {
        refused_path(path, &format!("path `{path}` has a component that is empty, `.` or `..`"));
    }
}

#[test]
fn characters_that_deceive() {
    for (path, shown) in
        [("a\0b", r"a\0b"), ("a\nb", r"a\nb"), ("a\u{1b}[31m", r"a\u{1b}[31m"), ("a\\..\\b", r"a\\..\\b")]
    {
        refused_path(path, &format!("path `{shown}` has a backslash or a control character"));
    }
}

#[test]
fn long_paths() {
    let too_long = "is over 4096 bytes or has a component over 255 bytes";
    refused_path(&"a".repeat(256), &format!("path `{}…` {too_long}", "a".repeat(100)));
    refused_path(&"a/".repeat(2049), &format!("path `{}…` {too_long}", "a/".repeat(50)));
    let longest = format!("{}b", "a/".repeat(2047));
    assert!(Manifest::parse(manifest(vec![layer(&longest, "a")]).to_string().as_bytes()).is_ok());
}

#[test]
fn our_own_directory() {
    for path in [".modelctl", ".modelctl/complete.json", ".ModelCTL/x"] {
        refused_path(path, &format!("path `{path}` lies in `.modelctl`, which is reserved"));
    }
    assert!(Manifest::parse(manifest(vec![layer("a/.modelctl", "a")]).to_string().as_bytes()).is_ok());
}

#[test]
fn duplicate_paths() {
    refused_paths(["a/b", "a/b"], "paths `a/b` and `a/b` are the same, or differ only by case");
}

#[test]
fn case_colliding_paths() {
    refused_paths(["A.bin", "a.bin"], "paths `A.bin` and `a.bin` are the same, or differ only by case");
    refused_paths(["ÄΣ", "äσ"], "paths `ÄΣ` and `äσ` are the same, or differ only by case");
}

#[test]
fn files_that_are_directories() {
    refused_paths(["a", "a/b"], "path `a` is a file, but also the directory of `a/b`");
    refused_paths(["x/A", "x/a/b/c"], "path `x/A` is a file, but also the directory of `x/a/b/c`");
    // `a-b` sorts between `a` and `a/b` in most orders.
    let layers = vec![layer("a", "a"), layer("a-b", "b"), layer("a/b", "c")];
    assert!(Manifest::parse(manifest(layers).to_string().as_bytes()).is_err());
}

#[test]
fn sizes_that_disagree() {
    let mut second = layer("b", "same");
    second["size"] = 5.into();
    let digest = Sha256Digest::of(b"same");
    let error = format!("the manifest contradicts itself about {digest}: it has two sizes");
    refused(&manifest(vec![layer("a", "same"), second]), &error);
}

#[test]
fn roots_that_disagree() {
    let with_root = |path: &str, root: &str| {
        let mut layer = layer(path, "same");
        layer["annotations"]["org.modelcast.blake3"] = root.into();
        layer
    };
    let digest = Sha256Digest::of(b"same");
    let error =
        format!("the manifest contradicts itself about {digest}: it has two BLAKE3 roots, or one only once");
    let (one, two) = ("00".repeat(32), "01".repeat(32));
    refused(&manifest(vec![with_root("a", &one), with_root("b", &two)]), &error);
    refused(&manifest(vec![with_root("a", &one), layer("b", "same")]), &error);
    assert!(
        Manifest::parse(manifest(vec![with_root("a", &one), with_root("b", &one)]).to_string().as_bytes())
            .is_ok()
    );
}

#[test]
fn hashes_of_no_bytes_that_are_not() {
    let mut wrong_digest = layer("a", "a");
    wrong_digest["size"] = 0.into();
    let digest = Sha256Digest::of(b"a");
    let error =
        |digest| format!("the manifest contradicts itself about {digest}: this is not the hash of no bytes");
    refused(&manifest(vec![wrong_digest]), &error(digest));
    let mut wrong_root = layer("a", "");
    wrong_root["annotations"]["org.modelcast.blake3"] = "00".repeat(32).into();
    refused(&manifest(vec![wrong_root]), &error(Sha256Digest::of(b"")));
}

#[test]
fn malformed_roots() {
    let upper = "AB".repeat(32);
    for root in ["", "xyz", upper.as_str()] {
        let mut layer = layer("a", "a");
        layer["annotations"]["org.modelcast.blake3"] = root.into();
        let error = format!("layer 0 has the malformed annotation `org.modelcast.blake3`: `{root}`");
        refused(&manifest(vec![layer]), &error);
    }
}

#[test]
fn enormous_numbers() {
    let with_size = |size: &str| {
        let mut layer = layer("a", "a");
        layer["size"] = serde_json::from_str(size).unwrap();
        let raw = manifest(vec![layer]).to_string();
        Manifest::parse(raw.as_bytes()).map_err(|error| shown(&error))
    };
    let too_large = "the artifact is too large\nthe artifact has more than 67108864 pieces of 1048576 bytes";
    assert_eq!(with_size("18446744073709551615").unwrap_err(), too_large);
    assert_eq!(with_size("70368744177665").unwrap_err(), too_large);
    assert!(with_size("70368744177664").is_ok(), "64 TiB");
    for size in ["1e30", "-1", "1.5", "\"1\"", "null"] {
        let error = with_size(size).unwrap_err();
        assert!(
            error.starts_with("the manifest is not the JSON of an OCI image manifest\ninvalid "),
            "{error}"
        );
    }
    // Many sizes whose sum overflows 64 bits.
    let layers = (0..4).map(|n| {
        let mut layer = layer(&n.to_string(), &n.to_string());
        layer["size"] = (1_u64 << 62).into();
        layer
    });
    refused(&manifest(layers.collect()), too_large);
    let mut json = manifest(vec![layer("a", "a")]);
    json["config"]["size"] = (5 << 20).into();
    refused(&json, "the config is said to have 5242880 bytes, over the limit of 4194304");
}

#[test]
fn unknown_digest_algorithms() {
    let mut sha512 = layer("a", "a");
    sha512["digest"] = format!("sha512:{}", "0".repeat(128)).into();
    let error = format!(
        "layer 0 of the manifest has an unusable digest\ndigest `sha512:{}…` does not use the algorithm `sha256`",
        "0".repeat(93)
    );
    refused(&manifest(vec![sha512]), &error);
    let mut json = manifest(vec![layer("a", "a")]);
    json["config"]["digest"] = "md5:00".into();
    refused(
        &json,
        "the config of the manifest has an unusable digest\ndigest `md5:00` does not use the algorithm `sha256`",
    );
}

#[test]
fn a_hundred_thousand_layers() {
    let small = json!({"mediaType": "", "digest": "", "size": 0});
    refused(&manifest(vec![small.clone(); 8193]), "the manifest has 8193 layers, over the limit of 8192");
    refused(&manifest(vec![small; 100_000]), "the manifest has 100000 layers, over the limit of 8192");
}

#[test]
fn long_manifests() {
    let mut raw = manifest(vec![layer("a", "a")]).to_string();
    raw.push_str(&" ".repeat(usize::try_from(MANIFEST_BYTES_MAX).unwrap() - raw.len()));
    assert!(Manifest::parse(raw.as_bytes()).is_ok());
    raw.push(' ');
    refused_raw(raw.as_bytes(), "the manifest has 4194305 bytes, over the limit of 4194304");
}

#[test]
fn no_layers() {
    let error = "the manifest has no layers, so the artifact has no files";
    refused(&manifest(vec![]), error);
    let mut json = manifest(vec![]);
    json.as_object_mut().unwrap().remove("layers");
    refused(&json, error);
}

#[test]
fn other_things_than_models() {
    let not = |key: &str, value: Value, found: &str| {
        let mut json = manifest(vec![layer("a", "a")]);
        json[key] = value;
        refused(&json, &format!("the manifest is not that of a model: {found}"));
    };
    not("schemaVersion", json!(1), "its schema version is 1, not 2");
    not("schemaVersion", Value::Null, "it states no schema version");
    not("mediaType", json!("application/vnd.oci.image.index.v1+json"), "it is an image index");
    not("manifests", json!([]), "it is an image index");
    not(
        "mediaType",
        json!("application/vnd.docker.distribution.manifest.v2+json"),
        "its media type is `application/vnd.docker.distribution.manifest.v2+json`",
    );
    not("artifactType", json!("application/x"), "its artifact type is `application/x`");
    not("config", Value::Null, "it has no config");
    not(
        "config",
        json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": "", "size": 0}),
        "its config has the media type `application/vnd.oci.image.config.v1+json`",
    );
}

#[test]
fn layers_that_are_neither_files_nor_archives() {
    for media_type in [
        "application/vnd.cncf.model.weight.v1.tar+lz4",
        "application/vnd.cncf.model.weight.v1.raw+zstd",
        "application/vnd.cncf.model.doc.v1.gguf",
        "application/vnd.cnai.model.doc.v2.tar",
        "application/vnd.kitops.modelkit.model.v1.tar+xz",
        "application/vnd.kitops.modelkit.config.v1+json",
        "application/vnd.docker.ai.unheard.of",
        "application/vnd.cncf.model.other.v1.raw",
        "application/vnd.cncf.model.config.v1.raw",
        "application/octet-stream",
    ] {
        let mut second = layer("b", "b");
        second["mediaType"] = media_type.into();
        let error = format!("layer 1 has the media type `{media_type}`, which is not supported");
        refused(&manifest(vec![layer("a", "a"), second]), &error);
    }
    let mut link = layer("a", "a");
    link["annotations"]["org.cncf.model.file.metadata+json"] = r#"{"typeflag":50}"#.into();
    refused(&manifest(vec![link]), "layer 0 is not a regular file, but of the type 50");
    let mut unnamed = layer("a", "a");
    unnamed["annotations"] = json!({});
    refused(
        &manifest(vec![unnamed]),
        "layer 0 has no path: it lacks the annotation `org.cncf.model.filepath`",
    );
}

#[test]
fn what_is_not_a_manifest() {
    for raw in ["", "null", "[]", "{", "\u{feff}{}", "\"layers\"", &"[".repeat(100_000)] {
        let error = Manifest::parse(raw.as_bytes()).expect_err("this is refused");
        assert!(
            shown(&error).starts_with("the manifest is not the JSON of an OCI image manifest\n"),
            "{error}"
        );
    }
    let twice = manifest(vec![layer("a", "a")]).to_string().replacen('{', "{\"layers\":[],", 1);
    let error = shown(&Manifest::parse(twice.as_bytes()).expect_err("which of them counts?"));
    assert!(error.contains("duplicate field `layers`"), "{error}");
}

#[test]
fn errors_help() {
    let hint = |json: Value| Manifest::parse(json.to_string().as_bytes()).unwrap_err().hint().unwrap();
    let mut json = manifest(vec![layer("a", "a")]);
    json["manifests"] = json!([]);
    assert_eq!(hint(json), "name one of the manifests that the index lists by its digest");
}

#[test]
fn container_images() {
    let image = |media_type: &str, config: &str, layer: &str| {
        let layers =
            vec![json!({"mediaType": layer, "digest": Sha256Digest::of(b"a").to_string(), "size": 1})];
        let mut json = manifest(layers);
        json["mediaType"] = media_type.into();
        json["config"]["mediaType"] = config.into();
        json.as_object_mut().unwrap().remove("artifactType");
        json
    };
    for json in [
        image(
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+gzip",
        ),
        image(
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.container.image.v1+json",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ] {
        refused(&json, "the manifest is not that of a model: it is a container image");
    }
    let mut signature = image(
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.empty.v1+json",
        "application/vnd.dev.cosign.simplesigning.v1+json",
    );
    signature["artifactType"] = "application/x".into();
    let error = "the manifest is not that of a model: its artifact type is `application/x`, and its layers name no files";
    refused(&signature, error);
}

#[test]
fn one_archive_packed_in_two_ways() {
    let packed = |packing: &str| {
        let mut layer = layer("a", "a");
        layer["mediaType"] = format!("application/vnd.cncf.model.weight.v1.{packing}").into();
        layer
    };
    let error =
        format!("the manifest contradicts itself about {}: it is packed in two ways", Sha256Digest::of(b"a"));
    refused(&manifest(vec![packed("tar"), packed("tar+gzip")]), &error);
}

/// Sensible and senseless values for any place in a manifest.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        Just(json!("application/vnd.cncf.model.code.v1.raw")),
        Just(json!("application/vnd.cncf.model.code.v1.tar+zstd")),
        Just(json!("application/vnd.docker.ai.gguf.v3")),
        Just(json!("application/vnd.oci.empty.v1+json")),
        Just(json!("../x")),
    ]
}

/// Sets the `at`-th value of `json`, counted depth first.
fn set(json: &mut Value, at: &mut usize, new: &Value) {
    if *at == 0 {
        *json = new.clone();
    }
    *at = at.wrapping_sub(1);
    match json {
        Value::Array(list) => list.iter_mut().for_each(|value| set(value, at, new)),
        Value::Object(map) => map.values_mut().for_each(|value| set(value, at, new)),
        _ => {}
    }
}

fn paths_are_safe(manifest: &Manifest) {
    for file in manifest.files() {
        assert!(!file.path.starts_with('/'));
        assert!(file.path.split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
}

proptest! {
    #[test]
    fn any_bytes(raw in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(Manifest::parse(&raw).is_err());
    }

    #[test]
    fn flipped_bytes(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()) {
        let mut raw = include_bytes!("data/modctl-main-cncf.manifest.json").to_vec();
        let at = at.index(raw.len());
        raw[at] = byte;
        if let Ok(manifest) = Manifest::parse(&raw) {
            paths_are_safe(&manifest);
        }
        raw.truncate(cut.index(raw.len()));
        prop_assert!(Manifest::parse(&raw).is_err());
    }

    #[test]
    fn changed_values(changes in prop::collection::vec((0_usize..40, value()), 1..3)) {
        let mut json = manifest(vec![layer("a", "a"), layer("b/c", "b"), layer("B/d", "")]);
        for (mut at, new) in changes {
            set(&mut json, &mut at, &new);
        }
        if let Ok(manifest) = Manifest::parse(json.to_string().as_bytes()) {
            paths_are_safe(&manifest);
        }
    }

    #[test]
    fn any_paths(paths in prop::collection::vec("[aAb./\\\\é-]{0,6}", 1..6)) {
        let layers = paths.iter().map(|path| layer(path, "same")).collect();
        if let Ok(manifest) = Manifest::parse(manifest(layers).to_string().as_bytes()) {
            paths_are_safe(&manifest);
            // All of them can be created in one directory, even if it ignores case.
            let mut seen = std::collections::BTreeSet::new();
            for file in manifest.files() {
                prop_assert!(seen.insert(file.path.to_lowercase()));
            }
            for path in &seen {
                let mut parents = path.match_indices('/').map(|(at, _)| &path[..at]);
                prop_assert!(parents.all(|parent| !seen.contains(parent)));
            }
        }
    }
}
