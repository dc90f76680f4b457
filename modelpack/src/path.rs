//! Which paths an artifact may have: names from a manifest are hostile until they passed here.
//!
//! Owns: the rules for one path and for all paths together. Does not own: opening files; the store resolves paths
//! beneath its directory as well.

use crate::text::shown;

/// Most bytes of a path: `PATH_MAX` of Linux.
pub const PATH_BYTES_MAX: usize = 4096;

/// Most bytes of one component of a path: `NAME_MAX` of Linux.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// The directory below a published one that is Modelcast's own, and no artifact's.
const RESERVED: &str = ".modelctl";

/// Why a path is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// It begins with `/`.
    #[error("path `{0}` is absolute")]
    Absolute(String),
    /// A component is empty, `.` or `..`.
    #[error("path `{0}` has a component that is empty, `.` or `..`")]
    Component(String),
    /// A character that could hide or change its meaning.
    #[error("path `{0}` has a backslash or a control character")]
    Character(String),
    /// More than [`PATH_BYTES_MAX`] or [`COMPONENT_BYTES_MAX`].
    #[error("path `{0}` is over {PATH_BYTES_MAX} bytes or has a component over {COMPONENT_BYTES_MAX} bytes")]
    Length(String),
    /// It lies in the directory that Modelcast keeps for itself.
    #[error("path `{0}` lies in `{RESERVED}`, which is reserved")]
    Reserved(String),
    /// Two files have the same path, or would on a file system that ignores case.
    #[error("paths `{0}` and `{1}` are the same, or differ only by case")]
    Collision(String, String),
    /// A file has the path of a directory.
    #[error("path `{0}` is a file, but also the directory of `{1}`")]
    FileAndDirectory(String, String),
}

/// Checks one path: relative, plain, printable, not ours, and not too long.
pub fn check(path: &str) -> Result<(), PathError> {
    if path.starts_with('/') {
        return Err(PathError::Absolute(shown(path)));
    }
    if path.chars().any(|c| c.is_control() || c == '\\') {
        return Err(PathError::Character(shown(path)));
    }
    if path.len() > PATH_BYTES_MAX || path.split('/').any(|part| part.len() > COMPONENT_BYTES_MAX) {
        return Err(PathError::Length(shown(path)));
    }
    if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(PathError::Component(shown(path)));
    }
    if path.split('/').next().is_some_and(|first| folded(first).eq(RESERVED.chars())) {
        return Err(PathError::Reserved(shown(path)));
    }
    Ok(())
}

/// Checks that checked paths can all exist together, even on a file system that ignores case.
pub fn check_together<'a>(paths: impl Iterator<Item = &'a str>) -> Result<(), PathError> {
    // With the separator as the smallest character, what lies below a path follows it directly.
    let mut keys: Vec<(String, &str)> =
        paths.map(|path| (folded(path).map(|c| if c == '/' { '\0' } else { c }).collect(), path)).collect();
    keys.sort_unstable();
    for pair in keys.windows(2) {
        let [(key, path), (next_key, next)] = pair else { unreachable!("windows of two") };
        match next_key.strip_prefix(key.as_str()) {
            Some("") => return Err(PathError::Collision(shown(path), shown(next))),
            Some(rest) if rest.starts_with('\0') => {
                return Err(PathError::FileAndDirectory(shown(path), shown(next)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Lower case, character by character, so that no character's neighbours change the result.
fn folded(text: &str) -> impl Iterator<Item = char> + '_ {
    text.chars().flat_map(char::to_lowercase)
}
