//! Headers of safetensors files: which tensors lie where.
//!
//! Owns: reading as many pieces of a new file as its header takes, from an old file if they are the same, else from the
//! origin. Does not own: the format (`modelpack::safetensors`).

use std::{fs::File, os::unix::fs::FileExt as _, sync::Arc, time::Duration};

use modelpack::{
    delta::Trial,
    layout::{BlobIndex, PIECE_BYTES, PieceIndex, Run},
    piece_map::PieceMap,
    piece_tree::Landed,
    safetensors::{self, Tensor},
};

use super::{Old, attempt};
use crate::{artifact::Check, error::PeerError, fetch::Ground, fill::blocking, origin::Origin};

/// Longest header that is read: beyond the largest of real models. Of other files nothing but their path is compared.
const HEADER_BYTES_MAX: u64 = 16 << 20;

/// The number before it.
const LENGTH_BYTES: u64 = 8;

/// How long the origin may take for one piece. Without it the file is only compared in place.
const FETCH_MAX: Duration = Duration::from_secs(10);

/// Whether a file is safetensors, by its name.
pub(super) fn is_safetensors(path: &str) -> bool {
    path.rsplit('/').next().is_some_and(|name| name.ends_with(".safetensors"))
}

/// The tensors of an old file; none if its header cannot be read.
pub(super) fn of_file(file: &File, bytes: u64) -> Option<Vec<Tensor>> {
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 0).ok()?;
    let header = header_len(length, bytes)?;
    let mut raw = vec![0; usize::try_from(header).ok()?];
    file.read_exact_at(&mut raw, LENGTH_BYTES).ok()?;
    safetensors::tensors(&raw, bytes).ok()
}

fn header_len(length: [u8; 8], file_bytes: u64) -> Option<u64> {
    let header = safetensors::header_bytes(length).ok()?;
    let fits = header <= HEADER_BYTES_MAX && header <= file_bytes.checked_sub(LENGTH_BYTES)?;
    fits.then_some(header)
}

/// What is needed to read the header of a new file.
pub(super) struct Header<'a> {
    pub(super) ground: &'a Arc<Ground>,
    pub(super) old: &'a Arc<Old>,
    pub(super) origin: Option<&'a Origin>,
    /// The old file that may begin with the same pieces.
    pub(super) counterpart: Option<usize>,
    pub(super) have: &'a PieceMap,
}

impl Header<'_> {
    /// The tensors of a blob, if its header can be had; and the pieces that are here for it now.
    pub(super) async fn read(
        &self,
        blob: BlobIndex,
    ) -> Result<(Option<Vec<Tensor>>, Vec<PieceIndex>), PeerError> {
        let layout = self.ground.artifact.layout();
        let (pieces, bytes) = (layout.pieces_of(blob), layout.blob_bytes(blob));
        let mut brought = Vec::new();
        let mut raw: Vec<u8> = Vec::new();
        let mut needed = LENGTH_BYTES;
        for piece in pieces.pieces() {
            if raw.len() as u64 >= needed {
                break;
            }
            if !self.have.contains(piece) {
                if !self.bring(blob, piece).await? {
                    return Ok((None, brought));
                }
                brought.push(piece);
            }
            let landing = Arc::clone(&self.ground.landing);
            raw = blocking(move || {
                let start = raw.len();
                let len = usize::try_from(landing.layout().piece_bytes(piece)).expect("at most a piece");
                raw.resize(start + len, 0);
                landing.read(piece, &mut raw[start..]).map(|()| raw)
            })
            .await?;
            match raw.first_chunk().and_then(|length| header_len(*length, bytes)) {
                Some(header) => needed = LENGTH_BYTES + header,
                None => return Ok((None, brought)),
            }
        }
        let header = usize::try_from(needed).ok().and_then(|end| raw.get(8..end));
        Ok((header.and_then(|header| safetensors::tensors(header, bytes).ok()), brought))
    }

    async fn bring(&self, blob: BlobIndex, piece: PieceIndex) -> Result<bool, PeerError> {
        let span = self.ground.artifact.layout().span(piece);
        if let Some(file) = self.counterpart {
            let (ground, old) = (Arc::clone(self.ground), Arc::clone(self.old));
            let trial = Trial::in_place(span.in_blob, u64::from(span.len), file);
            if blocking(move || attempt(&ground, &old, blob, &trial)).await? {
                return Ok(true);
            }
        }
        let Some(origin) = self.origin else { return Ok(false) };
        match tokio::time::timeout(FETCH_MAX, self.fetch(origin, piece)).await {
            Ok(Ok(Some(bytes))) => self.land(piece, bytes).await,
            // The download will say what is wrong, if it still is.
            Ok(Ok(None) | Err(_)) | Err(_) => Ok(false),
        }
    }

    /// `None` if the origin serves no ranges.
    async fn fetch(&self, origin: &Origin, piece: PieceIndex) -> Result<Option<Vec<u8>>, PeerError> {
        let Ground { artifact, counters, .. } = &**self.ground;
        let (blob, range) = artifact.layout().bytes_of(Run::one(piece));
        let len = usize::try_from(range.end - range.start).expect("at most a piece");
        let start = range.start;
        let mut stream = origin.read(artifact, blob, range).await?;
        if stream.ignores_ranges() || stream.start() != start {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(PIECE_BYTES).expect("a piece fits memory"));
        while let Some(chunk) = stream.next().await? {
            counters.came_from_origin(chunk.len() as u64);
            if bytes.len() + chunk.len() > len {
                return Ok(None);
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Some(bytes))
    }

    async fn land(&self, piece: PieceIndex, bytes: Vec<u8>) -> Result<bool, PeerError> {
        let ground = Arc::clone(self.ground);
        let landed = move || {
            let span = ground.artifact.layout().span(piece);
            let Check::Tree(tree) = ground.artifact.check(span.blob) else { return Ok(false) };
            let Ok(verified) = tree.verify(Landed::new(span.in_blob, bytes)) else { return Ok(false) };
            ground.landing.commit(piece, &verified)?;
            ground.counters.landed(crate::artifact::Place::Buffer, u64::from(span.len));
            ground.counters.done(u64::from(span.len));
            Ok::<_, store::StoreError>(true)
        };
        Ok(blocking(landed).await?)
    }
}
