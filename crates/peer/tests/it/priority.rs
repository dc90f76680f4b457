//! Two artifacts through the same peers: the more urgent one goes first, and the other is not forgotten.
//!
//! How far one is when the other ends is compared, and no time: a machine that is busy slows both. What equally urgent ones
//! have of each other is up to their connections; what is held back is up to the peers, who show it.

use std::{collections::BTreeSet, time::Duration};

use modelpack::reference::{LayoutReference, Reference};
use peer::{PullReport, PullWatch, Transports};
use planner::Priority;

use crate::{
    fleet::Fleet,
    support::{Model, pattern, until},
};

/// What each process may send in a second, and receive: its card.
const RATE: u64 = 32 << 20;

/// Seconds that one artifact takes alone.
const SECONDS: usize = 4;

const CHILDREN: usize = 2;

/// How often what is held back is looked at: about as often as it changes.
const LOOK: Duration = Duration::from_millis(100);

fn model(number: u32) -> Model {
    let pieces = SECONDS * usize::try_from(RATE >> 20).unwrap();
    Model::new(vec![("model.bin".into(), pattern(number, pieces << 20))])
}

fn layout(model: &Model, fleet: &Fleet, name: &str) -> LayoutReference {
    let Reference::Layout(layout) = model.write_layout(&fleet.top.path().join(name)) else {
        unreachable!("it is a layout")
    };
    layout
}

/// One pull of each artifact through each child.
struct Race {
    watches: Vec<[PullWatch; 2]>,
    /// In the order in which they ended: which artifact, and what all children had of the other then.
    ended: Vec<(usize, f64)>,
    /// What any peer has shown to be held back meanwhile: which priority, and in which direction.
    held: BTreeSet<String>,
}

/// Pulls two artifacts through all children, of which a seed has both. The first begins when the second is under way.
async fn race(priorities: [Priority; 2]) -> Race {
    let models = [model(7), model(9)];
    let mut fleet = Fleet::start(0).await;
    fleet.transports = Transports::tcp().limited(RATE);
    let seeds = vec![layout(&models[0], &fleet, "first"), layout(&models[1], &fleet, "second")];
    let seed = fleet.start_seed(CHILDREN, seeds).await;
    for number in 0..CHILDREN {
        fleet.transports = Transports::tcp().limited(RATE);
        let child = fleet.start_peer(number, None).await;
        fleet.peers.push(child);
    }
    fleet.peers.push(seed);
    let watches: Vec<_> = (0..CHILDREN).map(|_| [PullWatch::new(), PullWatch::new()]).collect();
    let mut pulls = tokio::task::JoinSet::new();
    for artifact in [1, 0] {
        for (child, watches) in watches.iter().enumerate() {
            let reference = Reference::Fleet(models[artifact].digest());
            let output = fleet.top.path().join(format!("out-{child}-{artifact}"));
            let pull =
                fleet.pull_as(child, (reference, priorities[artifact]), output, watches[artifact].clone());
            pulls.spawn(async move { (artifact, pull.await) });
        }
        if artifact == 1 {
            until(|| watches.iter().all(|of| of[1].progress().done > 0)).await;
        }
    }
    let mut held = BTreeSet::new();
    let look = async {
        loop {
            for peer in &fleet.peers {
                held.extend(held_back(&peer.metrics().await));
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let end = async {
        let mut ended = Vec::new();
        while let Some(pull) = pulls.join_next().await {
            let (artifact, report): (usize, Result<PullReport, peer::PeerError>) = pull.unwrap();
            report.unwrap();
            ended.push((artifact, part_of(&watches, 1 - artifact)));
        }
        ended
    };
    let ended = tokio::select! {
        ended = end => ended,
        () = look => unreachable!("it looks as long as anything is pulled"),
    };
    for (artifact, model) in models.iter().enumerate() {
        for child in 0..CHILDREN {
            model.assert_in(&fleet.top.path().join(format!("out-{child}-{artifact}")));
        }
    }
    Race { watches, ended, held }
}

/// What is held back by a page of metrics: the labels of what has a rate.
fn held_back(page: &str) -> impl Iterator<Item = String> {
    let lines = page.lines().filter_map(|line| line.strip_prefix("modelctl_peer_held_bytes_per_second{"));
    lines.map(|line| line.split_once('}').expect("labels end").0.to_owned())
}

/// What all children together have of an artifact.
#[expect(clippy::cast_precision_loss, reason = "a part of some megabytes")]
fn part_of(watches: &[[PullWatch; 2]], artifact: usize) -> f64 {
    let progress = watches.iter().map(|of| of[artifact].progress());
    let (done, total) = progress.fold((0, 0), |(done, total), at| (done + at.done, total + at.total));
    done as f64 / total as f64
}

impl Race {
    fn was_held(&self, priority: Priority) -> bool {
        let label = format!("priority=\"{}\"", priority.name());
        self.held.iter().any(|labels| labels.contains(&label))
    }

    /// What was there of the second one when all had the first.
    fn second_then(&self) -> f64 {
        self.ended.iter().filter(|(artifact, _)| *artifact == 0).map(|(_, part)| *part).next_back().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_more_urgent_of_two_has_the_cards_and_the_other_has_them_afterwards() {
    for priorities in [[Priority::High, Priority::Normal], [Priority::Normal, Priority::Low]] {
        let race = race(priorities).await;
        let part = race.second_then();
        assert!(part < 0.5, "{priorities:?}: {part} of the second was there, {:?}", race.ended);
        assert!(part_of(&race.watches, 1) >= 1.0, "and in the end all of it");
        let was_held = priorities.map(|priority| race.was_held(priority));
        assert_eq!(was_held, [false, true], "{priorities:?}: {:?}", race.held);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_equally_urgent_ones_none_is_held_back() {
    let race = race([Priority::Normal; 2]).await;
    assert!(!race.was_held(Priority::Normal), "{:?}, {:?}", race.held, race.ended);
}
