//! Rules about documents. Does not own what they say.

use std::collections::BTreeSet;

use crate::tree::{TextFile, assert_none, root, rust_files, text_files};

/// The targets of inline links outside code: `](target)`.
fn links(text: &str) -> Vec<&str> {
    let mut is_code_block = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            is_code_block = !is_code_block;
        }
        if is_code_block {
            continue;
        }
        // Every second part between backticks is code.
        for prose in line.split('`').step_by(2) {
            let ends = prose.match_indices("](").map(|(at, _)| &prose[at + 2..]);
            found.extend(ends.filter_map(|rest| rest.split(')').next()));
        }
    }
    found
}

/// The name that a heading gets as a link's target: lower case, words joined by `-`, other signs dropped.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    kept.collect::<String>().trim().to_lowercase().replace(' ', "-")
}

fn has_heading(text: &str, wanted: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| anchor(line.trim_start_matches('#'))).any(|found| found == wanted)
}

/// Why a link of `file` leads nowhere, if it does.
fn fault(file: &TextFile, link: &str) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, heading) = link.split_once('#').map_or((link, None), |(path, heading)| (path, Some(heading)));
    let own = root().join(&file.path);
    let target = if path.is_empty() { own } else { own.parent()?.join(path) };
    if !target.exists() {
        return Some(format!("{}: `{link}`: there is no such file", file.path));
    }
    let text = std::fs::read_to_string(target).unwrap_or_default();
    let is_missing = heading.is_some_and(|heading| !has_heading(&text, heading));
    is_missing.then(|| format!("{}: `{link}`: there is no such heading", file.path))
}

/// What stands in backticks within the groups `*(…)*` of a line, by which an invariant names its tests.
fn named_tests(line: &str) -> impl Iterator<Item = &str> {
    let groups = line.split("*(").skip(1).filter_map(|rest| rest.split(")*").next());
    groups.flat_map(|group| group.split('`').skip(1).step_by(2))
}

/// The names of the functions that are tests: those with an attribute that says so.
fn tests_of(text: &str) -> BTreeSet<&str> {
    let (mut names, mut is_test) = (BTreeSet::new(), false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") {
            is_test |= line.contains("test]") || line.contains("::test(");
            continue;
        }
        let signature = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        let name = signature.filter(|_| is_test).and_then(|rest| rest.split(['(', '<']).next());
        names.extend(name);
        is_test = false;
    }
    names
}

#[test]
fn every_invariant_names_tests_that_are_there() {
    let document = std::fs::read_to_string(root().join("docs/ARCHITECTURE.md")).expect("it is there");
    let files = rust_files();
    let tests: BTreeSet<&str> = files.iter().flat_map(|file| tests_of(&file.text)).collect();
    // A suite that others run goes by its module: `CRATE::MODULE`.
    let is_suite = |name: &str| {
        let path = name.split_once("::").map(|(owner, module)| format!("crates/{owner}/src/{module}.rs"));
        path.is_some_and(|path| root().join(path).exists())
    };
    let invariants = document.lines().filter(|line| line.starts_with("**Invariant:**"));
    let named: Vec<&str> = invariants.flat_map(named_tests).collect();
    assert!(named.len() > 10, "only {} tests are named: the check would pass for want of work", named.len());
    let missing = named.into_iter().filter(|name| !tests.contains(name) && !is_suite(name));
    assert_none(
        "an invariant in docs/ARCHITECTURE.md names a test that is nowhere:",
        &missing.map(str::to_owned).collect::<Vec<_>>(),
    );
}

#[test]
fn tests_are_told_from_other_functions() {
    let text = "#[test]\n#[ignore = \"x\"]\nfn one() {\nfn two() {\n  #[tokio::test(flavor = \"a\")]\n  async fn three() {\n#[must_use]\nfn four() {}";
    assert_eq!(tests_of(text).into_iter().collect::<Vec<_>>(), ["one", "three"]);
    let line = "**Invariant:** a `b`. *(`one`, `c::d`)* More, `e`. *(`three`)*";
    assert_eq!(named_tests(line).collect::<Vec<_>>(), ["one", "c::d", "three"]);
}

#[test]
fn links_lead_somewhere() {
    let files = text_files();
    let documents = files.iter().filter(|file| file.has_extension("md"));
    let broken =
        documents.flat_map(|file| links(&file.text).into_iter().filter_map(|link| fault(file, link)));
    assert_none("a link within the repository must lead somewhere:", &broken.collect::<Vec<_>>());
}

#[test]
fn links_are_found_outside_code_only() {
    let text = "a [b](c.md#d-e) `[x](no.md)` [f](g)\n```\n[no](no.md)\n```\n[h](i)\n";
    assert_eq!(links(text), ["c.md#d-e", "g", "i"]);
    assert!(has_heading("# One\n## Piece trees, and what they prove\n", "piece-trees-and-what-they-prove"));
    assert!(!has_heading("# One\nTwo\n", "two"));
}
