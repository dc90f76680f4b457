//! A version as Triton wants to see it: a model directory with a configuration and one numbered version.
//!
//! ```text
//! REPOSITORY/chat               a link to the one that is in place
//! .chat.versions/triton/3-HEX/  config.pbtxt, and whatever else lies beside it in the artifact
//! .chat.versions/triton/3-HEX/3 links to the version's files; what a template adds
//! ```
//!
//! The numbers ascend, since Triton takes a model for unchanged whose files have the same names and times, and times are
//! those of the artifact. Owns: these files. Does not own: what Triton is told.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use modelpack::digest::Sha256Digest;

use crate::{
    error::SidecarError,
    relative::relative,
    versions::{TRITON_NAME, Versions, entries, relink, remove},
};

/// The configuration of a model.
const CONFIG_NAME: &str = "config.pbtxt";

/// Our own part of a version.
const OWN_NAME: &str = ".modelctl";

/// A version as Triton knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbered {
    pub(super) number: u64,
    pub(super) path: PathBuf,
}

/// What a template is filled with.
pub(super) struct Template<'a> {
    pub(super) dir: Option<&'a Path>,
    pub(super) name: &'a str,
}

/// The version's model directory, which is made if it is not there.
pub(super) fn numbered(
    versions: &Versions,
    version: &Sha256Digest,
    template: &Template<'_>,
) -> Result<Numbered, SidecarError> {
    let home = versions.home().join(TRITON_NAME);
    fs::create_dir_all(&home).map_err(SidecarError::io("make", &home))?;
    let mut last = 0;
    for path in entries(&home)? {
        let Some((number, hex)) = parts(&path) else { continue };
        if hex == version.hex() {
            return Ok(Numbered { number, path });
        }
        last = last.max(number);
    }
    let number = last + 1;
    let path = home.join(format!("{number}-{}", version.hex()));
    let scratch = home.join("new");
    if scratch.exists() {
        remove(&scratch)?;
    }
    let source = versions.path(version);
    write(&source, &scratch, number, template)?;
    fs::rename(&scratch, &path).map_err(SidecarError::io("rename", &scratch))?;
    Ok(Numbered { number, path })
}

/// The number and the version in the name of a model directory.
fn parts(path: &Path) -> Option<(u64, String)> {
    let (number, hex) = path.file_name()?.to_str()?.split_once('-')?;
    Some((number.parse().ok()?, hex.to_owned()))
}

/// Gives a model directory its name in the repository.
pub(super) fn place(
    versions: &Versions,
    repository: &Path,
    name: &str,
    path: &Path,
) -> Result<(), SidecarError> {
    fs::create_dir_all(repository).map_err(SidecarError::io("make", repository))?;
    // As they are on disk: `..` in a link leads up from where the link really is.
    let repository = fs::canonicalize(repository).map_err(SidecarError::io("find", repository))?;
    let path = fs::canonicalize(path).map_err(SidecarError::io("find", path))?;
    let link = repository.join(name);
    if link.symlink_metadata().is_ok_and(|meta| !meta.is_symlink()) {
        return Err(SidecarError::Occupied { dir: link, what: "not a link" });
    }
    let target = relative(&repository, &path);
    if fs::read_link(&link).is_ok_and(|found| found == target) {
        return Ok(());
    }
    // A link is renamed within one file system: that of the repository.
    let scratch = if is_same_device(versions.home(), &repository) { versions.home() } else { &repository };
    relink(scratch, &target, &link)
}

fn is_same_device(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let device = |path: &Path| path.metadata().map(|meta| meta.dev()).ok();
    device(one) == device(other)
}

/// Removes the model directories of versions that are no longer there.
pub(crate) fn sweep(versions: &Versions, kept: &[Sha256Digest]) -> Result<(), SidecarError> {
    for path in entries(&versions.home().join(TRITON_NAME))? {
        let is_kept = parts(&path).is_none_or(|(_, hex)| kept.iter().any(|version| version.hex() == hex));
        if !is_kept {
            remove(&path)?;
        }
    }
    Ok(())
}

/// Links to the files of `source` and fills the template, as a model directory at `target`.
fn write(source: &Path, target: &Path, number: u64, template: &Template<'_>) -> Result<(), SidecarError> {
    let of_version = target.join(number.to_string());
    fs::create_dir_all(&of_version).map_err(SidecarError::io("make", &of_version))?;
    let top = entries(source)?;
    // An artifact may hold a whole model directory. Then its one version is taken, whatever its number.
    let is_number = |path: &PathBuf| {
        path.is_dir()
            && path
                .file_name()
                .is_some_and(|name| name.to_str().is_some_and(|name| name.parse::<u64>().is_ok()))
    };
    let mut numbers = top.iter().filter(|path| is_number(path));
    let shipped = numbers.next().filter(|_| numbers.next().is_none());
    let files = match shipped {
        Some(dir) => entries(dir)?,
        None => top.iter().filter(|path| name_of(path) != CONFIG_NAME).cloned().collect(),
    };
    for file in files.iter().filter(|path| name_of(path) != OWN_NAME) {
        link(file, &of_version, source, target)?;
    }
    for file in top.iter().filter(|path| shipped.is_some() || name_of(path) == CONFIG_NAME) {
        match name_of(file) {
            OWN_NAME => {}
            // A file of its own, because others may want to look whether it has changed.
            CONFIG_NAME => {
                let to = target.join(CONFIG_NAME);
                let copied = fs::read(file).and_then(|bytes| fs::write(&to, bytes));
                copied.map_err(SidecarError::io("write", to))?;
            }
            _ if Some(file) == shipped => {}
            _ => link(file, target, source, target)?,
        }
    }
    for file in template.dir.map(entries).transpose()?.unwrap_or_default() {
        fill(
            &file,
            source,
            if name_of(&file) == CONFIG_NAME { target } else { &of_version },
            (number, template),
        )?;
    }
    Ok(())
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// A link in `dir` to a file of the version. `dir` is, or lies in, the scratch directory `target`, which will be renamed
/// within its own directory: what a link says stays right.
fn link(file: &Path, dir: &Path, source: &Path, target: &Path) -> Result<(), SidecarError> {
    debug_assert!(file.starts_with(source) && dir.starts_with(target), "links lead from here to there");
    let at = dir.join(name_of(file));
    symlink(relative(dir, file), &at).map_err(SidecarError::io("make", at))
}

/// Writes one file of the template, unless the artifact has its own.
fn fill(
    file: &Path,
    source: &Path,
    dir: &Path,
    (number, template): (u64, &Template<'_>),
) -> Result<(), SidecarError> {
    let at = dir.join(name_of(file));
    if !file.is_file() || at.symlink_metadata().is_ok() {
        return Ok(());
    }
    let text = fs::read_to_string(file).map_err(SidecarError::io("read", file))?;
    let filled = text
        .replace("{{name}}", template.name)
        .replace("{{version}}", &number.to_string())
        .replace("{{directory}}", &source.display().to_string());
    fs::write(&at, filled).map_err(SidecarError::io("write", at))
}

#[cfg(test)]
mod tests {
    use modelpack::selection::Selection;

    use super::*;

    fn version(number: u8) -> Sha256Digest {
        Sha256Digest::new([number; 32])
    }

    struct Site {
        root: tempfile::TempDir,
        versions: Versions,
    }

    impl Site {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let versions = Versions::open(&root.path().join("chat"), &Selection::default()).unwrap();
            Self { root, versions }
        }

        fn with(number: u8, files: &[&str]) -> Self {
            let site = Self::new();
            site.fill(number, files);
            site
        }

        fn fill(&self, number: u8, files: &[&str]) {
            for file in files {
                let path = self.versions.path(&version(number)).join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{number} {file}")).unwrap();
            }
        }

        fn place(&self, number: u8, template: Option<&Path>) -> Numbered {
            let template = Template { dir: template, name: "chat" };
            let numbered = numbered(&self.versions, &version(number), &template).unwrap();
            place(&self.versions, &self.root.path().join("repository"), "chat", &numbered.path).unwrap();
            numbered
        }

        fn read(&self, file: &str) -> String {
            fs::read_to_string(self.root.path().join("repository/chat").join(file)).unwrap()
        }
    }

    #[test]
    fn flat_artifacts_become_one_numbered_version() {
        let site =
            Site::with(1, &["config.pbtxt", "model.py", "weights/a.safetensors", ".modelctl/complete.json"]);
        assert_eq!(site.place(1, None).number, 1);
        assert_eq!(site.read("config.pbtxt"), "1 config.pbtxt");
        assert_eq!(site.read("1/model.py"), "1 model.py");
        assert_eq!(site.read("1/weights/a.safetensors"), "1 weights/a.safetensors");
        assert!(!site.root.path().join("repository/chat/1/.modelctl").exists());
        // Once more is the same, another version the next number.
        assert_eq!(site.place(1, None).number, 1);
        site.fill(2, &["config.pbtxt", "model.py"]);
        assert_eq!(site.place(2, None).number, 2);
        assert_eq!(site.read("2/model.py"), "2 model.py");
        sweep(&site.versions, &[version(2)]).unwrap();
        assert_eq!(entries(&site.versions.home().join("triton")).unwrap().len(), 1);
    }

    #[test]
    fn artifacts_that_are_model_directories_keep_what_lies_beside_the_version() {
        let site = Site::with(1, &["config.pbtxt", "labels.txt", "7/model.py", "7/model.safetensors"]);
        site.place(1, None);
        assert_eq!(site.read("1/model.py"), "1 7/model.py");
        assert_eq!(site.read("labels.txt"), "1 labels.txt");
        assert!(!site.root.path().join("repository/chat/7").exists());
    }

    #[test]
    fn a_template_adds_what_the_artifact_lacks() {
        let site = Site::with(1, &["model.safetensors", "model.py"]);
        let template = site.root.path().join("template");
        fs::create_dir(&template).unwrap();
        fs::write(template.join("config.pbtxt"), "name: \"{{name}}\"").unwrap();
        fs::write(template.join("model.json"), "{\"model\": \"{{directory}}\", \"version\": {{version}}}")
            .unwrap();
        fs::write(template.join("model.py"), "of the template").unwrap();
        site.place(1, Some(&template));
        assert_eq!(site.read("config.pbtxt"), "name: \"chat\"");
        let dir = site.versions.path(&version(1));
        assert_eq!(
            site.read("1/model.json"),
            format!("{{\"model\": \"{}\", \"version\": 1}}", dir.display())
        );
        assert_eq!(site.read("1/model.py"), "1 model.py");
    }

    #[test]
    fn a_model_of_somebody_else_is_left_alone() {
        let site = Site::with(1, &["model.py"]);
        let other = site.root.path().join("repository/chat");
        fs::create_dir_all(&other).unwrap();
        let repository = site.root.path().join("repository");
        let placed = place(&site.versions, &repository, "chat", &site.versions.path(&version(1)));
        assert!(matches!(placed, Err(SidecarError::Occupied { .. })));
    }
}
