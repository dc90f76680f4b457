//! Triton in explicit mode: its model-control API.
//!
//! Source: Triton's "Model Repository Extension" and KServe's v2 protocol. A version is loaded beside the former one,
//! which serves until the new one is ready; a version that cannot be loaded leaves the former one loaded. Owns: the order
//! of a switch. Does not own: the files (`repository`).

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use modelpack::digest::Sha256Digest;
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::{
    for_now,
    http::{Fault, Http, QUESTION_MAX},
    repository::{self, Numbered, Template},
};
use crate::{
    config::TritonConfig,
    error::{SidecarError, line},
    machine::Refused,
    versions::Versions,
};

/// How often something is asked that is about to be so.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long a version that was loaded may take to be ready: loading has waited for it.
const READY_MAX: Duration = Duration::from_secs(30);

/// How long requests of a former version are waited for, before its files may go.
const RELEASE_MAX: Duration = Duration::from_mins(1);

/// One Triton server and the name by which it knows the model.
#[derive(Debug)]
pub(crate) struct Triton {
    http: Http,
    repository: PathBuf,
    name: String,
    template: Option<PathBuf>,
    load_timeout: Duration,
}

/// One line of the repository's index.
#[derive(Debug, Deserialize)]
struct Listed {
    name: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    state: String,
}

impl Triton {
    pub(super) fn new(config: &TritonConfig, dir: &Path) -> Self {
        let of_dir = || dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self {
            http: Http::new("Triton", &config.url),
            repository: config.repository.clone(),
            name: config.name.clone().unwrap_or_else(of_dir),
            template: config.template.clone(),
            load_timeout: config.load_timeout,
        }
    }

    /// Puts a version into the model repository.
    pub(super) fn place(
        &self,
        versions: &Versions,
        version: &Sha256Digest,
    ) -> Result<Numbered, SidecarError> {
        let template = Template { dir: self.template.as_deref(), name: &self.name };
        let numbered = repository::numbered(versions, version, &template)?;
        repository::place(versions, &self.repository, &self.name, &numbered.path)?;
        Ok(numbered)
    }

    /// Loads a version beside the one that is served, and makes it the one in place; or leaves all as it was.
    pub(super) async fn switch(&self, versions: &Versions, to: &Sha256Digest) -> Result<(), Refused> {
        // Whoever is down is told nothing, and nothing changes.
        let alive = self.http.get("/v2/health/live").await;
        alive.map_err(|fault| for_now(&self.http.error("answer", &fault)))?;
        let former = fs::canonicalize(self.repository.join(&self.name)).ok();
        let placed = self.place(versions, to).map_err(|error| for_now(&error))?;
        match self.load(&placed).await {
            Ok(()) => {
                versions.flip(to).map_err(|error| for_now(&error))?;
                self.released(&placed).await;
                Ok(())
            }
            Err((_, refused)) => {
                tracing::info!("the former version is put back");
                if let Err(error) = self.restore(versions, former.as_deref()).await {
                    tracing::error!(error = %line(&error), "the former version is not served");
                }
                Err(refused)
            }
        }
    }

    /// Loads what is in place, if it is not ready.
    pub(super) async fn ensure(&self, versions: &Versions, live: &Sha256Digest) -> Result<(), SidecarError> {
        let placed = self.place(versions, live)?;
        if self.is_ready(placed.number).await.map_err(|fault| self.http.error("answer", &fault))? {
            return Ok(());
        }
        self.load(&placed).await.map_err(|(error, _)| error)
    }

    /// Puts a model directory back, and loads it where it was lost.
    async fn restore(&self, versions: &Versions, former: Option<&Path>) -> Result<(), SidecarError> {
        let Some(former) = former else { return Ok(()) };
        repository::place(versions, &self.repository, &self.name, former)?;
        let number = former.file_name().and_then(|name| name.to_str()?.split('-').next()?.parse().ok());
        let Some(number) = number else { return Ok(()) };
        if matches!(self.is_ready(number).await, Ok(true)) {
            return Ok(());
        }
        let numbered = Numbered { number, path: former.to_path_buf() };
        self.load(&numbered).await.map_err(|(error, _)| error)
    }

    /// Has Triton look at the repository, and waits until it serves that version.
    async fn load(&self, placed: &Numbered) -> Result<(), (SidecarError, Refused)> {
        let operation = format!("load version {} of `{}`", placed.number, self.name);
        let failed = |fault: Fault| {
            let error = self.http.error(&operation, &fault);
            let refused = match fault {
                Fault::Said(400..500, _) => Refused::ForGood(line(&error)),
                Fault::Said(..) | Fault::Silent(_) => Refused::ForNow(line(&error)),
            };
            (error, refused)
        };
        let path = format!("/v2/repository/models/{}/load", self.name);
        self.http.post(&path, Some(&serde_json::json!({})), self.load_timeout).await.map_err(failed)?;
        let deadline = Instant::now() + READY_MAX;
        while !self.is_ready(placed.number).await.map_err(failed)? {
            if Instant::now() >= deadline {
                return Err(failed(Fault::Silent("it was loaded, but is not ready".to_owned())));
            }
            sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }

    async fn is_ready(&self, number: u64) -> Result<bool, Fault> {
        match self.http.get(&format!("/v2/models/{}/versions/{number}/ready", self.name)).await {
            Ok(_) => Ok(true),
            Err(Fault::Said(..)) => Ok(false),
            Err(silent) => Err(silent),
        }
    }

    /// Waits until no former version answers requests any more, so that its files may go.
    async fn released(&self, placed: &Numbered) {
        let deadline = Instant::now() + RELEASE_MAX;
        while Instant::now() < deadline {
            let listed =
                self.http.post("/v2/repository/index", Some(&serde_json::json!({})), QUESTION_MAX).await;
            let listed: Vec<Listed> = match listed {
                Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_default(),
                Err(fault) => {
                    return tracing::warn!(?fault, "it is not known whether the former version is in use");
                }
            };
            let is_former =
                |model: &Listed| model.name == self.name && model.version != placed.number.to_string();
            if !listed
                .iter()
                .any(|model| is_former(model) && ["READY", "UNLOADING"].contains(&model.state.as_str()))
            {
                return;
            }
            sleep(LOOK_INTERVAL).await;
        }
        tracing::warn!(name = self.name, "a former version is still in use");
    }
}
