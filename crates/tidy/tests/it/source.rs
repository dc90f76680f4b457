//! Rules about the text of single files. Does not own links in documents.

use crate::tree::{TextFile, assert_none, rust_files, text_files};

/// A file past this holds two rooms.
const LINES_MAX: usize = 600;

/// The lines before the unit tests, which by house style come last.
fn non_test_lines(file: &TextFile) -> usize {
    let lines: Vec<&str> = file.text.lines().collect();
    let is_start =
        |pair: &[&str]| pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod tests");
    lines.windows(2).position(is_start).unwrap_or(lines.len())
}

#[test]
fn files_are_short() {
    let files = rust_files();
    let is_test = |path: &str| path.contains("/tests/") || path.ends_with("/tests.rs");
    let long = files.iter().filter(|file| !is_test(&file.path)).filter_map(|file| {
        let lines = non_test_lines(file);
        (lines > LINES_MAX).then(|| format!("{}: {lines} lines", file.path))
    });
    assert_none(
        &format!("a file has at most {LINES_MAX} lines without its unit tests; find the second room in it:"),
        &long.collect::<Vec<_>>(),
    );
}

#[test]
fn every_file_says_what_it_owns() {
    let files = rust_files();
    let mute = files.iter().filter(|file| !file.text.starts_with("//! ")).map(|file| file.path.clone());
    assert_none(
        "a Rust file starts with `//!`: what it owns, and what it does not:",
        &mute.collect::<Vec<_>>(),
    );
}

#[test]
fn nothing_is_left_for_later() {
    // In pieces, or this file would be an offender.
    let words = [["FIX", "ME"], ["TO", "DO"], ["XX", "X"]].map(|halves| halves.concat());
    assert_none(
        "do it now or leave it out; what is not built is absent:",
        &lines_with(|line| words.iter().any(|word| has_word(line, word))),
    );
}

#[test]
fn no_machine_is_named() {
    let roots = ["work", "home", "root", "Users"].map(|name| format!("/{name}/"));
    let names_a_machine = |line: &str| {
        roots.iter().any(|root| {
            line.match_indices(root).any(|(at, _)| {
                // `a/home/b` and `$DIR/home/b` are relative to something.
                line[..at].chars().next_back().is_none_or(|before| !is_path_char(before))
            })
        })
    };
    assert_none("a path that only one machine has does not belong here:", &lines_with(names_a_machine));
}

fn is_path_char(c: char) -> bool {
    c.is_alphanumeric() || "._-}*)".contains(c)
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        [before, after].into_iter().flatten().all(|c| !c.is_alphanumeric() && c != '_')
    })
}

/// `path:line: text` of every line of every text file that somebody writes and for which `is_bad` holds.
fn lines_with(is_bad: impl Fn(&str) -> bool) -> Vec<String> {
    let files = text_files();
    let written = files.iter().filter(|file| !file.is_generated());
    written
        .flat_map(|file| file.lines().map(move |(number, line)| (file, number, line)))
        .filter(|(_, _, line)| is_bad(line))
        .map(|(file, number, line)| format!("{}:{number}: {}", file.path, line.trim()))
        .collect()
}
