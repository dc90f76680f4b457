//! One line of a Modelfile: a directive and its argument.
//!
//! Owns: quotes, backslashes and columns. Does not own: which directives there are.

use super::{ModelfileError, Place, Problem};

/// A line that says something.
pub(super) struct Line<'a> {
    pub(super) number: usize,
    /// The first word.
    pub(super) name: &'a str,
    pub(super) name_column: usize,
    /// What follows it.
    rest: &'a str,
    rest_column: usize,
}

impl<'a> Line<'a> {
    /// `None` for an empty line or a comment.
    pub(super) fn of(text: &'a str, number: usize) -> Option<Self> {
        let trimmed = text.trim();
        if trimmed.is_empty() || trimmed.starts_with('#') {
            return None;
        }
        let indent = text.chars().take_while(|c| c.is_whitespace()).count();
        let end = trimmed.find(char::is_whitespace).unwrap_or(trimmed.len());
        let (name, rest) = trimmed.split_at(end);
        let name_column = indent + 1;
        Some(Self { number, name, name_column, rest, rest_column: name_column + name.chars().count() })
    }

    pub(super) fn error(&self, column: usize, problem: Problem) -> ModelfileError {
        ModelfileError { place: Place { line: self.number, column }, problem }
    }
}

/// The one argument of a line, and where it begins.
pub(super) fn argument(line: &Line<'_>, name: &'static str) -> Result<(String, Place), ModelfileError> {
    let mut value = String::new();
    let mut start = None;
    let (mut quote, mut is_over) = (None, false);
    let mut characters = line.rest.chars().zip(line.rest_column..);
    while let Some((character, column)) = characters.next() {
        if quote.is_none() && character.is_whitespace() {
            is_over = start.is_some();
            continue;
        }
        if is_over {
            return Err(line.error(column, Problem::Arguments(name)));
        }
        start.get_or_insert(column);
        match character {
            '"' => quote = if quote.is_some() { None } else { Some(column) },
            '\\' => match characters.next() {
                Some((escaped, _)) => value.push(escaped),
                None => return Err(line.error(column, Problem::Open("backslash"))),
            },
            plain => value.push(plain),
        }
    }
    if let Some(column) = quote {
        return Err(line.error(column, Problem::Open("quote")));
    }
    match start {
        Some(column) if !value.is_empty() => Ok((value, Place { line: line.number, column })),
        _ => Err(line.error(line.name_column, Problem::NoArgument(name))),
    }
}

/// The argument as it is written.
pub(super) fn quoted(value: &str) -> String {
    let is_plain = !value.is_empty() && !value.contains(|c: char| c.is_whitespace() || c == '"' || c == '\\');
    if is_plain {
        return value.to_owned();
    }
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{escaped}\"")
}
