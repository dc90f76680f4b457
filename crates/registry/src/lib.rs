//! OCI registries as the origin and destination of artifacts, and Hugging Face hubs as an origin.
//!
//! Owns: the client's side of the OCI distribution specification 1.1.1 as far as Modelcast uses it: manifests, ranged
//! reads of blobs, uploads, copies between repositories, referrers and their fallback tags, Basic and Bearer
//! authorisation, retries; models on hubs (`hub`); and where users keep credentials and certificates. Does not own:
//! what manifests say (`modelpack`), proof of blobs by pieces and where their bytes land (`peer`), asking again for
//! what a broken [`BlobStream`] did not deliver.
//!
//! **Invariant:** credentials and tokens go to the registry's own scheme, host and port and, for tokens, to the realm
//! that it names; never along a redirect, from HTTPS to plain HTTP, into an error or a log.
//!
//! Why not `oci-client`, which DESIGN §11 names: of its token it keeps neither the expiry nor the errors, it retries
//! nothing and reads manifests without a limit, and blobs had to go around it anyway. What was left to use is the grammar
//! of challenges, which `http-auth` parses here as it does there. reqwest is the same.
//!
//! Trust and proxies: certificates are checked by rustls against the system's roots (found by `rustls-native-certs`,
//! which also honours `SSL_CERT_FILE`) and those of [`Access::ca_pem`]. `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and
//! `NO_PROXY` work as in reqwest, except that a registry on this machine's loopback is always reached directly, as Go's
//! tools do it: a proxy elsewhere could not reach it.

mod access;
mod address;
mod answer;
mod auth;
mod blob;
mod channel;
mod credentials;
mod error;
mod hub;
mod login;
mod mirrors;
mod patience;
mod push;
mod referrers;
mod registries;
mod repository;
mod survey;
mod trust;
mod upload;
mod upstream;

pub use access::{Access, Credentials};
pub use blob::BlobStream;
pub use credentials::{CredentialFiles, forget_credentials, store_credentials};
pub use error::{Class, ConnectionError, Exchange, Refusal, RegistryError};
pub use hub::{CachedModel, FileBytes, HubAccess, HubFailure, Problem, Snapshot, Told};
pub use login::check_login;
pub use mirrors::{Mirror, MirrorBytes, Served, Serves};
pub use patience::Patience;
pub use push::Copied;
pub use referrers::Referrer;
pub use registries::{MirrorAt, mirrors_of};
pub use repository::Repository;
pub use trust::{Certificates, certificates_of};
pub use upstream::{Listing, Page};
