//! Where words and results go: what people read meanwhile to stderr, results to stdout. Does not own what they are.

use std::{fmt::Display, io::Write as _};

use clap::Args;
use serde::Serialize;

/// How a result is printed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct OutputArgs {
    /// The last line of stdout is the result as one JSON object
    #[arg(long)]
    json: bool,
}

impl OutputArgs {
    /// Prints a result: as a line of JSON, or for people.
    pub(crate) fn print<T: Serialize + Display>(self, result: &T) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string(result)?)?;
        } else {
            writeln!(out, "{result}")?;
        }
        Ok(())
    }

    /// Prints a line that people were told already: as JSON only.
    pub(crate) fn add<T: Serialize>(self, line: &T) -> anyhow::Result<()> {
        if self.json {
            writeln!(std::io::stdout().lock(), "{}", serde_json::to_string(line)?)?;
        }
        Ok(())
    }

    /// Whether results are printed for people.
    pub(crate) fn is_for_people(self) -> bool {
        !self.json
    }
}

/// Says something to whoever looks on.
pub(crate) fn tell(line: &str) {
    // Nobody is left to tell if this fails.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
