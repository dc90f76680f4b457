//! The progress bar.
//!
//! Owns: how progress looks. Does not own: whether anybody watches, which the printer knows.

use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Redraws a second: enough to look alive, and nothing beside moving the bytes.
const DRAWS_PER_SECOND: u8 = 10;

/// One operation's progress in bytes. Clones count into the same bar; the bar vanishes with the last.
#[derive(Clone, Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar on stderr for `bytes` bytes.
    pub(crate) fn shown(verb: &'static str, bytes: u64) -> Self {
        let template = "{msg:>10} [{bar:30}] {decimal_bytes:>9} of {decimal_total_bytes}  {decimal_bytes_per_sec}  {eta}";
        let style =
            ProgressStyle::with_template(template).expect("a constant template").progress_chars("=> ");
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND);
        Self(ProgressBar::with_draw_target(Some(bytes), target).with_style(style).with_message(verb))
    }

    /// Counts without showing.
    pub(crate) fn hidden() -> Self {
        Self(ProgressBar::hidden())
    }

    /// `bytes` more are done.
    pub(crate) fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// So many bytes are done now.
    pub(crate) fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    /// A part that says how far it is, not how much more it did.
    pub(crate) fn part(&self) -> Part {
        Part { bar: self.0.clone(), done: AtomicU64::new(0) }
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// One of several uploads that count into the same bar, and may start over.
#[derive(Debug)]
pub(crate) struct Part {
    bar: ProgressBar,
    done: AtomicU64,
}

impl Part {
    /// So many bytes of this part are done now.
    pub(crate) fn at(&self, done: u64) {
        let before = self.done.swap(done, Ordering::Relaxed);
        match done.checked_sub(before) {
            Some(more) => self.bar.inc(more),
            None => self.bar.dec(before - done),
        }
    }
}
