//! A pull together with other peers, until every blob is what the manifest says.
//!
//! Owns: what happens when pieces that readers of the origin vouched for do not add up (DESIGN §4): the wrong blobs are
//! read once more by one peer that the scheduler elects, and whoever vouched for something else is blamed. Does not
//! own: a single download, or who is elected (`planner`).

use std::{collections::BTreeSet, fs::File, os::fd::AsRawFd as _, path::PathBuf, sync::Arc};

use modelpack::{
    layout::{BlobIndex, PieceIndex},
    piece_map::PieceMap,
    piece_tree::piece_value,
};
use planner::ROUNDS_MAX;
use store::{ClaimKind, Landing, StoreError};
use tokio::sync::mpsc;

use crate::{
    artifact::Check,
    blame::{Blamed, Members},
    download::{Download, Event},
    error::PeerError,
    fetch::Ground,
    fill::{Filled, Proved, fill_alone, forget, prove, wrong_bytes},
    node::{Admission, Node},
    origin::Origin,
    vouching::{Kept, Vouching},
};

/// What a pull together with others needs.
pub(crate) struct Together<'a> {
    pub(crate) node: &'a Arc<Node>,
    pub(crate) ground: &'a Arc<Ground>,
    /// None if the artifact is with other peers only.
    pub(crate) origin: Option<Origin>,
}

impl Together<'_> {
    /// Fills what `have` lacks.
    pub(crate) async fn fill(&self, have: PieceMap) -> Result<Filled, PeerError> {
        match &self.ground.vouching {
            None => match self.download(&have, &mut Members::default()).await? {
                Proved::All(filled) => Ok(filled),
                Proved::Wrong(blobs, error) => Err(wrong_bytes(self.ground, blobs[0], error)),
            },
            Some(vouching) => self.fill_vouched(vouching, have).await,
        }
    }

    async fn fill_vouched(&self, vouching: &Arc<Vouching>, have: PieceMap) -> Result<Filled, PeerError> {
        let mut have = vouch_for_what_is_here(self.ground, vouching, have).await?;
        let (mut members, mut suspects) = (Members::default(), Vec::new());
        loop {
            let (blobs, error) = match self.download(&have, &mut members).await? {
                Proved::All(filled) => {
                    self.blame(vouching, &suspects, &members);
                    return Ok(filled);
                }
                Proved::Wrong(blobs, error) => (blobs, error),
            };
            // Before a byte of them changes: others would read a mixture here, and blame this peer.
            self.node.unshare(&self.ground.artifact.id(), "its pieces do not add up");
            let wrong = self.forget(vouching, &blobs);
            let is_own = wrong.iter().all(|(_, kept)| kept.reader() == vouching.me());
            // Pieces of a later round may be right, so that only the oldest are certainly given up.
            let next = wrong.iter().map(|(_, kept)| kept.voucher.round).min().unwrap_or(0).saturating_add(1);
            let next = next.max(vouching.round() + 1);
            tracing::warn!(%error, files = blobs.len(), round = next, "pieces do not add up to the digest");
            if let Some(origin) = &self.origin {
                origin.distrust_mirrors();
            }
            have = forget(self.ground, &blobs)?;
            suspects.extend(wrong);
            if is_own && vouching.round() > 0 {
                // This peer has read all of it from the origin twice.
                return Err(wrong_bytes(self.ground, blobs[0], error));
            }
            if next > ROUNDS_MAX || !self.node.is_planned() {
                let Some(origin) = self.origin.clone() else {
                    return Err(wrong_bytes(self.ground, blobs[0], error));
                };
                let filled = fill_alone(self.ground, Some(origin), have).await?;
                self.blame(vouching, &suspects, &members);
                return Ok(filled);
            }
            vouching.begin_round(next);
        }
    }

    async fn download(&self, have: &PieceMap, members: &mut Members) -> Result<Proved, PeerError> {
        let (events, inbox) = mpsc::unbounded_channel();
        let Admission { herald, config } = self.admit(have, events.clone())?;
        let (ground, have) = (Arc::clone(self.ground), have.clone());
        let download = Download::new(ground, self.origin.clone(), herald, (config, have), (events, inbox));
        let mut downloaded = download.run().await?;
        members.append(std::mem::take(&mut downloaded.members));
        prove(self.ground, downloaded).await
    }

    fn admit(&self, have: &PieceMap, events: mpsc::UnboundedSender<Event>) -> Result<Admission, StoreError> {
        let Ground { artifact, landing, vouching, .. } = &**self.ground;
        let files = readable(landing)?;
        let reading = (self.origin.is_some(), vouching.clone());
        Ok(self.node.admit(artifact, (files, have.clone()), reading, events))
    }

    fn forget(&self, vouching: &Vouching, blobs: &[BlobIndex]) -> Vec<(PieceIndex, Kept)> {
        let layout = self.ground.artifact.layout();
        blobs.iter().flat_map(|blob| vouching.forget(layout.pieces_of(*blob))).collect()
    }

    /// Every blob is what the manifest says now: whoever vouched for something else was wrong.
    fn blame(&self, vouching: &Vouching, suspects: &[(PieceIndex, Kept)], members: &Members) {
        let (artifact, mut blamed) = (&self.ground.artifact, BTreeSet::from([vouching.me()]));
        for (piece, was) in suspects {
            let is_wrong = vouching.get(*piece).is_some_and(|now| now.voucher.value != was.voucher.value);
            // A reader that no plan knows was made up by whoever passed its voucher on.
            let culprit = if members.contains(&was.reader()) { was.reader() } else { was.via };
            if is_wrong && blamed.insert(culprit) {
                tracing::warn!(peer = %culprit, %piece, "a peer vouched for wrong bytes of the origin");
                let path = artifact.path_of(artifact.layout().span(*piece).blob);
                let reason = format!("it vouched for wrong bytes of `{path}`");
                self.ground.counters.blames.add(Blamed { peer: members.name(&culprit), reason });
                self.node.complain(artifact.id(), culprit, *piece);
            }
        }
    }
}

/// Vouches for pieces of proved blobs, and for those that the journal says were read from the origin here. Others that
/// landed before are fetched again: who vouched for them is not kept.
async fn vouch_for_what_is_here(
    ground: &Arc<Ground>,
    vouching: &Arc<Vouching>,
    mut have: PieceMap,
) -> Result<PieceMap, PeerError> {
    let verified = ground.landing.verified();
    let read: BTreeSet<PieceIndex> = ground
        .landing
        .claims()
        .into_iter()
        .filter(|claim| matches!(claim.kind, ClaimKind::Read { .. }))
        .map(|claim| claim.piece)
        .collect();
    let layout = ground.artifact.layout();
    let (report, mut results) = mpsc::unbounded_channel();
    for blob in layout.blobs().filter(|blob| !matches!(ground.artifact.check(*blob), Check::Tree(_))) {
        let mut known = Vec::new();
        for piece in layout.pieces_of(blob).pieces().filter(|piece| have.contains(*piece)).collect::<Vec<_>>()
        {
            if verified.contains(piece) || read.contains(&piece) {
                known.push(piece);
            } else {
                have.remove(piece);
                ground.counters.undone(layout.piece_bytes(piece));
            }
        }
        let (ground, vouching, report) = (Arc::clone(ground), Arc::clone(vouching), report.clone());
        ground.clone().workers.run(move || {
            let result = known.into_iter().try_for_each(|piece| vouch_for(&ground, &vouching, piece));
            // A pull that was given up needs no answer.
            let _ = report.send(result);
        });
    }
    drop(report);
    while let Some(result) = results.recv().await {
        result?;
    }
    Ok(have)
}

fn vouch_for(ground: &Ground, vouching: &Vouching, piece: PieceIndex) -> Result<(), StoreError> {
    let span = ground.artifact.layout().span(piece);
    let mut buffer = vec![0; span.len as usize];
    ground.landing.read(piece, &mut buffer)?;
    vouching.vouch(piece, piece_value(span.in_blob, &buffer));
    Ok(())
}

/// The blobs as others read them. Opened anew, because they may be served for long after they have got their final
/// names, and a program that somebody has open for writing cannot be run (`ETXTBSY`).
fn readable(landing: &Landing) -> Result<Vec<Arc<File>>, StoreError> {
    let open = |blob| {
        let magic = PathBuf::from(format!("/proc/self/fd/{}", landing.file(blob).as_raw_fd()));
        let failed = |source| StoreError::Io { operation: "open again", path: magic.clone(), source };
        File::open(&magic).map(Arc::new).map_err(failed)
    };
    landing.layout().blobs().map(open).collect()
}
