//! Numbers and tables as people read them.
//!
//! Owns: sizes, counts, durations, columns. Does not own: where they are printed.

use std::{fmt, time::Duration};

use planner::Place;

/// Decimal steps: each unit is a thousand of the one before.
const BYTE_UNITS: [&str; 6] = ["B", "KB", "MB", "GB", "TB", "PB"];
const COUNT_UNITS: [&str; 5] = ["", " thousand", " million", " billion", " trillion"];

/// A size for people: `612 B`, `90.9 MB`.
pub(crate) fn bytes(bytes: u64) -> String {
    let (number, unit) = scaled(bytes, &BYTE_UNITS);
    format!("{number} {unit}")
}

/// A count for people: `103`, `22.7 million`.
pub(crate) fn count(count: u64) -> String {
    let (number, unit) = scaled(count, &COUNT_UNITS);
    format!("{number}{unit}")
}

/// The number in the largest unit in which it is at least one, with one decimal from the second unit on.
fn scaled<'a>(number: u64, units: &[&'a str]) -> (String, &'a str) {
    let (mut step, mut scale) = (0, 1_u64);
    // In tenths, so that what would be rounded to 1000.0 of a unit belongs to the next.
    while step + 1 < units.len() && tenths(number, scale) >= 10_000 {
        step += 1;
        scale *= 1000;
    }
    if step == 0 {
        return (number.to_string(), units[0]);
    }
    let tenths = tenths(number, scale);
    (format!("{}.{}", tenths / 10, tenths % 10), units[step])
}

/// `number / scale` in tenths, rounded half up.
fn tenths(number: u64, scale: u64) -> u128 {
    (u128::from(number) * 10 + u128::from(scale) / 2) / u128::from(scale)
}

/// `1 file`, `7 files`.
pub(crate) fn plural(count: usize, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// How many files, as far as that is known before archives are unpacked.
pub(crate) fn files_and_archives(files: usize, archives: usize) -> String {
    match (files, archives) {
        (files, 0) => files.to_string(),
        (0, archives) => format!("what is in {}", plural(archives, "archive")),
        (files, archives) => format!("{files} and what is in {}", plural(archives, "archive")),
    }
}

/// A duration for people: `0.04 s`, `12.3 s`, `3 min 12 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    match duration.as_secs() {
        0..10 => format!("{:.2} s", duration.as_secs_f64()),
        10..60 => format!("{:.1} s", duration.as_secs_f64()),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

/// How a column is aligned.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows whose columns line up. The last column is never padded, and one without any text takes no room.
pub(crate) struct Table<const N: usize> {
    align: [Align; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(align: [Align; N]) -> Self {
        Self { align, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

impl<const N: usize> fmt::Display for Table<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width =
            |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        for (number, row) in self.rows.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if width == 0 {
                    continue;
                }
                match (self.align[column], column + 1 == N) {
                    (Align::Right, _) => write!(f, "{cell:>width$}")?,
                    (Align::Left, true) => f.write_str(cell)?,
                    (Align::Left, false) => write!(f, "{cell:width$}")?,
                }
                if column + 1 < N {
                    f.write_str("  ")?;
                }
            }
        }
        Ok(())
    }
}

/// Characters of the bar of a share.
const SHARE_BAR: u16 = 20;

/// A share of a whole as a bar and in hundredths: `[==========>         ]  52.3 %`.
pub(crate) fn share(share: f64) -> String {
    let share = share.clamp(0.0, 1.0);
    let bar = "=".repeat(usize::from(SHARE_BAR));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is between 0 and its width"
    )]
    let filled = (share * f64::from(SHARE_BAR)) as usize;
    let tip = if filled < bar.len() { ">" } else { "" };
    let bar = format!("{:width$}", format!("{}{tip}", &bar[..filled]), width = bar.len());
    format!("[{bar}] {:>5.1} %", share * 100.0)
}

/// Lines of at most so many characters, if words are no longer. What stands in backticks is one word: whoever copies a
/// command wants it whole.
pub(crate) fn wrapped(text: &str, chars_max: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    let mut words: Vec<String> = Vec::new();
    let is_open = |word: &String| word.matches('`').count() % 2 == 1;
    for part in text.split(' ') {
        match words.last_mut() {
            Some(word) if is_open(word) => *word = format!("{word} {part}"),
            _ => words.push(part.to_owned()),
        }
    }
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= chars_max => {
                *line = format!("{line} {word}");
            }
            _ => lines.push(word),
        }
    }
    lines
}

/// The beginning of a text that a stranger chose, in at most so many characters of one line.
pub(crate) fn clipped(text: &str, chars_max: usize) -> String {
    let text = one_line(text);
    if text.chars().count() <= chars_max {
        return text;
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// A path as one line of a terminal: a name from a stranger's manifest must not move the cursor.
pub(crate) fn one_line(path: &str) -> String {
    path.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

/// Where a peer stands, in a word.
pub(crate) fn place(place: &Place) -> String {
    let Place { zone, rack } = place;
    let rack = if rack.is_empty() { "no rack" } else { rack };
    one_line(&if zone.is_empty() { rack.to_owned() } else { format!("{zone}/{rack}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_and_decimal_units() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (999_949, "999.9 KB"),
            (999_950, "1.0 MB"),
            (90_868_376, "90.9 MB"),
            (140_000_000_000, "140.0 GB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(number), text);
        }
        assert_eq!(count(22_713_216), "22.7 million");
        assert_eq!(count(103), "103");
    }

    #[test]
    fn durations_name_their_unit() {
        assert_eq!(seconds(Duration::from_millis(42)), "0.04 s");
        assert_eq!(seconds(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(seconds(Duration::from_secs(192)), "3 min 12 s");
    }

    #[test]
    fn columns_line_up_without_trailing_blanks() {
        let mut table = Table::new([Align::Left, Align::Right, Align::Left]);
        table.row(["weight".into(), "90.9 MB".into(), "model.safetensors".into()]);
        table.row(["config".into(), "612 B".into(), "config.json".into()]);
        assert_eq!(table.to_string(), "weight  90.9 MB  model.safetensors\nconfig    612 B  config.json");
    }

    #[test]
    fn a_share_is_full_only_when_it_is_whole() {
        assert_eq!(share(0.0), "[>                   ]   0.0 %");
        assert_eq!(share(0.523), "[==========>         ]  52.3 %");
        assert_eq!(share(0.999), "[===================>]  99.9 %");
        assert_eq!(share(1.0), "[====================] 100.0 %");
    }

    #[test]
    fn lines_are_broken_between_words_and_not_in_commands() {
        assert_eq!(wrapped("one two three", 8), ["one two", "three"]);
        assert_eq!(wrapped("run `ip link set up` now", 8), ["run", "`ip link set up`", "now"]);
        assert_eq!(wrapped("at `/a`: a `b c`, d", 10), ["at `/a`: a", "`b c`, d"]);
        assert_eq!(wrapped("", 8), [""]);
    }

    #[test]
    fn long_texts_are_cut_with_a_mark() {
        assert_eq!(clipped("modèle", 6), "modèle");
        assert_eq!(clipped("modèles", 6), "modèl…");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(one_line("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(one_line("modèle.bin"), "modèle.bin");
    }
}
