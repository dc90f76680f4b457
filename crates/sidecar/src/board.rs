//! What a sidecar shows over HTTP: probes for Kubernetes, the models, and numbers.
//!
//! Owns: the pages and what they say when. Does not own: the HTTP face (crate `telemetry`).

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde::Serialize;
use telemetry::{Health, Page, Reply, Watched};

use crate::machine::{Machine, Phase};

/// What is known of all models. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Shown>>);

#[derive(Debug, Default)]
struct Shown {
    models: Vec<ModelStatus>,
    /// Told to end: no longer ready, though it may serve peers for a while.
    is_ending: bool,
    switches: u64,
    refusals: u64,
    failures: u64,
}

/// One model, as `/v1/models` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModelStatus {
    pub(crate) name: String,
    pub(crate) reference: String,
    /// Where servers open it.
    pub(crate) path: PathBuf,
    /// What is being done about it.
    pub(crate) state: &'static str,
    /// Whether a version is in place that is complete and proved.
    pub(crate) ready: bool,
    /// That version.
    pub(crate) digest: Option<String>,
    /// The version that is on its way.
    pub(crate) coming: Option<String>,
    /// The version that the server does not take.
    pub(crate) refused: Option<String>,
    /// Why what is in place may not be what the reference names.
    pub(crate) stale: Option<String>,
    /// Of what is on its way.
    pub(crate) bytes_done: u64,
    pub(crate) bytes_total: u64,
    /// Whether the server has what is in place, where this process sees to that.
    pub(crate) loaded: Option<bool>,
    /// What went wrong last, until it goes well.
    pub(crate) problem: Option<String>,
    /// Whether it was ready at any time.
    #[serde(skip)]
    pub(crate) was_ready: bool,
}

#[derive(Serialize)]
struct Models<'a> {
    models: &'a [ModelStatus],
}

impl Board {
    /// A board without models.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on nothing is ready.
    pub fn end(&self) {
        self.shown().is_ending = true;
    }

    /// Adds a model; gives its number.
    pub(crate) fn add(&self, name: String, reference: String, path: PathBuf) -> usize {
        let model = ModelStatus {
            name,
            reference,
            path,
            state: Phase::Starting.name(),
            ready: false,
            digest: None,
            coming: None,
            refused: None,
            stale: None,
            bytes_done: 0,
            bytes_total: 0,
            loaded: None,
            problem: None,
            was_ready: false,
        };
        let mut shown = self.shown();
        shown.models.push(model);
        shown.models.len() - 1
    }

    /// Shows a model as its machine has it.
    pub(crate) fn follow(&self, number: usize, machine: &Machine) {
        self.change(number, |model| {
            model.state = machine.phase().name();
            model.digest = machine.live().map(|version| version.to_string());
            model.coming = machine.coming().map(|version| version.to_string());
            model.refused = machine.refused().map(|version| version.to_string());
            model.stale = machine.stale().map(str::to_owned);
            model.ready = model.digest.is_some();
            model.was_ready |= model.ready;
        });
    }

    pub(crate) fn change(&self, number: usize, change: impl FnOnce(&mut ModelStatus)) {
        change(&mut self.shown().models[number]);
    }

    pub(crate) fn count_switch(&self) {
        self.shown().switches += 1;
    }

    pub(crate) fn count_refusal(&self) {
        self.shown().refusals += 1;
    }

    pub(crate) fn count_failure(&self) {
        self.shown().failures += 1;
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    /// Well if that is so of all models.
    fn all(&self, is_so: impl Fn(&ModelStatus) -> bool, word: &str) -> Reply {
        let lacking: Vec<_> = self.models.iter().filter(|model| !is_so(model)).collect();
        if self.is_ending {
            return Reply::NotYet("ending".to_owned());
        }
        // It answers before the directories are opened.
        if self.models.is_empty() {
            return Reply::NotYet("starting".to_owned());
        }
        if lacking.is_empty() {
            return Reply::Well(word.to_owned());
        }
        let tell = |model: &&ModelStatus| match &model.problem {
            Some(problem) => format!("{}: {}: {problem}", model.name, model.state),
            None => format!("{}: {}", model.name, model.state),
        };
        Reply::NotYet(lacking.iter().map(tell).collect::<Vec<_>>().join("; "))
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has floating-point numbers only")]
    fn metrics(&self) -> String {
        let mut page = Page::new();
        let count = |is_so: &dyn Fn(&ModelStatus) -> bool| {
            self.models.iter().filter(|model| is_so(model)).count() as f64
        };
        let sum = |of: fn(&ModelStatus) -> u64| self.models.iter().map(of).sum::<u64>() as f64;
        let states = Phase::ALL.map(|phase| ([("state", phase.name())], phase));
        let states: Vec<_> = states
            .iter()
            .map(|(labels, phase)| (&labels[..], count(&|model| model.state == phase.name())))
            .collect();
        page.gauge("modelctl_sidecar_models", "Models, by what is being done about them.", &states);
        let mut one = |name, help, value: f64| page.gauge(name, help, &[(&[], value)]);
        one("modelctl_sidecar_ready", "Models of which a version is in place.", count(&|model| model.ready));
        let is_stale = |model: &ModelStatus| model.stale.is_some();
        one("modelctl_sidecar_stale", "Models that may not be what their reference names.", count(&is_stale));
        let is_lost = |model: &ModelStatus| model.loaded == Some(false);
        one("modelctl_sidecar_not_loaded", "Models that their server does not have.", count(&is_lost));
        one("modelctl_sidecar_bytes_done", "Bytes of what is on its way.", sum(|model| model.bytes_done));
        one("modelctl_sidecar_bytes", "Bytes that it has in all.", sum(|model| model.bytes_total));
        let mut total = |name, help, value: u64| page.counter(name, help, &[(&[], value as f64)]);
        total("modelctl_sidecar_switches_total", "Versions that were put in place.", self.switches);
        total("modelctl_sidecar_refusals_total", "Versions that a server did not take.", self.refusals);
        total("modelctl_sidecar_failures_total", "Attempts that failed.", self.failures);
        page.finish()
    }
}

impl Watched for Board {
    fn metrics(&self) -> String {
        self.shown().metrics()
    }

    fn health(&self) -> Health {
        Health::Serving("alive")
    }

    fn page(&self, path: &str) -> Option<Reply> {
        let shown = self.shown();
        match path {
            "/readyz" => Some(shown.all(|model| model.ready, "ready")),
            "/startupz" => Some(shown.all(|model| model.was_ready, "started")),
            "/v1/models" => {
                let text = serde_json::to_string(&Models { models: &shown.models });
                Some(Reply::Json(text.expect("text and numbers always serialise")))
            }
            _ => None,
        }
    }

    fn pages(&self) -> &'static str {
        "/healthz, /readyz, /startupz, /v1/models and /metrics"
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use modelpack::digest::Sha256Digest;

    use super::*;
    use crate::machine::{Input, Rules, Until};

    #[test]
    fn is_ready_when_every_model_is_and_not_when_it_ends() {
        let board = Board::new();
        assert_eq!(board.page("/readyz"), Some(Reply::NotYet("starting".to_owned())));
        assert_eq!(board.page("/startupz"), Some(Reply::NotYet("starting".to_owned())));
        let version = Sha256Digest::new([1; 32]);
        let rules = Rules { poll: Duration::from_mins(1), keep: 1, until: Until::Told, seed: 0 };
        for name in ["a", "b"] {
            board.add(name.to_owned(), format!("a.b/{name}:v1"), format!("/{name}").into());
        }
        let mut machines = [Some(version), None].map(|live| {
            let mut machine = Machine::new(rules);
            machine.handle(Input::Begun(live));
            machine.poll();
            machine
        });
        board.follow(0, &machines[0]);
        board.follow(1, &machines[1]);
        assert_eq!(board.page("/readyz"), Some(Reply::NotYet("b: resolving".to_owned())));
        for input in [Input::Resolved(Ok(version)), Input::Pulled(Ok(())), Input::Switched(Ok(()))] {
            machines[1].handle(input);
            while machines[1].poll().is_some() {}
        }
        board.follow(1, &machines[1]);
        assert_eq!(board.page("/readyz"), Some(Reply::Well("ready".to_owned())));
        assert_eq!(board.page("/startupz"), Some(Reply::Well("started".to_owned())));
        assert_eq!(board.page("/other"), None);
        board.end();
        assert_eq!(board.page("/readyz"), Some(Reply::NotYet("ending".to_owned())));
        assert_eq!(board.health(), Health::Serving("alive"));
        assert!(board.metrics().contains("\nmodelctl_sidecar_ready 2\n"), "{}", board.metrics());
    }
}
