//! Inputs and outputs of swarms in a few words, for the trace. Does not own the trace.

use modelpack::layout::{PieceIndex, Run};
use swarm::{Input, Output};

use super::world::node_of;

/// Whom an input is about.
pub(super) fn about(input: &Input) -> Option<u32> {
    match input {
        Input::LinkUp { peer, .. }
        | Input::LinkLeaving { peer }
        | Input::LinkDown { peer }
        | Input::LinkMoved { peer }
        | Input::Have { peer, .. }
        | Input::Coming { peer, .. }
        | Input::Arrived { peer }
        | Input::Progress { peer } => Some(node_of(*peer)),
        _ => None,
    }
}

/// Whom an output is about.
pub(super) fn aim(output: &Output) -> Option<u32> {
    match output {
        Output::Connect { peer, .. }
        | Output::Disconnect { peer }
        | Output::Blame { peer, .. }
        | Output::Stalled { peer }
        | Output::Silent { peer }
        | Output::Read { source: swarm::Source::Peer(peer), .. } => Some(node_of(*peer)),
        _ => None,
    }
}

pub(super) fn runs_shown(runs: &[Run]) -> String {
    let shown: Vec<String> = runs.iter().map(|run| format!("{}..{}", run.start.0, run.end.0)).collect();
    shown.join(" ")
}

/// An input in a few words.
pub(super) fn shown(input: &Input) -> String {
    match input {
        Input::Plan(plan) => {
            let sources = plan.stripes.iter().map(|part| match part.source {
                planner::StripeSource::Origin => "origin".to_owned(),
                planner::StripeSource::Parent(peer) => node_of(peer).to_string(),
                planner::StripeSource::None => "-".to_owned(),
            });
            let sources: Vec<String> = sources.collect();
            format!("plan {}: stripes of {} from {}", plan.epoch, plan.stripe_pieces, sources.join(" "))
        }
        Input::Have { peer, runs } => format!("{} has {}", node_of(*peer), runs_shown(runs)),
        Input::Coming { peer, epoch, runs } => {
            format!("{} by plan {epoch} reads {}", node_of(*peer), runs_shown(runs))
        }
        Input::Piece { read, piece: PieceIndex(piece), outcome } => {
            format!("piece {piece} of read {} is {outcome:?}", read.0)
        }
        Input::ReadEnded { read, outcome } => format!("read {} ended: {outcome:?}", read.0),
        Input::LinkUp { peer, in_flight_max } => {
            format!("link to {} up, grants {in_flight_max}", node_of(*peer))
        }
        Input::LinkDown { peer } => format!("link to {} down", node_of(*peer)),
        Input::LinkLeaving { peer } => format!("{} leaves", node_of(*peer)),
        Input::Arrived { peer } => format!("bytes of a piece from {}", node_of(*peer)),
        Input::Progress { peer } => format!("bytes from {}", node_of(*peer)),
        other => format!("{other:?}"),
    }
}

/// An output in a few words.
pub(super) fn words(output: &Output) -> String {
    match output {
        Output::Connect { peer, .. } => format!("connect to {}", node_of(*peer)),
        Output::Disconnect { peer } => format!("disconnect from {}", node_of(*peer)),
        Output::Read { read, source, run, .. } => {
            let from = match source {
                swarm::Source::Origin => "the origin".to_owned(),
                swarm::Source::Peer(peer) => node_of(*peer).to_string(),
            };
            format!("read {}: {} from {from}", read.0, runs_shown(&[*run]))
        }
        Output::Coming { epoch, runs } => format!("say that by plan {epoch} come {}", runs_shown(runs)),
        Output::Announce { run } => format!("announce {}", runs_shown(&[*run])),
        Output::Blame { peer, piece } => format!("blame {} for piece {}", node_of(*peer), piece.0),
        Output::Stalled { peer } => format!("say that {} stalls", node_of(*peer)),
        Output::Silent { peer } => format!("call {} silent", node_of(*peer)),
        other => format!("{other:?}"),
    }
}
