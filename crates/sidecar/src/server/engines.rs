//! vLLM and SGLang, which take new weights of the same shape into a running server.
//!
//! Sources: vLLM's documentation of sleep mode (level 2) with `VLLM_SERVER_DEV_MODE=1`; SGLang's native API. Owns: the
//! steps and how they are undone. Does not own: what happens to requests meanwhile: vLLM answers none while it sleeps.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use modelpack::digest::Sha256Digest;
use serde_json::{Value, json};

use super::{
    for_now,
    http::{Fault, Http},
};
use crate::{
    config::{EngineConfig, VllmConfig},
    error::{SidecarError, line},
    machine::Refused,
    versions::Versions,
};

/// A vLLM server.
#[derive(Debug)]
pub(crate) struct Vllm {
    http: Http,
    timeout: Duration,
}

impl Vllm {
    pub(super) fn new(config: &VllmConfig) -> Self {
        Self { http: Http::new("vLLM", &config.url), timeout: config.timeout }
    }

    pub(super) async fn switch(
        &self,
        versions: &Versions,
        to: &Sha256Digest,
        from: &Sha256Digest,
    ) -> Result<(), Refused> {
        // Level 2 drops the weights; nothing has changed if it does not go to sleep.
        self.step("sleep", "/sleep?level=2", None).await.map_err(|(error, _)| for_now(&error))?;
        let taken = match versions.flip(to) {
            Ok(()) => self.reload().await,
            Err(error) => Err((error, true)),
        };
        let Err((error, is_for_now)) = taken else { return Ok(()) };
        tracing::info!("the former version is put back");
        let restored = match versions.flip(from) {
            Ok(()) => self.reload().await.map_err(|(error, _)| error),
            Err(error) => Err(error),
        };
        if let Err(error) = restored {
            tracing::error!(error = %line(&error), "the former version is not served");
        }
        Err(if is_for_now { for_now(&error) } else { Refused::ForGood(line(&error)) })
    }

    /// Room for the weights, the weights, and the rest.
    async fn reload(&self) -> Result<(), (SidecarError, bool)> {
        self.step("wake up its weights", "/wake_up?tags=weights", None).await?;
        let reload = json!({ "method": "reload_weights" });
        self.step("reload its weights", "/collective_rpc", Some(&reload)).await?;
        self.step("wake up", "/wake_up?tags=kv_cache", None).await
    }

    /// One step, and if it fails whether it may do so only now.
    async fn step(
        &self,
        operation: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(), (SidecarError, bool)> {
        let done = self.http.patiently(path, body, self.timeout).await;
        done.map(drop)
            .map_err(|fault| (self.http.error(operation, &fault), matches!(fault, Fault::Silent(_))))
    }
}

/// An SGLang server.
#[derive(Debug)]
pub(crate) struct Sglang {
    http: Http,
    timeout: Duration,
    model_path: PathBuf,
}

impl Sglang {
    pub(super) fn new(config: &EngineConfig, dir: &Path) -> Self {
        let model_path = config.model_path.clone().unwrap_or_else(|| dir.to_path_buf());
        Self { http: Http::new("SGLang", &config.url), timeout: config.timeout, model_path }
    }

    pub(super) async fn switch(
        &self,
        versions: &Versions,
        to: &Sha256Digest,
        from: &Sha256Digest,
    ) -> Result<(), Refused> {
        versions.flip(to).map_err(|error| for_now(&error))?;
        let Err(fault) = self.update().await else { return Ok(()) };
        let error = self.http.error("update its weights", &fault);
        tracing::info!("the former version is put back");
        versions.flip(from).map_err(|error| for_now(&error))?;
        // Nobody who never answered has taken anything.
        if let (Fault::Said(..), Err(fault)) = (&fault, self.update().await) {
            let error = self.http.error("take its former weights", &fault);
            tracing::error!(error = %line(&error), "the former version may not be served");
        }
        Err(match fault {
            Fault::Silent(_) => for_now(&error),
            Fault::Said(..) => Refused::ForGood(line(&error)),
        })
    }

    async fn update(&self) -> Result<(), Fault> {
        let body = json!({ "model_path": self.model_path });
        let answer = self.http.patiently("/update_weights_from_disk", Some(&body), self.timeout).await?;
        // It may say no with status 200.
        let answer: Value = serde_json::from_slice(&answer).unwrap_or_default();
        if answer["success"] == Value::Bool(false) {
            return Err(Fault::Said(200, answer["message"].as_str().unwrap_or("no success").to_owned()));
        }
        Ok(())
    }
}
