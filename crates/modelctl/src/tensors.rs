//! What the headers of safetensors files say.
//!
//! Owns: reading no more of a file than its header, and adding files up. Does not own: the format
//! (`modelpack::safetensors`), or proof: a header that is read alone is not checked against any digest.

use std::{collections::BTreeMap, fmt, fs::File, os::unix::fs::FileExt as _};

use anyhow::Context as _;
use modelpack::safetensors::{self, Summary, Tensor};
use serde::Serialize;

use crate::text;

/// The number before a header.
pub(crate) const LENGTH_BYTES: usize = 8;

/// The tensors of all files together. Serialised, it is part of the result of `inspect`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Tensors {
    count: u64,
    parameters: u64,
    /// Bytes by type.
    dtypes: BTreeMap<String, u64>,
}

impl Tensors {
    pub(crate) fn add(&mut self, tensors: &[Tensor]) {
        let summary = Summary::of(tensors);
        self.count += summary.tensors;
        self.parameters = self.parameters.saturating_add(summary.parameters);
        for (dtype, bytes) in summary.dtypes {
            *self.dtypes.entry(dtype).or_default() += bytes;
        }
    }
}

impl fmt::Display for Tensors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} parameters", self.count, text::count(self.parameters))?;
        for (number, (dtype, bytes)) in self.dtypes.iter().enumerate() {
            write!(f, "{}{dtype} {}", if number == 0 { ": " } else { ", " }, text::bytes(*bytes))?;
        }
        Ok(())
    }
}

/// The tensors of one file, or what is wrong with it. Serialised, it is part of the result of `inspect --tensors`.
#[derive(Debug, Serialize)]
pub(crate) struct Listed {
    pub(crate) path: String,
    /// Why its header cannot be read, or does not describe the file.
    pub(crate) error: Option<String>,
    pub(crate) tensors: Vec<TensorFacts>,
}

#[derive(Debug, Serialize)]
pub(crate) struct TensorFacts {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    /// Where it begins in the file, in bytes.
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl Listed {
    pub(crate) fn new(path: &str, read: anyhow::Result<Vec<Tensor>>) -> Self {
        let (error, tensors) = match read {
            Ok(tensors) => (None, tensors),
            Err(error) => (Some(format!("{error:#}")), Vec::new()),
        };
        let facts =
            |Tensor { name, dtype, shape, offset, bytes }| TensorFacts { name, dtype, shape, offset, bytes };
        Self { path: path.to_owned(), error, tensors: tensors.into_iter().map(facts).collect() }
    }
}

/// Whether a file is safetensors, by its name.
pub(crate) fn is_safetensors(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.ends_with(".safetensors"))
}

/// Reads the header of a file on disk.
pub(crate) fn of_file(file: &File, bytes: u64) -> anyhow::Result<Vec<Tensor>> {
    anyhow::ensure!(bytes >= LENGTH_BYTES as u64, "it has only {bytes} bytes");
    let mut length = [0; LENGTH_BYTES];
    file.read_exact_at(&mut length, 0).context("cannot read its header")?;
    let header_bytes = safetensors::header_bytes(length)?;
    anyhow::ensure!(header_bytes <= bytes - LENGTH_BYTES as u64, "its header is longer than the file");
    let mut header = vec![0; usize::try_from(header_bytes).expect("bounded by the file's size")];
    file.read_exact_at(&mut header, LENGTH_BYTES as u64).context("cannot read its header")?;
    Ok(safetensors::tensors(&header, bytes)?)
}
