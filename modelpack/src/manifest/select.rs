//! A part of an artifact.
//!
//! Owns: which blobs a selection needs. Does not own: what is in archives, which is known when they are there.

use std::{collections::BTreeMap, sync::Arc};

use super::{Archive, Manifest, ModelFile, Parts};
use crate::{
    layout::{BlobIndex, PieceLayout},
    selection::{Matched, Selection, SelectionError},
};

impl Manifest {
    /// The same artifact, its digest included, with only those files and blobs that `selection` needs, numbered anew.
    /// An archive is needed unless its kind is not wanted: what is in it is selected when it is unpacked.
    pub fn select(&self, selection: &Selection) -> Result<(Self, Matched), SelectionError> {
        let mut matched = Matched::default();
        let mut files = self.files().to_vec();
        files.retain(|file| selection.selects(&file.path, file.kind, &mut matched));
        let may_be_wanted = |archive: &&Archive| archive.kind.is_none_or(|kind| selection.admits(kind));
        let archives: Vec<_> = self.archives().iter().filter(may_be_wanted).cloned().collect();
        // Of what is in archives nothing is known yet.
        if archives.is_empty() {
            selection.check(&matched)?;
        }
        Ok((self.with(files, archives), matched))
    }

    fn with(&self, mut files: Vec<ModelFile>, mut archives: Vec<Archive>) -> Self {
        let mut needed: Vec<_> =
            files.iter().map(|file| file.blob).chain(archives.iter().map(|archive| archive.blob)).collect();
        needed.sort_unstable();
        needed.dedup();
        let blobs: Vec<_> = needed.iter().map(|blob| self.blobs()[blob.0 as usize]).collect();
        let renumbered: BTreeMap<_, _> = needed.into_iter().zip((0..).map(BlobIndex)).collect();
        for file in &mut files {
            file.blob = renumbered[&file.blob];
        }
        for archive in &mut archives {
            archive.blob = renumbered[&archive.blob];
        }
        let sizes = blobs.iter().map(|blob| blob.size).collect();
        let layout = PieceLayout::new(sizes).expect("fewer pieces than the whole artifact has");
        let Parts { raw, digest, family, config, .. } = &*self.0;
        let (raw, config) = (raw.clone(), config.clone());
        Self(Arc::new(Parts {
            raw,
            digest: *digest,
            family: *family,
            config,
            blobs,
            files,
            archives,
            layout,
        }))
    }
}
