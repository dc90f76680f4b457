//! `modelctl modelfile`: the Modelfile of a directory.
//!
//! Owns: where it goes. Does not own: what it says (`model`, `modelpack::modelfile`).

use std::{fs::File, io::Write as _, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    cli::ModelfileArgs,
    model::{Model, Stated},
    printer::Printer,
    report::Refusal,
};

/// The result of `--json`.
#[derive(Serialize)]
struct Written<'a> {
    files: usize,
    modelfile: &'a str,
}

impl std::fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.modelfile.trim_end())
    }
}

/// Writes it to a file, or prints it.
pub(crate) fn run(args: &ModelfileArgs, printer: &Printer) -> anyhow::Result<()> {
    let name = args.name.clone().or_else(|| name_of(&args.dir));
    let model = Model::as_stated(&args.dir, Stated { name, ..Stated::default() })?;
    let modelfile = model.modelfile(printer);
    let text = modelfile.text();
    match &args.output {
        Some(path) => write(args, path, &text).with_context(|| format!("cannot write `{}`", path.display())),
        None => printer.result(&Written { files: modelfile.choices.len(), modelfile: &text }),
    }
}

fn write(args: &ModelfileArgs, path: &Path, text: &str) -> anyhow::Result<()> {
    let mut options = File::options();
    if args.overwrite {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    match options.write(true).open(path) {
        Ok(mut file) => Ok(file.write_all(text.as_bytes())?),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            Err(Refusal::failed("the file exists").hint("add `--overwrite` to replace it").into())
        }
        Err(error) => Err(error.into()),
    }
}

/// The name of a directory, if it has one that can be read.
fn name_of(dir: &Path) -> Option<String> {
    let dir = dir.canonicalize().ok()?;
    dir.file_name()?.to_str().filter(|name| !name.chars().any(char::is_control)).map(str::to_owned)
}
