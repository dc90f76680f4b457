//! The files of the repository, and how offenders are reported. Does not own any rule.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// One text file that is, or is about to be, committed.
pub(crate) struct TextFile {
    /// Its path below the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl TextFile {
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        Path::new(&self.path).extension().is_some_and(|found| found == extension)
    }

    /// Written by a generator, and changed only by it.
    pub(crate) fn is_generated(&self) -> bool {
        self.path.contains("/gen/") || self.path == "Cargo.lock"
    }

    /// Its lines with their numbers from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line))
    }
}

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// What git tracks or would, if it is text.
pub(crate) fn text_files() -> Vec<TextFile> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("these checks need git");
    assert!(listed.status.success(), "git lists no files: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names here are UTF-8");
    let read = |name: &str| {
        // Listed but removed from the work tree, or no text: nothing to read.
        let text = std::fs::read_to_string(root().join(name)).ok()?;
        Some(TextFile { path: name.to_owned(), text })
    };
    let files: Vec<TextFile> = names.split_terminator('\0').filter_map(read).collect();
    assert!(files.len() > 50, "only {} files found: the checks would pass for want of work", files.len());
    files
}

/// The Rust files that people write.
pub(crate) fn rust_files() -> Vec<TextFile> {
    text_files().into_iter().filter(|file| file.has_extension("rs") && !file.is_generated()).collect()
}

/// Fails with the rule and everybody who breaks it.
pub(crate) fn assert_none(rule: &str, offenders: &[String]) {
    assert!(offenders.is_empty(), "{rule}\n  {}\n", offenders.join("\n  "));
}
