//! What publishers type: of the model itself, and of Modelfiles.
//!
//! Owns: these flags. Does not own: what is written of them (`modelpack::build`).

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// What the artifact says of its model.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "About the model")]
pub(crate) struct AboutArgs {
    /// Its name
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,

    /// Its version
    #[arg(long = "model-version", value_name = "TEXT")]
    pub(crate) version: Option<String>,

    /// What people call it
    #[arg(long, value_name = "TEXT")]
    pub(crate) title: Option<String>,

    /// What it is for
    #[arg(long, value_name = "TEXT")]
    pub(crate) description: Option<String>,

    /// Who made it; may be given several times
    #[arg(long = "author", value_name = "TEXT")]
    pub(crate) authors: Vec<String>,

    /// Who distributes it
    #[arg(long, value_name = "TEXT")]
    pub(crate) vendor: Option<String>,

    /// Its licence as an SPDX identifier; may be given several times
    #[arg(long = "license", value_name = "SPDX")]
    pub(crate) licenses: Vec<String>,

    /// A language that it speaks, as two letters; may be given several times
    #[arg(long = "language", value_name = "XX")]
    pub(crate) languages: Vec<String>,

    /// Where it is documented
    #[arg(long, value_name = "URL")]
    pub(crate) doc_url: Option<String>,

    /// Where it comes from
    #[arg(long, value_name = "URL")]
    pub(crate) source_url: Option<String>,

    /// Which revision of that it is
    #[arg(long, value_name = "TEXT")]
    pub(crate) revision: Option<String>,
}

/// How a file of the model becomes a blob of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Placing {
    /// Reflink, else copy
    Auto,
    /// Share the blocks until one side is written, or fail
    Reflink,
    /// A second name of the file, or fail: whoever writes the file later damages the layout
    Hard,
    /// Bytes of their own
    Copy,
}

impl From<Placing> for store::LinkMode {
    fn from(placing: Placing) -> Self {
        match placing {
            Placing::Auto => Self::Auto,
            Placing::Reflink => Self::Reflink,
            Placing::Hard => Self::Hard,
            Placing::Copy => Self::Copy,
        }
    }
}

/// Write the Modelfile of a directory
#[derive(Debug, Args)]
#[command(after_help = "\
It names every file that `modelctl build` would take, and what is known of the model from its
config.json and the headers of its weights. Edit it and give it to `modelctl build -f`; modctl reads
it, too.

Example:
  $ modelctl modelfile ./minilm
  $ modelctl modelfile ./minilm -o Modelfile && modelctl build ./minilm -f Modelfile -t oci:out:v1")]
pub(crate) struct ModelfileArgs {
    /// The directory that holds the model
    pub(crate) dir: PathBuf,

    /// Write it to FILE, which must not be there yet
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Replace FILE if it is there
    #[arg(long, requires = "output")]
    pub(crate) overwrite: bool,

    /// The model's name [default: that of the directory]
    #[arg(long, value_name = "TEXT")]
    pub(crate) name: Option<String>,
}
