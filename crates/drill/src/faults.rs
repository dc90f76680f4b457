//! The faults, each played against a broadcast that runs, and what must hold of it.
//!
//! Owns: what is done to whom and when, and what is asked afterwards. Does not own: how it is done, or how outputs are
//! judged.

mod doubles;
mod others;
mod peers;
mod schedulers;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::Value;

use testbed::process::LOOK_INTERVAL;

use crate::{
    broadcast::{Broadcast, Outcome},
    fleet::{Cast, Fleet},
    site::{PEERS, Site},
};

/// How much of all bytes has arrived when a fault begins, in hundredths.
const MIDDLE: f64 = 35.0;

/// How long what was said may be on its way to a log.
const SAID_WITHIN: Duration = Duration::from_secs(5);

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

/// Who published what is broadcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Publisher {
    /// This program, with BLAKE3 roots.
    Modelctl,
    /// Another one, without.
    OtherTool,
}

/// How often the origin has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reads {
    Once,
    /// What was read first was wrong.
    Again,
}

impl Reads {
    /// Origin bytes in artifacts, at most.
    fn x_max(self) -> f64 {
        match self {
            Self::Once => 1.05,
            Self::Again => 2.05,
        }
    }
}

/// One fault.
pub(crate) struct Fault {
    pub(crate) name: &'static str,
    pub(crate) cast: Cast,
    pub(crate) publisher: Publisher,
    pub(crate) reads: Reads,
    /// The peers that it hits; the others are healthy.
    pub(crate) hit: &'static [usize],
    pub(crate) ends: Ends,
    /// How many seconds longer than without a fault the healthy pulls may take, where that is judged.
    pub(crate) extra_s_max: Option<f64>,
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
    /// What its double reported at its end; null without one.
    pub(crate) double: Value,
    /// The scheduler that a fault hit.
    pub(crate) hit_scheduler: Option<usize>,
    /// What part of a card other traffic got.
    pub(crate) others_share: Option<f64>,
}

/// A fault that is none: where the others differ is what they say.
const NONE: Fault = Fault {
    name: "none",
    cast: Cast {
        data: crate::fleet::Data::Encrypted,
        origin: crate::fleet::Origin::Seed,
        double: None,
        clockwork: None,
        background: None,
    },
    publisher: Publisher::Modelctl,
    reads: Reads::Once,
    hit: &[],
    ends: Ends::Well,
    extra_s_max: None,
    begin: None,
    heal: None,
    check: None,
};

impl Fault {
    /// Judges how long the healthy pulls took, beside those of the broadcast without a fault.
    pub(crate) fn judge_time(&self, seconds: f64, seconds_without: f64) -> Result<(), String> {
        let extra = seconds - seconds_without;
        match self.extra_s_max.filter(|max| extra > *max) {
            Some(max) => Err(format!("the healthy pulls took {extra:.1} s longer, which is over {max} s")),
            None => Ok(()),
        }
    }
}

/// All faults in the order in which they are played; the first is the one that others are compared with.
pub(crate) fn all() -> Vec<Fault> {
    let mut all = vec![NONE];
    all.extend(peers::faults());
    all.extend(others::faults());
    all.extend(doubles::faults());
    all.extend(schedulers::faults());
    all
}

/// Plays one fault; says how it went and what happened.
pub(crate) fn play(site: &Site, fault: &Fault) -> anyhow::Result<(Outcome, String)> {
    let model = match fault.publisher {
        Publisher::Modelctl => &site.model,
        Publisher::OtherTool => &site.foreign,
    };
    let fleet = Fleet::start(site, model, fault.cast)?;
    let broadcast = Broadcast::start(&fleet)?;
    let mut scene =
        Scene { site, fleet, broadcast, double: Value::Null, hit_scheduler: None, others_share: None };
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
    if fault.cast.double.is_some() {
        scene.double = scene.fleet.double_report()?;
    }
    let origin_x = scene.origin_x(fault.reads)?;
    scene.broadcast.judge(&scene.fleet)?;
    let what = fault.check.map_or_else(|| Ok(String::new()), |check| check(&mut scene))?;
    Ok((Outcome { seconds, origin_x }, what))
}

impl Scene<'_> {
    /// Origin bytes in artifacts by what pulls say, held against what the origin's card has sent; and those that a
    /// double says it has read.
    fn origin_x(&self, reads: Reads) -> anyhow::Result<f64> {
        let said = in_artifacts(self.broadcast.origin_bytes(), self);
        let sent = in_artifacts(self.fleet.origin_sent()?, self);
        let x = said + in_artifacts(self.reported("vouched_bytes"), self);
        let max = reads.x_max();
        ensure!(x <= max, "{x:.3} artifacts were read from the origin");
        ensure!(sent <= max * HEADERS_X_MAX, "the origin's card sent {sent:.3} artifacts");
        ensure!(
            said >= (sent - TALK_X_MAX) * ACCOUNTED_MIN,
            "the origin sent {sent:.3} artifacts, pulls say {said:.3}"
        );
        Ok(x)
    }

    /// A number of the double's report.
    fn reported(&self, name: &str) -> u64 {
        self.double[name].as_u64().unwrap_or_default()
    }

    /// Waits until it is found in the logs, where it may be on its way.
    fn until_logged(&self, is_found: impl Fn(&Self) -> bool) -> bool {
        let deadline = Instant::now() + SAID_WITHIN;
        loop {
            let is_over = Instant::now() > deadline;
            if is_found(self) || is_over {
                return is_found(self);
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes far below 2^52")]
fn in_artifacts(bytes: u64, scene: &Scene<'_>) -> f64 {
    bytes as f64 / scene.fleet.model().artifact.bytes() as f64
}

fn lines_with(log: &str, words: &str) -> Vec<String> {
    log.lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

/// What follows a field's name in a line of a log, up to the next space.
fn word_after<'a>(line: &'a str, field: &str) -> Option<&'a str> {
    line.split_once(field)?.1.split(' ').next()
}
