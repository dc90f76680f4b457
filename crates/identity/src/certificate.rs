//! The fleet's authority, and a certificate for this process. Does not own connections.
//!
//! The authority is an Ed25519 key whose seed is derived from the fleet key, so that every process makes the same one.
//! A process's own key is new at each start and never leaves it.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
    version::TLS13,
};

use crate::{FleetKey, IdentityError};

/// How long before its making a certificate is valid: clocks within a day of one another do no harm.
pub const VALID_SINCE: Duration = Duration::from_hours(24);

/// How long a certificate is valid: longer than any process runs without a restart.
pub const VALID_FOR: Duration = Duration::from_hours(24 * 400);

/// Separates the authority from whatever else is derived from a key.
const AUTHORITY_CONTEXT: &str = "modelcast 2026-11 fleet certificate authority";

/// The head of a PKCS #8 Ed25519 private key (RFC 8410 §7); the seed's 32 bytes follow.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What TLS needs.
pub(crate) struct Certificates {
    authority: CertificateDer<'static>,
    own: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

pub(crate) fn issue(key: &FleetKey, name: &str, now: SystemTime) -> Result<Certificates, IdentityError> {
    make(key, name, now).map_err(IdentityError::Certificate)
}

fn make(key: &FleetKey, name: &str, now: SystemTime) -> Result<Certificates, rcgen::Error> {
    let seed = key.derive(AUTHORITY_CONTEXT);
    let pkcs8 = [PKCS8_HEAD.as_slice(), seed.as_slice()].concat();
    let authority_key =
        KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(pkcs8), &PKCS_ED25519)?;
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.distinguished_name.push(DnType::CommonName, "Modelcast fleet");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_der = authority.self_signed(&authority_key)?.der().clone();
    let issuer = Issuer::new(authority, authority_key);

    let own_key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut own = CertificateParams::new(vec![name.to_owned()])?;
    own.distinguished_name.push(DnType::CommonName, "Modelcast process");
    own.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    own.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    own.not_before = (now - VALID_SINCE).into();
    own.not_after = (now + VALID_FOR).into();
    let own_der = own.signed_by(&own_key, &issuer)?.der().clone();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own_key.serialize_der()));
    Ok(Certificates { authority: authority_der, own: own_der, key })
}

/// TLS 1.3 only: both ends are of this program.
pub(crate) fn configs(certificates: Certificates) -> Result<(ClientConfig, ServerConfig), rustls::Error> {
    let Certificates { authority, own, key } = certificates;
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let roots = Arc::new(roots);
    let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(Arc::clone(&roots))
        .with_client_auth_cert(vec![own.clone()], key.clone_key())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own], key)?;
    Ok((client, server))
}
