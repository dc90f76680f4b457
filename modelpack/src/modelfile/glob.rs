//! Patterns of paths by the rules of Go's `filepath.Match`: `*`, `?` and classes match within one part of a path.
//!
//! Owns: reading and matching a pattern. Does not own: which paths there are.

/// A pattern that was read. It takes the files that it matches, and all that lies below a directory that it matches.
pub(super) struct Pattern {
    parts: Vec<Vec<Token>>,
}

enum Token {
    Literal(char),
    /// `?`
    One,
    /// `*`
    Any,
    /// `[…]`: whether it is `[^…]`, and its ranges.
    Class(bool, Vec<(char, char)>),
}

impl Pattern {
    /// Reads a pattern; an error says why it is none.
    pub(super) fn new(text: &str) -> Result<Self, &'static str> {
        if text.starts_with('/') {
            return Err("is an absolute path");
        }
        let mut parts = Vec::new();
        for part in text.split('/') {
            match part {
                "" | "." => {}
                ".." => return Err("leads out of the model's directory"),
                part => parts.push(tokens(part)?),
            }
        }
        Ok(Self { parts })
    }

    /// Whether it can match other names than one.
    pub(super) fn is_glob(&self) -> bool {
        self.parts.iter().flatten().any(|token| !matches!(token, Token::Literal(_)))
    }

    /// Whether it matches the file, or a directory above it.
    pub(super) fn takes(&self, path: &str) -> bool {
        let mut names = path.split('/');
        self.parts.iter().all(|tokens| names.next().is_some_and(|name| is_match(tokens, name)))
    }
}

/// A pattern that matches just this path.
pub(super) fn literal(path: &str) -> String {
    let mut text = String::new();
    for character in path.chars() {
        if matches!(character, '*' | '?' | '[' | '\\') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

fn tokens(part: &str) -> Result<Vec<Token>, &'static str> {
    let mut tokens = Vec::new();
    let mut characters = part.chars().peekable();
    while let Some(character) = characters.next() {
        tokens.push(match character {
            '*' => Token::Any,
            '?' => Token::One,
            '\\' => Token::Literal(characters.next().ok_or("ends with a backslash")?),
            '[' => class(&mut characters)?,
            plain => Token::Literal(plain),
        });
    }
    Ok(tokens)
}

/// A class, after its `[`.
fn class(characters: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const BAD: &str = "has a `[` that begins no class of characters";
    let is_negated = characters.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    // As in Go: the first `]` ends a class unless nothing is in it yet.
    while ranges.is_empty() || characters.next_if_eq(&']').is_none() {
        let mut end = || match characters.next() {
            Some('\\') => characters.next().ok_or(BAD),
            Some('-' | ']') | None => Err(BAD),
            Some(plain) => Ok(plain),
        };
        let low = end()?;
        let high = if characters.next_if_eq(&'-').is_some() {
            match characters.next() {
                Some('\\') => characters.next().ok_or(BAD)?,
                Some('-' | ']') | None => return Err(BAD),
                Some(plain) => plain,
            }
        } else {
            low
        };
        ranges.push((low, high));
    }
    Ok(Token::Class(is_negated, ranges))
}

/// Goes back to the last `*` only: what an earlier one took can never need to change.
fn is_match(tokens: &[Token], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut token, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < name.len() {
        let is_one = match tokens.get(token) {
            Some(Token::Any) => {
                star = Some((token, at));
                token += 1;
                continue;
            }
            Some(Token::One) => true,
            Some(Token::Literal(literal)) => *literal == name[at],
            Some(Token::Class(is_negated, ranges)) => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&name[at])) != *is_negated
            }
            None => false,
        };
        if is_one {
            (token, at) = (token + 1, at + 1);
        } else if let Some((star_token, star_at)) = star {
            star = Some((star_token, star_at + 1));
            (token, at) = (star_token + 1, star_at + 1);
        } else {
            return false;
        }
    }
    tokens[token..].iter().all(|token| matches!(token, Token::Any))
}
