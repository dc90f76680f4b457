//! Mirrors of a repository: asked first, trusted with nothing.
//!
//! Owns: their order, which of them are asked now, and what each has served. Does not own: where they are configured
//! (`registries`), or writing, which goes to the registry itself.
//!
//! **Invariant:** a mirror is shown its own credentials and never the registry's.

use std::{
    collections::BTreeSet,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    access::Access,
    channel::Channel,
    error::{Class, RegistryError},
    patience::Patience,
};

/// How long a mirror that failed is left alone; it doubles with each further failure.
const REST_FIRST: Duration = Duration::from_secs(10);
const REST_MAX: Duration = Duration::from_mins(5);

/// How long a mirror may be silent: the registry would be given longer, but behind a mirror there is another.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// Whoever gives up on a read of which nothing has come for so long gives up on the mirror, too.
const SILENCE_MIN: Duration = Duration::from_secs(1);

/// What of a mirror it is remembered that it has not: as many blobs as most artifacts have.
const LACKS_MAX: usize = 1024;

/// Where a repository is mirrored.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// `HOST[:PORT]`.
    pub registry: String,
    /// The repository's name there.
    pub repository: String,
    /// What it is asked for.
    pub serves: Serves,
    /// How it is reached, and who asks there. Mirrors of a mirror are not looked at.
    pub access: Access,
}

/// What a mirror is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Serves {
    /// Whatever is wanted.
    #[default]
    All,
    /// What is wanted by its digest.
    Digests,
    /// What is wanted by a tag.
    Tags,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name<'a> {
    Digest(&'a str),
    Tag(&'a str),
}

/// A mirror, and how much came from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorBytes {
    /// `HOST[:PORT]`.
    pub registry: String,
    /// Bytes of blobs that were read as ranges.
    pub bytes: u64,
}

/// The mirrors of one repository. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mirrors(Arc<[Arc<Site>]>);

/// One of them.
pub(crate) struct Site {
    pub(crate) channel: Arc<Channel>,
    registry: String,
    serves: Serves,
    bytes: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rests_until: Option<Instant>,
    failures: u32,
    /// It has served wrong bytes.
    is_distrusted: bool,
    lacks: BTreeSet<String>,
}

/// Who served a stream: told if the bytes turn out wrong.
#[derive(Clone, Debug)]
pub struct Served(Option<Arc<Site>>);

impl Served {
    pub(crate) fn by(site: Option<Arc<Site>>) -> Self {
        Self(site)
    }

    /// What it served was wrong. Says whether that was a mirror, which is asked for nothing any more.
    pub fn was_wrong(&self) -> bool {
        if let Some(site) = &self.0 {
            site.distrust();
        }
        self.0.is_some()
    }
}

impl Mirrors {
    pub(crate) fn new(mirrors: Vec<Mirror>) -> Result<Self, RegistryError> {
        let site = |mirror: Mirror| -> Result<Arc<Site>, RegistryError> {
            let Mirror { registry, repository, serves, access } = mirror;
            let channel = Arc::new(Channel::new(&registry, &repository, access)?.with_patience(patience()));
            let (bytes, state) = (AtomicU64::default(), Mutex::default());
            Ok(Arc::new(Site { channel, registry, serves, bytes, state }))
        };
        Ok(Self(mirrors.into_iter().map(site).collect::<Result<Vec<_>, RegistryError>>()?.into()))
    }

    /// Those that are asked for `name` now, in order, each once; where none has it, the registry itself is.
    pub(crate) fn asked(&self, name: Name<'_>) -> impl Iterator<Item = Arc<Site>> {
        self.0.iter().filter(move |site| site.is_asked(name)).cloned()
    }

    /// Whoever has served anything is asked for nothing any more: something of it is wrong, and nobody knows what.
    pub(crate) fn distrust_all(&self) {
        self.0.iter().filter(|site| site.bytes.load(Ordering::Relaxed) > 0).for_each(|site| site.distrust());
    }

    pub(crate) fn bytes(&self) -> Vec<MirrorBytes> {
        let of = |site: &Arc<Site>| {
            let bytes = site.bytes.load(Ordering::Relaxed);
            MirrorBytes { registry: site.registry.clone(), bytes }
        };
        self.0.iter().map(of).filter(|mirror| mirror.bytes > 0).collect()
    }
}

/// Behind a mirror that fails there is another, or the registry.
fn patience() -> Patience {
    Patience { attempts: 1, silence_max: SILENCE_MAX, ..Patience::default() }
}

impl Site {
    fn is_asked(&self, name: Name<'_>) -> bool {
        let (serves, text) = match name {
            Name::Digest(text) => (self.serves != Serves::Tags, text),
            Name::Tag(text) => (self.serves != Serves::Digests, text),
        };
        let state = self.state();
        let rests = state.rests_until.is_some_and(|until| Instant::now() < until);
        serves && !state.is_distrusted && !rests && !state.lacks.contains(text)
    }

    /// What it answers; `None` if that is of no use, which is taken note of.
    pub(crate) async fn answer<T>(
        &self,
        name: Name<'_>,
        // On the heap: whoever asks mirrors asks the registry too, and would hold both.
        answer: Pin<Box<impl Future<Output = Result<T, RegistryError>>>>,
    ) -> Option<T> {
        let waiting = Waiting { site: self, since: Instant::now() };
        let result = answer.await;
        std::mem::forget(waiting);
        match result {
            Ok(found) => {
                self.state().failures = 0;
                Some(found)
            }
            Err(error) => {
                self.failed(Some(name), &error);
                None
            }
        }
    }

    /// Bytes of a blob have come.
    pub(crate) fn came(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self, name: Option<Name<'_>>, error: &RegistryError) {
        let registry = &self.registry;
        match (error.class(), name) {
            (Class::NotFound, Some(Name::Digest(text) | Name::Tag(text))) => {
                tracing::debug!(registry, %error, "a mirror has it not");
                let mut state = self.state();
                if state.lacks.len() == LACKS_MAX {
                    state.lacks.clear();
                }
                state.lacks.insert(text.to_owned());
            }
            (Class::Integrity, _) => self.distrust(),
            _ => {
                tracing::warn!(
                    registry,
                    error = error as &dyn std::error::Error,
                    "a mirror is left alone for a while"
                );
                self.rest();
            }
        }
    }

    /// Whoever waited for it has given up.
    pub(crate) fn was_silent(&self, since: Instant) {
        if since.elapsed() >= SILENCE_MIN {
            tracing::warn!(registry = self.registry, "a mirror is silent and left alone for a while");
            self.rest();
        }
    }

    fn rest(&self) {
        let mut state = self.state();
        let rest = REST_FIRST.saturating_mul(1 << state.failures.min(16)).min(REST_MAX);
        state.failures += 1;
        state.rests_until = Some(Instant::now() + rest);
    }

    fn distrust(&self) {
        if !std::mem::replace(&mut self.state().is_distrusted, true) {
            tracing::warn!(
                registry = self.registry,
                "a mirror served wrong bytes and is asked for nothing any more"
            );
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// Dropped only by whoever gives up before an answer came.
struct Waiting<'a> {
    site: &'a Site,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.site.was_silent(self.since);
    }
}
