//! Selections: what they match, and what they leave of an artifact.

use modelpack::{
    manifest::{Kind, Manifest},
    selection::{Matched, Selection, SelectionError},
};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::{layer, manifest};

fn selection(include: &[&str], exclude: &[&str], kinds: &[Kind]) -> Selection {
    let owned = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
    Selection::new(&owned(include), &owned(exclude), kinds).unwrap()
}

#[track_caller]
fn matches(glob: &str, path: &str, expected: bool) {
    let found = selection(&[glob], &[], &[]).selects(path, Kind::Weight, &mut Matched::default());
    assert_eq!(found, expected, "{glob} {path}");
}

#[test]
fn globs_are_those_of_doublestar() {
    matches("*.json", "config.json", true);
    matches("*.json", "a/config.json", false);
    matches("**/*.json", "config.json", true);
    matches("**/*.json", "a/b/config.json", true);
    matches("original/**", "original/a/b.pth", true);
    matches("original/**", "original", false);
    matches("model-0000[1-3]-of-00004.safetensors", "model-00002-of-00004.safetensors", true);
    matches("{a,b}.bin", "b.bin", true);
    matches("a?c", "a/c", false);
    matches("a.c", "abc", false);
    let error = Selection::new(&["a[".into()], &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "the pattern `a[` is malformed: unclosed character class; missing ']'");
}

/// A weight and a config that share a blob, a weight, and an archive of documents.
fn artifact() -> Manifest {
    let typed = |path: &str, content: &str, media_type: &str| {
        let mut layer = layer(path, content);
        layer["mediaType"] = format!("application/vnd.cncf.model.{media_type}").into();
        layer
    };
    let layers: Vec<Value> = vec![
        layer("a.bin", "same"),
        layer("b/c.bin", "other"),
        typed("config.json", "same", "weight.config.v1.raw"),
        typed("docs", "tar", "doc.v1.tar"),
    ];
    Manifest::parse(manifest(layers).to_string().as_bytes()).unwrap()
}

fn left(selection: &Selection) -> (Vec<String>, Vec<u64>) {
    let (part, _) = artifact().select(selection).unwrap();
    assert_eq!(part.digest(), artifact().digest());
    assert!(part.files().iter().all(|file| file.blob.0 < part.layout().blob_count()));
    let paths = part.files().iter().map(|file| file.path.clone()).collect();
    (paths, part.blobs().iter().map(|blob| blob.size).collect())
}

#[test]
fn only_needed_blobs_are_left_and_archives_unless_their_kind_is_unwanted() {
    assert_eq!(left(&selection(&["**/c.bin"], &[], &[])), (vec!["b/c.bin".into()], vec![5, 3]));
    assert_eq!(left(&selection(&[], &[], &[Kind::Config])), (vec!["config.json".into()], vec![4]));
    assert_eq!(left(&selection(&[], &["a.bin"], &[Kind::Weight])), (vec!["b/c.bin".into()], vec![5]));
}

#[test]
fn a_part_that_matches_nothing_is_named() {
    let refused = |include: &[&str], exclude: &[&str], kinds: &[Kind]| {
        artifact().select(&selection(include, exclude, kinds)).unwrap_err().to_string()
    };
    let weights = [Kind::Weight];
    assert_eq!(
        refused(&["a.bin", "*.pt"], &[], &weights),
        "`--include *.pt` matches no file of the artifact"
    );
    assert_eq!(refused(&[], &["*.pt"], &weights), "`--exclude *.pt` matches no file of the artifact");
    assert_eq!(refused(&[], &[], &[Kind::Code]), "`--kind code` matches no file of the artifact");
    assert_eq!(refused(&["**"], &["**"], &weights), "the selection leaves out every file of the artifact");
    // What is in an archive is not known yet.
    let (_, matched) = artifact().select(&selection(&["README.md"], &[], &[])).unwrap();
    let selection = selection(&["README.md"], &[], &[]);
    assert!(matches!(selection.check(&matched), Err(SelectionError::NoMatch { .. })));
    let mut unpacked = Matched::default();
    assert!(selection.selects("README.md", Kind::Doc, &mut unpacked));
    unpacked.join(&matched);
    selection.check(&unpacked).unwrap();
}

#[test]
fn equal_selections_are_written_alike() {
    let one = selection(&["a"], &["b"], &[Kind::Weight, Kind::Config]);
    let two = selection(&["a"], &["b"], &[Kind::Config, Kind::Weight, Kind::Config]);
    assert_eq!(one.to_string(), "--include a --exclude b --kind config --kind weight");
    assert_eq!(one.to_string(), two.to_string());
    assert!(selection(&[], &[], &[]).is_everything() && !one.is_everything());
}

proptest! {
    #[test]
    fn any_pattern_is_refused_or_matches_without_panic(glob in "[a*?/{},\\[\\]!\\\\-]{0,12}", path in "[a/]{0,8}") {
        if let Ok(selection) = Selection::new(&[glob], &[], &[]) {
            selection.selects(&path, Kind::Weight, &mut Matched::default());
        }
    }
}
