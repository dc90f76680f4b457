//! Who asks, and over what: credentials and trust for one registry.
//!
//! Owns: what a user configures. Does not own: where credentials are kept (`credentials`), or proving them to a registry
//! (`auth`).

use std::fmt;

use crate::{hub::HubAccess, mirrors::Mirror};

/// How to reach a registry.
#[derive(Clone, Default)]
pub struct Access {
    /// Whether to speak HTTP without TLS. Never guessed, not even for `localhost`.
    pub plain_http: bool,
    /// Certificates of authorities to trust besides the system's, in PEM form.
    pub ca_pem: Option<Vec<u8>>,
    /// A certificate of this client and its key, in PEM form, for registries that ask for one.
    pub client_pem: Option<Vec<u8>>,
    /// Who asks.
    pub credentials: Credentials,
    /// How a hub is reached, for models that come from one.
    pub hub: HubAccess,
    /// Where else it is looked for what is read, first.
    pub mirrors: Vec<Mirror>,
}

/// Who asks.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    /// Nobody in particular.
    #[default]
    Anonymous,
    /// Somebody with a password, or with a token that the registry takes in its place.
    Basic {
        /// The name.
        username: String,
        /// The secret.
        password: String,
    },
    /// Somebody with a token that a token server exchanges for others (OAuth 2.0 refresh token).
    Identity {
        /// The secret.
        token: String,
    },
    /// Somebody else, on whose behalf this process asks: that one's proof is passed on as it is, and challenges are not
    /// met here but handed back ([`crate::Refusal::challenges`]).
    Forwarded {
        /// The value of the `Authorization` header, if that one proved anything.
        authorization: Option<String>,
    },
}

/// In place of a user name: what follows is an identity token. As Docker's credential helpers have it.
const TOKEN_USER: &str = "<token>";

impl Credentials {
    /// From a user name and a secret, as Docker's credential helpers give them: either may be empty.
    pub fn from_pair(username: String, secret: String) -> Self {
        match (username.as_str(), secret.as_str()) {
            ("", "") => Self::Anonymous,
            (TOKEN_USER, _) => Self::Identity { token: secret },
            _ => Self::Basic { username, password: secret },
        }
    }

    /// The same as a user name and a secret. What is passed on for somebody else has no such form and stays here.
    pub fn into_pair(self) -> (String, String) {
        match self {
            Self::Anonymous | Self::Forwarded { .. } => Default::default(),
            Self::Basic { username, password } => (username, password),
            Self::Identity { token } => (TOKEN_USER.to_owned(), token),
        }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("Anonymous"),
            Self::Identity { .. } => f.write_str("Identity"),
            Self::Forwarded { .. } => f.write_str("Forwarded"),
            Self::Basic { username, .. } => {
                f.debug_struct("Basic").field("username", username).finish_non_exhaustive()
            }
        }
    }
}

impl fmt::Debug for Access {
    /// Without the client's key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Access");
        debug.field("plain_http", &self.plain_http).field("credentials", &self.credentials);
        debug.finish_non_exhaustive()
    }
}
