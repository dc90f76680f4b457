//! A model as it is published: its files, its layout, its artifact.
//!
//! Owns: making them with the program that is tried. Does not own: what is in the files (`artifact`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    artifact::{self, Artifact, FileProof, Source},
    program::{call, path},
};

/// The tags under which modelctl and another tool publish.
const TAG: &str = "v1";
const FOREIGN_TAG: &str = "foreign";

/// A model in a layout.
#[derive(Debug)]
pub struct Model {
    /// Its files.
    pub source: Source,
    /// Where it is built.
    pub layout: PathBuf,
    /// Its name there.
    pub tag: &'static str,
    /// What it is there.
    pub artifact: Artifact,
    /// Both names that a store may give each of its files, and what it is.
    pub names: BTreeMap<String, FileProof>,
}

impl Model {
    /// Writes a model and builds its layout.
    pub fn new(modelctl: &Path, dir: &Path, name: &str, bytes: u64) -> anyhow::Result<Self> {
        let source = Source::write(&dir.join(name), bytes, bytes)?;
        let layout = dir.join(format!("{name}.oci"));
        call(modelctl, &["build", path(&source.dir), "-t", &reference(&layout, TAG)])?;
        let artifact = Artifact::read(&layout, TAG)?;
        let mut names = BTreeMap::new();
        for blob in &artifact.blobs {
            let proof = artifact::hash(&blob.path)?;
            let sha256 = blob.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            names.extend([proof.1.to_hex().to_string(), sha256.to_owned()].map(|name| (name, proof)));
        }
        Ok(Self { source, layout, tag: TAG, artifact, names })
    }

    /// The same as another tool would publish it: no BLAKE3 roots, so that no single piece is proved.
    pub fn foreign(&self) -> anyhow::Result<Self> {
        self.artifact.add_without_roots(&self.layout, FOREIGN_TAG)?;
        Ok(Self {
            source: self.source.clone(),
            layout: self.layout.clone(),
            tag: FOREIGN_TAG,
            artifact: Artifact::read(&self.layout, FOREIGN_TAG)?,
            names: self.names.clone(),
        })
    }

    /// Its reference as a layout.
    pub fn reference(&self) -> String {
        reference(&self.layout, self.tag)
    }
}

fn reference(layout: &Path, tag: &str) -> String {
    format!("oci:{}:{tag}", layout.display())
}
