//! Who may speak in a fleet: one key, and the certificates that every process derives from it (DESIGN §4).
//!
//! Owns: the fleet key and its file, the fleet's certificate authority, this process's own certificate, TLS with it in
//! both directions, and signed vouchers. Does not own: which connections are secured, or anything finer than "holds the
//! key": inside one key everybody may read everything.
//!
//! Every holder of the key can act as the authority, so that nothing has to be issued, distributed or renewed by hand.
//! The price is that a lost key is a lost fleet: there is no revocation but a new key.

mod certificate;
mod key;
mod voucher;

use std::{io, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub use certificate::{VALID_FOR, VALID_SINCE};
pub use key::{FleetKey, KEY_BYTES, KeyError, random_bytes};
pub use voucher::{KeyFailed, ReaderKey, Voucher};

/// The name that each process's certificate bears. The chain to the fleet's authority is what is checked; addresses
/// say nothing in a fleet, where they come and go.
const NAME: &str = "fleet.modelcast.internal";

/// TLS as one member of a fleet, in both directions: both ends show a certificate of the fleet's authority.
#[derive(Clone)]
pub struct Identity {
    connector: TlsConnector,
    acceptor: TlsAcceptor,
    name: u64,
}

/// How a connection is secured.
#[derive(Clone, Debug, Default)]
pub enum Security {
    /// Not at all: anybody on the way can read and change it.
    #[default]
    Plain,
    /// Mutual TLS between members of one fleet.
    Fleet(Identity),
}

/// A process could not make its identity. That is a fault of this build, not of the key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The certificate could not be made.
    #[error("cannot make a certificate from the fleet key")]
    Certificate(#[source] rcgen::Error),
    /// TLS could not be set up with it.
    #[error("cannot set up TLS with the fleet's certificate")]
    Tls(#[source] rustls::Error),
}

impl Identity {
    /// The identity of this process in the fleet of `key`. It lasts [`VALID_FOR`] from now.
    pub fn new(key: &FleetKey) -> Result<Self, IdentityError> {
        Self::issued_at(key, std::time::SystemTime::now())
    }

    /// As if the clock of this machine stood at `now`.
    pub fn issued_at(key: &FleetKey, now: std::time::SystemTime) -> Result<Self, IdentityError> {
        let certificates = certificate::issue(key, NAME, now)?;
        let (client, server) = certificate::configs(certificates).map_err(IdentityError::Tls)?;
        Ok(Self::of(client, server, key.fleet_name()))
    }

    fn of(client: ClientConfig, server: ServerConfig, name: u64) -> Self {
        let (connector, acceptor) =
            (TlsConnector::from(Arc::new(client)), TlsAcceptor::from(Arc::new(server)));
        Self { connector, acceptor, name }
    }

    /// The fleet's name: 8 bytes that say nothing of the key.
    pub fn fleet_name(&self) -> u64 {
        self.name
    }

    /// Secures a connection that this process made.
    pub async fn connect(&self, socket: TcpStream) -> io::Result<client::TlsStream<TcpStream>> {
        let name = ServerName::try_from(NAME).expect("a constant DNS name");
        self.connector.connect(name, socket).await
    }

    /// Secures a connection that this process accepted.
    pub async fn accept(&self, socket: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        self.acceptor.accept(socket).await
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({:016x})", self.name)
    }
}

/// What a failed handshake means for whoever runs the fleet, if it can be told.
pub fn explain(error: &io::Error) -> Option<&'static str> {
    explain_rustls(error.get_ref()?.downcast_ref::<rustls::Error>()?)
}

fn explain_rustls(error: &rustls::Error) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    match error {
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })
        | Error::AlertReceived(Alert::CertificateExpired) => Some(
            "a certificate has expired: restart the process whose certificate it is, and compare the clocks",
        ),
        Error::InvalidCertificate(Bad::NotValidYet | Bad::NotValidYetContext { .. }) => {
            Some("a certificate is not valid yet: compare the clocks of both machines")
        }
        Error::InvalidCertificate(_)
        | Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::DecryptError
            | Alert::CertificateUnknown
            | Alert::AccessDenied,
        ) => Some("the other side has another fleet key"),
        Error::NoCertificatesPresented | Error::AlertReceived(Alert::CertificateRequired) => {
            Some("one side has a fleet key and the other has none")
        }
        Error::InvalidMessage(_) => Some("the other side does not speak TLS: it has no fleet key"),
        _ => None,
    }
}

/// What whoever runs the fleet may do about a failed handshake, if it can be told.
pub fn hint(error: &io::Error) -> Option<&'static str> {
    use rustls::{AlertDescription as Alert, CertificateError as Bad, Error};
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    match error {
        Error::InvalidCertificate(
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. },
        )
        | Error::AlertReceived(Alert::CertificateExpired) => Some(HINT_CLOCKS),
        Error::NoCertificatesPresented
        | Error::InvalidMessage(_)
        | Error::AlertReceived(Alert::CertificateRequired) => Some(HINT_NO_KEY),
        _ => explain_rustls(error).map(|_| HINT_OTHER_KEY),
    }
}

const HINT_CLOCKS: &str =
    "compare `date -u` on both machines; a process that has run for more than 400 days is started again";

const HINT_OTHER_KEY: &str = "compare `sha256sum` of the `--fleet-key` files of both processes";

/// Where one of two processes has no key.
pub const HINT_NO_KEY: &str = "start both processes with the same `--fleet-key FILE`, or both without";
