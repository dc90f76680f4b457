//! What a name of a hub stands for, learned once for a fleet.
//!
//! Owns: asking the scheduler who knows, asking those, and telling others what is known here. Does not own: asking the hub
//! (`registry`), or whether somebody may have the model (`mirror`).
//!
//! What a member says of a name is believed: it is of the same fleet. What it says of the files is proved where it can be:
//! small ones by their names in Git, large ones by the hub's own answer when it is asked whether a client may have them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use modelpack::{digest::Sha256Digest, hub::Listing};
use planner::ArtifactId;
use registry::Told;
use wire::control::{Claim, HubModel};

use crate::{
    lookup::{ASKED_MAX, Held, ask_about, ask_holders, describe},
    node::Node,
};

/// Names that this peer tells others about: a branch and a commit each of the models that it loads. Each holds at most the
/// small files of a model, 16 MiB, which the two share.
const NAMES_MAX: usize = 32;

/// What is known here.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<BTreeMap<ArtifactId, Known>>);

#[derive(Debug)]
struct Known {
    told: Arc<Told>,
    /// When the hub said it.
    asked: Instant,
}

impl Names {
    fn keep(&self, name: &Sha256Digest, told: &Arc<Told>, asked: Instant) {
        let (id, mut names) = (id(name), self.names());
        if names.len() >= NAMES_MAX && !names.contains_key(&id) {
            let oldest = names.iter().min_by_key(|(_, known)| known.asked).map(|(id, _)| *id);
            oldest.and_then(|oldest| names.remove(&oldest));
        }
        names.insert(id, Known { told: Arc::clone(told), asked });
    }

    /// As others are told.
    pub(crate) fn get(&self, name: &ArtifactId) -> Option<HubModel> {
        let names = self.names();
        let Known { told, asked } = names.get(name)?;
        Some(HubModel {
            commit: told.commit.bytes().to_vec(),
            listing: told.listing.to_tree(),
            small_files: told.small.iter().map(|raw| raw.to_vec()).collect(),
            age_ms: u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<ArtifactId, Known>> {
        // A panic elsewhere leaves the table whole: each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn id(name: &Sha256Digest) -> ArtifactId {
    ArtifactId(*name.bytes())
}

/// What stands for a revision of a model on one hub, where digests of artifacts do.
pub(crate) fn key(endpoint: &str, model: &str, revision: &str) -> Sha256Digest {
    let endpoint = endpoint.trim_end_matches('/');
    Sha256Digest::of(format!("modelcast name of a hub\0{endpoint}\0{model}\0{revision}").as_bytes())
}

/// What the fleet says of a name.
pub(crate) enum Answer {
    /// That, and when the hub said so.
    Told(Arc<Told>, Instant),
    /// This peer is to ask the hub.
    Ask(Turn),
}

/// This peer's turn to ask the hub, while others may wait. Dropped before it [knows](Self::knows), it was in vain.
pub(crate) struct Turn(Option<Held>);

/// Asks the fleet, if there is one.
pub(crate) async fn ask(node: &Node, name: &Sha256Digest) -> Answer {
    let Some(scheduler) = node.scheduler() else { return Answer::Ask(Turn(None)) };
    let found = match ask_holders(&scheduler, name, (Claim::Offer, node.me())).await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "asking a hub without the fleet");
            return Answer::Ask(Turn(None));
        }
    };
    if found.read_origin {
        let held = Held { scheduler, node: node.me(), digest: *name, end: Some(Claim::Failed) };
        return Answer::Ask(Turn(Some(held)));
    }
    for address in found.control_addresses.into_iter().take(ASKED_MAX) {
        let described = describe(&address, &node.security().control, name).await;
        match described.map(|reply| reply.hub.and_then(read)) {
            Ok(Some((told, age))) => {
                let asked = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
                return Answer::Told(Arc::new(told), asked);
            }
            Ok(None) => tracing::warn!(address, "what a member says of a name of a hub is not usable"),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "asking the next");
            }
        }
    }
    Answer::Ask(Turn(None))
}

impl Turn {
    /// The hub has answered.
    pub(crate) fn knows(mut self) {
        if let Some(held) = &mut self.0 {
            held.end = None;
        }
    }
}

/// From now on this peer describes what a name stands for; others may rely on it for as long as it `holds`.
pub(crate) async fn tell(
    node: &Node,
    name: &Sha256Digest,
    (told, asked): (&Arc<Told>, Instant),
    holds: Duration,
) {
    node.names().keep(name, told, asked);
    let Some(scheduler) = node.scheduler() else { return };
    let left = holds.saturating_sub(asked.elapsed());
    if let Err(error) = ask_about(&scheduler, name, (Claim::Known, node.me()), left).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "the fleet does not hear of a name");
    }
}

fn read(hub: HubModel) -> Option<(Told, Duration)> {
    let commit = hub.commit.try_into().ok()?;
    let listing = Listing::parse_tree(&hub.listing).ok()?;
    let small = hub.small_files.into_iter().map(Bytes::from).collect();
    Some((
        Told { commit: modelpack::hub::Commit::new(commit), listing, small },
        Duration::from_millis(hub.age_ms),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_read_and_what_cannot_be_is_not() {
        let raw = Bytes::from_static(b"{}");
        let git = modelpack::hub::GitBlob::of(&raw);
        let page = format!(r#"[{{"type":"file","oid":"{git}","size":2,"path":"config.json"}}]"#);
        let listing = Listing::new(modelpack::hub::parse_page(page.as_bytes()).unwrap()).unwrap();
        let told = Told { commit: modelpack::hub::Commit::new([7; 20]), listing, small: vec![raw] };
        let (names, told) = (Names::default(), Arc::new(told));
        let name = key("http://h/", "o/n", "main");
        assert_eq!(name, key("http://h", "o/n", "main"));
        assert!(names.get(&id(&name)).is_none());
        names.keep(&name, &told, Instant::now());
        let said = names.get(&id(&name)).unwrap();
        let (read_back, _) = read(said.clone()).unwrap();
        assert_eq!((read_back.commit, &read_back.listing), (told.commit, &told.listing));
        assert_eq!(read_back.small, told.small);
        assert!(read(HubModel { commit: vec![1], ..said.clone() }).is_none());
        assert!(read(HubModel { listing: b"[]".to_vec(), ..said }).is_none());
        for number in 0..NAMES_MAX {
            names.keep(&key("h", "o/n", &number.to_string()), &told, Instant::now());
        }
        assert!(names.get(&id(&name)).is_none(), "the oldest went");
    }
}
