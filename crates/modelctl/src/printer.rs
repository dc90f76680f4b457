//! The only place that prints: data to stdout, everything else to stderr.
//!
//! Owns: the two streams, colour, and what a closed stdout means. Does not own: what is said.

use std::{
    fmt::{self, Display},
    io::{self, IsTerminal as _, Write as _},
};

use serde::Serialize;

use crate::{progress::Progress, report::Failure};

/// Whoever read our stdout has gone (`modelctl inspect … | head`): no failure, but there is nothing left to say.
#[derive(Debug, thiserror::Error)]
#[error("stdout is closed")]
pub(crate) struct StdoutClosed;

/// Prints for one command.
#[derive(Debug)]
pub(crate) struct Printer {
    stdout: io::Stdout,
    stderr: io::Stderr,
    is_json: bool,
    is_coloured: bool,
    is_terminal: bool,
}

/// Text of the labels on stderr, as SGR parameters.
#[derive(Clone, Copy)]
enum Label {
    Error,
    Warning,
    Hint,
}

impl Printer {
    /// `is_json`: results and failures are JSON objects, one a line.
    pub(crate) fn new(is_json: bool) -> Self {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let is_terminal = stderr.is_terminal();
        // https://no-color.org: present and not empty.
        let is_colour_wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let is_coloured = is_terminal && is_colour_wanted && !is_dumb;
        Self { stdout, stderr, is_json, is_coloured, is_terminal }
    }

    /// Prints what the command was asked for: as JSON, or as the text that people read.
    pub(crate) fn result(&self, result: &(impl Serialize + Display)) -> anyhow::Result<()> {
        if self.is_json { self.json(result) } else { self.data(result) }
    }

    /// Prints text to stdout and ends the line.
    pub(crate) fn data(&self, text: impl Display) -> anyhow::Result<()> {
        let mut stdout = self.stdout.lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(StdoutClosed.into()),
            Err(error) => Err(anyhow::Error::new(error).context("cannot write to stdout")),
        }
    }

    /// Prints one line of progress for a program that follows it.
    pub(crate) fn progress_line(&self, line: &impl Serialize) -> anyhow::Result<()> {
        if self.is_json { self.json(line) } else { Ok(()) }
    }

    fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        self.data(serde_json::to_string(value).expect("results are made of text, numbers and lists"))
    }

    /// Says that something is odd, though the command goes on.
    pub(crate) fn warn(&self, text: impl Display) {
        self.stderr(format_args!("{} {text}", self.label(Label::Warning)));
    }

    /// Says what a process that runs for long is doing.
    pub(crate) fn note(&self, text: impl Display) {
        self.stderr(format_args!("{text}"));
    }

    /// Asks whoever sits at the terminal, and leaves the cursor behind the question.
    pub(crate) fn question(&self, text: &str) {
        let mut stderr = self.stderr.lock();
        let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
    }

    /// Says why the command failed: to people on stderr, and with `--json` to programs on stdout.
    pub(crate) fn failure(&self, failure: &Failure) {
        self.stderr(format_args!("{} {}", self.label(Label::Error), failure.error));
        if !failure.causes.is_empty() {
            self.stderr(format_args!("\nCaused by:"));
            for (number, cause) in failure.causes.iter().enumerate() {
                match failure.causes.len() {
                    1 => self.stderr(format_args!("    {cause}")),
                    _ => self.stderr(format_args!("    {number}: {cause}")),
                }
            }
        }
        if let Some(hint) = &failure.hint {
            self.stderr(format_args!("\n{} {hint}", self.label(Label::Hint)));
        }
        if self.is_json {
            // The failure itself decides the exit code, whether or not anybody reads this line.
            let _ = self.json(failure);
        }
    }

    /// Shows how far a long operation has come, if a person watches.
    pub(crate) fn progress(&self, verb: &'static str, bytes: u64) -> Progress {
        if self.is_terminal { Progress::shown(verb, bytes) } else { Progress::hidden() }
    }

    fn label(&self, label: Label) -> String {
        let (text, colour) = match label {
            Label::Error => ("error:", "1;31"),
            Label::Warning => ("warning:", "1;33"),
            Label::Hint => ("hint:", "1;36"),
        };
        if self.is_coloured { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn stderr(&self, line: fmt::Arguments<'_>) {
        // Nowhere is left to say that stderr cannot be written.
        let _ = writeln!(self.stderr.lock(), "{line}");
    }
}
