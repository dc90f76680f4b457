//! `modelctl peer --seed`: an artifact of this machine, announced to the fleet.
//!
//! Owns: proving it from end to end before anybody hears of it. Does not own: serving it (`node`).

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf, sync::Arc};

use modelpack::{
    layout::{BlobIndex, PieceIndex},
    piece_tree::Landed,
    reference::Reference,
};
use registry::Access;
use store::StoreError;
use tokio::sync::mpsc;

use crate::{
    artifact::{Artifact, Check},
    error::PeerError,
    node::Node,
    origin::{self, Origin},
};

/// Opens a layout, proves every piece of its artifact, and shares it.
pub(crate) async fn announce(node: &Arc<Node>, reference: Reference) -> Result<(), PeerError> {
    let (origin, artifact) = origin::open(&reference, Access::default()).await?;
    let refused = |reason| PeerError::Reference { reference: reference.to_string(), reason };
    let Origin::Layout(layout) = origin else { return Err(refused("only a layout can be announced")) };
    if !artifact.is_anchored() {
        return Err(refused("peers exchange only what has piece trees: build it with `modelctl build`"));
    }
    let open = |blob: &modelpack::manifest::Blob| layout.blob(&blob.digest, blob.size).map(Arc::new);
    let files: Vec<Arc<File>> = artifact.manifest.blobs().iter().map(open).collect::<Result<_, _>>()?;
    let seed = Arc::new(Seed { artifact, files });
    let (report, mut results) = mpsc::unbounded_channel();
    let workers = node.threads().0;
    for blob in seed.artifact.layout().blobs() {
        let (seed, report) = (Arc::clone(&seed), report.clone());
        workers.run(move || {
            // Whoever waits has given up at an earlier blob.
            let _ = report.send(seed.prove(blob));
        });
    }
    drop(report);
    while let Some(result) = results.recv().await {
        result?;
    }
    node.seed(&seed.artifact, seed.files.clone());
    tracing::info!(reference = %seed.artifact.reference, "announced");
    Ok(())
}

struct Seed {
    artifact: Artifact,
    files: Vec<Arc<File>>,
}

impl Seed {
    fn prove(&self, blob: BlobIndex) -> Result<(), PeerError> {
        let mut buffer = Vec::new();
        for piece in self.artifact.layout().pieces_of(blob).pieces() {
            self.prove_piece(piece, &mut buffer)?;
        }
        Ok(())
    }

    fn prove_piece(&self, piece: PieceIndex, buffer: &mut Vec<u8>) -> Result<(), PeerError> {
        let span = self.artifact.layout().span(piece);
        let path = || self.artifact.path_of(span.blob);
        buffer.resize(span.len as usize, 0);
        let read = self.files[span.blob.0 as usize].read_exact_at(buffer, span.offset);
        read.map_err(|source| StoreError::Io { operation: "read", path: PathBuf::from(path()), source })?;
        let is_good = match self.artifact.check(span.blob) {
            Check::Tree(tree) => tree.verify(Landed::new(span.in_blob, &*buffer)).is_ok(),
            Check::Root(_) | Check::Sha256 => false,
        };
        let what = || format!("{} bytes from {}", span.len, span.offset);
        if is_good { Ok(()) } else { Err(PeerError::WrongBytes { path: path(), what: what() }) }
    }
}
