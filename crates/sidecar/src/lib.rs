//! Model directories that stay present and fresh, beside the server that reads them.
//!
//! Owns: what is done when ([`machine`], which decides and touches nothing), versions of a directory and the switch
//! between them, whether a version fits, the words with inference servers, and what is shown over HTTP. Does not own:
//! how bytes come: whoever drives it brings a [`Source`].

mod board;
mod config;
mod drive;
mod error;
pub mod machine;
mod relative;
mod server;
mod space;
mod versions;

pub use board::Board;
pub use config::{Config, EngineConfig, ModelConfig, TritonConfig, VllmConfig};
pub use drive::{Ended, Settings, Source, keep};
pub use error::{SidecarError, Trouble};
pub use space::{Lack, Memory, Space};
pub use versions::Versions;
