//! The faults, each played against a broadcast that runs, and what must hold of it.
//!
//! Owns: what is done to whom and when, and what is asked afterwards. Does not own: how it is done, or how outputs are
//! judged.

mod doubles;
mod peers;
mod schedulers;

use anyhow::ensure;

use crate::{
    broadcast::{Broadcast, Outcome},
    fleet::{Cast, Fleet},
    site::{PEERS, Site},
};

/// How much of all bytes has arrived when a fault begins, in hundredths.
const MIDDLE: f64 = 35.0;

/// Origin bytes in artifacts, at most.
const ORIGIN_X_MAX: f64 = 1.05;

/// What the origin's card may send more than the bytes of blobs: headers of three layers, TLS, trees and manifests.
const HEADERS_X_MAX: f64 = 1.05;

/// The least share of what the origin's card sent that pulls must account for, beyond what it sends to those who read
/// nothing there: manifests, trees, have-maps, heartbeats. Where a double has everything, that is all it may send.
const ACCOUNTED_MIN: f64 = 0.85;
const TALK_X_MAX: f64 = 0.01;

/// How the pulls of those a fault hits end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ends {
    /// Well, once the fault is over.
    Well,
    /// They do not; nothing of them may be visible.
    Never,
}

/// One fault.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) cast: Cast,
    /// The peers that it hits; the others are healthy.
    pub(crate) hit: &'static [usize],
    pub(crate) ends: Ends,
    /// What is done in the middle of the broadcast.
    pub(crate) begin: Act,
    /// What is done when the healthy pulls are done.
    pub(crate) heal: Act,
    /// What else must hold, and what to say of it.
    pub(crate) check: Option<fn(&mut Scene<'_>) -> anyhow::Result<String>>,
}

/// Something that is done to a fleet.
pub(crate) type Act = Option<fn(&mut Scene<'_>) -> anyhow::Result<()>>;

/// A fleet in the middle of a broadcast.
pub(crate) struct Scene<'a> {
    pub(crate) site: &'a Site,
    pub(crate) fleet: Fleet<'a>,
    pub(crate) broadcast: Broadcast,
}

/// A fault that is none: where the others differ is what they say.
const NONE: Fault = Fault {
    name: "none",
    cast: Cast {
        data: crate::fleet::Data::Encrypted,
        origin: crate::fleet::Origin::Seed,
        double: None,
        clockwork: None,
    },
    hit: &[],
    ends: Ends::Well,
    begin: None,
    heal: None,
    check: None,
};

/// All faults in the order in which they are played; the first is the one that others are compared with.
pub(crate) fn all() -> Vec<Fault> {
    let mut all = vec![NONE];
    all.extend(peers::faults());
    all.extend(doubles::faults());
    all.extend(schedulers::faults());
    all
}

/// Plays one fault; says how it went and what happened.
pub(crate) fn play(site: &Site, fault: &Fault) -> anyhow::Result<(Outcome, String)> {
    let fleet = Fleet::start(site, &site.model, fault.cast)?;
    let broadcast = Broadcast::start(&fleet)?;
    let mut scene = Scene { site, fleet, broadcast };
    if let Some(begin) = fault.begin {
        scene.broadcast.wait_for_percent(MIDDLE)?;
        begin(&mut scene)?;
    }
    let healthy: Vec<usize> = (0..PEERS).filter(|peer| !fault.hit.contains(peer)).collect();
    let seconds = scene.broadcast.wait_for(&healthy)?;
    if let Some(heal) = fault.heal {
        heal(&mut scene)?;
    }
    match fault.ends {
        Ends::Well => drop(scene.broadcast.wait_for(fault.hit)?),
        Ends::Never => ensure!(
            fault.hit.iter().all(|peer| scene.broadcast.result(*peer).is_none()),
            "a pull ended well that could not"
        ),
    }
    let origin_x = scene.origin_x()?;
    scene.broadcast.judge(&scene.fleet)?;
    let what = fault.check.map_or_else(|| Ok(String::new()), |check| check(&mut scene))?;
    Ok((Outcome { seconds, origin_x }, what))
}

impl Scene<'_> {
    /// Origin bytes in artifacts by what pulls say, held against what the origin's card has sent.
    fn origin_x(&self) -> anyhow::Result<f64> {
        let said = in_artifacts(self.broadcast.origin_bytes(), self);
        let sent = in_artifacts(self.fleet.origin_sent()?, self);
        ensure!(said <= ORIGIN_X_MAX, "pulls read {said:.3} artifacts from the origin");
        ensure!(sent <= ORIGIN_X_MAX * HEADERS_X_MAX, "the origin's card sent {sent:.3} artifacts");
        ensure!(
            said >= (sent - TALK_X_MAX) * ACCOUNTED_MIN,
            "the origin sent {sent:.3} artifacts, pulls say {said:.3}"
        );
        Ok(said)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes far below 2^52")]
fn in_artifacts(bytes: u64, scene: &Scene<'_>) -> f64 {
    bytes as f64 / scene.fleet.model().artifact.bytes() as f64
}
