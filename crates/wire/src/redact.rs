//! `Debug` for the messages that carry secrets, without them. Does not own any other message.

use std::fmt;

use crate::{
    control::{RdmaProbe, TcpEndpoint, WindowGrant},
    local::{Mirror, Pull},
};

impl fmt::Debug for TcpEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TcpEndpoint")
            .field("address", &self.address)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for RdmaProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RdmaProbe").field("rails", &self.rkeys.len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for WindowGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WindowGrant")
            .field("blob", &self.blob)
            .field("index", &self.index)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").field("registry", &self.registry).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pull")
            .field("reference", &self.reference)
            .field("plain_http", &self.plain_http)
            .finish_non_exhaustive()
    }
}
