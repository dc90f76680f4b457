//! Inference servers that are told of a new version.
//!
//! Owns: which server a model has, and the order of a switch with it: whatever goes wrong, the former version is in
//! place and served again. Does not own: when to switch, or the versions.

mod engines;
mod http;
mod repository;
mod triton;

use modelpack::digest::Sha256Digest;

pub(crate) use self::repository::sweep as sweep_repository;
use self::{
    engines::{Sglang, Vllm},
    triton::Triton,
};
use crate::{
    config::ModelConfig,
    error::{SidecarError, line},
    machine::Refused,
    versions::Versions,
};

/// The server of a model.
#[derive(Debug)]
pub(crate) enum Server {
    /// None is told: whoever opens the directory next has the new version.
    None,
    Triton(Triton),
    Vllm(Vllm),
    Sglang(Sglang),
}

impl Server {
    /// The one that the configuration names. `dir` is where the model's directory is.
    pub(crate) fn of(config: &ModelConfig, versions: &Versions) -> Self {
        if let Some(triton) = &config.triton {
            Self::Triton(Triton::new(triton, versions.dir()))
        } else if let Some(vllm) = &config.vllm {
            Self::Vllm(Vllm::new(vllm))
        } else if let Some(sglang) = &config.sglang {
            Self::Sglang(Sglang::new(sglang, versions.dir()))
        } else {
            Self::None
        }
    }

    /// Puts a version in place that is whole, and has the server take it.
    pub(crate) async fn switch(
        &self,
        versions: &Versions,
        to: &Sha256Digest,
        from: Option<&Sha256Digest>,
    ) -> Result<(), Refused> {
        // Nobody can serve what is not there yet: a server is started when its model is.
        let Some(from) = from else { return self.first(versions, to).map_err(|error| for_now(&error)) };
        match self {
            Self::None => versions.flip(to).map_err(|error| for_now(&error)),
            Self::Triton(triton) => triton.switch(versions, to).await,
            Self::Vllm(vllm) => vllm.switch(versions, to, from).await,
            Self::Sglang(sglang) => sglang.switch(versions, to, from).await,
        }
    }

    fn first(&self, versions: &Versions, to: &Sha256Digest) -> Result<(), SidecarError> {
        if let Self::Triton(triton) = self {
            triton.place(versions, to)?;
        }
        versions.flip(to)
    }

    /// Has the server take what is in place, if it does not have it. Servers that open the directory themselves need
    /// nobody for that.
    pub(crate) async fn ensure(&self, versions: &Versions, live: &Sha256Digest) -> Result<(), SidecarError> {
        match self {
            Self::Triton(triton) => triton.ensure(versions, live).await,
            Self::None | Self::Vllm(_) | Self::Sglang(_) => Ok(()),
        }
    }
}

fn for_now(error: &SidecarError) -> Refused {
    Refused::ForNow(line(error))
}
