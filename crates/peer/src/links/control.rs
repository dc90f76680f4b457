//! Both directions of a link's control stream, as the child uses them. Does not own what is said.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use modelpack::layout::BlobIndex;
use tokio::{sync::mpsc, time::Instant};
use tonic::Streaming;
use transport::Window;
use wire::{
    connection::reason,
    control::{
        ChildToParent, GrantRenewal, ParentToChild, child_to_parent::Kind as Said,
        parent_to_child::Kind as Heard,
    },
};

use super::{LinkEnd, invalid};

/// Messages that wait for the network, at most: a hello, one renewal at a time, and some about windows. More of those
/// wait here.
pub(super) const OUTGOING_MAX: usize = 8;

/// A checked grant, but for when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) windows: BTreeMap<BlobIndex, Window>,
    pub(super) in_flight_max: u32,
    pub(super) lasts: Duration,
    /// Bytes per second; none for no limit. A renewal may change it, but for whether there is one.
    pub(super) rate: Option<u64>,
}

impl Terms {
    /// Whether a renewal by these changes nothing that it may not.
    pub(super) fn are_renewed_by(&self, renewal: &Self) -> bool {
        let is_limited = |terms: &Self| terms.rate.is_some();
        is_limited(self) == is_limited(renewal) && *renewal == Self { rate: renewal.rate, ..self.clone() }
    }
}

pub(super) struct Control {
    inbound: Streaming<ParentToChild>,
    outgoing: mpsc::Sender<ChildToParent>,
    /// When the request that the next grant answers was sent: the child's count begins there.
    asked: Option<Instant>,
    /// For which there was no room yet: about windows, of which a link has few.
    unsaid: VecDeque<Said>,
}

impl Control {
    /// A stream on which the hello was sent at `asked`.
    pub(super) fn new(
        inbound: Streaming<ParentToChild>,
        outgoing: mpsc::Sender<ChildToParent>,
        asked: Instant,
    ) -> Self {
        Self { inbound, outgoing, asked: Some(asked), unsaid: VecDeque::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Heard, LinkEnd> {
        loop {
            let message = self.inbound.message().await?.ok_or(LinkEnd::Ended)?;
            match message.kind {
                Some(Heard::Refusal(refusal)) => return Err(LinkEnd::Refused(reason(&refusal.reason))),
                Some(Heard::Farewell(farewell)) => return Err(LinkEnd::Farewell(reason(&farewell.reason))),
                Some(kind) => return Ok(kind),
                // A kind of a later minor version.
                None => {}
            }
        }
    }

    /// Asks for more time, unless that was asked and not answered yet.
    pub(super) fn renew(&mut self) {
        let renewal = ChildToParent { kind: Some(Said::Renewal(GrantRenewal {})) };
        if self.asked.is_none() && self.outgoing.try_send(renewal).is_ok() {
            self.asked = Some(Instant::now());
        }
    }

    /// When a grant that came now ends.
    pub(super) fn end_of(&mut self, terms: &Terms) -> Result<Instant, LinkEnd> {
        let asked = self.asked.take().ok_or_else(|| invalid("grant", "nobody asked for it"))?;
        Ok(asked + terms.lasts)
    }

    /// Says it as soon as there is room, in order; [`Self::flush`] has to be called now and then.
    pub(super) fn say(&mut self, kind: Said) {
        self.unsaid.push_back(kind);
        self.flush();
    }

    pub(super) fn flush(&mut self) {
        // Without room, or a stream: that it has ended is heard where messages are.
        while let Ok(room) = self.outgoing.try_reserve()
            && let Some(kind) = self.unsaid.pop_front()
        {
            room.send(ChildToParent { kind: Some(kind) });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_may_change_a_rate_and_nothing_else() {
        let terms = |in_flight_max, rate| Terms {
            windows: BTreeMap::new(),
            in_flight_max,
            lasts: Duration::from_secs(10),
            rate,
        };
        for (before, renewal, expected) in [
            (terms(4, None), terms(4, None), true),
            (terms(4, Some(1)), terms(4, Some(2)), true),
            (terms(4, None), terms(4, Some(2)), false),
            (terms(4, Some(2)), terms(4, None), false),
            (terms(4, Some(1)), terms(5, Some(1)), false),
        ] {
            assert_eq!(before.are_renewed_by(&renewal), expected, "{before:?}, {renewal:?}");
        }
    }
}
