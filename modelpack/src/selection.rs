//! Which files of an artifact are wanted.
//!
//! Owns: globs over paths (`*` within a directory, `**` across directories) and kinds. Does not own: fetching.

use std::{collections::BTreeSet, fmt};

use globset::{GlobBuilder, GlobMatcher};

use crate::{manifest::Kind, text::shown};

/// A selection that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectionError {
    /// A pattern is malformed.
    #[error("the pattern `{pattern}` is malformed: {problem}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A part of the selection has no file.
    #[error("{what} matches no file of the artifact")]
    NoMatch {
        /// Which part, as it was written.
        what: String,
    },
    /// Nothing is left.
    #[error("the selection leaves out every file of the artifact")]
    Nothing,
}

impl SelectionError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Pattern { .. } => "`*` stands for a part of a name, `**` for any directories".into(),
            Self::NoMatch { .. } | Self::Nothing => {
                "`modelctl inspect REF` lists the files; `*` stays within a directory, `**/*.json` does not"
                    .into()
            }
        })
    }
}

/// What is wanted of an artifact. Without any part it is everything.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    include: Vec<Glob>,
    exclude: Vec<Glob>,
    kinds: BTreeSet<Kind>,
}

#[derive(Clone, Debug)]
struct Glob {
    text: String,
    matcher: GlobMatcher,
}

impl Glob {
    fn new(text: &str) -> Result<Self, SelectionError> {
        // As `doublestar` has it, which the tools of other people use: the whole path has to match.
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        let glob = glob.map_err(|error| SelectionError::Pattern {
            pattern: shown(text),
            problem: error.kind().to_string(),
        })?;
        Ok(Self { text: text.to_owned(), matcher: glob.compile_matcher() })
    }
}

/// The parts of a selection that some file has matched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matched {
    include: BTreeSet<usize>,
    exclude: BTreeSet<usize>,
    kinds: BTreeSet<Kind>,
    any: bool,
}

impl Matched {
    /// What was matched here or there.
    pub fn join(&mut self, other: &Self) {
        self.include.extend(&other.include);
        self.exclude.extend(&other.exclude);
        self.kinds.extend(&other.kinds);
        self.any |= other.any;
    }
}

impl Selection {
    /// What one of `include` matches, or everything where that is empty; none of `exclude`; of one of `kinds`, or any.
    pub fn new(include: &[String], exclude: &[String], kinds: &[Kind]) -> Result<Self, SelectionError> {
        let globs = |texts: &[String]| texts.iter().map(|text| Glob::new(text)).collect::<Result<_, _>>();
        Ok(Self {
            include: globs(include)?,
            exclude: globs(exclude)?,
            kinds: kinds.iter().copied().collect(),
        })
    }

    /// Whether it leaves nothing out.
    pub fn is_everything(&self) -> bool {
        self.include.is_empty() && self.exclude.is_empty() && self.kinds.is_empty()
    }

    /// Whether files of this kind may be wanted.
    pub fn admits(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Whether a file is wanted; keeps in `matched` what had to do with it.
    pub fn selects(&self, path: &str, kind: Kind, matched: &mut Matched) -> bool {
        let of = |globs: &[Glob]| -> Vec<usize> {
            (0..)
                .zip(globs)
                .filter(|(_, glob)| glob.matcher.is_match(path))
                .map(|(number, _)| number)
                .collect()
        };
        let (included, excluded) = (of(&self.include), of(&self.exclude));
        let is_wanted =
            self.admits(kind) && excluded.is_empty() && (self.include.is_empty() || !included.is_empty());
        matched.include.extend(included);
        matched.exclude.extend(excluded);
        matched.kinds.insert(kind);
        matched.any |= is_wanted;
        is_wanted
    }

    /// That every part of it has matched a file, and that something is left.
    pub fn check(&self, matched: &Matched) -> Result<(), SelectionError> {
        let missing = |globs: &[Glob], found: &BTreeSet<usize>, flag: &str| {
            let missing = (0..).zip(globs).find(|(number, _)| !found.contains(number));
            missing.map(|(_, glob)| format!("`{flag} {}`", shown(&glob.text)))
        };
        let what = missing(&self.include, &matched.include, "--include")
            .or_else(|| missing(&self.exclude, &matched.exclude, "--exclude"))
            .or_else(|| {
                self.kinds
                    .iter()
                    .find(|kind| !matched.kinds.contains(kind))
                    .map(|kind| format!("`--kind {kind}`"))
            });
        match what {
            Some(what) => Err(SelectionError::NoMatch { what }),
            None if !matched.any => Err(SelectionError::Nothing),
            None => Ok(()),
        }
    }

    /// The patterns of files that are wanted, in the order in which they were given.
    pub fn include(&self) -> impl Iterator<Item = &str> {
        self.include.iter().map(|glob| glob.text.as_str())
    }

    /// The patterns of files that are left out, in the order in which they were given.
    pub fn exclude(&self) -> impl Iterator<Item = &str> {
        self.exclude.iter().map(|glob| glob.text.as_str())
    }

    /// The kinds that are wanted; empty for any.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().copied()
    }
}

/// As it is written on the command line: equal selections have equal text.
impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let include = self.include().map(|glob| format!("--include {glob}"));
        let exclude = self.exclude().map(|glob| format!("--exclude {glob}"));
        let kinds = self.kinds().map(|kind| format!("--kind {kind}"));
        f.write_str(&include.chain(exclude).chain(kinds).collect::<Vec<_>>().join(" "))
    }
}
