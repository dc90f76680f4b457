//! How a peer's connections to others are secured. Does not own the means (crate `identity`).

use identity::Security;

/// Control and data may differ: model bytes are often public, and unencrypted they move at the kernel's own speed.
#[derive(Clone, Debug, Default)]
pub struct PeerSecurity {
    /// Control connections, to the scheduler and to peers.
    pub control: Security,
    /// Data links. Where they are plain, both ends still prove a secret that only the control connection carried.
    pub data: Security,
}
