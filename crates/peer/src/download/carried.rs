//! How reads over links end, and what that says of the link. Does not own what becomes of their bytes.

use swarm::{Input, ReadOutcome};
use transport::{Completion, FaultClass, Level, ReadFault};
use wire::connection::explain;

use super::{Download, Herald, Transfer};

impl<H: Herald> Download<H> {
    pub(super) fn transferred(&mut self, completion: Completion) {
        let Completion { id, result } = completion;
        let result = result.map_err(|fault| {
            let Some(transfer) = self.transfers.get(&id) else { return ReadOutcome::Ok };
            match transfer.carrier {
                Some((generation, Level::Nic)) => self.failed_over_rdma(id, generation, &fault),
                _ => outcome(&fault),
            }
        });
        self.transfer_ended(id, result);
    }

    /// A read over RDMA failed. If that is RDMA's fault, the link is opened anew over TCP at once.
    fn failed_over_rdma(&mut self, id: u64, generation: u64, fault: &ReadFault) -> ReadOutcome {
        let Some(Transfer { peer, piece, .. }) = self.transfers.get(&id) else { return ReadOutcome::Ok };
        let (peer, piece) = (*peer, *piece);
        let reason = match fault {
            // Its window was given back because every piece there is here, this one too.
            ReadFault::Refused if self.swarm.have().contains(piece) => return ReadOutcome::Ok,
            ReadFault::Refused => return ReadOutcome::Retry,
            // Closed by this process, whose reasons are others: so is a link to a peer that has gone.
            ReadFault::LinkDown(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {
                return outcome(fault);
            }
            ReadFault::LinkDown(error) => format!("reading over RDMA failed: {}", explain(&**error)),
            ReadFault::Deadline => "a read over RDMA was not done by its deadline".to_owned(),
            _ => return outcome(fault),
        };
        if !self.ground.means.transports.allow_tcp() {
            return outcome(fault);
        }
        let link = self.links.get(&peer).filter(|link| link.generation == generation);
        if link.is_some_and(|link| link.granted.is_none()) {
            // The peer has said farewell: it destroys what it withdraws.
            return outcome(fault);
        }
        if link.is_some() {
            self.ground.means.transports.demote(peer, reason.clone());
            self.moved(peer, reason);
        }
        // Not the peer's fault, and perhaps of a link that has been replaced since.
        ReadOutcome::Ok
    }

    /// A link is opened anew over TCP.
    pub(super) fn moved(&mut self, peer: planner::PeerId, reason: String) {
        tracing::info!(%peer, reason, "the peer is read over TCP from now on");
        self.ground.counters.fell_back(reason);
        self.ground.counters.metrics.fell_back();
        self.links.remove(&peer);
        self.inputs.push_back(Input::LinkMoved { peer });
    }
}

fn outcome(fault: &ReadFault) -> ReadOutcome {
    match fault.class() {
        FaultClass::Retry => ReadOutcome::NotHere,
        FaultClass::Reroute => ReadOutcome::SourceGone,
    }
}
