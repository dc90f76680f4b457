//! The referrer that carries piece trees.

use modelpack::{
    digest::Sha256Digest,
    layout::PIECE_BYTES,
    piece_trees::{ARTIFACT_TYPE, LAYER_MEDIA_TYPE, TreesManifest, fallback_tag, tree_bytes},
};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::shown;

fn layer(blob: &Sha256Digest) -> Value {
    json!({
        "mediaType": LAYER_MEDIA_TYPE,
        "digest": Sha256Digest::of(b"tree").to_string(),
        "size": 64,
        "annotations": { "org.modelcast.blob": blob.to_string() },
    })
}

fn referrer() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": ARTIFACT_TYPE,
        "config": {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": Sha256Digest::of(b"{}").to_string(),
            "size": 2,
        },
        "layers": [layer(&Sha256Digest::of(b"one")), layer(&Sha256Digest::of(b"two"))],
        "subject": {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": Sha256Digest::of(b"model").to_string(),
            "size": 5,
        },
    })
}

#[test]
fn a_referrer_is_read() {
    let trees = TreesManifest::parse(referrer().to_string().as_bytes()).unwrap();
    assert_eq!(trees.subject, Sha256Digest::of(b"model"));
    let blobs: Vec<_> = trees.layers.iter().map(|layer| layer.blob).collect();
    assert_eq!(blobs, [Sha256Digest::of(b"one"), Sha256Digest::of(b"two")]);
    assert_eq!((trees.layers[0].digest, trees.layers[0].size), (Sha256Digest::of(b"tree"), 64));
}

#[test]
fn what_is_no_such_referrer_is_refused() {
    let check = |change: fn(&mut Value), expected: &str| {
        let mut json = referrer();
        change(&mut json);
        let error = TreesManifest::parse(json.to_string().as_bytes()).unwrap_err();
        assert_eq!(shown(&error), expected);
    };
    let not = "the manifest is not a list of piece trees:";
    check(|json| json["artifactType"] = Value::Null, &format!("{not} it states no artifact type"));
    check(|json| json["artifactType"] = "x".into(), &format!("{not} its artifact type is `x`"));
    check(|json| json["subject"] = Value::Null, &format!("{not} it has no subject"));
    check(|json| json["manifests"] = json!([]), &format!("{not} it is an image index"));
    check(
        |json| json["layers"][1]["mediaType"] = "x".into(),
        "layer 1 has the media type `x`, which is not supported",
    );
    check(
        |json| json["layers"][1]["annotations"] = Value::Null,
        "layer 1 lacks the annotation `org.modelcast.blob`",
    );
    check(
        |json| json["layers"][0]["annotations"]["org.modelcast.blob"] = "x".into(),
        "layer 0 has the malformed annotation `org.modelcast.blob`: `x`",
    );
    check(
        |json| json["layers"][1] = json["layers"][0].clone(),
        &format!("layer 1 is the second tree of {}", Sha256Digest::of(b"one")),
    );
    check(|json| json["layers"][0]["size"] = 63.into(), "layer 0 has 63 bytes, which no piece tree has");
    check(
        |json| json["layers"][0]["size"] = (1_u64 << 40).into(),
        "layer 0 has 1099511627776 bytes, which no piece tree has",
    );
}

#[test]
fn sizes_and_tags() {
    assert_eq!(tree_bytes(0), 0);
    assert_eq!(tree_bytes(PIECE_BYTES), 0);
    assert_eq!(tree_bytes(PIECE_BYTES + 1), 64);
    assert_eq!(tree_bytes(u64::MAX), (1 << 44) * 32);
    assert_eq!(
        fallback_tag(&Sha256Digest::of(b"")),
        "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

proptest! {
    #[test]
    fn any_bytes_do_not_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut raw = referrer().to_string().into_bytes();
        let at = at.index(raw.len());
        raw[at] = byte;
        let _ = TreesManifest::parse(&raw);
    }
}
