//! Checks on the repository itself, all of them in `tests/it`: sizes, walls between crates, words, links.
//!
//! Owns: the rules that no compiler or linter knows. Does not own: any code that others use.
