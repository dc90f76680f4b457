//! Files on disk: where an artifact's blobs land, how a directory is published, and the node's content store.
//!
//! Owns: staging directories with their lock and piece journal ([`Landing`]), output directories ([`OutputDir`]),
//! archives of files ([`read_archive`]), the content store ([`Store`]) and `oci:` layouts ([`LayoutWriter`], [`LayoutReader`]). Does not own: what is
//! fetched or from whom, hashing threads, or any async runtime; every call here may block.

mod ahead;
mod archive;
mod contents;
mod error;
mod files;
mod index;
mod journal;
mod landing;
mod link;
mod lock;
mod oci;
mod old;
mod output;
mod proof;
mod publish;
mod store;
mod unpack;

pub use archive::{ArchiveError, Budget, Packed, Taker, followed, read_archive};
pub use contents::{BlobIdentity, ContentFile, Contents};
pub use error::{ErrorClass, Occupied, StoreError};
pub use files::{Fingerprint, FsKind, filesystem_of, free_bytes, open_file};
pub use journal::{Claim, ClaimKind};
pub use landing::Landing;
pub use link::{LinkMode, LinkUsed};
pub use oci::{LayoutReader, LayoutWriter, Listed};
pub use old::{OldFile, old_files_in};
pub use output::{CompleteRecord, OpenedOutput, Output, OutputDir, Published, RecordedFile, verify_record};
pub use proof::BlobProof;
pub use store::{Inventory, NoReaders, Pin, Prune, Readers, Store, StoredArtifact, StoredPartial};
pub use unpack::unpacking_threads;
