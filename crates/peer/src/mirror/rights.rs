//! What registries said of callers and tags.
//!
//! Owns: who may read which repository, which digest a tag stood for, and for how long that is believed. Does not own:
//! asking.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use modelpack::digest::Sha256Digest;

/// How long a registry's word that somebody may read a repository is believed without asking again: a pull asks for
/// hundreds of things, and who loses a right loses it within this time.
pub(super) const FRESH: Duration = Duration::from_secs(30);

/// How long its word for a tag is. A tag that moved is seen after this.
pub(super) const TAG_FRESH: Duration = Duration::from_secs(2);

/// How long it is believed while the registry cannot be asked.
pub(super) const KNOWN: Duration = Duration::from_hours(24);

/// How long a registry that did not answer is not asked again where there is an older answer.
pub(super) const GONE: Duration = Duration::from_secs(5);

/// Rights and tags that are remembered, each: those of some hundred repositories and some dozen callers.
const ENTRIES_MAX: usize = 4096;

/// Somebody, by what they prove themselves with. The proof itself is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Who(Sha256Digest);

impl Who {
    pub(super) fn of(authorization: Option<&str>) -> Self {
        Self(Sha256Digest::of(authorization.unwrap_or_default().as_bytes()))
    }
}

/// A repository: the number of its registry, and its name.
pub(super) type Key = (usize, String);

/// How it stands with somebody and a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// The registry has to be asked, and if it cannot be, nothing is handed out.
    Unknown,
    /// It has to be asked; if it cannot be, what it said is believed.
    Known,
    /// It was asked just now.
    Fresh,
}

/// What was said.
#[derive(Default)]
pub(super) struct Rights(Mutex<Said>);

#[derive(Default)]
struct Said {
    rights: BTreeMap<(Key, Who), Instant>,
    tags: BTreeMap<(Key, String), (Sha256Digest, Instant)>,
    /// Registries by their numbers.
    gone: BTreeMap<usize, Instant>,
}

impl Rights {
    /// How it stands now. What is for everybody is for those as well who prove something.
    pub(super) fn standing(&self, key: &Key, who: &Who) -> Standing {
        let said = self.said();
        let of = |who: Who| {
            let age = said.rights.get(&(key.clone(), who)).map(Instant::elapsed);
            match age {
                Some(age) if age < FRESH => Standing::Fresh,
                Some(age) if age < KNOWN => Standing::Known,
                _ => Standing::Unknown,
            }
        };
        of(*who).max(of(Who::of(None)))
    }

    /// The registry lets somebody read it.
    pub(super) fn accept(&self, key: &Key, who: Who) {
        let mut said = self.said();
        said.gone.remove(&key.0);
        make_room(&mut said.rights, |at| *at);
        said.rights.insert((key.clone(), who), Instant::now());
    }

    /// It does not, or no more.
    pub(super) fn forget(&self, key: &Key, who: &Who) {
        let mut said = self.said();
        said.rights.remove(&(key.clone(), *who));
        // What it hid from one who proved something it hides from everybody.
        said.rights.remove(&(key.clone(), Who::of(None)));
    }

    /// A tag stands for that.
    pub(super) fn resolve(&self, key: &Key, tag: &str, digest: Sha256Digest) {
        let mut said = self.said();
        make_room(&mut said.tags, |(_, at)| *at);
        said.tags.insert((key.clone(), tag.to_owned()), (digest, Instant::now()));
    }

    /// What a tag stands for, if that was said just now to anybody and the caller may know it.
    pub(super) fn resolved(&self, key: &Key, tag: &str, standing: Standing) -> Option<Sha256Digest> {
        let (digest, at) = *self.said().tags.get(&(key.clone(), tag.to_owned()))?;
        (standing == Standing::Fresh && at.elapsed() < TAG_FRESH).then_some(digest)
    }

    /// What a tag stood for when the registry could be asked.
    pub(super) fn last_resolved(&self, key: &Key, tag: &str) -> Option<Sha256Digest> {
        let (digest, at) = *self.said().tags.get(&(key.clone(), tag.to_owned()))?;
        (at.elapsed() < KNOWN).then_some(digest)
    }

    /// A registry did not answer.
    pub(super) fn gone(&self, upstream: usize) {
        self.said().gone.insert(upstream, Instant::now());
    }

    /// Whether that was just now.
    pub(super) fn is_gone(&self, upstream: usize) -> bool {
        self.said().gone.get(&upstream).is_some_and(|at| at.elapsed() < GONE)
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        // A panic elsewhere leaves the tables whole: each change is one step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets go of the oldest where there is no room for one more.
fn make_room<K: Ord + Clone, V>(entries: &mut BTreeMap<K, V>, at: impl Fn(&V) -> Instant) {
    if entries.len() < ENTRIES_MAX {
        return;
    }
    let oldest = entries.iter().min_by_key(|(_, value)| at(value)).map(|(key, _)| key.clone());
    if let Some(oldest) = oldest {
        entries.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_is_one_callers_in_one_repository() {
        let rights = Rights::default();
        let (here, there) = ((0, "a".to_owned()), (0, "b".to_owned()));
        let (me, you, nobody) = (Who::of(Some("me")), Who::of(Some("you")), Who::of(None));
        rights.accept(&here, me);
        assert_eq!(rights.standing(&here, &me), Standing::Fresh);
        for (key, who) in [(&here, you), (&here, nobody), (&there, me)] {
            assert_eq!(rights.standing(key, &who), Standing::Unknown, "{key:?} {who:?}");
        }
        rights.accept(&there, nobody);
        assert_eq!(rights.standing(&there, &you), Standing::Fresh, "what is for everybody");
        rights.forget(&here, &me);
        rights.forget(&there, &you);
        assert_eq!(rights.standing(&here, &me), Standing::Unknown);
        assert_eq!(rights.standing(&there, &nobody), Standing::Unknown, "it is for everybody no more");
    }

    #[test]
    fn tags_are_told_to_those_who_may_know_and_no_more_is_kept_than_there_is_room_for() {
        let rights = Rights::default();
        let (key, digest) = ((0, "a".to_owned()), Sha256Digest::of(b"x"));
        rights.resolve(&key, "v1", digest);
        assert_eq!(rights.resolved(&key, "v1", Standing::Fresh), Some(digest));
        assert_eq!(rights.resolved(&key, "v1", Standing::Known), None);
        assert_eq!(rights.last_resolved(&key, "v1"), Some(digest));
        for number in 0..ENTRIES_MAX {
            rights.resolve(&key, &number.to_string(), digest);
        }
        assert_eq!(rights.last_resolved(&key, "v1"), None, "the oldest went");
        assert_eq!(rights.said().tags.len(), ENTRIES_MAX);
    }
}
