//! The way from one directory to a path, for symbolic links that stay right where a volume is mounted elsewhere.

use std::path::{Component, Path, PathBuf};

/// `path` as seen from `dir`. Both are absolute, or both relative to the same place.
pub(crate) fn relative(dir: &Path, path: &Path) -> PathBuf {
    let parts = |path: &Path| {
        path.components()
            .filter(|part| *part != Component::CurDir)
            .map(|part| part.as_os_str().to_owned())
            .collect::<Vec<_>>()
    };
    let (from, to) = (parts(dir), parts(path));
    let shared = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
    let up = from[shared..].iter().map(|_| "..".into());
    up.chain(to[shared..].iter().cloned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_up_and_down() {
        for (dir, path, expected) in [
            ("/a/b", "/a/.c/d", "../.c/d"),
            ("/a", "/a/b", "b"),
            ("/a", "/b", "../b"),
            ("a/b", "./a/c", "../c"),
        ] {
            assert_eq!(relative(Path::new(dir), Path::new(path)), Path::new(expected), "{dir} {path}");
        }
    }
}
