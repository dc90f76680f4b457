//! Which part of a blob a request is for (RFC 9110, section 14).
//!
//! Owns: `Range` and `If-Range`. Does not own: sending the part.

use std::ops::Range;

/// What of a blob is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes, of which there is at least one.
    Part(Range<u64>),
    /// Bytes that it does not have.
    Unsatisfiable,
}

/// What a request with these headers wants of `bytes` bytes whose strong validator is `etag`. What is no range of bytes, or
/// are several, is taken as if it were not there, as RFC 9110 allows and says.
pub fn wanted(range: Option<&str>, if_range: Option<&str>, etag: &str, bytes: u64) -> Wanted {
    // A date is never the validator of bytes that are named by their digest.
    if if_range.is_some_and(|validator| validator.trim() != etag) {
        return Wanted::Whole;
    }
    let Some((unit, spec)) = range.and_then(|range| range.split_once('=')) else { return Wanted::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let Some((first, last)) = spec.trim().split_once('-') else { return Wanted::Whole };
    match (position(first), position(last)) {
        (Position::None, Position::At(count)) => match count.min(bytes) {
            0 => Wanted::Unsatisfiable,
            count => Wanted::Part(bytes - count..bytes),
        },
        (Position::At(first), Position::At(last)) if first > last => Wanted::Whole,
        (Position::At(first), Position::At(_) | Position::None) if first >= bytes => Wanted::Unsatisfiable,
        (Position::At(first), Position::At(last)) => Wanted::Part(first..bytes.min(last.saturating_add(1))),
        (Position::At(first), Position::None) => Wanted::Part(first..bytes),
        _ => Wanted::Whole,
    }
}

enum Position {
    None,
    At(u64),
    Wrong,
}

fn position(text: &str) -> Position {
    match text {
        "" => Position::None,
        _ if text.bytes().any(|byte| !byte.is_ascii_digit()) => Position::Wrong,
        // More than any number is beyond the end of any blob.
        _ => Position::At(text.parse().unwrap_or(u64::MAX)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAG: &str = "\"sha256:1\"";

    fn check(range: &str, bytes: u64, expected: &Wanted) {
        assert_eq!(wanted(Some(range), None, TAG, bytes), *expected, "{range} of {bytes}");
    }

    #[test]
    fn ranges_are_read_as_the_standard_says() {
        check("bytes=0-0", 10, &Wanted::Part(0..1));
        check("bytes=2-5", 10, &Wanted::Part(2..6));
        check("bytes=2-", 10, &Wanted::Part(2..10));
        check("bytes=2-99999999999999999999999", 10, &Wanted::Part(2..10));
        check("Bytes = 9-10", 10, &Wanted::Part(9..10));
        check("bytes=-3", 10, &Wanted::Part(7..10));
        check("bytes=-30", 10, &Wanted::Part(0..10));
        check("bytes=10-", 10, &Wanted::Unsatisfiable);
        check("bytes=10-12", 10, &Wanted::Unsatisfiable);
        check("bytes=-0", 10, &Wanted::Unsatisfiable);
        check("bytes=0-", 0, &Wanted::Unsatisfiable);
        check("bytes=-1", 0, &Wanted::Unsatisfiable);
        for ignored in ["bytes=5-2", "bytes=1-2,4-5", "bytes=", "bytes=-", "bytes", "pages=1-2", "bytes=+1-2"]
        {
            check(ignored, 10, &Wanted::Whole);
        }
        assert_eq!(wanted(None, None, TAG, 10), Wanted::Whole);
    }

    #[test]
    fn a_range_of_another_version_is_the_whole() {
        let of = |validator| wanted(Some("bytes=2-5"), Some(validator), TAG, 10);
        assert_eq!(of(TAG), Wanted::Part(2..6));
        for other in ["\"sha256:2\"", "W/\"sha256:1\"", "Thu, 01 Jan 1970 00:00:00 GMT", "sha256:1"] {
            assert_eq!(of(other), Wanted::Whole, "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_asked_lies_within(text in "(bytes)?=?[-0-9, ]{0,24}", bytes in 0..1_000_u64) {
            if let Wanted::Part(part) = wanted(Some(&text), None, TAG, bytes) {
                prop_assert!(part.start < part.end && part.end <= bytes);
            }
        }
    }
}
