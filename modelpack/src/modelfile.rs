//! Modelfiles: which files of a directory become layers of which kind, and what is said of the model.
//!
//! Source: modctl's `pkg/modelfile`, whose files are read here as it reads them: twelve directives, one a line with one
//! argument, quotes and backslashes, globs by the rules of Go's `filepath.Match`. Two things go beyond it: `DATASET` is
//! honoured, which modctl reads and drops, and a directory stands for all that lies below it, which modctl refuses.
//! Owns: the text, and choosing among paths. Does not own: listing a directory, or what is built of the choice.

mod glob;
mod line;

use std::fmt::Write as _;

use self::{
    glob::Pattern,
    line::{Line, argument},
};
use crate::{manifest::Kind, path::PATH_BYTES_MAX, text::shown};

/// Most bytes of a Modelfile: it travels in a manifest, which has a limit of 4 MiB itself.
pub const MODELFILE_BYTES_MAX: usize = 1 << 20;

/// How modctl begins what it generates; the rest of the line is a time, which no two builds share.
const GENERATED: &str = "# Generated at ";

/// A Modelfile that was read, or one to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modelfile {
    /// What it says of the model.
    pub facts: Facts,
    /// Which files it takes, in its order.
    pub choices: Vec<Choice>,
}

/// What is said of a model in one word each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: Option<String>,
    /// Its architecture, such as `transformer`.
    pub architecture: Option<String>,
    /// Its family, such as `llama`.
    pub family: Option<String>,
    /// The format of its weight files, such as `safetensors`.
    pub format: Option<String>,
    /// How many parameters it has, such as `6.7B`.
    pub param_size: Option<String>,
    /// The types of its numbers, such as `bfloat16`.
    pub precision: Option<String>,
    /// How it is quantized, such as `awq`.
    pub quantization: Option<String>,
}

/// One line that takes files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What they are for.
    pub kind: Kind,
    /// Their path below the model's directory, or a glob.
    pub pattern: String,
    /// Where its argument stands; nothing for a choice that was not read.
    pub place: Option<Place>,
}

/// A place in a text, as editors count: from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

/// A Modelfile that cannot be used, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {}, column {}: {problem}", place.line, place.column)]
pub struct ModelfileError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub problem: Problem,
}

/// What can be wrong with a Modelfile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It is too long to travel in a manifest.
    #[error("the file has {0} bytes, over the limit of {MODELFILE_BYTES_MAX}")]
    TooLong(usize),
    /// It is no text.
    #[error("the file is not UTF-8 from here on, or has a control character here")]
    Text,
    /// No directive has that name.
    #[error("`{0}` is no directive")]
    Directive(String),
    /// A directive has exactly one argument.
    #[error("`{0}` takes one argument, but there is none")]
    NoArgument(&'static str),
    /// A directive has exactly one argument.
    #[error("`{0}` takes one argument, but there is a second one here")]
    Arguments(&'static str),
    /// A quote without its other half, or a backslash with nothing after it.
    #[error("the {0} is not complete at the end of the line")]
    Open(&'static str),
    /// What can be said only once is said again.
    #[error("`{name}` was said on line {first} already")]
    Repeated {
        /// The directive.
        name: &'static str,
        /// Where it was said first.
        first: usize,
    },
    /// It is no pattern, or none that stays below the directory.
    #[error("`{pattern}` {why}")]
    Pattern {
        /// The argument.
        pattern: String,
        /// Why not.
        why: &'static str,
    },
    /// A file is named that is not there.
    #[error("there is no `{0}` in the model's directory")]
    Missing(String),
}

impl ModelfileError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match &self.problem {
            Problem::TooLong(_) => "take many files at once with a glob or their directory",
            Problem::Text => "save it as plain text in UTF-8",
            Problem::Directive(_) => {
                "directives are NAME, ARCH, FAMILY, FORMAT, PARAMSIZE, PRECISION, QUANTIZATION, CONFIG, MODEL, \
                 CODE, DOC and DATASET"
            }
            Problem::NoArgument(_) => "write it after the directive, or remove the line",
            Problem::Arguments(_) => "put an argument with spaces in double quotes",
            Problem::Open(_) => "a backslash takes the next character as it is; double quotes come in pairs",
            Problem::Repeated { .. } => "leave one of the two lines",
            Problem::Pattern { .. } => {
                "name files below the model's directory; `*`, `?` and `[a-z]` match within one part of a path"
            }
            Problem::Missing(_) => "correct the path, or use a glob, which may match nothing",
        };
        Some(hint.into())
    }
}

/// What a line says.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Directive {
    Fact(Fact),
    Files(Kind),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fact {
    Name,
    Architecture,
    Family,
    Format,
    ParamSize,
    Precision,
    Quantization,
}

/// In the order in which they are written.
const DIRECTIVES: [(&str, Directive); 12] = [
    ("NAME", Directive::Fact(Fact::Name)),
    ("ARCH", Directive::Fact(Fact::Architecture)),
    ("FAMILY", Directive::Fact(Fact::Family)),
    ("FORMAT", Directive::Fact(Fact::Format)),
    ("PARAMSIZE", Directive::Fact(Fact::ParamSize)),
    ("PRECISION", Directive::Fact(Fact::Precision)),
    ("QUANTIZATION", Directive::Fact(Fact::Quantization)),
    ("CONFIG", Directive::Files(Kind::Config)),
    ("MODEL", Directive::Files(Kind::Weight)),
    ("CODE", Directive::Files(Kind::Code)),
    ("DOC", Directive::Files(Kind::Doc)),
    ("DATASET", Directive::Files(Kind::Dataset)),
];

impl Facts {
    fn slot(&mut self, fact: Fact) -> &mut Option<String> {
        match fact {
            Fact::Name => &mut self.name,
            Fact::Architecture => &mut self.architecture,
            Fact::Family => &mut self.family,
            Fact::Format => &mut self.format,
            Fact::ParamSize => &mut self.param_size,
            Fact::Precision => &mut self.precision,
            Fact::Quantization => &mut self.quantization,
        }
    }

    /// These, and where they say nothing, those.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            name: self.name.or(other.name),
            architecture: self.architecture.or(other.architecture),
            family: self.family.or(other.family),
            format: self.format.or(other.format),
            param_size: self.param_size.or(other.param_size),
            precision: self.precision.or(other.precision),
            quantization: self.quantization.or(other.quantization),
        }
    }
}

impl Modelfile {
    /// Reads a Modelfile.
    pub fn parse(raw: &[u8]) -> Result<Self, ModelfileError> {
        let start = Place { line: 1, column: 1 };
        if raw.len() > MODELFILE_BYTES_MAX {
            return Err(ModelfileError { place: start, problem: Problem::TooLong(raw.len()) });
        }
        let text = text(raw)?;
        let mut modelfile = Self::default();
        let mut said: Vec<(Fact, usize)> = Vec::new();
        for (number, text) in text.split('\n').enumerate() {
            let Some(line) = Line::of(text, number + 1) else { continue };
            let known = DIRECTIVES.iter().find(|(name, _)| line.name.eq_ignore_ascii_case(name));
            let Some((name, directive)) = known.copied() else {
                return Err(line.error(line.name_column, Problem::Directive(shown(line.name))));
            };
            let (value, place) = argument(&line, name)?;
            match directive {
                Directive::Files(kind) => {
                    let choice = Choice { kind, pattern: value, place: Some(place) };
                    choice.compiled()?;
                    // modctl keeps a set: the same line twice is the same as once.
                    if !modelfile.choices.iter().any(|c| (c.kind, &c.pattern) == (kind, &choice.pattern)) {
                        modelfile.choices.push(choice);
                    }
                }
                Directive::Fact(fact) => {
                    if let Some((_, first)) = said.iter().find(|(other, _)| *other == fact) {
                        return Err(line.error(line.name_column, Problem::Repeated { name, first: *first }));
                    }
                    said.push((fact, line.number));
                    *modelfile.facts.slot(fact) = Some(value);
                }
            }
        }
        Ok(modelfile)
    }

    /// Which of these files it takes, and as what: `paths` are all that lie below the directory. Of several lines that
    /// take the same file the first one counts. The result is sorted by path.
    pub fn select<'a>(&self, paths: &[&'a str]) -> Result<Vec<(&'a str, Kind)>, ModelfileError> {
        let mut kinds: Vec<Option<Kind>> = vec![None; paths.len()];
        for choice in &self.choices {
            let pattern = choice.compiled()?;
            let mut is_found = false;
            for (path, kind) in paths.iter().zip(&mut kinds) {
                if pattern.takes(path) {
                    is_found = true;
                    kind.get_or_insert(choice.kind);
                }
            }
            if !is_found && !pattern.is_glob() {
                return Err(choice.error(Problem::Missing(shown(&choice.pattern))));
            }
        }
        let chosen = paths.iter().zip(kinds).filter_map(|(path, kind)| Some((*path, kind?)));
        let mut chosen: Vec<_> = chosen.collect();
        chosen.sort_unstable_by_key(|(path, _)| *path);
        Ok(chosen)
    }

    /// The file as it is written; [`Self::parse`] reads the same from it.
    pub fn text(&self) -> String {
        let (mut text, mut facts) = (String::new(), self.facts.clone());
        for (name, directive) in DIRECTIVES {
            let Directive::Fact(fact) = directive else { continue };
            if let Some(value) = facts.slot(fact) {
                let _ = writeln!(text, "{name} {}", line::quoted(value));
            }
        }
        let mut before = None;
        for choice in &self.choices {
            // In the order given: where two lines take the same file, the first one counts.
            if before.replace(choice.kind) != Some(choice.kind) && !text.is_empty() {
                text.push('\n');
            }
            let is_it = |(_, directive): &&(&str, Directive)| *directive == Directive::Files(choice.kind);
            let (name, _) = DIRECTIVES.iter().find(is_it).expect("each kind has a directive");
            let _ = writeln!(text, "{name} {}", line::quoted(&choice.pattern));
        }
        text
    }
}

impl Choice {
    /// The choice of one file, whatever characters its path has.
    pub fn of_file(kind: Kind, path: &str) -> Self {
        Self { kind, pattern: glob::literal(path), place: None }
    }

    fn compiled(&self) -> Result<Pattern, ModelfileError> {
        if self.pattern.len() > PATH_BYTES_MAX {
            let why = "is longer than any path";
            return Err(self.error(Problem::Pattern { pattern: shown(&self.pattern), why }));
        }
        Pattern::new(&self.pattern)
            .map_err(|why| self.error(Problem::Pattern { pattern: shown(&self.pattern), why }))
    }

    fn error(&self, problem: Problem) -> ModelfileError {
        ModelfileError { place: self.place.unwrap_or(Place { line: 1, column: 1 }), problem }
    }
}

/// The text of a Modelfile as an artifact keeps it: without the time at which modctl generated it, so that the same
/// model gives the same manifest.
pub fn without_time(text: &str) -> String {
    let lines = text.split_inclusive('\n').filter(|line| !line.trim_start().starts_with(GENERATED));
    lines.collect::<String>().trim_start_matches(['\r', '\n']).to_owned()
}

/// The text, if it is one.
fn text(raw: &[u8]) -> Result<&str, ModelfileError> {
    let (text, is_whole) = match std::str::from_utf8(raw) {
        Ok(text) => (text, true),
        Err(error) => {
            let valid = &raw[..error.valid_up_to()];
            (std::str::from_utf8(valid).expect("valid up to there"), false)
        }
    };
    let odd = text.find(|c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    match odd.or_else(|| (!is_whole).then_some(text.len())) {
        None => Ok(text),
        Some(at) => {
            let before = &text[..at];
            let line = before.rsplit('\n').next().unwrap_or(before);
            let place = Place { line: before.matches('\n').count() + 1, column: line.chars().count() + 1 };
            Err(ModelfileError { place, problem: Problem::Text })
        }
    }
}
