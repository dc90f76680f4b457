//! Pieces that the manifest does not prove one by one: who vouches for them, and landing them on that word.
//!
//! Owns: this artifact's vouchers, by piece, and that a piece is written once a round. Does not own: what happens when
//! the pieces do not add up to the manifest's digest (`repair`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use identity::{ReaderKey, Voucher};
use memory::Filled;
use modelpack::{
    layout::{PieceIndex, Run},
    piece_tree::Landed,
};
use planner::{ArtifactId, PeerId};
use store::{Landing, StoreError};
use swarm::PieceOutcome;

use crate::artifact::{Artifact, Checked, Place};

/// Pieces that are written side by side, at most: more than any machine has threads for.
const LOCKS: usize = 64;

/// Where a piece came from, and who vouches for it.
#[derive(Clone, Debug)]
pub(crate) enum Provenance {
    /// The origin, read by this process.
    Origin,
    /// A peer, and the voucher that it announced the piece with.
    Peer(PeerId, Option<Arc<Voucher>>),
}

/// A voucher that a piece was taken on.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) voucher: Arc<Voucher>,
    /// Who passed it on, with the piece.
    pub(crate) via: PeerId,
}

impl Kept {
    pub(crate) fn reader(&self) -> PeerId {
        PeerId::new(self.voucher.reader())
    }
}

/// The vouchers of one artifact.
#[derive(Debug)]
pub(crate) struct Vouching {
    key: Arc<ReaderKey>,
    artifact: ArtifactId,
    round: AtomicU32,
    kept: Mutex<BTreeMap<PieceIndex, Kept>>,
    locks: Vec<Mutex<()>>,
}

impl Vouching {
    pub(crate) fn new(key: Arc<ReaderKey>, artifact: ArtifactId) -> Arc<Self> {
        let locks = (0..LOCKS).map(|_| Mutex::default()).collect();
        Arc::new(Self { key, artifact, round: AtomicU32::new(0), kept: Mutex::default(), locks })
    }

    pub(crate) fn me(&self) -> PeerId {
        PeerId::new(self.key.id())
    }

    /// The repair that this process is in.
    pub(crate) fn round(&self) -> u32 {
        self.round.load(Ordering::SeqCst)
    }

    pub(crate) fn begin_round(&self, round: u32) {
        self.round.store(round, Ordering::SeqCst);
    }

    pub(crate) fn get(&self, piece: PieceIndex) -> Option<Kept> {
        self.kept().get(&piece).cloned()
    }

    /// Takes pieces of wrong blobs out; says what they were taken on.
    pub(crate) fn forget(&self, run: Run) -> Vec<(PieceIndex, Kept)> {
        let mut kept = self.kept();
        run.pieces().filter_map(|piece| Some((piece, kept.remove(&piece)?))).collect()
    }

    /// Vouches for a piece that this process has read from the origin, or knows from a proved blob.
    pub(crate) fn vouch(&self, piece: PieceIndex, value: [u8; 32]) {
        let voucher = Arc::new(self.key.vouch(&self.artifact.0, piece.0, self.round(), value));
        self.kept().insert(piece, Kept { voucher, via: self.me() });
    }

    /// Compares a piece with what is vouched for, and sees to it that it is at its final offset. A piece that is here in this
    /// round is not written again: what was hashed and announced must stay what it was.
    pub(crate) fn land(
        &self,
        artifact: &Artifact,
        landing: &Landing,
        (piece, bytes, place): (PieceIndex, Filled, Place),
        provenance: &Provenance,
    ) -> Result<Checked, StoreError> {
        let start = Instant::now();
        let lock = &self.locks[piece.0 as usize % LOCKS];
        let _writing = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let done = |outcome, hashed: Instant| Checked {
            outcome,
            hashing: hashed - start,
            writing: hashed.elapsed(),
        };
        if self.kept().contains_key(&piece) {
            return Ok(done(PieceOutcome::Good, start));
        }
        let landed = Landed::new(artifact.layout().span(piece).in_blob, bytes);
        let kept = match provenance {
            Provenance::Origin => {
                let read = landed.as_read();
                let hashed = Instant::now();
                let value = *read.value();
                match place {
                    Place::Buffer => landing.land_read(piece, &read)?,
                    Place::File => landing.land_read_in_place(piece, read)?,
                }
                self.vouch(piece, value);
                return Ok(done(PieceOutcome::Good, hashed));
            }
            Provenance::Peer(via, Some(voucher)) if self.is_valid(voucher, piece) => {
                Kept { voucher: Arc::clone(voucher), via: *via }
            }
            Provenance::Peer(..) => return Ok(done(PieceOutcome::Bad, Instant::now())),
        };
        let compared = landed.compare(&kept.voucher.value);
        let hashed = Instant::now();
        let Ok(consistent) = compared else { return Ok(done(PieceOutcome::Bad, hashed)) };
        match place {
            Place::Buffer => landing.land_relayed(piece, &consistent)?,
            Place::File => landing.land_relayed_in_place(piece, consistent)?,
        }
        self.kept().insert(piece, kept);
        Ok(done(PieceOutcome::Good, hashed))
    }

    fn is_valid(&self, voucher: &Voucher, piece: PieceIndex) -> bool {
        voucher.round >= self.round() && voucher.is_about(&self.artifact.0, piece.0)
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, BTreeMap<PieceIndex, Kept>> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
