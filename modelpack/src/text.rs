//! How foreign text appears in messages: short, and without anything that a terminal would act on.

/// Most characters of a foreign string that a message repeats.
const SHOWN_CHARS_MAX: usize = 100;

/// `text` as a message may repeat it.
pub(crate) fn shown(text: &str) -> String {
    let mut characters = text.escape_debug();
    let mut shown: String = characters.by_ref().take(SHOWN_CHARS_MAX).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}
