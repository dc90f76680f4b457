//! The loop that does what the machine decides.
//!
//! Owns: translating between the machine, the files and the servers, and the order in which a process ends. Does not
//! own: decisions (`machine`), or how bytes come ([`Source`]).

use std::{path::Path, sync::Arc, time::Duration};

use futures_util::future::join_all;
use modelpack::digest::Sha256Digest;
use tokio::{sync::watch, task::spawn_blocking, time::sleep};

use crate::{
    board::Board,
    config::ModelConfig,
    error::{SidecarError, Trouble, line},
    machine::{Ending, Input, Machine, Output, Refused, Rules, Until},
    server::{Server, sweep_repository},
    space::{Space, occupied},
    versions::Versions,
};

/// Where versions of one model come from.
pub trait Source {
    /// Why they do not.
    type Error: std::fmt::Display;

    /// What the reference names now.
    fn resolve(&self) -> impl Future<Output = Result<Sha256Digest, Self::Error>>;

    /// How many bytes a version has.
    fn size(&self, version: &Sha256Digest) -> impl Future<Output = Result<u64, Self::Error>>;

    /// Brings a version into a directory that is absent, proved, and goes on serving others from there. Cancelled at any
    /// point, the next call resumes. `told` is called with bytes that are done, and all.
    fn pull(
        &self,
        version: &Sha256Digest,
        dir: &Path,
        told: &dyn Fn(u64, u64),
    ) -> impl Future<Output = Result<(), Self::Error>>;

    /// Serves others from a version that was there before this process was. One that cannot be served costs nobody
    /// anything but that.
    fn serve(&self, version: &Sha256Digest, dir: &Path) -> impl Future<Output = Result<(), Self::Error>>;

    /// Stops serving others, when those who read have what they asked for.
    fn leave(&self) -> impl Future<Output = ()>;
}

/// What holds for all models.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often each tag is looked at.
    pub poll: Duration,
    /// Whether it goes on when all are there.
    pub until: Until,
    /// Where chance comes from.
    pub seed: u64,
}

/// How it ended for one model.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The directory.
    pub dir: std::path::PathBuf,
    /// The version in place.
    pub version: Option<Sha256Digest>,
    /// Why it may not be what the reference names.
    pub stale: Option<String>,
}

/// Keeps these models until all are there, or until it is told to end. A switch that is under way is brought to its end
/// first.
pub async fn keep<S: Source>(
    models: Vec<(ModelConfig, S)>,
    settings: Settings,
    board: &Board,
    told_to_end: impl Future<Output = ()>,
) -> Result<Vec<Ended>, Trouble<S::Error>> {
    let (end, ending) = watch::channel(());
    let mut keepers = Vec::new();
    for (number, (config, source)) in models.into_iter().enumerate() {
        let seed = settings.seed.wrapping_add(number as u64);
        keepers.push(Keeper::open(&config, source, Settings { seed, ..settings }, (board, ending.clone()))?);
    }
    drop(ending);
    let ended: Result<Vec<_>, _> = {
        let mut all = Box::pin(join_all(keepers.iter_mut().map(Keeper::run)));
        let ended = tokio::select! {
            ended = &mut all => ended,
            () = told_to_end => {
                board.end();
                drop(end);
                all.await
            }
        };
        ended.into_iter().collect()
    };
    join_all(keepers.iter().map(|keeper| keeper.source.leave())).await;
    ended
}

/// One model and all that belongs to it.
struct Keeper<S: Source> {
    machine: Machine,
    versions: Arc<Versions>,
    server: Server,
    source: S,
    board: Board,
    number: usize,
    /// Closed when this process is to end.
    ending: watch::Receiver<()>,
    /// What went wrong last.
    trouble: Option<Trouble<S::Error>>,
    /// What was said last of what goes wrong: it is tried again and again.
    said: Option<String>,
    /// The version that others are served, or were found not to be.
    served: Option<Sha256Digest>,
}

impl<S: Source> Keeper<S> {
    fn open(
        config: &ModelConfig,
        source: S,
        settings: Settings,
        (board, ending): (&Board, watch::Receiver<()>),
    ) -> Result<Self, SidecarError> {
        let versions = Arc::new(Versions::open(&config.directory, &config.selection()?)?);
        let Settings { poll, until, seed } = settings;
        let machine = Machine::new(Rules { poll, keep: config.keep, until, seed });
        let server = Server::of(config, &versions);
        let name = versions.dir().file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = board.add(name, config.reference.to_string(), versions.dir().to_path_buf());
        Ok(Self {
            machine,
            versions,
            server,
            source,
            board: board.clone(),
            number,
            ending,
            trouble: None,
            said: None,
            served: None,
        })
    }

    async fn run(&mut self) -> Result<Ended, Trouble<S::Error>> {
        let versions = Arc::clone(&self.versions);
        self.machine.handle(Input::Begun(blocking(move || versions.live()).await?));
        let mut ending = self.ending.clone();
        loop {
            let output = self.machine.poll().expect("there is always something to do until the end");
            self.board.follow(self.number, &self.machine);
            // A switch is brought to its end: a server that sleeps is not left alone.
            let can_be_left = !matches!(output, Output::Switch(_) | Output::Sweep(_) | Output::End(_));
            if can_be_left && ending.has_changed().is_err() {
                return Ok(self.ended());
            }
            if let Output::End(how) = output {
                return match how {
                    Ending::Failed(why) => {
                        let trouble = self.trouble.take();
                        Err(trouble.unwrap_or(Trouble::Sidecar(SidecarError::NotInPlace(why))))
                    }
                    Ending::Fresh | Ending::Stale(_) => Ok(self.ended()),
                };
            }
            let doing = self.perform(output);
            let input = if can_be_left {
                tokio::select! {
                    input = doing => Some(input),
                    // It never changes: it is closed.
                    _ = ending.changed() => None,
                }
            } else {
                Some(doing.await)
            };
            match input {
                Some(Some(input)) => self.machine.handle(input),
                Some(None) => {}
                None => return Ok(self.ended()),
            }
        }
    }

    fn ended(&self) -> Ended {
        Ended {
            dir: self.versions.dir().to_path_buf(),
            version: self.machine.live(),
            stale: self.machine.stale().map(str::to_owned),
        }
    }

    /// Does it, and says what has come of it if that is an input.
    async fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Resolve => {
                let found = self.source.resolve().await.map_err(Trouble::Source);
                Some(Input::Resolved(self.noted(found)))
            }
            Output::Pull(version) => {
                let pulled = self.pull(version).await;
                Some(Input::Pulled(self.noted(pulled)))
            }
            Output::Switch(version) => Some(Input::Switched(self.switch(version).await)),
            Output::Ensure(version) => {
                self.serve(version).await;
                let ensured = self.server.ensure(&self.versions, &version).await;
                let is_told = matches!(self.server, Server::Triton(_));
                self.board.change(self.number, |model| model.loaded = is_told.then_some(ensured.is_ok()));
                let ensured = ensured.map_err(Trouble::Sidecar);
                if ensured.is_ok() && self.machine.stale().is_none() {
                    self.said = None;
                }
                Some(Input::Ensured(match ensured {
                    // What went wrong before is not mended by that.
                    Ok(()) if self.machine.stale().is_some() => Ok(()),
                    ensured => self.noted(ensured),
                }))
            }
            Output::Sweep(kept) => {
                let versions = Arc::clone(&self.versions);
                let swept = blocking(move || {
                    sweep_repository(&versions, &kept)?;
                    versions.sweep(&kept)
                });
                if let Err(error) = swept.await {
                    // It only takes room; the next sweep tries again.
                    tracing::warn!(error = %line(&error), "a former version stays");
                }
                None
            }
            Output::Wait(pause) => {
                sleep(pause).await;
                Some(Input::Due)
            }
            Output::End(_) => None,
        }
    }

    async fn pull(&mut self, version: Sha256Digest) -> Result<(), Trouble<S::Error>> {
        let versions = Arc::clone(&self.versions);
        let is_whole = blocking(move || {
            versions.discard_damaged(&version)?;
            Ok::<_, SidecarError>(versions.is_whole(&version))
        });
        if is_whole.await? {
            return Ok(());
        }
        self.served = None;
        // Those who still want the former version find others that have it.
        self.source.leave().await;
        let total = self.source.size(&version).await.map_err(Trouble::Source)?;
        let versions = Arc::clone(&self.versions);
        blocking(move || {
            let there = occupied(&[versions.staging(&version)]);
            match Space::of(versions.home())?.lack(total, there) {
                Some(lack) => Err(SidecarError::Space { dir: versions.home().to_path_buf(), lack }),
                None => Ok(()),
            }
        })
        .await?;
        let (board, number) = (&self.board, self.number);
        let told = |done, total| {
            board.change(number, |model| (model.bytes_done, model.bytes_total) = (done, total));
        };
        told(0, total);
        let path = self.versions.path(&version);
        self.source.pull(&version, &path, &told).await.map_err(Trouble::Source)?;
        told(total, total);
        self.served = Some(version);
        tracing::info!(version = %version, "pulled");
        Ok(())
    }

    /// Once for each version that this process has not brought itself.
    async fn serve(&mut self, version: Sha256Digest) {
        if self.served == Some(version) || self.machine.stale().is_some() {
            return;
        }
        self.served = Some(version);
        if let Err(error) = self.source.serve(&version, &self.versions.path(&version)).await {
            tracing::warn!(version = %version, "not served to peers: {error:#}");
        }
    }

    async fn switch(&mut self, version: Sha256Digest) -> Result<(), Refused> {
        let from = self.machine.live();
        let switched = self.server.switch(&self.versions, &version, from.as_ref()).await;
        match &switched {
            Ok(()) => {
                tracing::info!(version = %version, dir = %self.versions.dir().display(), "in place");
                self.board.count_switch();
                self.board.change(self.number, |model| model.problem = None);
                self.said = None;
            }
            Err(Refused::ForGood(why) | Refused::ForNow(why)) => {
                if matches!(switched, Err(Refused::ForGood(_))) {
                    self.board.count_refusal();
                }
                self.say(why);
            }
        }
        switched
    }

    /// Keeps what went wrong, and says it; forgets it when it goes well.
    fn noted<T>(&mut self, result: Result<T, Trouble<S::Error>>) -> Result<T, String> {
        match result {
            Ok(value) => {
                self.board.change(self.number, |model| model.problem = None);
                self.trouble = None;
                Ok(value)
            }
            Err(trouble) => {
                let why = trouble.line();
                self.say(&why);
                self.trouble = Some(trouble);
                Err(why)
            }
        }
    }

    /// Shows a problem, and logs it once until all goes well.
    fn say(&mut self, why: &str) {
        self.board.count_failure();
        self.board.change(self.number, |model| model.problem = Some(why.to_owned()));
        if self.said.as_deref() != Some(why) {
            tracing::warn!(dir = %self.versions.dir().display(), "{why}");
            self.said = Some(why.to_owned());
        }
    }
}

/// Off the threads that wait for the network.
async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    spawn_blocking(work).await.expect("it neither panics nor is it aborted")
}
