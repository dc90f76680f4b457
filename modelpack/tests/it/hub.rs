//! Listings of a hub: what is read of them, and what is refused.

use modelpack::{
    digest::Sha256Digest,
    hub::{Commit, GitBlob, HubError, Listing, cached_file, parse_commit, parse_page},
};
use proptest::prelude::*;

const GIT: &str = "0123456789abcdef0123456789abcdef01234567";
const SHA: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn git_names_are_those_of_git() {
    // `printf 'hello\n' | git hash-object --stdin`, and of nothing.
    assert_eq!(GitBlob::of(b"hello\n").to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
    assert_eq!(GitBlob::of(b"").to_string(), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
    for text in ["", "main", &GIT[1..], &GIT.to_uppercase(), &format!("{GIT}0")] {
        assert!(text.parse::<Commit>().is_err(), "{text}");
    }
}

#[test]
fn a_page_lists_files_in_git_and_in_lfs() {
    let page = format!(
        r#"[{{"type":"directory","oid":"{GIT}","size":0,"path":"sub"}},
            {{"type":"file","oid":"{GIT}","size":3,"path":"sub/config.json","new":1}},
            {{"type":"file","oid":"{GIT}","size":9,"path":"model.safetensors",
              "lfs":{{"oid":"{SHA}","size":9,"pointerSize":135}},"xetHash":"{SHA}"}}]"#
    );
    let listing = Listing::new(parse_page(page.as_bytes()).unwrap()).unwrap();
    let [model, config] = listing.files() else { panic!("two files") };
    assert_eq!((model.path.as_str(), model.size, model.etag().as_str()), ("model.safetensors", 9, SHA));
    assert_eq!((config.path.as_str(), config.size, config.etag().as_str()), ("sub/config.json", 3, GIT));
    let tree = listing.to_tree();
    assert_eq!(Listing::parse_tree(&tree).unwrap(), listing, "{}", String::from_utf8_lossy(&tree));
    let text = String::from_utf8(tree).unwrap();
    assert!(text.contains(&format!(r#""lfs_sha256":"{SHA}","lfs_size":9,"xet_hash":"{SHA}""#)), "{text}");
}

#[test]
fn what_cannot_be_a_listing_is_refused() {
    let page = |entry: &str| parse_page(format!("[{entry}]").as_bytes());
    let file = |path: &str, rest: &str| {
        page(&format!(r#"{{"type":"file","oid":"{GIT}","size":3,"path":"{path}"{rest}}}"#))
    };
    file("a", "").unwrap();
    for path in ["../a", "/a", "a/../b", "a//b", "", "a\\\\b", "a\\u0000b", ".modelctl/a", "./a"] {
        assert!(matches!(file(path, ""), Err(HubError::Path(_))), "{path}");
    }
    for rest in [
        r#","lfs":{"oid":"00","size":3}"#,
        &format!(r#","lfs":{{"oid":"{SHA}","size":4}}"#),
        &format!(r#","lfs":{{"oid":"{}","size":3}}"#, SHA.to_uppercase()),
    ] {
        assert!(matches!(file("a", rest), Err(HubError::Entry { .. })), "{rest}");
    }
    let odd = |entry: String| page(&entry).unwrap_err();
    assert!(matches!(odd(format!(r#"{{"type":"link","oid":"{GIT}","path":"a"}}"#)), HubError::Entry { .. }));
    assert!(matches!(odd(r#"{"type":"file","oid":"x","path":"a"}"#.into()), HubError::Entry { .. }));
    let large = format!(r#"{{"type":"file","oid":"{GIT}","size":999999999,"path":"a"}}"#);
    assert!(matches!(odd(large), HubError::Entry { .. }), "it could not be hashed before it is read");
    assert!(matches!(parse_page(b"{}"), Err(HubError::Json(_))));
    assert!(matches!(Listing::new(Vec::new()), Err(HubError::Empty)));
    let twice = [file("a", "").unwrap(), file("A", "").unwrap()].concat();
    assert!(matches!(Listing::new(twice), Err(HubError::Path(_))));
    let many = (0..8193).map(|number| file(&format!("f{number}"), "").unwrap().remove(0)).collect();
    assert!(matches!(Listing::new(many), Err(HubError::TooMany)));
    assert!(matches!(Listing::parse_tree(br#"{"format_version":2,"files":{}}"#), Err(HubError::Version(2))));
}

#[test]
fn a_file_is_told_by_its_bytes() {
    let git = GitBlob::of(b"abc").to_string();
    let small = cached_file("a", 3, &git).unwrap();
    assert!(small.is_made_of(b"abc") && !small.is_made_of(b"abd") && !small.is_made_of(b"ab"));
    let large = cached_file("a", 3, &Sha256Digest::of(b"abc").hex()).unwrap();
    assert!(large.is_made_of(b"abc") && !large.is_made_of(b"abd"));
    assert!(cached_file("a", 3, "main").is_err() && cached_file("../a", 3, &git).is_err());
}

#[test]
fn a_revision_is_a_commit() {
    let commit = parse_commit(format!(r#"{{"id":"org/name","sha":"{GIT}","tags":[]}}"#).as_bytes()).unwrap();
    assert_eq!(commit.to_string(), GIT);
    assert!(parse_commit(br#"{"sha":"main"}"#).is_err() && parse_commit(b"[]").is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_a_listing_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (parse_page(&raw), parse_commit(&raw), Listing::parse_tree(&raw));
    }

    #[test]
    fn what_is_listed_is_listed_again(names in proptest::collection::btree_set("[a-z]{1,6}", 1..20), size in 0..1000_u64, in_lfs: bool) {
        let lfs = if in_lfs { format!(r#","lfs":{{"oid":"{SHA}","size":{size}}}"#) } else { String::new() };
        let entries: Vec<_> = names
            .iter()
            .map(|name| format!(r#"{{"type":"file","oid":"{GIT}","size":{size},"path":"{name}"{lfs}}}"#))
            .collect();
        let listing = Listing::new(parse_page(format!("[{}]", entries.join(",")).as_bytes()).unwrap()).unwrap();
        prop_assert!(listing.files().iter().map(|file| &file.path).eq(names.iter()));
        prop_assert_eq!(Listing::parse_tree(&listing.to_tree()).unwrap(), listing);
    }
}
